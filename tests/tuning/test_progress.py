import logging
import sys

import pytest

from vicinal.tuning.progress import progress


def terminal(monkeypatch):
    """Standard error becomes one: to be called within the test, for pytest changes it after a fixture."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")


def go(shown=True):
    with progress("tuning", 2, shown) as advance:
        advance("[first]")
        advance("second")


def test_a_terminal_sees_a_bar(monkeypatch, capsys):
    terminal(monkeypatch)
    go()
    printed = capsys.readouterr()
    assert "2/2" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("reason", ["no terminal", "no rich", "another rank"])
def test_elsewhere_the_log_says_it(monkeypatch, capsys, caplog, reason):
    caplog.set_level(logging.INFO, "vicinal.tuning")
    if reason != "no terminal":
        terminal(monkeypatch)
    if reason == "no rich":
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    go(shown=reason != "another rank")
    assert capsys.readouterr().err == ""
    said = [] if reason == "another rank" else ["tuning: [first]", "tuning: second"]
    assert [r.getMessage() for r in caplog.records] == said
