"""Progress bars: on a terminal that did not ask for quiet, nowhere else."""

import io
import logging

import pytest

from anomdino.progress import track


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "level", "shown"),
    [(True, logging.INFO, True), (True, logging.WARNING, False), (False, logging.INFO, False)],
)
def test_a_bar_is_shown_where_it_is_wanted(monkeypatch, caplog, terminal, level, shown):
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    caplog.set_level(level, "anomdino.progress")
    assert list(track([1, 2], "photos")) == [1, 2]
    assert ("photos" in screen.getvalue()) is shown
