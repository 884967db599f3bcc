"""The progress bar of a load: advanced by the load itself, between two answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.bench.load import Tick


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar that the load itself advances: a thread of its own would take turns with the client."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        yield progress


def ticker(progress: Progress, description: str, *, seconds: float = 0, requests: float = 0) -> Tick:
    """Advances a new task by the seconds passed, or by the requests sent."""
    task = progress.add_task(description, total=seconds or requests, note="")

    def tick(sent: int, passed: float) -> None:
        progress.update(task, completed=passed if seconds else sent, note=f"{sent:,} requests", refresh=True)

    return tick
