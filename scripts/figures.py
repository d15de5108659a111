"""Draw the records of a table's runs, or of a folder of runs, at the selected learning rates.

python scripts/figures.py small --out figures                  every figure of a table, as PNG and PDF
python scripts/figures.py runs/demo --out demo.png             one dataset: accuracy and distortion
python scripts/figures.py runs/sizes --kind training_size --out sizes.png
python scripts/figures.py small --out figures --wandb          logged to Weights & Biases, too

Kinds: overview, id_ood (accuracies), conversion (what it does to methods with parts), features, cosine, l2
(Figure 1), change (Figure 2), extremes (Figures 6 to 9: measured from the weights, then kept beside the
runs), rates (of each method), errors (confusion, calibration, accuracy by class, most confident mistakes; of
masks IoU by class); one picture of a kind by its whole name, as in --kind errors_daft;
over a setting, where runs differ in it: training_size, conversion_batches, shift_family, rate_grid.
"""

from _door import cli

from daft.config.options import options

OTHER_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".webp", ".eps", ".ps")
"""What no folder is called."""


def main() -> None:
    """Write one picture, or a folder of them."""
    parser = cli.parser(__doc__)
    parser.add_argument("what", help=f"{', '.join(options('table'))}, or a folder of run directories")
    parser.add_argument("--out", type=cli.path, required=True, help="a folder, or a .png, .pdf or .svg file")
    parser.add_argument(
        "--kind", type=cli.names, default=[], help="only these, separated by commas; of a file: overview"
    )
    parser.add_argument("--dataset", type=cli.text, help="only runs on this dataset")
    parser.add_argument(
        "--methods", type=cli.names, default=[], help="of Figures 1, 2 and 6 to 9; default: the paper's"
    )
    cli.add_runs(parser, of="the table's ")
    parser.add_argument("--wandb", action="store_true", help="log them to Weights & Biases, too")
    parser.add_argument("--project", type=cli.project, default="daft", help="there; default: daft")
    parser.add_argument("--entity", type=cli.entity, help="there; default: the account's own")
    args = parser.parse_args()

    from daft.report.figures import files, style

    single = args.out.suffix[1:] in style.FORMATS
    is_file = single or (args.out.suffix.lower() in OTHER_PICTURES and not args.out.is_dir())
    cli.require_out(args.out, *(style.FORMATS if is_file else ()))
    kinds = args.kind or (["overview"] if single else [])
    pictures = files.pictures(args.what, args.runs, args.dataset, kinds, args.methods)
    files.write(pictures, args.out)
    if args.wandb:
        from daft.tracking import sync

        images = {name: (style.pixels(p.draw()), p.caption) for name, p in pictures.items()}
        sync.send_pictures(images, args.what, args.project, args.entity)
        print(f"logged {len(images)} figure(s) to W&B")


if __name__ == "__main__":
    cli.run(main)
