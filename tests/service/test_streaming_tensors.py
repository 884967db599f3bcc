"""States in the tensors of the Open Inference Protocol: JSON, its binary extension, and gRPC."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.protocols.tensor_specs import OF_STATES
from lengthwise.runtime.states import StateKeys
from tests.support.grpc_calls import calling
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.streaming_models import FEATURES, convolution, cuts, gru, mean, sequences, whole
from tests.support.streaming_models import model as streaming

GRU = streaming(gru)
OUTPUTS = ("probabilities", "state", "offset")
Steps = NDArray[np.float32]


class Row(NamedTuple):
    """The steps of a row, and what they follow."""

    steps: Steps
    state: bytes = b""
    offset: int = -1


class Answers(NamedTuple):
    """The outputs of all rows."""

    probabilities: NDArray[np.float32]
    states: list[bytes]
    offsets: list[int]
    version: str


def padded(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """The input tensors of rows; the padding is junk."""
    width = max(1, *(len(row.steps) for row in rows))
    values = np.full((len(rows), width, FEATURES), 7, np.float32)
    for index, row in enumerate(rows):
        values[index, : len(row.steps)] = row.steps
    return {
        "values": values,
        "lengths": np.array([[len(row.steps)] for row in rows], np.int32),
        "state": np.array([row.state for row in rows], object),
        "offset": np.array([row.offset for row in rows], np.int64),
    }


DATATYPES = {"values": "FP32", "lengths": "INT32", "state": "BYTES", "offset": "INT64"}


def raw(array: NDArray[Any]) -> bytes:
    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array)
    return array.tobytes()


def split(content: bytes) -> list[bytes]:
    found, index = [], 0
    while index < len(content):
        size = int.from_bytes(content[index : index + 4], "little")
        found.append(content[index + 4 : index + 4 + size])
        index += 4 + size
    return found


class Refused(Exception):
    """A refusal, with its status and its text."""


async def by_json(service: Service, rows: Sequence[Row], path: str) -> Answers:
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": array.shape,
            "data": [text.decode() for text in array] if array.dtype == object else array.tolist(),
        }
        for name, array in padded(rows).items()
    ]
    body = {"inputs": inputs, "outputs": [{"name": name} for name in OUTPUTS]}
    answer = await service.client.post(f"{path}/infer", json=body)
    if answer.status_code != 200:
        raise Refused(answer.status_code, answer.json()["error"])
    document = answer.json()
    data = {output["name"]: output["data"] for output in document["outputs"]}
    probabilities = np.array(data["probabilities"], np.float32).reshape(len(rows), -1)
    return Answers(probabilities, [text.encode() for text in data["state"]], data["offset"], document["model_version"])


async def by_binary(service: Service, rows: Sequence[Row], path: str) -> Answers:
    tensors = padded(rows)
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": array.shape,
            "parameters": {"binary_data_size": len(raw(array))},
        }
        for name, array in tensors.items()
    ]
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    answer = await service.client.post(
        f"{path}/infer",
        content=head + b"".join(map(raw, tensors.values())),
        headers={"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))},
    )
    if answer.status_code != 200:
        raise Refused(answer.status_code, answer.json()["error"])
    end = int(answer.headers["inference-header-content-length"])
    document, tail, contents = json.loads(answer.content[:end]), answer.content[end:], {}
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        contents[output["name"]], tail = tail[:size], tail[size:]
    return Answers(
        np.frombuffer(contents["probabilities"], "<f4").reshape(len(rows), -1),
        split(contents["state"]),
        np.frombuffer(contents["offset"], "<i8").tolist(),
        document["model_version"],
    )


async def by_grpc(service: Service, rows: Sequence[Row], path: str, *, typed: bool = False) -> Answers:
    name, _, version = path.removeprefix("/v2/models/").partition("/versions/")
    request = pb.ModelInferRequest(model_name=name, model_version=version)
    for name, array in padded(rows).items():
        tensor = request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        if typed:
            fields = {"values": "fp32", "lengths": "int", "state": "bytes", "offset": "int64"}
            getattr(tensor.contents, f"{fields[name]}_contents").extend(array.ravel().tolist())
        else:
            request.raw_input_contents.append(raw(array))
    for name in OUTPUTS:
        request.outputs.add(name=name)
    async with calling(service) as caller:
        try:
            answer = await caller.call("ModelInfer", request)
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code(), error.details()) from error
    if typed:
        probabilities, states, offsets = (output.contents for output in answer.outputs)
        floats = np.array(probabilities.fp32_contents, np.float32)
        found = [*states.bytes_contents], [*offsets.int64_contents]
    else:
        floats = np.frombuffer(answer.raw_output_contents[0], "<f4")
        found = split(answer.raw_output_contents[1]), np.frombuffer(answer.raw_output_contents[2], "<i8").tolist()
    return Answers(floats.reshape(len(rows), -1), *found, answer.model_version)


async def by_typed_grpc(service: Service, rows: Sequence[Row], path: str) -> Answers:
    return await by_grpc(service, rows, path, typed=True)


WAYS = [by_json, by_binary, by_grpc, by_typed_grpc]
CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 409: grpc.StatusCode.FAILED_PRECONDITION}
STREAMS = "/v2/models/streams"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """Models that stream, and one that does not."""
    models = (GRU, streaming(mean, name="mean"), streaming(convolution, name="convolution"))
    async with serving(*models, model(manifest(features=4))) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
async def test_any_cuts_give_the_answer_to_the_whole(service: Service, way: Any) -> None:
    random = np.random.default_rng(4)
    for steps in sequences([1, 7, 60]):
        row = Row(steps[:0])
        for chunk in cuts(steps, random):
            others = [Row(each) for each in sequences([3, 17], int(random.integers(99)))]
            answers = await way(service, [row._replace(steps=chunk), *others], STREAMS)
            row = Row(chunk, answers.states[0], answers.offsets[0])
        assert row.offset == len(steps)
        assert answers.probabilities[0].tobytes() == whole(GRU, steps).tobytes()


async def test_a_state_goes_from_one_protocol_to_the_next(service: Service) -> None:
    (steps,) = sequences([40])
    row = Row(steps[:5])
    for index, way in enumerate(WAYS, start=1):
        answers = await way(service, [row], STREAMS)
        row = Row(steps[5 * index : 5 * index + 5], answers.states[0], answers.offsets[0])
    item = {"steps": steps[20:].tolist(), "state": row.state.decode(), "offset": 20}
    (answer,) = (await service.predict({"sequences": [item], "model": "streams"})).json()["predictions"]
    assert np.array(answer["probabilities"], np.float32).tobytes() == whole(GRU, steps).tobytes()


@pytest.mark.parametrize("way", WAYS)
async def test_refusals_name_the_row(service: Service, way: Any) -> None:
    (steps,) = sequences([4])
    good = Row(steps)
    (state,) = (await way(service, [good], STREAMS)).states
    for row, status, problem in (
        (Row(steps, b"no"), 400, "/inputs/2: row 1: is no state"),
        (Row(steps, b"\xff\xfe"), 400, "/inputs/2: row 1: is no state") if way is not by_json else (good, 0, ""),
        (Row(steps, state, 3), 409, "/inputs/3: row 1: the state has seen 4 steps, not 3"),
        (Row(steps[:0]), 400, "/inputs/1: row 1: a length is from 1"),
    ):
        if not status:
            continue
        with pytest.raises(Refused) as raised:
            await way(service, [good, row], STREAMS)
        found, text = raised.value.args
        assert found in (status, CODES[status])
        assert problem in text


@pytest.mark.parametrize("way", WAYS)
async def test_a_state_of_another_model_is_a_conflict(service: Service, way: Any) -> None:
    (steps,) = sequences([4])
    (state,) = (await way(service, [Row(steps)], "/v2/models/mean")).states
    with pytest.raises(Refused) as raised:
        await way(service, [Row(steps, state)], STREAMS)
    assert raised.value.args[0] in (409, CODES[409])


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_that_does_not_stream_has_no_such_inputs(service: Service, way: Any) -> None:
    (steps,) = sequences([4])
    with pytest.raises(Refused) as raised:
        await way(service, [Row(steps)], "/v2/models/sums")
    assert raised.value.args[0] in (400, CODES[400])
    assert "is no input of this model; there are values, lengths" in raised.value.args[1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_state_chooses_its_version(way: Any) -> None:
    (steps,) = sequences([4])
    async with serving(GRU, streaming(gru, options={"seed": 1}, version=2)) as service:
        first = await way(service, [Row(steps)], f"{STREAMS}/versions/1")
        row = Row(steps, first.states[0])
        assert (await way(service, [row], STREAMS)).version == "1"
        with pytest.raises(Refused) as raised:
            await way(service, [row], f"{STREAMS}/versions/2")
        assert raised.value.args[0] in (409, CODES[409])


async def test_states_are_only_sent_where_they_are_named(service: Service) -> None:
    tensors = padded([Row(sequences([4])[0])])
    inputs = [
        {"name": name, "datatype": DATATYPES[name], "shape": tensors[name].shape, "data": tensors[name].tolist()}
        for name in ("values", "lengths")
    ]
    for _ in range(2):  # the second one is known by its head
        answer = (await service.client.post(f"{STREAMS}/infer", json={"inputs": inputs})).json()
        assert [output["name"] for output in answer["outputs"]] == ["label", "score", "probabilities"]
        named = {"inputs": inputs, "outputs": [{"name": "offset"}]}
        (output,) = (await service.client.post(f"{STREAMS}/infer", json=named)).json()["outputs"]
        assert output == {"name": "offset", "datatype": "INT64", "shape": [1], "data": [4]}


async def test_a_decided_row_is_said_where_that_is_named() -> None:
    decides = streaming(gru, stop_at={"probability": 0.1, "steps": 5})
    state = StateKeys().text(decides.manifest.state_digest, 3, bytes(32)).encode()
    tensors = padded([Row(sequences([2])[0], state), Row(sequences([4])[0]), Row(sequences([5])[0])])
    inputs = [
        {"name": name, "datatype": DATATYPES[name], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in tensors.items()
        if name not in OF_STATES
    ]
    inputs.append({"name": "state", "datatype": "BYTES", "shape": [3], "data": [state.decode(), "", ""]})
    request = pb.ModelInferRequest(model_name="streams")
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        request.raw_input_contents.append(raw(array))
    request.outputs.add(name="decided")
    async with serving(decides) as service:
        unnamed = (await service.client.post(f"{STREAMS}/infer", json={"inputs": inputs})).json()["outputs"]
        assert "decided" not in [output["name"] for output in unnamed]
        named = {"inputs": inputs, "outputs": [{"name": "decided"}]}
        (output,) = (await service.client.post(f"{STREAMS}/infer", json=named)).json()["outputs"]
        async with calling(service) as caller:
            answer = await caller.call("ModelInfer", request)
        metadata = (await service.client.get(STREAMS)).json()["outputs"]
    assert output == {"name": "decided", "datatype": "BOOL", "shape": [3], "data": [True, False, True]}
    assert answer.raw_output_contents[0] == bytes([1, 0, 1])
    assert metadata[-1] == {"name": "decided", "datatype": "BOOL", "shape": [-1]}


async def test_the_metadata_have_the_tensors_of_states(service: Service) -> None:
    metadata = (await service.client.get(STREAMS)).json()
    inputs = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]]
    assert inputs[2:] == [("state", "BYTES", [-1, 1]), ("offset", "INT64", [-1, 1])]
    assert [tensor["name"] for tensor in metadata["outputs"]][-2:] == ["state", "offset"]
    config = (await service.client.get(f"{STREAMS}/config")).json()
    assert [tensor.get("optional", False) for tensor in config["input"]] == [False, True, True, True]
    plain = (await service.client.get("/v2/models/sums")).json()
    assert len(plain["inputs"]) == 2


@pytest.mark.parametrize("content", [b"\x02\0\0\0ab", b"\x10\0\0\0ab", b"\0\0", b"\0" * 4_000_000])
async def test_texts_that_do_not_fit_their_tensor_are_refused(service: Service, content: bytes) -> None:
    tensors = padded([Row(each) for each in sequences([4, 2])])
    parts = [tensors["values"].tobytes(), tensors["lengths"].tobytes(), content]
    names = zip(("values", "lengths", "state"), ((2, 4, FEATURES), (2, 1), (2,)), parts, strict=True)
    inputs = [
        {"name": name, "datatype": DATATYPES[name], "shape": shape, "parameters": {"binary_data_size": len(part)}}
        for name, shape, part in names
    ]
    head = json.dumps({"inputs": inputs}).encode()
    answer = await service.client.post(
        f"{STREAMS}/infer",
        content=head + b"".join(parts),
        headers={"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))},
    )
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("/inputs/2: must be 2 texts")


def named(row: Row, form: Sequence[str], **rows: int) -> dict[str, NDArray[Any]]:
    """The input tensors of a row that a form names, in its order; `rows`: how often those of a tensor are repeated."""
    tensors = padded([row])
    return {name: np.repeat(tensors[name], rows.get(name, 1), axis=0) for name in form}


async def send_json(service: Service, tensors: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Sends the same request three times, of which the server may remember the form: the answer, equal each time."""
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": array.shape,
            "data": [text.decode() for text in array] if array.dtype == object else array.tolist(),
        }
        for name, array in tensors.items()
    ]
    body = {"inputs": inputs, "outputs": [{"name": "probabilities"}]}
    answers = [await service.client.post(f"{STREAMS}/infer", json=body) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    answer = answers[0]
    if answer.status_code != 200:
        raise Refused(answer.status_code, answer.json()["error"])
    return np.array(answer.json()["outputs"][0]["data"], np.float32)


async def send_grpc(service: Service, tensors: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    request = pb.ModelInferRequest(model_name="streams")
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        request.raw_input_contents.append(raw(array))
    request.outputs.add(name="probabilities")
    async with calling(service) as caller:
        try:
            answers = [(await caller.call("ModelInfer", request)).raw_output_contents[0] for _ in range(3)]
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code(), error.details()) from error
    assert len(set(answers)) == 1
    return np.frombuffer(answers[0], np.float32)


FORMS = [
    *(("values", "state"), ("state", "values"), ("values", "state", "offset"), ("offset", "state", "values")),
    *(("values", "lengths", "state"), ("state", "lengths", "values"), ("lengths", "values")),
]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("send", [send_json, send_grpc])
async def test_a_form_that_comes_again_is_read_alike(service: Service, send: Any, form: Sequence[str]) -> None:
    (steps,) = sequences([12])
    (state,) = (await by_json(service, [Row(steps[:8])], STREAMS)).states
    expected = whole(GRU, steps if "state" in form else steps[8:])
    assert (await send(service, named(Row(steps[8:], state, 8), form))).tobytes() == expected.tobytes()


async def test_the_form_of_an_offset_does_not_hide_a_wrong_one(service: Service) -> None:
    (steps,) = sequences([4])
    async with calling(service) as caller:
        for offset, is_right in ((0, True), (7, False), (0, True), (7, False)):
            tensors = named(Row(steps, offset=offset), ("values", "offset"))
            request = pb.ModelInferRequest(model_name="streams")
            for name, array in tensors.items():
                request.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
                request.raw_input_contents.append(raw(array))
            if is_right:
                await caller.call("ModelInfer", request)
            else:
                assert (await caller.refused("ModelInfer", request)).code() is CODES[409]


@pytest.mark.parametrize("send", [send_json, send_grpc])
@pytest.mark.parametrize("name", ["state", "offset"])
@pytest.mark.parametrize("form", [("values", "state", "offset"), ("state", "offset", "lengths", "values")])
async def test_more_states_than_rows_are_refused(service: Service, send: Any, name: str, form: Sequence[str]) -> None:
    (steps,) = sequences([12])
    (state,) = (await by_json(service, [Row(steps[:8])], STREAMS)).states
    with pytest.raises(Refused) as raised:
        await send(service, named(Row(steps[8:], state, 8), form, **{name: 3}))
    status, text = raised.value.args
    assert status in (400, CODES[400])
    assert f"/inputs/{form.index(name)}: must have 1 rows, it has 3" in text
