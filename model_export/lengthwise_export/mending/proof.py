"""Proves a mend: in any padded batch, the mended model answers a sequence as the original does alone and unpadded.

    random sequences --original, alone, width == length--> the answers that are right
                     --mended, alone and in batches of several sizes, padding of zeros and of junk--> must equal them

*Alone* is a batch of one row without padding. The original never sees padding, so what it answers alone is what the
model means. Bits are compared between the mended model's own answers, alone and in batches.

A *difference* of two answers is in units of max(1, largest value). Most sequences are *ordinary*: random values near 0.
Some are *raw*: as data are without scaling, around 1,000 or constant. At raw values the original may be
ill-conditioned: a change of the values by a few ulps (units in the last place) changes its answer as much as the mend
does. Such a difference is excused, and *amplified* is the change of the answer by those ulps.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from lengthwise_export.checking.baseline import AMPLIFIED, ROUNDING, Baseline
from lengthwise_export.checking.limits import runs
from lengthwise_export.checking.recording import ModelOutput, Subject
from lengthwise_export.checking.report import as_ranges, finite
from lengthwise_export.checking.trials import JUNK_SCALES, Sampler, with_padding_filled
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import PaddedBatch, Steps, pad, rounded_width
from lengthwise_export.mending.side_by_side import side_by_side
from lengthwise_export.options import ProgressCallback

_T = TypeVar("_T")

SEQUENCES: Final = 200  # the number of sequences of a proof
_RAW_AMONG: Final = 4  # one sequence in four is raw, the kinds of raw values in turn
BATCH_ROWS: Final = (1, 2, 3, 5, 8, 13, 24, 32)  # the numbers of rows of a proof's batches, in turn
_MAX_SQUARES: Final = 2**22
"""The largest rows x width^2 of a batch of more than two rows: each head of self-attention keeps so many numbers."""
_PROBES: Final = 12  # the number of sequences with which the effect of rounding is measured
_FIRST_LENGTHS: Final = 8  # the number of shortest lengths that are all tried


@dataclass(frozen=True, slots=True)
class ComparedSequence:
    """The comparison of one sequence in one batch."""

    index: int  # The index of the sequence among those of the proof, from 0
    length: int  # Its steps
    rows: int  # The rows of the batch
    width: int  # The steps of the batch
    padding: str  # The values in the padding, such as `zeros`
    difference: float  # The difference of the mended answer from the original alone
    amplified: float = 0.0  # Of a raw sequence: how much a few ulps, or rounding, change the original's answer

    def as_json(self) -> dict[str, Any]:
        """The value of `worst` in the JSON of a proof: where the mended answer differs most."""
        values = {name: getattr(self, name) for name in ("length", "rows", "width", "padding")}
        return {"sequence": self.index, **values, "difference": finite(self.difference)}

    def __str__(self) -> str:
        """Such as `sequence 17 (37 steps), padded with junk to 64 in a batch of 8 rows`."""
        batch = "in a batch of its own" if self.rows == 1 else f"in a batch of {self.rows} rows"
        padded = "unpadded" if self.width == self.length else f"padded with {self.padding} to {self.width}"
        return f"sequence {self.index} ({self.length} steps), {padded} {batch}"


@dataclass(slots=True)
class MendProof:
    """The result of a proof.

    What concerns the mended model (`worst`, `bits`, `in_company`, `amplified`, `ill_conditioned`, `wrong`) is filled in
    while it is run.
    """

    sequences: int  # The number of sequences that were compared
    lengths: tuple[int, ...]  # Their lengths, without repeats
    raised: tuple[int, ...]  # The lengths at which the original raises alone, or gives an answer that is not finite
    min_length: int  # The shortest sequence that the original answers
    tolerance: float  # The largest difference that is allowed
    worst: ComparedSequence | None = None  # The sequence whose answer differs most; None if none was compared
    bits: bool = True  # Whether the mended model gives each sequence the same bits alone and in every batch
    in_company: float = 0.0  # The largest difference between the mended model's own answers alone and in batches
    wrong: str | None = None  # Why the proof does not hold; None if it holds
    amplified: float = 0.0  # The largest change of an answer by a few ulps, among the excused sequences
    ill_conditioned: int = 0  # The number of excused sequences, at which the original is ill-conditioned

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

    Args:
        original: The original.
        mended: The mended model; it is called in several threads at once, as a graph may be.
        max_length: The longest sequence, in steps.
        min_length: The shortest one.
        tolerance: The difference that is allowed in addition to that by rounding.
        sequences: The number of sequences.
        hiding: The original hides a step if all its values are one of these numbers. No sequence of the proof has such
            a step, because the mended model takes it for data.
        seed: The seed of the random sequences.
        progress: Is called with texts that say what is done.

    Returns:
        The proof; its `wrong` says why it does not hold.
    """
    say = progress or (lambda _: None)
    # 1. The sequences, and the original's answers to them
    sampler = Sampler(original.steps, seed)
    ordinary, raw = _sequences(sampler, min_length, max_length, sequences, seed)
    for steps in (*ordinary, *raw):
        _change_hidden_steps(steps, hiding, original.steps.vocabulary)
    members, raised = _answers_alone(original, ordinary, raw, say)
    # 2. The tolerance, which is larger for a model that amplifies rounding
    allowed = ROUNDING + tolerance
    for member in _evenly_spaced([member for member in members if not member.is_raw], _PROBES):
        allowed = member.expected.allowed_rounding(original, allowed)
    proof = MendProof(
        sequences=len(members),
        lengths=tuple(sorted({member.length for member in members})),
        raised=tuple(sorted(set(raised))),
        min_length=min((member.length for member in members), default=min_length),
        tolerance=allowed,
    )
    # 3. The mended model's answers, if the original has an answer at every length from the shortest that it answers
    raised_between = [length for length in proof.raised if length >= proof.min_length]
    where = f"{as_ranges(raised_between)} steps, or its answer is not finite, and it runs at {proof.min_length}"
    if not members:
        proof.wrong = "the original raises alone at every length, so there is nothing to compare the mended model with"
    elif raised_between:
        proof.wrong = f"the original raises alone at {where}: it cannot be compared at every length to be accepted"
    else:
        proof.wrong = _compare(mended, members, sampler, max_length, proof, say)
    return proof


