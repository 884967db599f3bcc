"""How wide and how narrow a model's batches may be: what the sizes of a check's trials follow."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from lengthwise.padding import pad, rounded_width
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import BatchSizes, Sampler, sizes_apart_from
from lengthwise_export.checking.uncheckable import lengths_may_not_differ, runs
from lengthwise_export.errors import RunError, UncheckableError

_WIDTHS: Final = (11, 23, 47, 97, 193, 389, 769, 7, 5, 3, 2, 1)
"""Widths to try a model with, until one runs: most take the first; what pools often wants more, small tables less."""

_SMALLEST_TABLE: Final = 4
"""A weight of fewer entries is no table of positions: that many classes or features many models have."""


@dataclass(frozen=True, slots=True)
class WidthLimits:
    """What was found out before the trials.

    Attributes:
        widest: The widest batch that the model takes, up to the longest sequence that was asked for.
        sizes: Of the trials' batches.
        note: What it raises past the widest, where that is less than was asked for.
    """

    widest: int
    sizes: BatchSizes
    note: str | None = None

    @classmethod
    def of(cls, subject: Subject, sampler: Sampler, max_length: int) -> WidthLimits:
        """Finds them by running batches of two rows.

        Raises:
            UncheckableError: The model raises before the widths that the trials take, and no table of positions says
                why.
        """
        search = _Search(subject, sampler, max_length)
        narrowest, widest, error = search.span()
        note = None if error is None else f"the model raises past a width of {widest}: {error}"
        return cls(widest, search.sizes(narrowest, widest), note)


class _Search:
    def __init__(self, subject: Subject, sampler: Sampler, max_length: int) -> None:
        self._subject = subject
        self._sampler = sampler
        self._max_length = max_length

    def span(self) -> tuple[int, int, RunError | None]:
        """The narrowest batch that the model is sure to take, the widest, and what it raises past that."""
        tried = (width for width in _WIDTHS if width <= self._max_length)
        good = next((width for width in tried if self._raised_at(width) is None), None)
        if good is None:
            # The first batch will tell why.
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
            raise UncheckableError(
                f"the model raises past a width of {good}, so that the trials of up to {wanted.wider} steps cannot be "
                f"run: {error}. If {good} is its longest sequence, say --max-length {good}"
            )
        return narrowest, good, error

    def sizes(self, narrowest: int, widest: int) -> BatchSizes:
        """The sizes of the trials' batches; a few steps of padding even where the longest sequence is very short."""
        sizes = sizes_apart_from(self._subject.sizes, shortest=narrowest, longest_allowed=widest)
        rounded = rounded_width(sizes.longest + 1)
        if sizes.width > sizes.longest or self._raised_at(rounded) is not None:
            return sizes
        return replace(sizes, width=sizes.longest + 1, wider=max(sizes.wider, rounded))

    def _raised_at(self, width: int) -> RunError | None:
        """What the model raises for a batch of two rows of a width; None where it takes it."""
        longest = min(width, self._max_length)
        rows = [self._sampler.sequence(longest), self._sampler.sequence(max(longest - 1, 1))]
        try:
            self._subject.answer(pad(rows, width=width))
        except RunError as error:
            return error
        return None


def _is_table_of(width: int, sizes: frozenset[int], error: RunError) -> bool:
    """Whether a table of positions ends at a width: an index or a size does not fit, a weight has that many entries.

    A token or two in front of the steps take their places in it.
    """
    does_not_fit = re.search(r"ind(ex|ices)|size|bound|shape|dimension|broadcast", error.detail.lower()) is not None
    return does_not_fit and width >= _SMALLEST_TABLE and any(width + more in sizes for more in range(3))
