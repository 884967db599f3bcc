"""The careful reader of `POST /predict`: every rule of the body, and every problem named by its JSON pointer.

This module is the law; the fast way in `wire` takes only bodies on which it would agree with it, and leaves the rest.
It walks the document value by value, so that a string for a number, a boolean, a ragged step or a number beyond float32
is found where it stands, and it goes on after the first problem: one answer names them all.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Final

import numpy as np

from service.calls import (
    MAX_ID_CHARACTERS,
    MAX_PRIORITY,
    MAX_TIMEOUT_MS,
    Call,
    Catalog,
    Item,
    M_co,
    Problems,
    fitted,
    refuses_missing,
    too_long,
)
from service.errors import InvalidRequest, Problem, RequestError, TooLarge
from service.manifest import Manifest
from service.padding import Steps

CALL_FIELDS: Final = frozenset({"sequences", "model", "version", "outputs", "timeout_ms", "priority"})
ITEM_FIELDS: Final = frozenset({"id", "steps", "step_mask", "feature_mask"})
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_ABSENT: Final = object()


def read(body: bytes | bytearray, catalog: Catalog[M_co], *, max_sequences: int) -> Call[M_co]:
    """Reads a body, or says everything that is wrong with it.

    Args:
        body: The JSON text, inflated.
        catalog: Where the model that it names is found.
        max_sequences: Most sequences in one body.

    Raises:
        InvalidRequest: With the first 20 problems, in body order, and their number.
        TooLarge: More than `max_sequences`.
        RequestError: The model is not known, or not ready.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise InvalidRequest([Problem("", f"the body must be an object with 'sequences', it is {_kind(document)}")])
    problems = Problems()
    for name in document:
        if name not in CALL_FIELDS:
            problems.add(_child("", name), f"unknown field; known are {', '.join(sorted(CALL_FIELDS))}")
    unknown = problems.total
    name = _optional_string(document, "model", problems)
    version = _version(document, problems)
    misnamed = problems.total > unknown
    timeout_ms = _timeout_ms(document, problems)
    priority = _priority(document, problems)
    outputs = _outputs(document, problems)
    sequences = document.get("sequences", _ABSENT)
    if sequences is _ABSENT:
        problems.add("", "'sequences' is missing")
    elif not isinstance(sequences, list):
        problems.add("/sequences", f"must be an array, it is {_kind(sequences)}")
    elif not sequences:
        problems.add("/sequences", "must have at least one sequence")
    elif len(sequences) > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {len(sequences)}")
    if misnamed:  # whose sequences they are is not known, so they cannot be judged
        raise InvalidRequest(problems.found, total=problems.total)
    try:
        model = catalog.find(name, version)
    except RequestError:
        if problems.total:
            raise InvalidRequest(problems.found, total=problems.total) from None
        raise
    manifest = model.manifest
    attention = "attention" in outputs
    if attention and manifest.graph.attention is None:
        problems.add(f"/outputs/{outputs.index('attention')}", f"the model {manifest.key} has no attention")
    items = []
    if isinstance(sequences, list):
        items = [_item(value, f"/sequences/{i}", manifest, problems) for i, value in enumerate(sequences)]
    if problems.total:
        raise InvalidRequest(problems.found, total=problems.total)
    return Call(model, [item for item in items if item is not None], attention, timeout_ms, priority)


