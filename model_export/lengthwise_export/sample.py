"""Labelled sequences held against a graph as it will be served: are its answers right, and its labels in their order?

Nothing else can tell: the proof holds a graph against the model that it was made of, and both answer numbers. Which
label a number stands for is the manifest's word, and the labels of `--data` are what it can be held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import fitted, unfit
from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import Steps, pad
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.scoring.records import label_mismatch, unknown_labels

UNTRAINED: Final = "untrained"
"""The weights of a spec without a checkpoint, in the manifest's `made`."""
_ROWS: Final = 32
_SURE: Final = 4.0
"""Standard deviations from which another order of the labels is no chance."""
_FAR: Final = 0.1
"""How far the accuracy may lie below the training's, beside three standard deviations of a sample of its size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a graph answers to labelled sequences.

    Attributes:
        labels: The manifest's.
        answers: Answers that were compared: one a sequence; of a multi-label model one for each label, of a per-step
            model one a step.
        right: Those that are the label.
        table: `[classes][classes]`: how often a label of the data (the row) came with an answered one (the column).
        counts: `[classes]`: how often each label stands in the data.
        left_out: Sequences that the model does not take.
        why: What is wrong with the first of them.
    """

    labels: tuple[str, ...]
    answers: int
    right: int
    table: NDArray[np.int64]
    counts: NDArray[np.int64]
    left_out: int = 0
    why: str = ""

    @property
    def accuracy(self) -> float:
        """Right answers over all."""
        return self.right / self.answers

    @property
    def absent(self) -> list[str]:
        """The labels that no sequence of the data has: their places were not tried."""
        return [label for label, count in zip(self.labels, self.counts, strict=True) if not count]

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "answers": self.answers,
            "right": self.right,
            "accuracy": self.accuracy,
            "classes": [
                {"label": label, "in_data": int(count), "found": int(found)}
                for label, count, found in zip(self.labels, self.counts, self.table.diagonal(), strict=True)
            ],
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        """`accuracy 0.9875: 79 of 80 answers are the data's label`."""
        return f"accuracy {self.accuracy:.4f}: {self.right} of {self.answers} answers are the data's label"

    def notices(self, expected: float | None) -> Iterator[str]:
        """What whoever publishes the model should know.

        Args:
            expected: The accuracy that training had, where it is known.
        """
        if self.absent:
            yield (
                f"the data has no sequence labelled {_listed(self.absent)}: whether the right outputs have these names "
                "was not tried"
            )
        if self.left_out:
            yield f"{self.left_out} sequences of the data were left out, as the model does not take them: {self.why}"
        spread = 0.0 if expected is None else 3 * (expected * (1 - expected) / self.answers) ** 0.5
        if expected is not None and self.accuracy < expected - spread - _FAR:
            yield (
                f"the accuracy is {self.accuracy:.4f} here and was {expected:.4f} in training: is this the data that "
                "the model was trained for, in the same units and the same order of features?"
            )
        most = int(self.counts.argmax())
        alone = int(self.counts[most])  # of a multi-label model it is no answer
        if self.counts.sum() == self.answers and self.right <= alone < self.answers:
            yield f"always answering {self.labels[most]!r} would be right as often: {alone} times"


def measure(session: Session, manifest: Manifest, records: Iterable[Record]) -> Sample | None:
    """Asks a graph, and compares its answers with the labels.

    Args:
        session: The graph.
        manifest: Its manifest.
        records: Those without a label are passed over.

    Returns:
        The figures, or None where no record has a label.

    Raises:
        ConfigurationError: A label is none of the model's, or of another kind; or the model takes none of the records.
        VerificationError: The answers fit another order of the labels, and by far.
    """
    labelled = [record for record in records if record.label is not None]
    if not labelled:
        return None
    for record in labelled:
        wrong = label_mismatch(record, manifest.task)
        unknown = unknown_labels(record, manifest.labels)
        if wrong is None and unknown is not None:
            wrong = f"{unknown}: they come from the spec, or from --labels in the order of the outputs"
        if wrong is not None:
            raise ConfigurationError(f"{record.place}: {wrong}")
    taken, left_out, why = [], 0, ""
    for record in labelled:
        reason = unfit(record.steps, manifest)
        if reason is None:
            taken.append(record)
        else:
            left_out, why = left_out + 1, why or f"{record.place}: {reason}"
    if not taken:
        raise ConfigurationError(f"the model takes none of the data's {left_out} sequences: {why}")
    classes = manifest.classes
    table, counts = np.zeros((classes, classes), dtype=np.int64), np.zeros(classes, dtype=np.int64)
    answered = right = 0
    for record, answer in zip(taken, _answers(session, manifest, taken), strict=True):
        wanted, found = _wanted(record, manifest), _found(answer, manifest)
        table += wanted.T.astype(np.int64) @ found
        counts += wanted.sum(axis=0)
        hits = wanted == found if manifest.task == "multi-label" else (wanted & found).any(axis=1)
        answered, right = answered + hits.size, right + int(hits.sum())
    sample = Sample(manifest.labels, answered, right, table, counts, left_out, why)
    _refuse_another_order(sample, manifest)
    return sample


