"""Records that W&B does not have yet, or not as they are now, mirrored there."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from PIL.Image import Image

from daft.common import progress
from daft.common.errors import BusyError, UserError, join_first
from daft.common.files import digest
from daft.report import paper
from daft.runs import frames, records, results
from daft.sweep import selection
from daft.tracking import mirror

Need = Literal["send", "complete", "update"]
"""It is not online; it is not whole there; its table or stage is another by now, or results were added."""

SELECTED = "selected"
"""Stage of the runs that tables show."""

ANCHORS = ["config.segmentation.lr_head", "config.backbone.lr_head"]
"""Of η_w: the first that a run has."""

LOOKS, WAIT_SECONDS = 2, 2.0
"""How often, and after how long, to look again whether what was sent has arrived."""

GO_ON = "the same command goes on"

# Of the machine that mirrors, which is not the one that computed.
NOTHING_OF_HERE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@dataclass(frozen=True)
class Entry:
    """One record, and what is to be online of it."""

    directory: Path
    record: dict[str, Any]
    described: dict[str, Any]
    """arguments of `wandb.init`"""

    @property
    def place(self) -> str:
        """Entity and project."""
        return f"{self.described['entity']}/{self.described['project']}"

    def need(self, online: Any) -> Need | None:
        """What it lacks of a run of W&B's public API, None where there is none."""
        if online is None:
            return "send"
        if online.state != "finished" or online.summary_metrics.get("status") != self.record["status"]:
            return "complete"
        wanted = (self.described["group"], self.stage(online), set(self.tags(online)))
        same = wanted == (online.group, online.job_type, set(online.tags))
        return None if same and not self.lacking(online) else "update"

    def lacking(self, online: Any) -> dict[str, Any]:
        """The results that are not online: those that were measured after the run."""
        known = online.summary_metrics
        return {key: value for key, value in mirror.results(self.record).items() if key not in known}

    def stage(self, online: Any) -> str | None:
        """Its stage; if that is not known, the one that it has online."""
        return self.described["job_type"] or online.job_type

    def tags(self, online: Any) -> list[str]:
        """Its tables, and the tags that users gave it online."""
        theirs = set(online.tags) - set(paper.names()) if online is not None else set()
        return [*self.described["tags"], *sorted(theirs)]


def stages(runs: pd.DataFrame, tags: Sequence[Sequence[str]]) -> list[str | None]:
    """What each row of `frames.from_records` was run for: the rate that was swept, or `selected`.

    Selected are runs at their cell's best rates so far, of any seed, as the tables select them; runs of a
    cell for different tables are told apart. None: of mixed settings, of which nothing can be selected.
    """
    found: dict[Any, str] = {}
    of_tables = pd.Series([" ".join(names) for names in tags], index=runs.index)
    for _, group in runs.groupby([*(runs[name] for name in frames.CELL), of_tables]):
        try:
            selected = selection.select(group).index
        except UserError:
            continue
        head = group[frames.RATES[1]]
        anchors = group.reindex(columns=ANCHORS).replace("auto", 1.0).astype(float)
        moved = head.notna() & ((head != anchors.bfill(axis=1)[ANCHORS[0]]) | group[frames.RATES[0]].isna())
        found |= moved.map({True: "lr_head", False: "lr_backbone"}).to_dict()
        found |= dict.fromkeys(selected, SELECTED)
    return [found.get(row) for row in runs.index]


def entries(
    directories: Sequence[Path], account: str, project: str | None = None, entity: str | None = None
) -> list[Entry]:
    """The records in run directories as they are to be online.

    account: the entity of those that name none. project, entity: in place of what each names.
    """
    loaded = {path: record for path in directories for record in results.load([path])}
    loaded = {path: record for path, record in loaded.items() if _has_place(path, record)}
    described = [mirror.description(record["run"], record["config"]) for record in loaded.values()]
    if not described:
        return []
    known = stages(frames.from_records(loaded.values()), [entry["tags"] for entry in described])
    found = []
    for (path, record), entry, stage in zip(loaded.items(), described, known, strict=True):
        place = {
            "project": project or entry["project"],
            "entity": entity or entry["entity"] or account,
        }
        if not place["entity"]:
            raise UserError("W&B: this account has no entity of its own; name one with --entity")
        found.append(Entry(path, record, entry | place | {"job_type": stage}))
    return found