def parse(body: bytes | bytearray) -> Any:
    """The JSON value of a body. NaN and Infinity literals, duplicate keys and absurd nesting are not JSON here.

    Raises:
        InvalidRequest: The text is not UTF-8, not JSON, or has a lone surrogate; its one problem points at the whole.
    """
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8: byte {error.start} cannot be read") from None
    if text.startswith("\ufeff"):
        raise _not_json("the body starts with a byte order mark; send plain UTF-8")
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_int)
    except RecursionError:
        raise _not_json("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if "\\u" in text and _has_lone_surrogate(document):
        raise _not_json("the body has a lone surrogate, which is no text")
    return document


def _item(value: Any, pointer: str, manifest: Manifest, problems: Problems) -> Item | None:
    """One entry of `sequences`, or None after noting what is wrong with it."""
    before = problems.total
    step_mask = feature_mask = identifier = None
    steps, at = value, pointer
    if isinstance(value, dict):
        for name in value:
            if name not in ITEM_FIELDS:
                problems.add(_child(pointer, name), f"unknown field; known are {', '.join(sorted(ITEM_FIELDS))}")
        identifier = _identifier(value, pointer, problems)
        steps, at = value.get("steps", _ABSENT), f"{pointer}/steps"
        if steps is _ABSENT:
            problems.add(pointer, "'steps' is missing")
            return None
        count = len(steps) if isinstance(steps, list) else None
        step_mask = _mask(value, "step_mask", count, pointer, "steps", problems)
        feature_mask = _mask(value, "feature_mask", manifest.input.features, pointer, "features", problems)
    if not isinstance(steps, list):
        problems.add(at, f"must be an array of steps, it is {_kind(steps)}")
        return None
    if not steps:
        problems.add(at, "a sequence has at least one step")
        return None
    kept = list(range(len(steps))) if step_mask is None else [i for i, keep in enumerate(step_mask) if keep]
    if step_mask is not None and not kept:
        problems.add(f"{pointer}/step_mask", "leaves no step; a sequence has at least one")
        return None
    if len(kept) > manifest.max_length and manifest.long == "reject":
        problems.add(at, too_long(len(kept), manifest))
        return None
    if manifest.missing == "refuse" and feature_mask is not None and not all(feature_mask):
        problems.add(f"{pointer}/feature_mask", refuses_missing(manifest))
    array: Steps
    if manifest.input.kind == "tokens":
        array = _tokens(steps, kept, at, manifest, problems)
    else:
        array = _values(steps, kept, at, manifest, feature_mask, problems)
    if problems.total > before:
        return None
    places = None if len(kept) == len(steps) else np.asarray(kept, dtype=np.intp)
    return fitted(array, manifest, sent=len(steps), kept=places, id=identifier)


def _values(
    steps: list[Any], kept: list[int], at: str, manifest: Manifest, feature_mask: list[bool] | None, problems: Problems
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`[length, features]` float32 of the kept steps; whatever is wrong with them is noted."""
    features = manifest.input.features or 1
    refuses = manifest.missing == "refuse"
    array = np.empty((len(kept), features), dtype=np.float32)
    for row, place in enumerate(kept):
        step = steps[place]
        if features == 1 and not isinstance(step, list):
            step = [step]
        pointer = f"{at}/{place}"
        if not isinstance(step, list):
            problems.add(pointer, f"a step must be an array of {features} numbers, it is {_kind(step)}")
            continue
        if len(step) != features:
            problems.add(pointer, f"the model takes {features} features a step, this one has {len(step)}")
            continue
        numbers = []
        for i, value in enumerate(step):
            where = pointer if features == 1 and not isinstance(steps[place], list) else f"{pointer}/{i}"
            if value is None:
                if refuses and (feature_mask is None or feature_mask[i]):
                    problems.add(where, refuses_missing(manifest))
                numbers.append(math.nan)
            elif type(value) is not float and type(value) is not int:
                problems.add(where, f"must be a number or null, it is {_kind(value)}")
                break
            elif not abs(value) <= FLOAT32_MAX and not _rounds_to_finite(value):
                problems.add(where, "is beyond the range of float32")
                break
            else:
                numbers.append(float(value))
        else:
            array[row] = numbers
    if feature_mask is not None and len(feature_mask) == features:
        array[:, [i for i, keep in enumerate(feature_mask) if not keep]] = np.nan
    return array


def _tokens(
    steps: list[Any], kept: list[int], at: str, manifest: Manifest, problems: Problems
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`[length]` int64 of the kept steps; whatever is wrong with them is noted."""
    vocabulary = manifest.input.vocabulary or 1
    array = np.zeros(len(kept), dtype=np.int64)
    for row, place in enumerate(kept):
        token = steps[place]
        if type(token) is not int:
            problems.add(f"{at}/{place}", f"must be a token id, a whole number, it is {_kind(token)}")
        elif not 0 <= token < vocabulary:
            problems.add(f"{at}/{place}", f"is no token id: the vocabulary has 0 to {vocabulary - 1}")
        else:
            array[row] = token
    return array


def _mask(
    value: dict[str, Any], name: str, count: int | None, pointer: str, of: str, problems: Problems
) -> list[bool] | None:
    """A list of booleans of the right length, or None where it is absent or wrong."""
    mask = value.get(name, _ABSENT)
    if mask is _ABSENT:
        return None
    at = f"{pointer}/{name}"
    if not isinstance(mask, list):
        problems.add(at, f"must be an array of booleans, it is {_kind(mask)}")
    elif name == "feature_mask" and count is None:
        problems.add(at, "a token has no features to mask")
    elif count is not None and len(mask) != count:
        problems.add(at, f"must have one entry for each of the {count} {of}, it has {len(mask)}")
    else:
        wrong = [(i, entry) for i, entry in enumerate(mask) if not isinstance(entry, bool)]
        for i, entry in wrong:
            problems.add(f"{at}/{i}", f"must be true or false, it is {_kind(entry)}")
        if not wrong:
            return mask
    return None


def _identifier(value: dict[str, Any], pointer: str, problems: Problems) -> str | None:
    identifier = value.get("id", _ABSENT)
    if identifier is _ABSENT:
        return None
    if not isinstance(identifier, str):
        problems.add(f"{pointer}/id", f"must be a string, it is {_kind(identifier)}")
    elif len(identifier) > MAX_ID_CHARACTERS:
        problems.add(f"{pointer}/id", f"must have at most {MAX_ID_CHARACTERS} characters, it has {len(identifier)}")
    else:
        return identifier
    return None


def _optional_string(document: dict[str, Any], name: str, problems: Problems) -> str | None:
    value = document.get(name, _ABSENT)
    if value is _ABSENT:
        return None
    if not isinstance(value, str):
        problems.add(f"/{name}", f"must be a string, it is {_kind(value)}")
        return None
    return value


def _version(document: dict[str, Any], problems: Problems) -> str | None:
    version = _optional_string(document, "version", problems)
    if version is not None and not is_version(version):
        problems.add("/version", 'must be ASCII digits that do not start with 0, like "1"')
        return None
    return version


def is_version(text: str) -> bool:
    """Whether a text is a well-formed version: ASCII digits that do not start with 0."""
    return text.isascii() and text.isdigit() and not text.startswith("0")


def _timeout_ms(document: dict[str, Any], problems: Problems) -> float | None:
    value = document.get("timeout_ms", _ABSENT)
    if value is _ABSENT:
        return None
    if type(value) is not float and type(value) is not int:
        problems.add("/timeout_ms", f"must be a number of milliseconds, it is {_kind(value)}")
    elif not value > 0 or value == math.inf:
        problems.add("/timeout_ms", "must be finite and above 0")
    else:
        return float(min(value, MAX_TIMEOUT_MS))
    return None


def _priority(document: dict[str, Any], problems: Problems) -> int:
    value = document.get("priority", 0)
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        problems.add("/priority", f"must be a whole number from 0 to {MAX_PRIORITY}")
        return 0
    return value


def _outputs(document: dict[str, Any], problems: Problems) -> list[Any]:
    value = document.get("outputs", [])
    if not isinstance(value, list):
        problems.add("/outputs", f"must be an array of output names, it is {_kind(value)}")
        return []
    for i, name in enumerate(value):
        if name != "attention":
            problems.add(f"/outputs/{i}", "is no output that can be asked for; there is 'attention'")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _not_json(f"the key {twice[:40]!r} stands twice in one object")
    return made


def _no_constant(name: str) -> None:
    raise _not_json(f"{name} is not JSON; a missing value is null")


def _int(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; such a number is beyond float32 anyway.
    return int(digits) if len(digits) <= 400 else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _rounds_to_finite(value: float) -> bool:
    """Whether a number just past float32's largest still rounds to it."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))


def _has_lone_surrogate(value: Any) -> bool:
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            if any("\ud800" <= character <= "\udfff" for character in top):
                return True
        elif isinstance(top, dict):
            stack.extend(top.keys())
            stack.extend(top.values())
        elif isinstance(top, list):
            stack.extend(top)
    return False


def _child(pointer: str, name: str) -> str:
    return f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"


def _not_json(detail: str) -> InvalidRequest:
    return InvalidRequest([Problem("", detail)])


def _kind(value: Any) -> str:
    """What a JSON value is, for a sentence."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (int, "a number"), (float, "a number"), (str, "a string"), (list, "an array"))
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "an object")
