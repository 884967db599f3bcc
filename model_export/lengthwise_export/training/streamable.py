"""`train --streaming`: which models stream, and how good their answers are before a sequence has ended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from lengthwise.exporter_api.contract import StopAt
from lengthwise_export.architecture.layers import MOST_SLICES
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import BuiltInModel
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.training.batches import Example
from lengthwise_export.training.scores import EvaluationScores, evaluate, join_answers

SHARES: Final = tuple(tenths / 10 for tenths in range(1, 11))
_PROBABILITIES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Of the label, at which to stop; with the last one nearly no sequence does."""
ROCKET_KEYS: Final[Mapping[str, Any]] = {"grid": "training", "sequence_features": ["length"]}
"""The keys of `[model]` with which fixed kernels stream: a grid that is the same whatever comes later."""


def with_streaming_choices(spec: Spec) -> Spec:
    """The spec with what streams in the place of what is open.

    Raises:
        ConfigurationError: A key of the user's needs the whole sequence; the message says which, and what streams.
    """
    if not spec.model.is_auto and (why := next(_obstacles(spec), None)) is not None:
        raise ConfigurationError(f"--streaming: {why}")
    if spec.input.kind == "values" and spec.input.normalize == "auto":
        spec = spec.with_keys(input={"normalize": "training"})
    if spec.input.long != "reject":
        raise ConfigurationError(
            f"--streaming contradicts input.long = '{spec.input.long}': a chunk continues its sequence"
        )
    return spec


def _obstacles(spec: Spec) -> Iterator[str]:
    """Yields the keys of a spec that need the whole sequence, each with what streams instead."""
    model = spec.model
    if spec.input.normalize not in ("training", "none", "auto"):
        yield f"input.normalize = '{spec.input.normalize}' is by the whole sequence: 'training' and 'none' stream"
    for feature in {"level", "scale"}.intersection(model.sequence_features):
        yield f"model.sequence_features: '{feature}' is by the whole sequence: 'length' and 'missing' stream"
    if model.kind == "summaries":
        yield "model.kind = 'summaries' is by the whole sequence: recurrent layers stream"
    if model.kind == "rocket":
        if model.grid != "training":
            yield "model.grid = 'sequence' is by the whole sequence: 'training' streams"
        return
    if model.rnn != "none" and model.bidirectional:
        yield "model.bidirectional reads from the end, too: 'false' streams"
    if model.self_attention_heads:
        yield "model.self_attention_heads compares each step with every other: recurrent layers stream"
    widest = max((kernel for conv in model.conv for kernel in conv.kernels), default=0)
    if widest > MOST_SLICES:
        yield f"a kernel of {widest} in model.conv is looked up by position: up to {MOST_SLICES} streams; use dilation"


def earliness(model: BuiltInModel, splits: Mapping[str, EvaluationScores], spec: Spec) -> dict[str, Any]:
    """The accuracy by the share of each sequence that was seen, on the most meaningful split.

    Returns:
        Entries of the report: the split, and points (share, accuracy); empty for a per-step model.
    """
    name = [*splits][-1]
    if spec.output.task == "per-step":
        return {}
    examples = [answer.example for answer in splits[name].of]
    points = [
        (share, evaluate(model, [_beginning_of(example, share) for example in examples], spec).accuracy)
        for share in SHARES
    ]
    return {"earliness": {"split": name, "points": points}}


def learned_stop(model: BuiltInModel, split: EvaluationScores, spec: Spec) -> tuple[StopAt, dict[str, float]] | None:
    """Where to stop so that fewest steps are read, and the accuracy is at least that of whole sequences.

    Args:
        model: The model.
        split: Its answers to whole sequences that it was not trained on.
        spec: Its spec, of a single-label model.

    Returns:
        Where to stop, and what comes of it: the accuracy and the share of the steps that are read. None if nothing is
        saved.
    """
    examples = [answer.example for answer in split.of]
    begun = [[_beginning_of(example, share) for example in examples] for share in SHARES]
    seen = np.array([[len(example.steps) for example in each] for each in begun])  # [shares, examples]
    answered = [join_answers(evaluate(model, each, spec).of, spec.output.task) for each in begun]
    score, label = (torch.stack([logits.softmax(1).max(1)[of] for logits, _ in answered]).numpy() for of in (0, 1))
    is_right = label == answered[-1][1].numpy()
    usual, ways = np.unique(np.median(seen, axis=1).astype(int)).tolist(), []
    for probability, steps in itertools.product(_PROBABILITIES, usual):
        stops = (score >= probability) & (seen >= steps)
        stops[-1] = True  # the end
        read, right = (np.take_along_axis(of, stops.argmax(axis=0)[None], axis=0)[0] for of in (seen, is_right))
        ways.append((read.sum() / seen[-1].sum(), -probability, steps, right.mean()))
    share, probability, steps, accuracy = min(way for way in ways if way[-1] >= is_right[-1].mean())
    if share >= 1:
        return None
    return StopAt(probability=-probability, steps=steps), {"accuracy": float(accuracy), "share": float(share)}


def _beginning_of(example: Example, share: float) -> Example:
    """The first steps of an example: a share of them, one at least."""
    return replace(example, steps=example.steps[: max(math.ceil(share * len(example.steps)), 1)])
