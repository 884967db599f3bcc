"""Reads JSON bodies in C: the sequences of an ordinary one, straight from the text into one array.

An *ordinary* body has plain numbers, ids and right options only. Of any other body `read` returns None, and
`validation` reads it, as it does where the C module was not built. What `read` returns is what `validation` would
return, bit for bit. Of most large wrong bodies `explain` raises what `validation` would raise, in about the time that a
right body takes: C counts the wrong steps, and only the first of them and the rest of the body are parsed.

The functions in C (`_fast_json.c`) return None for what only Python can read. They return numbers as bytes: of float32,
NaN for null, or of int64 token ids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson

from lengthwise.decoding import json_text, options, static_values, validation
from lengthwise.decoding.calls import Call, Find, Item, Problems, compact, id_problem, length_problem, make_item, split
from lengthwise.decoding.chunks import ordinary_past, resumed
from lengthwise.decoding.sent_steps import CheckedSteps
from lengthwise.errors import RequestError, TooLarge
from lengthwise.padding import STATIC, Sample, Steps, steps_of
from lengthwise.runtime.manifest import Manifest

if TYPE_CHECKING:
    from lengthwise.repository.registry import ServedModel

try:
    from lengthwise.decoding import _fast_json
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _fast_json = None  # type: ignore[assignment]

COMPILED: Final = _fast_json is not None  # whether the C module was built
_MOST_OTHER_BYTES: Final = 4096  # besides the sequences; with more, only `validation` parses the body
_NO_OPTIONS: Final = options.CallOptions()
_LEAST_WRONG_BYTES: Final = 65_536  # `validation` says faster what is wrong with a shorter body
_MOST_PARSED_BYTES: Final = 65_536  # of a wrong body, besides the steps
_LONGEST_STEP: Final = 4096  # bytes of a wrong step; of a longer one only its type and size are used
_EMPTY: Final[dict[int, Any]] = {ord('"'): "", ord("{"): {}}  # an empty value of each type, by its first byte
locate: Final[Callable[[bytes, bytes], tuple[int, int, bool] | None]] = (
    _fast_json.locate if COMPILED else lambda _body, _key: None
)
"""(start, end, whether the object has only this key) of the array under a key of a body; None if that is not clear."""


def flat(body: bytes, start: int) -> tuple[bytes | None, int, int] | None:
    """Reads the array that starts at the index `start`.

    Returns None if only Python can read it, or else:

    - its numbers as the bytes of float32; None if it has anything else than null and numbers that float32 can hold;
    - the index after it;
    - how many entries it has, if there are strings or booleans, but no arrays or objects among them; else -1.
    """
    return _fast_json.read_flat(body, start, len(body)) if COMPILED else None


def steps(text: bytes, start: int, end: int, *, are_tokens: bool) -> Steps | None:
    """Reads the array of steps in `text[start:end]`, with any number of features; None if C cannot read it.

    Each step has as many features as the first one; a bare number is a step of one feature.
    """
    body = b"".join((b"[", memoryview(text)[start:end], b"]"))  # as the only sequence
    first = body[2 : body.find(b"]")]  # the text of the first step; or of all steps, if they are bare numbers
    # The number of features, as C takes it: 0 for tokens.
    features = 0 if are_tokens else first.count(b",", first.index(b"[")) + 1 if b"[" in first else 1
    numbers = COMPILED and _fast_json.read(body, 0, len(body), 1, features, sys.maxsize, 1, sys.maxsize, True, False)
    return _steps(numbers, features).copy() if isinstance(numbers, bytes) else None


def _steps(numbers: bytes, features: int) -> Steps:
    """The numbers that C has read as an array, `[steps, features]` float32; `[steps]` int64 if `features` is 0."""
    if features:
        return np.frombuffer(numbers, np.float32).reshape(-1, features)
    return np.frombuffer(numbers, np.int64)


def read(
    body: bytes, find: Find, *, max_sequences: int, layout: validation.BodyLayout = validation.PREDICT
) -> Call | None:
    """Reads an ordinary body; returns its call, and None for any other body, a wrong one too.

    C finds the array of the sequences in the text, and reads it. Python parses the options around it.
    """
    # The options, and the model.
    span = locate(body, layout.key)
    if span is None:
        return None
    start, end, has_no_options = span
    call_options = _NO_OPTIONS if has_no_options else _options(body, start, end, layout)
    if call_options is None:
        return None
    try:
        model = find(call_options.model, call_options.version)
    except RequestError:
        return None
    manifest = model.manifest
    attention, wants_state = "attention" in call_options.outputs, "state" in call_options.outputs
    lacks_output = (attention and manifest.graph.attention is None) or (wants_state and manifest.streaming is None)
    several = manifest.input.sequences
    if lacks_output or (several and len({sequence.features is None for sequence in several}) > 1):
        return None
    # The sequences: the numbers of one, or those of several with their bounds and ids.
    sequences = _read(body, start, end, max_sequences, manifest, in_detail=False)
    if sequences is None:
        return None
    try:
        items, extra_bytes = _made(sequences, body, model, wants_state=wants_state)
    except RequestError:
        return None
    return Call(
        model,
        items,
        attention,
        call_options.timeout_ms,
        call_options.priority,
        layout.pointer,
        0,  # entries of a per-step answer: as many as steps were sent
        extra_bytes,
        wants_state,
    )


def _made(sequences: Any, body: bytes, model: ServedModel, *, wants_state: bool) -> tuple[list[Item], int]:
    """The items of what C has read (`_read`), and the bytes that they keep in memory besides their steps.

    Raises:
        RequestError: Something is not ordinary.
    """  # noqa: DOC502 - what it calls raises it
    manifest, extra_bytes = model.manifest, 0
    static: bytes | Sequence[Any] = ()  # the static values of all items, or of each
    sent: Sequence[tuple[Any, Any]] = ()  # the state and the offset of each item; empty if all are arrays
    if isinstance(sequences, bytes):
        array = _steps(sequences, manifest.input.features or 0)
        items = [make_item(array, manifest, sent_steps=len(array))]
    elif len(sequences) == 2:  # one object with static values of numbers
        steps, numbers = _steps(sequences[0], manifest.input.features or 0), np.frombuffer(sequences[1], np.float32)
        return [make_item(Sample(steps, {STATIC: numbers}, {}), manifest, sent_steps=len(steps))], 0
    else:
        numbers, ends, ids, *more = sequences
        read_items = _items_of_several if manifest.input.sequences else _items
        items, extra_bytes = read_items(numbers, ends, ids, manifest)
        if more:
            is_read = isinstance(more[0], tuple)
            static, sent = more[0] if is_read else _other_fields(items, body, more[0], manifest)
    if manifest.input.static is not None:
        items = _with_static(items, static, manifest)
    if manifest.streaming is not None and (sent or wants_state):
        items = _resumed(items, sent, model, wants_state=wants_state)
    return items, extra_bytes


def _items(
    numbers: bytes, ends: Sequence[int], ids: Sequence[str | bytes | None] | None, manifest: Manifest
) -> tuple[list[Item], int]:
    """The items of several sequences as C has read them, and the bytes that they keep in memory besides their steps.

    Raises:
        RequestError: An id is not valid.
    """  # noqa: DOC502 - `_identifiers` raises it
    array = _steps(numbers, manifest.input.features or 0)
    items = split(array, [0, *ends], _identifiers(ids, len(ends)), manifest)
    return compact(items, array) if manifest.long in ("head", "tail") else (items, 0)


def _items_of_several(
    numbers: bytes, places: Sequence[tuple[int, int]], ids: Sequence[str | bytes | None] | None, manifest: Manifest
) -> tuple[list[Item], int]:
    """The items of a model that takes several sequences each, as C has read them; they keep all of the numbers.

    `places` are, of each sequence, its first number and its steps: those of an item in the manifest's order.

    Raises:
        RequestError: An id is not valid.
    """  # noqa: DOC502 - `_identifiers` raises it
    inputs, items = manifest.input.sequences, []
    array = _steps(numbers, 0 if inputs[0].features is None else 1)
    for index, identifier in enumerate(_identifiers(ids, len(places) // len(inputs))):
        arrays = []
        for (first, count), one in zip(places[index * len(inputs) : (index + 1) * len(inputs)], inputs, strict=True):
            steps = array[first : first + count * (one.features or 1)]
            arrays.append(steps if one.features is None else steps.reshape(count, one.features))
        sample = Sample(arrays[0], others=dict(zip(manifest.further, arrays[1:], strict=True)))
        items.append(Item(sample, len(sample), None, identifier))
    return items, 0


def _other_fields(
    items: Sequence[Item], body: bytes, places: Sequence[tuple[int, int, int, int]], manifest: Manifest
) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The static values of each item, and its state and offset: what C has not read; None of what an item has not.

    `places` are, of each item, where it and its steps start and end in the body (`_fast_json.read`).

    Raises:
        RequestError: Some of the fields are not ordinary; or an item has several sequences beside them.
    """
    if manifest.input.sequences:
        raise RequestError("C has read several sequences, and not all fields beside them")
    texts = [
        b"{}" if start < 0 else b"%s[]%s" % (body[start:steps], body[steps_end:end])
        for start, steps, steps_end, end in places
    ]
    text = b"[%s]" % b",".join(texts)
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        parsed = [None]
    # Of two equal keys orjson keeps the last, and `parse` refuses them: there is a colon for each key
    if text.count(b":") != sum([len(fields) for fields in parsed if type(fields) is dict]):
        parsed = json_text.parse(text)
    known = {"id", "steps"}
    if manifest.input.static is not None:
        known.add("static")
    if manifest.streaming is not None:
        known |= {"state", "offset"}
    for item, fields in zip(items, parsed, strict=True):
        is_object = isinstance(fields, dict) and known.issuperset(fields) and None not in fields.values()
        if not is_object or ("id" in fields, fields.get("id")) != (item.id is not None, item.id):
            raise RequestError("an item is no object, or has another field, a null, or a wrong id")
    return [one.get("static") for one in parsed], [(one.get("state"), one.get("offset")) for one in parsed]


