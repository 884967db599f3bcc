"""The sizes of batches that a model accepts, those of the trials, and why a model cannot be checked.

Reasons are a *frozen* axis (the model runs at one number of rows or one width only), a required order of the rows, and
left padding. A function `why_...` returns the reason as a sentence for the report. A model *accepts* a batch if it runs
without an error.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.checking.baseline import Baseline, relative_difference, why_unsteady
from lengthwise_export.checking.causes import BY_PLACE
from lengthwise_export.checking.compared_runs import runs_other_code_alone
from lengthwise_export.checking.leaks import FailedTrial
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler, choose_batch_sizes
from lengthwise_export.errors import RunError, UncheckableError
from lengthwise_export.layouts import LEFT, PaddedBatch, StepLayout, Steps, pad, rounded_width

_MAX_ROWS, _MAX_WIDTH = 64, 128  # all row counts and widths up to these are tried to find a frozen axis
_MAX_SUGGESTED_WIDTH, _MAX_SUGGESTIONS = 8192, 64  # and wider ones that the sizes of weights suggest, at most so many
_TOO_NARROW: Final = re.compile(r"[Kk]ernel size can't be greater|[Oo]utput size is too small")
"""What torch raises for a convolution or a pooling over fewer steps than its kernel has."""
_NO_PADDING_ID: Final = re.compile(r"\bpad(ding)?[ _](token|id)", re.IGNORECASE)
"""What decoders raise that find the last step of a row by the id in its padding."""
_MAX_NAMED = 8  # at most this many sizes are named in a message


def run_error(subject: Subject, batch: PaddedBatch) -> RunError | None:
    """The error that the model raises for a batch; None if it runs."""
    try:
        subject.answer(batch)
    except RunError as error:
        return error
    return None


def runs(subject: Subject, batch: PaddedBatch) -> bool:
    """Whether the model runs a batch without an error."""
    return run_error(subject, batch) is None


def why_it_raises(subject: Subject, sequences: Sequence[Steps], width: int, error: RunError) -> str:
    """The reason why the model raises `error` for the baseline batch, as a sentence with what to change.

    If the model did not raise, but its answer cannot be judged, that is the reason. Else these causes are tried, in
    this order: earlier calls have changed the model; the batch is wider than its longest sequence; the number of rows
    is frozen; lengths differ; the width is frozen, or must be a multiple of some number; the kernel of a convolution
    is wider. If none applies, the sentence has only the error and the widths at which the model runs.
    """
    if error.of_answer is not None:
        return error.of_answer
    # Calls before this one
    if subject.state is not None and (names := subject.state.changed()):
        subject.state.restore()
        batch = pad(sequences, width=width)
        if runs(subject, batch):
            return why_unsteady(subject, names, [batch])
    # Padding at the end of every row
    if runs(subject, pad(sequences, multiple=1)):
        return (
            f"the model raises if a batch is wider than its longest sequence ({error}): take the width from the "
            "tensor (x.size(1)), not from lengths.max(), and pass total_length=x.size(1) to pad_packed_sequence"
        )
    # The number of rows, and then rows of different lengths
    accepted = [size for size in range(1, _MAX_ROWS + 1) if runs(subject, pad([sequences[0]] * size, width=width))]
    if len(accepted) == 1:
        return _frozen_axis("rows", accepted[0], error)
    if len(sequences) in accepted:
        return _lengths_may_not_differ(len(sequences), error)
    # The width
    accepted = widths_at_which_it_runs(subject, Sampler(subject.steps, seed=0), rows=len(sequences))
    if _is_one_size(accepted):
        return _frozen_axis("width", accepted[-1], error)
    divisor = math.gcd(*accepted)
    if divisor > 1 and len(accepted) > 2:
        return (
            f"the model runs only at widths that are multiples of {divisor}, and raises at {width} ({error}): pad to "
            "whole chunks in forward, so that it accepts every width"
        )
    ellipsis = ", ..." if len(accepted) > _MAX_NAMED else ""
    ran_at = f"; it runs at widths of {', '.join(map(str, accepted[:_MAX_NAMED]))}{ellipsis}" if accepted else ""
    if _TOO_NARROW.search(error.detail) and min(accepted, default=_MAX_WIDTH) > width:
        part = "its kernel" if error.part is None else f"the kernel of {error.part}"
        return (
            f"a batch of {width} steps is too narrow for {part}{ran_at}: {error}. Pad to the size of the kernel in "
            "forward, or use a smaller kernel or stride"
        )
    return f"the model raises for a batch of {len(sequences)} rows and a width of {width}{ran_at}: {error}"


def _lengths_may_not_differ(rows: int, error: RunError) -> str:
    """The sentence that a model accepts rows of one length, and raises if the lengths in a batch differ."""
    return f"the model accepts {rows} rows of one length, and raises if the lengths differ within a batch: {error}"


def widths_at_which_it_runs(subject: Subject, sampler: Sampler, *, rows: int = 2) -> list[int]:
    """The widths, in ascending order, at which the model runs unpadded rows of that length.

    All widths up to a bound are tried, and wider ones that the sizes of weights suggest: where all steps are flattened,
    a layer has `width * channels` inputs.
    """
    sizes = sorted(subject.sizes)
    suggested = {
        large // small * times
        for large in sizes
        for small in sizes
        for times in (1, 2, 4)
        if large % small == 0 and _MAX_WIDTH < large // small * times <= _MAX_SUGGESTED_WIDTH
    }
    return [
        size
        for size in (*range(1, _MAX_WIDTH + 1), *sorted(suggested)[:_MAX_SUGGESTIONS])
        if runs(subject, pad([sampler.sequence(size)] * rows, width=size))
    ]


def why_of_one_width(subject: Subject, *, beyond: int = 0) -> str | None:
    """Why a model that runs at one width only cannot be checked, and what to do.

    None if it runs at several widths, or at none that is greater than `beyond`.
    """
    sampler = Sampler(subject.steps, seed=0)
    accepted = widths_at_which_it_runs(subject, sampler)
    if not _is_one_size(accepted) or accepted[-1] <= beyond:
        return None
    error = run_error(subject, pad([sampler.sequence(accepted[-1] + 1)] * 2, multiple=1))
    return None if error is None else _frozen_axis("width", accepted[-1], error)


def _is_one_size(sizes: Sequence[int]) -> bool:
    """Whether the model runs at one size only, or at that and 1: one step broadcasts to a table of all steps."""
    return len(sizes) == 1 or (len(sizes) == 2 and sizes[0] == 1)


def _frozen_axis(axis: str, size: int, error: RunError) -> str:
    """The sentence that an axis, `rows` or `width`, is frozen at a size, with the error at other sizes and a cure."""
    part = "" if error.part is None else f", by {error.part}"
    cure = "take it from the shape of the tensor"
    if axis == "width":
        change = (
            "pool over the steps in front of it (a mean, a maximum, attention, nn.AdaptiveAvgPool1d)"
            if part
            else "take positions by number (table[: x.size(1)]), and pool over the steps"
        )
        cure = (
            f"{change}; or keep a torch module as it was trained: --width {size} --fit pad, or --fit resample (LW603)"
        )
    elif _NO_PADDING_ID.search(error.detail):
        cure = "say one in its configuration (such as config.pad_token_id = 0), and pass it with --pad-id, such as 0"
    return (
        f"the model takes {size} {'steps' if axis == 'width' else 'rows'} only: {axis} is frozen at {size} ({error})"
        f"{part}; {cure}"
    )


_FORMS: Final[Mapping[str, str]] = {
    "rows, longest, classes": "it ends at the longest row of the batch: pass total_length=x.size(1) to "
    "pad_packed_sequence, and do not cut x at lengths.max()",
    "longest, rows, classes": "it ends at the longest row of the batch: pass total_length=x.size(0) to "
    "pad_packed_sequence, and do not cut x at lengths.max()",
    "width, rows, classes": "steps come before rows: return it with .transpose(0, 1); or, if steps come so too, pass "
    "--time-first",
    "rows, width, classes": "with --time-first steps come before rows in it too, [width, rows, classes]: return it "
    "with .transpose(0, 1), or leave --time-first out if steps come as [rows, width, features]",
    "rows, classes, width": "classes come before steps: return it with .transpose(1, 2)",
    "1, rows, classes": "an axis of 1 stands before the rows, as in the state of a recurrent layer: return state[-1], "
    "or squeeze(0)",
    "classes, rows, classes": "an axis of layers or directions stands before the rows, as in the state of a recurrent "
    "layer: return state[-1], or of both directions torch.cat((state[-2], state[-1]), 1)",
    "rows, 1, classes": "an axis of 1 stands between rows and classes: return it with squeeze(1)",
    "width, classes": "the axis of the rows is missing: out[0] is the answer to the first row only",
    "1, classes": "it has one row, whatever the number of sequences: it is the first row, or a mean over all rows",
    "longest, classes": "the axis of the rows is missing: out[0] is the answer to the first row only",
    "rows, width": "it has one number for each step, and no axis of classes: return it with unsqueeze(-1)",
    "rows, width, width": "it has a number for each pair of steps, as the weights of an attention",
}
"""What is wrong with an output, and what to do, by what its axes are."""


def why_not_finite(subject: Subject, batch: PaddedBatch, sampler: Sampler, where: str) -> str:
    """What is wrong with a model whose answers to a batch of a sampler are not finite, and what to do.

    `where` says which answers, and that they are not finite.
    """
    if not sampler.missing:
        return f"the answers to finite sequences{where}: train the model, or pass its weights with --checkpoint"
    shown = (
        f" ({operation.operator} shows a missing value by its place: LW805)"
        for operation in subject.record(batch).operations
        if BY_PLACE.fullmatch(operation.kind) and operation.has_nan
    )
    return f"the answers to sequences with missing values{where}: replace NaN in the model{next(shown, '')}"


def why_of_another_form(subject: Subject, batch: PaddedBatch) -> str:
    """The sentence for an output that is neither `[rows, classes]` nor `[rows, width, classes]`, with what to do."""
    shape, outputs = subject.output_form(batch)
    sizes = {1: "1", batch.width: "width", int(batch.lengths.max()): "longest", batch.rows: "rows"}
    why = _FORMS.get(", ".join(sizes.get(size, "classes") for size in shape))
    if why is None and len(shape) == 3 and shape[0] == batch.rows:
        why = (
            f"it has {shape[1]} steps in the place of {batch.width}, as behind a stride, a pooling or a convolution "
            "without padding: answer each step (torch.repeat_interleave, padding='same'), or the sequence (a pooling)"
        )
    if why is None and len(shape) == 2 and shape[0] == batch.rows * batch.width:
        why = "rows and steps are one axis: return it with unflatten(0, x.shape[:2])"
    if outputs > 1:
        why = f"{'' if why is None else why + '; '}if another of the {outputs} outputs is right, name it with --output"
    return (
        f"the output is {list(shape)} for {batch.rows} rows and a width of {batch.width}, but must be [rows, classes] "
        f"or [rows, width, classes]{'' if why is None else ': ' + why}"
    )


def why_it_raises_for(baseline: Baseline, trial: CheckTrial, error: RunError) -> str:
    """The reason why the model raises `error` for a trial although it ran the baseline, as a sentence."""
    why = f"{trial.name}: the model raises: {error}"
    if trial.batch.width != baseline.batch.width:
        widths = f"runs at a width of {baseline.batch.width} and raises at {trial.batch.width}"
        why = f"the model {widths}: its width is frozen ({error})"
    elif trial.change == "order":
        why = (
            f"the model requires an order of the rows (sorted by length, longest first): {error}; "
            "pack_padded_sequence accepts any order with enforce_sorted=False"
        )
    return why


def require_service_contract(
    subject: Subject,
    baseline: Baseline,
    failed: Sequence[FailedTrial],
    sizes: BatchSizes,
    sampler: Sampler,
    tolerance: float,
) -> None:
    """Makes sure that answers do not change only because the model expects another form of batches than the service's.

    Args:
        subject: The model.
        baseline: The sequences and their first answers.
        failed: The trials in which answers changed.
        sizes: The sizes of the trials.
        sampler: Draws padding.
        tolerance: The allowed difference of an answer.

    Raises:
        UncheckableError: The model requires sorted rows, or left padding.
    """
    layout, changes = subject.layout, {failed_trial.trial.change for failed_trial in failed}
    if not layout.packed and changes == {"order"}:
        answers = subject.answer(failed[0].trial.batch).logits
        # An answer that is in no row of the other order has changed. If each is in some row, rows are mixed up, which
        # is a leak.
        if any(
            min(relative_difference(logits, answer) for answer in answers) > tolerance
            for logits in baseline.answer.logits
        ):
            raise UncheckableError(
                "the model requires an order of the rows (sorted by length, longest first): its answers change if the "
                "first row is not the longest"
            )
    # A layout that the user stated, or another path for one row, makes a difference a leak.
    if not layout.is_right_padded or layout.is_stated or runs_other_code_alone(subject, baseline.sequences[0]):
        return
    if changes & {"width", "batch"} and all(
        _is_right_if_left_padded(subject, baseline, width, sampler, tolerance) for width in (sizes.width, sizes.wider)
    ):
        raise UncheckableError(
            "the model requires left padding (each sequence at the end of its row), but Lengthwise pads at the end: "
            "count positions and build masks from the start of the row, and take the last state of a sequence at its "
            "own last step, not at [:, -1]. If callers pad on the left, check it with --padding left"
        )


_FAR: Final = 10  # A model that requires left padding differs by more than so many tolerances with right padding


def _is_right_if_left_padded(
    subject: Subject, baseline: Baseline, width: int, sampler: Sampler, tolerance: float
) -> bool:
    """Whether the model requires left padding: only then are its answers those to the sequences alone.

    The sequences of the baseline run left-padded to a width, with large random values as padding. Three things must
    hold; False if one does not, or the model raises:

    1. The answers are the unbatched ones.
    2. They change with other lengths. (They do not in a model that ignores the lengths and reads backwards.)
    3. With right padding they are wrong. (They are right in a model without positions: its mask only lets large values
       through.)
    """
    steps = sampler.fill((baseline.batch.rows, width), 3.0)
    for row, sequence in zip(steps, baseline.sequences, strict=True):
        row[width - len(sequence) :] = sequence
    lengths = baseline.batch.lengths
    longer_lengths = np.minimum(lengths + 2, width).astype(np.int32)
    left_padded = subject.with_layout(LEFT)
    try:
        expected = [subject.answer(pad([sequence], multiple=1)).logits[0] for sequence in baseline.sequences]
        has_unbatched_answers = _difference_of_left_padded(left_padded, steps, lengths, expected) <= tolerance
        return (
            has_unbatched_answers
            and _difference_of_left_padded(left_padded, steps, longer_lengths, expected) > tolerance
            and _difference_of_left_padded(subject, steps, lengths, expected) > _FAR * tolerance
        )
    except RunError:
        return False


def _difference_of_left_padded(
    subject: Subject, steps: Steps, lengths: NDArray[np.int32], expected: Sequence[NDArray[np.float32]]
) -> float:
    """The largest difference of a model's answers to sequences from the expected ones.

    Args:
        subject: The model, which gets the sequences in its own layout.
        steps: The sequences left-padded, `[rows, width]` or `[rows, width, features]`.
        lengths: The lengths that the model gets; with longer ones, padding counts as steps.
        expected: The answer to each sequence. Of answers at each step the last ones are compared: with more steps in
            front, they are those of the same steps.
    """
    right_padded = np.stack([np.roll(row, length, axis=0) for row, length in zip(steps, lengths, strict=True)])
    answers = subject.answer(PaddedBatch(right_padded, lengths)).logits
    return max(
        relative_difference(right, answer[length - len(right) : length] if right.ndim == 2 else answer)
        for right, answer, length in zip(expected, answers, lengths, strict=True)
    )


def answers_padding_last(subject: Subject) -> bool:
    """Whether a model of packed rows that answers segment 0, the padding, too, answers it behind the sequences.

    Both readings are tried. The right one is that by which more answers equal those to a sequence alone. If these are
    as many by both, it is the one by which answers differ less: in a model that leaks, few may be equal, or none. False
    if the model raises at all widths.
    """
    sampler, first = Sampler(subject.steps, seed=0), replace(subject.layout, is_padding_answered_last=False)

    def likeness(layout: StepLayout) -> tuple[int, float]:
        """For a reading: how many answers equal those to a sequence alone, and minus the sum of all differences."""
        reading = subject.with_layout(layout)
        alone = [reading.answer(pad([steps], multiple=1)).logits[0] for steps in sequences]
        differences = [*map(relative_difference, alone, reading.answer(pad(sequences, width=width)).logits)]
        return sum(difference <= 1e-4 for difference in differences), -sum(differences)

    for width in (16, 64, 515):
        sequences = [sampler.sequence(width // part - 1) for part in (1, 2, 3, 4)]
        with contextlib.suppress(RunError):
            return likeness(replace(first, is_padding_answered_last=True)) > likeness(first)
    return False


def notes_of_alternatives(
    subject: Subject, baseline: Baseline, failed: Sequence[FailedTrial], tolerance: float
) -> Iterator[str]:
    """Yields a note for each other way to call the model, such as time-first, in which it is sound.

    The failed trials of the baseline run again in this way. No answer may change in them, and the answers to ordinary
    sequences must change with their last steps: otherwise the model does not read the sequences in this way.

    Raises:
        UncheckableError: The model is sound only if it gets lengths as shares, of the width or of the longest length,
            which the service never passes.
    """
    trials_of_baseline = [failed_trial.trial for failed_trial in failed if failed_trial.base is baseline.batch]
    for alternative in subject.alternatives() if trials_of_baseline else ():
        try:
            first = replace(baseline, answer=alternative.subject.answer(baseline.batch))
            # A generator: after the first answer that differs, no trial runs.
            answers = ((trial, alternative.subject.answer(trial.batch)) for trial in trials_of_baseline)
            is_sound = all(
                first.row_difference(answer, *pair) <= tolerance for trial, answer in answers for pair in trial.rows
            )
            changed = alternative.subject.answer(baseline.with_last_steps_changed(subject.steps.vocabulary))
            is_sound = is_sound and all(first.row_difference(changed, row, row) > tolerance for row in first.ordinary())
        except (RunError, IndexError):  # an answer of another shape may lack these rows
            continue
        if is_sound and "share" in alternative.sentence_end:
            raise UncheckableError(f"the model is sound only {alternative.sentence_end}")
        if is_sound:
            yield f"no answer changes in these trials {alternative.sentence_end}"


def notes_of_the_fast_path(
    subject: Subject, baseline: Baseline, failed: Sequence[FailedTrial], tolerance: float
) -> Iterator[str]:
    """Yields a note if the first failed trial holds on the framework's fast path, which the trials switch off."""
    trial = next((failed_trial.trial for failed_trial in failed if failed_trial.base is baseline.batch), None)
    if trial is None:
        return
    with contextlib.suppress(RunError):
        shipped = replace(baseline, answer=subject.answer_as_shipped(baseline.batch))
        answer = subject.answer_as_shipped(trial.batch)
        if max(shipped.row_difference(answer, *pair) for pair in trial.rows) <= tolerance:
            yield (
                f"the framework's fast path skips padding and does not show it ({trial.name}); training, other "
                "settings and an exported graph use the plain path"
            )


