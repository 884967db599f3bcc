"""What a mend changed: one record for each operator that got a mask, lengths, or indexes of its own row."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from lengthwise_export.tracing.source_lines import CodeLocation


@dataclass(frozen=True, slots=True)
class MendedOperator:
    """One operator that a mend changed."""

    operator: str
    kind: str
    location: CodeLocation | None
    cause: str  # How padding reached its output
    before: tuple[str, ...]
    after: tuple[str, ...]  # The lines of graph text in their place


@dataclass(frozen=True, slots=True)
class Mended:
    """A mended graph."""

    graph: onnx.ModelProto  # The graph; it takes the steps and the lengths
    changes: tuple[MendedOperator, ...]
    min_length: int  # The shortest sequence that the original accepts, derived from its kernels and slices
    max_length: int  # The longest, derived from its tables of positions; or more than was asked for
    # The numbers with which the original hides a step, if all its values are that one; the mended graph takes such a
    # step for data
    hiding: tuple[float, ...] = ()
    counted: onnx.ModelProto | None = None  # The original with such steps taken for data; None if it hides none