def _with_static(items: Sequence[Item], static: bytes | Sequence[Any], manifest: Manifest) -> list[Item]:
    """The items with their static values: what C has read of all items, or what the field of each says.

    Raises:
        RequestError: Some of the values are not ordinary.
    """  # noqa: DOC502 - `require_none` raises it
    if isinstance(static, bytes):
        rows: Any = np.frombuffer(static, np.float32).reshape(len(items), -1)
    else:
        problems = Problems()
        rows = [static_values.read(value, "", manifest, problems) for value in static]
        problems.require_none()
    others: list[Any] = [item.steps.others if isinstance(item.steps, Sample) else {} for item in items]
    # Made anew: `_replace` takes three times as long
    return [
        Item(Sample(steps_of(item.steps), {STATIC: row}, other), item.sent_steps, item.step_indices, item.id)
        for item, row, other in zip(items, rows, others, strict=True)
    ]


def _resumed(
    items: Sequence[Item], sent: Sequence[tuple[Any, Any]], model: ServedModel, *, wants_state: bool
) -> list[Item]:
    """The items with what came before their steps, by the state and the offset of each.

    Raises:
        RequestError: Only `validation` can say which version answers, or what is wrong.
    """
    manifest, keys = model.manifest, model.state_keys
    pasts = [
        ordinary_past(text, offset, manifest, keys, wants_state=wants_state)
        for text, offset in sent or [(None, None)] * len(items)
    ]
    pairs = zip(items, pasts, strict=True)
    if any([length_problem(len(item.steps), manifest, past and past.offset) for item, past in pairs]):
        raise RequestError("a sequence is too short or too long")
    return list(map(resumed, items, pasts))


