"""Measures the cases of verification: how much a graph's answers change with things that must not matter.

Each case varies one thing (batching, position, width, padding, neighbours, order, threads) and compares each row's
answer with the answer of the same row unbatched. The `reference` cases compare with the model that the graph was made
from. Everything runs through `padding` and `runtime.session`, as when it is served. This module measures only;
`lengthwise.verification.promises` decides.

| word here | meaning |
|---|---|
| answer | the outputs of one sequence: its logits and, if the graph has them, its attention weights |
| raw, ordinary | kinds of random sequences: see `random_sequences` |
| relative | of a difference: divided by max(1, the answer's largest absolute value), `scale_of` |
| explained | of a difference: a change of the sequence's values by a few ulps makes one as large (`MeasuredAnswer`) |

An explained difference counts for `amplified` of the case, not for `relative`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import (
    LENGTHS,
    BatchLogits,
    PaddedBatch,
    RowInput,
    batches,
    pad,
    rounded_width,
    step_mask,
    steps_of,
)
from lengthwise.runtime.answers import by_row
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import (
    AMPLIFIED,
    EXTREME_PADDING,
    KINDS,
    ROUNDING,
    MeasuredAnswer,
    draw,
    exactly,
    largest_difference,
    lengths_for,
    raw_kind_at,
    scale_of,
)
from lengthwise.wrong_values import counted

Reference = Callable[[PaddedBatch], BatchLogits]
"""Computes the logits of the model that a graph was made from."""

ExactReference = Callable[[PaddedBatch], BatchLogits | None]
"""The same in float64, which shows how much the model itself rounds; None where it does not run in float64."""

MIXED_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 11, 16, 21, 29, 37)
"""Lengths of the sequences of most cases, given to `lengths_for`; most of them are not a multiple of four, so they have
padding."""

_OF_EACH_KIND = 3
"""Sequences of each kind of raw values with which a lower precision is compared with float32."""

MANY_SEQUENCES, MANY_LONGEST, MANY_ROWS = 160, 100, (2, 3, 5, 8, 16)
"""Sequences of random lengths, the longest length, and the rows of the batches, in turn. An order of summation that
depends on the batch may change the bits of a few answers in a hundred."""

RowOutputs = list[NDArray[np.float32]]
"""One row's outputs without padding: its logits and, if the graph has them, its attention weights."""

ExpectedOutputs = list[MeasuredAnswer]
"""The outputs that are expected of one row."""

Varied = Literal[
    "reference", "company", "width", "padding", "neighbours", "order", "threads", "attention", "at padding", "missing"
]