def _refuse_another_order(sample: Sample, manifest: Manifest) -> None:
    """Refuses labels whose order the answers contradict.

    Each output is given the label that the data has most often where it answers. That order is believed where it is one
    (two outputs or more, no label twice), and where it is right so much more often than the manifest's that chance
    cannot have done it. Weights that were never trained fit no order.
    """
    order = np.full(manifest.classes, -1)
    for output in range(manifest.classes):
        if sample.table[:, output].any():
            order[output] = int(sample.table[:, output].argmax())
    given = order[order >= 0]
    if len(given) < 2 or len(set(given.tolist())) < len(given):
        return
    moved = np.flatnonzero((order >= 0) & (order != np.arange(manifest.classes)))
    gained, lost = int(sample.table[order[moved], moved].sum()), int(sample.table[moved, moved].sum())
    if manifest.made.get("weights") == UNTRAINED or gained - lost <= _SURE * (gained + lost) ** 0.5:
        return
    said = "; ".join(
        f"where it answers {manifest.labels[output]!r} the data mostly says {manifest.labels[order[output]]!r}"
        for output in moved[:5]
    )
    raise VerificationError(
        f"{manifest.key}: the labels stand in another order than the outputs: {said} ({sample}), so nothing was "
        "published; name the labels in the order of the outputs, or mend the labels of the data"
    )


def _answers(session: Session, manifest: Manifest, records: Sequence[Record]) -> list[Answer]:
    """The answer to each record, as the service gives it: windows put together, nothing in padding."""
    rows: list[tuple[int, int, Steps]] = []
    for index, record in enumerate(records):
        item = fitted(record.steps, manifest, sent=len(record.steps))
        rows += [(index, start, part) for start, part in answers.windows(item.steps, manifest.max_length)]
    rows.sort(key=lambda row: len(row[2]))
    parts: list[dict[int, Answer]] = [{} for _ in records]
    together = min(_ROWS, manifest.max_batch_rows or _ROWS)
    for first in range(0, len(rows), together):
        batch = pad([steps for _, _, steps in rows[first : first + together]], multiple=manifest.width_multiple)
        scored = answers.score(session.run(batch), batch.lengths, manifest)
        for (index, start, _), answer in zip(rows[first : first + together], scored, strict=True):
            if answer is None:
                raise VerificationError(f"{manifest.key}: the answer to {records[index].place} is not finite")
            parts[index][start] = answer
    whole = []
    for record, found in zip(records, parts, strict=True):
        starts = sorted(found)
        pieces = [found[start] for start in starts]
        whole.append(pieces[0] if len(pieces) == 1 else answers.merge(pieces, starts, len(record.steps), manifest))
    return whole


def _wanted(record: Record, manifest: Manifest) -> NDArray[np.bool_]:
    """`[1, classes]`, or of a per-step model `[length, classes]`: the labels of the data."""
    several = record.label if isinstance(record.label, tuple) else (record.label or "",)
    steps = len(several) if manifest.task == "per-step" else 1
    wanted = np.zeros((steps, manifest.classes), dtype=np.bool_)
    for place, label in enumerate(several):
        wanted[place if manifest.task == "per-step" else 0, manifest.labels.index(label)] = True
    return _kept(wanted, manifest) if manifest.task == "per-step" else wanted


def _kept(wanted: NDArray[np.bool_], manifest: Manifest) -> NDArray[np.bool_]:
    """Of labels a step those that are answered, where the policy past the max length leaves steps out."""
    if manifest.long == "head":
        return wanted[: manifest.max_length]
    return wanted[-manifest.max_length :] if manifest.long == "tail" else wanted


def _found(answer: Answer, manifest: Manifest) -> NDArray[np.bool_]:
    """As `_wanted`: the labels that are answered."""
    probabilities = np.atleast_2d(answer.probabilities)
    if manifest.task == "multi-label":
        assigned: NDArray[np.bool_] = probabilities >= manifest.threshold
        return assigned
    found = np.zeros(probabilities.shape, dtype=np.bool_)
    found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
    return found


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(map(repr, labels[:5])) + more
