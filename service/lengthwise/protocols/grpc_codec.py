"""The Open Inference Protocol's gRPC messages, and the calls and answers in them.

A message is read and written as bytes here, so that both belong to the call that is counted and bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from lengthwise.decoding.calls import Call, Problems, id_problem
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.protocols import kserve, request_parameters, tensors
from lengthwise.protocols.open_inference import open_inference_pb2 as pb
from lengthwise.protocols.tensors import InputTensor, TensorCall
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

_CONTENTS: Final = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}
"""The field of a tensor's typed contents, by its datatype."""

_MOST_FIELDS: Final = 256
"""At the top of a message. An honest one has a field for each tensor, output and parameter; a hostile one has millions
of empty ones, each of which would be an object of a hundred bytes."""
_MOST_AXES: Final = 8
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of the kinds of field that have a size of their own."""

M = TypeVar("M", bound=Message)
Encode: TypeAlias = Callable[[list[Answer]], bytes]
"""Writes the bytes of an answer; runs in a runner thread."""


def decode(body: bytes, serving: Serving) -> tuple[Call, Encode]:
    """What a request asks, and how its answer is written.

    Raises:
        RequestError: It is wrong, or its model is not served.
    """
    if crowded(body):
        raise InvalidRequest([Problem("", f"a message may have {_MOST_FIELDS} inputs, outputs and parameters")])
    request = parsed(pb.ModelInferRequest, body)
    served = kserve.find(serving, request.model_name or None, request.model_version or None)
    problems = Problems()
    wrong = id_problem(request.id)
    if wrong is not None:
        problems.add("/id", wrong)
    sent = _inputs(request, problems)
    parameters = _parameters(request.parameters)
    outputs = {
        output.name: request_parameters.output(_parameters(output.parameters), f"/outputs/{i}/parameters", problems)
        for i, output in enumerate(request.outputs)
    }
    raw = _raw(request, parameters, outputs, problems)
    asked = tensors.read(
        served,
        sent,
        [output.name for output in request.outputs],
        parameters,
        problems,
        max_sequences=serving.settings.max_sequences,
        classes={name: output.classes for name, output in outputs.items() if output.classes is not None},
    )
    return asked.call, partial(_encode, asked, request.id, raw)


def _raw(
    request: pb.ModelInferRequest,
    parameters: Mapping[str, Any],
    outputs: Mapping[str, request_parameters.RequestedOutput],
    problems: Problems,
) -> bool:
    """Whether the answer has raw contents: as it is asked for, else as the inputs came."""
    everywhere = request_parameters.flag(parameters, "binary_data_output", "/parameters", problems)
    default = bool(request.raw_input_contents) if everywhere is None else everywhere
    wanted = {default if output.binary is None else output.binary for output in outputs.values()}
    if len(wanted) > 1:
        problems.add("/outputs", "the contents of all outputs are raw over gRPC, or of none: binary_data must agree")
    return wanted.pop() if wanted else default


def parsed(kind: type[M], body: bytes) -> M:
    """A message of that kind.

    Raises:
        InvalidRequest: The bytes are none.
    """
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest([Problem("", f"the message is no {kind.DESCRIPTOR.name}")]) from None


def crowded(body: bytes) -> bool:
    """Whether a message has more fields at its top than any honest one; no more of them are looked at.

    See "Encoding" in the documentation of protocol buffers: a field is a tag, whose last three bits are its kind, and
    for kind 2 a length and so many bytes. Kind 3 opens a group, which none of the protocol's messages has. What is no
    message at all is left for the parser to say.
    """
    at = 0
    try:
        for _ in range(_MOST_FIELDS):
            if at >= len(body):
                return False
            tag, at = _varint(body, at)
            kind = tag & 7
            if kind == 2:
                length, at = _varint(body, at)
                at += length
            elif kind == 0:
                _, at = _varint(body, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                return kind == 3
    except IndexError:
        return False
    return at < len(body)


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The number there, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128 or shift > 63:
            return value, at
        shift += 7


def _inputs(request: pb.ModelInferRequest, problems: Problems) -> list[InputTensor]:
    """The input tensors, each with the bytes of its elements."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        problems.add("/raw_input_contents", f"must have one entry for each of the {len(request.inputs)} inputs")
        return []
    sent = []
    for i, tensor in enumerate(request.inputs):
        pointer = f"/inputs/{i}"
        request_parameters.no_shared_memory(_parameters(tensor.parameters), f"{pointer}/parameters", problems)
        data: bytes | memoryview = b""
        if raw:
            data = raw[i]
            if tensor.HasField("contents"):
                problems.add(f"{pointer}/contents", "must be absent where raw_input_contents has the elements")
        elif tensor.datatype in _CONTENTS:
            contents = getattr(tensor.contents, _CONTENTS[tensor.datatype])
            data = np.array(contents, dtype=tensors.ELEMENTS[tensor.datatype]).tobytes()
        sent.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape[: _MOST_AXES + 1]), data, pointer))
    return sent


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Those that anybody reads, as values; one that holds nothing is left out."""
    found = {
        name: parameters[name].WhichOneof("parameter_choice") for name in request_parameters.KNOWN if name in parameters
    }
    return {name: getattr(parameters[name], choice) for name, choice in found.items() if choice is not None}


def _encode(asked: TensorCall, identifier: str, raw: bool, answers: list[Answer]) -> bytes:
    """The answer: raw contents for raw contents, typed ones for typed ones."""
    manifest = asked.call.model.manifest
    response = pb.ModelInferResponse(model_name=manifest.name, model_version=str(manifest.version), id=identifier)
    for tensor in tensors.answer(asked, answers):
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        if raw:
            response.raw_output_contents.append(tensor.raw())
        elif tensor.datatype == "BYTES":
            output.contents.bytes_contents.extend(tensor.values.flat)
        elif tensor.datatype == "BOOL":
            output.contents.bool_contents.extend(tensor.values.ravel().tolist())
        else:
            output.contents.fp32_contents.extend(tensor.values.ravel().tolist())
    return response.SerializeToString()
