"""What notebooks show: a page in a frame, a table, bars of probabilities and of progress, as HTML; reports as text.

IPython is not imported for it, but for the bar of progress.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lengthwise.reports.templates import render_macro

if TYPE_CHECKING:
    from markupsafe import Markup

    from lengthwise.api import Prediction

FRAME_PIXELS: Final = 480  # height of a page in a notebook; a longer one scrolls
TEXT_COLUMNS: Final = 120  # width of a report as text
MOST_SHOWN: Final = 20  # rows of a table; further ones are only counted

_HTML: Final = Path(__file__).with_name("notebook.html")
_SECONDS_BETWEEN: Final = 0.2  # two updates of a bar: each is a message to the browser


def in_frame(page: str) -> str:
    """Puts a whole HTML page into a frame, as HTML for a notebook, so that its styles do not affect the notebook."""
    return render_macro(_HTML, "frame", page, FRAME_PIXELS)


def show(renderable: Any) -> None:
    """Prints a table or report of rich: wrapped on a terminal; into a pipe or a file, each sentence on one line."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(renderable, crop=False)
    else:
        print(as_text(renderable, columns=10_000))


def as_text(renderable: Any, *, columns: int = TEXT_COLUMNS) -> str:
    """Renders a table or report of rich as lines of text without colours, `columns` wide; code in it is not wrapped."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=columns, force_terminal=False, force_jupyter=False)
    console.print(renderable, crop=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def table(rows: Iterable[Sequence[object]], heads: Sequence[str] = (), *, title: str = "", note: str = "") -> str:
    """Renders a table as HTML, with a line of text above it (`title`) and one below (`note`)."""
    return render_macro(_HTML, "table", rows, heads, title, note)


def bar(share: float) -> Markup:
    """Renders a number from 0 to 1 with a bar of that length, as a cell of a `table`."""
    return render_macro(_HTML, "bar", share)


def predictions(answers: Sequence[Prediction]) -> str:
    """Renders the first `MOST_SHOWN` predictions of one call as an HTML table."""
    rows = [(index, prediction.length, *_answer(prediction)) for index, prediction in enumerate(answers[:MOST_SHOWN])]
    note = f"and {len(answers) - len(rows)} more" if len(rows) < len(answers) else ""
    return table(rows, ("sequence", "steps", "answer", "probability"), note=note)


def prediction(answer: Prediction, labels: Sequence[str]) -> str:
    """Renders one prediction as an HTML table: a bar for each label, the most probable first.

    A per-step prediction has a row for each of the first steps instead.
    """
    if answer.step_labels is not None and answer.step_scores is not None:
        steps = enumerate(zip(answer.step_labels, answer.step_scores.tolist(), strict=True))
        rows = [(index, label or "left out", bar(score)) for index, (label, score) in steps]
        return table(rows[:MOST_SHOWN], ("step", "label", "probability"), title=f"{answer.length} steps")
    pairs = zip(labels, answer.probabilities.tolist(), strict=False)
    bars = [(label, bar(share)) for label, share in sorted(pairs, key=lambda pair: -pair[1])[:MOST_SHOWN]]
    return table(bars, ("label", "probability"), title=f"{_answer(answer)[0]} ({answer.length} steps)")


def _answer(prediction: Prediction) -> tuple[object, object]:
    """Makes the two cells of a prediction in a table.

    - One label: the label, and a bar of its probability.
    - Several labels, and labels of steps: these, of the steps only the first; the second cell is empty.
    """
    if prediction.label is not None and prediction.score is not None:
        return prediction.label, bar(prediction.score)
    if prediction.assigned is not None:
        return ", ".join(prediction.assigned) or "none", ""
    all_labels = prediction.step_labels or ()
    first_labels = [label or "-" for label in all_labels[: MOST_SHOWN // 2]]
    return " ".join(first_labels) + (" ..." if len(all_labels) > len(first_labels) else ""), ""


def in_notebook() -> bool:
    """Whether this code runs in a cell of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def notebook_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Shows a bar of progress under the running cell of a notebook while the block runs.

    Yields the function that updates the bar: its arguments are the number of finished parts, of `total`, and a note.
    """
    from IPython.display import display

    def cell(done: int, note: str) -> dict[str, str]:
        """The bar in the forms that a notebook may show."""
        html = render_macro(_HTML, "progress", title, done, total, note).rstrip()
        return {"text/plain": f"{title}: {done} of {total} {note}".rstrip(), "text/html": html}

    latest = 0, ""
    handle: Any = display(cell(*latest), raw=True, display_id=True)
    last_update = time.monotonic()

    def show(done: int, note: str) -> None:
        """Remembers the progress, and updates the bar unless it was updated a moment ago."""
        nonlocal latest, last_update
        latest = done, note
        if time.monotonic() - last_update >= _SECONDS_BETWEEN:
            last_update = time.monotonic()
            handle.update(cell(*latest), raw=True)

    try:
        yield show
    finally:
        handle.update(cell(*latest), raw=True)
