"""Long work shows a bar on standard error, in a terminal alone."""

import io
import sys

import numpy as np
import pytest

import tsfm
import tsfm_data.progress
from tsfm_data.progress import progress


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error one. Not a fixture: pytest sets it anew before a test begins."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_when_work_takes_long_then_a_terminal_shows_it_and_is_clean_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    assert list(progress(range(3), "quick")) == [0, 1, 2]
    assert screen.getvalue() == ""
    monkeypatch.setattr(tsfm_data.progress, "DELAY", 0.0)
    assert list(progress(range(3), "count", mininterval=0)) == [0, 1, 2]
    assert "count: 100%" in screen.getvalue()
    assert screen.getvalue().split("\r")[-2].strip() == ""


def test_when_standard_error_is_a_pipe_or_the_process_a_worker_then_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setattr(tsfm_data.progress, "DELAY", 0.0)
    with monkeypatch.context() as worker:
        worker.setattr("multiprocessing.parent_process", lambda: object())
        list(progress(range(3), "worker", mininterval=0))
    assert screen.getvalue() == ""
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    list(progress(range(3), "pipe", mininterval=0))
    assert pipe.getvalue() == ""


def test_when_many_series_are_forecast_then_the_bar_counts_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setattr(tsfm_data.progress, "DELAY", 0.0)
    tsfm.load("naive").forecast(np.arange(60.0).reshape(3, 20), 2, batch_size=1)
    assert "forecast (naive)" in screen.getvalue()
    assert "/3 [" in screen.getvalue()
