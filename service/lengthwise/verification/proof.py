"""The proof of a graph, as data: what was varied, and how far an answer moved.

Everything runs through `padding` and `runtime.session`, as it is served. Each case varies one thing that must
not matter (company, position, width, what lies in the padding, neighbours, order, threads) and compares each row's
answer with the same row's alone; the `reference` cases compare with what the graph was made from. The exporter proves a
graph before it is published, and the service proves it again on a device that nobody proved it on. This module
measures; `lengthwise.verification.promises` judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, batches, rounded_width, step_mask
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Outputs, Session
from lengthwise.verification.random_sequences import draw

Logits = NDArray[np.float32]

Reference = Callable[[PaddedBatch], Logits]
"""What a graph was made from: logits `[rows, classes]`, or `[rows, width, classes]`, of a padded batch."""

Varied = Literal[
    "reference", "company", "width", "padding", "neighbours", "order", "threads", "attention", "at padding", "missing"
]

_NOT_COMPANY: tuple[Varied, ...] = ("reference", "attention", "at padding", "missing")
"""What is measured besides a sequence alone against the same in company."""

EXTREMES = {"NaN": math.nan, "Inf": math.inf, "-Inf": -math.inf, "1e30": 1e30, "-1e30": -1e30}
"""Padding that the service never writes, and that shows best where a mask is only multiplied or added."""

MIXED_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 21, 29, 37)
"""Lengths of the batch that most cases use, as far as the model takes them: most fill no width that is rounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing varied, and what it did.

    Attributes:
        name: What was done, for people.
        varied: What was varied.
        difference: The largest absolute difference of a logit or an attention weight at a valid step; infinite where
            an answer was not finite. Of `missing`, which the exporter alone measures, the share of a change that is
            left beside a missing value: there an answer must move.
        relative: The largest of the rows' differences, each divided by max(1, the row's largest |logit|).
        bits: Whether no bit differed.
        provider: Where it ran.
        extreme: Whether the padding held NaN, infinities or 1e30, which overflows: the service never pads with these.
    """

    name: str
    varied: Varied
    difference: float
    relative: float
    bits: bool
    provider: str
    extreme: bool = False

    @property
    def of_company(self) -> bool:
        """Whether it compares a sequence alone with the same in company."""
        return self.varied not in _NOT_COMPANY

    def as_json(self) -> dict[str, Any]:
        """For `verification.json`; an infinite difference is null there."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def verify(
    open_session: Callable[[int], Session],
    manifest: Manifest,
    reference: Reference | None,
    *,
    seed: int = 0,
    made_from: str = "the model itself",
) -> list[Case]:
    """Measures every case.

    Args:
        open_session: Gives a session of the graph that runs with so many threads.
        manifest: What the graph wants; its max length is tried.
        reference: What the graph was made from; None leaves these cases out.
        seed: Decides the sequences.
        made_from: What the reference is, for people.
    """
    trial = Trial(open_session(1), manifest, seed)
    cases = [] if reference is None else list(trial.against(reference, made_from))
    return [*cases, *trial.all_of_company(), *trial.with_threads(open_session(2))]


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
        self.widest = rounded_width(manifest.max_length, manifest.width_multiple)
        self.most_rows = manifest.max_batch_rows
        # Then no sequence ever has a step of padding behind it: there is none to vary.
        self.unpadded = self.most_rows == 1 and manifest.width_multiple == 1
        self.company = "in company" if self.most_rows != 1 else "after others, each run alone"
        lengths = [length for length in MIXED_LENGTHS if length <= manifest.max_length]
        self.sequences = draw(manifest, lengths, seed)
        self.neighbours = draw(manifest, lengths[::-1], seed + 1)
        self.alone = [self._alone(steps) for steps in self.sequences]

    def all_of_company(self) -> Iterator[Case]:
        """Every case for which this session, as it is, is enough."""
        yield from self.in_company()
        if not self.unpadded:
            yield from self.wider()
            yield from self.with_padding_filled()
        yield from self.with_other_neighbours()
        yield from self.permuted()
        yield from self.at_max_length()
        yield from self.attention()

    def against(self, reference: Reference, made_from: str) -> Iterator[Case]:
        """What the graph was made from, at lengths 1, mixed and maximal."""
        longest = self.manifest.max_length
        for name, members in {
            "length 1": draw(self.manifest, [1, 1], self.seed + 2),
            "mixed lengths": self.sequences,
            f"lengths {longest} and 1": draw(self.manifest, [longest, 1], self.seed + 3),
        }.items():
            expected, found = [], []
            for batch in self._batches(members):
                expected += self._by_row(reference(batch), batch)
                found += self._by_row(self.session.run(batch).logits, batch)
            yield self._case(f"{name}, against {made_from}", "reference", expected, found)

    def in_company(self) -> Iterator[Case]:
        """Each row alone against the same row in every position of the batch."""
        count = len(self.sequences)
        turned = []
        for shift in range(count):
            order = [(place + shift) % count for place in range(count)]
            turned.append(dict(zip(order, self._answers([self.sequences[row] for row in order]), strict=True)))
        for row, alone in enumerate(self.alone):
            found = [part for answers in turned for part in answers[row]]
            name = f"{_steps(self.sequences[row])} {self.company}, in each of {count} positions"
            yield self._case(name, "company", alone * count, found)

    def wider(self) -> Iterator[Case]:
        """The batch, padded to more than it needs."""
        multiple = self.manifest.width_multiple
        needed = rounded_width(max(map(len, self.sequences)), multiple)
        widths = {min(width, self.widest) for width in (needed + multiple, needed + 5 * multiple, 4 * needed)}
        for width in sorted(widths - {needed}):
            answers = self._answers(self.sequences, width=width)
            yield self._compare(f"padded to {width} steps instead of {needed}", "width", answers)

    def with_padding_filled(self) -> Iterator[Case]:
        """The batch, with something else than zeros at padding."""
        for name, fill in self._fills().items():
            answers: list[Answer] = []
            for batch in self._batches(self.sequences, self._wide()):
                filled = batch.steps.copy()
                padding = ~step_mask(batch.lengths, batch.width)
                filled[padding] = np.resize(fill, filled[padding].shape)
                answers += self._without_padding(self.session, PaddedBatch(filled, batch.lengths))
            case = self._compare(f"padding filled with {name}", "padding", answers)
            yield replace(case, extreme=name in EXTREMES)

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
        (steps,) = draw(self.manifest, [longest], self.seed + 3)
        # Not beside all of them: self-attention takes rows x heads x width^2 of memory
        first, last, in_company = self._answers([self.sequences[0], self.sequences[-1], steps])
        yield self._case(f"{longest} steps {self.company}", "company", self._alone(steps), in_company)
        yield self._case(
            f"beside a sequence of {longest} steps", "company", [*self.alone[0], *self.alone[-1]], [*first, *last]
        )

    def with_threads(self, session: Session) -> Iterator[Case]:
        """The batch, and a row of it alone, with two threads inside a run."""
        yield self._compare(
            f"2 threads instead of 1, {self.company}", "threads", self._answers(self.sequences, session=session)
        )
        alone = [answer for steps in self.sequences for answer in self._answers([steps], session=session)]
        yield self._compare("2 threads instead of 1, alone", "threads", alone)

    def attention(self) -> Iterator[Case]:
        """Attention weights: nothing at padding, and one in all."""
        at_padding, sums = [], []
        for batch in self._batches(self.sequences, None if self.unpadded else self._wide()):
            weights = self._run(self.session, batch).attention
            if weights is None:
                return
            valid = step_mask(batch.lengths, batch.width)
            at_padding.append(weights[~valid] + np.float32(0))  # -0 is nothing as well, in other bits
            sums.append(np.where(valid, weights, 0).sum(axis=1, dtype=np.float64).astype(np.float32))
        if not self.unpadded:
            nothing = [np.zeros_like(weights) for weights in at_padding]
            yield self._case("attention at padding", "at padding", nothing, at_padding)
        whole = [np.ones_like(each) for each in sums]
        yield self._case("attention over the valid steps", "attention", whole, sums)

    def _fills(self) -> dict[str, NDArray[Any]]:
        """What is put at padding, repeated as often as needed."""
        random = np.random.default_rng(self.seed + 4)
        if self.manifest.input.vocabulary is not None:
            ids = random.integers(0, self.manifest.input.vocabulary, size=997, dtype=np.int64)
            return {"other ids": ids, "the last id": np.array([self.manifest.input.vocabulary - 1])}
        return {name: np.array([value], dtype=np.float32) for name, value in EXTREMES.items()} | {
            "junk": (100 * random.standard_normal(997)).astype(np.float32),
            "another row's steps": self.sequences[-1].ravel(),
        }

    def _wide(self) -> int:
        """A width that no sequence of the batch fills, unless that is more than the model ever gets."""
        return min(rounded_width(max(map(len, self.sequences)) + 1, self.manifest.width_multiple), self.widest)

    def _batches(self, members: Sequence[Steps], width: int | None = None) -> Iterator[PaddedBatch]:
        return batches(members, multiple=self.manifest.width_multiple, width=width, most_rows=self.most_rows)

    def _answers(
        self, members: Sequence[Steps], width: int | None = None, session: Session | None = None
    ) -> list[Answer]:
        session = session or self.session
        return [answer for batch in self._batches(members, width) for answer in self._without_padding(session, batch)]

    def _alone(self, steps: Steps) -> Answer:
        (answer,) = self._answers([steps])
        return answer

    def _run(self, session: Session, batch: PaddedBatch) -> Outputs:
        return session.run(batch, ("logits", "attention"))

    def _without_padding(self, session: Session, batch: PaddedBatch) -> Iterator[Answer]:
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
        pairs = list(zip(expected, found, strict=True))
        with np.errstate(invalid="ignore"):
            differences = [np.abs(one - other) for one, other in pairs]
            relative = [
                by / max(1.0, float(np.abs(one).max(initial=0))) for by, one in zip(differences, expected, strict=True)
            ]
        return Case(
            name=name,
            varied=varied,
            difference=_largest(differences),
            relative=_largest(relative),
            bits=all(one.tobytes() == other.tobytes() for one, other in pairs),
            provider=self.session.provider,
        )


def _largest(differences: Sequence[NDArray[np.float32]]) -> float:
    """The largest of all; infinite where one is not finite, 0 where there is none."""
    largest = max((float(part.max()) for part in differences if part.size), default=0.0)
    # max() passes over NaN or not, by its place: ask for each
    return largest if all(np.isfinite(part).all() for part in differences) else math.inf


def _steps(steps: Steps) -> str:
    return f"{len(steps)} step{'s' if len(steps) != 1 else ''}"
