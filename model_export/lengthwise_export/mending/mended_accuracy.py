"""The accuracy of a model before and after its mend: a model that was trained on padded batches may use the padding.

The original is run in three ways: with sequences padded to the longest of a batch, or to the longest of all data, as
its users may run it today; and with each sequence alone. The mended graph is run as it will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import Manifest, PaddedBatch, RowInput, answers, pad
from lengthwise.exporter_api.verification import Outputs, Session
from lengthwise_export.checking.recording import Subject
from lengthwise_export.errors import RunError, VerificationError
from lengthwise_export.exporting.accuracy import (
    Record,
    accepted_records,
    expected_labels,
    hits_of,
    predicted_labels,
    row_of,
)

BATCH_ROWS: Final = 32  # rows of a batch, in the order of the data


@dataclass(frozen=True, slots=True)
class RunAccuracy:
    """The accuracy of the original in one run."""

    accuracy: float | None  # The share of right answers; None if the original raises, or an answer is not finite
    # The number of sequences (steps of a per-step model) to which the mended graph gives other labels; None as above
    moved: int | None


@dataclass(frozen=True, slots=True)
class MendAccuracy:
    """The accuracy on labelled sequences before and after a mend."""

    sequences: int  # The number of labelled sequences
    answers: int  # The number of labels that may change: sequences, or steps of a per-step model
    batches: RunAccuracy  # The original in batches of 32 in the order of the data, each padded to its longest sequence
    fixed: RunAccuracy  # The original with every sequence padded to the longest of the data
    alone: RunAccuracy  # The original with each sequence alone and unpadded
    mended: float  # The accuracy of the mended graph

    @property
    def _runs(self) -> tuple[tuple[str, str, RunAccuracy], ...]:
        """For each run of the original: its name in JSON, its description, and its figures."""
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
            **{name: run.accuracy for name, _, run in self._runs},
            "mended": self.mended,
            "labels_moved": {f"from_{name}": run.moved for name, _, run in self._runs},
        }

    def __str__(self) -> str:
        """The accuracy of the mended graph, then that of the original in each way to run it.

        Such as `accuracy 0.9100 mended, 0.8700 alone (from there 12 of 100 labels move), ...`: 12 of the 100 labels
        that the mended graph gives differ from those of the original alone.
        """
        parts = [f"{self.mended:.4f} mended"]
        for _, description, run in self._runs:
            if run.accuracy is None:
                parts.append(f"the original raises {description}")
            else:
                moved = f"from there {run.moved} of {self.answers} labels move"
                parts.append(f"{run.accuracy:.4f} {description} ({moved})")
        return f"accuracy {', '.join(parts)}"


def measure(original: Subject, session: Session, manifest: Manifest, records: Sequence[Record]) -> MendAccuracy | None:
    """Compares a mended graph's accuracy with its original's on the records that have labels.

    Args:
        original: The original.
        session: Runs the mended graph.
        manifest: The manifest of the mended graph.
        records: The data; records without a label are skipped.

    Returns:
        The accuracy; None if no record has a label.

    Raises:
        VerificationError: The mended graph's answer to a sequence is not finite.
    """
    accepted, _, _ = accepted_records(records, manifest)
    if not accepted:
        return None
    sequences = [row for record in accepted if not isinstance(row := row_of(record, manifest), str)]
    expected = [expected_labels(record, manifest) for record in accepted]
    after = _labels(session.run, sequences, BATCH_ROWS, manifest, multiple=manifest.width_multiple)
    if after is None:
        raise VerificationError("the mended graph's answer to a sequence of the data is not finite")

    def measured(rows: int, width: int | None = None) -> RunAccuracy:
        """The figures of the original in batches of `rows` rows, compared with the mended graph.

        `width` is that of each batch; None for that of its longest sequence. Both figures are None if the original
        raises for a batch, or an answer is not finite.
        """
        before = _labels(lambda batch: Outputs(original.answer(batch).logits), sequences, rows, manifest, width=width)
        if before is None:
            return RunAccuracy(None, None)
        # How many sequences, or steps of a per-step model, have another label for at least one class
        moved = sum(int((left != right).any(axis=1).sum()) for left, right in zip(before, after, strict=True))
        return RunAccuracy(_accuracy(expected, before, manifest), moved)

    return MendAccuracy(
        sequences=len(accepted),
        answers=sum(len(labels) for labels in expected),
        batches=measured(BATCH_ROWS),
        fixed=measured(BATCH_ROWS, max(map(len, sequences))),
        alone=measured(1),
        mended=_accuracy(expected, after, manifest),
    )


def _labels(
    run: Callable[[PaddedBatch], Outputs],
    sequences: Sequence[RowInput],
    rows: int,
    manifest: Manifest,
    *,
    width: int | None = None,
    multiple: int = 1,
) -> list[NDArray[np.bool_]] | None:
    """The labels that a model predicts, run in batches in the order of the sequences.

    Args:
        run: Runs the model.
        sequences: The sequences.
        rows: The rows of a batch.
        manifest: The manifest of the model.
        width: The width of every batch; None for that of its longest sequence.
        multiple: The number that a width is rounded up to a multiple of.

    Returns:
        For each sequence its labels, `[1, classes]` or `[steps, classes]`: true at each class that is a label. None if
        the model raises or an answer is not finite.
    """
    predicted = []
    for first in range(0, len(sequences), rows):
        batch = pad(sequences[first : first + rows], width=width, multiple=multiple)
        try:
            scored = answers.score(run(batch), batch.lengths, manifest)
        except RunError:
            return None
        predicted += [predicted_labels(answer, manifest) for answer in scored if answer is not None]
    return predicted if len(predicted) == len(sequences) else None


def _accuracy(
    expected: Sequence[NDArray[np.bool_]], predicted: Sequence[NDArray[np.bool_]], manifest: Manifest
) -> float:
    """The share of right answers: one for each sequence, for each step, or for each class of a multi-label model.

    `expected` and `predicted` have the labels of each sequence.
    """
    hits = [hits_of(wanted, labels, manifest) for wanted, labels in zip(expected, predicted, strict=True)]
    return float(sum(hit.sum() for hit in hits) / sum(hit.size for hit in hits))
