"""Draw samples of a dataset: a row per evaluation split, by class or above their masks (Figures 3 to 5).
Or one image under every corruption: a row per severity.

python scripts/contact_sheet.py dataset=domainnet --out domainnet.png
python scripts/contact_sheet.py dataset=voc --out voc.png
python scripts/contact_sheet.py dataset=pacs --per-class 2 --classes dog,horse --out sheet.pdf
python scripts/contact_sheet.py --corruptions photo.jpg --out corruptions.png       # no photo: a drawn one
"""

from pathlib import Path

from _door import cli

from daft.common.errors import UserError


def main() -> None:
    """List the images of every split, and write the sheet."""
    parser = cli.parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="dataset=NAME and its keys, as for train.py")
    parser.add_argument("--out", type=cli.path, required=True, help="a .png, .pdf or .svg file")
    parser.add_argument("--per-class", type=cli.up_to(100), help="images of a class and split; default: 1")
    parser.add_argument(
        "--classes", type=cli.names, default=[], help="separated by commas; default: ten, evenly spaced"
    )
    parser.add_argument("--corruptions", type=cli.path, nargs="?", const=Path(), metavar="IMAGE")
    args = parser.parse_intermixed_args()
    cli.require_out(args.out, "png", "pdf", "svg")
    if args.corruptions is not None:
        if args.overrides:
            parser.error(f"--corruptions is of one image; {args.overrides[0]} has no effect")
        if args.corruptions.name and not args.corruptions.is_file():
            raise UserError(f"--corruptions {args.corruptions}: no such file")
        from daft.report.figures import sheets, style

        style.save(sheets.corruptions(args.corruptions if args.corruptions.name else None), args.out)
        print(f"wrote {args.out}")
        return

    from daft.config.compose import configuration

    config = configuration(*args.overrides)

    # Seconds of imports: only now that the configuration makes sense.
    from daft.data import datasets
    from daft.report.figures import sheets, style

    listed = datasets.listing(config)
    if config.segmentation is None:
        sheet = sheets.classification(config, listed, args.per_class or 1, args.classes)
    else:
        if args.classes or args.per_class:
            raise UserError(f"dataset={config.dataset.name}: images with masks are not chosen by class")
        sheet = sheets.segmentation(config, listed)
    style.save(sheet, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