_WIDTHS: Final = (11, 23, 47, 97, 193, 389, 769, 7, 5, 3, 2, 1)
"""Widths to try, in this order, until the model runs. Models with much pooling need more than the first; models with a
small table of positions need less."""
MAX_UNBATCHED: Final = 48  # at most this many lengths on either side of the shortest accepted one are run unbatched
_SMALLEST_TABLE: Final = 4  # A weight of fewer rows may as well hold classes or features


@dataclass(frozen=True, slots=True)
class WidthLimits:
    """The widths that a model accepts."""

    widest: int  # The widest batch that ran, in steps; at most `max_length`
    sizes: BatchSizes  # The sizes of the trials
    note: str | None = None  # The error past the widest batch, if that is narrower than `max_length`
    # For each length below the shortest accepted one that was run unbatched, the error
    too_short: Mapping[int, RunError] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Subject, sampler: Sampler, max_length: int, min_length: int = 1) -> WidthLimits:
        """Finds the limits by running batches of two rows, and sequences unbatched.

        Raises:
            UncheckableError: The model needs longer sequences than `max_length` steps, or raises at a width that the
                trials need and no table of positions explains it.
        """

        def error_at(width: int) -> RunError | None:
            """The error that the model raises for two rows of different lengths in a batch of this width; or None."""
            longest = min(width, max_length)
            rows = [sampler.sequence(longest), sampler.sequence(max(longest - 1, min_length))]
            return run_error(subject, pad(rows, width=width))

        narrowest, widest, error = 1, max_length, None
        if min_length <= max_length:
            narrowest, widest, error = _range_of_widths(subject, sampler, (min_length, max_length), error_at)
        if min_length > widest:
            raise UncheckableError(
                f"the model needs at least {min_length} steps, and sequences of up to {widest} are tried: pass a "
                "smaller --min-length, or a larger --max-length if the model takes so many"
            )
        too_short = _lengths_too_short(subject, min_length, widest)
        shortest = max(min_length, max(too_short, default=0) + 1)
        sizes = choose_batch_sizes(subject.sizes, narrowest=narrowest, widest=widest, min_length=shortest)
        # Sizes of very short sequences leave no padding, but the model may accept some.
        rounded = rounded_width(sizes.longest + 1)
        if sizes.width == sizes.longest and error_at(rounded) is None:
            sizes = replace(sizes, width=sizes.longest + 1, wider=max(sizes.wider, rounded))
        note = None if error is None else f"the model raises past a width of {widest}: {error}"
        return cls(widest, sizes, note, too_short)


