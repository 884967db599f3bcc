"""What notebooks show: tables and bars are HTML in which no caller's text is markup, and progress updates one cell."""

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lengthwise
from lengthwise.api import Prediction
from lengthwise.reports import notebook
from tests.support import model_directories


@pytest.fixture(scope="module")
def bundled() -> Iterator[lengthwise.Model]:
    with pytest.MonkeyPatch.context() as patch:
        model_directories.measure_quickly(patch)
        yield lengthwise.load(threads=1)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for IPython in a notebook: what the cell showed, one text for each update."""
    texts: list[str] = []

    def display(shown: dict[str, str], *, raw: bool, display_id: bool = False) -> Any:
        assert raw
        texts.append(shown["text/html"])
        return types.SimpleNamespace(update=display)

    shell = types.SimpleNamespace(kernel=object())
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    vars(package)["get_ipython"] = lambda: shell
    vars(module)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return texts


def test_a_model_says_what_it_takes_and_promises(bundled: lengthwise.Model) -> None:
    shown = bundled._repr_html_()
    assert shown.startswith("<p><b>japanese-vowels, version 1</b></p><table>")
    for said in ("12 features", "the same bits on", "1, 2, 3, 4, 5, 6, 7, 8, 9"):
        assert said in shown


def test_predictions_are_a_list_that_is_shown_as_a_table(bundled: lengthwise.Model) -> None:
    predictions = bundled.predict(np.zeros((30, 5, 12)))
    assert isinstance(predictions, lengthwise.Predictions)
    shown = predictions._repr_html_()
    assert shown.count("<tr>") == notebook.MOST_SHOWN + 1
    assert shown.endswith("<p>and 10 more</p>")
    one = predictions[0]._repr_html_()
    assert one.count("<tr>") == 10
    assert f'<td style="text-align: left">{predictions[0].label}</td>' in one


def test_predictions_of_every_task_are_shown() -> None:
    three = np.array([0.2, 0.7, 0.1], dtype=np.float32)
    several = Prediction(three, 4, assigned=("b", "<i>"), _labels=("a", "b", "<i>"))
    steps = Prediction(
        np.stack([three, three]), 2, step_labels=("b", None), step_scores=three[:2], _labels=("a", "b", "c")
    )
    assert "b, &lt;i&gt; (4 steps)" in several._repr_html_()
    assert "left out" in steps._repr_html_()
    together = notebook.predictions([several, steps, Prediction(three, 1, assigned=())])
    assert '<td style="text-align: left">b -</td>' in together
    assert "none" in together


def test_a_text_is_no_markup() -> None:
    shown = notebook.table([("<script>", notebook.bar(0.5))], ("<b>",), title="<p>")
    assert not re.search("<script>|<b><|<p><p>", shown)
    assert "0.5000" in shown
    assert "width: 0px" in notebook.bar(float("nan"))
    assert "<html" not in notebook.in_frame("<html></html>")


def test_a_bar_is_one_cell_that_is_updated(displayed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(notebook.time, "monotonic", lambda: float(next(clock)))
    assert notebook.in_notebook()
    with notebook.notebook_bar("training", 3) as show:
        for done in (1, 2, 3):
            show(done, f"loss <{done}>")
    assert 'value="0" max="3"' in displayed[0]
    assert displayed[-1] == 'training <progress value="3" max="3"></progress> 3 of 3 loss &lt;3&gt;'


def test_a_program_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.in_notebook()
