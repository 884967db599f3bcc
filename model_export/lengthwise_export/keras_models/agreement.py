"""Compares the answers of a Keras model's torch module with those of Keras, before anything else is done with it.

A `KerasModule` replaces recurrent layers, and the masks that Keras computes from the steps by that of the lengths. What
it gets wrong is found here: `require_agreement`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.keras_models.backend import first_line, on_device
from lengthwise_export.keras_models.module import KerasModule, ModelInput, mask_notice
from lengthwise_export.keras_models.run import KnownLayers
from lengthwise_export.targets.target import one_torch_thread
from lengthwise_export.tracing.process_wide import replaced

_SAME: Final = 1e-5  # the largest difference of equal answers, in units of max(1, |answer|)
_LENGTHS: Final = (1, 2, 3, 5, 7, 13)  # lengths of the sequences to compare
_LONGER: Final = (24, 33, 64, 130)  # lengths instead of these, if fewer than two of them run
# What ordinary numbers of some steps are multiplied with, to compare raw values, too
_RAW_SCALES: Final = (1e-3, 3.0, 30.0, 1e3, math.nan)
_NEARBY: Final = 2**-22  # how much other values differ that a model may take for the same, in units of a value
# How far answers to raw values may differ, in units of the difference that such other values make
_ROUNDINGS: Final = 32
_WIDER: Final = 4  # how much wider a padded batch is than its longest sequence


def require_agreement(
    text: str, module: KerasModule, model_input: ModelInput
) -> tuple[KerasModule, ModelInput, tuple[str, ...]]:
    """Makes sure that the module answers as Keras does.

    Returns the module and the input with what the runs have shown of a mask by hand, and the names of the outputs, or
    their indices as texts.

    1. Learning runs of padded batches: in them the module learns which layers read the steps as they came in, and which
       masks are those of the lengths (`KnownLayers`). Their answers are not compared. If they show a mask by hand, all
       begins again with the value that it masks.
    2. Each sequence unbatched, with its length and without: `model(sequence)` is the answer that Lengthwise promises.
       Then sequences of raw values, which a mask, an activation or a clipping may treat otherwise.
    3. A batch padded as Keras expects it: the mask of the lengths must have the effect of the mask that Keras computes,
       leaks included. A model that raises at this width is not compared here.

    A difference is a ConfigurationError, and so are errors of Keras at nearly all lengths.
    """
    random = np.random.default_rng(0)
    with torch.no_grad(), one_torch_thread():
        sequences = _sequences_that_run(text, module, model_input, random)
        padded_batches = _padded_batches(sequences, model_input, random)
        # 1. Learning runs
        with replaced((module.known, "learning", True)):
            for batch, lengths in padded_batches:
                with contextlib.suppress(Exception):  # a model may raise at this width
                    module(batch, lengths, **model_input.beside(batch, lengths))
        if (with_mask := _with_mask_by_hand(module.known, model_input)) != model_input:
            module = KerasModule(module.model, with_mask).eval()
            return require_agreement(text, module, with_mask)
        # 2. Unbatched sequences
        for sequence in sequences:
            expected = _outputs_of(_answer_of_keras(module, sequence, model_input))
            input_text, own_length = f"a sequence of {sequence.shape[1]} steps", torch.tensor([sequence.shape[1]])
            for length in (own_length, None):
                answer = module(sequence, length, **model_input.beside(sequence, own_length))
                _require_equal(text, expected, _outputs_of(answer), input_text)
        for scale in _RAW_SCALES:
            _require_raw_agreement(text, module, model_input, _raw_steps(model_input, sequences[-1], scale, random))
        # 3. A padded batch
        batch, lengths = padded_batches[0]
        expected = []
        with contextlib.suppress(Exception):  # a model may raise at this width
            expected = _outputs_of(_answer_of_keras(module, batch, model_input, lengths))
        if expected:
            answer = module(batch, lengths, **model_input.beside(batch, lengths))
            _require_equal(text, expected, _outputs_of(answer), "a padded batch")
        # The names of the outputs
        answer = module(sequences[0], None, **model_input.beside(sequences[0], torch.tensor([sequences[0].shape[1]])))
        names = answer if isinstance(answer, Mapping) else range(len(_outputs_of(answer)))
        return module, model_input, tuple(map(str, names))


def _with_mask_by_hand(known: KnownLayers, model_input: ModelInput) -> ModelInput:
    """The input with the value that a mask by hand masks, if the learning runs showed one and no layer masks steps.

    It has a notice if the mask is of the steps that are not this value, and no others.
    """
    if model_input.mask_notices or not known.masked:
        return model_input
    number, (name, is_alone) = min(known.masked.items(), key=lambda item: not item[1][1])
    notice = mask_notice(f"{name} (a mask made by hand)", number, model_input.steps.kind)
    return dataclasses.replace(model_input, padding=number, mask_notices=(notice,) if is_alone else ())


def _require_raw_agreement(text: str, module: KerasModule, model_input: ModelInput, sequence: Tensor) -> None:
    """Makes sure that the module answers a sequence of raw values as Keras does, which answers it with numbers.

    Rounding may change such answers more: a difference is one that is far larger than what nearly equal values make.
    """
    is_large = (sequence.abs() > 1) & torch.tensor(model_input.steps.kind != "tokens")
    signs = torch.ones_like(sequence).cumsum(1) % 2 * 2 - 1
    nearby = torch.where(is_large, sequence * (1 + signs * _NEARBY), sequence)
    try:
        expected, other = (_outputs_of(_answer_of_keras(module, steps, model_input)) for steps in (sequence, nearby))
    except Exception:  # a model may raise for some values
        return
    if all(bool(output.isfinite().all()) for output in (*expected, *other)):
        rounding = max(map(_difference, expected, other), default=0.0)
        length = torch.tensor([sequence.shape[1]])
        actual = _outputs_of(module(sequence, length, **model_input.beside(sequence, length)))
        _require_equal(text, expected, actual, "a sequence of raw values", _SAME + _ROUNDINGS * rounding)


def _sequences_that_run(
    text: str, module: KerasModule, model_input: ModelInput, random: np.random.Generator
) -> list[Tensor]:
    """Draws at least two sequences `[1, length(, features)]` of different lengths that Keras answers.

    Raises:
        ConfigurationError: Fewer than two of `_LENGTHS` run, and fewer than two of `_LONGER`.
    """
    error: Exception | None = None
    for lengths in (_LENGTHS, _LONGER):
        running = []
        for length in lengths:
            sequence = _random_steps(model_input, (1, length), random)
            try:
                _answer_of_keras(module, sequence, model_input)
            except Exception as error_at_length:  # a model may raise any error at a length
                error = error_at_length
            else:
                running.append(sequence)
        if len(running) > 1:
            return running
    why = "" if error is None else first_line(error)
    is_list = model_input.steps.kind == "values" and model_input.features_axis
    advice = "" if is_list else "; if a step is a token id, pass --vocabulary N, the number of ids"
    raise ConfigurationError(
        f"{text} raises for sequences of {_LENGTHS[0]} to {_LONGER[-1]} steps: {why}{advice}"
    ) from error


def _answer_of_keras(module: KerasModule, steps: Tensor, model_input: ModelInput, lengths: Tensor | None = None) -> Any:
    """The answer of the model in Keras itself, which takes no lengths; `lengths` are by default the width."""
    lengths = torch.full(steps.shape[:1], steps.shape[1]) if lengths is None else lengths
    with on_device():
        return module.model(module.inputs(steps, model_input.beside(steps, lengths)), training=False)


def _random_steps(model_input: ModelInput, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Random steps `[rows, width(, features)]`, none with the value that Keras masks."""
    steps = model_input.steps
    if steps.kind == "tokens":
        return _unmasked(random.integers(0, steps.vocabulary or 1, shape), model_input)
    size = (*shape, steps.features or 1) if model_input.features_axis else shape
    return _unmasked(random.standard_normal(size).astype(np.float32), model_input)


