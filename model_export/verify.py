"""The proof of a graph, as data: what was varied, and how far an answer moved.

Everything runs through `service.padding` and `service.session`, the code that will serve. Each case varies one thing
that must not matter (company, position, width, what lies in the padding, neighbours, order, threads) and compares each
row's answer with the same row's alone; the `reference` cases compare with the model as it was trained. This module
measures; `failures` and `promise` judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.manifest import Manifest, Promise
from service.padding import PaddedBatch, Steps, pad, rounded_width, step_mask
from service.session import Outputs, Session

Logits = NDArray[np.float32]

Reference = Callable[[PaddedBatch], Logits]
"""The model in its own framework: logits `[rows, classes]`, or `[rows, width, classes]`, of a padded batch."""

Varied = Literal["reference", "company", "width", "padding", "neighbours", "order", "threads", "attention"]

ROUNDING = 1e-5
"""What two frameworks may differ by, times max(1, the row's largest |logit|): float32 summed in another order."""

LIKENESS = 0.9
"""Correlation of a drawn step with the one before. Steps without any are noise, and a recurrent model that was trained
on recordings amplifies rounding on noise a hundredfold: the proof would measure that, and not the graph."""

MIXED_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 21, 29, 37)
"""Lengths of the batch that most cases use, as far as the model takes them: most fill no width that is rounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing varied, and what it did.

    Attributes:
        name: What was done, for people.
        varied: What was varied.
        difference: The largest absolute difference of a logit or an attention weight at a valid step; infinite where
            an answer was not finite. Of a `reference` case it is divided by max(1, the row's largest |logit|).
        bits: Whether no bit differed.
        provider: Where it ran.
        finite: Whether only finite values were given at padding.
    """

    name: str
    varied: Varied
    difference: float
    bits: bool
    provider: str
    finite: bool = True

    def as_json(self) -> dict[str, Any]:
        """For `verification.json`; an infinite difference is null there."""
        return {**asdict(self), "difference": self.difference if math.isfinite(self.difference) else None}


def verify(
    open_session: Callable[[int], Session], manifest: Manifest, reference: Reference | None, *, seed: int = 0
) -> list[Case]:
    """Measures every case.

    Args:
        open_session: Gives a session of the graph that runs with so many threads.
        manifest: What the graph wants; its max length is tried.
        reference: What the graph was made from; None leaves these cases out.
        seed: Decides the sequences.
    """
    trial = Trial(open_session(1), manifest, seed)
    cases = [] if reference is None else list(trial.against(reference))
    cases += trial.in_company()
    cases += trial.wider()
    cases += trial.with_padding_filled()
    cases += trial.with_other_neighbours()
    cases += trial.permuted()
    cases += trial.at_max_length()
    cases += trial.with_threads(open_session(2))
    cases += trial.attention()
    return cases


def failures(cases: Sequence[Case], *, tolerance: float = 0.0, rounding: float = ROUNDING) -> list[Case]:
    """The cases that do not hold.

    Args:
        cases: As measured.
        tolerance: What may move an answer; 0 asks for the same bits. Where it is more, cases with padding that is not
            finite are left to `leaks` to judge: the service never pads with such values.
        rounding: Allowed in `reference` cases.
    """
    bad = []
    for case in cases:
        if case.varied in ("reference", "attention"):
            holds = case.difference <= rounding + tolerance
        elif tolerance:
            holds = case.difference <= tolerance or not case.finite
        else:
            holds = case.bits
        if not holds:
            bad.append(case)
    return bad


def promise(cases: Sequence[Case]) -> Promise:
    """What was measured about a sequence alone against the same in company, with finite padding."""
    moved = [case for case in cases if case.varied not in ("reference", "attention") and case.finite]
    bits = all(case.bits for case in moved)
    return Promise(
        provider=moved[0].provider,
        bits=bits,
        tolerance=0.0 if bits else max(case.difference for case in moved),
    )


def sequences(manifest: Manifest, lengths: Sequence[int], seed: int) -> list[Steps]:
    """Sequences as a client might send them, `[length, features]` or `[length]`.

    Values have the model's own mean and standard deviation where the manifest has them, and each step resembles the
    one before. Some steps are zeros, and in every other sequence the last one is: zeros are data. Where the model takes
    missing values, some are.
    """
    random = np.random.default_rng(seed)
    return [_sequence(manifest, length, index, random) for index, length in enumerate(lengths)]