@dataclass(slots=True)
class _ProofMember:
    """A sequence of a proof, with the answers to it alone."""

    index: int  # Its index among the sequences of the proof
    original: Subject
    expected: Baseline  # The original's answer
    is_raw: bool  # Whether its values are raw
    mended: Baseline | None = None  # The mended model's answer; None until it is known
    amplified: float | None = None  # The result of `change_by_ulps`; None until it is needed

    @property
    def steps(self) -> Steps:
        return self.expected.sequences[0]

    @property
    def length(self) -> int:
        return len(self.steps)

    def change_by_ulps(self) -> float:
        """The change of the original's answer by a few ulps of the values, or by its own rounding if that is more.

        The rounding is the difference from an answer in float64, if the original can run in that.
        """
        exact = self.original.answer_in_float64(self.expected.batch)
        by_rounding = 0.0 if exact is None else self.expected.row_difference(exact, 0, 0)
        by_values = self.expected.changes_by_ulps(self.original)[0]
        return max(by_values, by_rounding) if math.isfinite(by_rounding) else by_values


def proof_lengths(shortest: int, longest: int, count: int, seed: int = 0) -> list[int]:
    """`count` lengths of sequences, in a random order.

    They are the shortest and the longest ones, primes, multiples of four, and random ones, more of which are short.
    """
    random = np.random.default_rng(seed)
    spread = np.unique(np.geomspace(shortest, longest, count).round().astype(int))
    first = range(shortest, longest + 1)[:_FIRST_LENGTHS]
    last = [length for length in (longest, longest - 1, longest - 3) if length >= shortest]
    primes = [
        length
        for length in spread.tolist()
        if length > 1 and all(length % divisor for divisor in range(2, math.isqrt(length) + 1))
    ]
    fours = [length for length in (4 * (spread // 4)).tolist() if length >= shortest]
    part = (count - len(first) - len(last)) // 3
    lengths = [*first, *last, *_evenly_spaced(primes, part), *_evenly_spaced(fours, part)][:count]
    exponents = random.uniform(math.log(shortest), math.log(longest), size=count - len(lengths))
    lengths += np.exp(exponents).round().astype(int).clip(shortest, longest).tolist()
    return [int(length) for length in random.permutation(lengths)]


def _evenly_spaced(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items at equal distances, with the first and the last one."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))) if items else np.zeros(0)
    return [items[index] for index in indices.round().astype(int)]


def _sequences(sampler: Sampler, shortest: int, longest: int, count: int, seed: int) -> tuple[list[Steps], list[Steps]]:
    """`count` random sequences for a proof: the ordinary ones, and the raw ones.

    Every second ordinary sequence ends with a step of zeros that is data. One in `_RAW_AMONG` is raw, of each kind in
    turn; none for tokens.
    """
    raw_count = count // _RAW_AMONG if sampler.kinds else 0
    ordinary = [sampler.sequence(length) for length in proof_lengths(shortest, longest, count - raw_count, seed)]
    for steps in ordinary[1::2]:
        if len(steps) > 1:
            steps[-1] = 0
    lengths = np.random.default_rng(seed + 1).choice([len(steps) for steps in ordinary], raw_count).tolist()
    lengths_and_kinds = zip(lengths, itertools.cycle(sampler.kinds), strict=False)
    return ordinary, [sampler.sequence(length, kind) for length, kind in lengths_and_kinds]


def _change_hidden_steps(steps: Steps, hiding: Collection[float], vocabulary: int | None) -> None:
    """Changes those steps of a sequence that the original hides: their values are increased by 1, in place.

    Args:
        steps: The sequence.
        hiding: The numbers; a step is hidden if all its values are one of them.
        vocabulary: The number of token ids; None for features.
    """
    for _ in hiding:  # as often as there are numbers, because the increased value may be another one of them
        for number in hiding:
            is_hidden = steps == number if steps.ndim == 1 else (steps == number).all(axis=1)
            steps[is_hidden] = (int(number) + 1) % vocabulary if vocabulary is not None else number + 1


def _answers_alone(
    original: Subject, ordinary: Sequence[Steps], raw: Sequence[Steps], say: ProgressCallback
) -> tuple[list[_ProofMember], list[int]]:
    """Runs the original on each sequence alone.

    Args:
        original: The original.
        ordinary: The ordinary sequences.
        raw: The raw ones.
        say: Is called with texts that say what is done.

    Returns:
        1. The sequences with a finite answer, in a random order.
        2. The lengths of ordinary sequences without one. Raw sequences without a finite answer are left out.
    """
    members: list[_ProofMember] = []
    raised = []
    sequences = [*ordinary, *raw]
    for index, steps in enumerate(sequences):
        if index % 20 == 0:
            say(f"proof: the original alone, sequence {index} of {len(sequences)}")
        is_raw = index >= len(ordinary)
        batch, answer = pad([steps], multiple=1), None
        with contextlib.suppress(RunError):
            answer = original.answer(batch)
        if answer is not None and np.isfinite(answer.logits).all():
            members.append(_ProofMember(index, original, Baseline([steps], batch, answer), is_raw))
        elif not is_raw:
            raised.append(len(steps))
    return [members[number] for number in np.random.default_rng(len(members)).permutation(len(members))], raised


def _compare(
    mended: Subject,
    members: Sequence[_ProofMember],
    sampler: Sampler,
    max_length: int,
    proof: MendProof,
    say: ProgressCallback,
) -> str | None:
    """Runs the mended model on all batches of `_trials`, and notes in `proof` how its answers differ.

    Args:
        mended: The mended model.
        members: The sequences.
        sampler: Draws junk.
        max_length: The longest sequence, in steps.
        proof: The proof.
        say: Is called with texts that say what is done.

    Returns:
        Why the proof does not hold; None if it holds.
    """
    # Widths are multiples of 4, as a service pads, if the model accepts the longest one.
    multiple = 4 if runs(mended, pad([sampler.sequence(max_length)] * 2, multiple=4)) else 1
    # The first trials are each sequence alone.
    trials = _trials(members, sampler, multiple, rounded_width(max_length, multiple))
    for number, (trial, answer) in enumerate(side_by_side(partial(_answered, mended), trials)):
        if number % 20 == 0:
            part = f"alone, sequence {number} of {len(members)}" if number < len(members) else "in batches"
            say(f"proof: the mended model {part}")
        if isinstance(answer, RunError):
            return f"the mended model raises where the original alone does not: {answer}"
        for row, member in enumerate(trial.rows):
            _note_answer(proof, member, trial.batch, answer, row, trial.padding)
    return _why_different(proof)


class _Trial(NamedTuple):
    """A batch that the mended model runs."""

    rows: Sequence[_ProofMember]
    batch: PaddedBatch
    padding: str  # the name of its padding


def _answered(mended: Subject, trial: _Trial) -> tuple[_Trial, ModelOutput | RunError]:
    """A trial with the mended model's answer to its batch, or the error that it raises."""
    try:
        return trial, mended.answer(trial.batch)
    except RunError as error:
        return trial, error


def _trials(members: Sequence[_ProofMember], sampler: Sampler, multiple: int, widest: int) -> Iterator[_Trial]:
    """The batches that the mended model runs: each sequence alone, then batches, with zeros and with junk as padding.

    Args:
        members: The sequences.
        sampler: Draws junk.
        multiple: The number that a width is rounded up to a multiple of.
        widest: The widest batch, in steps.
    """
    for member in members:
        yield _Trial([member], pad([member.steps], multiple=multiple), "zeros")
    for number, rows in enumerate(_batches(members)):
        needed = rounded_width(max(member.length for member in rows), multiple)
        yield _Trial(rows, pad([member.steps for member in rows], width=needed), "zeros")
        # The second batch is up to 8 multiples wider, with the next kind of junk.
        name, scale = [*JUNK_SCALES.items()][number % len(JUNK_SCALES)]
        wider = pad([member.steps for member in rows], width=min(widest, needed + multiple * (1 + number % 8)))
        yield _Trial(rows, with_padding_filled(wider, sampler.fill(wider.steps.shape[:2], scale)), name)


def _batches(members: Sequence[_ProofMember]) -> Iterator[list[_ProofMember]]:
    """Yields the sequences in batches of `BATCH_ROWS` rows in turn; `_MAX_SQUARES` limits wide ones, never below 2."""
    waiting, number = [*members], 0
    while waiting:
        max_rows, rows = BATCH_ROWS[number % len(BATCH_ROWS)], [waiting.pop(0)]
        while waiting and len(rows) < max_rows:
            width = max(waiting[0].length, *(member.length for member in rows), 1)
            if len(rows) > 1 and (len(rows) + 1) * width**2 > _MAX_SQUARES:
                break
            rows.append(waiting.pop(0))
        yield rows
        number += 1


def _note_answer(
    proof: MendProof, member: _ProofMember, batch: PaddedBatch, answer: ModelOutput, row: int, padding: str
) -> None:
    """Notes in a proof how the mended model's answer to a sequence differs from the original's.

    The first answer is to the sequence alone: it is kept in `member`, and later ones are compared with it.

    Args:
        proof: The proof; `worst`, `amplified`, `ill_conditioned`, `in_company` and `bits` may change.
        member: The sequence.
        batch: The batch that was run.
        answer: The answer to it.
        row: The row of the sequence.
        padding: The name of the padding.
    """
    difference = member.expected.row_difference(answer, 0, row)
    # A difference at raw values is excused, if a few ulps change the answer as much: it then counts as 0.
    if member.is_raw and proof.tolerance < difference < math.inf:
        is_first_excuse = member.amplified is None
        if member.amplified is None:
            member.amplified = member.change_by_ulps()
        if difference <= proof.tolerance + AMPLIFIED * member.amplified:
            difference = 0.0
            proof.amplified = max(proof.amplified, member.amplified)
            proof.ill_conditioned += is_first_excuse
    if proof.worst is None or not difference <= proof.worst.difference:  # `not <=`: a NaN is worse than any number
        amplified = member.amplified or 0.0
        proof.worst = ComparedSequence(
            member.index, member.length, batch.rows, batch.width, padding, difference, amplified
        )
    if member.mended is None:  # this is the answer to the sequence alone
        member.mended = Baseline([member.steps], batch, answer)
    else:
        proof.in_company = max(proof.in_company, member.mended.row_difference(answer, 0, row))
        proof.bits &= _bits(member.mended.answer, 0, member.length) == _bits(answer, row, member.length)


def _bits(answer: ModelOutput, row: int, length: int) -> bytes:
    """The bytes of the logits and attention weights for a row, at its valid steps."""
    logits = answer.logits[row]
    parts = [logits[:length] if answer.logits.ndim == 3 else logits]
    parts += [] if answer.attention is None else [answer.attention[row, :length]]
    return b"".join(part.tobytes() for part in parts)


def _why_different(proof: MendProof) -> str | None:
    """Why the proof does not hold: the sequence that differs most, and by how much; None if it holds."""
    worst, allowed = proof.worst, proof.tolerance
    if worst is None or proof.difference <= allowed:
        return None
    text = f"{worst}, by {proof.difference:.3g}, where {allowed:.2g} is allowed"
    if worst.amplified > allowed:
        rounding = f"rounding moves it by {worst.amplified:.2g}"
        text += f"; the values are raw, and the original is ill-conditioned there: {rounding}"
    return f"the mended model differs from the original alone: {text}"
