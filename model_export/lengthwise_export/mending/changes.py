"""What a mend changed: one record for each operator that got a mask, lengths, or indexes of its own row."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from lengthwise_export.tracing.source_lines import CodeLocation


@dataclass(frozen=True, slots=True)
class MendedOperator:
    """One operator that a mend changed.

    Attributes:
        operator: The name of the node.
        kind: Its operator type, such as `Conv`.
        location: The line of the user's code that called it; None if unknown.
        cause: How padding reached its output.
        before: The lines of graph text before.
        after: The lines of graph text in their place.
    """

    operator: str
    kind: str
    location: CodeLocation | None
    cause: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mended:
    """A mended graph.

    Attributes:
        graph: The graph; it takes the steps and the lengths.
        changes: The operators that were changed, in the order of execution.
        min_length: The shortest sequence that the original accepts, derived from its kernels and slices.
        max_length: The longest, derived from its tables of positions; or more than was asked for.
        hiding: The numbers with which the original hides a step, if all its values are that one; the mended graph
            takes such a step for data.
        counted: The original with such steps taken for data; None if it hides none.
    """

    graph: onnx.ModelProto
    changes: tuple[MendedOperator, ...]
    min_length: int
    max_length: int
    hiding: tuple[float, ...] = ()
    counted: onnx.ModelProto | None = None
