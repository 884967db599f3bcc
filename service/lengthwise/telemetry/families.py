"""A metric family as plain data, for packages that have figures of their own and need not know Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge"]


@dataclass(slots=True)
class Family:
    """One metric with its samples.

    Attributes:
        kind: A counter's name gets the end `_total`.
        name: Without the prefix `lengthwise_`.
        help: A sentence.
        labels: The names of its labels.
        samples: The values of the labels, and the number.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float]] = ()
