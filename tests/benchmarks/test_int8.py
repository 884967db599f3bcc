"""The benchmarks of int8 run, and the document tells what they measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import int8_accuracy, int8_kernels, int8_serving, pages
from lengthwise.runtime import integer_kernels

DOCUMENT = Path("docs/precision.md")


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """All of them; whatever a benchmark does to this process's own is undone."""
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def test_the_document_tells_the_answers_as_they_were_measured() -> None:
    _, _, *lines = pages.first_table(int8_accuracy.PAGE).splitlines()
    assert len(lines) == len(int8_accuracy.MODELS)
    text = DOCUMENT.read_text()
    for line in lines:
        assert line in text


def test_no_model_loses_more_than_three_answers_in_a_thousand() -> None:
    _, _, *lines = pages.first_table(int8_accuracy.PAGE).splitlines()
    for line in lines:
        exact, rounded = map(float, line.split(" | ")[3:5])
        assert rounded >= exact - 0.003


def test_models_are_joined_over_their_trainings() -> None:
    one = int8_accuracy.Int8Answers("data", "LSTM", 0, 100, 0.9, 0.8, 12, -10, 0.5, 0.01)
    other = int8_accuracy.Int8Answers("data", "LSTM", 1, 100, 0.7, 0.8, 10, 10, 0.2, 0.03)
    (found,) = int8_accuracy.by_model([one, other])
    assert int8_accuracy.cells(found) == ("data", "LSTM", "2 x 100", "0.8000", "0.8000", "22", "0.5", "0.02")


@pytest.mark.long
def test_a_model_is_trained_and_its_answers_are_compared() -> None:
    data, spec, _ = int8_accuracy.MODELS[0]
    found = int8_accuracy.measured(data, spec, 0, epochs=1, console=Console(quiet=True))
    assert found.sequences == 370
    assert 0 < found.largest < 0.2


@pytest.mark.long
@pytest.mark.skipif(not integer_kernels.INSTRUCTION_SETS, reason="no compiler at installation")
def test_graphs_and_services_are_compared(cores: list[int]) -> None:
    sets = integer_kernels.INSTRUCTION_SETS
    rows = list(int8_kernels.measure(["lognormal"], sets, (2,), seconds=0, seed=0))
    integer_kernels.choose(sets[0])
    assert len(rows) == 2 * len(sets)
    assert all(each.same_bits_alone and each.same_bits_everywhere for each in rows)
    assert all(np.isfinite(each.int8_us_per_step) for each in rows)
    found = int8_serving.measure("lognormal", rounds=1, seconds=0.5, answers=20, sequences=6, seed=0, cores=cores)
    assert found.wrong == 0
    assert found.answers >= 40
    assert len(int8_serving.cells(found)) == 8