_NOT_INVARIANCE: tuple[Varied, ...] = ("reference", "attention", "at padding", "missing")
"""The cases that do not compare a batched sequence with the same sequence unbatched."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case, as in `verification.json`: what was varied, and how much the answers changed."""

    name: str  # a description for people
    varied: Varied  # "company" (a name in published files): a sequence batched, against the same unbatched
    # The largest absolute difference of a logit or an attention weight at a valid step; infinite if an answer is not
    # finite. For `missing`, which only the exporter measures, it is a ratio: 0.8 if changed values move an answer by
    # 0.5, and beside a missing value by 0.4. 0 is the worst: the missing value hides the values around it.
    difference: float
    # The largest of the rows' differences, each divided by max(1, the row's largest |logit|): 0.002 for logits of up to
    # 20 that differ by 0.04. Without the rows that count for `amplified`
    relative: float
    bits: bool  # whether all bits are equal
    provider: str  # the provider that ran it
    extreme: bool = False  # whether the padding held values of `EXTREME_PADDING`, with which the service never pads
    # Where the model is ill-conditioned, so that rounding explains more than `ROUNDING`: how much a few ulps of the
    # values of such a sequence move its answer, relative as above. 0 if there is none.
    amplified: float = 0.0

    @property
    def is_invariance(self) -> bool:
        """Whether the case compares a batched sequence with the same sequence unbatched."""
        return self.varied not in _NOT_INVARIANCE

    def as_json(self) -> dict[str, Any]:
        """Returns the case as in `verification.json`, where an infinite difference is null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def measure_cases(
    open_session: Callable[[int], Session],
    manifest: Manifest,
    reference: Reference | None,
    *,
    seed: int = 0,
    origin: str = "the model itself",
    exact: ExactReference | None = None,
) -> list[Case]:
    """Measures every case of a graph: against its reference, of batch invariance, and with two threads.

    Args:
        open_session: Opens a session of the graph with a number of threads.
        manifest: The manifest of the graph.
        reference: The model that the graph was made from, such as a torch module; None leaves out the cases against it,
            as for an ONNX file.
        seed: The seed of random sequences.
        origin: What the reference is, for the names of the cases.
        exact: The reference in float64; None if there is none.
    """
    variations = BatchVariations(open_session(1), manifest, seed)
    cases = [] if reference is None else list(variations.against(reference, origin, exact))
    return [*cases, *variations.invariance(), *variations.with_threads(open_session(2))]


class BatchVariations:
    """A batch of sequences of mixed lengths, their answers unbatched, and the cases that vary the batch.

    "The batch" in the docstrings is this one, `self.sequences`; a row is one of its sequences.
    """

    def __init__(self, session: Session, manifest: Manifest, seed: int) -> None:
        self.session = session
        self.manifest = manifest
        self.seed = seed
        self.widest = rounded_width(manifest.max_length, manifest.width_multiple)  # the model's largest width
        self.most_rows = manifest.max_batch_rows  # rows in a batch; None for any number
        # With one row and every width, no sequence ever has padding, so there is none to vary.
        self.unpadded = self.most_rows == 1 and manifest.width_multiple == 1
        self.how_batched = "batched" if self.most_rows != 1 else "after others, each unbatched"  # for names of cases
        lengths = lengths_for(manifest, MIXED_LENGTHS)
        self.sequences, self.unbatched = self._answered(lengths, seed)
        self.neighbours = draw(manifest, lengths[::-1], seed + 1, raw=True)

    def invariance(self) -> Iterator[Case]:
        """Yields the cases of batch invariance, and those of attention: all that this session alone can show."""
        yield from self.at_every_position()
        yield self.of_many_lengths()
        if not self.unpadded:
            yield from self.wider()
            yield from self.with_padding_filled()
        yield from self.with_other_neighbours()
        yield from self.permuted()
        yield from self.at_max_length()
        yield from self.attention()

    def against(self, reference: Reference, origin: str, exact: ExactReference | None = None) -> Iterator[Case]:
        """Yields the cases that compare the graph with its reference: at the shortest, mixed and longest lengths.

        A float32 graph is also compared at one sequence of each kind of raw values. The arguments are those of
        `measure_cases`.
        """
        shortest, longest = self.manifest.min_length, self.manifest.max_length
        mixed = lengths_for(self.manifest, MIXED_LENGTHS)
        for name, sequences in {
            f"length {shortest}": draw(self.manifest, [shortest, shortest], self.seed + 2),
            "mixed lengths": draw(self.manifest, mixed, self.seed),
            f"lengths {longest} and {shortest}": draw(self.manifest, [longest, shortest], self.seed + 3),
        }.items():
            yield self._against(f"{name}, against {origin}", sequences, reference, exact)
        # A lower precision may round raw values coarsely: `at_raw_values` measures that
        if self.manifest.precision == "fp32":
            # Every other one of the drawn sequences is raw, of each kind in turn.
            sequences, _ = self._answered(np.resize(mixed, 2 * len(KINDS)).tolist(), self.seed + 6)
            yield self._against(f"raw values, against {origin}", sequences[1::2], reference, exact, is_raw=True)

    def at_raw_values(
        self, original: Reference, origin: str, allowed: float
    ) -> Iterator[tuple[str, PaddedBatch, Case]]:
        """Compares a graph at another precision with its float32 original on each kind of raw values.

        Sequences to which the original has no finite answer are left out.

        Args:
            original: The float32 graph.
            origin: What the original is, for the names of the cases.
            allowed: Relative differences up to this need no explanation. A larger one is explained if a few ulps of the
                values change the original's own answer as much.

        Yields:
            The name of each kind, its sequences in one batch, and the case. Nothing for token ids.
        """
        lengths = np.resize(lengths_for(self.manifest, MIXED_LENGTHS), 2 * len(KINDS) * _OF_EACH_KIND).tolist()
        sequences = draw(self.manifest, lengths, self.seed + 6, raw=True)[1::2]  # the raw ones, of each kind in turn
        for index, kind in enumerate(KINDS if self.manifest.input.kind == "values" else ()):
            sequences_of_kind = sequences[index :: len(KINDS)]
            are_finite = [np.isfinite(original(batch)).all() for batch in self._batches(sequences_of_kind, most_rows=1)]
            if answerable := list(itertools.compress(sequences_of_kind, are_finite)):
                case = self._against(f"{kind}, against {origin}", answerable, original, is_raw=True, allowed=allowed)
                yield kind, pad(answerable, multiple=self.manifest.width_multiple), case

    def _against(
        self,
        name: str,
        sequences: Sequence[RowInput],
        reference: Reference,
        exact: ExactReference | None = None,
        *,
        is_raw: bool = False,
        allowed: float | None = None,
    ) -> Case:
        """Compares the session's answers to sequences with a reference's, as one case.

        Args:
            name: The description of the case.
            sequences: The sequences.
            reference: Computes the expected answers.
            exact: The same in float64; None if there is none.
            is_raw: Whether the sequences have raw values.
            allowed: Relative differences up to this need no explanation; `ROUNDING` if it is None. If it is set, the
                session has a lower precision than the reference, and the reference shows what rounding changes.
        """
        # 1. Run both.
        expected, actual = [], []
        for batch in self._batches(sequences):
            expected += by_row(reference(batch), batch.lengths, self.manifest)
            actual += by_row(self._logits(batch), batch.lengths, self.manifest)

        # 2. Compare them; say how to measure what rounding changes in each expected answer.
        def answer_to(model: ExactReference, steps: RowInput) -> NDArray[np.float32] | None:
            """Runs one sequence unbatched in a model; returns its logits, or None if the model has no answer."""
            (batch,) = self._batches([steps])
            logits = model(batch)
            return None if logits is None else by_row(logits, batch.lengths, self.manifest)[0]

        measured = [
            MeasuredAnswer(
                answer,
                steps,
                partial(answer_to, self._logits if allowed is None else reference),
                compute_exactly=None if exact is None else partial(answer_to, exact),
                is_raw=is_raw,
                allowed=ROUNDING if allowed is None else allowed,
            )
            for steps, answer in zip(sequences, expected, strict=True)
        ]
        return self._case(name, "reference", [actual], [measured])

    def at_every_position(self) -> Iterator[Case]:
        """Yields a case for each row: the row in every position of the batch, against the same row unbatched."""
        count = len(self.sequences)
        rotations = [self._reordered(np.roll(np.arange(count), shift)) for shift in range(count)]
        for row, unbatched in enumerate(self.unbatched):
            name = f"{counted(len(self.sequences[row]), 'step')} {self.how_batched}, in each of {count} positions"
            yield self._case(name, "company", [answers[row] for answers in rotations], [unbatched] * count)

    def of_many_lengths(self) -> Case:
        """Compares many sequences of random lengths, in batches of several sizes, with the same sequences unbatched."""
        random = np.random.default_rng(self.seed + 5)
        shortest = self.manifest.min_length
        longest = max(min(self.manifest.max_length - 1, shortest - 1 + MANY_LONGEST), shortest)
        lengths = random.integers(shortest, longest + 1, size=MANY_SEQUENCES).tolist()
        sequences, unbatched = self._answered(lengths, self.seed + 5)
        sizes, answers = itertools.cycle(MANY_ROWS), list[RowOutputs]()
        while len(answers) < len(sequences):
            answers += self._answers(sequences[len(answers) : len(answers) + next(sizes)])
        name = f"{len(sequences)} sequences of {shortest} to {longest} steps {self.how_batched}"
        return self._case(name, "company", answers, unbatched)

    def wider(self) -> Iterator[Case]:
        """Yields a case for each of up to three larger widths than the batch needs."""
        multiple = self.manifest.width_multiple
        needed = rounded_width(max(map(len, self.sequences)), multiple)
        widths = {min(width, self.widest) for width in (needed + multiple, needed + 5 * multiple, 4 * needed)}
        for width in sorted(widths - {needed}):
            answers = self._answers(self.sequences, width=width)
            yield self._case(f"padded to {width} steps instead of {needed}", "width", answers)

    def with_padding_filled(self) -> Iterator[Case]:
        """Yields a case for each kind of values that padding is filled with instead of zeros, in a wide batch."""
        for name, fill in self._fills().items():
            answers: list[RowOutputs] = []
            for batch in self._batches(self.sequences, self._wide()):
                answers += self._without_padding(self.session, self._filled(batch, fill))
            case = self._case(f"padding filled with {name}", "padding", answers)
            yield replace(case, extreme=name in EXTREME_PADDING)

    def with_other_neighbours(self) -> Iterator[Case]:
        """Yields one case: each row of the batch, with other sequences in the place of all other rows."""
        answers = [
            self._answers([*self.neighbours[:row], steps, *self.neighbours[row + 1 :]])[row]
            for row, steps in enumerate(self.sequences)
        ]
        yield self._case("every neighbour replaced", "neighbours", answers)

    def permuted(self) -> Iterator[Case]:
        """Yields a case for each of three random orders of the batch's rows."""
        random = np.random.default_rng(self.seed)
        for number in range(3):
            answers = self._reordered(random.permutation(len(self.sequences)))
            yield self._case(f"rows permuted, order {number + 1}", "order", answers)

    def at_max_length(self) -> Iterator[Case]:
        """Yields two cases of a batch with a sequence of the longest length and two short ones.

        The first case is of the long sequence, the second is of the short ones.
        """
        longest = self.manifest.max_length
        (steps,) = draw(self.manifest, [longest], self.seed + 3)
        # Two short ones only: self-attention needs rows x heads x width^2 of memory
        first, last, answer = self._answers([self.sequences[0], self.sequences[-1], steps])
        yield self._case(f"{longest} steps {self.how_batched}", "company", [answer], [self._unbatched(steps)])
        name = f"beside a sequence of {longest} steps"
        yield self._case(name, "company", [first, last], [self.unbatched[0], self.unbatched[-1]])

    def with_threads(self, session: Session) -> Iterator[Case]:
        """Yields two cases of a session with two threads: batched, and unbatched, against one thread unbatched."""
        batched = self._answers(self.sequences, session=session)
        yield self._case(f"2 threads instead of 1, {self.how_batched}", "threads", batched)
        unbatched = [answer for steps in self.sequences for answer in self._answers([steps], session=session)]
        yield self._case("2 threads instead of 1, unbatched", "threads", unbatched)

    def attention(self) -> Iterator[Case]:
        """Yields the cases of attention weights: they are 0 at padding, and their sum over the valid steps is 1.

        There is no case of padding if the model never gets any, and none at all for a graph without attention.
        """
        at_padding, sums = [], []
        for batch in self._batches(self.sequences, None if self.unpadded else self._wide()):
            weights = self.session.run(batch, ("logits", "attention")).attention
            if weights is None:  # the graph has no such output
                return
            valid = step_mask(batch.lengths, batch.width)
            at_padding.append(weights[~valid] + np.float32(0))  # turns -0, which has other bits than 0, into 0
            sums.append(np.where(valid, weights, 0).sum(axis=1, dtype=np.float64).astype(np.float32))
        if not self.unpadded:
            zeros = [exactly(np.zeros_like(weights)) for weights in at_padding]
            yield self._case("attention at padding", "at padding", [at_padding], [zeros])
        ones = [exactly(np.ones_like(sums_of_rows)) for sums_of_rows in sums]
        yield self._case("attention over the valid steps", "attention", [sums], [ones])

    def _fills(self) -> dict[str, NDArray[Any]]:
        """Returns the values to fill padding with, by their names in the report; each array is repeated as needed."""
        random = np.random.default_rng(self.seed + 4)
        if self.manifest.input.vocabulary is not None:
            ids = random.integers(0, self.manifest.input.vocabulary, size=997, dtype=np.int64)
            return {"other ids": ids, "the last id": np.array([self.manifest.input.vocabulary - 1])}
        return {name: np.array([value], dtype=np.float32) for name, value in EXTREME_PADDING.items()} | {
            "junk": (100 * random.standard_normal(997)).astype(np.float32),
            "another row's steps": steps_of(self.sequences[-1]).ravel(),
        }

    def _filled(self, batch: PaddedBatch, fill: NDArray[Any]) -> PaddedBatch:
        """The batch with filled padding of every sequence: `fill` is repeated; for token ids, modulo the vocabulary."""

        def filled(steps: NDArray[Any], lengths: NDArray[np.int32], vocabulary: int | None) -> NDArray[Any]:
            """The steps `[rows, width, ...]` of one sequence of each row, with filled padding."""
            steps, padding = steps.copy(), ~step_mask(lengths, steps.shape[1])
            values = fill if vocabulary is None else np.nan_to_num(fill) % vocabulary
            steps[padding] = np.resize(values, steps[padding].shape)
            return steps

        beside = dict(batch.beside)
        for name, further in self.manifest.further.items():
            beside[name] = filled(beside[name], beside[LENGTHS.format(name)], further.input.vocabulary)
        steps = filled(batch.steps, batch.lengths, self.manifest.input.vocabulary)
        return replace(batch, steps=steps, beside=beside)

    def _wide(self) -> int:
        """A width at which every row of the batch has padding; but at most the model's largest width."""
        return min(rounded_width(max(map(len, self.sequences)) + 1, self.manifest.width_multiple), self.widest)

    def _batches(
        self, sequences: Sequence[RowInput], width: int | None = None, most_rows: int | None = None
    ) -> Iterator[PaddedBatch]:
        """Pads sequences to batches, as the service does, in their order.

        Args:
            sequences: The sequences.
            width: The width of all batches; by default, what each batch needs. Further sequences get as many steps of
                padding more, at most up to their own largest width.
            most_rows: The largest number of rows in a batch; by default, that of the model.
        """
        row_limit = most_rows or self.most_rows
        multiple = self.manifest.width_multiple
        for batch in batches(sequences, multiple=multiple, width=width, most_rows=row_limit):
            added = batch.width - rounded_width(int(batch.lengths.max()), multiple)
            beside = dict(batch.beside)
            for name, further in self.manifest.further.items():
                steps = beside[name]
                wider = min(added, max(0, rounded_width(further.max_length, multiple) - steps.shape[1]))
                beside[name] = np.pad(steps, [(0, 0), (0, wider), (0, 0)][: steps.ndim])
            yield replace(batch, beside=beside)

    def _answers(
        self, sequences: Sequence[RowInput], width: int | None = None, session: Session | None = None
    ) -> list[RowOutputs]:
        """Runs sequences in batches; returns the outputs of each sequence, without padding.

        The batches have the width that they need, unless `width` is given; they run in `self.session` by default.
        """
        session = session or self.session
        return [answer for batch in self._batches(sequences, width) for answer in self._without_padding(session, batch)]

    def _reordered(self, order: NDArray[np.intp]) -> list[RowOutputs]:
        """Runs the batch's rows in another order (`order[i]` as row i); returns their outputs in the batch's order."""
        answers = self._answers([self.sequences[row] for row in order])
        return [answers[index] for index in np.argsort(order)]

    def _answered(self, lengths: Sequence[int], seed: int) -> tuple[list[RowInput], list[ExpectedOutputs]]:
        """Draws sequences of these lengths, every other one of raw values, and runs each unbatched.

        A raw sequence whose answer is not finite, which the service would refuse, is replaced by an ordinary sequence.

        Returns:
            The sequences, and the outputs of each, as those that are expected in every batch.
        """
        sequences = draw(self.manifest, lengths, seed, raw=True)
        ordinary, answers = list[RowInput](), []
        for index, steps in enumerate(sequences):
            is_raw = raw_kind_at(index) is not None
            answer = self._unbatched(steps, is_raw=is_raw)
            if is_raw and not all(np.isfinite(output.answer).all() for output in answer):
                ordinary = ordinary or draw(self.manifest, lengths, seed)
                sequences[index] = ordinary[index]
                answer = self._unbatched(ordinary[index])
            answers.append(answer)
        return sequences, answers

    def _unbatched(self, steps: RowInput, *, is_raw: bool = False) -> ExpectedOutputs:
        """Runs a sequence unbatched; returns its outputs, each with how to measure what rounding changes in it."""

        def compute(index: int, rounded: RowInput) -> NDArray[np.float32]:
            """Computes the output at an index of the outputs for other values of the sequence."""
            return self._answers([rounded])[0][index]

        (answer,) = self._answers([steps])
        return [
            MeasuredAnswer(output, steps, partial(compute, index), is_raw=is_raw) for index, output in enumerate(answer)
        ]

    def _logits(self, batch: PaddedBatch) -> BatchLogits:
        """Runs the session as a `Reference`: only its logits."""
        return self.session.run(batch).logits

    def _without_padding(self, session: Session, batch: PaddedBatch) -> Iterator[RowOutputs]:
        """Runs a batch, and yields each row's outputs without padding."""
        outputs = session.run(batch, ("logits", "attention"))
        rows = by_row(outputs.logits, batch.lengths, self.manifest)
        for index, (logits, length) in enumerate(zip(rows, batch.lengths, strict=True)):
            yield [logits] if outputs.attention is None else [logits, outputs.attention[index, :length]]

    def _case(
        self,
        name: str,
        varied: Varied,
        answers: Sequence[RowOutputs],
        expected: Sequence[ExpectedOutputs] | None = None,
    ) -> Case:
        """Compares outputs of rows with the expected ones, and makes the case.

        - `difference` is the largest difference of all rows.
        - `relative` is the largest relative difference that is not explained. It is explained if rounding of the row's
          values changes the expected output by `1 / AMPLIFIED` of the difference, or more.
        - `amplified` is the most that rounding changes an output, over the differences that it explains. In a case
          against a reference the others count too: the error of a failed case then says that the model is
          ill-conditioned there.

        Args:
            name: The description of the case.
            varied: What was varied.
            answers: For each row, its outputs.
            expected: For each row, its expected outputs; by default those of the batch's rows unbatched.
        """
        rows = zip(self.unbatched if expected is None else expected, answers, strict=True)
        pairs = [pair for row in rows for pair in zip(*row, strict=True)]
        largest = relative = amplified = 0.0
        for measured, output in pairs:
            difference = largest_difference(output, measured.answer)
            relative_difference = difference / scale_of(measured.answer)
            by_rounding = measured.difference_by_rounding(relative_difference)
            is_explained = by_rounding > 0 and relative_difference <= measured.allowed + AMPLIFIED * by_rounding
            largest = max(largest, difference)
            amplified = max(amplified, by_rounding if is_explained or varied == "reference" else 0.0)
            relative = max(relative, 0.0 if is_explained else relative_difference)
        has_same_bits = all(measured.answer.tobytes() == output.tobytes() for measured, output in pairs)
        return Case(name, varied, largest, relative, has_same_bits, self.session.provider, amplified=amplified)
