from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from lengthwise_export.errors import ExportError
from lengthwise_export.tracing.outputs import output_selector

LOGITS, ATTENTION, STATE = torch.ones(3, 2), torch.ones(3, 7), torch.ones(1, 3, 4)


class Named(NamedTuple):
    attention: torch.Tensor
    logits: torch.Tensor


@dataclass
class Held:
    loss: None
    logits: torch.Tensor


@pytest.mark.parametrize(
    "answer",
    [
        LOGITS,
        (LOGITS, STATE),
        [None, LOGITS],
        {"logits": LOGITS, "other": STATE},
        OrderedDict(state=STATE, logits=LOGITS),
        Named(ATTENTION, LOGITS),
        Held(None, LOGITS),
        (torch.ones(3, dtype=torch.int64), LOGITS),
    ],
)
def test_logits_are_found_in_whatever_a_module_returns(answer: object) -> None:
    assert output_selector(None)(answer)["logits"] is LOGITS


def test_attention_comes_along_where_it_is_named_so() -> None:
    assert output_selector(None)({"logits": LOGITS, "attention": ATTENTION})["attention"] is ATTENTION
    assert "attention" not in output_selector(None)({"logits": LOGITS, "attention": torch.ones(3, 4, 7, 7)})
    assert "attention" not in output_selector(None)((LOGITS, ATTENTION))


def test_an_output_is_chosen_by_name_or_place() -> None:
    assert output_selector("1")((STATE, LOGITS))["logits"] is LOGITS
    assert output_selector("risk")({"risk": LOGITS, "logits": STATE})["logits"] is LOGITS
    assert output_selector("attention")({"attention": ATTENTION, "logits": LOGITS}) == {"logits": ATTENTION}


@pytest.mark.parametrize(
    ("answer", "output", "why"),
    [
        ((LOGITS,), "risk", "returns no 'risk', but 0"),
        (torch.ones(3), None, r"none of 0 .*rank 1.*; one value for each row.* return \[rows, 1\].*--multi-label"),
        ({"logits": torch.ones(3), "state": LOGITS}, None, r"logits .*cannot be the output.*return \[rows, 1\]"),
        ((LOGITS, torch.ones(3)), "1", r"1 .*cannot be the output.*return \[rows, 1\]"),
        (
            torch.ones(3, dtype=torch.int64),
            None,
            r"\[rows, width, classes\]; what is decoded .* decode them in",
        ),
        ([[1, 2], [1], [2]], None, r"none of 0 to 2 \(a list\) .* return the scores as float32"),
        (torch.ones(3, 2, 2, 2), None, r"\[rows, width, classes\]$"),
        ({"risk": torch.ones(3, 2, dtype=torch.float64)}, "risk", "must be float32"),
        ("text", None, "returns a str"),
        ((None, 3), None, "0 .a NoneType., 1 .a int."),
    ],
)
def test_what_is_no_answer_is_refused(answer: object, output: str | None, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        output_selector(output)(answer)
