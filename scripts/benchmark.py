"""Speed and memory as ratios, each measured in one run; writes results/benchmarks/<device>.md."""

from pathlib import Path

from _door import cli

from daft.config.options import ROOT

ROWS = ("conversion", "training", "probe", "memory", "cache", "corrupted", "sweeps")


def main() -> int:
    """Measure, print, write; 1 if --check and a target is missed."""
    parser = cli.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=cli.count, help="of the CPU; default: torch's")
    parser.add_argument("--repeats", type=cli.count, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[], help="writes no file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script; writes no file")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args()

    from daft.report import benchmark

    rows = benchmark.run(args.device, args.threads, args.repeats, args.only, args.quick, args.out)
    return int(args.check and any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    cli.run(main)