def _read(body: bytes, start: int, end: int, max_sequences: int, manifest: Manifest | None, *, in_detail: bool) -> Any:
    """Has C read the array of sequences in `body[start:end]`, by the rules of the model.

    Without a manifest, because the model is not known, it only matters whether the array is JSON. Returns None if only
    Python can read the array, or else:

    - the numbers of all steps as bytes, if there is one sequence, which is an array, or an object with nothing else;
    - (these numbers, the static values as bytes), if such an object has static values of numbers as well;
    - (these numbers, the end of each sequence in steps, the ids) for other sequences; ids are None if there are none;
      if the model takes static values or states, a fourth entry follows: (the static values as bytes, if there are any;
      of each item its (state, offset), if the model takes them), if static values are numbers and there are no other
      fields than these and ids; or else a list of where the items and their steps are;
    - the same for items of several sequences each, but for the ends: (first number, steps) of each sequence of an item;
    - `in_detail`: (number of sequences; of arrays, objects and strings; the values of a `_CheckedItem` for each one).
    """
    if manifest is None:
        return _fast_json.read(body, start, end, max_sequences, 1, 1, 1, 1, True, in_detail)
    step, longest = manifest.input, manifest.max_length if manifest.long == "reject" else sys.maxsize
    features, vocabulary, takes_missing = step.features or 0, step.vocabulary or 1, manifest.missing != "refuse"
    beside = 0 if step.static is None else -1 if step.static.categories else step.static.count
    takes_states = manifest.streaming is not None
    rules = features, vocabulary, manifest.min_length, longest, takes_missing, in_detail, beside, takes_states
    if in_detail or not step.sequences:
        return _fast_json.read(body, start, end, max_sequences, *rules)
    inputs = [
        (name, of.input.features or 0, of.input.vocabulary or 1, of.min_length, of.max_length)
        for name, of in manifest.by_sequence.items()
    ]
    return _fast_json.read(body, start, end, max_sequences, *rules, tuple(inputs))


