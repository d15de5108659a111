"""Draw samples of a dataset: a row per evaluation split, by class or above their masks (Figures 3 to 5).
Or one image under every corruption: a row per severity.

python scripts/contact_sheet.py dataset=domainnet --out domainnet.png
python scripts/contact_sheet.py dataset=voc --out voc.png
python scripts/contact_sheet.py dataset=pacs --per-class 2 --classes dog,horse --out sheet.pdf
python scripts/contact_sheet.py --corruptions photo.jpg --out corruptions.png       # no photo: a drawn one
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from daft.common.cli import complaint
from daft.common.errors import UserError
from daft.config.compose import configuration


def main() -> None:
    """List the images of every split, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="dataset=NAME and its keys, as for train.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png, .pdf or .svg file")
    parser.add_argument("--per-class", type=int, help="images of a class and split; default: 1")
    parser.add_argument("--classes", default="", help="separated by commas; default: ten, evenly spaced")
    parser.add_argument("--corruptions", type=Path, nargs="?", const=Path(), metavar="IMAGE")
    args = parser.parse_intermixed_args()
    if args.per_class is not None and args.per_class < 1:
        parser.error(f"--per-class {args.per_class}: one or more")
    if args.corruptions is not None:
        from daft.report.figures import sheets, style

        image = args.corruptions if args.corruptions.name else None
        style.save(sheets.corruptions(image), args.out)
        print(f"wrote {args.out}")
        return
    config = configuration(*args.overrides)

    # Seconds of imports: only now that the configuration makes sense.
    from daft.data import datasets
    from daft.report.figures import sheets, style

    classes, listed = [name for name in args.classes.split(",") if name], datasets.listing(config)
    if config.segmentation is None:
        sheet = sheets.classification(config, listed, args.per_class or 1, classes)
    else:
        if classes or args.per_class:
            raise UserError(f"dataset={config.dataset.name}: images with masks are not chosen by class")
        sheet = sheets.segmentation(config, listed)
    style.save(sheet, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        sys.exit(complaint("contact_sheet.py", error))
