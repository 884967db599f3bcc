"""What stands beside the sequence of each row in the batches of a check: static values, and further sequences.

A check draws and changes one sequence for each row. What the model takes beside it is derived from that sequence, by a
fixed function of its own steps: so the same sequence has the same values beside it in every batch, and another sequence
has others. The lengths of a further sequence differ from those of the first, and its padding holds what the padding of
the first holds. A batch of the service or of a verification has values of its own there, and keeps them.

    sequence   [0.3, -1.2], [0.8, 0.1], [0, 0]    ->   static       0.3, -1.2, -0.15, ...    of the first step
                                                       title        the same steps, in another order, 6 of them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lengthwise.exporter_api.contract import LENGTHS, STATIC, PaddedBatch, SequenceInput, StaticInput, StepInput, Steps
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.options import TargetOptions

__all__ = [
    "LENGTHS",
    "MOST_SEQUENCES",
    "STATIC",
    "SequenceInput",
    "StaticInput",
    "StepInput",
    "alone",
    "completed",
    "is_static_name",
    "names_beside",
    "paired",
    "safe_name",
    "static_input",
    "with_other_static",
]

MOST_SEQUENCES: Final = 4
"""A model may take up to so many sequences."""

_STATIC_NAMES: Final = re.compile(r"static|demograph|tabular|covariate|metadata|^meta$|^context$|^age$|^sex$|^gender$")
"""Parts of names of arguments and inputs that hold static values."""

_WORDS_OF_ENDS: Final = re.compile(r"seq(uence)?|lengths?|lens?|attention|key|padding|pad|masks?|_")
"""Words in a name of lengths or a mask that do not say whose they are."""

_NO_SIGN_OF_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")

_SHORT: Final = 8  # a shorter sequence has a longer one beside it, any other a shorter one


def is_static_name(name: str) -> bool:
    """Whether an argument or an input holds static values by its name."""
    return _STATIC_NAMES.search(name.lower()) is not None


def safe_name(name: str) -> str:
    """A name for a sequence or a value: that of its input, with signs that every name may have."""
    return _NO_SIGN_OF_NAMES.sub("_", name).lstrip("._-") or "input"


def paired(sequences: Sequence[str], ends: Sequence[str]) -> dict[str, str]:
    """The lengths or the mask of each sequence, by what their names share, else in their order; all are names.

    A sequence for which none is left is left out.
    """
    end_of: dict[str, str] = {}
    for end in ends:
        owner = _WORDS_OF_ENDS.sub("", end.lower())
        shorts = {name: name.lower().replace("_", "") for name in sequences if name not in end_of}
        owned = [name for name, short in shorts.items() if owner and (short.endswith(owner) or short.startswith(owner))]
        if owned:
            end_of[owned[0]] = end
    others = [end for end in ends if end not in end_of.values()]
    end_of |= zip((name for name in sequences if name not in end_of), others, strict=False)
    return {name: end_of[name] for name in sequences if name in end_of}


def static_input(counts: Mapping[str, int], sizes: Sequence[int | None], options: TargetOptions) -> StaticInput:
    """What the manifest says of static values.

    Args:
        counts: The number of values of each argument or input that holds some, by its name.
        sizes: For each value, the number of categories that it may be; None for a number.
        options: The names and the categories that the user has for them.

    Raises:
        ConfigurationError: These do not fit the values.
    """
    names = options.static_names
    if names is None and {*counts.values()} == {1}:
        names = tuple(counts)
    value_names = names or tuple(map(str, range(len(sizes))))
    categories: dict[str, Sequence[str]] = {
        name: tuple(map(str, range(size))) for name, size in zip(value_names, sizes, strict=False) if size is not None
    }
    categories |= options.static_categories or {}
    try:
        return StaticInput(count=len(sizes), names=names, categories=categories)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(
            f"--static-names, --static-categories: {why}; the model takes {len(sizes)} static values"
        ) from error


def names_beside(steps: StepInput) -> tuple[str, ...]:
    """The names of the graph's inputs beside the steps and the lengths of the first sequence, in order."""
    names = [STATIC] if steps.static is not None else []
    for sequence in steps.sequences[1:]:
        names += [sequence.name, LENGTHS.format(sequence.name)]
    return tuple(names)


