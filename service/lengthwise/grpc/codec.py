"""Decodes the Open Inference Protocol's gRPC requests to calls, and encodes the answers.

gRPC hands over bytes, and this module parses them, so that the time and memory of parsing are part of the call. Most
messages of a client differ only in their id and their raw elements (`raw_input_contents`). `MessageParts` splits these
off without a parser of protocol buffers. If an earlier message had the same rest, that one's parsed form
(`_KnownMessage`) is used again: the message is *known*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from lengthwise.decoding.calls import MAX_ID_CHARACTERS, Call, Problems, id_problem, read_id
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.protocols import kserve, output_tensors, request_parameters, tensors
from lengthwise.protocols.endpoint import KnownRequests
from lengthwise.protocols.tensor_specs import ELEMENTS
from lengthwise.protocols.tensors import InputTensor, KnownTensors, TensorCall
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.onnx.onnx_graph import Content, encode, varint
from lengthwise.serving import Serving

_CONTENTS: Final = {  # the field with a tensor's elements, by its datatype
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}
# Fields at the top level of a message: one for each tensor, output and parameter. A hostile message has millions of
# empty fields, and each would become an object of a hundred bytes.
_MOST_FIELDS: Final = 256
_MOST_ORDINARY_FIELDS: Final = 24  # that `MessageParts` splits
_MOST_AXES: Final = 8  # of a tensor
_TAGS: Final = frozenset(number << 3 | 2 for number in range(1, 8))  # of a request's fields: all of wire type 2
_ID, _RAW_REQUEST, _RAW_ANSWER, _STREAM_ANSWER = 3, 7, 6, 2  # numbers of fields
_ID_TAG: Final = _ID << 3 | 2
_RAW_REQUEST_TAG: Final = _RAW_REQUEST << 3 | 2
_FIXED: Final = {1: 8, 5: 4}  # bytes of a field, by the wire types of a fixed size

M = TypeVar("M", bound=Message)
EncodeMessage: TypeAlias = Callable[[list[Answer]], bytes]
"""Writes the bytes of an answer; runs in the thread that ran the last batch."""


class MessageParts(NamedTuple):
    """A request split to what differs in each call of a client (id, raw elements) and the rest."""

    rest: bytes  # all other fields, as they were sent
    identifier: str  # the request's id
    raw: list[memoryview]  # the entries of `raw_input_contents`

    @classmethod
    def of(cls, body: bytes) -> MessageParts | None:
        """Splits a message; None if it has many fields or an invalid id, or is not a valid message.

        See "Encoding" in the documentation of protocol buffers: each field of `ModelInferRequest` is a tag of one byte,
        a length, and that many bytes.
        """
        rest, raw, identifier = list[bytes](), list[memoryview](), b""
        index, end = 0, len(body)
        try:
            for _ in range(_MOST_ORDINARY_FIELDS):
                if index == end:
                    break
                # A field: its tag, its length and its bytes
                tag, length, start = body[index], body[index + 1], index + 2
                if length > 127:
                    length, start = varint(body, index + 1)
                stop = start + length
                if stop > end or tag not in _TAGS:
                    return None
                if tag == _RAW_REQUEST_TAG:
                    raw.append(memoryview(body)[start:stop])
                elif tag == _ID_TAG:
                    identifier = body[start:stop]
                else:
                    rest.append(body[index:stop])
                index = stop
            text = identifier.decode()
        except (IndexError, ValueError):  # cut off, or the id is no text
            return None
        return None if index != end or id_problem(text) is not None else cls(b"".join(rest), text, raw)


class _KnownMessage(NamedTuple):
    """What the rest of a message was parsed to: the model, the version (None: not named), and the tensors."""

    name: str | None
    version: str | None
    tensors: KnownTensors


def decode(
    body: bytes, serving: Serving, known_messages: KnownRequests | None = None, split: MessageParts | None = None
) -> tuple[Call, EncodeMessage]:
    """Decodes a request; returns its call, and the function that encodes the call's answer as a message.

    Args:
        body: The message.
        serving: Has the models.
        known_messages: Each known message, by what it has in common with others; this one is added if it has raw
            elements. None: no message is known.
        split: The parts of the message, if the caller has split it.

    Raises:
        InvalidRequest: The request is wrong. If the message can be parsed, the error has all its problems.
        RequestError: The model is not known, or not ready.
    """  # noqa: DOC502 - `kserve.find` raises it
    # A known message: only its raw elements are read.
    split = split or (None if known_messages is None else MessageParts.of(body))
    key = None if split is None else (split.rest, len(split.raw))  # equal for messages whose parsed form is the same
    known: _KnownMessage | None = None if known_messages is None else known_messages.get(key)
    if split is not None and known is not None:
        served = kserve.find(serving, known.name, known.version)
        tensor_call = known.tensors.read(served, split.raw)
        if tensor_call is not None:
            return tensor_call.call, partial(_encode_raw, tensor_call, split.identifier)
    # Any other message is parsed.
    if has_too_many_fields(body):
        raise InvalidRequest([Problem("", f"a message may have {_MOST_FIELDS} inputs, outputs and parameters")])
    request = parse_message(pb.ModelInferRequest, body)
    input_tensors, tensor_call = _read(request, serving)
    # The answer has raw contents, or typed ones.
    binary_choices = {output.binary for output in tensor_call.outputs}
    if len(binary_choices) > 1:
        raise InvalidRequest(
            [Problem("/outputs", "the contents of all outputs are raw over gRPC, or of none: binary_data must agree")]
        )
    if binary_choices == {False}:
        return tensor_call.call, partial(_encode, tensor_call, request.id)
    if known_messages is not None and split is not None and request.raw_input_contents:
        known_tensors = KnownTensors.of(tensor_call, input_tensors)
        name, version = request.model_name or None, request.model_version or None
        known = None if known_tensors is None else _KnownMessage(name, version, known_tensors)
        known_messages.add(key, len(split.rest), known)
    return tensor_call.call, partial(_encode_raw, tensor_call, request.id)


def _read(request: pb.ModelInferRequest, serving: Serving) -> tuple[list[InputTensor], TensorCall]:
    """The input tensors of a parsed request, and its call.

    Raises:
        InvalidRequest: The request is wrong; the error has all its problems.
        RequestError: The model is not known, or not ready.
    """  # noqa: DOC502 - what it calls raises them
    served = kserve.find(serving, request.model_name or None, request.model_version or None)
    problems = Problems()
    read_id(request.id, "/id", problems)
    input_tensors = _inputs(request, problems)
    output_requests = [
        request_parameters.output(output.name, _parameters(output.parameters), f"/outputs/{i}/parameters", problems)
        for i, output in enumerate(request.outputs)
    ]
    return input_tensors, tensors.read(
        served,
        input_tensors,
        output_requests,
        _parameters(request.parameters),
        problems,
        max_sequences=serving.request_limits.sequences,
        binary=bool(request.raw_input_contents),
        named=bool(request.model_version),
    )


def parse_message(message_type: type[M], body: bytes) -> M:
    """Parses a message of this type.

    Raises:
        InvalidRequest: The bytes are not such a message.
    """
    try:
        return message_type.FromString(body)
    except DecodeError:
        raise InvalidRequest([Problem("", f"the message is no {message_type.DESCRIPTOR.name}")]) from None


def has_too_many_fields(body: bytes) -> bool:
    """Whether a message has more than `_MOST_FIELDS` fields at its top level, or opens a group.

    Groups may nest as deep as they like, and no message of the protocol has one. For bytes that are no valid message it
    returns False: the parser says what is wrong.

    See "Encoding" in the documentation of protocol buffers. A field is a tag, whose last three bits are its wire type,
    and a value: a number (type 0), a length and that many bytes (2), or bytes of a fixed number (`_FIXED`). Type 3
    opens a group.
    """
    index = 0
    try:
        for _ in range(_MOST_FIELDS):
            if index >= len(body):
                return False
            # Skips one field.
            tag, index = varint(body, index)
            wire_type = tag & 7
            if wire_type == 2:
                length, index = varint(body, index)
                index += length
            elif wire_type == 0:
                _, index = varint(body, index)
            elif wire_type in _FIXED:
                index += _FIXED[wire_type]
            else:  # a group; any other type is not valid
                return wire_type == 3
    except ValueError:
        return False
    return index < len(body)  # more follows after the last field that is allowed


def identifier_of(body: bytes) -> str:
    """The id of a request, cut to `MAX_ID_CHARACTERS`; empty if it has none. Parses the whole message.

    For messages that `MessageParts` cannot split; empty also for bytes that are not a message.
    """
    try:
        return str(pb.ModelInferRequest.FromString(body).id)[:MAX_ID_CHARACTERS]
    except DecodeError:
        return ""


def stream_answer(answer: bytes) -> bytes:
    """Wraps an encoded answer as a `ModelStreamInferResponse`, for a stream."""
    return encode([(_STREAM_ANSWER, answer)])


def stream_error(identifier: str, message: str) -> bytes:
    """Encodes a refusal as a `ModelStreamInferResponse`: the error's message, and the id of the request."""
    response = pb.ModelInferResponse(id=identifier)
    return pb.ModelStreamInferResponse(error_message=message, infer_response=response).SerializeToString()


