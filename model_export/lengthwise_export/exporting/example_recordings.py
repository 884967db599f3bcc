"""A few recordings of labelled data that a model directory keeps, so that people can try the model with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from lengthwise.decoding.calls import why_rejected
from lengthwise.decoding.dataset import Record
from lengthwise.runtime.manifest import Manifest

MOST_RECORDINGS: Final = 6
MOST_VALUES: Final = 40_000
"""Of all of them together."""


def chosen(records: Sequence[Record], manifest: Manifest) -> list[Record]:
    """The first recordings of different labels that the model accepts; then others, up to `MOST_RECORDINGS`."""
    fits = [one for one in records if one.label is not None and why_rejected(one.steps, manifest) is None]
    first = {record.label: place for place, record in reversed(list(enumerate(fits)))}
    others = [place for place in range(len(fits)) if place not in first.values()]
    found: list[Record] = []
    left = MOST_VALUES
    for place in [*sorted(first.values()), *others]:
        if len(found) < MOST_RECORDINGS and fits[place].steps.size <= left:
            found.append(fits[place])
            left -= fits[place].steps.size
    return found


def as_lines(records: Sequence[Record]) -> bytes:
    """Recordings as JSON Lines, as `score` and `train` read them; a missing value is null."""
    lines = ({"id": record.id, "label": record.label, "steps": record.steps} for record in records)
    return b"".join(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE) for line in lines)
