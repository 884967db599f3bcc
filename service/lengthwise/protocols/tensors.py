"""The input tensors of the Open Inference Protocol, for its REST and its gRPC form.

A tensor is a rectangle, so its sequences are padded: `values [rows, width, features]`, or `tokens [rows, width]`, with
`lengths`, `[rows, 1]` or `[rows]`, which a request of one row may omit. The padding of a row is never read. A tensor
that is wider than any sequence of the model is too large. The outputs have the width of the input, with zeros after
each length.

In this module `steps` is the `InputTensor` of the steps, `rectangle` its array, and `ends` the lengths of the rows. A
request may be *known*: an earlier one differed from it only in its elements (`KnownTensors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import options, static_values
from lengthwise.decoding.calls import Call, Item, Problems, compact, length_problem, make_item, why_refused
from lengthwise.decoding.chunks import ABSENT, Past, SentState, SentStates, resumed
from lengthwise.errors import TooLarge
from lengthwise.padding import STATIC, Sample, steps_of
from lengthwise.protocols import request_parameters
from lengthwise.protocols.request_parameters import OutputRequest
from lengthwise.protocols.tensor_elements import InputTensor as InputTensor
from lengthwise.protocols.tensor_elements import elements_of
from lengthwise.protocols.tensor_specs import (
    ELEMENTS,
    LENGTHS,
    OF_STATES,
    OFFSET,
    ONLY_NAMED,
    STATE,
    SequenceSpecs,
    TensorSpec,
    inputs_of,
    outputs_of,
    sequences_of,
)
from lengthwise.protocols.tensor_text import TensorText
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.manifest import Manifest

MOST_CLASSIFICATIONS: Final = 262_144  # in one answer: each is a Python object (`SCORE:INDEX:LABEL`)
# The largest size of an axis, and the largest `timeout`, as in gRPC's messages.
INT64_MAX: Final = 2**63 - 1
_FLOAT32: Final = ELEMENTS["FP32"]


@dataclass(frozen=True, slots=True)
class TensorCall:
    """A call whose sequences came as tensors, with the outputs that it asks for, in order."""

    call: Call
    outputs: tuple[OutputRequest, ...]


def read(
    model: ServedModel,
    input_tensors: Sequence[InputTensor],
    output_requests: Sequence[OutputRequest],
    parameters: Mapping[str, Any],
    problems: Problems,
    *,
    max_sequences: int,
    binary: bool = False,
    named: bool = False,
) -> TensorCall:
    """Decodes a request of input tensors; raises one `InvalidRequest` for everything that is wrong with it.

    Args:
        model: The version that the request names, or the one that answers; states may choose another one.
        input_tensors: Those of the request.
        output_requests: The outputs that it asks for; if empty, all outputs are sent.
        parameters: Its parameters: `timeout_ms`, `timeout` (microseconds) and `priority` are read,
            `request_parameters.check` refuses or ignores the others.
        problems: What is wrong with its other fields.
        max_sequences: The most rows of a request.
        binary: Whether outputs are sent as raw bytes, unless the request says something else.
        named: Whether the request names the version.

    Raises:
        TooLarge: There are more rows than `max_sequences`, or more classifications are wanted than an answer may have.
    """  # noqa: DOC502 - `_check_classifications` raises it
    # The version, options and outputs.
    wants_state = any(output.name in OF_STATES for output in output_requests)
    states = _sent_states(input_tensors, wants_state, problems, max_sequences)
    model, pasts = states.choose(model, named=named)
    manifest = model.manifest
    call_options = _options(parameters, problems)
    wants_binary = request_parameters.flag(parameters, "binary_data_output", "/parameters", problems)
    outputs = _outputs(output_requests, manifest, problems, binary=binary if wants_binary is None else wants_binary)
    further = ("attention", *OF_STATES)
    call_options = replace(call_options, outputs=tuple(output.name for output in outputs if output.name in further))
    # The input tensors: from here on numbers are converted.
    by_name = _by_name(input_tensors, inputs_of(manifest), problems)
    seen = [None if past is None else past.offset for past in pasts]
    sequences = [_rows(specs, by_name, problems, max_sequences, seen) for specs in sequences_of(manifest)]
    rectangle = sequences[0].rectangle
    static = _static(by_name.get(STATIC), len(rectangle), manifest, problems)
    for one in sequences[1:]:
        _has_rows(one.tensor, len(rectangle), problems)
    problems.require_none()
    states.conflicts.require_none()
    _check_classifications(outputs, manifest, rectangle)
    return _make_call(model, outputs, call_options, sequences, static, pasts)


def _check_classifications(outputs: Sequence[OutputRequest], manifest: Manifest, rectangle: NDArray[Any]) -> None:
    """Refuses a request for too many classifications; `rectangle` is the array of the steps.

    Raises:
        TooLarge: It asks for more than `MOST_CLASSIFICATIONS`.
    """
    rows, width = rectangle.shape[:2]
    answers_per_row = width if manifest.task == "per-step" else 1
    classifications = rows * answers_per_row * sum(output.classes or 0 for output in outputs)
    if classifications > MOST_CLASSIFICATIONS:
        raise TooLarge(
            f"a request may ask for {MOST_CLASSIFICATIONS} classifications, this one asks for {classifications}"
        )


def _sent_states(
    input_tensors: Sequence[InputTensor], wants_state: bool, problems: Problems, max_sequences: int
) -> SentStates:
    """What the tensors of states say of each row; what is wrong with them is added to `problems`."""
    # The rows are those of the other tensors; without any the request is refused later, so nothing is said of rows
    others = [tensor for tensor in input_tensors if tensor.name not in OF_STATES] or input_tensors
    rows = min(max_sequences, max([tensor.shape[0] for tensor in others if tensor.shape], default=0))
    columns, at = dict.fromkeys(OF_STATES, [ABSENT] * rows), dict.fromkeys(OF_STATES, "/inputs")
    for tensor in input_tensors:
        array = _array(tensor, OF_STATES[tensor.name], problems) if tensor.name in OF_STATES else None
        if array is not None and array.size == rows:
            at[tensor.name] = tensor.pointer
            columns[tensor.name] = [ABSENT if entry in ("", -1) else entry for entry in array.ravel().tolist()]
        elif array is not None:
            problems.add(tensor.pointer, f"must have {rows} rows, it has {array.size}")
    sent = list(map(SentState, *columns.values()))
    return SentStates(sent, f"{at[STATE]}: row {{}}", f"{at[OFFSET]}: row {{}}", problems, wants_state)


class _Rows(NamedTuple):
    """An input tensor with the steps of a sequence of each row, its array, and the sequences as items."""

    tensor: InputTensor
    rectangle: NDArray[Any]
    items: list[Item]


def _rows(
    specs: SequenceSpecs,
    by_name: Mapping[str, InputTensor],
    problems: Problems,
    max_sequences: int,
    seen: Sequence[int | None],
) -> _Rows:
    """Reads the tensors of one sequence of each row; what is wrong is added to `problems`.

    `seen`: how many steps came before those of each row.

    Raises:
        InvalidRequest: There are no steps.
        TooLarge: There are more rows than `max_sequences`, or the tensor is wider than its rows need.
    """  # noqa: DOC502 - `error` makes the first
    steps, lengths = by_name.get(specs.steps.name), by_name.get(specs.lengths.name)
    if steps is None:
        problems.add("/inputs", f"the input {specs.steps.name!r} is missing")
        raise problems.error()
    if len(steps.shape) == len(specs.steps.shape) and steps.shape[0] > max_sequences:
        raise TooLarge(f"a request may have {max_sequences} sequences, this one has {steps.shape[0]}")
    ends = None if lengths is None else _array(lengths, specs.lengths, problems)
    _check_width(steps, ends, specs.steps, specs.alone, problems)
    rectangle = _array(steps, specs.steps, problems)
    if rectangle is None or (lengths is not None and ends is None):
        raise problems.error()
    if lengths is None and len(rectangle) > 1:
        rows, name = len(rectangle), specs.lengths.name
        problems.add("/inputs", f"{rows} rows need {name!r}: how many steps of each are its own")
        raise problems.error()
    return _Rows(steps, rectangle, _items(rectangle, ends, specs.alone, steps, lengths, problems, seen))


def _has_rows(tensor: InputTensor, rows: int, problems: Problems) -> bool:
    """Whether a tensor has as many rows as that of the first sequence; if not, that is added to `problems`."""
    if tensor.shape[0] == rows:
        return True
    problems.add(tensor.pointer, f"must have {rows} rows, as the first sequence, it has {tensor.shape[0]}")
    return False


def _static(
    tensor: InputTensor | None, rows: int, manifest: Manifest, problems: Problems
) -> list[tuple[InputTensor, NDArray[np.float32]]]:
    """The input tensor with the static values, and its array `[rows, count]`; empty if the model takes none.

    What is wrong is added to `problems`. A tensor with another number of rows is not read: it may have millions.
    """
    if manifest.input.static is None:
        return []
    if tensor is None:
        problems.add("/inputs", f"the input {STATIC!r} is missing")
        return []
    (spec,) = [spec for spec in inputs_of(manifest) if spec.name == STATIC]
    if len(tensor.shape) in map(len, spec.shapes) and not _has_rows(tensor, rows, problems):
        return []
    array = _array(tensor, spec, problems)
    if array is None:
        return []
    array = array.reshape(rows, -1)  # a single value may be `[rows]`
    static_values.check_rows(array, tensor.pointer, manifest, manifest.input.static, problems)
    return [(tensor, array)]


@dataclass(frozen=True, slots=True)
class KnownTensors:
    """A valid request without its elements: a known request is read by its elements alone."""

    manifest: Manifest  # of the model that the request was for
    inputs: tuple[InputTensor, ...]  # without data
    outputs: tuple[OutputRequest, ...]
    options: options.CallOptions  # timeout and priority, and whether attention is an output

    @classmethod
    def of(cls, tensor_call: TensorCall, input_tensors: Sequence[InputTensor]) -> KnownTensors | None:
        """What to remember of a valid request, so that the next one of the same form is read faster.

        None in three cases: the model takes more than the steps of one sequence; the request has to do with states;
        the tensor is wider than `max_length`, and the model refuses longer sequences. A request of the third case is
        valid only because its lengths are shorter than its width, and lengths are data: the next request may have
        others, and `read` does not compare them with `max_length`.
        """
        call, manifest = tensor_call.call, tensor_call.call.model.manifest
        is_short = manifest.long != "reject" or call.width <= manifest.max_length
        of_states = call.states or any(tensor.name in OF_STATES for tensor in input_tensors)
        if manifest.input.has_more or of_states or not is_short:
            return None
        call_options = options.CallOptions(
            outputs=("attention",) if call.attention else (), timeout_ms=call.timeout_ms, priority=call.priority
        )
        inputs = tuple(replace(tensor, data=b"") for tensor in input_tensors)
        return cls(manifest, inputs, tensor_call.outputs, call_options)

    def read(self, model: ServedModel, data: Sequence[TensorText | bytes | memoryview]) -> TensorCall | None:
        """Makes the call of a request that differs from this one in its elements only.

        `data` has the elements of each input tensor, in the order of `inputs`. Returns None if they are wrong, or if
        `model` is another one than that of this request: then the whole request has to be read.
        """
        manifest, problems = model.manifest, Problems()
        if manifest is not self.manifest or len(data) != len(self.inputs):
            return None
        arrays: dict[str, tuple[InputTensor, NDArray[Any]]] = {}
        for tensor, elements in zip(self.inputs, data, strict=True):
            array = elements_of(tensor, elements, problems)
            if array is None:
                return None
            arrays[tensor.name] = tensor, array
        lengths_tensor, lengths = arrays.get(LENGTHS, (None, None))
        steps_tensor, steps = arrays[manifest.input.kind]
        rows = _Rows(steps_tensor, steps, _items(steps, lengths, manifest, steps_tensor, lengths_tensor, problems))
        return None if problems.total else _make_call(model, self.outputs, self.options, [rows], [], ())


def _make_call(
    model: ServedModel,
    outputs: tuple[OutputRequest, ...],
    call_options: options.CallOptions,
    sequences: Sequence[_Rows],
    static: Sequence[tuple[InputTensor, NDArray[np.float32]]],
    pasts: Sequence[Past | None],
) -> TensorCall:
    """Makes the call of the rows of input tensors: those of each sequence, and the static values if there are any.

    `pasts` are what came before the steps of each row; empty: nothing did.
    `compact` copies the items where a tensor is mostly padding, so that the memory of the tensor is freed.
    """
    first = sequences[0]
    compacted = [compact(rows.items, rows.rectangle) for rows in sequences]
    items = compacted[0][0]
    if model.manifest.input.has_more:
        further = dict(zip(model.manifest.further, [others for others, _ in compacted[1:]], strict=True))
        beside = {tensor.name: array for tensor, array in static}
        items = [_with_beside(item, row, beside, further) for row, item in enumerate(items)]
    call = Call(
        model,
        [resumed(item, past) for item, past in zip(items, pasts, strict=True)] if pasts else items,
        attention="attention" in call_options.outputs,
        timeout_ms=call_options.timeout_ms,
        priority=call_options.priority,
        pointer=f"{first.tensor.pointer}: row {{}}",  # {} stays, for the index of the row
        width=first.rectangle.shape[1],
        extra_bytes=sum([extra_bytes for _, extra_bytes in compacted]),
        states=not OF_STATES.keys().isdisjoint(call_options.outputs),
    )
    return TensorCall(call, outputs)


def _with_beside(
    item: Item, row: int, beside: Mapping[str, NDArray[np.float32]], further: Mapping[str, Sequence[Item]]
) -> Item:
    """The item of a row with what stands beside its steps: static values, and further sequences by name."""
    others = {name: steps_of(items[row].steps) for name, items in further.items()}
    return item._replace(steps=Sample(steps_of(item.steps), {name: rows[row] for name, rows in beside.items()}, others))


def _outputs(
    output_requests: Sequence[OutputRequest], manifest: Manifest, problems: Problems, *, binary: bool
) -> tuple[OutputRequest, ...]:
    """The outputs to send, each with `binary` set and at most all classes; adds a problem for each wrong request.

    Without `output_requests` they are all outputs of the model but `ONLY_NAMED`, as raw bytes if `binary`.
    """
    model_outputs = [form.name for form in outputs_of(manifest)]
    names = [output.name for output in output_requests]
    for i, name in enumerate(names):
        if name not in model_outputs:
            problems.add(f"/outputs/{i}", f"is not an output of {manifest.key}; there are {', '.join(model_outputs)}")
        elif name in names[:i]:
            problems.add(f"/outputs/{i}", "stands twice")
        elif name != "probabilities" and output_requests[i].classes is not None:
            at = f"/outputs/{i}/parameters/{request_parameters.CLASSIFICATION}"
            problems.add(at, "the output with a figure of each class is 'probabilities'")
    return tuple(
        OutputRequest(
            output.name,
            binary if output.binary is None else output.binary,
            None if output.classes is None else min(output.classes, manifest.classes),
        )
        for output in output_requests or [OutputRequest(name) for name in model_outputs if name not in ONLY_NAMED]
    )


def _options(parameters: Mapping[str, Any], problems: Problems) -> options.CallOptions:
    """The options among the parameters of a request; `timeout` is used if there is no `timeout_ms`."""
    request_parameters.check(parameters, "/parameters", problems)
    fields = {name: parameters[name] for name in ("timeout_ms", "priority") if name in parameters}
    if (microseconds := parameters.get("timeout")) is not None:
        if type(microseconds) is int and 0 < microseconds <= INT64_MAX:
            fields.setdefault("timeout_ms", microseconds / 1000)
        else:
            problems.add("/parameters/timeout", "must be a whole number of microseconds, above 0 and of 64 bits")
    return options.read(fields, problems, "/parameters")


def _by_name(
    input_tensors: Sequence[InputTensor], forms: Sequence[TensorSpec], problems: Problems
) -> dict[str, InputTensor]:
    """The input tensors of the model by their names; adds a problem for each unknown or repeated one."""
    names = [form.name for form in forms]
    by_name: dict[str, InputTensor] = {}
    for tensor in input_tensors:
        if tensor.name not in names:
            problems.add(tensor.pointer, f"is no input of this model; there are {', '.join(names)}")
        elif tensor.name in by_name:
            problems.add(tensor.pointer, f"{tensor.name!r} stands twice")
        else:
            by_name[tensor.name] = tensor
    return by_name


def _array(tensor: InputTensor, form: TensorSpec, problems: Problems) -> NDArray[Any] | None:
    """The elements of a tensor as an array of its shape; None if the tensor is wrong, with the reason in `problems`."""
    problems_before = problems.total
    if tensor.datatype not in form.datatypes:
        problems.add(f"{tensor.pointer}/datatype", f"must be {' or '.join(form.datatypes)}")
    if not any(_fits(tensor.shape, shape) for shape in form.shapes):
        shapes = " or ".join(str(list(shape)) for shape in form.shapes)
        problems.add(f"{tensor.pointer}/shape", f"must be {shapes}, -1 being any size from 1")
    return None if problems.total > problems_before else elements_of(tensor, tensor.data, problems)


def _fits(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether the sizes of a tensor match a shape, in which -1 is any size from 1."""
    return len(sizes) == len(shape) and all(
        size == axis if axis > 0 else size > 0 for size, axis in zip(sizes, shape, strict=True)
    )


