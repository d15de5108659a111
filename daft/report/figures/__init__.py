"""Pictures of runs: each function takes records, or a frame of them, and returns a matplotlib figure."""

from daft.report.figures.style import COLOURS, LABELS, MARKERS

__all__ = ["COLOURS", "LABELS", "MARKERS"]