def _range_of_widths(
    subject: Subject, sampler: Sampler, lengths: tuple[int, int], error_at: Callable[[int], RunError | None]
) -> tuple[int, int, RunError | None]:
    """The range of widths at which the model runs, by trying some.

    Args:
        subject: The model.
        sampler: Draws the sequences.
        lengths: The shortest sequence, and the widest batch to try, in steps.
        error_at: Returns the error of the model at a width; None if it runs.

    Returns:
        1. The narrowest width for the trials; 1 if the model runs at a usual width.
        2. The widest width that runs, at most `max_length`.
        3. The error past that width; None if `max_length` runs.

        If no width runs, it is `(1, max_length, None)`: the baseline batch will raise, and its error explains why.

    Raises:
        UncheckableError: The widest is too narrow for the trials, and no table of positions explains it.
    """
    min_length, max_length = lengths
    widths = [width for width in _WIDTHS if min_length <= width <= max_length]
    widest = next((width for width in widths or [max_length] if error_at(width) is None), None)
    if widest is None:
        return 1, max_length, None
    narrowest, too_wide = 1 if widest <= max(_WIDTHS[0], min_length) else widest, max_length
    error = None if widest == too_wide else error_at(too_wide)
    if error is None:
        return narrowest, max_length, None
    # 1. Between `widest`, which runs, and `too_wide`, which raises: bisection, but first at widths where a table of
    #    positions may end: at the size of a weight, at one or two fewer, or at one more
    while too_wide - widest > 1:
        tables = sorted({end for size in subject.sizes for end in range(size - 2, size + 2) if widest < end < too_wide})
        middle = tables[len(tables) // 2] if tables else (widest + too_wide) // 2
        middle_error = error_at(middle)
        if middle_error is None:
            widest = middle
        else:
            too_wide, error = middle, middle_error
    # 2. A table of positions ends there if the error is about an index or a shape, and a weight is so long. Up to two
    #    rows more are allowed, because class tokens in front of the steps have positions too.
    does_not_fit = re.search(r"ind(ex|ices)|size|bound|shape|dimension|broadcast", error.detail.lower()) is not None
    has_such_weight = any(widest + extra_rows in subject.sizes for extra_rows in range(3))
    is_table = does_not_fit and widest >= _SMALLEST_TABLE and has_such_weight
    # 3. Else the model has to run at the widths of the trials.
    needed = choose_batch_sizes(subject.sizes, narrowest=narrowest, widest=max_length).wider
    if widest < needed and not is_table:
        if runs(subject, pad([sampler.sequence(too_wide)] * 2, width=too_wide)):
            raise UncheckableError(_lengths_may_not_differ(2, error))
        raise UncheckableError(
            why_of_one_width(subject, beyond=widest)
            or f"the model raises past a width of {widest}, so the trials of up to {needed} steps cannot be "
            f"run: {error}. If {widest} is its longest sequence, pass --max-length {widest}"
        )
    return narrowest, widest, error


def _lengths_too_short(subject: Subject, shortest: int, longest: int) -> dict[int, RunError]:
    """The lengths at which the model raises unbatched, with the errors, if these are all lengths below some length.

    Empty if all lengths run, if the longest raises too, or if the lengths that run are mixed with those that do not. An
    answer that is not finite counts as an error. Of many lengths only some are tried, and none below `shortest`.
    """
    sampler = Sampler(subject.steps, seed=0)  # of its own, so that the sequences of the trials stay the same

    def error_alone(length: int) -> RunError | None:
        """The error of the model for one unbatched sequence of a length; None if the answer is finite."""
        try:
            answer = subject.answer(pad([sampler.sequence(length)], multiple=1))
        except RunError as error:
            return error
        return None if np.isfinite(answer.logits).all() else RunError("the answer is not finite")

    # If the longest raises too, the batch of one row is the cause.
    if error_alone(shortest) is None or error_alone(longest) is not None:
        return {}
    # 1. Between `too_short`, which raises, and `accepted`, which runs: bisection, but first by doubling, since most
    #    such models need few steps, and long sequences take long
    too_short, accepted = shortest, longest
    while accepted - too_short > 1:
        middle = (accepted + too_short) // 2
        if accepted == longest:
            middle = min(2 * too_short, middle)
        if error_alone(middle) is None:
            accepted = middle
        else:
            too_short = middle
    # 2. It is a limit if all shorter lengths raise, and all longer ones run, as far as these are tried
    shorter = range(shortest, too_short + 1)
    evenly_spaced = np.linspace(shortest, too_short, min(len(shorter), MAX_UNBATCHED))
    shorter_lengths = np.unique(evenly_spaced.round().astype(int)).tolist()
    errors = {length: error for length in shorter_lengths if (error := error_alone(length)) is not None}
    longer_lengths = range(accepted, min(accepted + MAX_UNBATCHED, longest + 1))
    is_limit = len(errors) == len(shorter_lengths) and all(error_alone(length) is None for length in longer_lengths)
    return errors if is_limit else {}
