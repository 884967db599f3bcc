"""The record of an inference call, whatever its protocol: it is counted, and logged and traced where that is on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lengthwise.errors import Refused, RequestError
from lengthwise.telemetry.access_log import AccessLog
from lengthwise.telemetry.metrics import ModelMetrics

if TYPE_CHECKING:
    from lengthwise.batching.queues import Timing
    from lengthwise.decoding.calls import Call
    from lengthwise.telemetry.tracing import Trace, Tracer


class CallRecord:
    """The record of one call."""

    __slots__ = ("_decode_seconds", "_lengths", "_metrics", "_name", "_recorder", "arrived", "request_id", "trace")

    def __init__(
        self, recorder: CallRecorder, name: str, request_id: bytes, trace: Trace | None, arrived: float
    ) -> None:
        self.arrived = arrived  # on the clock of `time.monotonic`
        self.request_id = request_id  # safe to echo and to log
        self.trace = trace  # None where it is not traced
        self._recorder = recorder
        self._name = name
        self._metrics = recorder.unknown
        self._lengths: Sequence[int] = ()
        self._decode_seconds = 0.0

    def decoded(self, call: Call, started: float) -> float:
        """Records that the body was decoded since `started`: the call now counts for its model. Returns the seconds."""
        ended = time.monotonic()
        self._metrics = call.model.metrics
        self._lengths = [len(item.steps) for item in call.items]
        self._decode_seconds = ended - started
        self._metrics.decoded(self._decode_seconds, self._lengths)
        if self.trace is not None:
            self.trace.decoded(started, ended)
        return self._decode_seconds

    def named(self, metrics: ModelMetrics) -> None:
        """Counts the call for a model although its body is not decoded."""
        self._metrics = metrics

    def close(
        self,
        status: int,
        error: RequestError | None = None,
        timing: Timing | None = None,
        ended: float | None = None,
    ) -> None:
        """Ends the record: counts the call, writes its log line, and ends its span.

        `error` is its refusal, None where it was answered or its client left; `ended`: when the answer was there, if
        not now.
        """
        seconds = (time.monotonic() if ended is None else ended) - self.arrived
        reason = error.reason if isinstance(error, Refused) else None
        stages = None if timing is None else (timing.queue, timing.inference)
        trace, access = self.trace, self._recorder.access
        if trace is None and access is None:
            self._metrics.request(status, seconds, reason, stages, None, self._decode_seconds)
            return
        trace_id = None if trace is None else trace.id
        self._metrics.request(status, seconds, reason, stages, trace_id, self._decode_seconds)
        model, request_id = self._metrics.labels, self.request_id.decode()
        if access is not None:
            access.note(
                request_id, self._name, status, seconds, model, lengths=self._lengths, reason=reason, trace_id=trace_id
            )
        if trace is not None:
            trace.end(status, request_id, model, self._lengths, reason)


class CallRecorder:
    """Opens the records; `unknown` counts the calls whose model is not served, or not known yet."""

    def __init__(self, unknown: ModelMetrics, access: AccessLog | None = None, tracer: Tracer | None = None) -> None:
        self.unknown = unknown
        self.access = access
        self._tracer = tracer

    def open(self, name: str, request_id: bytes, headers: Mapping[bytes, bytes]) -> CallRecord:
        """Starts the record of a call that has just arrived; gRPC has metadata as headers."""
        arrived = time.monotonic()
        trace = None if self._tracer is None else self._tracer.begin(name, headers, arrived)
        return CallRecord(self, name, request_id, trace, arrived)
