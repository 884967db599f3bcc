"""One case of verification, as it stands in `verification.json`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Varied = Literal[
    "reference", "company", "width", "padding", "neighbours", "order", "threads", "attention", "at padding", "missing"
]

_NOT_INVARIANCE: tuple[Varied, ...] = ("reference", "attention", "at padding", "missing")
"""The cases that do not compare a batched sequence with the same sequence unbatched."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case: what was varied, and how much the answers changed."""

    name: str  # a description for people
    varied: Varied  # "company" (a name in published files): a sequence batched, against the same unbatched
    # The largest absolute difference of a logit or an attention weight at a valid step; infinite if an answer is not
    # finite. For `missing`, which only the exporter measures: the share of an answer's change that is left beside a
    # missing value, where the answer must change.
    difference: float
    # The largest of the rows' differences, each divided by max(1, the row's largest |logit|); without the rows that
    # count for `amplified`
    relative: float
    bits: bool  # whether all bits are equal
    provider: str  # the provider that ran it
    extreme: bool = False  # whether the padding held values of `EXTREME_PADDING`, with which the service never pads
    # Where the model is ill-conditioned, so that rounding explains more than `ROUNDING`: how much a few ulps of the
    # values of such a sequence move its answer, relative as above. 0 if there is none.
    amplified: float = 0.0

    @property
    def is_invariance(self) -> bool:
        """Whether it compares a batched sequence with the same sequence unbatched."""
        return self.varied not in _NOT_INVARIANCE

    def as_json(self) -> dict[str, Any]:
        """The case as in `verification.json`; an infinite difference is null there."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
