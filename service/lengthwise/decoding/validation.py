"""The reader of JSON bodies in Python: it has every rule of a body, and names every problem by its JSON pointer.

It defines the result of every body, also of those that `fast_json` reads. NumPy converts the steps; only if that fails
are they read one by one (`sent_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import options, static_values
from lengthwise.decoding.calls import (
    Call,
    Find,
    Item,
    Problems,
    escaped,
    length_problem,
    make_item,
    missing_message,
    read_id,
    unknown_fields,
)
from lengthwise.decoding.chunks import ABSENT, NO_STREAM, SentStates, resumed, sent_state
from lengthwise.decoding.json_text import collector_paused, kind, parse
from lengthwise.decoding.sent_steps import CheckedSteps, SentWhere, read_steps
from lengthwise.errors import InvalidRequest, Problem, RequestError, TooLarge
from lengthwise.padding import STATIC, Sample, steps_of
from lengthwise.runtime.feature_names import listed
from lengthwise.runtime.manifest import Manifest, StepInput

ITEM_FIELDS: Final = frozenset({"id", "steps", "step_mask", "feature_mask", "state", "offset"})
_ABSENT: Final = ABSENT


@dataclass(frozen=True, eq=False)  # compared as the object that it is, which takes no time
class BodyLayout:
    """The fields of a protocol's body, and which of them has the sequences."""

    root: str  # the field with the sequences
    fields: frozenset[str]  # all fields
    instead: str = ""  # advice for a body without sequences: what is sent by mistake, and what to send
    names_version: bool = False  # whether the path names the version

    @cached_property
    def pointer(self) -> str:
        """JSON pointer of a sequence, with `{}` for its index."""
        return f"/{self.root}/{{}}"

    @cached_property
    def key(self) -> bytes:
        """The name of the field with the sequences, as bytes."""
        return self.root.encode()


PREDICT: Final = BodyLayout("sequences", options.FIELDS | {"sequences"})  # the body of `POST /predict`


def read(body: bytes | bytearray, find: Find, *, max_sequences: int, layout: BodyLayout = PREDICT) -> Call:
    """The call of an inflated body.

    Raises:
        InvalidRequest: The body is wrong; the error has the first 20 problems in body order, and their number.
        TooLarge: There are too many sequences, or too many parts.
        RequestError: The model is not known or not ready, and nothing else is wrong.
    """  # noqa: DOC502 - it raises again what it catches
    with collector_paused():
        try:
            return read_document(parse(body), find, max_sequences=max_sequences, layout=layout)
        except RequestError as error:
            error.__context__ = None  # frees the document, which may take thirty times the memory of its text
            raise error.with_traceback(None) from None


def read_document(document: Any, find: Find, *, max_sequences: int, layout: BodyLayout) -> Call:
    """Reads a parsed body, and returns its call.

    The sequences may have `CheckedSteps` in the place of their steps.

    Raises:
        InvalidRequest: The document is not an object, or has problems: one error has all of them.
        TooLarge: There are more than `max_sequences`.
        RequestError: The model is not known or not ready, and nothing else is wrong.
    """  # noqa: DOC502 - `find_model` raises it
    if not isinstance(document, dict):
        raise InvalidRequest([Problem("", f"the body must be an object with '{layout.root}', got {kind(document)}")])
    # The fields: options, and whether there are sequences.
    problems = Problems()
    unknown_fields(document, layout.fields, "", problems)
    call_options = options.read({name: value for name, value in document.items() if name in layout.fields}, problems)
    root = f"/{layout.root}"
    sequences = document.get(layout.root, _ABSENT)
    if sequences is _ABSENT:
        problems.add("", f"'{layout.root}' is missing{layout.instead}")
    elif not isinstance(sequences, list):
        problems.add(root, f"must be an array, got {kind(sequences)}")
    elif not sequences:
        problems.add(root, "must have at least one sequence")
    elif len(sequences) > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {len(sequences)}")
    # The model, which the sequences are checked against; states may choose another version of it.
    model = options.find_model(call_options, find, problems)
    values = sequences if isinstance(sequences, list) else []
    at, outputs = layout.pointer, call_options.outputs
    states = SentStates(list(map(sent_state, values)), f"{at}/state", f"{at}/offset", problems, "state" in outputs)
    model, pasts = states.choose(model, named=layout.names_version or call_options.version is not None)
    manifest = model.manifest
    _check_outputs(outputs, manifest, problems)
    items = [
        read_item(value, f"{root}/{i}", manifest, problems, None if past is None else past.offset)
        for i, (value, past) in enumerate(zip(values, pasts, strict=True))
    ]
    problems.require_none()
    states.conflicts.require_none()
    good = [resumed(item, past) for item, past in zip(items, pasts, strict=True) if item is not None]
    options_of_call = "attention" in outputs, call_options.timeout_ms, call_options.priority
    return Call(model, good, *options_of_call, layout.pointer, states="state" in outputs)


