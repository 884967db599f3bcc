"""The sizes of batches that a model accepts, those of the trials, and why a model cannot be checked.

A frozen axis, a required order of rows, left padding: each is a reason of its own.
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

from lengthwise.padding import PaddedBatch, Steps, pad, rounded_width
from lengthwise_export.checking.baseline import Baseline, relative_difference, why_unsteady
from lengthwise_export.checking.leaks import FailedTrial, runs_other_code_alone
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import BatchSizes, CheckTrial, Sampler, sizes_apart_from
from lengthwise_export.errors import RunError, UncheckableError
from lengthwise_export.layouts import LEFT

_MAX_ROWS, _MAX_WIDTH = 64, 128  # all row counts and widths up to these are tried to find a frozen axis
_MAX_SUGGESTED_WIDTH, _MAX_SUGGESTIONS = 8192, 64  # wider ones if the sizes of weights suggest them, and so many
_TOO_NARROW: Final = re.compile(r"[Kk]ernel size can't be greater|[Oo]utput size is too small")
"""What torch raises for a convolution or a pooling over fewer steps than its kernel has."""
_NO_PADDING_ID: Final = re.compile(r"\bpad(ding)?[ _](token|id)", re.IGNORECASE)
"""What decoders raise that find the last step of a row by the id in its padding."""
_MAX_NAMED = 8  # at most this many sizes are named in a message


def raised_for(subject: Subject, batch: PaddedBatch) -> RunError | None:
    """What the model raises for a batch; None if it runs."""
    try:
        subject.answer(batch)
    except RunError as error:
        return error
    return None


def runs(subject: Subject, batch: PaddedBatch) -> bool:
    """Whether the model runs a batch without an error."""
    return raised_for(subject, batch) is None


def why_it_raises(subject: Subject, sequences: Sequence[Steps], width: int, error: RunError) -> str:
    """Explains why the baseline batch raises: earlier calls, a frozen axis, lengths that differ, or its own error."""
    if subject.state is not None and (names := subject.state.changed()):
        subject.state.restore()
        batch = pad(sequences, width=width)
        if runs(subject, batch):
            return why_unsteady(subject, names, [batch])
    if runs(subject, pad(sequences, multiple=1)):
        return (
            f"the model raises if a batch is wider than its longest sequence ({error}): take the width from the "
            "tensor (x.size(1)), not from lengths.max(), and pass total_length=x.size(1) to pad_packed_sequence"
        )
    good = [size for size in range(1, _MAX_ROWS + 1) if runs(subject, pad([sequences[0]] * size, width=width))]
    if len(good) == 1:
        return _frozen("rows", good[0], error)
    if len(sequences) in good:
        return _lengths_may_not_differ(len(sequences), error)
    good = widths_at_which_it_runs(subject, Sampler(subject.steps, seed=0), rows=len(sequences))
    if _is_one(good):
        return _frozen("width", good[-1], error)
    common = math.gcd(*good)
    if common > 1 and len(good) > 2:
        return (
            f"the model runs only at widths that are multiples of {common}, and raises at {width} ({error}): pad to "
            "whole chunks in forward, so that it accepts every width"
        )
    more = ", ..." if len(good) > _MAX_NAMED else ""
    ran = f"; it runs at widths of {', '.join(map(str, good[:_MAX_NAMED]))}{more}" if good else ""
    if _TOO_NARROW.search(error.detail) and min(good, default=_MAX_WIDTH) > width:
        part = "its kernel" if error.part is None else f"the kernel of {error.part}"
        return (
            f"a batch of {width} steps is too narrow for {part}{ran}: {error}. Pad to the size of the kernel in "
            "forward, or use a smaller kernel or stride"
        )
    return f"the model raises for a batch of {len(sequences)} rows and a width of {width}{ran}: {error}"


def _lengths_may_not_differ(rows: int, error: RunError) -> str:
    """Says that a model runs rows of one length, and raises if the lengths in a batch differ."""
    return f"the model accepts {rows} rows of one length, and raises if the lengths differ within a batch: {error}"


def widths_at_which_it_runs(subject: Subject, sampler: Sampler, *, rows: int = 2) -> list[int]:
    """The widths at which unpadded rows run: all up to a bound, and others that the sizes of weights suggest."""
    sizes = sorted(subject.sizes)  # Where all steps are flattened, a layer has `width * channels` inputs
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
    good = widths_at_which_it_runs(subject, sampler)
    if not _is_one(good) or good[-1] <= beyond:
        return None
    error = raised_for(subject, pad([sampler.sequence(good[-1] + 1)] * 2, multiple=1))
    return None if error is None else _frozen("width", good[-1], error)


def _is_one(sizes: Sequence[int]) -> bool:
    """Whether one size runs; 1 runs besides where a step is added to a table of all steps."""
    return len(sizes) == 1 or (len(sizes) == 2 and sizes[0] == 1)


def _frozen(axis: str, size: int, error: RunError) -> str:
    part = "" if error.part is None else f", by {error.part}"
    cure = "take it from the shape of the tensor"
    if axis == "width" and part:
        cure = "pool over the steps in front of it (a mean, a maximum, attention, nn.AdaptiveAvgPool1d)"
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
"""What is said of an output by the names of its axes."""


def why_of_another_form(subject: Subject, batch: PaddedBatch) -> str:
    """What to do with an output that is neither `[rows, classes]` nor `[rows, width, classes]`."""
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


def why_it_raises_for(first: Baseline, trial: CheckTrial, error: RunError) -> str:
    """Explains why a trial raises although the baseline ran."""
    why = f"{trial.name}: the model raises: {error}"
    if trial.batch.width != first.batch.width:
        ran, raised = first.batch.width, trial.batch.width
        why = f"the model runs at a width of {ran} and raises at {raised}: its width is frozen ({error})"
    elif trial.change == "order":
        why = (
            f"the model requires an order of the rows (sorted by length, longest first): {error}; "
            "pack_padded_sequence accepts any order with enforce_sorted=False"
        )
    return why


def require_service_contract(
    subject: Subject, first: Baseline, moved: Sequence[CheckTrial], sizes: BatchSizes, sampler: Sampler, most: float
) -> None:
    """Makes sure that differences of more than `most` are a leak, and that no other form of batches is expected.

    Raises:
        UncheckableError: The model requires sorted rows, or left padding.
    """
    layout = subject.layout
    if not layout.packed and all(trial.change == "order" for trial in moved):
        answers = subject.answer(moved[0].batch).logits
        if any(min(relative_difference(mine, other) for other in answers) > most for mine in first.answer.logits):
            raise UncheckableError(
                "the model requires an order of the rows (sorted by length, longest first): its answers change if the "
                "first row is not the longest"
            )  # else they are right and in the wrong rows, which is a leak
    if not layout.is_usual or layout.is_stated or runs_other_code_alone(subject, first.sequences[0]):
        return
    if any(trial.change in ("width", "batch") for trial in moved) and all(
        _is_right_at_the_end(subject, first, width, sampler, most) for width in (sizes.width, sizes.wider)
    ):
        raise UncheckableError(
            "the model requires left padding (each sequence at the end of its row), but Lengthwise pads at the end: "
            "count positions and build masks from the start of the row, and take the last state of a sequence at its "
            "own last step, not at [:, -1]. If callers pad on the left, check it with --padding left"
        )


_APART: Final = 10  # A model that requires left padding differs by far more than rounding where the padding is behind


def _is_right_at_the_end(subject: Subject, first: Baseline, width: int, sampler: Sampler, most: float) -> bool:
    """Whether left-padded sequences get their unbatched answers, and the answers depend on the lengths."""
    steps = sampler.fill((first.batch.rows, width), 3.0)
    for row, sequence in zip(steps, first.sequences, strict=True):
        row[width - len(sequence) :] = sequence

    def apart(lengths: NDArray[np.int32], *, left: bool = True) -> float:
        right = np.stack([np.roll(row, length, axis=0) for row, length in zip(steps, lengths, strict=True)])
        answers = (subject.with_layout(LEFT) if left else subject).answer(PaddedBatch(right, lengths)).logits
        # Of answers at each step the last ones: with more steps in front, they are those of the same steps.
        rows = zip(alone, answers, lengths, strict=True)
        return max(
            relative_difference(mine, answer[end - len(mine) : end] if mine.ndim == 2 else answer)
            for mine, answer, end in rows
        )

    try:
        alone = [subject.answer(pad([sequence], multiple=1)).logits[0] for sequence in first.sequences]
        # One that ignores the lengths and reads backwards is right too, but other lengths do not change its answers.
        longer = np.minimum(first.batch.lengths + 2, width).astype(np.int32)
        if not apart(first.batch.lengths) <= most < apart(longer):
            return False
        # One without positions is as right on the one side as on the other: its mask lets larger values through.
        return apart(first.batch.lengths, left=False) > _APART * most
    except RunError:
        return False


def notes_of_alternatives(
    subject: Subject, first: Baseline, failed: Sequence[FailedTrial], tolerance: float
) -> Iterator[str]:
    """The other ways to call a model, such as time-first, in which it does not leak.

    Raises:
        UncheckableError: The model is sound only with lengths as shares, and the service never passes those.
    """
    tried = [one.trial for one in failed if one.base is first.batch]
    for alternative in subject.alternatives() if tried else ():
        try:
            again = replace(first, answer=alternative.subject.answer(first.batch))
            answers = ((trial, alternative.subject.answer(trial.batch)) for trial in tried)  # until one differs
            is_sound = all(
                again.row_difference(answer, *pair) <= tolerance for trial, answer in answers for pair in trial.rows
            )
            # If a changed last step does not change the answer, this way does not read the whole sequence.
            last = alternative.subject.answer(first.with_last_steps_changed(subject.steps.vocabulary))
            is_sound = is_sound and all(again.row_difference(last, row, row) > tolerance for row in again.ordinary())
        except (RunError, IndexError):  # an answer of another shape may lack these rows
            continue
        if is_sound and "share" in alternative.sentence_end:
            raise UncheckableError(f"the model is sound only {alternative.sentence_end}")
        if is_sound:
            yield f"no answer changes in these trials {alternative.sentence_end}"


def notes_of_the_fast_path(
    subject: Subject, first: Baseline, failed: Sequence[FailedTrial], tolerance: float
) -> Iterator[str]:
    """A note if the leak does not show on the framework's fast path, which trials switch off."""
    trial = next((one.trial for one in failed if one.base is first.batch), None)
    if trial is None:
        return
    with contextlib.suppress(RunError):
        shipped = replace(first, answer=subject.answer_as_shipped(first.batch))
        after = subject.answer_as_shipped(trial.batch)
        if max(shipped.row_difference(after, *pair) for pair in trial.rows) <= tolerance:
            yield (
                f"the framework's fast path skips padding and does not show it ({trial.name}); training, other "
                "settings and an exported graph use the plain path"
            )


