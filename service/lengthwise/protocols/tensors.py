"""The input tensors of the Open Inference Protocol, for its REST and its gRPC form.

A tensor is a rectangle, so its sequences are padded: `values [rows, width, features]`, or `tokens [rows, width]`, with
`lengths`, `[rows, 1]` or `[rows]`, which a request of one row may omit. The padding of a row is never read. A tensor
that is wider than any sequence of the model is too large. The outputs have the width of the input, with zeros past
each length.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import options
from lengthwise.decoding.calls import Call, Item, Problems, compact, make_item, too_long_message, why_rejected
from lengthwise.errors import TooLarge
from lengthwise.protocols import request_parameters
from lengthwise.protocols.tensor_specs import ELEMENTS, LENGTHS, TensorSpec, inputs_of, outputs_of
from lengthwise.protocols.tensor_text import TensorText
from lengthwise.repository.served import ServedModel
from lengthwise.runtime.manifest import Manifest

_FLOAT32: Final = ELEMENTS["FP32"]
INT64_MAX: Final = 2**63 - 1
"""The largest axis and the longest `timeout`, as over gRPC. Python's integers have no end, its floats and texts do."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input tensor of a request.

    Attributes:
        name: Its name.
        datatype: The datatype in the request.
        shape: The shape in the request.
        data: Its numbers, flat or nested, with None for a missing value; or its raw bytes.
        pointer: JSON pointer of it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | TensorText | bytes | memoryview
    pointer: str


@dataclass(frozen=True, slots=True)
class TensorCall:
    """A call whose sequences came as tensors.

    Attributes:
        call: The call.
        outputs: Names of the requested outputs, in order.
        classes: By an output's name, how many of the best classes to answer with instead of its numbers.
    """

    call: Call
    outputs: tuple[str, ...]
    classes: Mapping[str, int]


def read(
    model: ServedModel,
    sent: Sequence[InputTensor],
    wanted: Sequence[str],
    parameters: Mapping[str, Any],
    problems: Problems,
    *,
    max_sequences: int,
    classes: Mapping[str, int] | None = None,
) -> TensorCall:
    """Decodes a request of input tensors.

    Args:
        model: The model that it is for.
        sent: The input tensors.
        wanted: Names of the requested outputs; none means all of them.
        parameters: The parameters of the request: `timeout_ms`, `timeout` (microseconds) and `priority` are read here,
            `request_parameters.check` rejects some others, and the rest is ignored.
        problems: Problems of the request so far; more are added.
        max_sequences: Most rows.
        classes: By an output's name, how many of the best classes to answer with instead of its numbers.

    Raises:
        InvalidRequest: With everything that is wrong.
        TooLarge: There are more rows than `max_sequences`, a tensor is wider than any sequence of the model, or more
            classifications are requested than one answer may have.
    """
    manifest = model.manifest
    asked = _options(parameters, problems)
    known = [form.name for form in outputs_of(manifest)]
    for i, name in enumerate(wanted):
        if name not in known:
            problems.add(f"/outputs/{i}", f"is not an output of {manifest.key}; there are {', '.join(known)}")
        elif name in wanted[:i]:
            problems.add(f"/outputs/{i}", "stands twice")
    classes = _classes(classes or {}, list(wanted), manifest, problems)
    forms = inputs_of(manifest)
    by_name = _by_name(sent, forms, problems)
    steps, lengths = (by_name.get(form.name) for form in forms)
    if steps is None:
        problems.add("/inputs", f"the input {forms[0].name!r} is missing")
    elif len(steps.shape) == len(forms[0].shape) and steps.shape[0] > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {steps.shape[0]}")
    ends = None if lengths is None else _array(lengths, forms[1], problems)
    if steps is not None:
        _check_width(steps, ends, forms[0], manifest, problems)
    rectangle = None if steps is None else _array(steps, forms[0], problems)
    items: list[Item] = []
    if steps is not None and rectangle is not None and (lengths is None or ends is not None):
        items = _items(rectangle, ends, manifest, steps, lengths, problems)
    if problems.total or steps is None or rectangle is None:
        raise problems.error()
    rows, width = rectangle.shape[:2]
    written = sum(rows * (width if manifest.task == "per-step" else 1) * count for count in classes.values())
    most = request_parameters.MOST_CLASSIFICATIONS
    if written > most:
        raise TooLarge(f"a request may ask for {most} classifications, this one asks for {written}")
    names = tuple(wanted) or tuple(known)
    return _called(model, names, classes, asked, (steps, rectangle, items))


