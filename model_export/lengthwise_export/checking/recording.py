"""What a recorder hands to a check: every operator of one run in order, with its outputs, where they reach the answer.

A model of any source is a `Subject`: it answers a batch, and it records how. What finds leaks knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.tracing.source_lines import CodeLocation


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of one run.

    Attributes:
        operator: Its name for people: a module path and a function, a layer, a node.
        kind: What it computes: a function of torch, an ONNX operator type; the key to the table of causes.
        location: The line of the user's code that called it; None where the source has no lines.
        inputs: The keys of the values that went in.
        gives: The keys of those of its outputs that reach the answer.
        outputs: The same outputs with their keys, as they were when it had run; empty where nothing is compared.
    """

    operator: str
    kind: str
    location: CodeLocation | None
    inputs: frozenset[int] = frozenset()
    gives: frozenset[int] = frozenset()
    outputs: tuple[tuple[int, NDArray[Any]], ...] = ()

    @property
    def identity(self) -> tuple[str, str, CodeLocation | None]:
        """What makes two operations of two runs the same one."""
        return self.operator, self.kind, self.location


@dataclass(frozen=True, slots=True)
class Recording:
    """One run.

    Attributes:
        operations: What reached the answer, in the order of execution.
        answers: The keys of the answer's own values.
    """

    operations: Sequence[Operation]
    answers: frozenset[int]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a model answers for a batch, rows first.

    Attributes:
        logits: `[rows, classes]` or `[rows, width, classes]`.
        attention: `[rows, width]`, where the model names one.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None


class Subject(Protocol):
    """A model under check, whatever it was made with."""

    @property
    def steps(self) -> StepInput:
        """What one step is."""

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of its weights: what the number of rows and steps must not be mistaken for."""

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Answers a batch.

        Raises:
            RunError: The model raises; says what and where.
        """

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Answers a batch as the framework does when nobody looks, with whatever fast paths it has."""

    def answer_left(self, batch: PaddedBatch) -> ModelOutput:
        """Answers a batch whose sequences stand at the end of their rows; what the model is told is the same."""

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch, and gives every operator that reached the answer."""

    def alternatives(self) -> Iterator[AlternativeReading]:
        """The same model, called in the other ways that may be meant."""


@dataclass(frozen=True, slots=True)
class AlternativeReading:
    """A model, called in another way.

    Attributes:
        subject: It.
        runs: When this way is right, and what to say then: the end of a sentence.
        is_option: Whether an option says it.
    """

    subject: Subject
    runs: str
    is_option: bool = True
