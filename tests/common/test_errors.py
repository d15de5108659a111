"""Claims about errors that a user can cause."""

import pickle
from pathlib import Path

import pytest

from daft.common.errors import BusyError, ConfigError, UserError


@pytest.mark.parametrize(
    "error",
    [UserError("runs: none"), BusyError("busy", Path("runs/x")), ConfigError("seed", "'one' is no number")],
)
def test_an_error_of_another_process_arrives_whole(error: UserError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