@dataclass(frozen=True, slots=True)
class KnownTensors:
    """A valid request without its elements: another one like it is read by its elements alone.

    Attributes:
        manifest: Of the model that it was for.
        inputs: Its input tensors, without data.
        outputs: Names of the requested outputs, in order.
        classes: See `TensorCall`.
        options: Its timeout and priority.
    """

    manifest: Manifest
    inputs: tuple[InputTensor, ...]
    outputs: tuple[str, ...]
    classes: Mapping[str, int]
    options: options.CallOptions

    @classmethod
    def of(cls, asked: TensorCall, sent: Sequence[InputTensor]) -> KnownTensors | None:
        """What was read; None where it was valid only because of its elements."""
        call, manifest = asked.call, asked.call.model.manifest
        if manifest.long == "reject" and call.width > manifest.max_length:
            return None
        given = options.CallOptions(timeout_ms=call.timeout_ms, priority=call.priority)
        return cls(manifest, tuple(replace(one, data=b"") for one in sent), asked.outputs, asked.classes, given)

    def read(self, model: ServedModel, data: Sequence[TensorText | bytes | memoryview]) -> TensorCall | None:
        """The call of a request that differs in its elements only; None where these are wrong, or the model is another.

        Args:
            model: The model that it is for.
            data: Of each input tensor.
        """
        manifest, problems = model.manifest, Problems()
        if manifest is not self.manifest or len(data) != len(self.inputs):
            return None
        arrays: dict[str, tuple[InputTensor, NDArray[Any]]] = {}
        for tensor, elements in zip(self.inputs, data, strict=True):
            array = _elements(tensor, elements, problems)
            if array is None:
                return None
            arrays[tensor.name] = tensor, array
        lengths, ends = arrays.pop(LENGTHS, (None, None))
        ((steps, rectangle),) = arrays.values()
        items = _items(rectangle, ends, manifest, steps, lengths, problems)
        if problems.total:
            return None
        return _called(model, self.outputs, self.classes, self.options, (steps, rectangle, items))


_MOST_KNOWN: Final = 256
_LONGEST_KEY_BYTES: Final = 1024


