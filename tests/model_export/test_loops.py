"""Loops over the steps: those that are a recurrent layer become one, others keep their states where a row has ended."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.mend import Mended, mend
from tests.support.integer_graphs import opened
from tests.support.keras_loops import FEATURES, VOCABULARY, KerasLoop

Array = NDArray[Any]
LONGEST = 40
NAMES = GraphNames(sequences="keras_tensor", lengths="lengths", logits="dense")

LAYERS = {
    "LSTM": KerasLoop(),
    "LSTM, masked": KerasLoop(masked=0.0),
    "LSTM, masked by another number": KerasLoop(masked=-9.0, limit=False),
    "LSTM, held by Where": KerasLoop(masked=0.0, where=True),
    "LSTM, each step": KerasLoop(masked=0.0, each_step=True),
    "LSTM, hard sigmoid": KerasLoop(masked=0.0, hard=True),
    "LSTM, tokens": KerasLoop(masked=0.0, tokens=True),
    "GRU": KerasLoop("gru", limit=False),
    "GRU, masked": KerasLoop("gru", masked=0.0),
    "GRU, reset before": KerasLoop("gru, reset before", masked=0.0),
    "RNN": KerasLoop("rnn", each_step=True),
    "RNN, masked": KerasLoop("rnn", masked=0.0, tokens=True),
}
SCANS = {
    "two cells in one loop": KerasLoop(masked=0.0, doubled=True),
    "two GRU cells": KerasLoop("gru", doubled=True, each_step=True),
    "no known cell": KerasLoop(sign=-1.0),
    "no known cell, masked": KerasLoop("rnn", masked=-9.0, sign=0.5),
}


def mended(graph: onnx.ModelProto) -> Mended:
    tokens = graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32
    steps = StepInput(kind="tokens", vocabulary=VOCABULARY) if tokens else StepInput(features=FEATURES)
    return mend(graph, NAMES, steps, max_length=LONGEST)


def sequences(loop: KerasLoop, lengths: list[int]) -> list[Array]:
    """Sequences without a step that a mask hides."""
    random = np.random.default_rng(3)
    if loop.tokens:
        return [random.integers(1, VOCABULARY, size=length).astype(np.int32) for length in lengths]
    return [random.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]


def difference(original: onnx.ModelProto, result: Mended, rows: list[Array]) -> float:
    """The largest difference of the mended graph's answers in batches from the original's alone."""
    before, after = opened(original), opened(result.graph)
    alone = [before.run(None, {"keras_tensor": steps[None]})[0][0] for steps in rows]
    lengths = np.array([len(steps) for steps in rows], np.int32)
    worst = 0.0
    for padding, width in ((0, LONGEST), (7, LONGEST + 4)):
        batch = np.full((len(rows), width, *rows[0].shape[1:]), padding, rows[0].dtype)
        for row, steps in zip(batch, rows, strict=True):
            row[: len(steps)] = steps
        answers = after.run(None, {"keras_tensor": batch, "lengths": lengths})[0]
        for right, answer in zip(alone, answers, strict=True):
            own = answer[: len(right)] if right.ndim == 2 else answer
            worst = max(worst, float(np.abs(own - right).max()))
    return worst


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [*LAYERS, *SCANS])
def test_a_loop_becomes_a_layer_or_keeps_its_states_where_a_row_has_ended(name: str) -> None:
    loop = (LAYERS | SCANS)[name]
    original = loop.model()
    result = mended(original)
    kind = name.partition(",")[0] if name in LAYERS else "Scan"
    assert {node.op_type for node in result.graph.graph.node} & {"Loop", "Scan", "LSTM", "GRU", "RNN"} == {kind}
    assert difference(original, result, sequences(loop, [1, 2, 9, LONGEST, 17, 30])) < 1e-6
    if name in LAYERS:
        assert [change.kind for change in result.changes].count("Loop") == 1


def test_a_step_that_a_mask_hides_is_data_in_the_layer_and_said() -> None:
    loop = KerasLoop(masked=0.0)
    original = loop.model()
    result = mended(original)
    assert result.hiding == (0.0,)
    assert result.without_hiding is not None
    (steps,) = sequences(loop, [9])
    steps[4] = 0.0
    assert difference(original, result, [steps]) > 1e-3
    assert difference(result.without_hiding, result, [steps]) < 1e-6


def test_a_mask_stays_what_it_is_where_a_loop_stays_one() -> None:
    loop = KerasLoop(masked=0.0, doubled=True)
    original = loop.model()
    result = mended(original)
    assert result.hiding == ()
    rows = sequences(loop, [9, 17])
    rows[0][4] = rows[1][-1] = 0.0
    assert difference(original, result, rows) < 1e-6


GATHER, WANTED = "c0step = Gather (time_first, place)", "wanted = Cast <to: int = 1> (last)"
OTHERS = {
    "ends before the last step": (
        "turned = Cast <to: int = 1> (next_place)",
        "later = Add (next_place, one_i)\nturned = Cast <to: int = 1> (later)",
    ),
    "turns on behind the last step": (WANTED, "wanted = Identity (far_f)"),
    "computes with the number of its turn": (
        GATHER,
        "taken = Gather (time_first, place)\nnumber = Cast <to: int = 1> (place)\nc0step = Add (taken, number)",
    ),
    "takes no step": (GATHER, "c0step = Gather (time_first, zero_i)"),
    "as the data say": (WANTED, "wanted = ReduceMax <keepdims: int = 0> (c0h)"),
    "once for each row": (
        "time_first = Transpose <perm: ints = [1, 0, 2]> (keras_tensor)",
        "time_first = Identity (keras_tensor)",
    ),
}


def rewritten(loop: KerasLoop, before: str, after: str) -> onnx.ModelProto:
    """The loop's graph with other nodes, which may read `far_f`."""
    lines = onnx.printer.to_text(loop.model())
    assert before in lines
    graph: onnx.ModelProto = onnx.parser.parse_model(lines.replace(before, after))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e9, np.float32), "far_f"))
    return graph


@pytest.mark.parametrize("reason", OTHERS)
def test_a_loop_of_another_kind_is_refused_with_the_reason(reason: str) -> None:
    graph = rewritten(KerasLoop(limit=False), *OTHERS[reason])
    with pytest.raises(UnmendableError, match=re.escape(reason)) as error:
        mended(graph)
    assert error.value.operator


def test_what_a_loop_computes_anew_at_each_turn_is_moved_in_front_of_it() -> None:
    graph = rewritten(KerasLoop(), GATHER, "same = Identity (time_first)\nc0step = Gather (same, place)")
    result = mended(graph)
    assert "LSTM" in {node.op_type for node in result.graph.graph.node}
    assert difference(graph, result, sequences(KerasLoop(), [1, 9, LONGEST])) < 1e-6


@pytest.mark.parametrize(("first", "second"), [("c0h", "c0n"), ("c0n", "c0h")])
def test_a_cell_that_subtracts_what_a_gru_adds_stays_a_loop(first: str, second: str) -> None:
    turned = f"apart = Sub ({first}, {second})\npart = Mul (c0z, apart)\nc0h_new = Sub (part, {second})"
    graph = rewritten(KerasLoop("gru"), "c0h_new = Add (c0old, c0fresh)", turned)
    result = mended(graph)
    assert "Scan" in {node.op_type for node in result.graph.graph.node}
    assert difference(graph, result, sequences(KerasLoop(), [1, 9, LONGEST])) < 1e-6
