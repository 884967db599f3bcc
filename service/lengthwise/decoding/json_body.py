"""`POST /predict`: the body in, the answer out.

`decode` has two ways to read a body that agree wherever both can. The ordinary body (plain numbers, known fields) goes
from bytes to float32 without a Python object for any number; whenever that way is not sure, `strict` reads the body
again, carefully, and finds what is wrong with it.

The fast way knows a body's structure from its skeleton: the text with every character that can be part of a number,
and all white space, deleted. Two rows of three features are `[[,,],[,,]]` there, so one comparison of bytes rules out
ragged rows, deeper nesting, strings, booleans and nulls, all at once. What the numbers are is then read by simdjson.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import MAX_ID_CHARACTERS, MAX_PRIORITY, MAX_TIMEOUT_MS, Call, Catalog, Item, M_co, fitted
from lengthwise.decoding.options import is_version
from lengthwise.decoding.validation import PREDICT, Form
from lengthwise.errors import RequestError
from lengthwise.padding import Steps
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest

# A missing value, as a number that no valid body can have: beyond float32, so nothing real is mistaken for it. The
# spaces keep it apart from what stands beside it: "1.0null" is no number, and must not become one.
_MISSING_TEXT: Final = b" 1e300 "
_MISSING_WORD: Final = _MISSING_TEXT.decode()
_MISSING: Final = 1e300
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NUMERIC: Final = b"0123456789+-.eE \t\r\n"
"""What numbers are made of, and white space: deleted from a body, they leave its skeleton."""

_KEPT_PARSER_BYTES: Final = 262_144
"""Bodies past it get a parser of their own: a parser keeps about twelve times the largest body that it has read."""

_parsers = threading.local()


class _Unsure(Exception):
    """The fast way cannot vouch for this body."""


_NOT_ORDINARY: Final = (
    _Unsure,
    RequestError,  # no such model: the careful way says so, unless it finds worse
    # simdjson and NumPy raise any of these for a body that is not ordinary; a value of another kind than expected has
    # not the attribute that it is asked for.
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def decode(body: bytes, catalog: Catalog[M_co], *, max_sequences: int, form: Form = PREDICT) -> Call[M_co]:
    """Reads a body.

    Args:
        body: The JSON text, inflated.
        catalog: Where the model that it names is found.
        max_sequences: Most sequences in one body.
        form: How the body is laid out.

    Raises:
        RequestError: As `strict.read` does.
    """
    found = decode_ordinary(body, catalog, max_sequences=max_sequences, form=form)
    return validation.read(body, catalog, max_sequences=max_sequences, form=form) if found is None else found


def decode_ordinary(
    body: bytes, catalog: Catalog[M_co], *, max_sequences: int, form: Form = PREDICT
) -> Call[M_co] | None:
    """The same of an ordinary body; None of one that wants a careful look, which takes many times as long."""
    try:
        return _fast(body, catalog, max_sequences, form)
    except _NOT_ORDINARY:
        _parsers.__dict__.pop("parser", None)
    return None


def encode(call: Call[Any], answers: list[Answer]) -> bytes:
    """The body of a 200, predictions in request order."""
    made = orjson.dumps(predictions(call, answers), option=orjson.OPT_SERIALIZE_NUMPY)
    return b'%s,"predictions":%s}' % (call.model.manifest.answer_head, made)


def predictions(call: Call[Any], answers: list[Answer]) -> list[dict[str, Any]]:
    """The entries of `predictions`, in request order."""
    return [
        prediction(call.model.manifest, item, answer, attention=call.attention)
        for item, answer in zip(call.items, answers, strict=True)
    ]


def prediction(manifest: Manifest, item: Item, answer: Answer, *, attention: bool) -> dict[str, Any]:
    """One entry of `predictions`; its arrays are left for orjson to write, which needs no loop over classes."""
    labels = manifest.labels
    made: dict[str, Any] = {} if item.id is None else {"id": item.id}
    probabilities = answer.probabilities
    if manifest.task == "single-label":
        made["label"] = labels[answer.best]
        made["score"] = probabilities[answer.best]
        made["probabilities"] = probabilities
    elif manifest.task == "multi-label":
        assigned = np.flatnonzero(probabilities >= manifest.threshold)
        made |= {"assigned": [labels[i] for i in assigned], "probabilities": probabilities}
    else:
        best = probabilities.argmax(axis=1)
        made |= {
            "step_labels": _at_steps_sent(item, [labels[i] for i in best]),
            "step_scores": _at_steps_sent(item, list(probabilities.max(axis=1))),
            "probabilities": _at_steps_sent(item, list(probabilities)),
        }
    made["length"] = len(item.steps)
    if attention and answer.attention is not None:
        weights = answer.attention
        if item.kept is not None:
            weights = np.zeros(item.sent, dtype=np.float32)
            weights[item.kept] = answer.attention
        made["attention"] = weights
    if answer.windows is not None:
        made["windows"] = answer.windows
    return made


def _at_steps_sent(item: Item, entries: list[Any]) -> list[Any]:
    """Entries of the kept steps at the places they were sent, None at steps left out."""
    if item.kept is None:
        return entries
    spread: list[Any] = [None] * item.sent
    for place, entry in zip(item.kept, entries, strict=True):
        spread[place] = entry
    return spread


def _fast(body: bytes, catalog: Catalog[M_co], max_sequences: int, form: Form) -> Call[M_co]:
    plainest = fast_json.read(body, catalog, form)
    if plainest is not None:
        return plainest
    if body.startswith(_BYTE_ORDER_MARK):  # simdjson would skip it
        raise _Unsure
    parser = getattr(_parsers, "parser", None)
    if len(body) > _KEPT_PARSER_BYTES:
        parser = simdjson.Parser()
    elif parser is None:
        parser = _parsers.parser = simdjson.Parser()
    skeleton = body.translate(None, _NUMERIC)
    nulls = body.count(b"null") if b"null" in skeleton else 0
    if nulls:
        body = body.replace(b"null", _MISSING_TEXT)
        skeleton = skeleton.replace(b"null", b"")
    document: Any = parser.parse(body)
    fields = list(document.keys())
    if fields == [form.root]:
        name = version = timeout_ms = None
        attention, priority = False, 0
    else:
        if len(set(fields)) != len(fields) or not form.fields.issuperset(fields):
            raise _Unsure
        name, version = _string(document, fields, "model"), _string(document, fields, "version")
        if version is not None and not is_version(version):
            raise _Unsure
        timeout_ms = _timeout_ms(document, fields)
        priority = _priority(document, fields)
        attention = _attention(document, fields)
    sequences = document[form.root]
    count = len(sequences)
    if not 1 <= count <= max_sequences:
        raise _Unsure
    model = catalog.find(name, version)
    manifest = model.manifest
    if attention and manifest.graph.attention is None:
        raise _Unsure
    items = _items(sequences, form.root, skeleton, manifest, nulls)
    return Call(model, items, attention, timeout_ms, priority, form.pointer)


def _items(sequences: Any, root: str, skeleton: bytes, manifest: Manifest, nulls: int) -> list[Item]:
    """Every sequence, its shape held against the skeleton of the body."""
    entries: list[Any] = list(sequences)
    opening = b'"%s":[' % root.encode().translate(None, _NUMERIC)
    arrays: list[Any]
    identifiers: list[str | None]
    if isinstance(entries[0], simdjson.Array):
        lengths = [len(entry) for entry in entries]
        if len(skeleton) > _KEPT_PARSER_BYTES:
            # Of sequences that cannot be what the body holds, no skeleton of a hundred megabytes is made.
            features = manifest.input.features or 1
            if sum(lengths) * (features if features == 1 else features + 1) > len(skeleton):
                raise _Unsure
        forms = [skeletons(manifest, length) for length in lengths]
        # The quote before the key is no character of any string, so no text in the body can imitate this.
        if all(opening + b",".join(form) + b"]" not in skeleton for form in zip(*forms, strict=True)):
            raise _Unsure
        arrays, identifiers = entries, [None] * len(entries)
    else:
        at = 0
        arrays, identifiers = [], []
        for entry in entries:
            fields = list(entry.keys())
            if fields not in (["id", "steps"], ["steps"], ["steps", "id"]):
                raise _Unsure
            steps = entry["steps"]
            at = skeleton.index(b'"stps":', at) + 7
            if not isinstance(steps, simdjson.Array) or not skeleton.startswith(skeletons(manifest, len(steps)), at):
                raise _Unsure
            arrays.append(steps)
            identifiers.append(_identifier(entry) if len(fields) == 2 else None)
    read = _tokens if manifest.input.kind == "tokens" else _values
    made, missing = [], 0
    for array, identifier in zip(arrays, identifiers, strict=True):
        length = len(array)
        if length == 0 or (length > manifest.max_length and manifest.long == "reject"):
            raise _Unsure
        steps, absent = read(array, length, manifest, nulls > 0)
        missing += absent
        made.append(fitted(steps, manifest, sent=length, id=identifier))
    if missing != nulls:  # a null somewhere else, or a number that looks like one
        raise _Unsure
    return made


def skeletons(manifest: Manifest, length: int) -> tuple[bytes, ...]:
    """How a sequence of so many steps can look once numbers and white space are deleted.

    One feature may stand bare or in an array, so there are two skeletons for it.
    """
    features = manifest.input.features
    if features is None:
        return (_bare_steps(length),)
    rows = b"[" + b",".join([b"[" + b"," * (features - 1) + b"]"] * length) + b"]"
    return (rows, _bare_steps(length)) if features == 1 else (rows,)


def _bare_steps(length: int) -> bytes:
    return b"[" + b"," * (length - 1) + b"]"


def _values(array: Any, length: int, manifest: Manifest, has_missing: bool) -> tuple[Steps, int]:
    """`[length, features]` float32 with NaN for a missing value, and how many are missing."""
    wide: NDArray[np.float64] = np.frombuffer(array.as_buffer(of_type="d"), dtype=np.float64)
    missing = 0
    if has_missing:
        absent = wide == _MISSING
        missing = int(absent.sum())
        if missing:
            if manifest.missing == "refuse":
                raise _Unsure
            wide = np.where(absent, 0.0, wide)
    if not np.maximum.reduce(np.abs(wide)) <= validation.FLOAT32_MAX:
        raise _Unsure
    steps = wide.astype(np.float32).reshape(length, manifest.input.features or 1)
    if missing:
        steps[absent.reshape(steps.shape)] = np.nan
    return steps, missing


def _tokens(array: Any, length: int, manifest: Manifest, has_missing: bool) -> tuple[Steps, int]:
    """`[length]` int64 token ids; none of them can be missing."""
    tokens: NDArray[np.int64] = np.frombuffer(array.as_buffer(of_type="i"), dtype=np.int64)
    if has_missing or len(tokens) != length or tokens.min() < 0 or tokens.max() >= (manifest.input.vocabulary or 1):
        raise _Unsure
    return tokens, 0


def _string(document: Any, fields: list[str], name: str) -> str | None:
    return _text(document[name]) if name in fields else None


def _identifier(entry: Any) -> str:
    value = _text(entry["id"])
    if len(value) > MAX_ID_CHARACTERS:
        raise _Unsure
    return value


def _text(value: Any) -> str:
    """A string as sent: in one that holds the word null, it was taken for a missing value."""
    if not isinstance(value, str) or _MISSING_WORD in value:
        raise _Unsure
    return value


def _timeout_ms(document: Any, fields: list[str]) -> float | None:
    if "timeout_ms" not in fields:
        return None
    value = document["timeout_ms"]
    if type(value) not in (int, float) or not value > 0 or value == _MISSING:
        raise _Unsure
    return min(float(value), MAX_TIMEOUT_MS)


def _priority(document: Any, fields: list[str]) -> int:
    value = document["priority"] if "priority" in fields else 0
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        raise _Unsure
    return value


def _attention(document: Any, fields: list[str]) -> bool:
    names = document["outputs"].as_list() if "outputs" in fields else []
    if any(name != "attention" for name in names):
        raise _Unsure
    return bool(names)
