"""The Open Inference Protocol over gRPC, over a real socket."""

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lengthwise.application.app import Application
from lengthwise.batching.queues import PendingRequest, QueuedSequence
from lengthwise.bench.launch import free_port
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.decoding.calls import Call
from lengthwise.errors import ConfigurationError
from lengthwise.grpc import codec
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from lengthwise.grpc.server import GrpcServer
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise.telemetry.call_record import CallRecord
from lengthwise.versions import Key
from tests.support.grpc_calls import ENDS, PADDED, Caller, listening, request
from tests.support.numpy_models import (
    BLIND,
    MANIFESTS,
    NOT_FINITE,
    Service,
    held_batch,
    idle,
    manifest,
    model,
    repository,
    serving,
)
from tests.support.server_process import started
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
Code = grpc.StatusCode
Wanted = pb.ModelInferRequest.InferRequestedOutputTensor


@asynccontextmanager
async def held(**options: Any) -> AsyncIterator[Caller]:
    """A server whose only runner is in a batch meanwhile; what is asked then waits."""
    release, running, wait = held_batch()
    async with listening(model(manifest(), wait), **options) as caller:
        first = asyncio.ensure_future(caller.service.predict({"sequences": [[[1, 3]]]}))
        try:
            await running.wait()
            yield caller
        finally:
            release.set()
            await first


async def counted(caller: Caller, code: int, count: int = 1) -> dict[str, float]:
    """The figures, once that many calls are counted with a status: the caller may know before the server has."""
    async with asyncio.timeout(180):
        while True:
            figures = await caller.service.figures()
            of_code = [value for name, value in figures.items() if f'requests_total{{code="{code}"' in name]
            if sum(of_code) == count:
                return figures


@pytest.mark.parametrize("raw", [True, False])
async def test_tensors_get_the_answers_of_their_sequences_in_the_form_they_came(caller: Caller, raw: bool) -> None:
    answer = await caller.call("ModelInfer", request(raw=raw, id="mine"))
    sequences = [PADDED[0, :1].tolist(), PADDED[1].tolist()]
    predicted = (await caller.service.predict({"sequences": sequences})).json()["predictions"]
    assert (answer.model_name, answer.model_version, answer.id) == ("sums", "1", "mine")
    outputs = {output.name: (i, output) for i, output in enumerate(answer.outputs)}
    assert list(outputs) == ["label", "score", "probabilities", "attention"]
    place, probabilities = outputs["probabilities"]
    expected = np.array([one["probabilities"] for one in predicted], dtype="<f4").ravel().tolist()
    if raw:
        assert np.frombuffer(answer.raw_output_contents[place], "<f4").tolist() == expected
        assert answer.raw_output_contents[0] == b"\x01\0\0\0c\x01\0\0\0a"
        assert not probabilities.HasField("contents")
    else:
        assert list(probabilities.contents.fp32_contents) == expected
        assert list(outputs["label"][1].contents.bytes_contents) == [b"c", b"a"]
        assert not answer.raw_output_contents


async def test_booleans_and_whole_numbers_come_in_their_own_contents() -> None:
    async with listening(model(manifest(task="multi-label"))) as caller:
        wanted = [Wanted(name="assigned")]
        (assigned,) = (await caller.call("ModelInfer", request(raw=False, outputs=wanted))).outputs
    assert list(assigned.contents.bool_contents) == [True, True, True, True, False, False]
    async with listening(model(MANIFESTS["tokens"])) as caller:
        made = pb.ModelInferRequest(model_name="sums")
        made.inputs.add(name="tokens", datatype="INT64", shape=[1, 2]).contents.int64_contents.extend([3, 4])
        assert len((await caller.call("ModelInfer", made)).outputs) == 4


async def test_a_model_that_is_not_named_is_the_default_and_a_version_may_be_named() -> None:
    async with listening(model(manifest()), model(manifest(version=2))) as caller:
        assert (await caller.call("ModelInfer", request(model_name=""))).model_version == "2"
        assert (await caller.call("ModelInfer", request(model_version="1"))).model_version == "1"