class KnownHeads:
    """The requests that were read, by all of their bytes but the elements: programs send them again and again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, KnownTensors] = {}

    def get(self, key: Hashable) -> Any:
        """What is known of a request; None if it is new."""
        return self._known.get(key)

    def add(self, key: Hashable, size: int, known: Any) -> None:
        """Keeps what was read of a request whose key has so many bytes. Of too many, none is kept on."""
        if size <= _LONGEST_KEY_BYTES and known is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()  # one step, because threads read and add, too
            self._known[key] = known


def _called(
    model: ServedModel,
    names: tuple[str, ...],
    classes: Mapping[str, int],
    asked: options.CallOptions,
    found: tuple[InputTensor, NDArray[Any], list[Item]],
) -> TensorCall:
    """The call of the sequences in a tensor: the tensor as sent, its elements, and the sequences."""
    steps, rectangle, items = found
    items, beside = compact(items, rectangle)
    place, attention = f"{steps.pointer}: row {{}}", "attention" in names
    call = Call(model, items, attention, asked.timeout_ms, asked.priority, place, rectangle.shape[1], beside)
    return TensorCall(call, names, classes)


def _classes(
    classes: Mapping[str, int], wanted: Sequence[str], manifest: Manifest, problems: Problems
) -> dict[str, int]:
    """The number of best classes of each output, at most all; adds a problem for an output other than probabilities."""
    for name in classes:
        if name != "probabilities":
            problems.add(
                f"/outputs/{wanted.index(name)}/parameters/{request_parameters.CLASSIFICATION}",
                "the output with a figure of each class is 'probabilities'",
            )
    return {name: min(count, manifest.classes) for name, count in classes.items()}


def _options(parameters: Mapping[str, Any], problems: Problems) -> options.CallOptions:
    request_parameters.check(parameters, "/parameters", problems)
    given = {name: parameters[name] for name in ("timeout_ms", "priority") if name in parameters}
    microseconds = parameters.get("timeout")
    if microseconds is not None:
        if type(microseconds) is int and 0 < microseconds <= INT64_MAX:
            given.setdefault("timeout_ms", microseconds / 1000)
        else:
            problems.add("/parameters/timeout", "must be a whole number of microseconds, above 0 and of 64 bits")
    return options.read(given, problems, "/parameters")


def _by_name(sent: Sequence[InputTensor], forms: Sequence[TensorSpec], problems: Problems) -> dict[str, InputTensor]:
    """The known input tensors by their names; adds a problem for each other one."""
    known = {form.name: form for form in forms}
    by_name: dict[str, InputTensor] = {}
    for tensor in sent:
        form = known.get(tensor.name)
        if form is None:
            problems.add(tensor.pointer, f"is no input of this model; there are {', '.join(known)}")
        elif tensor.name in by_name:
            problems.add(tensor.pointer, f"{tensor.name!r} stands twice")
        else:
            by_name[tensor.name] = tensor
    return by_name


def _array(tensor: InputTensor, form: TensorSpec, problems: Problems) -> NDArray[Any] | None:
    """A tensor's elements in its shape; None if it is wrong, which is then in `problems`."""
    before = problems.total
    if tensor.datatype not in form.datatypes:
        problems.add(f"{tensor.pointer}/datatype", f"must be {' or '.join(form.datatypes)}")
    if not any(_fits(tensor.shape, shape) for shape in form.shapes):
        shapes = " or ".join(str(list(shape)) for shape in form.shapes)
        problems.add(f"{tensor.pointer}/shape", f"must be {shapes}, -1 being any size from 1")
    if problems.total > before:
        return None
    return _elements(tensor, tensor.data, problems)


def _elements(
    tensor: InputTensor, data: list[Any] | TensorText | bytes | memoryview, problems: Problems
) -> NDArray[Any] | None:
    """The elements of a tensor whose datatype and shape are right; None if they are wrong."""
    element = ELEMENTS[tensor.datatype]
    if isinstance(data, TensorText):
        floats = None if data.floats is None else np.frombuffer(data.floats, _FLOAT32)
        size = data.others if floats is None else floats.size
        if size is not None and size != math.prod(tensor.shape):
            _wrong_count(tensor, problems)
            return None
        if floats is None and size is not None:
            _not_numbers(tensor, element, problems)
            return None
        if floats is not None and element.kind == "f":
            return floats.reshape(tensor.shape)
        return _from_numbers(tensor, data.parsed(), element, problems)
    if isinstance(data, list):
        return _from_numbers(tensor, data, element, problems)
    expected = math.prod(tensor.shape) * element.itemsize
    if len(data) != expected:
        problems.add(tensor.pointer, f"its shape is {expected} bytes, {len(data)} were sent")
        return None
    return _single(np.frombuffer(data, dtype=element)).reshape(tensor.shape)