_WIDTHS: Final = (11, 23, 47, 97, 193, 389, 769, 7, 5, 3, 2, 1)
"""Widths to try, in this order, until the model runs. Models with much pooling need more than the first; models with a
small table of positions need less."""
_MAX_UNBATCHED: Final = 48  # at most this many lengths on either side of the shortest accepted one are run unbatched
_SMALLEST_TABLE: Final = 4  # A weight of fewer rows may as well hold classes or features


@dataclass(frozen=True, slots=True)
class WidthLimits:
    """The widths that a model accepts."""

    widest: int
    sizes: BatchSizes
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

        def raised_at(width: int) -> RunError | None:
            longest = min(width, max_length)
            rows = [sampler.sequence(longest), sampler.sequence(max(longest - 1, 1))]
            return raised_for(subject, pad(rows, width=width))

        narrowest, widest, error = _span(subject, sampler, max_length, raised_at)
        if min_length > widest:
            raise UncheckableError(
                f"the model needs at least {min_length} steps, and sequences of up to {widest} are tried: pass a "
                "larger --max-length"
            )
        too_short = _too_short(subject, widest)
        shortest = max(min_length, max(too_short, default=0) + 1)
        sizes = sizes_apart_from(subject.sizes, shortest=narrowest, longest_allowed=widest, min_length=shortest)
        rounded = rounded_width(sizes.longest + 1)
        if sizes.width == sizes.longest and raised_at(rounded) is None:  # some padding, for very short sequences too
            sizes = replace(sizes, width=sizes.longest + 1, wider=max(sizes.wider, rounded))
        note = None if error is None else f"the model raises past a width of {widest}: {error}"
        return cls(widest, sizes, note, too_short)


