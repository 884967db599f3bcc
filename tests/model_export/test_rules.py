"""The rules of `check`: each file is whole, and what a leak is gets a number."""

import re
from pathlib import Path

import pytest

import lengthwise_export
from benchmarks import rule_pages
from lengthwise_export.checking import rule
from tests.support.rule_examples import EXAMPLES, check_example, marked_line

SHORT = ("LW201", "LW401", "LW207", "LW601", "LW801")
"""The rules of which the daily tests run the examples of torch; the long tests run all."""


def examples() -> list:
    return [
        pytest.param(*one, marks=() if one[0] in SHORT and one[1] == "torch" else pytest.mark.long) for one in EXAMPLES
    ]


@pytest.mark.parametrize("code", rule.rules())
def test_a_file_of_a_rule_has_its_own_code_and_a_name_and_a_sentence(code: str) -> None:
    one = rule.rules()[code]
    assert code == one.code
    assert re.fullmatch("LW[0-9]{3}", code)
    assert re.fullmatch("[a-z]+(-[a-z0-9]+)*", one.name)
    assert one.severity in ("error", "warning")
    assert one.why.endswith(".")
    assert "$" not in one.why


def test_no_two_rules_have_one_name() -> None:
    names = [one.name for one in rule.rules().values()]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("table", ["operators", "layers"])
def test_no_two_entries_have_one_order(table: str) -> None:
    orders = [entry.order for one in rule.rules().values() for entry in getattr(one, table)]
    assert len({*orders}) == len(orders)


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("lstm", "padding", "LW301"),
        ("lstm", "order", "LW302"),
        ("softmax", "width", "LW102"),
        ("softmax", "neighbours", "LW103"),
        ("mean", "width", "LW201"),
        ("mean", "neighbours", "LW204"),
        ("max", "lengths", "LW207"),
        ("sum", "poison", "LW801"),
        ("conv1d", "padding", "LW401"),
        ("an_operator_of_next_year", "neighbours", "LW204"),
        ("an_operator_of_next_year", "lengths", "LW207"),
        ("an_operator_of_next_year", "padding", "LW900"),
    ],
)
def test_an_operator_and_a_change_select_a_rule(kind: str, change, code: str) -> None:
    assert rule.select("operators", kind, change).code == code


@pytest.mark.parametrize(
    ("kind", "mask", "code"),
    [
        ("LSTM", "none", "LW301"),
        ("LSTM", "lengths", "LW303"),
        ("ops.Mean", "none", "LW201"),
        ("Flatten", None, "LW209"),
    ],
)
def test_a_layer_of_keras_and_its_mask_select_a_rule(kind: str, mask: str | None, code: str) -> None:
    assert rule.select("layers", kind, "padding", mask).code == code


def test_a_page_is_what_its_rule_says() -> None:
    """After a change of a rule: `make rules`."""
    pages = dict(rule_pages.pages())
    assert {path.name: path.read_text() for path in pages} == {path.name: text for path, text in pages.items()}
    assert {path.name for path in rule_pages.FOLDER.iterdir()} == {path.name for path in pages}


@pytest.mark.filterwarnings("ignore:.*will therefore destroy the mask")  # which is what the example shows
@pytest.mark.parametrize(("code", "framework"), examples())
def test_the_bad_example_of_a_rule_leaks_by_it_at_its_line_and_the_good_one_is_sound(
    code: str, framework: str, tmp_path: Path
) -> None:
    bad = check_example(code, framework, "bad", tmp_path)
    assert bad.verdict == ("leak" if rule.rules()[code].severity == "error" else "warning")
    assert [leak.code for leak in bad.leaks] == [code]
    line = marked_line(code, framework)
    assert (line is None) == (framework != "torch")
    assert line is None or bad.leaks[0].location.line == line
    assert check_example(code, framework, "good", tmp_path).verdict == "sound"


MENDS = [(code, next(iter(one.examples))) for code, one in rule.rules().items() if one.mend is not None]


@pytest.mark.long
@pytest.mark.parametrize(("code", "framework"), MENDS)
def test_the_page_of_a_rule_says_whether_a_mend_cures_its_example(code: str, framework: str, tmp_path: Path) -> None:
    fix = check_example(code, framework, "bad", tmp_path, suggest=True).fix
    assert (fix.mendable and fix.verdict == "sound") == rule.rules()[code].mend


NET = """import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        BODY
        return self.head(h.masked_fill(~valid[..., None], 0.0).sum(1) / lengths[:, None])
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("h = x - x.mean(0)", "LW204"),
        ("h = x / x.abs().max()", "LW204"),
        ("h = x.cumsum(0)", "LW204"),
        ("h = x + (torch.arange(x.size(1)) / x.size(1))[None, :, None]", "LW601"),
    ],
)
def test_what_runs_over_rows_or_is_a_position_has_its_rule_whatever_trial_shows_it(
    body: str, code: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET.replace("BODY", body))
    report = lengthwise_export.check(f"{tmp_path / 'net.py'}:Net", max_length=24)
    assert [(leak.code, leak.location.source) for leak in report.leaks] == [(code, body)]
