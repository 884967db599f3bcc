"""`benchmarks.encoders`: its page has a verdict on every encoder, and what it says is what is seen here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from benchmarks import encoders, machine, pages
from benchmarks.encoders import ENCODERS, Encoder, JudgedEncoder
from tests.support.users_models import Mean

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in pages.first_table(encoders.PAGE).splitlines()[2:]
]

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed (pip install transformers): it is too large for the development environment",
)


@dataclass(frozen=True, slots=True)
class Own(Encoder):
    """An encoder that needs no transformers."""

    leaks: bool = False

    def build(self) -> nn.Module:
        return Mean(leaks=self.leaks)


def test_the_page_has_a_verdict_on_each_of_at_least_twelve_classes() -> None:
    assert [row[0] for row in ROWS] == [encoder.name for encoder in ENCODERS]
    assert len({row[1] for row in ROWS}) >= 12
    assert {row[2] for row in ROWS} <= {"sound", "leak", "warning", "uncheckable", "refused"}
    assert all(row[3] for row in ROWS if row[2] != "sound")


def test_a_leak_is_named_with_its_line() -> None:
    short = {"max_length": 40}
    found = encoders.judge(Own("mean", "Mean", options=short, leaks=True))
    assert found.verdict == "leak"
    assert found.said.startswith("mean, `")
    assert encoders.judge(Own("mean", "Mean", options=short)) == JudgedEncoder("mean", "Mean", "sound", "")
    text = encoders.page(machine.facts(), [found], "5.0")
    assert "1 leak" in text
    assert "| mean | `Mean` | leak |" in text


@needs_transformers
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
def test_the_verdict_is_that_of_the_page(encoder: Encoder) -> None:
    torch.set_num_threads(1)
    shorter = replace(encoder, options=encoder.options | {"max_length": min(encoder.options["max_length"], 200)})
    (verdict,) = (row[2] for row in ROWS if row[0] == encoder.name)
    assert encoders.judge(shorter).verdict == verdict


@needs_transformers
@pytest.mark.filterwarnings("ignore")
def test_one_encoder_is_judged_as_the_page_says() -> None:
    (encoder,) = (one for one in ENCODERS if one.name == "DistilBERT")
    found = encoders.judge(replace(encoder, options=encoder.options | {"max_length": 20}))
    assert (found.verdict, found.said) == ("sound", "")