def _options(body: bytes, start: int, end: int, layout: validation.BodyLayout) -> options.CallOptions | None:
    """The options of a body whose sequences are at `start` to `end`; None if the full reader has to read them."""
    if len(body) - (end - start) > _MOST_OTHER_BYTES:
        return None
    return _read_options(b"%snull%s" % (body[:start], body[end:]), layout)


@lru_cache(maxsize=64)  # callers send the same ones again and again
def _read_options(text: bytes, layout: validation.BodyLayout) -> options.CallOptions | None:
    """The options in the text of a body that has null in the place of its sequences; None as from `_options`."""
    try:
        document = json_text.parse(text)
    except RequestError:
        return None
    if not layout.fields.issuperset(document) or document[layout.root] is not None:
        return None
    problems = Problems()
    call_options = options.read(document, problems)
    return None if problems.total else call_options


def _identifiers(texts: Sequence[str | bytes | None] | None, count: int) -> list[str | None]:
    """The ids of `count` items, from C: the text of a plain string (str), or the JSON of a string with escapes (bytes).

    `texts` is None if no item has an id, as its text is if this item has none.

    All with escapes are parsed at once: one by one, those of 1,024 sequences would block the event loop for 5 ms.

    Raises:
        RequestError: An id is not valid.
    """
    if texts is None:
        return [None] * count
    escaped = [text for text in texts if isinstance(text, bytes)]
    parsed = iter(json_text.parse(b"[%s]" % b",".join(escaped)) if escaped else ())
    identifiers: list[str | None] = [next(parsed) if isinstance(text, bytes) else text for text in texts]
    if any(identifier is not None and id_problem(identifier) for identifier in identifiers):
        raise RequestError("an id is not valid")
    return identifiers


class _CheckedItem(NamedTuple):
    """One item of a wrong body as C has checked it, with byte offsets in the body; -1 for a missing field."""

    start: int  # of an object; -1 if the item is an array of steps
    end: int
    steps_start: int  # of the array of steps
    steps_end: int
    steps: int  # how many there are
    faults: int  # how many of them are wrong
    has_list: int  # 1 if a step is an array
    wrong_steps: Sequence[tuple[int, int, int, int]]  # (index, number of values, start, end) of the first wrong ones


def _checked_steps(body: bytes, item: _CheckedItem, features: int | None) -> CheckedSteps:
    """The faults that C found in the steps of an item, which `validation` takes in place of the steps.

    A wrong step is parsed only when its message is written.
    """

    def value(size: int, start: int, end: int) -> Any:
        """Parses the wrong step of `size` values in `body[start:end]`.

        Of one longer than `_LONGEST_STEP` a message shows only the type and the size, so it is not parsed: a value of
        this type and size stands for it, empty or of zeros.
        """
        if end - start > _LONGEST_STEP:
            if body[start] in _EMPTY:
                return _EMPTY[body[start]]
            if body[start] == ord("[") and size != features:
                return [0.0] * size
        return json_text.parse(body[start:end])

    first = ((index, value(size, start, end)) for index, size, start, end in item.wrong_steps)
    return CheckedSteps(item.steps, item.faults, bool(item.has_list), first)


