"""Says what is wrong with a large JSON body without a Python object for each number.

`_fast_json.c` counts what is wrong with the steps, and notes where the first wrong ones stand. Only these and the rest
of the body are parsed, for `validation`, so a wrong body takes about as long as a right one. What is not ordinary
otherwise is left to `validation.read`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from lengthwise.decoding import fast_json, json_text, options, validation
from lengthwise.decoding.calls import Find, Problems
from lengthwise.decoding.explanations import SentWhere
from lengthwise.decoding.json_text import MAX_PARTS
from lengthwise.decoding.sent_steps import SentSteps, tell
from lengthwise.decoding.validation import BodyLayout
from lengthwise.errors import RequestError, TooLarge
from lengthwise.padding import Steps

_LEAST_BYTES: Final = 65_536  # a shorter body is read faster by `validation.read`
_MOST_PARSED_BYTES: Final = 65_536  # beside the steps
_LONGEST_STEP: Final = 4096  # the text of a longer one is not parsed: what it is, and how many values it has, is known
_MASK: Final = b"_mask"
_EMPTY: Final[dict[int, Any]] = {ord('"'): "", ord("{"): {}}


class _Scanned(NamedTuple):
    """What was found of one item; `told` has the first wrong steps: place, size, start, end."""

    start: int
    end: int
    steps_start: int
    steps_end: int
    steps: int
    faults: int
    has_list: int
    told: Sequence[tuple[int, int, int, int]]


class ScannedSteps(SentSteps):
    """Steps of a body of which it is known what is wrong."""

    def __init__(self, body: bytes, found: _Scanned) -> None:
        self._body = body
        self._found = found

    def __len__(self) -> int:
        return self._found.steps

    def read(self, kept: Sequence[int], where: SentWhere) -> Steps | None:
        """Adds what is wrong; see `SentSteps.read`. There is no array: a body without problems is read again."""
        found, features, problems = self._found, where.manifest.input.features, where.problems
        if not found.faults:
            return None
        no_list = features is not None and features > 1 and not found.has_list  # which is one problem
        most = 1 if no_list else max(0, problems.most_listed - problems.total)
        told = [(step[0], self._entry(step, features)) for step in found.told[:most]]
        faults = 1 if no_list else found.faults
        tell(told, faults, where, count=found.steps, has_list=bool(found.has_list))
        return None

    def _entry(self, step: tuple[int, int, int, int], features: int | None) -> Any:
        """A wrong step as JSON has it, or a value of the same kind and size."""
        _, size, start, end = step
        if end - start > _LONGEST_STEP:
            if self._body[start] in _EMPTY:
                return _EMPTY[self._body[start]]
            if self._body[start] == ord("[") and size != features:
                return [0.0] * size
        return json_text.parse(self._body[start:end])


def explain(body: bytes, find: Find, *, max_sequences: int, layout: BodyLayout) -> None:
    """Raises what is wrong with a body, as `validation.read` does; returns if that has to be asked."""
    place = fast_json.locate(body, layout.key) if len(body) > _LEAST_BYTES else None
    if place is None or len(body) - (place[1] - place[0]) > _MOST_PARSED_BYTES:
        return
    start, end, _ = place
    try:
        document = json_text.parse(b"%snull%s" % (body[:start], body[end:]))
        found = None if document[layout.root] is not None else _scan(body, start, end, document, find, max_sequences)
        sequences = None if found is None else _sequences(body, *found)
    except (RequestError, UnicodeDecodeError):
        return
    if found is None or sequences is None:
        return
    count, parts, _ = found
    if parts > MAX_PARTS:
        raise json_text.too_many(parts)
    if count > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {count}")
    validation.read_document({**document, layout.root: sequences}, find, max_sequences=max_sequences, layout=layout)


def _scan(
    body: bytes, start: int, end: int, document: dict[str, Any], find: Find, max_sequences: int
) -> tuple[int, int, list[_Scanned]] | None:
    """The number of items, that of all parts, and what was found of each item."""
    asked = options.read(document, Problems())
    features, vocabulary, takes_missing = 1, 1, True  # without a model it only matters whether they are JSON
    try:
        manifest = find(asked.model, asked.version).manifest
    except RequestError:
        pass
    else:
        features, vocabulary = manifest.input.features or 0, manifest.input.vocabulary or 1
        takes_missing = manifest.missing != "refuse"
    from lengthwise.decoding import _fast_json  # it is there: `locate` has found something

    found = _fast_json.scan(body, start, end, features, vocabulary, max_sequences, takes_missing)
    if not body.isascii():
        body.decode()
    return None if found is None else (found[0], found[1], [_Scanned(*item) for item in found[2]])


def _sequences(body: bytes, count: int, parts: int, found: list[_Scanned]) -> list[Any] | None:
    """The items, their steps scanned and everything else parsed; None where it is too long or has masks."""
    texts = [
        body[item.start : item.end]
        if item.steps_start < 0
        else b"%s[]%s" % (body[item.start : item.steps_start], body[item.steps_end : item.end])
        for item in found
        if item.start >= 0
    ]
    text = b"[%s]" % b",".join(texts)
    if len(text) > _MOST_PARSED_BYTES or _MASK in text:
        return None
    parsed: Iterator[Any] = iter(json_text.parse(text))
    sequences: list[Any] = []
    for item in found:
        scanned = ScannedSteps(body, item)
        if item.start < 0:
            sequences.append(scanned)
        else:
            value = next(parsed)
            sequences.append(value if item.steps_start < 0 else {**value, "steps": scanned})
    return sequences
