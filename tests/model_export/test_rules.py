"""The rules of `check`: each file is whole, and what a leak is gets a number."""

import re

import pytest

from lengthwise_export.checking import rule


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
