"""Sequences longer than their model's max length, under the policy `window`: split into windows, which are queued.

The answers to the windows of a sequence are merged into its answer. Every other sequence is queued as it is.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, TypeAlias, cast

from lengthwise.decoding.calls import Call
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import RowInput
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer

_MOST_LISTED: Final = 20  # problems in an error

Windows: TypeAlias = list[list[tuple[int, RowInput]]]
"""The windows of each item: (the step at which a window starts, its steps)."""


def split(call: Call) -> tuple[list[RowInput], Windows | None]:
    """The sequences to queue for a call, and its windows.

    The windows are a list for each item, of (the step at which a window starts, its steps), and their steps are the
    sequences to queue. If no item is too long, the sequences are those of the items, and the windows None.
    """
    sequences: list[RowInput] = [item.steps for item in call.items]
    longest = call.model.manifest.max_length
    if max(map(len, sequences)) <= longest:
        return sequences, None
    windows = [answers.windows(steps, longest) for steps in sequences]
    return [window for item_windows in windows for _, window in item_windows], windows


def answers_of(call: Call, results: list[Answer | None], windows: Windows | None) -> list[Answer]:
    """One answer for each item of a call.

    `results` are the answers to the sequences that `split` returned, None for an answer that is not finite; `windows`
    is its second result.

    Raises:
        InvalidRequest: Some answers are not finite; it has JSON pointers to the first of these items.
    """
    if windows is not None:
        results = _merged(call, results, windows)
    if call.attention:
        results = answers.with_attention(results)
    if call.states:
        answered = len(results) - results.count(None)
        results = answers.with_states(results)
        call.model.metrics.count("state_refused", answered - len(results) + results.count(None), "malformed")
    if None in results:
        bad = [i for i, answer in enumerate(results) if answer is None]
        problems = [Problem(call.pointer.format(i), answers.NOT_FINITE) for i in bad[:_MOST_LISTED]]
        raise InvalidRequest(problems, total=len(bad))
    return cast("list[Answer]", results)


def _merged(call: Call, results: list[Answer | None], windows: Windows) -> list[Answer | None]:
    """Merges the answers to the windows of each item into one answer for the item; None if one is not finite.

    `results` are the answers to all windows: those of the first item, then those of the second, and so on.
    """
    remaining = iter(results)
    merged: list[Answer | None] = []
    for item, item_windows in zip(call.items, windows, strict=True):
        finite = [answer for answer in islice(remaining, len(item_windows)) if answer is not None]
        if len(finite) < len(item_windows):
            merged.append(None)
        elif len(finite) == 1:
            merged.append(finite[0])
        else:
            starts = [start for start, _ in item_windows]
            merged.append(answers.merge(finite, starts, len(item.steps), call.model.manifest))
    return merged
