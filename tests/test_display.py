"""Progress: a line on a terminal of any width, and a line a minute where nothing is redrawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines.display import Display, columns, redraws


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)


@pytest.mark.parametrize("width", [30, 50, 80, 119, 120, 200])
def test_a_bar_is_one_line_however_narrow(width: int) -> None:
    shown, display = terminal(width), Display()
    display.progress.columns = tuple(columns(width))
    display.progress.live.console = shown
    task = display.task("evaluate the best epoch", 360)
    display.update(task, 120, "1234 images/s, robust 41.9%")
    shown.print(display.progress.get_renderable())
    assert isinstance(shown.file, io.StringIO)
    (line, end) = shown.file.getvalue().split("\n")
    assert end == ""
    assert len(line) <= width
    assert "120/360" in line
    assert ("━" in line) is (width >= 120)


def test_a_log_file_hears_of_a_long_task_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("pipelines.display.time.monotonic", lambda: now)
    with Display() as display:
        task = display.task("evaluate best", 360)
        for done in range(0, 360, 4):  # two seconds each
            now += 2
            display.update(task, done, "80 images/s")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[0].startswith("evaluate best  116 of 360  ")
    assert said[0].endswith("80 images/s")


def test_a_notebooks_terminal_is_not_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert redraws(terminal(80))
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not redraws(terminal(80))
    monkeypatch.delenv("JPY_PARENT_PID")
    monkeypatch.setenv("TERM", "dumb")
    assert not redraws(terminal(80))
