"""Finds the narrowest and widest batch that a model accepts, and chooses the sizes of a check's trials from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lengthwise.padding import pad, rounded_width
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import BatchSizes, Sampler, sizes_apart_from
from lengthwise_export.checking.uncheckable import lengths_may_not_differ, of_one_width, runs
from lengthwise_export.errors import RunError, UncheckableError

_WIDTHS: Final = (11, 23, 47, 97, 193, 389, 769, 7, 5, 3, 2, 1)
"""Widths to try, in this order, until the model runs. Models with much pooling need more than the first; models with a
small table of positions need less."""

_MAX_UNBATCHED: Final = 48
"""At most this many lengths on either side of the shortest accepted one are run unbatched."""

_SMALLEST_TABLE: Final = 4
"""A weight with fewer rows is not taken for a table of positions: it may as well hold classes or features."""


@dataclass(frozen=True, slots=True)
class WidthLimits:
    """The widths that a model accepts.

    Attributes:
        note: The error past the widest batch, if that is narrower than `max_length`.
        too_short: For each length below the shortest accepted one that was run unbatched, the error.
    """

    widest: int
    sizes: BatchSizes
    note: str | None = None
    too_short: Mapping[int, RunError] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Subject, sampler: Sampler, max_length: int, min_length: int = 1) -> WidthLimits:
        """Finds the limits by running batches of two rows, and sequences unbatched."""
        search = _Search(subject, sampler, max_length)
        narrowest, widest, error = search.span()
        if min_length > widest:
            raise UncheckableError(
                f"the model needs at least {min_length} steps, and sequences of up to {widest} are tried: pass a "
                "larger --max-length"
            )
        too_short = search.too_short(widest)
        sizes = search.sizes(narrowest, widest, max(min_length, max(too_short, default=0) + 1))
        note = None if error is None else f"the model raises past a width of {widest}: {error}"
        return cls(widest, sizes, note, too_short)


class _Search:
    def __init__(self, subject: Subject, sampler: Sampler, max_length: int) -> None:
        self._subject = subject
        self._sampler = sampler
        self._lone_sampler = Sampler(subject.steps, seed=0)  # so that the sequences of the trials stay the same
        self._max_length = max_length

    def span(self) -> tuple[int, int, RunError | None]:
        """The narrowest width that is known to run, the widest, and the error past the widest."""
        tried = (width for width in _WIDTHS if width <= self._max_length)
        good = next((width for width in tried if self._raised_at(width) is None), None)
        if good is None:
            # The baseline batch will raise as well, and its error explains why.
            return 1, self._max_length, None
        narrowest, bad = 1 if good <= _WIDTHS[0] else good, self._max_length
        error = None if good == bad else self._raised_at(bad)
        if error is None:
            return narrowest, self._max_length, None
        while bad - good > 1:
            middle = (good + bad) // 2
            raised = self._raised_at(middle)
            if raised is None:
                good = middle
            else:
                bad, error = middle, raised
        wanted = sizes_apart_from(self._subject.sizes, shortest=narrowest, longest_allowed=self._max_length)
        if good < wanted.wider and not _is_table_of(good, self._subject.sizes, error):
            if runs(self._subject, pad([self._sampler.sequence(bad)] * 2, width=bad)):
                raise lengths_may_not_differ(2, error)
            raise of_one_width(self._subject, beyond=good) or UncheckableError(
                f"the model raises past a width of {good}, so the trials of up to {wanted.wider} steps cannot be run: "
                f"{error}. If {good} is its longest sequence, pass --max-length {good}"
            )
        return narrowest, good, error

    def too_short(self, longest: int) -> dict[int, RunError]:
        """The lengths at which the model raises unbatched, with the errors, if these are all lengths below some length.

        Nothing if it does not raise at 1 step; if no length is accepted, as then the batch of one row is the cause; or
        if it also raises at a longer sequence than one that it accepts.
        """
        if self._raised_alone(1) is None or self._raised_alone(longest) is not None:
            return {}
        bad, good = 1, longest
        while good - bad > 1:
            # Doubled at first, since most such models need few steps and long sequences take long.
            middle = min(2 * bad, (good + bad) // 2) if good == longest else (good + bad) // 2
            if self._raised_alone(middle) is None:
                good = middle
            else:
                bad = middle
        below = np.unique(np.linspace(1, bad, min(bad, _MAX_UNBATCHED)).round().astype(int)).tolist()
        errors = {length: error for length in below if (error := self._raised_alone(length)) is not None}
        above = range(good, min(good + _MAX_UNBATCHED, longest + 1))
        if len(errors) < len(below) or any(self._raised_alone(length) is not None for length in above):
            return {}
        return errors

    def sizes(self, narrowest: int, widest: int, shortest: int) -> BatchSizes:
        """The sizes of the trials' batches, with some padding even if the longest sequence is very short."""
        sizes = sizes_apart_from(self._subject.sizes, shortest=narrowest, longest_allowed=widest, min_length=shortest)
        rounded = rounded_width(sizes.longest + 1)
        if sizes.width > sizes.longest or self._raised_at(rounded) is not None:
            return sizes
        return replace(sizes, width=sizes.longest + 1, wider=max(sizes.wider, rounded))

    def _raised_alone(self, length: int) -> RunError | None:
        """The error for one sequence of this length, unbatched; None if the model answers it with finite numbers."""
        try:
            answer = self._subject.answer(pad([self._lone_sampler.sequence(length)], multiple=1))
        except RunError as error:
            return error
        return None if np.isfinite(answer.logits).all() else RunError("the answer is not finite")

    def _raised_at(self, width: int) -> RunError | None:
        """The error for a batch of two rows of this width; None if the model accepts it."""
        longest = min(width, self._max_length)
        rows = [self._sampler.sequence(longest), self._sampler.sequence(max(longest - 1, 1))]
        try:
            self._subject.answer(pad(rows, width=width))
        except RunError as error:
            return error
        return None


def _is_table_of(width: int, sizes: frozenset[int], error: RunError) -> bool:
    """Whether a table of positions ends at this width.

    That is so if the error is about an index or a shape, and a weight has that many rows. Up to two rows more are
    allowed, because class tokens in front of the steps have positions too.
    """
    does_not_fit = re.search(r"ind(ex|ices)|size|bound|shape|dimension|broadcast", error.detail.lower()) is not None
    return does_not_fit and width >= _SMALLEST_TABLE and any(width + more in sizes for more in range(3))
