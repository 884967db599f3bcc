"""What the gallery of left-padded and packed models says of them holds: seen by running them, without any checker."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from tests.gallery.layout_index import EXHIBITS, LayoutExhibit

Array = np.ndarray[Any, Any]
Row = list[tuple[Array, int]]  # sequences, and the padding in front of each or behind the last
LENGTHS = (7, 3, 9, 4, 1)
TOLERANCE = 1e-5


def drawn(exhibit: LayoutExhibit, length: int, random: np.random.Generator) -> Array:
    if exhibit.vocabulary is not None:
        return random.integers(0, exhibit.vocabulary, length)
    return random.normal(size=(length, exhibit.features)).astype(np.float32)


def called(exhibit: LayoutExhibit) -> Callable[..., Array]:
    """The model, called with NumPy's arrays by name; the steps have none."""
    made = exhibit.make()
    if isinstance(made, ModelProto):
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        inputs = {value.name: value for value in session.get_inputs()}
        steps_name = next(name for name in inputs if name in ("x", "input_ids"))

        def run(steps: Array, **named: Array) -> Array:
            named = {name: value for name, value in named.items() if name in inputs} | {steps_name: steps}
            if len(inputs[steps_name].shape) < steps.ndim:
                named[steps_name] = steps[0]
            types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
            feed = {name: np.asarray(value, types[inputs[name].type]) for name, value in named.items()}
            return session.run(None, feed)[0]

        return run
    module = made.eval()
    own = module.forward.__code__.co_varnames[2 : module.forward.__code__.co_argcount]

    def call(steps: Array, **named: Array) -> Array:
        given = {name: torch.tensor(value) for name, value in named.items() if name in own}
        given = {name: value for name, value in given.items() if name != "position_ids" or exhibit.layout == name}
        given |= {"max_seqlen": int(named["cu_seqlens"].max())} if "max_seqlen" in own else {}
        with torch.no_grad():
            try:
                answer = module(torch.tensor(steps), **given)
            except AssertionError:  # it takes [steps, ...]
                answer = module(torch.tensor(steps[0]), **given)
        answer = getattr(answer, "logits", answer)
        return answer.numpy()

    return call


def of_padded(exhibit: LayoutExhibit, rows: list[Array], width: int, seed: int) -> list[Array]:
    """The answers to rows that are padded on the left or on both sides, those of each step at its steps."""
    random = np.random.default_rng(seed)
    starts = [(width - len(row)) // (2 if exhibit.layout == "both" else 1) for row in rows]
    steps = np.stack([drawn(exhibit, width, random) for _ in rows])
    mask = np.zeros((len(rows), width), dtype=bool)
    for line, valid, row, start in zip(steps, mask, rows, starts, strict=True):
        line[start : start + len(row)] = row
        valid[start : start + len(row)] = True
    position_ids = np.maximum(mask.cumsum(1) - 1, 0)
    answer = called(exhibit)(steps, mask=mask, attention_mask=mask, position_ids=position_ids)
    return [
        part[start : start + len(row)] if part.ndim == 2 else part
        for part, row, start in zip(answer, rows, starts, strict=True)
    ]


def of_packed(exhibit: LayoutExhibit, rows: list[Array], behind: int, seed: int) -> list[Array]:
    """The answers to sequences in one row, with steps behind the last."""
    random = np.random.default_rng(seed)
    steps = np.concatenate([*rows, drawn(exhibit, behind, random)])
    lengths = [len(row) for row in rows]
    borders = np.cumsum([0, *lengths])
    positions = np.concatenate([*map(np.arange, lengths), np.arange(behind)])
    segments = np.concatenate([np.repeat(np.arange(1, len(rows) + 1), lengths), np.zeros(behind, dtype=np.int64)])
    named = {"position_ids": positions[None], "segment_ids": segments[None], "seq_idx": segments[None]}
    answer = called(exhibit)(steps[None], cu_seqlens=borders.astype(np.int32), **named)
    answer = answer[0] if answer.ndim == 3 else answer
    if len(answer) == len(steps):
        return [answer[start:end] for start, end in itertools.pairwise(borders)]
    return list(answer[1:] if len(answer) == len(rows) + 1 else answer)


def largest_difference(exhibit: LayoutExhibit) -> float:
    """Of the answers to sequences in company, with padding of several widths, from those to each alone."""
    random = np.random.default_rng(0)
    rows = [drawn(exhibit, length, random) for length in LENGTHS]
    answers = of_packed if exhibit.is_packed else of_padded
    alone = [answers(exhibit, [row], 0 if exhibit.is_packed else len(row), 1)[0] for row in rows]
    tried = [(order, padding) for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]) for padding in (9, 12, 16)]
    apart = [0.0]
    for seed, (order, padding) in enumerate(tried):
        found = answers(exhibit, [rows[index] for index in order], padding, seed)
        apart += [float(np.abs(answer - alone[index]).max()) for answer, index in zip(found, order, strict=True)]
    return max(apart)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=str)
def test_an_answer_changes_in_company_just_where_the_catalogue_says(exhibit: LayoutExhibit) -> None:
    apart = largest_difference(exhibit)
    assert apart > 100 * TOLERANCE if exhibit.verdict == "leak" else apart <= TOLERANCE, apart


def test_there_are_enough_of_both_and_as_many_sound_ones() -> None:
    for is_packed in (False, True):
        verdicts = [exhibit.verdict for exhibit in EXHIBITS if exhibit.is_packed == is_packed]
        assert min(verdicts.count("leak"), verdicts.count("sound")) >= 12