def _check_outputs(outputs: Sequence[str], manifest: Manifest, problems: Problems) -> None:
    """Adds a problem for each output that is asked for and that the model does not have."""
    missing = {}
    if manifest.graph.attention is None:
        missing["attention"] = f"the model {manifest.key} has no attention: see docs/targets.md"
    if manifest.streaming is None:
        missing["state"] = NO_STREAM.format(manifest.key)
    for name in missing:
        if name in outputs:
            problems.add(f"/outputs/{outputs.index(name)}", missing[name])


def read_item(value: Any, pointer: str, manifest: Manifest, problems: Problems, seen: int | None) -> Item | None:
    """Reads the entry of a sequence in a body; returns None if it is wrong, and adds the reasons to `problems`.

    `value` is an array of steps, or an object with `steps`, and perhaps an id and masks. A model that takes more has
    objects only: with `static`, and with `inputs` in the place of `steps` if it takes several sequences. `seen`: how
    many steps came before, of an item that is sent with states; None for any other.
    """
    takes = manifest.input
    if not isinstance(value, dict) and not takes.has_more:
        return _read_sequence(value, pointer, manifest, problems=problems, seen=seen)
    fields = item_fields(takes)
    if not isinstance(value, dict):
        needed = listed(sorted(fields & {"inputs", "static", "steps"}))
        problems.add(pointer, f"must be an object with {needed}, got {kind(value)}")
        return None
    problems_before = problems.total
    unknown_fields(value, fields, pointer, problems)
    identifier = read_id(value["id"], f"{pointer}/id", problems) if "id" in value else None
    of_single: dict[str, Any] = {} if takes.sequences else {"masks": value, "pointer": pointer, "seen": seen}
    read = partial(_read_sequence, problems=problems, **of_single)
    item = read_fields(value, pointer, manifest, problems, read)
    return None if item is None or problems.total > problems_before else item._replace(id=identifier)


def item_fields(takes: StepInput) -> frozenset[str]:
    """The fields of an item, by what the model takes."""
    fields = frozenset({"id", "inputs"}) if takes.sequences else ITEM_FIELDS
    return fields if takes.static is None else fields | {"static"}


def read_fields(
    fields: Mapping[str, Any],
    pointer: str,
    manifest: Manifest,
    problems: Problems,
    read: Callable[[Any, str, Manifest], Item | None],
) -> Item | None:
    """Reads an item from its fields; returns None if it is wrong, and adds the reasons to `problems`.

    Args:
        fields: `steps`, or `inputs` if the model takes several sequences; and `static` if it takes that.
        pointer: The JSON pointer of the item.
        manifest: That of the model.
        problems: What is wrong is added.
        read: Reads one sequence: its steps, their JSON pointer, the manifest of a model that takes it alone. If it
            returns None, it has added the reasons.
    """
    takes, problems_before = manifest.input, problems.total
    static = None
    if "static" in fields:
        static = static_values.read(fields["static"], f"{pointer}/static", manifest, problems)
    elif takes.static is not None:
        problems.add(pointer, f"'static' is missing: the model takes {static_values.description(takes.static)}")
    if takes.sequences:
        inputs, at, sequences = fields.get("inputs"), f"{pointer}/inputs", manifest.by_sequence
        if not isinstance(inputs, Mapping):
            problems.add(at, f"must be an object with {listed([*sequences])}, got {kind(inputs)}")
            return None
        unknown_fields(inputs, frozenset(sequences), at, problems)
        for name in sequences.keys() - inputs.keys():
            problems.add(f"{at}/{escaped(name)}", "is missing")
        items = [read(inputs[name], f"{at}/{escaped(name)}", of) for name, of in sequences.items() if name in inputs]
    elif "steps" in fields:
        items = [read(fields["steps"], f"{pointer}/steps", manifest.alone)]
    else:
        problems.add(pointer, "'steps' is missing")
        return None
    good = [item for item in items if item is not None]
    if problems.total > problems_before or len(good) < len(items):
        return None
    if not takes.has_more:
        return good[0]
    arrays = [steps_of(item.steps) for item in good]
    beside = {} if static is None else {STATIC: static}
    return good[0]._replace(steps=Sample(arrays[0], beside, dict(zip(manifest.further, arrays[1:], strict=True))))


