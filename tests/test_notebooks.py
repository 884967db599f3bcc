"""The notebooks in examples run from top to bottom, hold no output, and show what they say."""

import ast
import json
import linecache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("quick_costs")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path: Path, kind: str = "code") -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def run(path: Path) -> list[str]:
    """Runs the cells as a notebook does: the HTML of the last value of each cell, where it has one."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, text in enumerate(cells(path)):
        name = f"{path.name}, cell {number}"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        parsed = ast.parse(text, name)
        last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
        exec(compile(parsed, name, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            if hasattr(value, "_repr_html_"):
                shown.append(value._repr_html_())
    return shown


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["check_and_export", "train_and_serve"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_output(path: Path) -> None:
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in book["cells"] if "outputs" in cell)
    for text in cells(path, "markdown"):
        for link in (part.split(")")[0].split("#")[0] for part in text.replace("\n", "").split("](")[1:]):
            assert (EXAMPLES / link).exists(), link


@pytest.mark.long
def test_the_checks_report_and_the_predictions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(EXAMPLES / "check_and_export.ipynb")
    assert "softmax | return self.head((scores.softmax(dim=1)[:, None] @ h).squeeze(1))" in capsys.readouterr().out
    assert "<iframe" in shown[0]
    assert "attention, version 1" in shown[-3]
    assert shown[-2].startswith("<table>")


@pytest.mark.long
def test_a_classifier_is_searched_trained_and_served() -> None:
    shown = run(EXAMPLES / "train_and_serve.ipynb")
    assert sum("<iframe" in html for html in shown) == 2  # the reports of the classifier and of the first run
