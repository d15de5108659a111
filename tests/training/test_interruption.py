"""Claims about signals: they wait for a step, state is saved before they act, and they act as ever."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daft.training.interruption import SIGNALS, SaveOnSignal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step_acts_after_it_and_after_saving(number: int):
    done: list[str] = []
    signal.signal(number, lambda *_: done.append("acted"))
    with SaveOnSignal(lambda: done.append("saved")) as interruption:
        for _ in range(2):
            with interruption.uninterrupted():
                signal.raise_signal(number)
                done.append("step")
    assert done == ["step", "saved", "acted"] * 2  # one that is only logged leaves it in force


def test_a_signal_between_steps_does_not_wait():
    done: list[str] = []

    def work() -> None:
        with SaveOnSignal(lambda: done.append("saved")) as interruption:
            with interruption.uninterrupted():
                done.append("step")
            signal.raise_signal(signal.SIGINT)
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["step", "saved"]


@pytest.mark.parametrize("when", ["in the step", "while saving"])
def test_a_worker_that_is_interrupted_with_its_driver_and_then_ended_by_it_saves_first(when: str):
    done: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: done.append("terminated"))

    def save() -> None:
        if when == "while saving":
            signal.raise_signal(signal.SIGTERM)
        done.append("saved")

    with SaveOnSignal(save) as interruption, interruption.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        if when == "in the step":
            signal.raise_signal(signal.SIGTERM)
        done.append("step")
    assert done == ["step", "saved", "terminated"]


def test_a_second_ctrl_c_waits_for_nothing_and_saves_no_half_step():
    done: list[str] = []

    def work() -> None:
        with SaveOnSignal(lambda: done.append("saved")) as interruption, interruption.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []


def test_handlers_are_as_before_afterwards_and_what_was_ignored_still_is():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in SIGNALS]
    saved: list[int] = []
    with SaveOnSignal(lambda: saved.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not saved


def test_a_forked_worker_dies_of_a_signal_and_saves_nothing(tmp_path: Path):
    with SaveOnSignal((tmp_path / "saved").touch):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_thread_that_may_not_set_handlers_works_without():
    done: list[str] = []

    def work() -> None:
        with SaveOnSignal(lambda: None) as interruption, interruption.uninterrupted():
            done.append("step")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["step"]
