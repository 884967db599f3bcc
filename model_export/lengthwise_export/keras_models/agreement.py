"""Compares a `KerasModule` with Keras itself, before anything else runs it.

Each sequence alone, as `model(sequence)` answers it, is what Lengthwise promises. A batch that is padded as Keras
expects it shows that the mask of the lengths does what Keras' computed mask does, leaks included. Runs before these
show the module which layers read the steps as they came in, and which masks are those of the lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lengthwise.errors import ConfigurationError
from lengthwise_export.keras_models.backend import first_line, on_device
from lengthwise_export.keras_models.inputs import ModelInput
from lengthwise_export.keras_models.module import KerasModule
from lengthwise_export.tracing.process_wide import one_torch_thread

SAME: Final = 1e-5  # the largest difference of equal answers, in units of max(1, |answer|)
_LENGTHS: Final = (1, 2, 3, 5, 7, 13)
"""Lengths of the sequences; where Keras raises at all of them, the longer ones are tried."""
_LONGER: Final = (24, 33, 64, 130)
_WIDER: Final = 4  # how much wider a padded batch is than its longest sequence


def require_agreement(text: str, module: KerasModule, given: ModelInput, seed: int = 0) -> tuple[str, ...]:
    """Runs the module and Keras on the same sequences; returns the names (or numbers) of the outputs."""
    random = np.random.default_rng(seed)
    with torch.no_grad(), one_torch_thread():
        sequences = _running(text, module, given, random)
        padded = _padded(sequences, given, random)
        module.known.learning = True
        try:
            for batch, lengths in padded:
                with contextlib.suppress(Exception):  # a model may take no batch as wide
                    module(batch, lengths)
        finally:
            module.known.learning = False
        for sequence in sequences:
            expected = _answers(_alone(module.model, sequence))
            for ends in (torch.tensor([sequence.shape[1]]), None):
                _compare(text, expected, _answers(module(sequence, ends)), f"a sequence of {sequence.shape[1]} steps")
        batch, lengths = padded[0]
        expected = {}
        with contextlib.suppress(Exception):  # whatever a model raises at a width
            expected = _answers(_alone(module.model, batch))
        if expected:
            _compare(text, expected, _answers(module(batch, lengths)), "a padded batch")
        answer = module(sequences[0], None)
        return tuple(map(str, answer)) if isinstance(answer, Mapping) else tuple(_answers(answer))


def _running(text: str, module: KerasModule, given: ModelInput, random: np.random.Generator) -> list[Tensor]:
    error: Exception | None = None
    for lengths in (_LENGTHS, _LONGER):
        running = []
        for length in lengths:
            sequence = _drawn(given, (1, length), random)
            try:
                _alone(module.model, sequence)
            except Exception as raised:  # whatever a model raises at a length
                error = raised
            else:
                running.append(sequence)
        if len(running) > 1:
            return running
    said = first_line(error) if error is not None else ""
    raise ConfigurationError(f"{text} raises for sequences of {_LENGTHS[0]} to {_LONGER[-1]} steps: {said}") from error


def _alone(model: Any, steps: Tensor) -> Any:
    """Keras' own answer."""
    with on_device():
        return model(steps, training=False)


def _drawn(given: ModelInput, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Random steps `[rows, width(, features)]`, none of which Keras would mask."""
    steps = given.steps
    if steps.kind == "tokens":
        vocabulary = steps.vocabulary or 1
        return torch.from_numpy(random.integers(min(1, vocabulary - 1), vocabulary, shape))
    size = (*shape, steps.features or 1) if given.features_axis else shape
    values = random.standard_normal(size).astype(np.float32)
    return torch.from_numpy(np.where(values == given.padding, values + 1, values).astype(np.float32))


def _padded(sequences: Sequence[Tensor], given: ModelInput, random: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """Batches with padding: as Keras masks it, and two with other values there, of other lengths."""
    lengths = torch.tensor([sequence.shape[1] for sequence in sequences])
    width = int(lengths.max()) + _WIDER
    batches = []
    for ends, fill in ((lengths, True), (lengths, False), (lengths.flip(0).clamp(max=width - 1), False)):
        drawn = _drawn(given, (len(ends), width), random)
        if fill:
            for row, end in enumerate(ends.tolist()):
                drawn[row, end:] = 0 if given.steps.kind == "tokens" else given.padding
        batches.append((drawn, ends))
    return batches


def _answers(answer: Any) -> dict[str, Tensor]:
    if isinstance(answer, Tensor):
        return {"0": answer}
    if isinstance(answer, Mapping):  # a module names what Keras gives as a list
        answer = list(answer.values())
    return {str(place): value for place, value in enumerate(answer)} if isinstance(answer, tuple | list) else {}


def _compare(text: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor], of: str) -> None:
    for value, own in zip(expected.values(), given.values(), strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if own.shape == value.shape and torch.equal(own.isfinite(), value.isfinite()):
            # What is not finite is for the check to say: Keras answers the same.
            own, value = (each.nan_to_num(0.0, 0.0, 0.0) for each in (own, value))
        apart = float((own - value).abs().max() / value.abs().max().clamp(min=1)) if own.shape == value.shape else None
        if apart is None or not apart <= SAME:
            how = "have another shape" if apart is None else f"differ by {apart:.2g}"
            why = "an error of Lengthwise, or of a layer that is not the same twice"
            instead = "export it with model.export and give the ONNX file"
            raise ConfigurationError(f"{text}: the answers to {of} {how} from those of Keras, {why}: {instead}")