def _raw_steps(model_input: ModelInput, sequence: Tensor, scale: float, random: np.random.Generator) -> Tensor:
    """Random steps in the shape of a sequence: a third of them as `_random_steps` draws, the others of two raw kinds.

    Of values these are such values times `scale`, and zeros and ones; of token ids, the ids 1 to 3, and the last three
    of the vocabulary. No step has the value that Keras masks.
    """
    ordinary = _random_steps(model_input, tuple(sequence.shape[:2]), random).numpy()
    kinds = random.integers(3, size=(*sequence.shape[:2], *(1 for _ in sequence.shape[2:])))
    if model_input.steps.kind == "tokens":
        last = (model_input.steps.vocabulary or 1) - 1
        ids = np.choose(kinds, [ordinary, ordinary % 3 + 1, last - ordinary % 3])
        return _unmasked(ids.clip(0, last), model_input)
    raw = np.choose(kinds, [ordinary, ordinary * scale, ordinary > 0]).astype(np.float32)
    is_masked = raw == model_input.padding
    if model_input.features_axis:
        is_masked = is_masked.all(axis=-1, keepdims=True)
    return torch.from_numpy(np.where(is_masked, ordinary, raw))


def _unmasked(values: NDArray[Any], model_input: ModelInput) -> Tensor:
    """The values or ids with the next one instead of each that Keras masks; of the last id, with the first."""
    others = (values + 1) % (model_input.steps.vocabulary or 1) if model_input.steps.kind == "tokens" else values + 1
    return torch.from_numpy(np.where(values == model_input.padding, others, values))