def _has_place(directory: Path, record: dict[str, Any]) -> bool:
    """Whether a record has the section of its configuration that says where it belongs; else it is named."""
    if "wandb" not in record["config"]:
        progress.warn_left_out(f"{directory / records.RECORD}: its configuration has no section wandb")
        return False
    return True


class NoAccountError(UserError):
    """This machine has no account of W&B."""


class Service:
    """W&B with the account of this machine; raises UserError if there is none or it does not answer."""

    def __init__(self) -> None:
        import wandb

        with clear_errors():
            if not wandb.login(prompt=False, verify=False):
                raise NoAccountError("W&B: no account on this machine; `wandb login`, or set WANDB_API_KEY")
            self._api = wandb.Api()
            self.account = self._api.default_entity or ""
            """the entity of those who name none"""

    def runs(self, place: str) -> dict[str, Any]:
        """The runs of a project by id, as they are now; none if there is no such project."""
        self._api.flush()
        with clear_errors():
            found = self._api.runs(place, lazy=False)
            try:
                return {run.id: run for run in found}
            except ValueError as error:
                if "Could not find project" in str(error):
                    return {}
                raise

    def report(self, place: str, title: str) -> str | None:
        """The id of a project's report of that title."""
        with clear_errors():
            found = self._api.reports(place)
            try:
                return next((report.id for report in found if report.display_name == title), None)
            except ValueError as error:
                if "does not exist" in str(error):
                    return None
                raise


def needs(service: Service | None, wanted: Sequence[Entry]) -> list[tuple[Need, Entry, Any]]:
    """What is to be done, with the run as it is online; service: None if nothing is known of it."""
    places = {entry.place for entry in wanted}
    online = {place: service.runs(place) if service else {} for place in places}
    pairs = [(entry, online[entry.place].get(entry.record["run"])) for entry in wanted]
    return [(need, entry, run) for entry, run in pairs if (need := entry.need(run))]


def send(service: Service, todo: Sequence[tuple[Need, Entry, Any]]) -> list[Entry]:
    """Do it, and return the entries that another process computes or mirrors just now, which are left out.

    Raises UserError if the service fails, or does not have everything in the end; what has arrived stays.
    """
    done: list[Entry] = []
    busy: list[Entry] = []
    for need, entry, online in progress.track(todo, "W&B", len(todo)):
        so_far = f"; {len(done)} of {len(todo)} are done, {GO_ON}"
        try:
            with records.lock_run(entry.directory), clear_errors(so_far):
                _update(entry, online) if need == "update" else _send(entry, online)
        except BusyError:
            busy.append(entry)
            continue
        done.append(entry)
    missing = [entry for _, entry, _ in needs(service, done)]
    for _ in range(LOOKS):
        if not missing:
            return busy
        time.sleep(WAIT_SECONDS)
        missing = [entry for _, entry, _ in needs(service, missing)]
    if not missing:
        return busy
    names = join_first([entry.directory.name for entry in missing])
    raise UserError(f"W&B: {len(missing)} of {len(done)} have not arrived whole: {names}; {GO_ON}")


def send_pictures(
    pictures: Mapping[str, tuple[Image, str]], name: str, project: str, entity: str | None
) -> None:
    """Log pictures, each with its caption, to the one run of a project that has those of this name.

    Sent again, they stand after those before. Raises UserError as `Service`.
    """
    import wandb

    account = Service().account
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        clear_errors(),
        wandb.init(
            id=f"figures-{digest(name)}",
            name=f"figures of {name}",
            project=project,
            entity=entity or account or None,
            job_type="figures",
            resume="allow",
            reinit="create_new",
            dir=folder,
            settings=wandb.Settings(silent=True, **NOTHING_OF_HERE),
        ) as run,
    ):
        run.log({key: wandb.Image(image, caption=text) for key, (image, text) in pictures.items()})


def _send(entry: Entry, online: Any) -> None:
    described = entry.described | {"tags": entry.tags(online)}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        mirror.Mirror(described, Path(folder), "online", **NOTHING_OF_HERE) as run,
    ):
        run.finish(entry.record)


def _update(entry: Entry, online: Any) -> None:
    online.group, online.job_type = entry.described["group"], entry.stage(online)
    online.tags = entry.tags(online)
    online.summary.update(entry.lacking(online))
    online.update()


@contextmanager
def clear_errors(done: str = "") -> Iterator[None]:
    """Errors of the client as one line."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (wandb.Error, WandbApiFailedError, ConnectionError, TimeoutError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"W&B: {text}{done}") from error
