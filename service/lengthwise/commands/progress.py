"""Shows the progress of long work: on a terminal a bar or a spinner, otherwise a line every ten seconds.

There is no thread that redraws the bar: the work itself advances it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS: Final = 10.0  # between two lines without a terminal; shorter work writes none


class PlainProgress(Progress):
    """Progress as lines of task, percentage and note, at least `LINE_SECONDS` apart."""

    def __init__(self, console: Console, **more: Any) -> None:
        super().__init__(console=console, disable=True, **more)
        self._written = self.get_time()  # when the last line was written

    def update(self, task_id: TaskID, **changed: Any) -> None:
        """Updates a task, and writes a line when it is time for one."""
        super().update(task_id, **changed)
        if self.get_time() - self._written >= LINE_SECONDS:
            self._written = self.get_time()
            task = self.tasks[self.task_ids.index(task_id)]
            note = task.fields.get("note")
            say(self.console, f"{task.description}: {task.percentage:.0f} %{f', {note}' if note else ''}")


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Yields an object to which the block adds its tasks: a bar on a terminal, otherwise a `PlainProgress`."""
    if not console.is_terminal:
        yield PlainProgress(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        yield progress


@contextmanager
def status(console: Console, step: str) -> Iterator[Callable[[str], None]]:
    """Shows the current step of the work while the block runs: beside a spinner, or as lines without a terminal.

    Yields a function; the block calls it with the text of the next step.
    """
    if console.is_terminal:
        with console.status(step) as line:
            yield line.update
        return
    # Without a terminal: a thread that writes lines until the block ends
    steps, is_over = [step], threading.Event()

    def write() -> None:
        """Writes the step and how long the work has taken, every `LINE_SECONDS`."""
        seconds = 0.0
        while not is_over.wait(LINE_SECONDS):
            seconds += LINE_SECONDS
            say(console, f"{steps[-1]} ({seconds:.0f} s so far)")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield steps.append
    finally:
        is_over.set()
        writer.join()


def say(console: Console, line: str) -> None:
    """Writes a line as it is, at once."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def ticker(
    progress: Progress, description: str, *, seconds: float = 0, requests: float = 0
) -> Callable[[int, float], None]:
    """Adds a task to the progress, measured in seconds or in requests; returns the function that advances it."""
    task = progress.add_task(description, total=seconds or requests, note="")

    def tick(sent: int, passed_seconds: float) -> None:
        """Shows the requests sent so far, and advances the bar by them or by the seconds passed so far."""
        progress.update(task, completed=passed_seconds if seconds else sent, note=f"{sent:,} requests", refresh=True)

    return tick