def completed(batch: PaddedBatch, steps: StepInput) -> PaddedBatch:
    """The batch with what a model takes beside the steps; a batch that has it already is returned unchanged."""
    if batch.beside or not names_beside(steps):
        return batch
    beside: dict[str, NDArray[Any]] = {}
    if steps.static is not None:
        beside[STATIC] = _static_values(batch.steps[:, 0], steps.static)
    for number, sequence in enumerate(steps.sequences[1:], 1):
        beside |= _further_sequence(batch, sequence, number)
    return replace(batch, beside=beside)


def alone(batch: PaddedBatch, row: int) -> PaddedBatch:
    """One row of a batch without padding, with what stands beside it."""
    length, rows = int(batch.lengths[row]), slice(row, row + 1)
    beside = {name: values[rows] for name, values in batch.beside.items()}
    for name in beside:
        if (lengths := beside.get(LENGTHS.format(name))) is not None:
            beside[name] = beside[name][:, : int(lengths[0])]
    return PaddedBatch(batch.steps[rows, :length], batch.lengths[rows], beside=beside)


def with_other_static(batch: PaddedBatch, steps: StepInput) -> PaddedBatch:
    """The batch with the static values of each row's next row; everything else stays."""
    batch = completed(batch, steps)
    return replace(batch, beside={**batch.beside, STATIC: np.roll(batch.beside[STATIC], 1, axis=0)})


def _static_values(first: Steps, static: StaticInput) -> NDArray[np.float32]:
    """The static values `[rows, count]` of rows with these first steps, `[rows, features]` or `[rows]`."""
    columns = np.arange(static.count)
    numbers = np.nan_to_num(_numbers(first))
    values = numbers[:, columns % numbers.shape[1]] * (-0.5) ** (columns // numbers.shape[1])
    for name, categories in static.categories.items():
        column = static.value_names.index(name)
        values[:, column] = (_ids(first) + column) % len(categories)
    return np.asarray(values, dtype=np.float32)


def _further_sequence(batch: PaddedBatch, sequence: SequenceInput, number: int) -> dict[str, NDArray[Any]]:
    """The steps and the lengths of a further sequence for each row, by the names of the graph's inputs.

    Its steps are those of the first sequence from its step `number` on, around the end, and so is its padding.
    """
    own = batch.lengths.astype(np.int64)
    lengths = np.where(own < _SHORT, _SHORT + number - own, own - own // 3)
    width = int(lengths.max() + batch.width - own.max())
    positions, padded = np.arange(width), np.maximum(batch.width - own, 1)[:, None]
    in_padding = np.minimum(own[:, None] + (positions - lengths[:, None]) % padded, batch.width - 1)
    indices = np.where(positions < lengths[:, None], (positions + number) % own[:, None], in_padding)
    steps = batch.steps[np.arange(batch.rows)[:, None], indices]
    if sequence.vocabulary is not None:
        values: NDArray[Any] = (_ids(steps) + number) % sequence.vocabulary
    else:
        numbers = _numbers(steps)
        values = numbers[..., np.arange(sequence.features or 1) % numbers.shape[-1]]
    return {sequence.name: values, LENGTHS.format(sequence.name): lengths.astype(np.int32)}


def _numbers(steps: Steps) -> NDArray[np.float32]:
    """The values of steps `[..., features]`; of token ids `[..., 1]` numbers around 0."""
    numbers = (steps[..., None] * 7 % 17 - 8) / 8 if steps.dtype == np.int64 else steps
    return np.asarray(numbers, dtype=np.float32)


def _ids(steps: Steps) -> NDArray[np.int64]:
    """A whole number for each step: of token ids three times the id, of values which of them are positive, as bits.

    So it stays the same if the values are rounded otherwise.
    """
    ids = steps * 3 if steps.dtype == np.int64 else (steps > 0) @ (1 << np.arange(steps.shape[-1]) % 8)
    return np.asarray(ids, dtype=np.int64)
