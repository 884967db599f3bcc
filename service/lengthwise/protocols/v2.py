"""The Open Inference Protocol (KServe's v2) over HTTP: its inference calls.

A request is JSON (its *head*). With the binary extension the elements of some tensors follow the JSON (the *tail*): the
header `Inference-Header-Content-Length` says where the JSON ends, and `binary_data_size` of each tensor how many bytes
belong to it. Outputs are sent in the same way if `binary_data`, or `binary_data_output` for all of them, asks for that.

Clients send the same head again and again, with other elements. A body is *known* if an earlier valid one differed
from it in the elements of its tensors only: then its head is not parsed (`_KnownBody`).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from lengthwise.decoding.calls import Call, Problems, read_id, unknown_fields
from lengthwise.decoding.json_text import kind
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.protocols import kserve, output_tensors, request_parameters, tensor_text, tensors
from lengthwise.protocols.body_deadline import OptionsText
from lengthwise.protocols.endpoint import (
    CAREFUL_BYTES,
    JSON,
    TENSORS_BYTES,
    Encode,
    Endpoint,
    Headers,
    KnownRequests,
    Received,
)
from lengthwise.protocols.tensor_text import SplitText, TensorText
from lengthwise.protocols.tensors import INT64_MAX, InputTensor, KnownTensors, TensorCall
from lengthwise.protocols.turns import Turns
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

HEADER_LENGTH: Final = b"inference-header-content-length"
_MOST_TENSORS: Final = 256
_FIELDS: Final = frozenset({"id", "model_name", "model_version", "parameters", "inputs", "outputs"})
_INPUT_FIELDS: Final = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_FIELDS: Final = frozenset({"name", "parameters"})


class Infer(Endpoint):
    """The endpoint `POST /v2/models/{model}[/versions/{version}]/infer`."""

    name = "POST /v2/models/MODEL/infer"
    path = re.compile(rb"/v2/models/(?P<model>[\w.-]+)(?:/versions/(?P<version>[\w.-]+))?/infer")
    refuse = staticmethod(kserve.refusal)
    binary_header = HEADER_LENGTH
    other_types = "; application/octet-stream needs the header Inference-Header-Content-Length"

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        super().__init__(serving, large_bodies)
        self._known = KnownRequests()  # `_KnownBody`s

    def options_of(self, request: Received) -> OptionsText:
        """Where the options of a request are: in its JSON, which raw tensors may follow, under `parameters`."""
        length = request.headers.get(HEADER_LENGTH, b"")
        document = request.body[: int(length[:20])] if length.isdigit() else request.body
        return OptionsText(document=document, within=("parameters",))

    def read(self, request: Received, *, fast: bool) -> tuple[Call, Encode] | None:
        """Decodes a body; returns its call, and the function that encodes the answers.

        A known body is read by its elements alone, which is fast. With `fast`, it returns None for a body of more than
        `TENSORS_BYTES` that is not known, or whose numbers Python has to read.
        """
        size, path = len(request.body), request.scope["path_params"]
        served = kserve.find(self.serving, path["model"], path.get("version"))
        head, tail = _parts(request)
        split_text = tensor_text.split(head)
        # All that equal bodies have in common: the model, the head without numbers, and how many elements follow it.
        key = (served.manifest.key, split_text.rest, len(split_text.texts), len(tail))
        only_if_known = fast and size > TENSORS_BYTES
        known_body: _KnownBody | None = self._known.get(key)
        if only_if_known and any(text.floats is None and len(text.text) > CAREFUL_BYTES for text in split_text.texts):
            return None
        if known_body is not None:
            tensor_call = known_body.tensors.read(served, known_body.elements(split_text, tail))
            if tensor_call is not None:
                return tensor_call.call, partial(_encode, tensor_call, known_body.identifier)
        if only_if_known:
            return None
        # Read all of it, and remember its head.
        document = tensor_text.parse(head, "the body" if len(head) == size else "the body's JSON", split_text)
        named = path.get("version") is not None
        tensor_call, input_tensors, identifier = self._read_document(document, served, tail, named=named)
        self._known.add(key, len(split_text.rest), _KnownBody.of(tensor_call, input_tensors, identifier, split_text))
        return tensor_call.call, partial(_encode, tensor_call, identifier)

    def _read_document(
        self, document: Any, served: ServedModel, tail: memoryview, *, named: bool
    ) -> tuple[TensorCall, list[InputTensor], str | None]:
        """The call that the JSON of a body asks for, with its input tensors and its id, None if it has none.

        `named`: whether the path names the version.

        Raises:
            InvalidRequest: The document is not an object, or something in it is wrong.
        """
        if not isinstance(document, dict):
            raise InvalidRequest([Problem("", f"the body must be an object with 'inputs', got {kind(document)}")])
        manifest, problems = served.manifest, Problems()
        unknown_fields(document, _FIELDS, "", problems)
        for field, expected in (("model_name", manifest.name), ("model_version", str(manifest.version))):
            if document.get(field) not in (None, "", expected):  # KServe's client repeats the model of the path
                problems.add(f"/{field}", "is not the model of the path")
        identifier = None if document.get("id") is None else read_id(document["id"], "/id", problems)
        parameters = _object(document, "parameters", "", problems)
        input_tensors = _inputs(document, tail, problems)
        output_requests = _outputs(document, problems)
        return (
            tensors.read(
                served,
                input_tensors,
                output_requests,
                parameters,
                problems,
                max_sequences=self.serving.request_limits.sequences,
                named=named or bool(document.get("model_version")),
            ),
            input_tensors,
            identifier,
        )


class _KnownBody(NamedTuple):
    """What is remembered of a valid body by its head: all but the elements of its tensors."""

    tensors: KnownTensors
    sizes: tuple[int | None, ...]  # bytes of each input in the tail; None if its numbers are in the JSON
    identifier: str | None  # the request's id, which the answer repeats

    @classmethod
    def of(
        cls, tensor_call: TensorCall, input_tensors: list[InputTensor], identifier: str | None, split_text: SplitText
    ) -> _KnownBody | None:
        """What is remembered of a valid body, so that of a body with the same head only the numbers are read.

        None if they cannot be told from the rest: the call's tensors are not remembered, or another field than those of
        the inputs has numbers.
        """
        tensors = KnownTensors.of(tensor_call, input_tensors)
        sizes = tuple(len(tensor.data) if isinstance(tensor.data, memoryview) else None for tensor in input_tensors)
        # The texts are those of all fields called `data`: with more of them than inputs, another field has this name.
        if tensors is None or sizes.count(None) != len(split_text.texts):
            return None
        return cls(tensors, sizes, identifier)

    def elements(self, split_text: SplitText, tail: memoryview) -> list[TensorText | memoryview]:
        """The elements of each input tensor of another body with the same head."""
        texts, elements, tail_start = iter(split_text.texts), list[TensorText | memoryview](), 0
        for size in self.sizes:
            elements.append(next(texts) if size is None else tail[tail_start : tail_start + size])
            tail_start += size or 0
        return elements


def _parts(request: Received) -> tuple[bytes, memoryview]:
    """The head and the tail of a body: its JSON, and the bytes that follow it.

    Raises:
        InvalidRequest: The header with the length of the JSON is wrong.
    """
    header = request.headers.get(HEADER_LENGTH)
    if header is None:
        return request.body, memoryview(b"")
    size = int(header) if header.isdigit() and len(header) < 20 else -1
    if not 0 <= size <= len(request.body):
        raise InvalidRequest(
            [Problem("", f"Inference-Header-Content-Length must be from 0 to the body's {len(request.body)} bytes")]
        )
    return request.body[:size], memoryview(request.body)[size:]


def _inputs(document: dict[str, Any], binary: memoryview, problems: Problems) -> list[InputTensor]:
    """The input tensors, each with its numbers, or its part of the `binary` data after the JSON.

    Binary data that no tensor claims are a problem.
    """
    input_tensors: list[InputTensor] = []
    offset = 0
    for i, entry in enumerate(_objects(document, "inputs", problems)):
        pointer = f"/inputs/{i}"
        unknown_fields(entry, _INPUT_FIELDS, pointer, problems)
        name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
        data: list[Any] | TensorText | memoryview | None = entry.get("data")
        parameters = _object(entry, "parameters", pointer, problems)
        request_parameters.no_shared_memory(parameters, f"{pointer}/parameters", problems)
        # The elements: in the tail, or as numbers in the JSON.
        size = parameters.get("binary_data_size")
        if size is not None and data is None and type(size) is int and 0 <= size <= len(binary) - offset:
            data = binary[offset : offset + size]
            offset += size
        elif size is not None:
            problems.add(f"{pointer}/parameters/binary_data_size", "must be the number of its bytes behind the JSON")
            data = None
        elif not isinstance(data, list | TensorText):
            problems.add(f"{pointer}/data", "must be an array of numbers")
            data = None
        # The types of the other fields.
        if not isinstance(name, str):
            problems.add(f"{pointer}/name", "must be a string")
        elif not isinstance(datatype, str):
            problems.add(f"{pointer}/datatype", "must be a string")
        elif not isinstance(shape, list) or not all(type(axis) is int and abs(axis) <= INT64_MAX for axis in shape):
            problems.add(f"{pointer}/shape", "must be an array of whole numbers of 64 bits")
        elif data is not None:
            input_tensors.append(InputTensor(name, datatype, tuple(shape), data, pointer))
    if offset < len(binary) and not problems.total:
        problems.add("", f"{len(binary) - offset} bytes behind the JSON belong to no input")
    return input_tensors


def _outputs(document: dict[str, Any], problems: Problems) -> list[request_parameters.OutputRequest]:
    """The outputs that a request asks for, with their parameters."""
    output_requests = []
    for i, entry in enumerate(_objects(document, "outputs", problems) if "outputs" in document else []):
        pointer, name = f"/outputs/{i}", entry.get("name")
        unknown_fields(entry, _OUTPUT_FIELDS, pointer, problems)
        if not isinstance(name, str):
            problems.add(f"{pointer}/name", "must be a string")
        else:
            parameters = _object(entry, "parameters", pointer, problems)
            output_requests.append(request_parameters.output(name, parameters, f"{pointer}/parameters", problems))
    return output_requests


def _encode(tensor_call: TensorCall, identifier: str | None, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The answer with its headers: JSON, followed by the outputs that were requested as binary data."""
    manifest = tensor_call.call.model.manifest
    document: dict[str, Any] = {"model_name": manifest.name, "model_version": str(manifest.version)}
    if identifier is not None:
        document["id"] = identifier
    # `data` are the raw elements of binary outputs; those of others are in the JSON.
    outputs: list[dict[str, Any]] = []
    data: list[bytes] = []
    for tensor in output_tensors.answer(tensor_call, answers):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.values.shape}
        if tensor.binary:
            data.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(data[-1])}
        elif tensor.datatype == "BYTES":
            entry["data"] = [text.decode() for text in tensor.values.flat]
        else:
            entry["data"] = tensor.values.ravel()
        outputs.append(entry)
    head = orjson.dumps(document | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not data:
        return head, [JSON]
    length = (HEADER_LENGTH, str(len(head)).encode())
    return b"".join((head, *data)), [(b"content-type", b"application/octet-stream"), length]


def _objects(document: dict[str, Any], name: str, problems: Problems) -> list[dict[str, Any]]:
    """The entries of the field `name`, an array of objects.

    If it is something else, or has too many entries, it returns [], and adds that to `problems`.
    """
    value = document.get(name)
    if isinstance(value, list) and len(value) > _MOST_TENSORS:
        problems.add(f"/{name}", f"may have {_MOST_TENSORS} entries, it has {len(value)}")
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return value
    else:
        problems.add(f"/{name}", "must be an array of objects")
    return []


def _object(document: dict[str, Any], name: str, at: str, problems: Problems) -> dict[str, Any]:
    """The object in the field `name`; {} if the field is absent or is no object, which is added to `problems`."""
    value = document.get(name, {})
    if isinstance(value, dict):
        return value
    problems.add(f"{at}/{name}", f"must be an object, got {kind(value)}")
    return {}
