"""Proves a mend: in any padded batch, the mended model answers a sequence as the original does alone and unpadded.

    random sequences --original, alone, width == length--> the answers that are right
                     --mended, alone and in batches of several sizes, padding of zeros and of junk--> must equal them

The original never sees padding, so what it answers alone is what the model means. Bits are compared between the mended
model's own answers alone and in batches.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from lengthwise.padding import PaddedBatch, Steps, pad, rounded_width
from lengthwise.verification.random_sequences import AMPLIFIED, ROUNDING
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.check import ProgressCallback
from lengthwise_export.checking.limits import runs
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.report import as_ranges, finite
from lengthwise_export.checking.trials import JUNK_SCALES, Sampler, with_padding_filled
from lengthwise_export.errors import RunError

_T = TypeVar("_T")

SEQUENCES: Final = 200  # number of sequences of a proof
_RAW_AMONG: Final = 4  # one of so many sequences is of raw values, the kinds in turn
BATCH_ROWS: Final = (1, 2, 3, 5, 8, 13, 24, 32)  # numbers of rows of a proof's batches, in turn
_MAX_SQUARES: Final = 2**22
"""Most rows x width^2 of a batch of more than two rows: self-attention needs that much memory, times its heads."""
_PROBES: Final = 12  # number of sequences with which the amplification of rounding is measured
_FIRST_LENGTHS: Final = 8  # all lengths are tried from the shortest one on, this many


@dataclass(frozen=True, slots=True)
class ComparedSequence:
    """One sequence of a proof, in one batch."""

    index: int  # Its index among the sequences of the proof, from 0
    length: int
    rows: int
    width: int
    padding: str  # The values in the padding, such as `zeros`
    difference: float  # The difference of the mended answer from the original alone, in units of max(1, largest value)
    # Of a sequence of raw values: how much a few ulps of them, or rounding, move the original itself
    amplified: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The sequence as JSON values."""
        values = {name: getattr(self, name) for name in ("length", "rows", "width", "padding")}
        return {"sequence": self.index, **values, "difference": finite(self.difference)}

    def __str__(self) -> str:
        """Such as `sequence 17 (37 steps), padded with junk to 64 in a batch of 8 rows`."""
        company = "in a batch of its own" if self.rows == 1 else f"in a batch of {self.rows} rows"
        padded = "unpadded" if self.width == self.length else f"padded with {self.padding} to {self.width}"
        return f"sequence {self.index} ({self.length} steps), {padded} {company}"


@dataclass(slots=True)
class MendProof:
    """The result of a proof."""

    sequences: int  # The number of sequences that were compared
    lengths: tuple[int, ...]  # Their lengths, without repeats
    raised: tuple[int, ...]  # The lengths at which the original raises alone, or gives an answer that is not finite
    min_length: int  # The shortest sequence that the original answers
    worst: ComparedSequence | None  # The sequence whose answer differs most; None if none was compared
    tolerance: float
    bits: bool  # Whether the mended model gives each sequence the same bits alone and in every batch
    in_company: float  # The largest difference between the mended model's own answers alone and in batches
    wrong: str | None = None  # Why the proof does not hold; None if it holds
    # How much a few ulps of the values move an answer of the original at raw values where it is ill-conditioned, so
    # that rounding explains a difference above the tolerance; 0 if it is nowhere
    amplified: float = 0.0
    ill_conditioned: int = 0

    @property
    def holds(self) -> bool:
        """Whether every sequence got the answer of the original alone."""
        return self.wrong is None

    @property
    def difference(self) -> float:
        """The largest difference from the original alone, in units of max(1, largest value)."""
        return 0.0 if self.worst is None else self.worst.difference

    def __str__(self) -> str:
        """Such as `200 sequences of 1 to 1024 steps get the answer of the original alone, within 3e-07, and ...`."""
        if self.wrong is not None:
            return self.wrong
        batches = "the same bits in every batch" if self.bits else f"within {self.in_company:.2g} in every batch"
        shortest, longest = min(self.lengths, default=0), max(self.lengths, default=0)
        agreement = f"{self.sequences} sequences of {shortest} to {longest} steps get the answer of the original alone"
        change = f"a few ulps of their values move its answer by up to {self.amplified:.2g}"
        ill = f"; {self.ill_conditioned} are ill-conditioned in the original: {change}" if self.ill_conditioned else ""
        return f"{agreement}, within {self.difference:.2g}, and {batches}{ill}"

    def as_json(self) -> dict[str, Any]:
        """The proof as JSON values; a difference that is not finite becomes null."""
        return {
            **{name: getattr(self, name) for name in ("holds", "wrong", "sequences", "bits", "ill_conditioned")},
            "shortest": min(self.lengths, default=None),
            "longest": max(self.lengths, default=None),
            "raised": list(self.raised),
            **{name: finite(getattr(self, name)) for name in ("difference", "tolerance", "in_company", "amplified")},
            "worst": None if self.worst is None else self.worst.as_json(),
        }


