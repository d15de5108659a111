"""Draw the records of a table's runs, or of a folder of runs, at the selected learning rates.

python scripts/figures.py small --out results/small/figures    every figure of a table, as PNG and PDF
python scripts/figures.py runs/demo --out demo.png             one dataset: accuracy and distortion
python scripts/figures.py runs/sizes --kind training_size --out sizes.png
python scripts/figures.py small --out figures --wandb          logged to Weights & Biases, too

Kinds: overview, id_ood (accuracies), features, cosine, l2 (Figure 1), change (Figure 2), extremes (Figures 6
to 9: measured from the weights, then kept beside the runs), rates (of each method); over a setting, where
runs differ in it: training_size, conversion_batches, shift_family, rate_grid.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daft.common import progress
from daft.common.errors import UserError
from daft.report import paper
from daft.report.figures import gallery, style
from daft.report.figures.gallery import Picture
from daft.runs import frames, records
from daft.runs.similarity import Similarities

OVER_A_SETTING = (*gallery.SENSITIVITY, "rate_grid")


def main() -> None:
    """Write one picture, or a folder of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", help=f"{', '.join(paper.names())}, or a folder of run directories")
    parser.add_argument("--out", type=Path, required=True, help="a folder, or a .png, .pdf or .svg file")
    parser.add_argument("--kind", default="", help="only these, separated by commas; of a file: overview")
    parser.add_argument("--dataset", help="only runs on this dataset")
    parser.add_argument("--methods", default="", help="of Figures 1, 2 and 6 to 9; default: the paper's")
    parser.add_argument(
        "--runs",
        type=Path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help="folder of the table's run directories; default: DAFT_RUNS, or runs",
    )
    parser.add_argument("--wandb", action="store_true", help="log them to Weights & Biases, too")
    parser.add_argument("--project", default="daft", help="there; default: daft")
    parser.add_argument("--entity", help="there; default: the account's own")
    args = parser.parse_args()
    single = args.out.suffix[1:] in style.FORMATS
    kinds = args.kind.split(",") if args.kind else ["overview"] if single else []
    if unknown := [kind for kind in kinds if kind not in gallery.KINDS]:
        raise UserError(
            f"--kind {','.join(unknown)}: no such picture; choose from {', '.join(gallery.KINDS)}"
        )
    folder, loaded = _loaded(args.what, args.runs, args.dataset)
    pictures = _pictures(loaded, folder, kinds, [m for m in args.methods.split(",") if m])
    if not pictures:
        raise UserError(f"{folder}: the runs there have none of {', '.join(kinds) or 'the pictures'}")
    if single and len(pictures) > 1:
        found = ", ".join(pictures)
        raise UserError(
            f"{args.out}: one file for {found}; choose with --dataset and --kind, or name a folder"
        )
    for name, picture in [*pictures.items()]:
        try:
            for file in [args.out] if single else [args.out / f"{name}.{kind}" for kind in ("png", "pdf")]:
                style.save(picture.draw(), file)  # anew: one format's layout is left in the figure
                print(f"wrote {file}")
        except UserError as error:  # the runs do not differ in this setting, say
            if len(pictures) == 1:
                raise
            del pictures[name]
            _left_out(f"{name}: {error}")
    if args.wandb:
        from daft.tracking import sync

        images = {name: (style.pixels(p.draw()), p.caption) for name, p in pictures.items()}
        sync.send_pictures(images, args.what, args.project, args.entity)
        print(f"logged {len(images)} figure(s) to W&B")


def _loaded(what: str, runs: Path, dataset: str | None) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of runs, and the records there; raises UserError if there are none."""
    table = paper.load(what) if what in paper.names() else None
    folder = runs if table else Path(what)
    loaded = records.load(records.below(folder))
    if table:
        members = table.members(frames.rows(loaded)) if loaded else []
        loaded = [record for record, wanted in zip(loaded, members, strict=True) if wanted]
    if dataset:
        loaded = [record for record in loaded if record["config"]["dataset"]["name"] == dataset]
    if not loaded:
        of = "".join(f" of {name}" for name in (table and table.name, dataset) if name)
        raise UserError(f"{folder}: no records{of} here")
    return folder, loaded


def _pictures(
    loaded: list[dict[str, Any]], folder: Path, kinds: list[str], methods: list[str]
) -> dict[str, Picture]:
    """Pictures by the names of their files; what a dataset's runs do not allow is said and left out."""
    special = {*OVER_A_SETTING, "extremes", "samples"}
    found: dict[str, Picture] = {}
    problems = []
    for name, group in gallery.groups(loaded).items():
        sources: list[Callable[[], list[Picture]]] = []
        if not kinds or set(kinds) - special:
            sources.append(partial(gallery.of_runs, group, methods))
        if not kinds or "extremes" in kinds:
            sources.append(partial(_extremes, group, folder, methods))
        if set(kinds) & set(gallery.SENSITIVITY):
            sources.append(partial(gallery.of_settings, group))
        if "rate_grid" in kinds:
            sources.append(partial(gallery.of_grids, group))
        if "samples" in kinds or (not kinds and not methods):  # asked for methods, it is of no interest
            sources.append(partial(_samples, group, folder))
        for source in sources:
            try:
                pictures = source()
            except UserError as error:
                problems.append(f"{name}: {error}")
                continue
            wanted = [p for kind in kinds for p in gallery.named(kind, pictures)] if kinds else pictures
            found |= {f"{name}-{picture.name}": picture for picture in wanted}
    if problems and not found:
        raise UserError(problems[0])
    for problem in problems:
        _left_out(problem)
    return found


def _left_out(problem: str) -> None:
    progress.console.print(
        f"left out: {problem}", style="yellow", soft_wrap=True, markup=False, highlight=False
    )


def _extremes(group: list[dict[str, Any]], folder: Path, methods: list[str]) -> list[Picture]:
    return gallery.of_extremes(gallery.selected(group), folder, methods, _measured)


def _samples(group: list[dict[str, Any]], folder: Path) -> list[Picture]:
    """A sheet of the images that the runs were evaluated on; raises UserError if they are not here."""
    from daft.data import datasets
    from daft.report.figures import sheets
    from daft.runs import reopened

    done = next((record for record in group if record["status"] == "finished"), None)
    if done is None:
        return []
    config = reopened.open_run(next(folder.glob(f"*{done['run']}"))).config
    listed = datasets.listing(config)
    sheet = sheets.classification if config.segmentation is None else sheets.segmentation
    caption = "Samples of the evaluation images (Figures 3 to 5)"
    return [Picture("samples", caption, partial(sheet, config, listed))]


def _measured(directory: Path) -> Similarities:
    import torch  # seconds of imports, for what is not kept yet

    from daft.runs import reopened, similarity

    run = reopened.open_run(directory)
    torch.set_num_threads(run.record["environment"]["threads"])  # the run's own features are kept by it
    return similarity.similarities(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:  # a full or read-only disk, say
        sys.exit(f"figures.py: {error}")