def _span(
    subject: Subject, sampler: Sampler, max_length: int, raised_at: Callable[[int], RunError | None]
) -> tuple[int, int, RunError | None]:
    """The narrowest width that is known to run, the widest, and the error past the widest.

    Raises:
        UncheckableError: The widest is too narrow for the trials, and no table of positions explains it.
    """
    good = next((width for width in _WIDTHS if width <= max_length and raised_at(width) is None), None)
    if good is None:  # the baseline batch will raise as well, and its error explains why
        return 1, max_length, None
    narrowest, bad = 1 if good <= _WIDTHS[0] else good, max_length
    error = None if good == bad else raised_at(bad)
    if error is None:
        return narrowest, max_length, None
    while bad - good > 1:
        # A table of positions may end at the size of a weight, at one or two fewer, or at one more.
        tables = sorted({end for size in subject.sizes for end in range(size - 2, size + 2) if good < end < bad})
        middle = tables[len(tables) // 2] if tables else (good + bad) // 2
        raised = raised_at(middle)
        if raised is None:
            good = middle
        else:
            bad, error = middle, raised
    wanted = sizes_apart_from(subject.sizes, shortest=narrowest, longest_allowed=max_length)
    # A table of positions ends there if the error is about an index or a shape, and a weight is so long. Up to two rows
    # more are allowed, because class tokens in front of the steps have positions too.
    does_not_fit = re.search(r"ind(ex|ices)|size|bound|shape|dimension|broadcast", error.detail.lower()) is not None
    is_table = does_not_fit and good >= _SMALLEST_TABLE and any(good + more in subject.sizes for more in range(3))
    if good < wanted.wider and not is_table:
        if runs(subject, pad([sampler.sequence(bad)] * 2, width=bad)):
            raise UncheckableError(_lengths_may_not_differ(2, error))
        raise UncheckableError(
            why_of_one_width(subject, beyond=good)
            or f"the model raises past a width of {good}, so the trials of up to {wanted.wider} steps cannot be run: "
            f"{error}. If {good} is its longest sequence, pass --max-length {good}"
        )
    return narrowest, good, error


def _too_short(subject: Subject, longest: int) -> dict[int, RunError]:
    """The lengths at which the model raises unbatched, with the errors, if these are all lengths below some length."""
    sampler = Sampler(subject.steps, seed=0)  # of its own, so that the sequences of the trials stay the same

    def raised_alone(length: int) -> RunError | None:
        try:
            answer = subject.answer(pad([sampler.sequence(length)], multiple=1))
        except RunError as error:
            return error
        return None if np.isfinite(answer.logits).all() else RunError("the answer is not finite")

    if raised_alone(1) is None or raised_alone(longest) is not None:  # at each: the batch of one row is the cause
        return {}
    bad, good = 1, longest
    while good - bad > 1:
        # Doubled at first, since most such models need few steps and long sequences take long.
        middle = min(2 * bad, (good + bad) // 2) if good == longest else (good + bad) // 2
        if raised_alone(middle) is None:
            good = middle
        else:
            bad = middle
    below = np.unique(np.linspace(1, bad, min(bad, _MAX_UNBATCHED)).round().astype(int)).tolist()
    errors = {length: error for length in below if (error := raised_alone(length)) is not None}
    above = range(good, min(good + _MAX_UNBATCHED, longest + 1))
    return errors if len(errors) == len(below) and all(raised_alone(length) is None for length in above) else {}