def _read_sequence(
    steps: Any,
    at: str,
    manifest: Manifest,
    *,
    problems: Problems,
    masks: Mapping[str, Any] = MappingProxyType({}),
    pointer: str = "",
    seen: int | None = None,
) -> Item | None:
    """Reads the steps of a sequence; returns None if they are wrong, and adds the reasons to `problems`.

    `CheckedSteps` in the place of steps are always wrong: C has counted their faults.

    Args:
        steps: What was sent as steps.
        at: The JSON pointer of the steps.
        manifest: That of a model that takes this sequence alone.
        problems: What is wrong is added.
        masks: The item, if it may have masks.
        pointer: The JSON pointer of the item.
        seen: How many steps came before, of an item that is sent with states; None for any other.
    """
    problems_before = problems.total
    count = len(steps) if isinstance(steps, list | CheckedSteps) else None
    step_mask = _mask(masks, "step_mask", count, pointer, "steps", problems)
    feature_mask = _mask(masks, "feature_mask", manifest.input.features, pointer, "features", problems)
    if not isinstance(steps, list | CheckedSteps):
        problems.add(at, f"must be an array of steps, got {kind(steps)}")
        return None
    if not len(steps) and not seen:
        problems.add(at, "a sequence has at least one step")
        return None
    # The kept steps: are there as many as the model takes?
    kept: Sequence[int] = range(len(steps)) if step_mask is None else np.flatnonzero(step_mask).tolist()
    fault = length_problem(len(kept), manifest, seen) if kept or seen else "no step; a sequence has at least one"
    if fault is not None:
        # The mask is wrong, and not the steps, if it leaves none of them, or too few where all would be enough.
        is_masks_fault = not kept or len(kept) < manifest.min_length <= len(steps)
        problems.add(f"{pointer}/step_mask" if is_masks_fault else at, f"leaves {fault}" if is_masks_fault else fault)
        return None
    if manifest.missing == "refuse" and feature_mask is not None and not feature_mask.all():
        problems.add(f"{pointer}/feature_mask", missing_message(manifest))
    # The values of the steps.
    where = SentWhere(at, manifest, problems, feature_mask)
    if isinstance(steps, CheckedSteps):
        steps.explain(where)
        return None
    array = read_steps(steps, kept, where)
    if problems.total > problems_before or array is None:
        return None
    if feature_mask is not None:
        array[:, ~feature_mask] = np.nan
    indices = None if len(kept) == len(steps) else np.asarray(kept, dtype=np.intp)
    return make_item(array, manifest, sent_steps=len(steps), step_indices=indices)


def _mask(
    value: Mapping[str, Any], name: str, count: int | None, pointer: str, entries: str, problems: Problems
) -> NDArray[np.bool_] | None:
    """A mask of a sequence as booleans; None if it is absent, or wrong, which is added to `problems`.

    It must have `count` entries, one for each of the `entries` ("steps" or "features"); None: any number.
    """
    mask = value.get(name, _ABSENT)
    if mask is _ABSENT:
        return None
    at = f"{pointer}/{name}"
    if not isinstance(mask, list):
        problems.add(at, f"must be an array of booleans, got {kind(mask)}")
    elif name == "feature_mask" and count is None:
        problems.add(at, "a token has no features to mask")
    elif count is not None and len(mask) != count:
        problems.add(at, f"must have one entry for each of the {count} {entries}, it has {len(mask)}")
    else:
        wrong_indices = [index for index, entry in enumerate(mask) if type(entry) is not bool]
        if not wrong_indices:
            return np.array(mask, np.bool_)
        listed = wrong_indices[: max(0, problems.most_listed - problems.total)]
        for index in listed:
            problems.add(f"{at}/{index}", f"must be true or false, got {kind(mask[index])}")
        problems.count(len(wrong_indices) - len(listed))
    return None