KEY = "k" * 40


def parameter(name: str, **choice: Any) -> dict[str, Any]:
    return {"parameters": {name: pb.InferParameter(**choice)}}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("message", "code", "status", "said"),
    [
        (request(model_name="none"), Code.NOT_FOUND, 404, "no such model is served"),
        (request(model_version="2"), Code.NOT_FOUND, 404, "the model 'sums' has no such version"),
        (request(model_version="x"), Code.INVALID_ARGUMENT, 400, "a version is ASCII digits"),
        (b"\xff\xff", Code.INVALID_ARGUMENT, 400, "the message is no ModelInferRequest"),
        (pb.ModelInferRequest(), Code.INVALID_ARGUMENT, 400, "/inputs: the input 'values' is missing"),
        (request(id="a" * 257), Code.INVALID_ARGUMENT, 400, "/id: must have at most 256 characters"),
        (request(ends=np.array([3, 1], "<i4")), Code.INVALID_ARGUMENT, 400, "/inputs/1: row 0: a length is from 1"),
        (request(values=PADDED * np.nan), Code.INVALID_ARGUMENT, 400, "/inputs/0: row 0: step 0 lacks a value"),
        (request(values=PADDED[:, :, :1] * 0 + NOT_FINITE), Code.INVALID_ARGUMENT, 400, "/inputs/0/shape: must be"),
        (request(values=PADDED * 0 + NOT_FINITE), Code.INVALID_ARGUMENT, 400, "/inputs/0: row 0: the model's answer"),
        (request(values=PADDED * 0 + BLIND), Code.INVALID_ARGUMENT, 400, "/inputs/0: row 0: the model's answer"),
        (request(**parameter("priority", int64_param=10)), Code.INVALID_ARGUMENT, 400, "/parameters/priority: must be"),
        (request(**parameter("timeout_ms", string_param="1")), Code.INVALID_ARGUMENT, 400, "/parameters/timeout_ms: "),
        (request(**parameter("timeout_ms", double_param=1e-300)), Code.DEADLINE_EXCEEDED, 504, "the deadline had "),
        (request(values=np.ones((9, 1, 2), "<f4")), Code.INVALID_ARGUMENT, 413, "a request may have 8 sequences"),
    ],
)
async def test_a_refusal_has_the_code_of_its_status_and_is_counted_by_it(
    message: Any, code: Code, status: int, said: str
) -> None:
    async with listening(model(manifest()), max_sequences=8) as caller:
        error = await caller.refused("ModelInfer", message)
        assert error.code() is code
        assert (error.details() or "").startswith(said)
        assert (await caller.call("ModelInfer", request())).model_name == "sums"
        await counted(caller, status)
        await until(lambda: not caller.service.serving.inflight.bytes)  # the caller may know before the server
        figures = await caller.service.figures()
    assert sum(v for k, v in figures.items() if k.startswith("lengthwise_requests_total")) == 2
    assert idle(figures)


LARGE = b"\n" + b" " * 3 * 2**20


def kept() -> list[object]:
    """What calls are made of that is in memory, and the frames that have a large body."""
    kinds = (CallRecord, Call, QueuedSequence, PendingRequest)
    found = gc.get_objects()
    frames = [one for one in found if type(one) is FrameType and one.f_code.co_filename.endswith("grpc/calls.py")]
    parts: list[object] = [one for one in found if issubclass(type(one), kinds)]
    return parts + [one for one in frames if one.f_locals.get("body") == LARGE]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        *(("ModelInfer", request()), ("ModelInfer", request(model_name="none"))),
        *(("ModelInfer", request(values=PADDED * 0 + NOT_FINITE)), ("ServerMetadata", LARGE)),
    ],
    ids=["answered", "refused", "not finite", "large"],
)
async def test_what_was_asked_is_let_go_of_without_the_collector(caller: Caller, method: str, message: Any) -> None:
    gc.freeze()  # what there is already is none of it, and is not looked through
    gc.disable()
    try:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await caller.call(method, message)
        await until(lambda: not kept())
    finally:
        gc.enable()


