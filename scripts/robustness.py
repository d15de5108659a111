"""Corruption errors of finished runs at their chosen learning rates, all seeds; nothing is trained.

python scripts/robustness.py table4            the table's runs on CIFAR-10-C
python scripts/robustness.py runs/sweep        the runs of a folder on their own ID images, corrupted here
python scripts/robustness.py small --images 500 --out robustness                    so those of another table

A result is a file beside the run's record. What is there is not repeated; interrupted, the same command
goes on.
"""

from pathlib import Path

from _door import cli

from daft.config.options import options


def main() -> int:
    """Evaluate what is missing, a line per run; print and write the table of a folder; 1 if a run failed."""
    parser = cli.parser(__doc__)
    parser.add_argument("what", help=f"{', '.join(options('table'))}, or a folder of run directories")
    cli.add_runs(parser, of="a table's ")
    parser.add_argument(
        "--on", choices=["cifar10_c", "generated"], help="default: what the table shows, else generated"
    )
    parser.add_argument("--images", type=cli.count, help="in each of the 75 blocks, stratified; default: all")
    parser.add_argument("--batch-size", type=cli.up_to(2**20), default=256)
    parser.add_argument("--device", type=cli.device, help="default: a GPU if there is one")
    parser.add_argument("--threads", type=cli.cores, help="of the CPU; default: torch's")
    parser.add_argument("--out", type=cli.path, help="folder for robustness.md and .csv")
    args = parser.parse_args()
    if args.out:
        cli.require_out(args.out)

    import torch

    from daft.common import devices
    from daft.report import paper, robustness

    device = devices.find(args.device, "--device")
    if args.threads:
        torch.set_num_threads(args.threads)
    table = paper.load(args.what) if args.what in options("table") else None
    kind = args.on or robustness.kind_of(table)
    chosen, whole = robustness.chosen(args.runs if table else Path(args.what), table)
    whole &= robustness.evaluate(chosen, kind, device, args.batch_size, args.images)
    robustness.write(chosen, kind, args.images, args.out)
    return 0 if whole else 1


if __name__ == "__main__":
    cli.run(main)
