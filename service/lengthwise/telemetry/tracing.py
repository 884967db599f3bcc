"""OpenTelemetry: spans for each inference call and its stages (decode, queue, inference), and a span for each batch.

```
POST /predict ──┬── decode
                ├── queue
                └── inference  <── link ──>  batch
```

A batch belongs to several calls, so it is a trace of its own, and links lead from each of its calls to the batch and
back. The spans below a call are written when they have ended, so none is open while a call waits. Only this module
knows OpenTelemetry; it is imported only if `OTEL_*` ask for it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from lengthwise.batching.queues import ModelQueue, QueuedSequence

log = logging.getLogger("lengthwise.tracing")

FLUSH_SECONDS: Final = 1.0  # that the end of the process waits until the last spans are sent
MOST_LENGTHS: Final = 20  # lengths that a span shows
_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")


class Tracer:
    """Makes the spans, and passes those that have ended to `processor`."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "lengthwise"}))
        self._processor = processor
        calls = TracerProvider(resource=resource, shutdown_on_exit=False)
        batches = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        for provider in (calls, batches):
            provider.add_span_processor(processor)
        self._calls = calls.get_tracer("lengthwise")
        self._batches = batches.get_tracer("lengthwise")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Mapping[bytes, bytes], arrived: float) -> Trace | None:
        """Begins the trace of a call, below the span of its caller, if its headers name one.

        Returns None if the sampler drops the trace. `arrived` is in seconds of `time.monotonic`.
        """
        carrier = {key.decode(): headers[key].decode("latin-1") for key in _TRACE_HEADERS if key in headers}
        parent_context = self._propagator.extract(carrier, Context())
        span = self._calls.start_span(name, parent_context, SpanKind.SERVER, start_time=_epoch(arrived))
        return Trace(self, span) if span.is_recording() else None

    def stage(self, trace: Trace, name: str, started: float, end: float) -> None:
        """Writes a span below a call's; its start and end are seconds of `time.monotonic`."""
        self._calls.start_span(name, trace.context, start_time=_epoch(started)).end(_epoch(end))

    def batch(self, queue: ModelQueue, entries: Sequence[QueuedSequence], started: float, end: float) -> None:
        """Writes the span of a batch that ran or failed, and the spans `queue` and `inference` of its traced calls.

        Does nothing if none of its calls is traced.

        Args:
            queue: The queue of the model.
            entries: The sequences of the batch.
            started: When the batch began, in seconds of `time.monotonic`.
            end: When it ended.
        """
        arrivals: dict[Trace, float] = {}  # when the first sequence of each traced call was queued
        for entry in entries:
            trace = entry.request.trace
            if trace is not None:
                arrivals[trace] = min(entry.arrival, arrivals.get(trace, entry.arrival))
        if not arrivals:
            return
        # 1. The stages of each call; the span `inference` stays open for its link.
        inference_spans = []
        for trace, arrival in arrivals.items():
            self.stage(trace, "queue", arrival, started)
            inference_spans.append(self._calls.start_span("inference", trace.context, start_time=_epoch(started)))
        # 2. The batch, with a link to each of these, and links back
        figures: dict[str, str | int] = {
            "lengthwise.model": queue.name,
            "lengthwise.rows": len(entries),
            "lengthwise.width_steps": max(entry.padded_steps for entry in entries),
        }
        span = self._batches.start_span(
            "batch",
            Context(),
            attributes=figures,
            links=[Link(inference_span.get_span_context()) for inference_span in inference_spans],
            start_time=_epoch(started),
        )
        for inference_span in inference_spans:
            inference_span.add_link(span.get_span_context())
            inference_span.end(_epoch(end))
        span.end(_epoch(end))

    def close(self) -> None:
        """Sends the remaining spans; gives up after `FLUSH_SECONDS`, because the exporter itself would wait longer."""
        sending = threading.Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)
        if sending.is_alive():
            log.warning("the last spans are lost: the collector did not take them within %g s", FLUSH_SECONDS)


class Trace:
    """The span of one call, and the trace that it belongs to."""

    __slots__ = ("_span", "_tracer", "context", "id")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self.id = format_trace_id(span.get_span_context().trace_id)  # 32 hexadecimal digits
        self.context = set_span_in_context(span, Context())  # the parent of the spans below it

    def decoded(self, started: float, end: float) -> None:
        """Writes the span `decode`; its start and end are seconds of `time.monotonic`."""
        self._tracer.stage(self, "decode", started, end)

    def end(
        self, status: int, request_id: str, model: Sequence[str], lengths: Sequence[int], reason: str | None
    ) -> None:
        """Ends the span of the call, with attributes.

        Args:
            status: The HTTP status that the client got.
            request_id: The id of the call.
            model: The model's name and version, or two empty texts.
            lengths: The length of each sequence.
            reason: Why the call was rejected; None if it was not.
        """
        span = self._span
        attributes: dict[str, Any] = {
            "http.response.status_code": status,
            "lengthwise.request_id": request_id,
            "lengthwise.model": model[0],
            "lengthwise.version": model[1],
            "lengthwise.sequences": len(lengths),
            "lengthwise.lengths": list(lengths[:MOST_LENGTHS]),
            "lengthwise.rejected": reason,
            "error.type": str(status) if status >= 500 else None,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value})
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def open_tracer(exporter: str) -> Tracer:
    """Opens the tracer whose spans go to `otlp` or to the `console`; OpenTelemetry's variables set all the rest."""
    return Tracer(
        BatchSpanProcessor(ConsoleSpanExporter(out=sys.stdout) if exporter == "console" else OTLPSpanExporter())
    )


def _epoch(moment: float) -> int:
    """Nanoseconds since 1970 of a time of `time.monotonic`, in seconds."""
    return time.time_ns() - time.monotonic_ns() + int(moment * 1e9)
