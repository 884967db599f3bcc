"""Shows how far a training is: in a notebook, on a terminal, in a caller's function, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

from lengthwise.commands.progress import progress_bar, status
from lengthwise.errors import ConfigurationError
from lengthwise.reports import notebook

ProgressTarget: TypeAlias = Callable[[str], None] | Literal["auto"] | None
"""A function that takes lines; `auto` for a bar in a notebook or on a terminal; None for nothing."""
Show: TypeAlias = Callable[[int, str], None]
"""Takes the number of finished parts, and a note."""


def require_progress(progress: object) -> None:
    """Makes sure that a caller's argument `progress` is one.

    Raises:
        ConfigurationError: It is not.
    """
    if not (progress is None or progress == "auto" or callable(progress)):
        raise ConfigurationError(f"progress must be a function, 'auto' or None, got {progress!r}")


def choosing(progress: ProgressTarget) -> AbstractContextManager[Any]:
    """Shows during the block that something is chosen, which may take minutes."""
    from rich.console import Console

    doing = "choosing what is left open"
    return status(Console(stderr=True), doing) if progress is not None else nullcontext()


@contextmanager
def shown(progress: ProgressTarget, parts: str, total: int) -> Iterator[Show]:
    """Yields what shows the progress of a training with so many parts, such as epochs."""
    if callable(progress):
        tell = progress
        yield lambda done, note: tell(f"{parts} {done} of {total}: {note}")
    elif progress is None:
        yield lambda _done, _note: None
    elif notebook.in_notebook():
        with notebook.notebook_bar("training", total) as bar:
            yield bar
    else:
        from rich.console import Console

        with progress_bar(Console(stderr=True)) as bars:
            task = bars.add_task("training", total=total, note="")
            yield lambda done, note: bars.update(task, completed=done, note=f"{done} of {total}, {note}", refresh=True)