def _inputs(request: pb.ModelInferRequest, problems: Problems) -> list[InputTensor]:
    """The input tensors of a request, each with its elements as bytes; what is wrong is added to `problems`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        problems.add("/raw_input_contents", f"must have one entry for each of the {len(request.inputs)} inputs")
        return []
    input_tensors = []
    for index, tensor in enumerate(request.inputs):
        pointer = f"/inputs/{index}"
        request_parameters.no_shared_memory(_parameters(tensor.parameters), f"{pointer}/parameters", problems)
        # Elements: raw, or typed in the field for their datatype; an unknown datatype is refused later
        data: bytes | memoryview = b""
        if raw:
            data = raw[index]
            if tensor.HasField("contents"):
                problems.add(f"{pointer}/contents", "must be absent where raw_input_contents has the elements")
        elif tensor.datatype in ELEMENTS:
            contents = getattr(tensor.contents, _CONTENTS[tensor.datatype])
            data = np.array(contents, dtype=ELEMENTS[tensor.datatype]).tobytes()
        elif tensor.datatype == "BYTES":
            data = b"".join(len(text).to_bytes(4, "little") + text for text in tensor.contents.bytes_contents)
        input_tensors.append(
            InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape[: _MOST_AXES + 1]), data, pointer)
        )
    return input_tensors


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """The parameters that `request_parameters.KNOWN` names, as Python values; one without a value is left out."""
    fields = {
        name: parameters[name].WhichOneof("parameter_choice") for name in request_parameters.KNOWN if name in parameters
    }
    return {name: getattr(parameters[name], field) for name, field in fields.items() if field is not None}


@lru_cache(maxsize=256)
def _answer_head(name: str, version: int, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Encodes the part that many answers have in common: the model, and the (name, datatype, shape) of each output.

    The id and the raw contents are not in it: `_encode_raw` appends them.
    """
    response = pb.ModelInferResponse(model_name=name, model_version=str(version))
    for name_of_output, datatype, shape in outputs:
        response.outputs.add(name=name_of_output, datatype=datatype, shape=shape)
    return response.SerializeToString()


def _encode_raw(tensor_call: TensorCall, identifier: str, answers: list[Answer]) -> bytes:
    """Encodes the answer with raw contents: cached head, contents, id. A message's fields may stand in any order."""
    manifest, outputs = tensor_call.call.model.manifest, output_tensors.answer(tensor_call, answers)
    descriptions = tuple([(tensor.name, tensor.datatype, tensor.values.shape) for tensor in outputs])
    head = _answer_head(manifest.name, manifest.version, descriptions)
    fields: list[tuple[int, Content]] = [(_RAW_ANSWER, tensor.raw()) for tensor in outputs]
    if identifier:
        fields.append((_ID, identifier.encode()))
    return head + encode(fields)


def _encode(tensor_call: TensorCall, identifier: str, answers: list[Answer]) -> bytes:
    """Encodes the answer with typed contents, a list of numbers for each output."""
    manifest = tensor_call.call.model.manifest
    response = pb.ModelInferResponse(model_name=manifest.name, model_version=str(manifest.version), id=identifier)
    for tensor in output_tensors.answer(tensor_call, answers):
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        getattr(output.contents, _CONTENTS[tensor.datatype]).extend(tensor.values.ravel().tolist())
    return response.SerializeToString()