def _fits(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(
        size == free if free > 0 else size > 0 for size, free in zip(sizes, shape, strict=True)
    )


def _single(elements: NDArray[Any]) -> NDArray[Any]:
    """Floats rounded to float32. A number beyond it becomes infinite, and is rejected if it is not padding."""
    if elements.dtype.kind != "f" or elements.dtype == _FLOAT32:
        return elements
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return elements.astype("<f4", copy=False)


def _from_numbers(
    tensor: InputTensor, data: list[Any], element: np.dtype[Any], problems: Problems
) -> NDArray[Any] | None:
    flat = _flat(data, tensor.shape)
    if flat is None:
        _wrong_count(tensor, problems)
        return None
    kinds = set(map(type, flat))
    if not kinds <= ({int, float, type(None)} if element.kind == "f" else {int}):
        _not_numbers(tensor, element, problems)
        return None
    try:
        if element.kind == "f":
            return _single(np.array(flat, dtype=np.float64)).reshape(tensor.shape)
        return np.array(flat, dtype=element).reshape(tensor.shape)
    except OverflowError:
        problems.add(f"{tensor.pointer}/data", f"holds a number beyond {tensor.datatype}")
        return None


def _wrong_count(tensor: InputTensor, problems: Problems) -> None:
    count = math.prod(tensor.shape)
    problems.add(f"{tensor.pointer}/data", f"must be {count} numbers, flat or nested as the shape says")


def _not_numbers(tensor: InputTensor, element: np.dtype[Any], problems: Problems) -> None:
    accepted = "numbers, or null where one is missing" if element.kind == "f" else "whole numbers"
    problems.add(f"{tensor.pointer}/data", f"must hold {accepted}")


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The numbers of a list that is flat, or nested as the shape says; None of any other list."""
    if data and not isinstance(data[0], list):
        return data if len(data) == math.prod(shape) else None
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(entry, list) and len(entry) == size for entry in level):
            return None
        level = list(chain.from_iterable(level))
    return level


def _check_width(
    steps: InputTensor, ends: NDArray[Any] | None, form: TensorSpec, manifest: Manifest, problems: Problems
) -> None:
    """Compares a tensor's width with the longest sequence of the model, before its numbers are converted.

    Raises:
        InvalidRequest: Its one row is longer than the model accepts.
        TooLarge: It is wider than any of its rows.
    """
    if not _fits(steps.shape, form.shape) or manifest.long != "reject" or steps.shape[1] <= manifest.max_length:
        return
    rows, width = steps.shape[:2]
    if ends is None and rows == 1:
        problems.add(steps.pointer, f"row 0: {too_long_message(width, manifest)}")
        raise problems.error()
    if ends is not None and ends.max() <= manifest.max_length:
        raise TooLarge(f"a width of {width} steps; the model {manifest.key} takes at most {manifest.max_length}")


def _items(
    rectangle: NDArray[Any],
    lengths: NDArray[Any] | None,
    manifest: Manifest,
    steps_sent: InputTensor,
    lengths_sent: InputTensor | None,
    problems: Problems,
) -> list[Item]:
    """The sequences of a padded tensor; what is wrong with them is added to `problems`."""
    rows, width = rectangle.shape[:2]
    at, lengths_at = steps_sent.pointer, "/inputs" if lengths_sent is None else lengths_sent.pointer
    if lengths is None and rows > 1:
        problems.add(lengths_at, f"{rows} rows need {LENGTHS!r}: how many steps of each are its own")
        return []
    ends = [width] * rows if lengths is None else lengths.ravel().tolist()
    if len(ends) != rows:
        problems.add(lengths_at, f"must have one entry for each of the {rows} rows, it has {len(ends)}")
        return []
    items = []
    for i, (row, end) in enumerate(zip(rectangle, ends, strict=True)):
        if not 1 <= end <= width:
            problems.add(lengths_at, f"row {i}: a length is from 1 to the width, {width}; this one is {end}")
            continue
        steps = row[:end].astype(np.int64, copy=False) if manifest.input.kind == "tokens" else row[:end]
        wrong = why_rejected(steps, manifest)
        if wrong is not None:
            problems.add(at, f"row {i}: {wrong}")
        else:
            items.append(make_item(steps, manifest, sent_steps=end))
    return items
