"""The reader of ordinary JSON bodies: it reads sequences in C, straight from the text into one array.

Of a body with anything else than plain numbers, ids and right options, `read` returns None, and `validation` reads it,
as it does where the C module was not built. What `read` returns is what `validation` would, bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import sub
from typing import Any, Final

import numpy as np

from lengthwise.decoding import json_text, options
from lengthwise.decoding.calls import Call, Find, Item, Problems, compact, id_problem, make_item
from lengthwise.decoding.options import CallOptions
from lengthwise.decoding.validation import BodyLayout
from lengthwise.errors import RequestError
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

try:
    from lengthwise.decoding import _fast_json
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _fast_json = None  # type: ignore[assignment]

COMPILED: Final = _fast_json is not None  # whether the C module was built
_MOST_OTHER_BYTES: Final = 4096  # a longer rest is left to `validation`, so that it is parsed once
_NO_OPTIONS: Final = CallOptions()


def locate(body: bytes, key: bytes) -> tuple[int, int, bool] | None:
    """Where the array under a key stands, and whether it is all that the object has; None where it is not clear."""
    return _fast_json.locate(body, key) if COMPILED else None


def flat(body: bytes, start: int) -> tuple[bytes, int] | None:
    """The flat array of numbers that starts there, as the bytes of float32, and the place behind it; None of others."""
    return _fast_json.read_flat(body, start, len(body)) if COMPILED else None


def skip(body: bytes, start: int) -> tuple[int, int, int, bool, bool] | None:
    """The array that starts there: see `_fast_json.skip`; None where there is none, or only Python can tell."""
    return _fast_json.skip(body, start, len(body)) if COMPILED else None


def steps(text: bytes, start: int, end: int, *, are_tokens: bool) -> Steps | None:
    """The array of steps there, of any length and number of features, as an array of its own; None if not ordinary."""
    if not COMPILED:
        return None
    one = b"".join((b"[", memoryview(text)[start:end], b"]"))
    first = one[2 : one.find(b"]")]
    if are_tokens:
        features, found = None, _fast_json.read_tokens(one, 0, len(one), sys.maxsize, 1, sys.maxsize)
    else:
        features = first.count(b",", first.index(b"[")) + 1 if b"[" in first else 1
        found = _fast_json.read_values(one, 0, len(one), features, 1, sys.maxsize, True)
    return _steps(found, features).copy() if isinstance(found, bytes) else None


def read(body: bytes, find: Find, *, max_sequences: int, layout: BodyLayout) -> Call | None:
    """The call of an ordinary body, or None of any other."""
    place = locate(body, layout.key)
    if place is None:
        return None
    start, end, is_alone = place
    asked = _NO_OPTIONS if is_alone else _options(body, start, end, layout)
    if asked is None:
        return None
    try:
        model = find(asked.model, asked.version)
    except RequestError:
        return None
    manifest = model.manifest
    if asked.outputs and manifest.graph.attention is None:
        return None
    step = manifest.input
    most_steps = manifest.max_length if manifest.long == "reject" else sys.maxsize
    if step.features is None:
        sequences = _fast_json.read_tokens(body, start, end, step.vocabulary or 1, max_sequences, most_steps)
    else:
        takes_missing = manifest.missing != "refuse"
        sequences = _fast_json.read_values(body, start, end, step.features, max_sequences, most_steps, takes_missing)
    if sequences is None:
        return None
    made = _made(sequences, step.features, manifest)
    if made is None:
        return None
    items, beside = made
    attention = bool(asked.outputs)
    return Call(model, items, attention, asked.timeout_ms, asked.priority, layout.pointer, 0, beside)


def _made(sequences: Any, features: int | None, manifest: Manifest) -> tuple[Sequence[Item], int] | None:
    """The items of what the C module read, and the bytes beside them; None where a rule wants Python's reader."""
    if isinstance(sequences, bytes):
        steps = _steps(sequences, features)
        return None if len(steps) < manifest.min_length else ((make_item(steps, manifest, sent_steps=len(steps)),), 0)
    numbers, ends, ids = sequences
    if manifest.min_length > 1 and min(map(sub, ends, [0, *ends])) < manifest.min_length:
        return None
    try:
        return _items(_steps(numbers, features), ends, ids, manifest)
    except RequestError:
        return None


def _steps(numbers: bytes, features: int | None) -> Steps:
    """`[steps, features]` float32, or `[steps]` int64 where they are token ids."""
    if features is None:
        return np.frombuffer(numbers, np.int64)
    return np.frombuffer(numbers, np.float32).reshape(-1, features)


def _options(body: bytes, start: int, end: int, layout: BodyLayout) -> CallOptions | None:
    if len(body) - (end - start) > _MOST_OTHER_BYTES:
        return None
    try:
        document = json_text.parse(b"%snull%s" % (body[:start], body[end:]))
    except RequestError:
        return None
    if not layout.fields.issuperset(document) or document[layout.root] is not None:
        return None
    problems = Problems()
    asked = options.read(document, problems)
    return None if problems.total else asked


def _items(
    array: Steps, ends: list[int], ids: list[str | bytes | None] | None, manifest: Manifest
) -> tuple[list[Item], int]:
    """The sequences in an array of all steps, and the bytes that they keep in memory beside their own steps."""
    starts = [0, *ends[:-1]]
    items = [
        Item(array[start:end], end - start, None, identifier)
        for start, end, identifier in zip(
            starts, ends, [None] * len(ends) if ids is None else map(_identifier, ids), strict=True
        )
    ]
    if manifest.long in ("reject", "window"):
        return items, 0
    items = [make_item(item.steps, manifest, sent_steps=item.sent_steps, id=item.id) for item in items]
    return compact(items, array)


def _identifier(text: str | bytes | None) -> str | None:
    """An id, from its text, or from a JSON string with escapes."""
    if text is None:
        return None
    identifier = json_text.parse(text) if isinstance(text, bytes) else text
    wrong = id_problem(identifier)
    if wrong is not None:
        raise RequestError(wrong)
    return str(identifier)