def explain(body: bytes, find: Find, *, max_sequences: int, layout: validation.BodyLayout) -> None:
    """Raises the error that `validation.read` would raise for a large wrong body, but faster.

    Returns None, without an error, if the body is small, or C cannot say what is wrong, or nothing is wrong: then
    `validation.read` has to read it.

    Raises:
        TooLarge: The body has more than `max_sequences`, or too many parts.
        InvalidRequest: Anything else is wrong.
    """  # noqa: DOC502 - `read_document` raises it
    span = locate(body, layout.key) if len(body) > _LEAST_WRONG_BYTES else None
    if span is None or len(body) - (span[1] - span[0]) > _MOST_PARSED_BYTES:
        return
    # C finds what is wrong in the sequences, and the rest of the body is parsed. An error of the rest is not raised
    # here: `validation` may find another one before it.
    start, end, _ = span
    try:
        if not body.isascii():
            body.decode()
        document = json_text.parse(b"%snull%s" % (body[:start], body[end:]))
        call_options = options.read(document, Problems())
        manifest = None
        with suppress(RequestError):
            manifest = find(call_options.model, call_options.version).manifest
        checked = _read(body, start, end, max_sequences, manifest, in_detail=True)
        has_more = manifest is not None and manifest.input.has_more
        if checked is None or has_more or document[layout.root] is not None:
            return
        count, parts, details = checked
        sequences = _sequences(body, details, manifest)
    except (RequestError, UnicodeDecodeError):
        return
    if sequences is None:
        return
    # The errors, in the order of `validation.read`.
    if parts > json_text.MAX_PARTS:
        raise TooLarge(json_text.TOO_MANY_PARTS.format(parts))
    if count > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {count}")
    validation.read_document({**document, layout.root: sequences}, find, max_sequences=max_sequences, layout=layout)


def _sequences(body: bytes, details: list[Any], manifest: Manifest | None) -> list[Any] | None:
    """The items of the list `sequences` of a wrong body, in order, for `validation.read_document`.

    An item in the body is an object with a field `steps`, an object without one, or the steps themselves. It is
    returned as the parsed object with `CheckedSteps` in `steps`, as the parsed object, or as `CheckedSteps`. All
    objects are parsed at once, from one text in which `[]` stands for the steps: those were checked in C.

    Args:
        body: The body.
        details: For each item the values of a `_CheckedItem`. Its `start` is negative if the item is no object, its
            `steps_start` if it has no steps.
        manifest: That of the model; None if the body names no model that is served.

    Returns:
        The items; None if `validation` has to read the body itself: the other fields are long, or a sequence has masks,
        or steps that are objects.
    """
    # The other fields: the text of each item that is an object, without its steps.
    items = [_CheckedItem(*item) for item in details]
    texts = [
        body[item.start : item.end]
        if item.steps_start < 0
        else b"%s[]%s" % (body[item.start : item.steps_start], body[item.steps_end : item.end])
        for item in items
        if item.start >= 0
    ]
    text = b"[%s]" % b",".join(texts)
    if len(text) > _MOST_PARSED_BYTES or b"_mask" in text:
        return None
    if manifest is not None and manifest.input.names is not None:  # steps may be objects: is the first step one?
        first_wrong = [item.wrong_steps[0] for item in items if item.wrong_steps]
        if any(index == 0 and body[start : start + 1] == b"{" for index, _, start, _ in first_wrong):
            return None
    # The parsed items, with their checked steps in the place of the steps.
    parsed: Iterator[Any] = iter(json_text.parse(text))
    sequences: list[Any] = []
    for item in items:
        checked = _checked_steps(body, item, None if manifest is None else manifest.input.features)
        if item.start >= 0:
            value = next(parsed)
            sequences.append(value if item.steps_start < 0 else {**value, "steps": checked})
        else:
            sequences.append(checked)
    return sequences
