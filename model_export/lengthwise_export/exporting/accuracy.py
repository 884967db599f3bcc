"""Measures the accuracy of a graph on labelled sequences, and detects labels in a wrong order.

The verification compares a graph with the model that it was built from, and both output numbers. Which label a number
means stands only in the manifest, so only labelled data (`export --data`) can show that this order is wrong.

An *answer* here is what is right or wrong: the label of a sequence; for a multi-label model yes or no for one label of
a sequence; for a per-step model the label of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.exporter_api.contract import Manifest, RowInput, answers, pad
from lengthwise.exporter_api.data import InputSequence, Record, arrays, label_mismatch, unknown_labels
from lengthwise.exporter_api.verification import Session
from lengthwise_export.architecture.trained import UNTRAINED
from lengthwise_export.errors import IS_TRANSPOSED, ConfigurationError, VerificationError, first_of

__all__ = [
    "DataAccuracy",
    "LabelChanges",
    "Record",
    "accepted_records",
    "changed_labels",
    "expected_labels",
    "hits_of",
    "measure",
    "predicted_labels",
    "row_of",
]

_ROWS: Final = 32  # rows of a batch
_MIN_DEVIATIONS: Final = 4.0  # another order of the labels is significant from this many standard deviations
_MAX_ACCURACY_DROP: Final = 0.1  # Allowed below that of training, beside three standard deviations of both samples


@dataclass(frozen=True, slots=True)
class DataAccuracy:
    """The accuracy of a graph on labelled sequences."""

    labels: tuple[str, ...]
    # The number of compared answers: one for each sequence; for a multi-label model one for each label of a sequence;
    # for a per-step model one for each step
    answers: int
    right: int  # The number of correct answers
    table: NDArray[np.int64]  # `[classes][classes]`: counts by label in the data (row) and answered label (column)
    counts: NDArray[np.int64]  # `[classes]`: how often each label is in the data
    left_out: int = 0  # The number of sequences that the model does not accept
    why: str = ""  # The reason for the first of them

    @property
    def accuracy(self) -> float:
        """The share of right answers; 0 without any answer."""
        return self.right / max(self.answers, 1)

    @property
    def absent(self) -> list[str]:
        """The labels that do not occur in the data: their order could not be checked."""
        return [label for label, count in zip(self.labels, self.counts, strict=True) if not count]

    def as_json(self) -> dict[str, Any]:
        """The figures for `verification.json` and `export --json`."""
        return {
            "answers": self.answers,
            "right": self.right,
            "accuracy": self.accuracy,
            "classes": [
                {"label": label, "in_data": int(count), "found": int(count_right)}
                for label, count, count_right in zip(self.labels, self.counts, self.table.diagonal(), strict=True)
            ],
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        """A line such as `accuracy 0.9875: 79 of 80 predictions are correct`."""
        return f"accuracy {self.accuracy:.4f}: {self.right} of {self.answers} predictions are correct"

    def _drop_by_chance(self, expected: float, expected_answers: int | None) -> float:
        """The drop below the training accuracy that may be chance: three standard deviations, and a margin.

        `expected` is the accuracy in training, and `expected_answers` the number of answers that it was measured with;
        None if that is unknown.
        """
        probability, variance_factor = expected, 1 / self.answers
        if expected_answers is not None:  # Laplace's rule of succession: few answers, all right, do not mean certainty
            probability = (expected * expected_answers + 1) / (expected_answers + 2)
            variance_factor += 1 / expected_answers
        return 3 * math.sqrt(probability * (1 - probability) * variance_factor) + _MAX_ACCURACY_DROP

    def notices(self, expected: float | None, expected_answers: int | None = None) -> Iterator[str]:
        """Yields warnings for the user: labels without data, skipped sequences, and a low accuracy.

        `expected` is the accuracy in training, with `expected_answers` answers; None if it is unknown.
        """
        if absent := self.absent:
            yield (
                f"the data has no sequence labelled {first_of([*map(repr, absent)])}: whether these labels "
                "belong to these outputs was not checked"
            )
        if self.left_out:
            yield f"{self.left_out} sequences of the data were skipped, as the model does not accept them: {self.why}"
        if expected is not None and self.accuracy < expected - self._drop_by_chance(expected, expected_answers):
            yield (
                f"the accuracy is {self.accuracy:.4f} here and was {expected:.4f} in training: check that the data has "
                "the same units and the same order of features as in training"
            )
        most_frequent = int(self.counts.argmax())
        frequency = int(self.counts[most_frequent])
        # A multi-label model has more answers than labels in the data, so this does not apply to it.
        if self.counts.sum() == self.answers and self.right <= frequency < self.answers:
            yield f"always predicting {self.labels[most_frequent]!r} would be correct as often: {frequency} times"


def measure(session: Session, manifest: Manifest, records: Iterable[Record]) -> DataAccuracy | None:
    """Runs a graph on records, and compares its answers with their labels; None if no record has a label.

    Raises:
        VerificationError: Another order of the labels fits the data significantly better than that of the manifest.
    """  # noqa: DOC502 - what it calls raises it
    accepted, left_out, why = accepted_records(records, manifest)
    if not accepted:
        return None
    classes = manifest.classes
    table, counts = np.zeros((classes, classes), dtype=np.int64), np.zeros(classes, dtype=np.int64)
    answer_count = correct = 0
    for record, answer in zip(accepted, _answers(session, manifest, accepted), strict=True):
        expected, answered_labels = expected_labels(record, manifest), predicted_labels(answer, manifest)
        table += expected.T.astype(np.int64) @ answered_labels
        counts += expected.sum(axis=0)
        hits = hits_of(expected, answered_labels, manifest)
        answer_count, correct = answer_count + hits.size, correct + int(hits.sum())
    sample = DataAccuracy(manifest.labels, answer_count, correct, table, counts, left_out, why)
    _require_order_of_labels(sample, manifest)
    return sample


def accepted_records(records: Iterable[Record], manifest: Manifest) -> tuple[list[Record], int, str]:
    """Selects the labelled records that the model accepts.

    Returns:
        These records; the number of labelled records that it refuses; and the reason for the first of them, "" if none.

    Raises:
        ConfigurationError: A label is unknown or does not fit the task, or the model accepts no labelled record.
    """
    labelled = [record for record in records if record.has_label]
    for record in labelled:
        if (wrong := label_mismatch(record, manifest.task)) is not None:
            raise ConfigurationError(f"{record.source_line}: {wrong}")
        if (unknown := unknown_labels(record.label, manifest.labels)) is not None:
            raise ConfigurationError(
                f"{record.source_line}: {unknown}: labels come from the spec, or from --labels in the order of the "
                "outputs"
            )
    rows = [(record, row_of(record, manifest)) for record in labelled]
    accepted = [record for record, row in rows if not isinstance(row, str)]
    refused = [f"{record.source_line}: {row}" for record, row in rows if isinstance(row, str)]
    if labelled and not accepted:
        raise ConfigurationError(f"the model accepts none of the data's {len(refused)} sequences: {refused[0]}")
    return accepted, len(refused), refused[0] if refused else ""


def row_of(record: Record, manifest: Manifest) -> RowInput | str:
    """What a model takes for a record, with what stands beside its steps; a text with the reason if it refuses it."""
    sequence = InputSequence(record.steps, record.id, static=record.static, inputs=record.inputs)
    item = arrays.item(sequence, manifest, transposed=IS_TRANSPOSED)
    return item if isinstance(item, str) else item.steps


def _require_order_of_labels(sample: DataAccuracy, manifest: Manifest) -> None:
    """Makes sure that the answers do not contradict the order of the labels significantly.

    A model with untrained weights passes, as does data that suggests no other order.

    Raises:
        VerificationError: Another order fits the data significantly better.
    """
    # The order that the data suggests: each output gets the label that the data has most often where it was answered,
    # or -1 if it was never answered. It suggests none if it has fewer than two labels, or one of them twice
    suggested = np.where(sample.table.any(axis=0), sample.table.argmax(axis=0), -1)
    labels = suggested[suggested >= 0]
    if len(labels) < 2 or len(np.unique(labels)) < len(labels):
        return
    # For the outputs whose label differs, the right answers by the suggested order, and by that of the manifest
    outputs = np.flatnonzero((suggested >= 0) & (suggested != np.arange(manifest.classes)))
    hits_by_data = int(sample.table[suggested[outputs], outputs].sum())
    hits_by_manifest = int(sample.table[outputs, outputs].sum())
    if (
        manifest.made.get("weights") == UNTRAINED
        or hits_by_data - hits_by_manifest <= _MIN_DEVIATIONS * (hits_by_data + hits_by_manifest) ** 0.5
    ):
        return
    pairs = "; ".join(
        f"where it answers {manifest.labels[output]!r} the data mostly says {manifest.labels[suggested[output]]!r}"
        for output in outputs[:5]
    )
    raise VerificationError(
        f"{manifest.key}: the labels are in another order than the outputs: {pairs} ({sample}), so nothing was "
        "published; give the labels in the order of the outputs, or fix the labels of the data"
    )


def _answers(session: Session, manifest: Manifest, records: Sequence[Record]) -> list[answers.Answer]:
    """Runs the graph on records as the service does; returns an answer for each, with windows merged, without padding.

    Raises:
        VerificationError: The answer to a record is not finite.
    """
    # The rows to run: (index of the record, first step of the window, its steps)
    rows: list[tuple[int, int, RowInput]] = []
    for index, record in enumerate(records):
        row = row_of(record, manifest)
        assert not isinstance(row, str)  # the records are accepted
        rows += [(index, start, part) for start, part in answers.windows(row, manifest.max_length)]
    # Run them in batches of similar lengths
    rows.sort(key=lambda row: len(row[2]))
    # For each record, the answers of its windows by their start
    parts: list[dict[int, answers.Answer]] = [{} for _ in records]
    most_rows = min(_ROWS, manifest.max_batch_rows or _ROWS)
    for first in range(0, len(rows), most_rows):
        batch_rows = rows[first : first + most_rows]
        batch = pad([steps for _, _, steps in batch_rows], multiple=manifest.width_multiple)
        scored = answers.score(session.run(batch), batch.lengths, manifest)
        for (index, start, _), answer in zip(batch_rows, scored, strict=True):
            if answer is None:
                raise VerificationError(f"{manifest.key}: the answer to {records[index].source_line} is not finite")
            parts[index][start] = answer
    # Merge the windows of each record
    merged = []
    for record, by_start in zip(records, parts, strict=True):
        starts, windows = zip(*sorted(by_start.items()), strict=True)
        merged.append(windows[0] if len(windows) == 1 else answers.merge(windows, starts, len(record.steps), manifest))
    return merged


def expected_labels(record: Record, manifest: Manifest) -> NDArray[np.bool_]:
    """The labels of a record as a mask, `[1, classes]`; for a per-step model `[length, classes]`.

    All are false at a step without a label. Steps that the policy for long sequences drops are left out.
    """
    labels = record.label if isinstance(record.label, tuple) else (record.label or "",)
    is_per_step = manifest.task == "per-step"
    expected = np.zeros((len(labels) if is_per_step else 1, manifest.classes), dtype=np.bool_)
    for index, label in ((index, label) for index, label in enumerate(labels) if label is not None):
        expected[index if is_per_step else 0, manifest.labels.index(label)] = True
    if not is_per_step or manifest.long not in ("head", "tail"):
        return expected
    # The policy for long sequences drops steps, which get no answer.
    return expected[: manifest.max_length] if manifest.long == "head" else expected[-manifest.max_length :]


def predicted_labels(answer: answers.Answer, manifest: Manifest) -> NDArray[np.bool_]:
    """The labels that the model answers as a mask, `[1, classes]`; for a per-step model `[length, classes]`."""
    probabilities = np.atleast_2d(answer.probabilities)
    if manifest.task == "multi-label":
        return np.asarray(probabilities >= manifest.threshold)
    labels = np.zeros(probabilities.shape, dtype=np.bool_)
    labels[np.arange(len(labels)), probabilities.argmax(axis=1)] = True
    return labels


def hits_of(expected: NDArray[np.bool_], predicted: NDArray[np.bool_], manifest: Manifest) -> NDArray[np.bool_]:
    """Whether each answer is correct: `[1]`; `[1, classes]` for a multi-label model; `[steps]` for a per-step model.

    Of a per-step model, only the steps with a label have an answer. `expected` and `predicted` are masks of labels,
    `[1, classes]`; for a per-step model `[length, classes]`.
    """
    if manifest.task == "multi-label":
        return np.equal(expected, predicted)
    return np.asarray((expected & predicted)[expected.any(axis=1)].any(axis=1))


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """How the answers of two graphs of one model differ, such as before and after a conversion to int8."""

    sequences: int  # The number of sequences that both answered
    changed: int  # The number of sequences with another label or other labels; of a per-step model, at any step
    difference: float  # The largest absolute difference of a logit

    def __str__(self) -> str:
        """`2 of 370 labels changed`."""
        return f"{self.changed} of {self.sequences} labels changed"


def changed_labels(
    original: Session, converted: Session, manifest: Manifest, sequences: Iterable[RowInput]
) -> LabelChanges:
    """Runs each sequence that the model accepts through both graphs, unbatched, and compares the answers.

    `original` and `converted` are sessions of the two graphs.

    Raises:
        ConfigurationError: The model accepts none of the sequences.
    """
    count, changed, largest = 0, 0, 0.0
    shortest, longest = manifest.min_length, manifest.max_length
    for steps in sequences:
        if not shortest <= len(steps) <= longest:
            continue
        logits = [_logits(session, manifest, steps) for session in (original, converted)]
        labels = [predicted_labels(answers.Answer(answers.probabilities(row, manifest)), manifest) for row in logits]
        count += 1
        changed += not np.array_equal(labels[0], labels[1])
        largest = max(largest, float(np.abs(logits[0] - logits[1]).max()))
    if not count:
        accepted = f"{longest} steps or fewer" if shortest == 1 else f"{shortest} to {longest} steps"
        raise ConfigurationError(f"no sequence of the data has {accepted}")
    return LabelChanges(count, changed, largest)


def _logits(session: Session, manifest: Manifest, steps: RowInput) -> NDArray[np.float32]:
    """The logits of an unbatched sequence: `[classes]`, or of a per-step model `[length, classes]`."""
    batch = pad([steps], multiple=manifest.width_multiple)
    return answers.by_row(session.run(batch).logits, batch.lengths, manifest)[0]
