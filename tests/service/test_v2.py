"""The Open Inference Protocol over HTTP, through the service."""

import json
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
import tritonclient.http as triton

from lengthwise.decoding import fast_json
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, TENSORS_BYTES, Received
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from lengthwise.repository.contents import Refusal
from lengthwise.settings import bundled_models
from lengthwise.versions import Key
from tests.support.grpc_calls import ENDS, PADDED
from tests.support.numpy_models import BLIND, MANIFESTS, NOT_FINITE, Service, idle, manifest, model, serving


def request(**changes: Any) -> dict[str, Any]:
    """Two sequences, the first padded with junk."""
    values = {"name": "values", "datatype": "FP32", "shape": [2, 2, 2], "data": PADDED.ravel().tolist()}
    lengths = {"name": "lengths", "datatype": "INT32", "shape": [2], "data": ENDS.tolist()}
    return {"inputs": [values, lengths]} | changes


def binary_of(head: dict[str, Any], *octets: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with octets behind its JSON, and its headers."""
    text = orjson.dumps(head)
    return b"".join((text, *octets)), {
        "inference-header-content-length": str(len(text)),
        "content-type": "application/octet-stream",
    }


def in_octets(**changes: Any) -> dict[str, Any]:
    made = request(**changes)
    for tensor, array in zip(made["inputs"], (PADDED, ENDS), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": array.nbytes}
    return made


async def infer(service: Service, body: Any, path: str = "sums", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    return await service.client.post(f"/v2/models/{path}/infer", content=content, headers=sent)


async def test_tensors_get_the_answers_of_their_sequences(service: Service) -> None:
    answer = await infer(service, request(id="mine"))
    sequences = [PADDED[0, :1].tolist(), PADDED[1].tolist()]
    predictions = (await service.predict({"sequences": sequences, "outputs": ["attention"]})).json()["predictions"]
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("sums", "1", "mine")
    outputs = {output["name"]: output for output in body["outputs"]}
    assert outputs["label"] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["c", "a"]}
    assert outputs["score"]["data"] == [prediction["score"] for prediction in predictions]
    assert outputs["probabilities"]["shape"] == [2, 3]
    assert outputs["probabilities"]["data"] == [p for prediction in predictions for p in prediction["probabilities"]]
    assert outputs["attention"]["data"] == [1, 0, 0.5, 0.5]


async def test_a_version_may_stand_in_the_path() -> None:
    async with serving(model(manifest()), model(manifest(version=2))) as service:
        assert (await infer(service, request())).json()["model_version"] == "2"
        assert (await infer(service, request(), "sums/versions/1")).json()["model_version"] == "1"
        assert (await infer(service, request(), "sums/versions/3")).status_code == 404
        assert (await infer(service, request(), "sums/versions/01")).status_code == 400


async def test_octets_in_and_out_are_the_numbers_of_the_json(service: Service) -> None:
    plain = (await infer(service, request())).json()
    content, headers = binary_of(
        in_octets(id="b", parameters={"binary_data_output": True}), PADDED.tobytes(), ENDS.tobytes()
    )
    answer = await service.client.post("/v2/models/sums/infer", content=content, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers["inference-header-content-length"])
    head, octets = orjson.loads(answer.content[:end]), answer.content[end:]
    assert head["id"] == "b"
    for output, expected in zip(head["outputs"], plain["outputs"], strict=True):
        size = output["parameters"]["binary_data_size"]
        part, octets = octets[:size], octets[size:]
        if output["datatype"] == "BYTES":
            assert part == b"\x01\0\0\0c\x01\0\0\0a"
        else:
            assert np.frombuffer(part, "<f4").tolist() == np.array(expected["data"], dtype="<f4").tolist()
    assert octets == b""


async def test_octets_may_be_asked_for_one_output_alone(service: Service) -> None:
    wanted = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = await infer(service, request(outputs=wanted))
    except_one = [{"name": "score", "parameters": {"binary_data": False}}]
    whole = await infer(service, request(outputs=except_one, parameters={"binary_data_output": True}))
    end = int(answer.headers["inference-header-content-length"])
    score, label = orjson.loads(answer.content[:end])["outputs"]
    assert score["parameters"] == {"binary_data_size": 8}
    assert label["data"] == ["c", "a"]
    assert len(answer.content) == end + 8
    assert "data" in whole.json()["outputs"][0]


async def test_the_best_classes_may_be_asked_for_in_the_place_of_numbers(service: Service) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 2}}]
    (output,) = (await infer(service, request(outputs=wanted))).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [text.partition(":")[2] for text in output["data"]] == ["2:c", "1:b", "0:a", "1:b"]


def output(name: Any, **fields: Any) -> dict[str, Any]:
    """The changes of a request that asks for one output."""
    return {"outputs": [{"name": name} | fields]}


def first_input(**fields: Any) -> dict[str, Any]:
    """The changes of a request whose first input has other fields."""
    first, *others = request()["inputs"]
    return {"inputs": [first | fields, *others]}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        *(({"id": 3}, "/id"), ({"id": "a" * 257}, "/id"), ({"model_name": "other"}, "/model_name")),
        *(({"more": 1}, "/more"), ({"parameters": []}, "/parameters"), ({"inputs": {}}, "/inputs")),
        ({"parameters": {"timeout_ms": "1"}}, "/parameters/timeout_ms"),
        ({"parameters": {"binary_data_output": "false"}}, "/parameters/binary_data_output"),
        *(({"parameters": {"sequence_id": 7}}, "/parameters/sequence_id"), ({"inputs": [1]}, "/inputs")),
        *(({"outputs": [{"name": "label"}] * 257}, "/outputs"), ({"outputs": ["label"]}, "/outputs")),
        ({"outputs": [{"name": "label"}] * 2}, "/outputs/1"),
        *((output(1), "/outputs/0/name"), (output("label", x=1), "/outputs/0/x"), (output("logits"), "/outputs/0")),
        (output("label", parameters={"binary_data": 1}), "/outputs/0/parameters/binary_data"),
        (output("probabilities", parameters={"classification": 0}), "/outputs/0/parameters/classification"),
        (output("label", parameters={"classification": 1}), "/outputs/0/parameters/classification"),
        (output("label", parameters={"shared_memory_region": "r"}), "/outputs/0/parameters/shared_memory_region"),
        *((first_input(name=1), "/inputs/0/name"), (first_input(datatype=None), "/inputs/0/datatype")),
        *((first_input(shape=[1, 2.0, 2]), "/inputs/0/shape"), (first_input(shape="2"), "/inputs/0/shape")),
        *((first_input(data=None), "/inputs/0/data"), (first_input(data="1"), "/inputs/0/data")),
        (first_input(parameters={"shared_memory_region": "r"}), "/inputs/0/parameters/shared_memory_region"),
        (first_input(parameters={"binary_data_size": 4}), "/inputs/0/parameters/binary_data_size"),
        (first_input(x=1), "/inputs/0/x"),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(service: Service, changes: dict[str, Any], place: str) -> None:
    answer = await infer(service, request(**changes))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{place}: ")
    assert (await infer(service, request())).status_code == 200
    figures = await service.figures()
    assert figures['lengthwise_requests_total{code="400",key="-",model="",version=""}'] == 1
    assert idle(figures)


@pytest.mark.parametrize(
    ("octets", "length", "said"),
    [
        (b"", None, "/inputs/0/parameters/binary_data_size: must be the number of its bytes behind the JSON"),
        (bytes(40), "0", "the body's JSON is empty"),
        (bytes(40), "-1", "Inference-Header-Content-Length must be from 0 to the body's"),
        (bytes(40), "9" * 30, "Inference-Header-Content-Length must be from 0 to the body's"),
        (bytes(41), None, "1 bytes behind the JSON belong to no input"),
        (bytes(39), None, "/inputs/1/parameters/binary_data_size: must be the number of its bytes behind the JSON"),
    ],
)
async def test_octets_of_other_sizes_are_refused(service: Service, octets: bytes, length: Any, said: str) -> None:
    content, headers = binary_of(in_octets(), octets)
    headers |= {} if length is None else {"inference-header-content-length": length}
    answer = await service.client.post("/v2/models/sums/infer", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(said)


@pytest.mark.parametrize(
    ("body", "path", "headers", "status"),
    [
        (request(), "none", {}, 404),
        (request(), "sums", {"content_type": "text/plain"}, 415),
        (request(), "sums", {"content_type": "application/octet-stream"}, 415),
        (request(), "sums", {"content_encoding": "deflate"}, 415),
        (bytes(9000), "sums", {}, 413),
        (request(inputs=[{"name": "values", "datatype": "FP32", "shape": [9, 1, 2], "data": []}]), "sums", {}, 413),
        (b"[]", "sums", {}, 400),
        (b'{"inputs": [], "inputs": []}', "sums", {}, 400),
        (request(parameters={"timeout": 1}), "sums", {}, 504),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_its_status(
    body: Any, path: str, headers: dict[str, str], status: int
) -> None:
    async with serving(model(manifest()), max_body_bytes=8192, max_sequences=8) as service:
        answer = await infer(service, body, path, **headers)
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
        figures = await service.figures()
    counted = [k for k, v in figures.items() if k.startswith("lengthwise_requests_total") and v]
    assert len(counted) == 1
    assert f'code="{status}"' in counted[0]


async def test_nan_in_the_json_of_tritons_client_is_refused_with_the_option_that_sends_it() -> None:
    def body(*, binary: bool) -> tuple[bytes, int | None]:
        tensor = triton.InferInput("values", [1, 2, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[[1, np.nan], [3, 4]]], "f4"), binary_data=binary)
        made: tuple[bytes, int | None] = triton.InferenceServerClient.generate_request_body([tensor])
        return made

    async with serving(model(MANIFESTS["takes missing"])) as service:
        refused = await infer(service, body(binary=False)[0])
        assert refused.status_code == 400
        assert "a missing value is null, where the model takes any (binary_data=True" in refused.json()["error"]
        sent, length = body(binary=True)
        answer = await infer(service, sent, inference_header_content_length=str(length))
        assert answer.status_code == 200


@pytest.mark.parametrize("bad", [NOT_FINITE, BLIND], ids=["logits", "attention"])
async def test_an_answer_that_is_not_finite_names_its_row(service: Service, bad: float) -> None:
    made = request()
    made["inputs"][0]["data"][4:6] = [bad, bad]
    answer = await infer(service, made)
    assert answer.json() == {"error": "/inputs/0: row 1: the model's answer to this sequence is not finite"}


async def test_a_caller_of_the_index_who_leaves_harms_nobody(service: Service) -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v2/repository/index", "headers": [], "query_string": b""}
    await service.app(scope, gone, send)
    assert (await infer(service, request())).status_code == 200
    assert sent[0]["status"] == 499


async def test_metadata_says_what_a_model_takes_with_minus_one_for_a_free_axis() -> None:
    async with serving(model(manifest()), model(manifest(version=10)), model(manifest(name="t", vocabulary=5))) as one:
        server = (await one.client.get("/v2")).json()
        assert server["name"] == "lengthwise"
        assert server["extensions"] == [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "model_repository",
            "statistics",
        ]
        found = (await one.client.get("/v2/models/sums/versions/1")).json()
        tokens = (await one.client.get("/v2/models/t")).json()
    assert (found["versions"], found["platform"]) == (["1", "10"], "onnx_onnxv1")
    assert found["inputs"] == [
        {"name": "values", "datatype": "FP32", "shape": [-1, -1, 2]},
        {"name": "lengths", "datatype": "INT32", "shape": [-1, 1]},
    ]
    assert found["outputs"][2:] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "attention", "datatype": "FP32", "shape": [-1, -1]},
    ]
    assert tokens["inputs"][0] == {"name": "tokens", "datatype": "INT64", "shape": [-1, -1]}


@pytest.mark.parametrize("call", ["index", "models/sums/load", "models/sums/unload"])
async def test_what_is_asked_of_the_repository_is_small_for_it_is_read_on_the_event_loop(call: str) -> None:
    async with serving(model(manifest()), admin_calls=True) as service:
        answer = await service.client.post(f"/v2/repository/{call}", content=b" " * 65_537)
        assert (answer.status_code, answer.json()) == (
            413,
            {"error": "a body may have 65536 bytes, after inflating too"},
        )


async def test_health_follows_the_service(service: Service) -> None:
    paths = ["/v2/health/ready", "/v2/models/sums/ready", "/v2/models/sums/versions/1/ready"]
    assert [(await service.client.get(path)).status_code for path in paths] == [200, 200, 200]
    assert (await service.client.get("/v2/models/none/ready")).status_code == 404
    service.serving.batcher.begin_draining()
    assert [(await service.client.get(path)).status_code for path in paths] == [503, 503, 503]
    assert (await service.client.get("/v2/health/ready")).json() == {"ready": False}
    assert (await service.client.get("/v2/health/live")).json() == {"live": True}


async def test_the_index_says_what_is_served_and_why_the_rest_is_not_without_a_path() -> None:
    folder = bundled_models()
    refused = [
        Refusal(Key("bad", 1), f"{folder}/bad/1/manifest.json cannot be read: No such file or directory"),
        Refusal(Key("bad", 2), "onnxruntime cannot load the graph: open /srv/data/models/bad/2/model.onnx failed"),
    ]
    async with serving(model(manifest()), refused=refused) as service:
        served = {"name": "sums", "version": "1", "state": "READY", "reason": ""}
        entries = (await service.client.post("/v2/repository/index")).json()
        assert entries[0] == served
        assert [entry["state"] for entry in entries[1:]] == ["UNAVAILABLE", "UNAVAILABLE"]
        assert entries[1]["reason"] == "bad/1/manifest.json cannot be read: No such file or directory"
        assert entries[2]["reason"] == "onnxruntime cannot load the graph: open model.onnx failed"
        ready = await service.client.post("/v2/repository/index", json={"ready": True})
        assert ready.json() == [served]
        wrong = await service.client.post("/v2/repository/index", json={"ready": 1})
        assert (wrong.status_code, wrong.json()) == (
            400,
            {"error": 'the body must be empty, or {"ready": true or false}'},
        )
        figures = await service.figures()
    assert not any(v for k, v in figures.items() if k.startswith("lengthwise_requests_total"))


@pytest.mark.parametrize("call", ["load", "unload"])
async def test_loading_and_unloading_are_refused_unless_they_are_turned_on(service: Service, call: str) -> None:
    answer = await service.client.post(f"/v2/repository/models/sums/{call}")
    assert answer.status_code == 403
    assert "--admin-calls turns them on" in answer.json()["error"]
    assert (await infer(service, request())).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", "/v2/none", 404), ("GET", "/v2/models/sums/infer", 405), ("POST", "/v2", 405)),
        *(("GET", "/v2/models", 404), ("GET", "/v2/models/sums/trace/setting", 404)),
        *(("GET", "/v2/models//stats", 404), ("GET", "/v2/models/sums/versions//stats", 404)),
        *(("POST", "/v2/models/stats", 405), ("POST", "/v2/models/sums/config", 405)),
        *(("OPTIONS", "/v2/models/sums/stats", 405), ("DELETE", "/v2/models/sums/versions/1/config", 405)),
        *(("POST", "/v1/models/sums", 405), ("GET", "/v1/none", 404)),
    ],
)
async def test_what_is_not_there_is_refused_in_its_form(service: Service, method: str, path: str, status: int) -> None:
    answer = await service.client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    if status == 405:
        assert answer.json()["error"] == f"this path takes {answer.headers['allow']}"
    else:
        assert answer.json()["error"] == "nothing is at this path; GET / says what is where"


@pytest.mark.skipif(not fast_json.COMPILED, reason="needs the module in C")
async def test_a_large_body_with_a_known_head_is_read_on_the_event_loop_if_fast() -> None:
    steps = 4000
    async with serving(model(manifest(max_length=steps))) as service:
        infer = Infer(service.serving, Turns())

        def received(first: object) -> Received:
            tensor = {
                "name": "values",
                "datatype": "FP32",
                "shape": [1, steps, 2],
                "data": [first, *[0.5] * (2 * steps - 1)],
            }
            body = json.dumps({"inputs": [tensor]}).encode()
            assert TENSORS_BYTES < len(body) <= LARGE_BODY_BYTES
            return Received({"path_params": {"model": "sums"}}, {}, body)

        assert infer.read(received(1), fast=True) is None
        infer.read(received(1), fast=False)
        decoded = infer.read(received(2), fast=True)
        assert decoded is not None
        assert decoded[0].items[0].steps[0].tolist() == [2.0, 0.5]
        assert infer.read(received("text"), fast=True) is None
        assert infer.read(received([1]), fast=True) is None
