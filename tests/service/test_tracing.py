"""Traces: a call's spans under its caller's, a batch's linked with the calls in it, and exemplars that name them."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from lengthwise.batching.batcher import Batcher
from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch
from lengthwise.repository.loading import LoadedModel
from lengthwise.settings import open_telemetry_variables
from lengthwise.telemetry.call_record import configured_tracer, traces_exporter
from lengthwise.telemetry.tracing import Tracer, open_tracer
from tests.support.grpc_calls import listening, request
from tests.support.numpy_models import Service, manifest, model, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
GOOD = {"sequences": [[[1, 3], [2, 4]], [[1, 3]]]}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@dataclass
class Kept(SpanExporter):
    """Keeps the spans in the order in which they end."""

    spans: list[ReadableSpan] = field(default_factory=list)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@asynccontextmanager
async def traced(*models: LoadedModel, **options: Any) -> AsyncIterator[tuple[Service, Kept]]:
    kept = Kept()
    async with serving(*models, tracer=Tracer(SimpleSpanProcessor(kept)), **options) as service:
        yield service, kept


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def linked(span: ReadableSpan) -> list[tuple[str, str]]:
    return [(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links]


def interval(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def test_a_call_stands_under_its_caller_and_its_stages_follow_each_other_within_it() -> None:
    async with traced(model(manifest())) as (service, kept):
        await service.predict(GOOD, traceparent=SAMPLED, x_request_id="mine")
    call, stages = kept.one("POST /predict"), [kept.one(name) for name in ("decode", "queue", "inference")]
    assert (ids(call)[0], parent(call), call.kind) == (TRACE, PARENT, SpanKind.SERVER)
    assert [(ids(stage)[0], parent(stage)) for stage in stages] == [(TRACE, ids(call)[1])] * 3
    began, ended = interval(call)
    moments = [began, *(moment for stage in stages for moment in interval(stage)), ended]
    slack = 1_000_000  # the wall clock is asked anew for each
    assert all(later >= earlier - slack for earlier, later in pairwise(moments))
    assert call.attributes == {  # and nothing of its payload
        "http.response.status_code": 200,
        "lengthwise.request_id": "mine",
        "lengthwise.model": "sums",
        "lengthwise.version": "1",
        "lengthwise.sequences": 2,
        "lengthwise.lengths": (2, 1),
    }


async def test_a_refusal_is_traced_with_its_reason_and_as_an_error_if_it_is_one() -> None:
    async with traced(model(manifest())) as (service, kept):
        await service.predict({"sequences": []})
        service.serving.batcher.begin_draining()
        await service.predict(GOOD)
    wrong, draining = kept.named("POST /predict")
    assert wrong.attributes is not None
    assert draining.attributes is not None
    assert wrong.attributes["http.response.status_code"] == 422
    assert wrong.status.status_code is StatusCode.UNSET
    assert draining.attributes["lengthwise.rejected"] == "draining"
    assert draining.status.status_code is StatusCode.ERROR


async def test_a_batch_is_one_span_linked_with_each_of_its_calls() -> None:
    release, running, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def wait(_: PaddedBatch) -> None:
        loop.call_soon_threadsafe(running.set)
        release.wait(60)

    async with traced(model(manifest(), wait)) as (service, kept):
        first = asyncio.ensure_future(service.predict({"sequences": [[[1, 3]]]}))
        await running.wait()
        others = [asyncio.ensure_future(service.predict(GOOD)) for _ in range(2)]
        while service.serving.served[0].queue.padded_steps < 16:
            await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, *others)
    alone, shared = kept.named("batch")
    assert shared.attributes == {"lengthwise.model": "sums/1", "lengthwise.rows": 4, "lengthwise.width_steps": 4}
    runs = {ids(run): run for run in kept.named("inference")}
    assert len(linked(alone)) == 1
    assert len(linked(shared)) == 2
    assert set(linked(alone) + linked(shared)) == set(runs)
    assert all(linked(runs[of]) == [ids(shared)] for of in linked(shared))
    assert shared.parent is None


async def test_a_batch_that_fails_is_traced_too() -> None:
    def fail(_: PaddedBatch) -> None:
        raise RuntimeError

    async with traced(model(manifest(), fail)) as (service, kept):
        assert (await service.predict(GOOD)).status_code == 500
    assert kept.one("POST /predict").status.status_code is StatusCode.ERROR
    assert kept.one("batch")


async def test_a_caller_that_is_not_traced_makes_no_span_and_no_exemplar() -> None:
    async with traced(model(manifest())) as (service, kept):
        assert (await service.predict(GOOD, traceparent=NOT_SAMPLED)).status_code == 200
        page = await service.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert kept.spans == []
    assert "trace_id" not in page.text


@pytest.mark.parametrize("header", ["", "00", f"00-{TRACE}", "ff" * 400, "00-" + "0" * 32 + f"-{PARENT}-01", "\xff-é"])
async def test_a_caller_that_says_nonsense_starts_a_trace_of_its_own(header: str) -> None:
    async with traced(model(manifest())) as (service, kept):
        sent = [(b"traceparent", header.encode("latin-1")), (b"content-type", b"application/json")]
        answer = await service.client.post("/predict", json=GOOD, headers=sent)
        assert answer.status_code == 200
    assert kept.one("POST /predict").parent is None


async def test_a_grpc_call_is_traced_alike_with_its_status_as_http() -> None:
    kept = Kept()
    async with listening(model(manifest()), tracer=Tracer(SimpleSpanProcessor(kept))) as caller:
        await caller.call("ModelInfer", request(), metadata=(("traceparent", SAMPLED),))
        error = await caller.refused("ModelInfer", request(model_name="none"))
    call, refused = kept.named("inference.GRPCInferenceService/ModelInfer")
    assert (ids(call)[0], parent(call)) == (TRACE, PARENT)
    assert {parent(kept.one(name)) for name in ("decode", "queue", "inference")} == {ids(call)[1]}
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 404


async def test_open_metrics_name_the_trace_of_a_call() -> None:
    async with traced(model(manifest())) as (service, _):
        await service.predict(GOOD, traceparent=SAMPLED)
        page = await service.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    exemplars = [line for line in page.text.splitlines() if "trace_id" in line]
    assert exemplars
    assert all(f'# {{trace_id="{TRACE}"}}' in line for line in exemplars)


async def test_who_follows_batches_costs_nobody_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the collector is gone")

    async with serving(model(manifest())) as service:
        follow: Callable[..., None] = fail
        batcher: Batcher = service.serving.batcher
        batcher.execution.on_batch = follow
        assert (await service.predict(GOOD)).status_code == 200
    assert "the collector is gone" in caplog.text


ENDPOINT, NAMED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"OTEL_TRACES_EXPORTER": "otlp"}
GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "mine"}, None),
        (ENDPOINT, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp"),
        (NAMED | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, None),
        (NAMED | GRPC | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not supported"),
        (NAMED | GRPC, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not supported; http/protobuf is"),
    ],
)
def test_opentelemetrys_own_variables_say_where_traces_go(
    variables: dict[str, str], exporter: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if exporter is None or " " not in exporter:
        assert traces_exporter(open_telemetry_variables()) == exporter
    else:
        with pytest.raises(ConfigurationError, match=exporter):
            traces_exporter(open_telemetry_variables())


@pytest.mark.parametrize(("variable", "name"), [(None, "lengthwise"), ("mine", "mine")])
async def test_the_service_has_the_name_that_it_is_given(
    variable: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
    async with traced(model(manifest())) as (service, kept):
        await service.predict(GOOD)
    assert {span.resource.attributes["service.name"] for span in kept.spans} == {name}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    """What came to a collector, to which OpenTelemetry's variables point."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield received
        server.shutdown()
        thread.join()


def test_closing_sends_what_was_not_sent_yet_to_a_collector_or_the_console(
    collector: list[tuple[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    for tracer in (configured_tracer(open_telemetry_variables()), open_tracer("console")):
        assert tracer is not None
        trace = tracer.begin("POST /predict", {}, 0.0)
        assert trace is not None
        trace.end(200, "the-id", ["", ""], [], None)
        tracer.close()
    assert '"name": "POST /predict"' in capsys.readouterr().out
    ((path, body),) = collector
    assert path == "/v1/traces"
    assert b"the-id" in body


def test_traces_without_opentelemetry_are_refused_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_tracer(open_telemetry_variables()) is None  # without the variables there are none
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "lengthwise.telemetry.tracing", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lengthwise\[tracing\]'"):
        configured_tracer(open_telemetry_variables())
