"""Which run a configuration is, and its record if it has ended; imports little, for that is often all."""

from pathlib import Path
from typing import Any, NamedTuple

from daft.common.files import digest
from daft.config.schema import Config
from daft.data.listing import Listing, listing
from daft.networks import checkpoints
from daft.runs import machine, records
from daft.runs.identity import run_identity


class RunResult(NamedTuple):
    """A run that has ended, and whether it has just been computed."""

    directory: Path
    record: dict[str, Any]
    fresh: bool
    """False if the record was there already"""


class Known(NamedTuple):
    """What is known of a run before it begins."""

    listing: Listing
    identity: dict[str, Any]
    run_id: str
    directory: Path


def known(config: Config, precision: str) -> Known:
    """The run of a configuration; raises UserError for inputs that are absent or do not fit together."""
    listed = listing(config)
    identity = run_identity(config, precision, *fingerprints(config, listed))
    run_id = digest(identity)
    return Known(listed, identity, run_id, records.run_directory(config, run_id))


def fingerprints(config: Config, listed: Listing) -> tuple[dict[str, str], str]:
    """What identifies the images of every split, and the weights."""
    return listed.fingerprints(), checkpoints.fingerprint(config.backbone)


def finished(config: Config) -> tuple[Known, RunResult | None]:
    """The run of a configuration on this machine, and its record if there is one."""
    _, precision = machine.device_and_precision(config)
    found = known(config, precision)
    record = records.read(found.directory)
    return found, None if record is None else RunResult(found.directory, record, fresh=False)
