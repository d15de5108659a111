"""Predict the classes of images with the network of a finished run.

python scripts/predict.py runs/pets-resnet50-daft-s0-0123456789ab photos/ --out predictions.csv
python scripts/predict.py RUN 'photos/**/*.jpg' more.png list.csv --out predictions.csv --all

Images are files, folders, globs, and tables of path (and label). Where folders, or the table, name classes of
the run, accuracy, balanced accuracy and the confusion matrix are computed too. A run of segmentation writes
masks to the folder predictions-masks/. After an interruption the same command goes on. Images that cannot be
read are listed at the end; the exit code is then 1, and nothing else is lost.
"""

import sys

from _door import cli


def main() -> int:
    """Write the predictions and, with known classes, the confusion matrix; 1 if an image cannot be used."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=cli.path, help="directory of a finished run")
    parser.add_argument("images", nargs="+", type=cli.text, help="folders, files, globs or tables of path")
    parser.add_argument("--out", type=cli.path, required=True, help="a .csv file")
    parser.add_argument("--all", action="store_true", help="the probability of every class, a column each")
    parser.add_argument("--batch-size", type=cli.up_to(2**20), help="default: that of the run's evaluation")
    parser.add_argument("--device", type=cli.device, help="default: a GPU if there is one")
    parser.add_argument("--threads", type=cli.cores, help="of the CPU; default: torch's")
    args = parser.parse_args()
    cli.require_out(args.out, "csv")
    if args.out.resolve() in [cli.path(word).resolve() for word in args.images]:
        parser.error(f"--out {args.out}: it is one of the inputs; name another file")

    import torch

    from daft.common import devices
    from daft.use import listing, loaded, partial, predictions

    device = devices.find(args.device, "--device")
    if args.threads:
        torch.set_num_threads(args.threads)
    run = loaded.load_run(args.run, device)
    if run.segments and args.all:
        parser.error("--all: a run of segmentation has the share of every class anyway")
    listed = listing.find(args.images, run.classes)
    options = {"batch_size": args.batch_size, "threads": args.threads}
    kept = partial.Partial(args.out)
    try:
        if run.segments:
            masks = args.out.with_name(f"{args.out.stem}-masks")
            predicted = predictions.segment(run, listed, masks, kept, **options)
        else:
            predicted = predictions.predict(run, listed, kept, every_class=args.all, **options)
    except KeyboardInterrupt:
        done = f"{kept.done:,} of {len(listed):,} image(s) are done"
        print(f"interrupted; {done}, and the same command goes on", file=sys.stderr)
        return 130
    if predicted.rows:  # else what is there stays
        print(*predictions.write_and_tell(predicted, args.out), sep="\n")
    kept.remove()
    if predicted.failures:
        print(*predictions.failures(predicted), sep="\n", file=sys.stderr)
    return 1 if predicted.failures else 0


if __name__ == "__main__":
    cli.run(main)
