"""What an interrupted prediction has done, kept beside its output until that is whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from daft.common.errors import shown
from daft.common.files import PARTIAL, digest, make_folder

Row = list[str | float]


class Batch(NamedTuple):
    """Images that the network has seen together, and those between them that cannot be used."""

    first: int
    """number of the first of them"""
    after: int
    """of the first after them"""
    rows: list[Row]
    failures: dict[int, str]
    """why an image is left out, by its number"""


class Partial:
    """A file with a line of JSON for each whole batch, below one that says of what they are."""

    def __init__(self, out: Path) -> None:
        self.file = out.with_name(out.name + PARTIAL)
        self.done = 0
        """images, from the first"""

    def start(self, identity: Any) -> list[Batch]:
        """The batches that are there, if they are of the same identity (plain data); else none are kept."""
        head = json.dumps({"of": digest(identity)})
        lines = self.file.read_text("utf-8", "replace").split("\n") if self.file.is_file() else []
        batches: list[Batch] = []
        for line in lines[1:-1] if lines[:1] == [head] else []:  # the last is empty, or was cut off
            try:
                batch = Batch(**json.loads(line))
            except (ValueError, TypeError):
                break
            if batch.first != self.done:  # two commands wrote at once
                break
            batches.append(batch._replace(failures={int(k): v for k, v in batch.failures.items()}))
            self.done = batch.after
        make_folder(self.file.parent, shown(self.file.parent))
        kept = [head, *lines[1 : 1 + len(batches)]]
        self.file.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        return batches

    def add(self, after: int, rows: Sequence[Row], failures: dict[int, str]) -> None:
        """Keep a batch that ends before the image of this number."""
        new = {number: why for number, why in failures.items() if self.done <= number < after}
        batch = Batch(self.done, after, [*rows], new)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch._asdict()) + "\n")
        self.done = after

    def remove(self) -> None:
        """Once the output is whole."""
        self.file.unlink(missing_ok=True)