def _padded_batches(
    sequences: Sequence[Tensor], model_input: ModelInput, random: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Three batches of random steps, each with its lengths `[rows]`, which are those of the sequences.

    The padding of the first has the value that Keras masks; that of the other two is random. The third has the lengths
    in reverse order.
    """
    lengths_of_sequences = torch.tensor([sequence.shape[1] for sequence in sequences])
    width = int(lengths_of_sequences.max()) + _WIDER
    batches = [
        (_random_steps(model_input, (len(lengths), width), random), lengths)
        for lengths in (lengths_of_sequences, lengths_of_sequences, lengths_of_sequences.flip(0))
    ]
    for row, length in enumerate(lengths_of_sequences.tolist()):
        batches[0][0][row, length:] = model_input.padding
    return batches


def _outputs_of(answer: Any) -> list[Tensor]:
    """The outputs in an answer of Keras or of the module; empty if it is neither a tensor, a list nor a dictionary."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, Mapping):  # the module's answer: Keras returns the same outputs as a list
        answer = list(answer.values())
    return list(answer) if isinstance(answer, tuple | list) else []


def _difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference of two outputs, in units of max(1, |expected|); infinite if they have other shapes.

    Where both are not finite, `check` reports it: only the other values are compared here.
    """
    if actual.shape != expected.shape:
        return math.inf
    if torch.equal(actual.isfinite(), expected.isfinite()):
        actual, expected = (output.nan_to_num(0.0, 0.0, 0.0) for output in (actual, expected))
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


def _require_equal(
    text: str, expected: Sequence[Tensor], actual: Sequence[Tensor], input_text: str, tolerance: float = _SAME
) -> None:
    """Makes sure that the outputs of the module are equal to those of Keras, within rounding.

    Args:
        text: The target, for messages.
        expected: The outputs of Keras.
        actual: The outputs of the module.
        input_text: The input of both, for messages.
        tolerance: The largest difference of equal outputs.

    Raises:
        ConfigurationError: An output differs.
    """
    for expected_output, actual_output in zip(expected, actual, strict=True):
        if not isinstance(expected_output, Tensor) or not expected_output.is_floating_point():
            continue
        difference = _difference(expected_output, actual_output)
        if not difference <= tolerance:  # NaN differs, too
            difference_text = "have another shape" if math.isinf(difference) else f"differ by {difference:.2g}"
            reason = "an error of Lengthwise, or of a layer that is not the same twice"
            advice = "export it with model.export and give the ONNX file"
            raise ConfigurationError(
                f"{text}: the answers to {input_text} {difference_text} from those of Keras, {reason}: {advice}"
            )
