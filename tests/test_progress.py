"""Progress bars: on a terminal that did not ask for quiet, nowhere else."""

import io
import logging

import pytest

from anomdino.errors import ConfigError
from anomdino.progress import log_level, track


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


def test_the_level_that_the_environment_asks_for(monkeypatch):
    monkeypatch.delenv("ANOMDINO_LOG", raising=False)
    assert log_level() == "INFO"
    monkeypatch.setenv("ANOMDINO_LOG", "debug")
    assert log_level() == "DEBUG"
    monkeypatch.setenv("ANOMDINO_LOG", "loud")
    with pytest.raises(ConfigError, match=r"ANOMDINO_LOG: is 'loud'\n.*DEBUG, INFO"):
        log_level()
