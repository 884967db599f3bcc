"""A request of tensors means the same, whether its head was read before or not, and whether C or Python read it.

The property: one endpoint that has seen every earlier request gives the same as one that reads each as its first, in
Python only. So nothing that it knows may change an answer or a refusal.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, json_text
from lengthwise.errors import RequestError
from lengthwise.grpc import codec
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.protocols import tensor_text
from lengthwise.protocols.endpoint import KnownRequests, Received
from lengthwise.protocols.tensor_text import SplitText, TensorText
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import HEADER_LENGTH, Infer
from lengthwise.runtime.answers import Answer
from tests.support.numpy_models import MANIFESTS, Service, model, serving

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1, -1, 3, 1e39, 1e-46, 10**30, 2**63, None, True, "1", 16777217, 0.1, [0.5], [[1, 2]]]),
)
MOSTLY = st.one_of(st.floats(-9, 9, width=32), st.integers(0, 9), st.floats(-9, 9, width=32), NUMBERS)
SHAPES = st.sampled_from(
    [[1, 2, 2], [1, 3, 2], [2, 2, 2], [1, 3], [1, 3, 1], [2, 3], [1, 2], [0, 2, 2], [1, 99999, 2], "x"]
)
LENGTHS = st.sampled_from([None, None, [2], [1], [2, 1], [1, 3], [0], [-1], [2.0], [[2], [1]]])
OPTIONS = ("timeout_ms", 5), ("priority", 3), ("timeout", 9), ("sequence_id", 4), ("binary_data_output", True)
PARAMETERS = st.just({}) | st.sampled_from([*({name: value} for name, value in OPTIONS), {"data": [1]}])
OUTPUTS = st.sampled_from(
    [None, None, [{"name": "probabilities"}], [{"name": "label"}, {"name": "score"}], [{"name": "nothing"}],
     [{"name": "probabilities", "parameters": {"classification": 2}}], [{"name": "attention"}],
     [{"name": "probabilities", "parameters": {"binary_data": True}}]]
)  # fmt: skip
BLANK = b" " * 33_000
VALUES_OF_JSON = st.recursive(st.one_of(st.none(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=5)), st.lists)
ENTRIES = st.dictionaries(st.sampled_from(["data", "name", '"data":']), VALUES_OF_JSON)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({"inputs": st.one_of(st.lists(ENTRIES, max_size=4), VALUES_OF_JSON)}), VALUES_OF_JSON
)


@pytest.fixture(params=sorted(MANIFESTS))
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with serving(model(MANIFESTS[request.param])) as made:
        yield made


def count(shape: Any) -> int:
    return min(int(np.prod(shape)), 40) if isinstance(shape, list) else 3


def outcome(decode: Any, service: Service) -> Any:
    """What comes of a request: all that its call says, and its answer to fixed results; or its refusal."""
    try:
        call, encode = decode()
    except RequestError as error:
        return type(error).__name__, error.detail, getattr(error, "problems", None)
    manifest = call.model.manifest
    answers = []
    for item in call.items:
        attention = np.full(len(item.steps), 1 / len(item.steps), np.float32) if call.attention else None
        answers.append(Answer(np.array([0.25, 0.5, 0.25], np.float32)[: manifest.classes], 1, attention))
    items = [
        (item.steps.tobytes(), item.steps.shape, item.sent_steps, item.step_indices, item.id) for item in call.items
    ]
    options = (call.attention, call.timeout_ms, call.priority, call.pointer, call.width)
    return str(items), options, manifest.key, encode(answers)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[bytes, bytes]]:
    """The body of a v2 request, often right, and its headers."""
    shape, binary = draw(SHAPES), draw(st.booleans())
    names = st.sampled_from(["values", "values", "values", "tokens", "lengths", "other"])
    tensor: dict[str, Any] = {"name": draw(names), "datatype": draw(st.sampled_from(["FP32", "FP32", "FP64", "INT64"]))}
    tensor["shape"] = shape
    size, tail = count(shape) + draw(st.sampled_from([0, 0, 0, 0, 1])), b""
    if tensor["name"] == "tokens":
        tensor["datatype"] = draw(st.sampled_from(["INT64", "INT32"]))
    if binary:
        kind = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}[tensor["datatype"]]
        tail = np.array(draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)), kind).tobytes()
        tensor["parameters"] = {"binary_data_size": len(tail)}
    else:
        tensor["data"] = draw(st.lists(MOSTLY, min_size=size, max_size=size))
    inputs, lengths = [tensor], draw(LENGTHS)
    if lengths is not None:
        other: dict[str, Any] = {"name": "lengths", "datatype": "INT32", "shape": [len(lengths)], "data": lengths}
        inputs.insert(draw(st.integers(0, 1)), other)
    document = {"inputs": inputs, "parameters": draw(PARAMETERS)}
    if (outputs := draw(OUTPUTS)) is not None:
        document["outputs"] = outputs
    if draw(st.booleans()):
        document["id"] = draw(st.sampled_from(["a", "b"]))
    head = json.dumps(document).encode()
    return head + tail, {HEADER_LENGTH: str(len(head)).encode()} if binary else {}


@pytest.mark.sampled(9)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_v2_gives_the_same_to_a_request_whatever_came_before(service: Service, data: st.DataObject) -> None:
    experienced: Any = vars(service).setdefault("experienced", Infer(service.serving, Turns()))
    body, headers = data.draw(bodies())
    name = service.serving.served[0].manifest.name
    request = Received({"path_params": {"model": name}}, headers, body)

    def first() -> Any:
        fresh = Infer(service.serving, Turns())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensor_text, "split", lambda head: SplitText(head, ()))
            return fresh.read(request, fast=False)

    expected = outcome(first, service)
    for _ in range(2):  # it is known the second time at the latest
        assert outcome(lambda: experienced.read(request, fast=False), service) == expected


def message(draw: st.DrawFn) -> pb.ModelInferRequest:
    shape = draw(SHAPES.filter(lambda shape: shape != "x"))
    made = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["sums", "sums", "", "no"])), id=draw(st.sampled_from(["", "a", "é"]))
    )
    size = count(shape) + draw(st.sampled_from([0, 0, 0, 0, 1]))
    values = np.array(draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)), "<f4")
    tensor = made.inputs.add(name="values", datatype="FP32", shape=shape)
    lengths = draw(LENGTHS.filter(lambda given: given is None or given in ([2], [1], [2, 1], [0])))
    if lengths is not None:
        made.inputs.add(name="lengths", datatype="INT32", shape=[len(lengths)])
    if draw(st.sampled_from([True, True, True, False])):
        made.raw_input_contents.append(values.tobytes())
        if lengths is not None:
            made.raw_input_contents.append(np.array(lengths, "<i4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(values.tolist())
    for output in draw(OUTPUTS) or ():
        made.outputs.add(name=output["name"])
    if draw(st.booleans()):
        made.parameters["priority"].int64_param = draw(st.sampled_from([0, 3, 12]))
    return made


@pytest.mark.sampled(10)
@given(data=st.data(), seed=st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_grpc_gives_the_same_to_a_message_whatever_came_before(
    service: Service, data: st.DataObject, seed: int
) -> None:
    heads: KnownRequests = vars(service).setdefault("heads", KnownRequests())
    body = bytearray(data.draw(st.composite(message)()).SerializeToString())
    dice = random.Random(seed)
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 3]))):  # broken on the way
        at = dice.randrange(len(body) + 1)
        body[at : at + dice.choice([0, 1, 1, 5])] = dice.choice(
            [b"", b"\x1a\x01a", b":\x00", b"\xff", dice.randbytes(2)]
        )
    sent = bytes(body)
    expected = outcome(lambda: codec.decode(sent, service.serving), service)
    for _ in range(2):
        found = outcome(lambda: codec.decode(sent, service.serving, heads), service)
        assert parsed_answer(found) == parsed_answer(expected)


def parsed_answer(found: Any) -> Any:
    """An outcome with its answer parsed: the fields of a message may stand in any order."""
    return (*found[:-1], pb.ModelInferResponse.FromString(found[-1])) if isinstance(found[-1], bytes) else found


def test_a_message_is_split_as_protocol_buffers_reads_it() -> None:
    dice, splits = random.Random(0), 0
    whole = pb.ModelInferRequest(model_name="sums", id="x", raw_input_contents=[b"1234" * 4, b""])
    whole.inputs.add(name="values", datatype="FP32", shape=[1, 2, 2])
    body = whole.SerializeToString()
    for _ in range(20_000):
        changed = bytearray(body)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(changed) + 1)
            changed[at : at + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
        mutant = bytes(changed)
        found = codec.MessageParts.of(mutant)
        if found is None:
            continue
        splits += 1
        try:
            request = pb.ModelInferRequest.FromString(mutant)
        except DecodeError:  # in a field that is left as it is, which is not known then
            continue
        assert [bytes(one) for one in found.raw] == list(request.raw_input_contents)
        assert found.identifier == request.id
        rest = pb.ModelInferRequest.FromString(found.rest)
        request.ClearField("id")
        request.ClearField("raw_input_contents")
        assert rest == request
    assert splits > 1000


def whole(value: Any) -> Any:
    """A document with the numbers of its inputs parsed."""
    if isinstance(value, TensorText):
        return value.parsed()
    if isinstance(value, dict):
        return {name: whole(entry) for name, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


def text_outcome(body: bytes, parse: Any) -> Any:
    """What comes of a text: the names of its fields, and its inputs. What else is called `data` is read by nobody."""
    try:
        document = parse(body, "the body")
        return (list(document), whole(document.get("inputs"))) if isinstance(document, dict) else document
    except RequestError as error:
        return type(error), error.detail


@given(DOCUMENTS, st.booleans(), st.data())
def test_what_is_parsed_later_is_what_would_be_parsed_at_once(document: Any, spoilt: bool, data: st.DataObject) -> None:
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode() + BLANK
    if spoilt:
        at = data.draw(st.integers(0, len(body) - len(BLANK)))
        body = body[:at] + data.draw(st.sampled_from([b"", b"[", b"]", b'"', b"\xff", b",", b"NaN"])) + body[at + 1 :]
    at_once = partial(json_text.parse, of_nan=tensor_text.OF_NAN)  # the only words that differ, on purpose
    assert text_outcome(body, tensor_text.parse) == text_outcome(body, at_once)


def test_what_is_known_is_bounded() -> None:
    heads = KnownRequests()
    for number in range(1000):
        heads.add(number, 10, object())
        assert heads.get(number) is not None
    assert sum(heads.get(number) is not None for number in range(1000)) <= 256
    heads.add("long", 10_000, object())
    assert heads.get("long") is None


@pytest.mark.skipif(not fast_json.COMPILED, reason="needs the module in C")
@pytest.mark.parametrize(
    ("text", "floats"),
    [
        (b"[1]", [1.0]),
        (b"[ 1 , 2.5e1\n, null, -0, -0.0, 1e-46 ]", [1, 25, np.nan, 0.0, -0.0, 0.0]),
        (b"[]", None), (b"[1,]", None), (b"[1", None), (b"[[1]]", None), (b"[1,[2]]", None), (b"[01]", None),
        (b"[1e39]", None), (b"[NaN]", None), (b"[true]", None), (b"1", None), (b"[1 2]", None), (b"[nul]", None),
        (b"[" + b"0.1234567890123456789012," * 100 + b"1]", [0.12345679] * 100 + [1]),
        (b"[" + b"1," * 50_000 + b"1]", [1] * 50_001),
    ],
)  # fmt: skip
def test_a_flat_array_is_read_in_c(text: bytes, floats: list[float] | None) -> None:
    found = fast_json.flat(b"x:" + text + b" , 7", 2)
    if floats is None:
        assert found is None or found[0] is None
    else:
        assert found is not None
        assert found[1] == 2 + len(text)
        assert found[0] == np.array(floats, np.float32).tobytes()