async def test_a_request_id_comes_back_with_the_answer_and_with_a_refusal(caller: Caller) -> None:
    call = caller.call("ModelInfer", request(), metadata=(("x-request-id", "mine"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
    error = await caller.refused("ModelInfer", request(model_name="none"), metadata=(("x-request-id", "b c"),))
    assert dict(error.trailing_metadata())["x-request-id"] not in ("", "b c")


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
async def test_the_metadata_of_a_call_has_a_bounded_number_of_fields(caller: Caller, method: str) -> None:
    message = request() if method == "ModelInfer" else None
    fields = [(f"x{number}", "v") for number in range(RequestLimits.fields + 1)]
    await caller.call(method, message, metadata=fields[:100])
    error = await caller.refused(method, message, metadata=fields)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{RequestLimits.fields} fields" in (error.details() or "")


async def test_a_defect_of_the_service_is_internal_and_says_nothing_of_why(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(codec.tensors, "read", None)
        error = await caller.refused("ModelInfer", request(), metadata=(("x-request-id", "mine"),))
    assert (error.code(), error.details()) == (Code.INTERNAL, "the request could not be answered")
    assert "request mine failed" in caplog.text
    await counted(caller, 500)


@pytest.mark.parametrize("own", [{}, parameter("timeout_ms", int64_param=20)], ids=["the call's", "its own, sooner"])
async def test_the_sooner_of_two_deadlines_is_honoured_in_the_queue(own: dict[str, Any]) -> None:
    async with held() as caller:
        error = await caller.refused("ModelInfer", request(**own), timeout=30 if own else 0.05)
        assert error.code() is Code.DEADLINE_EXCEEDED
        figures = await counted(caller, 504)
        assert figures['lengthwise_queue_sequences{model="sums",version="1"}'] == 0
        rejected = [n for name, n in figures.items() if "rejected_total" in name and 'reason="deadline"' in name]
        assert sum(rejected) == 1  # of the model, or of none where it passed before the message was read


@pytest.mark.parametrize(("own", "default_ms"), [(20, 60_000), (None, 20_000)])
async def test_the_callers_deadline_or_the_default_is_known_to_the_queue(own: int | None, default_ms: int) -> None:
    async with held(default_timeout_ms=default_ms) as caller:
        latest = time.monotonic() + 20
        call = asyncio.ensure_future(caller.call("ModelInfer", request(), timeout=own))
        pending = caller.service.serving.served[0].queue.pending
        await until(lambda: len(pending) == 2)
        urgent = pending.most_urgent()
        assert urgent is not None
        assert latest - 5 < urgent.deadline < latest + 5
        call.cancel()


async def test_a_large_message_is_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[str] = []
    read = codec.tensors.read

    def watched(*args: Any, **options: Any) -> Any:
        readers.append(threading.current_thread().name)
        return read(*args, **options)

    monkeypatch.setattr(codec.tensors, "read", watched)
    long = np.ones((9, 1000, 2), "<f4")
    async with listening(model(manifest(max_length=1000))) as caller:
        await caller.call("ModelInfer", request(values=long, ends=np.full(9, 1000, "<i4")))
        await caller.call("ModelInfer", request())
    assert [name == threading.main_thread().name for name in readers] == [False, True]


@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_a_message_is_taken_and_inflated_up_to_the_body_limit(compression: grpc.Compression) -> None:
    async with listening(model(manifest(max_length=500)), max_body_bytes=70_000) as caller:
        values, ends = np.ones((16, 500, 2), "<f4"), np.full(16, 500, "<i4")
        answer = await caller.call("ModelInfer", request(values=values, ends=ends), compression=compression)
        assert answer == await caller.call("ModelInfer", request(values=values, ends=ends))
        values, ends = np.ones((18, 500, 2), "<f4"), np.full(18, 500, "<i4")
        error = await caller.refused("ModelInfer", request(values=values, ends=ends), compression=compression)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for cut in (b"\x1f\x8b\x08", b"\x78\x9c\x01", b"\x78"):
            assert (await caller.refused("ModelInfer", cut)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_grpc_shares_a_batch_with_json() -> None:
    rows: list[int] = []
    one = model(manifest(), lambda batch: rows.append(batch.rows))
    async with listening(one, max_wait_ms=500, max_batch_rows=3) as caller:
        predicted = caller.service.predict({"sequences": [[[1, 3]]]})
        await asyncio.gather(caller.call("ModelInfer", request()), predicted)
    assert rows == [3]


READY: dict[str, Callable[[Service], Awaitable[Any]]] = {
    "served": lambda _: asyncio.sleep(0),
    "unloaded": lambda service: service.serving.registry.unload("sums"),
    "draining": lambda service: asyncio.sleep(0, service.serving.batcher.begin_draining()),
    "stopped": lambda service: service.serving.stop(),
}


@pytest.mark.parametrize("keys", [False, True], ids=["no keys", "keys"])
async def test_served_models_are_listed_for_a_wrong_name_but_never_without_a_key(tmp_path: Path, keys: bool) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    names = [model(manifest(name=f"m{number:02}")) for number in range(11)]
    versions = [model(manifest(version=number)) for number in range(1, 13)]
    body = {"sequences": [[[1, 3]]]}
    cases = (
        (
            f"no such model is served: 'none'; served are {', '.join(f'm{number:02}' for number in range(10))}, ...",
            body | {"model": "none"},
            "/v1/models/none",
            "/v2/models/none",
            request(model_name="none"),
        ),
        (
            "the model 'sums' has no such version; served of it are 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, ...; "
            "'lengthwise serve --versions' chooses which",
            body | {"model": "sums", "version": "13"},
            None,
            "/v2/models/sums/versions/13",
            request(model_version="13"),
        ),
    )
    async with listening(*names, *versions, **({"api_keys_file": tmp_path / "keys"} if keys else {})) as caller:
        client = caller.service.client
        for said, body, v1, v2, message in cases:
            for head in ({}, {"authorization": f"Bearer {KEY}"}) if keys else ({},):
                allowed = bool(head) or not keys
                detail = (await client.post("/predict", json=body, headers=head)).json()["detail"]
                over_http = [(await client.get(path, headers=head)).json() for path in (v1, v2) if path]
                error = await caller.refused("ModelInfer", message, metadata=tuple(head.items()))
                for found in (detail, error.details(), *(each.get("error", "") for each in over_http)):
                    assert (found == said) == allowed, found
                    assert allowed or not any(name in found for name in ("m00", "12", "sums"))


@pytest.mark.parametrize("state", READY)
async def test_a_model_is_ready_or_not_as_it_is_over_http_and_never_an_error(caller: Caller, state: str) -> None:
    good = {("sums", ""), ("sums", "1")}
    await READY[state](caller.service)
    for name, version in (*good, ("sums", "2"), ("sums", "01"), ("none", ""), ("", ""), ("a/b", "x")):
        answer = await caller.call("ModelReady", pb.ModelReadyRequest(name=name, version=version))
        path = f"/v2/models/{name}{f'/versions/{version}' if version else ''}/ready"
        over_http = (await caller.service.client.get(path)).status_code == 200
        assert answer.ready == over_http == (state == "served" and (name, version) in good), (name, version)
    everywhere = (await caller.service.client.get("/v2/health/ready")).status_code == 200
    assert (await caller.call("ServerReady")).ready == everywhere == (state == "served")


async def test_until_every_model_is_verified_good_ones_answer_and_none_is_ready() -> None:
    good, other = model(manifest()), model(manifest(name="other"))
    looked, verify, go_on = threading.Event(), threading.Event(), threading.Event()

    def scan(_before: Any, _again: Any, publish: Any) -> Any:
        looked.set()
        verify.wait(30)
        publish(replace(repository(good), starting=True, unverified=(Key("other", 1),)))
        go_on.wait(30)
        return repository(good, other)

    made = Serving(Settings(runners=1), scan)
    server = GrpcServer(made, Turns())
    port = await server.start("127.0.0.1", 0)
    task = asyncio.ensure_future(made.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        caller = Caller(Service(made, None, None), channel)  # type: ignore[arg-type]  # HTTP is not asked
        asked, health = pb.ModelReadyRequest(name="sums"), health_pb2_grpc.HealthStub(channel)
        await asyncio.to_thread(looked.wait, 30)
        assert not (await caller.call("ServerReady")).ready
        assert not (await caller.call("ModelReady", asked)).ready
        assert not (await caller.call("ModelStatistics")).model_stats
        for method in ("ModelInfer", "ModelConfig", "ModelStatistics"):
            message = request() if method == "ModelInfer" else getattr(pb, f"{method}Request")(name="sums")
            assert (await caller.refused(method, message)).code() is Code.UNAVAILABLE
        checked = await health.Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
        verify.set()
        await until(lambda: made.served)
        assert (await caller.call("ModelInfer", request())).model_name == "sums"
        for message in (request(model_name="other"), request(model_name=""), request(model_version="2")):
            assert (await caller.refused("ModelInfer", message)).code() is Code.UNAVAILABLE
        assert not (await caller.call("ServerReady")).ready
        assert not (await caller.call("ModelReady", asked)).ready
        go_on.set()
        await task
        assert (await caller.call("ServerReady")).ready
        assert (await caller.call("ModelReady", asked)).ready
        assert (await caller.call("ModelInfer", request(model_name="other"))).model_name == "other"
        assert (await caller.refused("ModelInfer", request(model_version="2"))).code() is Code.NOT_FOUND
    await server.stop()
    await made.stop()


async def test_what_is_said_of_a_model_is_what_is_said_over_http() -> None:
    kinds = {"ModelMetadata": "", "ModelConfig": "/config", "ModelStatistics": "/stats"}
    async with listening(model(manifest()), model(manifest(version=2))) as caller:
        await caller.call("ModelInfer", request())
        for method, end in kinds.items():
            asked, answer = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
            for version, place in (("", ""), ("1", "/versions/1")):
                over_http = (await caller.service.client.get(f"/v2/models/sums{place}{end}")).json()
                told = {"config": over_http} if method == "ModelConfig" else over_http
                found = await caller.call(method, asked(name="sums", version=version))
                assert found == json_format.ParseDict(told, answer())
            assert (await caller.refused(method, asked(name="none"))).code() is Code.NOT_FOUND
            assert (await caller.refused(method, asked(name="sums", version="01"))).code() is Code.INVALID_ARGUMENT
        assert [one.version for one in (await caller.call("ModelStatistics")).model_stats] == ["1", "2"]
        assert (await caller.call("ServerMetadata")).name == "lengthwise"
        figures = await caller.service.figures()
    assert sum(value for name, value in figures.items() if name.startswith("lengthwise_requests_total")) == 1


async def test_a_column_of_lengths_and_float64_contents_are_read(caller: Caller) -> None:
    made = request(raw=False, ends=ENDS[:, None])
    made.inputs[0].datatype = "FP64"
    made.inputs[0].contents.Clear()
    made.inputs[0].contents.fp64_contents.extend(PADDED.ravel().tolist())
    assert await caller.call("ModelInfer", made) == await caller.call("ModelInfer", request(raw=False))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
async def test_contents_are_raw_where_that_is_asked_for(caller: Caller, raw: bool, wanted: bool) -> None:
    of_outputs = [Wanted(name="score")]
    of_outputs[0].parameters["binary_data"].bool_param = wanted
    for message in (
        request(raw=raw, **parameter("binary_data_output", bool_param=wanted)),
        request(raw=raw, outputs=of_outputs),
    ):
        assert bool((await caller.call("ModelInfer", message)).raw_output_contents) == wanted
    mixed = request(raw=not wanted, outputs=[*of_outputs, Wanted(name="label")])
    assert "binary_data must agree" in ((await caller.refused("ModelInfer", mixed)).details() or "")


async def test_what_asks_for_another_kind_of_call_is_refused_by_name(caller: Caller) -> None:
    in_memory = request()
    in_memory.inputs[0].parameters["shared_memory_region"].string_param = "r"
    out_memory = request(outputs=[Wanted(name="label")])
    out_memory.outputs[0].parameters["shared_memory_region"].string_param = "r"
    fewer, both = request(), request()
    del fewer.raw_input_contents[1]
    both.inputs[1].contents.int_contents.extend([1, 2])
    no_count = request(outputs=[Wanted(name="probabilities")])
    no_count.outputs[0].parameters["classification"].double_param = 3.0
    for message, place in (
        (fewer, "/raw_input_contents: must have one entry for each of the 2"),
        (both, "/inputs/1/contents: must be absent"),
        (in_memory, "/inputs/0/parameters/shared_memory_region: no memory is shared"),
        (out_memory, "/outputs/0/parameters/shared_memory_region: no memory is shared"),
        (no_count, "/outputs/0/parameters/classification: must be the number of classes"),
        (request(**parameter("sequence_id", int64_param=1)), "/parameters/sequence_id: nothing is kept"),
        (request(**parameter("sequence_start", bool_param=True)), "/parameters/sequence_start: nothing is kept"),
    ):
        error = await caller.refused("ModelInfer", message)
        assert error.code() is Code.INVALID_ARGUMENT
        assert (error.details() or "").startswith(place)
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        assert (await caller.refused(method)).code() is Code.PERMISSION_DENIED
    for taken in (parameter("mine", string_param="x"), parameter("priority")):  # unknown; one that holds nothing
        assert (await caller.call("ModelInfer", request(**taken))).model_name == "sums"


async def test_what_is_asked_beside_inference_is_small_and_a_message() -> None:
    async with listening(model(manifest()), admin_calls=True) as caller:
        for method, message, said in (
            ("RepositoryModelLoad", b"\x1a\x00" * 40_000, "a body may have 65536 bytes"),
            ("ModelMetadata", b"\x0a\xff", "the message is no ModelMetadataRequest"),
        ):
            error = await caller.refused(method, message)
            assert error.code() == Code.INVALID_ARGUMENT
            assert said in (error.details() or "")


async def test_models_are_loaded_and_unloaded_where_that_is_turned_on() -> None:
    async with listening(model(manifest()), admin_calls=True) as caller:
        await caller.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="sums"))
        assert not (await caller.call("ServerReady")).ready
        (entry,) = (await caller.call("RepositoryIndex")).models
        assert (entry.name, entry.state, entry.reason) == ("sums", "UNAVAILABLE", "unloaded")
        await caller.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="sums"))
        assert (await caller.call("ServerReady")).ready
        unknown = await caller.refused("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="none"))
        assert unknown.code() is Code.NOT_FOUND
        strange = pb.RepositoryModelLoadRequest(model_name="sums")
        strange.parameters["config"].string_param = "{}"
        assert (await caller.refused("RepositoryModelLoad", strange)).code() is Code.INVALID_ARGUMENT


async def test_the_health_service_follows_the_service_and_tells_who_watches() -> None:
    statuses = health_pb2.HealthCheckResponse
    async with serving(model(manifest())) as service:
        server = GrpcServer(service.serving, Turns())
        port = await server.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            await server.report_health()
            watch = stub.Watch(asked)
            assert (await watch.read()).status == statuses.SERVING
            assert (await stub.Check(asked)).status == statuses.SERVING
            service.serving.batcher.begin_draining()
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == statuses.NOT_SERVING
            assert (await watch.read()).status == statuses.NOT_SERVING
            await server.stop()


async def test_reflection_names_the_services(caller: Caller) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([asked]))]
    names = {service.name for service in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_what_was_accepted_is_answered_before_the_end_and_nothing_new_is_taken() -> None:
    release, running, wait = held_batch()
    port = free_port()
    made = Serving(Settings(runners=1, grpc_port=port), lambda *_: repository(model(manifest(), wait)))
    app = Application(made)
    async with contextlib.AsyncExitStack() as stack, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await stack.enter_async_context(app.router.lifespan_context(app))
        while not made.ready:
            await asyncio.sleep(0)
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        accepted = asyncio.ensure_future(infer(request().SerializeToString(), wait_for_ready=True))
        await running.wait()
        ending = asyncio.ensure_future(stack.aclose())
        while not made.batcher.draining:
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(request().SerializeToString())
        assert refused.value.code() is Code.UNAVAILABLE
        assert refused.value.details() == "the server is shutting down"
        release.set()
        assert pb.ModelInferResponse.FromString(await accepted).model_name == "sums"
        await ending
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_cannot_be_had_ends_the_service() -> None:
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = Settings(runners=1, grpc_port=taken.getsockname()[1])
        app = Application(Serving(options, lambda *_: repository()), on_failure=failures.append)
        async with app.router.lifespan_context(app), asyncio.timeout(180):
            while not failures:
                await asyncio.sleep(0)
    assert isinstance(failures[0], ConfigurationError)
    assert "for gRPC" in str(failures[0])


@pytest.mark.long
@pytest.mark.process
def test_without_what_grpc_needs_its_port_is_a_wrong_option() -> None:
    own = "import google.protobuf.descriptor_pb2"  # the messages of protobuf itself, which are as old as it is
    old = f"{own}; import google.protobuf.runtime_version as its; its.MAJOR, its.MINOR, its.PATCH = 6, 33, 6"
    for before, told in (
        ("sys.modules['grpc'] = None", "not installed (grpc): pip install 'lengthwise[grpc]', or in a checkout: pip"),
        (old, "error: protobuf 6.33.6 is too old for gRPC: pip install 'protobuf>=7.35.1'"),
    ):
        program = f"import sys; {before}; from lengthwise.commands.cli import main; main(['serve', '--grpc-port', '1'])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, told in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr


async def test_tls_is_that_of_the_service_and_asks_for_a_certificate_where_it_does(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {"tls_cert_file": tmp_path / "server.pem", "tls_client_ca_file": tmp_path / "ca.pem"}
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(files["tls_cert_file"]))
    authority.cert_pem.write_to_path(str(files["tls_client_ca_file"]))
    client = authority.issue_cert("client@example.org")
    known = authority.cert_pem.bytes()
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    async with serving(model(manifest()), **files) as service:
        server = GrpcServer(service.serving, Turns())
        port = await server.start("127.0.0.1", 0)
        secured = grpc.ssl_channel_credentials(known, *own)
        async with grpc.aio.secure_channel(f"localhost:{port}", secured) as channel:
            assert (await Caller(service, channel).call("ServerLive")).live
        stranger = grpc.ssl_channel_credentials(known)
        async with grpc.aio.secure_channel(f"localhost:{port}", stranger) as channel:
            assert (await Caller(service, channel).refused("ServerLive")).code() is Code.UNAVAILABLE
        await server.stop()


async def test_a_tls_file_that_cannot_be_read_is_a_wrong_option(tmp_path: Path) -> None:
    async with serving(model(manifest()), tls_cert_file=tmp_path / "none.pem") as service:
        with pytest.raises(ConfigurationError):
            await GrpcServer(service.serving, Turns()).start("127.0.0.1", 0)


@pytest.mark.long
@pytest.mark.process
def test_grpc_writes_nothing_of_its_own_when_another_process_is_started() -> None:
    with started("--grpc-port", str(free_port())) as server:
        answer = server.client.post("/console/sequences?name=a.csv", content=b"1,2\n")  # a process reads it
        assert answer.status_code == 200
        server.terminate()
        assert server.end() == 0
        assert [line for line in server.said if line[:2] != "20"] == []  # each line of the log begins with the year


@pytest.mark.process
def test_the_descriptor_of_the_messages_is_that_of_the_proto(tmp_path: Path) -> None:
    proto = "lengthwise/grpc/open_inference.proto"
    written = tmp_path / "open_inference.binpb"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={written}", proto],
        cwd=ROOT / "service",
        check=True,
    )
    published = (ROOT / "service" / proto).with_suffix(".binpb")
    assert published.read_bytes() == written.read_bytes(), "make proto"
