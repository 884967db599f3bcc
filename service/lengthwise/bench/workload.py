"""Makes the sequences of a load: their lengths, their values, and the moments at which requests are due.

The same seed makes the same load.

| form | lengths |
|---|---|
| `fixed:20` | all 20 |
| `uniform:1,100` | each from 1 to 100 equally often |
| `lognormal:50,0.7` | median 50, standard deviation 0.7 of the logarithm |
| `file:PATH` | drawn from a file with a length a line |

A function that draws lengths gets the text behind the colon (`arguments`), and returns `[count]` lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.datasets.dataset import StepKind
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps

Lengths = NDArray[np.int64]
Sent = Steps | dict[str, Any]
"""A sequence in a body: its steps, or an object with what stands beside them."""


@dataclass(frozen=True, slots=True)
class Input:
    """What one step is: `size` numbers (`values`), or one token id below `size` (`tokens`)."""

    kind: StepKind
    size: int


def draw_lengths(distribution: str, count: int, max_length: int, random: np.random.Generator) -> Lengths:
    """`[count]` lengths from a distribution in the form of the module's table, clipped to 1 up to `max_length`.

    Raises:
        ConfigurationError: The distribution is unknown, or cannot be read.
    """
    kind, _, arguments = distribution.partition(":")
    if kind not in _DISTRIBUTIONS:
        raise ConfigurationError(f"unknown distribution {kind!r} of lengths; there are: {', '.join(_DISTRIBUTIONS)}")
    form, draw = _DISTRIBUTIONS[kind]
    try:
        lengths = draw(arguments, count, random)
    except ValueError as error:
        raise ConfigurationError(f"{distribution!r} is not of the form {form}: {error}") from error
    return np.asarray(np.clip(lengths, 1, max_length).astype(np.int64))


def make_sequences(lengths: Lengths, step: Input, random: np.random.Generator) -> list[Steps]:
    """Random sequences: `[length, features]` of normal numbers with four decimals, or `[length]` of token ids."""
    if step.kind == "tokens":
        return [random.integers(0, step.size, size=length) for length in lengths.tolist()]
    return [random.standard_normal((length, step.size)).round(4).astype(np.float32) for length in lengths.tolist()]


def sent(steps: Steps, static: Any = None, inputs: Mapping[str, Any] | None = None) -> Sent:
    """A sequence as it is sent: its steps; or an object, with its static values, or with several sequences by name."""
    more = {name: value for name, value in {"static": static, "inputs": inputs}.items() if value is not None}
    return {**({} if inputs else {"steps": steps}), **more} if more else steps


def json_body(sequences: Sequence[Sent], **fields: str | int | float) -> bytes:
    """The body of `POST /predict` with these sequences, and with further fields such as `model`."""
    # As float32 they keep their few digits; as doubles each would be three times as long on the wire.
    return orjson.dumps({"sequences": list(sequences), **fields}, option=orjson.OPT_SERIALIZE_NUMPY)


def arrival_moments(rate: float, seconds: float, random: np.random.Generator) -> NDArray[np.float64]:
    """When requests are due: `[requests]` seconds from 0 up to `seconds`, ascending, as a Poisson process."""
    # A Poisson process is a Poisson number of independent uniform moments.
    return np.sort(random.uniform(0.0, seconds, size=random.poisson(rate * seconds)))


def _fixed(arguments: str, count: int, _random: np.random.Generator) -> NDArray[np.float64]:
    """`[count]` equal lengths."""
    (length,) = _numbers(arguments, 1)
    return np.full(count, length)


def _uniform(arguments: str, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """`[count]` lengths, each from the shortest to the longest (both included) equally often.

    Raises:
        ValueError: The longest is below the shortest.
    """
    low, high = _numbers(arguments, 2)
    if high < low:
        raise ValueError(f"{high:g} is below {low:g}")
    return random.integers(int(low), int(high), size=count, endpoint=True).astype(np.float64)


def _lognormal(arguments: str, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    median, sigma = _numbers(arguments, 2)
    return np.round(random.lognormal(math.log(median), sigma, size=count))


def _from_file(arguments: str, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """`[count]` lengths, drawn with replacement from the lines of a file.

    Raises:
        ConfigurationError: The file cannot be read.
        ValueError: The file is empty, or a line is not a whole number of 1 or more.
    """
    try:
        lines = [line for line in Path(arguments).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigurationError(f"{arguments} cannot be read: {error.strerror}") from error
    if not lines:
        raise ValueError(f"{arguments} is empty")
    for line in lines:
        if not line.strip().isdigit() or int(line) < 1:
            raise ValueError(f"{line[:40]!r} is no length of 1 or more")
    return random.choice([int(line) for line in lines], size=count).astype(np.float64)


def _numbers(arguments: str, count: int) -> list[float]:
    """Parses the numbers in the arguments of a distribution.

    Raises:
        ValueError: There are more or fewer than `count`, or one is not above 0.
    """
    numbers = [float(part) for part in arguments.split(",")]
    if len(numbers) != count:
        raise ValueError(f"{count} numbers belong there, not {len(numbers)}")
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("every number is above 0")
    return numbers


_Draw = Callable[[str, int, np.random.Generator], NDArray[np.float64]]
_DISTRIBUTIONS: dict[str, tuple[str, _Draw]] = {
    "fixed": ("fixed:LENGTH", _fixed),
    "uniform": ("uniform:SHORTEST,LONGEST", _uniform),
    "lognormal": ("lognormal:MEDIAN,SIGMA", _lognormal),
    "file": ("file:PATH", _from_file),
}
