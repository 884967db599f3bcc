"""What is exchanged in the variants of the service."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest

from benchmarks import variants
from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import japanese_vowels
from lengthwise.batching.cost import CostTable
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.repository.loading import load

COST = CostTable([1], [4], np.array([[1.0]]))


def test_by_arrival_the_first_run_together_whatever_their_widths():
    pool = PendingSequences()
    waiting = [WaitingSequence(width) for width in (4, 100, 8, 12)]
    for one in waiting:
        pool.add(one)
    assert variants.plan_by_arrival(pool, COST, BatchLimits(rows=3), 0.0) == waiting[:3]
    assert variants.plan_by_arrival(pool, COST, BatchLimits(rows=3), 0.0) == waiting[3:]
    assert variants.plan_by_arrival(pool, COST, BatchLimits(rows=3), 0.0) == []


def test_by_arrival_a_batch_stays_within_its_cost_but_for_a_lone_sequence():
    pool = PendingSequences()
    for width in (8, 100, 4):
        pool.add(WaitingSequence(width))
    limits = BatchLimits(rows=8, padded_steps=50)
    widths = [[one.width for one in variants.plan_by_arrival(pool, COST, limits, 0.0)] for _ in range(3)]
    assert widths == [[8], [100], [4]]


def test_by_arrival_a_batch_takes_no_longer_than_it_may():
    pool = PendingSequences()
    for _ in range(5):
        pool.add(WaitingSequence(4))
    # One row of four steps takes a second, and each further row another.
    rows = [len(variants.plan_by_arrival(pool, COST, BatchLimits(rows=8, seconds=2.0), 0.0)) for _ in range(3)]
    assert rows == [2, 2, 1]


def test_an_empty_run_answers_in_the_shapes_of_the_graph():
    work = japanese_vowels(0, 3)
    model = load(work.directory, BatchLimits())
    batch = pad(work.sequences)
    empty = variants.EmptyRun(model.session, model.manifest)
    real, made = (session.run(batch, ("logits", "attention")) for session in (model.session, empty))
    assert made.logits.shape == real.logits.shape
    assert made.attention is not None
    assert real.attention is not None
    assert made.attention.shape == real.attention.shape
    assert empty.provider == model.session.provider


def test_an_unknown_part_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["variants", "nothing"])
    with pytest.raises(ConfigurationError, match="arrival-order, empty-run"):
        variants.main()


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_every_place_in_a_contenders_command_is_known(contender):
    places = {"model": "m", "repository": "r", "port": "1"}
    texts = [*contender.module, *contender.environment.values()]
    assert "{" not in "".join(text.format(**places) for text in texts)


def test_a_cost_table_that_does_not_learn_is_told_what_the_service_tells_its_own() -> None:
    fixed = inspect.signature(variants.Fixed.observe).parameters
    assert list(fixed) == list(inspect.signature(CostTable.observe).parameters)
