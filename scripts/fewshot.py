"""Few-shot accuracy of features before and after a method, by prototypes; nothing is trained.

python scripts/fewshot.py runs/sweep --out results/fewshot               runs of a folder at the chosen rates
python scripts/fewshot.py runs/sweep dataset=pacs --ways 7 --shots 1     or one run directory; on other images
python scripts/fewshot.py swav dataset=domainnet --episodes 1000         a network, as in backbone=swav

Episodes are drawn from the ID set and from every OOD set, of the run if no dataset is given. The result of a
run is a file beside its record. What is there is not repeated; interrupted, the same command goes on.
"""

from pathlib import Path

from _door import cli

from daft.common.errors import UserError
from daft.config.options import options


def main() -> int:
    """Evaluate what is missing, a line per run; print and write the table; 1 if a run failed."""
    parser = cli.parser(__doc__)
    parser.add_argument("what", help="a run directory, a folder of them, or a network of conf/backbone")
    parser.add_argument("overrides", nargs="*", help="dataset=NAME and its keys, as for train.py")
    parser.add_argument("--ways", type=cli.count, default=5, help="classes of an episode; default: 5")
    parser.add_argument(
        "--shots", type=cli.counts, default=(1, 5), help="labelled images of each; default: 1,5"
    )
    parser.add_argument(
        "--queries", type=cli.count, default=15, help="others of each to classify; default: 15"
    )
    parser.add_argument("--episodes", type=cli.up_to(10**6), default=600, help="default: 600")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the episodes; default: 0")
    parser.add_argument("--device", type=cli.device, help="default: a GPU if there is one")
    parser.add_argument("--threads", type=cli.cores, help="of the CPU; default: torch's")
    parser.add_argument("--out", type=cli.path, help="folder for fewshot.md and .csv")
    args = parser.parse_intermixed_args()
    for name in ("ways", "episodes"):
        if (given := getattr(args, name)) < 2:
            parser.error(f"--{name} {given}: two or more")
    if args.out:
        cli.require_out(args.out)
    name = args.what.removeprefix("backbone=")
    backbone = name if name in options("backbone") else None
    _require_effect(args.overrides, backbone)
    words = [*args.overrides, *([f"backbone={backbone}"] if backbone else [])]
    words += [f"compute.{key}={getattr(args, key)}" for key in ("device", "threads") if getattr(args, key)]

    from daft.config.compose import configuration

    config = configuration(*words)

    # Seconds of imports: only now that the configuration makes sense.
    from daft.data.episodes import Protocol
    from daft.report import fewshot
    from daft.runs import machine

    protocol = Protocol(args.ways, args.shots, args.queries, args.episodes, args.seed)
    device, _ = machine.set_up(config)
    if backbone:
        measured, whole = [fewshot.of_backbone(config, protocol, device)], True
    else:
        directories, of_every_cell = fewshot.find(Path(args.what).expanduser())
        elsewhere = config if _keys(words, "dataset") else None
        paths = {key: getattr(config.paths, key) for key in _keys(words, "paths")}
        measured, of_all = fewshot.of_runs(directories, protocol, device, elsewhere, paths)
        whole = of_every_cell and of_all
    fewshot.write(measured, protocol, args.out)
    return 0 if whole else 1


def _require_effect(words: list[str], backbone: str | None) -> None:
    """Raise UserError for a key that changes nothing: a run has its own network and method."""
    sections = ["dataset", "paths"]
    sections += ["compute"] if backbone or _keys(words, "dataset") else []
    sections += ["backbone"] if backbone else []
    for word in words:
        if _section(word) not in sections or word.startswith("backbone="):
            raise UserError(f"{word}: has no effect here; give keys of {', '.join(sections)}")


def _section(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition(".")[0]


def _keys(words: list[str], section: str) -> list[str]:
    """What overrides give of a section, by its keys; an empty one for a group's option."""
    return [word.partition("=")[0].partition(".")[2] for word in words if _section(word) == section]


if __name__ == "__main__":
    cli.run(main)
