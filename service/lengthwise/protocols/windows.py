"""Sequences longer than their model's max length, under the policy `window`: split to be queued, merged when answered.

Every other sequence is queued as it is.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final, TypeAlias, cast

from lengthwise.decoding.calls import Call
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.runtime import answers
from lengthwise.runtime.answers import Answer

NOT_FINITE: Final = "the model's answer to this sequence is not finite"
_MOST_LISTED: Final = 20

Windows: TypeAlias = list[list[tuple[int, Steps]]]
"""For each item its windows: the step at which each starts, and its steps."""


def split(call: Call) -> tuple[list[Steps], Windows | None]:
    """The sequences that are queued for a call, and where they come from: the windows of each item.

    If no item is too long: one sequence for each item, and None.
    """
    sequences: list[Steps] = [item.steps for item in call.items]
    longest = call.model.manifest.max_length
    if max(map(len, sequences)) <= longest:
        return sequences, None
    windows = [answers.windows(steps, longest) for steps in sequences]
    return [window for parts in windows for _, window in parts], windows


def answers_of(call: Call, results: list[Answer | None], windows: Windows | None) -> list[Answer]:
    """One answer for each item, from the answers to the sequences of `split`, which are None where not finite.

    Raises:
        InvalidRequest: Some are not finite; with the pointers of the first of them.
    """
    if windows is not None:
        results = _merged(call, results, windows)
    if call.attention:
        results = answers.with_attention(results)
    if None in results:
        bad = [i for i, answer in enumerate(results) if answer is None]
        problems = [Problem(call.pointer.format(i), NOT_FINITE) for i in bad[:_MOST_LISTED]]
        raise InvalidRequest(problems, total=len(bad))
    return cast("list[Answer]", results)


def _merged(call: Call, results: list[Answer | None], windows: Windows) -> list[Answer | None]:
    """For each item, the answers to its windows merged into one; None where a window has none."""
    ends = list(accumulate(len(parts) for parts in windows))
    merged: list[Answer | None] = []
    for item, parts, end in zip(call.items, windows, ends, strict=True):
        of_item = results[end - len(parts) : end]
        finite = [answer for answer in of_item if answer is not None]
        if len(finite) < len(of_item):
            merged.append(None)
        elif len(parts) == 1:
            merged.append(finite[0])
        else:
            starts = [start for start, _ in parts]
            merged.append(answers.merge(finite, starts, len(item.steps), call.model.manifest))
    return merged