def _check_width(
    steps: InputTensor, ends: NDArray[Any] | None, form: TensorSpec, manifest: Manifest, problems: Problems
) -> None:
    """Refuses a tensor that is wider than the longest sequence of the model, before its numbers are converted.

    `ends` are the lengths of the rows, None if the request has none. A tensor is left to the checks of its rows if some
    of its lengths are too long, or its shape is wrong, or the model cuts long sequences.

    Raises:
        InvalidRequest: It has one row without a length, which is as long as the tensor is wide.
        TooLarge: No row is too long, so the tensor is wider than its rows need.
    """  # noqa: DOC502 - `problems.error` makes the first
    if not _fits(steps.shape, form.shape) or manifest.long != "reject" or steps.shape[1] <= manifest.max_length:
        return
    rows, width = steps.shape[:2]
    if ends is None and rows == 1:
        problems.add(steps.pointer, f"row 0: {length_problem(width, manifest)}")
        raise problems.error()
    if ends is not None and ends.max() <= manifest.max_length:
        raise TooLarge(f"a width of {width} steps; the model {manifest.key} takes at most {manifest.max_length}")


def _items(
    rectangle: NDArray[Any],
    lengths: NDArray[Any] | None,
    manifest: Manifest,
    steps_tensor: InputTensor,
    lengths_tensor: InputTensor | None,
    problems: Problems,
    seen: Sequence[int | None] = (),
) -> list[Item]:
    """The sequences in the rows of a padded tensor, without their padding; adds a problem for each wrong row.

    `seen`: how many steps came before those of each row; empty: none of them is sent with a state.

    `rectangle` and `lengths` are the arrays of `steps_tensor` and `lengths_tensor`, whose JSON pointers the problems
    have. Without lengths (None), one row is as long as the tensor is wide.
    """
    rows, width = rectangle.shape[:2]
    steps_at, lengths_at = steps_tensor.pointer, "/inputs" if lengths_tensor is None else lengths_tensor.pointer
    row_lengths = [width] * rows if lengths is None else lengths.ravel().tolist()
    if len(row_lengths) != rows:
        problems.add(lengths_at, f"must have one entry for each of the {rows} rows, it has {len(row_lengths)}")
        return []
    # Each row without its padding.
    items = []
    for i, (row, length) in enumerate(zip(rectangle, row_lengths, strict=True)):
        before = seen[i] if i < len(seen) else None
        if not (0 if before else 1) <= length <= width:
            problems.add(lengths_at, f"row {i}: a length is from 1 to the width, {width}; this one is {length}")
            continue
        steps = row[:length].astype(np.int64, copy=False) if manifest.input.kind == "tokens" else row[:length]
        if (problem := why_refused(steps, manifest, seen=before)) is not None:
            problems.add(steps_at, f"row {i}: {problem}")
        else:
            items.append(make_item(steps, manifest, sent_steps=length))
    return items
