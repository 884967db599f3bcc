"""How far long work is, where nobody watches a terminal."""

import io
import threading

import pytest
from rich.console import Console

from lengthwise.commands import progress
from lengthwise.commands.progress import PlainProgress, progress_bar, status, ticker


class Written(io.StringIO):
    """A file that tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.news = threading.Event()

    def write(self, text: str) -> int:
        self.news.set()
        return super().write(text)


def test_without_a_terminal_a_line_is_written_now_and_then_and_at_once() -> None:
    now, out = [0.0], io.StringIO()
    plain = PlainProgress(Console(file=out), get_time=lambda: now[0])
    tick = ticker(plain, "closed loop", seconds=100)
    for second in range(41):
        now[0] = float(second)
        tick(second * 7, float(second))
    assert out.getvalue().splitlines() == [
        f"closed loop: {second} %, {second * 7} requests" for second in (10, 20, 30, 40)
    ]


def test_quick_work_without_a_terminal_writes_nothing() -> None:
    out = io.StringIO()
    with progress_bar(Console(file=out)) as shown:
        task = shown.add_task("scoring", total=1.0, note="")
        shown.update(task, completed=1.0, note="[1/3]", refresh=True)
    with status(Console(file=out), "reading"):
        pass
    assert out.getvalue() == ""


def test_on_a_terminal_there_is_a_bar() -> None:
    with progress_bar(Console(file=io.StringIO(), force_terminal=True)) as shown:
        assert not isinstance(shown, PlainProgress)


def test_what_is_being_done_is_written_now_and_then_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    out = Written()
    with status(Console(file=out), "reading") as doing:
        assert out.news.wait(60)
        doing("row [1/3]")
        for _ in range(1000):
            out.news.clear()
            assert out.news.wait(60)
            if "row" in out.getvalue():
                break
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("reading (")
    assert any(line.startswith("row [1/3] (") for line in lines)
