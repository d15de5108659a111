"""The pictures of a table's runs, or of a folder of runs, as files."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from daft.common import progress
from daft.common.errors import UserError
from daft.data import datasets
from daft.report import paper
from daft.report.figures import gallery, sheets, style
from daft.report.figures.gallery import Picture
from daft.runs import frames, mistakes, records, reopened, results, similarity
from daft.training.predictions import Predictions

Records = list[dict[str, Any]]


def pictures(
    what: str, runs: Path, dataset: str | None = None, kinds: Sequence[str] = (), methods: Sequence[str] = ()
) -> dict[str, Picture]:
    """Pictures by the names of their files, not drawn yet.

    what: a table, whose runs are in the folder `runs`, or a folder of runs. kinds, methods: only these; none
    are all, and the paper's. A kind may be the whole name of one picture, as errors_daft. A picture that some
    runs do not allow is named on stderr and left out. Raises UserError if there are none.
    """
    if unknown := [kind for kind in kinds if gallery.kind_of(kind) is None]:
        raise UserError(
            f"--kind {','.join(unknown)}: no such picture; choose from {', '.join(gallery.KINDS)}"
        )
    folder, loaded = _load(what, runs, dataset)
    families = {kind: str(gallery.kind_of(kind)) for kind in kinds}
    found, problems, others = {}, [], dict[str, None]()
    for name, group in gallery.groups(loaded).items():
        for source in _sources(group, folder, [*families.values()], methods):
            try:
                drawable = source()
            except UserError as error:
                problems.append(f"{name}: {error}")
                continue
            wanted = [p for kind in kinds for p in gallery.named(kind, drawable)] if kinds else drawable
            asked = (picture for family in families.values() for picture in gallery.named(family, drawable))
            others |= dict.fromkeys(picture.name for picture in asked)
            found |= {f"{name}-{picture.name}": picture for picture in wanted}
    if problems and not found:
        raise UserError(problems[0])
    for problem in problems:
        progress.warn_left_out(problem)
    if not found:
        there = f"; there are {', '.join(others)}" if others else ""
        raise UserError(f"{folder}: the runs there have none of {', '.join(kinds) or 'the pictures'}{there}")
    return found


def write(pictures: dict[str, Picture], out: Path) -> None:
    """Draw into a file, or into a folder as PNG and PDF; what cannot be drawn is removed from `pictures`.

    Raises UserError if one file is to hold several pictures, or if the only one cannot be drawn.
    """
    single = out.suffix[1:] in style.FORMATS
    if single and len(pictures) > 1:
        names = [*dict.fromkeys(picture.name for picture in pictures.values())]
        groups = dict.fromkeys(name.removesuffix(f"-{p.name}") for name, p in pictures.items())
        which = [f"one of --kind {', '.join(names)}"] if len(names) > 1 else []
        which += [f"by --dataset one of {', '.join(groups)}"] if len(groups) > 1 else []
        raise UserError(
            f"{out}: one file for {len(pictures)} pictures; choose {', and '.join(which)}; or name a folder"
        )
    for name, picture in [*pictures.items()]:
        try:
            for file in [out] if single else [out / f"{name}.{suffix}" for suffix in ("png", "pdf")]:
                style.save(picture.draw(), file)  # anew: one format's layout is left in the figure
                print(f"wrote {file}")
        except UserError as error:  # the runs do not differ in this setting, say
            if len(pictures) == 1:
                raise
            del pictures[name]
            progress.warn_left_out(f"{name}: {error}")


def _load(what: str, runs: Path, dataset: str | None) -> tuple[Path, Records]:
    """The folder of runs, and the records there that are asked for; raises UserError if there are none."""
    table = paper.load(what) if what in paper.names() else None
    folder = runs if table else Path(what)
    loaded = results.load(records.find_runs(folder))
    if table:
        members = table.members(frames.from_records(loaded)) if loaded else []
        loaded = [record for record, wanted in zip(loaded, members, strict=True) if wanted]
    if dataset:
        loaded = [record for record in loaded if record["config"]["dataset"]["name"] == dataset]
    if not loaded:
        of = "".join(f" of {name}" for name in (table and table.name, dataset) if name)
        raise UserError(f"{folder}: no records{of} here")
    return folder, loaded


def _sources(
    group: Records, folder: Path, kinds: Sequence[str], methods: Sequence[str]
) -> Iterable[Callable[[], list[Picture]]]:
    """What makes the pictures of one dataset and backbone that are asked for."""
    sample, mixed = gallery.usable(group)
    for problem in mixed if sample else []:  # without any, each kind says so
        progress.warn_left_out(problem)
    sample = sample or group
    special = {*gallery.SENSITIVITY, "rate_grid", "extremes", "errors", "samples"}
    if not kinds or set(kinds) - special:
        yield partial(gallery.of_runs, sample, methods)
    if not kinds or "extremes" in kinds:
        yield lambda: gallery.of_extremes(gallery.selected(sample), folder, methods, _measured)
    if "errors" in kinds:
        yield lambda: gallery.of_errors(gallery.selected(sample), folder, methods, _predicted)
    if set(kinds) & set(gallery.SENSITIVITY):
        yield partial(gallery.of_settings, group)
    if "rate_grid" in kinds:
        yield partial(gallery.of_grids, group)
    if "samples" in kinds or (not kinds and not methods):  # asked for methods, it is of no interest
        yield partial(_samples, group, folder)


def _samples(group: Records, folder: Path) -> list[Picture]:
    """A sheet of the images that the runs were evaluated on; raises UserError if they are not here."""
    done = next((record for record in group if record["status"] == "finished"), None)
    if done is None:
        return []
    config = reopened.open_run(next(folder.glob(f"*{done['run']}"), folder / done["run"])).config
    listed = datasets.listing(config)
    sheet = sheets.classification if config.segmentation is None else sheets.segmentation
    caption = "Samples of the evaluation images (Figures 3 to 5)"
    return [Picture("samples", caption, partial(sheet, config, listed))]


def _predicted(directory: Path) -> dict[str, Predictions]:
    """What a run says of each image, by its weights, kept from then on: older runs have not kept it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return mistakes.measured(reopened.open_run(directory), device)


def _measured(directory: Path) -> similarity.Similarities:
    """The similarities of a run's features, measured if they are not kept yet."""
    run = reopened.open_run(directory)
    threads = run.record["environment"].get("threads", torch.get_num_threads())
    torch.set_num_threads(threads)  # the run's own features are kept by it
    return similarity.similarities(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