def _sequence(manifest: Manifest, length: int, index: int, random: np.random.Generator) -> Steps:
    if manifest.input.vocabulary is not None:
        tokens = random.integers(0, manifest.input.vocabulary, size=length, dtype=np.int64)
        if index % 2:
            tokens[-1] = 0
        return tokens
    features = manifest.input.features or 1
    mean = np.asarray(manifest.input.mean or np.zeros(features))
    std = np.asarray(manifest.input.std or np.ones(features))
    drawn = random.standard_normal((length, features))
    for step in range(1, length):  # an autoregression of first order, of variance 1 at every step
        drawn[step] = LIKENESS * drawn[step - 1] + math.sqrt(1 - LIKENESS**2) * drawn[step]
    values = (mean + std * drawn).astype(np.float32)
    if manifest.missing != "refuse":
        values[random.random(values.shape) < 0.1] = np.nan
    if length > 2:
        values[length // 2] = 0.0
    if length > 1 and index % 2:
        values[-1] = 0.0
    return values


Answer = list[NDArray[np.float32]]
"""What one row answers, without padding: its logits and, where the graph has it, its attention weights."""


class Trial:
    """One batch of mixed lengths, its rows' answers alone, and every way to vary the rest.

    Args:
        session: Runs the graph with one thread.
        manifest: What the graph wants.
        seed: Decides the sequences.
    """

    def __init__(self, session: Session, manifest: Manifest, seed: int) -> None:
        self.session = session
        self.manifest = manifest
        self.seed = seed
        lengths = [length for length in MIXED_LENGTHS if length <= manifest.max_length]
        self.sequences = sequences(manifest, lengths, seed)
        self.neighbours = sequences(manifest, lengths[::-1], seed + 1)
        self.alone = [self._alone(steps) for steps in self.sequences]

    def against(self, reference: Reference) -> Iterator[Case]:
        """The model as trained, at lengths 1, mixed and maximal."""
        longest = self.manifest.max_length
        for name, members in {
            "length 1": sequences(self.manifest, [1, 1], self.seed + 2),
            "mixed lengths": self.sequences,
            f"lengths {longest} and 1": sequences(self.manifest, [longest, 1], self.seed + 3),
        }.items():
            batch = self._pad(members)
            expected = self._by_row(reference(batch), batch)
            found = self._by_row(self.session.run(batch).logits, batch)
            scales = [max(1.0, float(np.abs(row).max())) for row in expected]
            case = self._case(f"{name}, against the model itself", "reference", expected, found)
            with np.errstate(invalid="ignore"):
                relative = [np.abs(one - other) / by for one, other, by in zip(found, expected, scales, strict=True)]
            yield replace(case, difference=_largest(relative))

    def in_company(self) -> Iterator[Case]:
        """Each row alone against the same row in every position of the batch."""
        count = len(self.sequences)
        turned = []
        for shift in range(count):
            order = [(place + shift) % count for place in range(count)]
            turned.append(dict(zip(order, self._answers([self.sequences[row] for row in order]), strict=True)))
        for row, alone in enumerate(self.alone):
            found = [part for answers in turned for part in answers[row]]
            name = f"{_steps(self.sequences[row])} in company, in each of {count} positions"
            yield self._case(name, "company", alone * count, found)

    def wider(self) -> Iterator[Case]:
        """The batch, padded to more than it needs."""
        multiple = self.manifest.width_multiple
        needed = rounded_width(max(map(len, self.sequences)), multiple)
        for width in (needed + multiple, needed + 5 * multiple, 4 * needed):
            answers = self._answers(self.sequences, width=width)
            yield self._compare(f"padded to {width} steps instead of {needed}", "width", answers)

    def with_padding_filled(self) -> Iterator[Case]:
        """The batch, with something else than zeros at padding."""
        batch = pad(self.sequences, width=self._wide())
        for name, fill in self._fills().items():
            filled = batch.steps.copy()
            padding = ~step_mask(batch.lengths, batch.width)
            filled[padding] = np.resize(fill, filled[padding].shape)
            answers = list(self._unpadded(self.session, PaddedBatch(filled, batch.lengths)))
            case = self._compare(f"padding filled with {name}", "padding", answers)
            yield replace(case, finite=bool(np.isfinite(fill).all()))

    def with_other_neighbours(self) -> Iterator[Case]:
        """Each row with every other row replaced by another sequence."""
        answers = []
        for row, steps in enumerate(self.sequences):
            company = [*self.neighbours[:row], steps, *self.neighbours[row + 1 :]]
            answers.append(self._answers(company)[row])
        yield self._compare("every neighbour replaced", "neighbours", answers)

    def permuted(self) -> Iterator[Case]:
        """The batch in other orders."""
        random = np.random.default_rng(self.seed)
        for trial in range(3):
            order = random.permutation(len(self.sequences))
            answers = self._answers([self.sequences[row] for row in order])
            back = [answers[place] for place in np.argsort(order)]
            yield self._compare(f"rows permuted, order {trial + 1}", "order", back)

    def at_max_length(self) -> Iterator[Case]:
        """The longest sequence there may be, alone and beside the shortest and the longest of the others."""
        longest = self.manifest.max_length
        (steps,) = sequences(self.manifest, [longest], self.seed + 3)
        # Not beside all of them: self-attention takes rows x heads x width^2 of memory
        first, last, in_company = self._answers([self.sequences[0], self.sequences[-1], steps])
        yield self._case(f"{longest} steps in company", "company", self._alone(steps), in_company)
        yield self._case(
            f"beside a sequence of {longest} steps", "company", [*self.alone[0], *self.alone[-1]], [*first, *last]
        )

    def with_threads(self, session: Session) -> Iterator[Case]:
        """The batch, and a row of it alone, with two threads inside a run."""
        answers = list(self._unpadded(session, self._pad(self.sequences)))
        yield self._compare("2 threads instead of 1, in company", "threads", answers)
        alone = [next(self._unpadded(session, self._pad([steps]))) for steps in self.sequences]
        yield self._compare("2 threads instead of 1, alone", "threads", alone)

    def attention(self) -> Iterator[Case]:
        """Attention weights: nothing at padding, and one in all."""
        batch = pad(self.sequences, width=self._wide())
        weights = self._run(self.session, batch).attention
        if weights is None:
            return
        valid = step_mask(batch.lengths, batch.width)
        at_padding = weights[~valid]
        yield self._case("attention at padding", "attention", [np.zeros_like(at_padding)], [at_padding])
        sums = np.where(valid, weights, 0).sum(axis=1, dtype=np.float64).astype(np.float32)
        yield self._case("attention over the valid steps", "attention", [np.ones_like(sums)], [sums])

    def _fills(self) -> dict[str, NDArray[Any]]:
        """What is put at padding: scalars, or patterns that are repeated."""
        random = np.random.default_rng(self.seed + 4)
        if self.manifest.input.vocabulary is not None:
            ids = random.integers(0, self.manifest.input.vocabulary, size=997, dtype=np.int64)
            return {"other ids": ids, "the last id": np.asarray(self.manifest.input.vocabulary - 1)}
        return {
            "NaN": np.asarray(np.nan, dtype=np.float32),
            "Inf": np.asarray(np.inf, dtype=np.float32),
            "-Inf": np.asarray(-np.inf, dtype=np.float32),
            "1e30": np.asarray(1e30, dtype=np.float32),
            "-1e30": np.asarray(-1e30, dtype=np.float32),
            "junk": (100 * random.standard_normal(997)).astype(np.float32),
            "another row's steps": self.sequences[-1].ravel(),
        }

    def _wide(self) -> int:
        """A width that no sequence of the batch fills."""
        multiple = self.manifest.width_multiple
        return rounded_width(max(map(len, self.sequences)) + 1, multiple)

    def _pad(self, members: Sequence[Steps], width: int | None = None) -> PaddedBatch:
        return pad(members, multiple=self.manifest.width_multiple, width=width)

    def _answers(self, members: Sequence[Steps], width: int | None = None) -> list[Answer]:
        return list(self._unpadded(self.session, self._pad(members, width)))

    def _alone(self, steps: Steps) -> Answer:
        (answer,) = self._answers([steps])
        return answer

    def _run(self, session: Session, batch: PaddedBatch) -> Outputs:
        return session.run(batch, ("logits", "attention"))

    def _unpadded(self, session: Session, batch: PaddedBatch) -> Iterator[Answer]:
        outputs = self._run(session, batch)
        for row, (logits, length) in enumerate(zip(self._by_row(outputs.logits, batch), batch.lengths, strict=True)):
            answer = [logits]
            if outputs.attention is not None:
                answer.append(outputs.attention[row, :length])
            yield answer

    def _by_row(self, logits: Logits, batch: PaddedBatch) -> list[Logits]:
        """Each row's logits, of a per-step model without padding."""
        per_step = self.manifest.task == "per-step"
        return [row[:length] if per_step else row for row, length in zip(logits, batch.lengths, strict=True)]

    def _compare(self, name: str, varied: Varied, answers: Sequence[Answer]) -> Case:
        expected = [part for answer in self.alone for part in answer]
        return self._case(name, varied, expected, [part for answer in answers for part in answer])

    def _case(
        self, name: str, varied: Varied, expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]
    ) -> Case:
        with np.errstate(invalid="ignore"):
            differences = [np.abs(one - other) for one, other in zip(expected, found, strict=True)]
        bits = all(one.tobytes() == other.tobytes() for one, other in zip(expected, found, strict=True))
        return Case(name, varied, _largest(differences), bits, self.session.provider)


def _largest(differences: Sequence[NDArray[np.float32]]) -> float:
    """The largest of all; infinite where one is not finite, 0 where there is none."""
    largest = max((float(part.max()) for part in differences if part.size), default=0.0)
    # max() passes over NaN or not, by its place: ask for each
    return largest if all(np.isfinite(part).all() for part in differences) else math.inf


def _steps(steps: Steps) -> str:
    return f"{len(steps)} step{'s' if len(steps) != 1 else ''}"
