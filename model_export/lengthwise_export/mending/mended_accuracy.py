"""The accuracy of a model before and after its mend: a model that was trained on padded batches may have learnt that.

The original is run as its users run it today, padded, and alone; the mended graph as it will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets.dataset import Record
from lengthwise.errors import VerificationError
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Outputs, Session
from lengthwise_export.checking.recording import Subject
from lengthwise_export.errors import RunError
from lengthwise_export.exporting.accuracy import accepted_records, expected_labels, hits_of, predicted_labels

BATCH_ROWS: Final = 32  # rows of a batch, in the order of the data


@dataclass(frozen=True, slots=True)
class Way:
    """The accuracy of one way to run a model."""

    accuracy: float | None  # The share of right answers; None if the model raises when it is run in this way
    moved: int | None  # The number of sequences (steps of a per-step model) whose labels the mended graph changes


@dataclass(frozen=True, slots=True)
class MendAccuracy:
    """The accuracy on labelled sequences before and after a mend."""

    sequences: int
    answers: int  # The number of labels that may move: sequences, or steps of a per-step model
    batches: Way  # The original in batches of 32 in the order of the data, each padded to its longest sequence
    fixed: Way  # The original with every sequence padded to the longest of the data
    alone: Way  # The original with each sequence alone and unpadded
    mended: float

    @property
    def _ways(self) -> tuple[tuple[str, str, Way], ...]:
        """The ways to run the original: each in JSON, in words, and its figures."""
        return (
            ("padded_to_the_longest_of_a_batch", f"padded to the longest of {BATCH_ROWS}", self.batches),
            ("padded_to_a_fixed_length", "padded to a fixed length", self.fixed),
            ("alone", "alone", self.alone),
        )

    def as_json(self) -> dict[str, Any]:
        """The figures for `export --json`."""
        return {
            "sequences": self.sequences,
            "answers": self.answers,
            **{name: way.accuracy for name, _, way in self._ways},
            "mended": self.mended,
            "labels_moved": {f"from_{name}": way.moved for name, _, way in self._ways},
        }

    def __str__(self) -> str:
        parts = [f"{self.mended:.4f} mended"]
        for _, name, way in self._ways:
            moved = f"{name} (from there {way.moved} of {self.answers} labels move)"
            parts.append(f"the original raises {name}" if way.accuracy is None else f"{way.accuracy:.4f} {moved}")
        return f"accuracy {', '.join(parts)}"


def measure(original: Subject, session: Session, manifest: Manifest, records: Sequence[Record]) -> MendAccuracy | None:
    """Compares a mended graph's accuracy with its original's; None if no record has a label. Others are skipped.

    Raises:
        VerificationError: The mended graph's answer to a sequence is not finite.
    """
    accepted, _, _ = accepted_records(records, manifest)
    if not accepted:
        return None
    steps = [record.steps for record in accepted]
    expected = [expected_labels(record, manifest) for record in accepted]
    after = _labels(session.run, steps, BATCH_ROWS, manifest, multiple=manifest.width_multiple)
    if after is None:
        raise VerificationError("the mended graph's answer to a sequence of the data is not finite")

    def way(rows: int, width: int | None = None) -> Way:
        before = _labels(lambda batch: Outputs(original.answer(batch).logits), steps, rows, manifest, width=width)
        if before is None:
            return Way(None, None)
        moved = sum(int((one != other).any(axis=1).sum()) for one, other in zip(before, after, strict=True))
        return Way(_share_right(expected, before, manifest), moved)

    return MendAccuracy(
        sequences=len(accepted),
        answers=sum(len(each) for each in expected),
        batches=way(BATCH_ROWS),
        fixed=way(BATCH_ROWS, max(map(len, steps))),
        alone=way(1),
        mended=_share_right(expected, after, manifest),
    )


def _labels(
    run: Callable[[PaddedBatch], Outputs],
    sequences: Sequence[Steps],
    rows: int,
    manifest: Manifest,
    *,
    width: int | None = None,
    multiple: int = 1,
) -> list[NDArray[np.bool_]] | None:
    """The labels of each sequence, in batches in order; None if the model raises or an answer is not finite."""
    answered = []
    for first in range(0, len(sequences), rows):
        batch = pad(sequences[first : first + rows], width=width, multiple=multiple)
        try:
            scored = answers.score(run(batch), batch.lengths, manifest)
        except RunError:
            return None
        for answer in scored:
            if answer is None:
                return None
            answered.append(predicted_labels(answer, manifest))
    return answered


def _share_right(
    expected: Sequence[NDArray[np.bool_]], answered: Sequence[NDArray[np.bool_]], manifest: Manifest
) -> float:
    """The share of labels (of steps, for a per-step model) that are right."""
    hits = [hits_of(one, other, manifest) for one, other in zip(expected, answered, strict=True)]
    return float(sum(each.sum() for each in hits) / sum(each.size for each in hits))
