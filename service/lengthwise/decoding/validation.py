"""The reader of JSON bodies in Python: it has every rule of a body, and names every problem by its JSON pointer.

It reads each body that `fast_json` does not read. Where both can read a body, this module defines the result. NumPy
converts the steps of a sequence; only where that fails are they read one by one, to name each value that is wrong. It
goes on after a problem, so one answer names all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np

from lengthwise.decoding import json_text, options
from lengthwise.decoding.calls import (
    Call,
    Find,
    Item,
    Problems,
    id_problem,
    make_item,
    missing_message,
    token_message,
    too_long_message,
    why_rejected,
)
from lengthwise.decoding.json_text import collector_paused, kind
from lengthwise.errors import InvalidRequest, Problem, RequestError, TooLarge
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

ITEM_FIELDS: Final = frozenset({"id", "steps", "step_mask", "feature_mask"})
FLOAT32_BEYOND: Final = (1 << 128) - (1 << 103)
"""The least number that rounds to infinity: half a step past the largest."""
_NUMBERS_AT_ONCE: Final = 16_384
"""Numbers that one call of NumPy converts. Other threads can run between two calls."""
_NUMBERS: Final = frozenset({float, int, type(None)})
_ABSENT: Final = object()


@dataclass(frozen=True)
class BodyLayout:
    """The fields of a protocol's body, which is a JSON object.

    Attributes:
        root: The field with the sequences.
        fields: All fields that the body may have.
    """

    root: str
    fields: frozenset[str]

    @cached_property
    def pointer(self) -> str:
        """JSON pointer of a sequence, with `{}` for its index."""
        return f"/{self.root}/{{}}"

    @cached_property
    def key(self) -> bytes:
        """The field with the sequences, as bytes."""
        return self.root.encode()


PREDICT: Final = BodyLayout("sequences", options.FIELDS | {"sequences"})
"""The body of `POST /predict`."""


def read(body: bytes | bytearray, find: Find, *, max_sequences: int, layout: BodyLayout = PREDICT) -> Call:
    """Reads a body; if anything is wrong with it, raises an error that names every problem.

    Args:
        body: The JSON text, inflated.
        find: Finds the model by its name and version.
        max_sequences: Most sequences in one body.
        layout: The body's fields.

    Raises:
        InvalidRequest: The body is wrong. Has the first 20 problems in body order, and their number; reading stops
            at `MOST_PROBLEMS`.
        TooLarge: There are more than `max_sequences`.
        RequestError: The model is not known, or not ready.
    """
    with collector_paused():
        try:
            return _call(json_text.parse(body), find, max_sequences, layout)
        except RequestError as error:
            error.__context__ = None  # its frames hold the document, which may be thirty times its text
            raise error.with_traceback(None) from None


def _call(document: Any, find: Find, max_sequences: int, layout: BodyLayout) -> Call:
    """The call of a parsed body; see `read`."""
    if not isinstance(document, dict):
        raise InvalidRequest([Problem("", f"the body must be an object with '{layout.root}', it is {kind(document)}")])
    problems = Problems()
    _unknown_fields(document, layout.fields, "", problems)
    asked = options.read({name: value for name, value in document.items() if name in layout.fields}, problems)
    root = f"/{layout.root}"
    sequences = document.get(layout.root, _ABSENT)
    if sequences is _ABSENT:
        problems.add("", f"'{layout.root}' is missing")
    elif not isinstance(sequences, list):
        problems.add(root, f"must be an array, it is {kind(sequences)}")
    elif not sequences:
        problems.add(root, "must have at least one sequence")
    elif len(sequences) > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {len(sequences)}")
    if not asked.named:  # without the model the sequences cannot be checked
        raise problems.error()
    try:
        model = find(asked.model, asked.version)
    except RequestError:
        if problems.total:
            raise problems.error() from None
        raise
    manifest = model.manifest
    attention = "attention" in asked.outputs
    if attention and manifest.graph.attention is None:
        problems.add(f"/outputs/{asked.outputs.index('attention')}", f"the model {manifest.key} has no attention")
    items = []
    if isinstance(sequences, list):
        items = [_item(value, f"{root}/{i}", manifest, problems) for i, value in enumerate(sequences)]
    if problems.total:
        raise problems.error()
    return Call(
        model,
        [item for item in items if item is not None],
        attention,
        asked.timeout_ms,
        asked.priority,
        layout.pointer,
    )


def _item(value: Any, pointer: str, manifest: Manifest, problems: Problems) -> Item | None:
    """One entry of `sequences`; None if something is wrong with it, which is then in `problems`."""
    before = problems.total
    step_mask = feature_mask = identifier = None
    steps, at = value, pointer
    if isinstance(value, dict):
        _unknown_fields(value, ITEM_FIELDS, pointer, problems)
        identifier = _identifier(value, pointer, problems)
        steps, at = value.get("steps", _ABSENT), f"{pointer}/steps"
        if steps is _ABSENT:
            problems.add(pointer, "'steps' is missing")
            return None
        count = len(steps) if isinstance(steps, list) else None
        step_mask = _mask(value, "step_mask", count, pointer, "steps", problems)
        feature_mask = _mask(value, "feature_mask", manifest.input.features, pointer, "features", problems)
    if not isinstance(steps, list):
        problems.add(at, f"must be an array of steps, it is {kind(steps)}")
        return None
    if not steps:
        problems.add(at, "a sequence has at least one step")
        return None
    kept: Sequence[int] = range(len(steps)) if step_mask is None else [i for i, keep in enumerate(step_mask) if keep]
    if step_mask is not None and not kept:
        problems.add(f"{pointer}/step_mask", "leaves no step; a sequence has at least one")
        return None
    if len(kept) > manifest.max_length and manifest.long == "reject":
        problems.add(at, too_long_message(len(kept), manifest))
        return None
    if manifest.missing == "refuse" and feature_mask is not None and not all(feature_mask):
        problems.add(f"{pointer}/feature_mask", missing_message(manifest))
    entries = steps if len(kept) == len(steps) else [steps[place] for place in kept]
    array = _array(entries, manifest)
    if array is None or why_rejected(array, manifest) is not None:
        _explain(entries, kept, at, manifest, feature_mask, problems)
    if problems.total > before or array is None:
        return None
    if feature_mask is not None:
        array[:, [i for i, keep in enumerate(feature_mask) if not keep]] = np.nan
    places = None if len(kept) == len(steps) else np.asarray(kept, dtype=np.intp)
    return make_item(array, manifest, sent_steps=len(steps), kept_places=places, id=identifier)


def _array(entries: list[Any], manifest: Manifest) -> Steps | None:
    """The steps as an array: `[length, features]` float32 or `[length]` int64; None if a step is not made of numbers.

    A number beyond float32 becomes infinite and a missing value NaN: `why_rejected` looks at both.
    """
    features = manifest.input.features
    at_once = max(1, _NUMBERS_AT_ONCE // (features or 1))
    if len(entries) > at_once:
        parts: list[Any] = []
        for first in range(0, len(entries), at_once):
            part = _array(entries[first : first + at_once], manifest)
            if part is None:
                return None
            parts.append(part)
        array: Steps = np.concatenate(parts)
        return array
    try:
        if features is None:
            return np.array(entries, dtype=np.int64) if set(map(type, entries)) == {int} else None
        if features == 1:
            entries = [entry if type(entry) is list else [entry] for entry in entries]
        if set(map(type, entries)) != {list} or set(map(len, entries)) != {features}:
            return None
        numbers = list(chain.from_iterable(entries))
        if not _NUMBERS.issuperset(map(type, numbers)):
            return None
        with np.errstate(over="ignore"):
            return np.array(numbers, dtype=np.float64).astype(np.float32).reshape(-1, features)
    except OverflowError:  # an integer beyond every type of NumPy
        return None


def _explain(
    entries: list[Any],
    kept: Sequence[int],
    at: str,
    manifest: Manifest,
    feature_mask: list[bool] | None,
    problems: Problems,
) -> None:
    """Adds a problem for everything that is wrong with the kept steps.

    Args:
        entries: The kept steps.
        kept: Index of each in the sequence as sent.
        at: JSON pointer of the sequence's steps.
        manifest: Of the model.
        feature_mask: True for each feature that is kept; None for all.
        problems: Where they are added.
    """
    if manifest.input.features is None:
        _explain_tokens(entries, kept, at, manifest, problems)
    else:
        _explain_values(entries, kept, at, manifest, feature_mask, problems)


def _explain_values(
    entries: list[Any],
    kept: Sequence[int],
    at: str,
    manifest: Manifest,
    feature_mask: list[bool] | None,
    problems: Problems,
) -> None:
    features = manifest.input.features or 1
    if features > 1 and not any(isinstance(entry, list) for entry in entries):
        problems.add(
            f"{at}/{kept[0]}",
            f"a step must be an array of {features} numbers, and none here is an array: the first is "
            f"{kind(entries[0])}; a level of brackets may be missing",
        )
        return
    takes_missing = [manifest.missing != "refuse"] * features
    if feature_mask is not None:
        takes_missing = [taken or not keep for taken, keep in zip(takes_missing, feature_mask, strict=True)]
    for place, entry in zip(kept, entries, strict=True):
        is_bare = features == 1 and not isinstance(entry, list)
        step = [entry] if is_bare else entry
        if not isinstance(step, list) or len(step) != features:
            if problems.listing:
                problems.add(f"{at}/{place}", _no_step(step, features))
            else:
                problems.count()
            continue
        for i, value in enumerate(step):
            if takes_missing[i] if value is None else fits_float32(value):
                continue
            if problems.listing:
                problems.add(f"{at}/{place}" if is_bare else f"{at}/{place}/{i}", _no_number(value, manifest))
            else:
                problems.count()
            if value is not None:
                break


def _explain_tokens(entries: list[Any], kept: Sequence[int], at: str, manifest: Manifest, problems: Problems) -> None:
    vocabulary = manifest.input.vocabulary or 1
    for place, token in zip(kept, entries, strict=True):
        if type(token) is int and 0 <= token < vocabulary:
            continue
        if not problems.listing:
            problems.count()
        elif type(token) is int:
            problems.add(f"{at}/{place}", token_message(manifest))
        else:
            problems.add(f"{at}/{place}", f"must be a token id, a whole number, it is {kind(token)}")


def _no_step(step: Any, features: int) -> str:
    """The message of a step that has the wrong form."""
    if not isinstance(step, list):
        return f"a step must be an array of {features} numbers, it is {kind(step)}"
    return f"the model takes {features} features a step, this one has {len(step)}"


def _no_number(value: Any, manifest: Manifest) -> str:
    """The message of a value that the model does not accept."""
    if value is None:
        return missing_message(manifest)
    if type(value) is float or type(value) is int:
        return "is beyond the range of float32"
    return f"must be a number or null, it is {kind(value)}"


def _mask(
    value: dict[str, Any], name: str, count: int | None, pointer: str, of: str, problems: Problems
) -> list[bool] | None:
    """A mask, a list of `count` booleans; None if it is absent or wrong."""
    mask = value.get(name, _ABSENT)
    if mask is _ABSENT:
        return None
    at = f"{pointer}/{name}"
    if not isinstance(mask, list):
        problems.add(at, f"must be an array of booleans, it is {kind(mask)}")
    elif name == "feature_mask" and count is None:
        problems.add(at, "a token has no features to mask")
    elif count is not None and len(mask) != count:
        problems.add(at, f"must have one entry for each of the {count} {of}, it has {len(mask)}")
    else:
        before = problems.total
        for i, entry in enumerate(mask):
            if isinstance(entry, bool):
                continue
            if problems.listing:
                problems.add(f"{at}/{i}", f"must be true or false, it is {kind(entry)}")
            else:
                problems.count()
        if problems.total == before:
            return mask
    return None


def _identifier(value: dict[str, Any], pointer: str, problems: Problems) -> str | None:
    identifier = value.get("id", _ABSENT)
    if identifier is _ABSENT:
        return None
    wrong = id_problem(identifier)
    if wrong is not None:
        problems.add(f"{pointer}/id", wrong)
        return None
    return str(identifier)


def fits_float32(value: Any) -> bool:
    """Whether a value is a number, and finite when rounded to float64 and then to float32."""
    if type(value) is not float and type(value) is not int:
        return False
    return abs(value) < FLOAT32_BEYOND and abs(float(value)) < FLOAT32_BEYOND


def _unknown_fields(value: dict[str, Any], known: frozenset[str], pointer: str, problems: Problems) -> None:
    if value.keys() <= known:
        return
    detail = f"unknown field; known are {', '.join(sorted(known))}"
    for name in value:
        if name in known:
            continue
        if problems.listing:
            problems.add(_child(pointer, name), detail)
        else:
            problems.count()


def _child(pointer: str, name: str) -> str:
    return f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