def prove(
    original: Subject,
    mended: Subject,
    *,
    max_length: int,
    min_length: int = 1,
    tolerance: float = 0.0,
    sequences: int = SEQUENCES,
    hiding: Collection[float] = (),
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> MendProof:
    """Compares a mended model with its original, of which only single rows without padding are run.

    No sequence has a step of which all values are one of `hiding`. The proof's `wrong` says why it does not hold.
    """
    say = progress or (lambda _: None)
    sampler = Sampler(original.steps, seed)
    raw = sequences // _RAW_AMONG if sampler.kinds else 0
    ordinary = [sampler.sequence(length) for length in proof_lengths(min_length, max_length, sequences - raw, seed)]
    for steps in ordinary[1::2]:
        steps[1:][-1:] = 0  # of more than one step the last: zeros are data
    lengths = np.random.default_rng(seed + 1).choice([len(steps) for steps in ordinary], raw)
    kinds = itertools.cycle(sampler.kinds)
    drawn = [*ordinary, *(sampler.sequence(int(length), next(kinds)) for length in lengths)]
    drawn = [_without_hidden_steps(steps, hiding, original.steps.vocabulary) for steps in drawn]
    alone, raised = _answers_alone(original, drawn, len(ordinary), say)
    allowed = ROUNDING + tolerance
    for one in _evenly_spaced([one for one in alone if not one.is_raw], _PROBES):
        allowed = one.expected.allowed_rounding(original, allowed)
    proof = MendProof(
        sequences=len(alone),
        lengths=tuple(sorted({one.length for one in alone})),
        raised=tuple(sorted(set(raised))),
        min_length=min((one.length for one in alone), default=min_length),
        worst=None,
        tolerance=allowed,
        bits=True,
        in_company=0.0,
    )
    between = [length for length in proof.raised if length >= proof.min_length]
    if not alone:
        proof.wrong = "the original raises alone at every length, so there is nothing to compare the mended model with"
    elif between:
        where = f"{as_ranges(between)} steps, or its answer is not finite, and it runs at {proof.min_length}"
        proof.wrong = f"the original raises alone at {where}: it cannot be compared at every length to be accepted"
    else:
        try:
            _compare(mended, alone, sampler, max_length, proof, say)
            proof.wrong = _why_apart(proof)
        except RunError as error:
            proof.wrong = f"the mended model raises where the original alone does not: {error}"
    return proof


@dataclass(slots=True)
class _Alone:
    """A sequence with its answers alone: of the original, and later of the mended model."""

    index: int
    original: Subject
    expected: Baseline
    is_raw: bool
    mended: Baseline | None = None
    amplified: float | None = None

    @property
    def steps(self) -> Steps:
        return self.expected.sequences[0]

    @property
    def length(self) -> int:
        return len(self.steps)

    def by_ulps(self) -> float:
        """How much a few ulps of its values, or its own rounding on the way, move the original's answer."""
        exact = self.original.answer_in_float64(self.expected.batch)
        own = 0.0 if exact is None else self.expected.row_difference(exact, 0, 0)
        by_values = self.expected.changes_by_ulps(self.original)[0]
        return max(by_values, own) if math.isfinite(own) else by_values


def proof_lengths(shortest: int, longest: int, count: int, seed: int = 0) -> list[int]:
    """Lengths in a random order: the shortest and longest ones, primes, multiples of four, and more short ones."""
    random = np.random.default_rng(seed)
    every = np.arange(shortest, longest + 1)
    spread = np.unique(np.geomspace(shortest, longest, count).round().astype(int))
    first = every[:_FIRST_LENGTHS].tolist()
    last = [length for length in (longest, longest - 1, longest - 3) if length >= shortest]
    primes = [each for each in spread.tolist() if each > 1 and all(each % of for of in range(2, math.isqrt(each) + 1))]
    fours = [length for length in (4 * (spread // 4)).tolist() if length >= shortest]
    share = (count - len(first) - len(last)) // 3
    lengths = [*first, *last, *_evenly_spaced(primes, share), *_evenly_spaced(fours, share)][:count]
    exponents = random.uniform(math.log(shortest), math.log(longest), size=count - len(lengths))
    lengths += np.exp(exponents).round().astype(int).clip(shortest, longest).tolist()
    return [int(length) for length in random.permutation(lengths)]


def _evenly_spaced(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items, from the first to the last."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))) if items else np.zeros(0)
    return [items[index] for index in indices.round().astype(int)]


def _without_hidden_steps(steps: Steps, hiding: Collection[float], vocabulary: int | None) -> Steps:
    """The sequence with other values instead of those that the original hides."""
    for _ in hiding:
        for number in hiding:
            hidden = steps == number if steps.ndim == 1 else (steps == number).all(axis=1)
            steps[hidden] = (int(number) + 1) % vocabulary if vocabulary is not None else number + 1
    return steps


def _answers_alone(
    original: Subject, sequences: Sequence[Steps], ordinary: int, say: ProgressCallback
) -> tuple[list[_Alone], list[int]]:
    """The original's answers alone, and the lengths without one; those behind `ordinary` are raw, and need none."""
    alone: list[_Alone] = []
    raised = []
    for index, steps in enumerate(sequences):
        if index % 20 == 0:
            say(f"proof: the original alone, sequence {index} of {len(sequences)}")
        batch, answer = pad([steps], multiple=1), None
        with contextlib.suppress(RunError):
            answer = original.answer(batch)
        if answer is not None and np.isfinite(answer.logits).all():
            alone.append(_Alone(index, original, Baseline([steps], batch, answer), index >= ordinary))
        elif index < ordinary:
            raised.append(len(steps))
    return [alone[number] for number in np.random.default_rng(len(alone)).permutation(len(alone))], raised


def _compare(
    mended: Subject, alone: Sequence[_Alone], sampler: Sampler, max_length: int, proof: MendProof, say: ProgressCallback
) -> None:
    """Asks the mended model, and adds how its answers differ to the proof."""
    multiple = 4 if runs(mended, pad([sampler.sequence(max_length)] * 2)) else 1
    tries = _tries(alone, sampler, multiple, rounded_width(max_length, multiple))
    for number, (members, batch, padding) in enumerate(tries):
        if number % 20 == 0:
            how = f"alone, sequence {number} of {len(alone)}" if number < len(alone) else "in batches"
            say(f"proof: the mended model {how}")
        answer = mended.answer(batch)
        for row, one in enumerate(members):
            _add(proof, one, batch, answer, row, padding)


def _tries(
    alone: Sequence[_Alone], sampler: Sampler, multiple: int, widest: int
) -> Iterator[tuple[Sequence[_Alone], PaddedBatch, str]]:
    """The sequences alone, then in batches padded with zeros and with junk; and the name of the padding."""
    for one in alone:
        yield [one], pad([one.steps], multiple=multiple), "zeros"
    for number, members in enumerate(_batches(alone)):
        needed = rounded_width(max(one.length for one in members), multiple)
        yield members, pad([one.steps for one in members], width=needed), "zeros"
        name, scale = [*JUNK_SCALES.items()][number % len(JUNK_SCALES)]
        wider = pad([one.steps for one in members], width=min(widest, needed + multiple * (1 + number % 8)))
        yield members, with_padding_filled(wider, sampler.fill(wider.steps.shape[:2], scale)), name


def _batches(alone: Sequence[_Alone]) -> Iterator[list[_Alone]]:
    """The sequences in batches of several sizes; wide batches have few rows."""
    left, number = [*alone], 0
    while left:
        rows, members = BATCH_ROWS[number % len(BATCH_ROWS)], [left.pop(0)]
        while left and len(members) < rows:
            width = max(left[0].length, *(one.length for one in members), 1)
            if len(members) > 1 and (len(members) + 1) * width**2 > _MAX_SQUARES:
                break
            members.append(left.pop(0))
        yield members
        number += 1


def _add(proof: MendProof, one: _Alone, batch: PaddedBatch, answer: ModelOutput, row: int, padding: str) -> None:
    """Adds the mended model's answer to a sequence; the first one is that to the sequence alone."""
    difference = one.expected.row_difference(answer, 0, row)
    if one.is_raw and proof.tolerance < difference < math.inf:
        is_new = one.amplified is None
        one.amplified = one.by_ulps() if one.amplified is None else one.amplified
        if difference <= proof.tolerance + AMPLIFIED * one.amplified:
            difference = 0.0
            proof.amplified, proof.ill_conditioned = max(proof.amplified, one.amplified), proof.ill_conditioned + is_new
    if proof.worst is None or not difference <= proof.worst.difference:
        of_raw = one.amplified or 0.0
        proof.worst = ComparedSequence(one.index, one.length, batch.rows, batch.width, padding, difference, of_raw)
    if one.mended is None:
        one.mended = Baseline([one.steps], batch, answer)
        return
    proof.in_company = max(proof.in_company, one.mended.row_difference(answer, 0, row))
    proof.bits &= _bits(one.mended.answer, 0, one.length) == _bits(answer, row, one.length)


def _bits(answer: ModelOutput, row: int, length: int) -> bytes:
    """The bytes of the answer to a row, at its valid steps."""
    logits = answer.logits[row]
    parts = [logits[:length] if answer.logits.ndim == 3 else logits]
    parts += [] if answer.attention is None else [answer.attention[row, :length]]
    return b"".join(part.tobytes() for part in parts)


def _why_apart(proof: MendProof) -> str | None:
    """Why the proof does not hold: the sequence that differs most, and by how much; None if it holds."""
    worst, allowed = proof.worst, proof.tolerance
    if worst is None or proof.difference <= allowed:
        return None
    apart = f"{worst}, by {proof.difference:.3g}, where {allowed:.2g} is allowed"
    if worst.amplified > allowed:
        rounding = f"rounding moves it by {worst.amplified:.2g}"
        apart += f"; the values are raw, and the original is ill-conditioned there: {rounding}"
    return f"the mended model differs from the original alone: {apart}"
