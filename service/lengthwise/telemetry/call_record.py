"""The record of an inference call, whatever its protocol: the call is counted, and logged and traced if that is on."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lengthwise.errors import ConfigurationError, Refused, RequestError
from lengthwise.telemetry.families import NO_NAME
from lengthwise.telemetry.metrics import ModelMetrics

if TYPE_CHECKING:
    from lengthwise.batching.queues import Timing
    from lengthwise.decoding.calls import Call
    from lengthwise.telemetry.tracing import Trace, Tracer

log = logging.getLogger("lengthwise.access")

MOST_LENGTHS: Final = 20  # lengths that a log line shows; the number of sequences is always shown


class Caller(NamedTuple):
    """The caller of a call, by the name of the key that was sent."""

    name: str = NO_NAME  # for the access log
    label: str = NO_NAME  # for the metrics: the name, or `other` if there are too many names


ANYBODY: Final = Caller(name="")
"""The caller where no keys are set."""


class CallRecord:
    """The record of one call, from its arrival to its end.

    `name` is the call's name in log and traces; `request_id` is safe to echo and to log; `arrived` is in seconds of
    `time.monotonic`. `trace` is None if the call is not traced.
    """

    __slots__ = (
        *("_decode_seconds", "_lengths", "_metrics", "_name", "_recorder"),
        *("arrived", "caller", "request_id", "trace"),
    )

    def __init__(
        self, recorder: CallRecorder, name: str, request_id: bytes, trace: Trace | None, arrived: float
    ) -> None:
        self.arrived = arrived  # seconds of `time.monotonic`
        self.request_id = request_id  # safe to echo and to log
        self.trace = trace  # None if the call is not traced
        self.caller = recorder.caller  # replaced when the key is checked
        self._recorder = recorder
        self._name = name
        self._metrics = recorder.unknown
        self._lengths: Sequence[int] = ()
        self._decode_seconds = 0.0

    def decoded(self, call: Call, started: float) -> float:
        """Records that the body is decoded, and counts the call for its model from now on.

        Returns how many seconds decoding took, from `started` (`time.monotonic`).
        """
        end = time.monotonic()
        self._metrics = call.model.metrics
        self._lengths = [len(item.steps) for item in call.items]
        self._decode_seconds = end - started
        self._metrics.decoded(self._decode_seconds, self._lengths)
        if self.trace is not None:
            self.trace.decoded(started, end)
        return self._decode_seconds

    def count_for(self, metrics: ModelMetrics) -> None:
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

        Args:
            status: The HTTP status that the client got.
            error: The refusal; None if the call was answered, or its client left.
            timing: The stages of an answered call.
            ended: When the answer was complete, in seconds of `time.monotonic`; default: now.
        """
        seconds = (time.monotonic() if ended is None else ended) - self.arrived
        reason = error.reason if isinstance(error, Refused) else None
        stages = None if timing is None else (timing.queue, timing.inference)
        trace, access = self.trace, self._recorder.access
        trace_id = None if trace is None else trace.id
        self._metrics.request(status, seconds, reason, stages, trace_id, self._decode_seconds, key=self.caller.label)
        if access is not None:
            access.note(
                *(self.request_id.decode(), self._name, status, seconds, self._metrics.labels),
                key=self.caller.name,
                lengths=self._lengths,
                reason=reason,
                trace_id=trace_id,
            )
        if trace is not None:
            trace.end(status, self.request_id.decode(), self._metrics.labels, self._lengths, reason)


@dataclass(frozen=True, slots=True)
class CallRecorder:
    """Opens a record for each call."""

    unknown: ModelMetrics  # counts the calls for models that are not served, and those whose model is not known yet
    access: AccessLog | None = None  # writes log lines; None for none
    tracer: Tracer | None = None  # makes traces; None for none
    caller: Caller = ANYBODY  # of every call whose key is not checked yet

    def open(self, name: str, request_id: bytes, headers: Mapping[bytes, bytes]) -> CallRecord:
        """Starts the record of a call that has just arrived.

        `name` is the call's name; `headers` may have the trace of the caller: of gRPC, they are the metadata.
        """
        arrived = time.monotonic()
        trace = None if self.tracer is None else self.tracer.begin(name, headers, arrived)
        return CallRecord(self, name, request_id, trace, arrived)


@dataclass(frozen=True, slots=True)
class AccessLog:
    """Writes a line for a random share of the calls: ids, status and lengths, never the sequences."""

    share: float  # the part of the calls that are logged, from 0 to 1
    draw: Callable[[], float] = random.random  # returns a random number from 0 up to 1; tests replace it

    def note(
        self,
        request_id: str,
        call: str,
        status: int,
        seconds: float,
        model: Sequence[str],
        *,
        lengths: Sequence[int],
        key: str = "",
        reason: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Writes the line of a call, if the call is in the random share.

        Args:
            request_id: The id of the call.
            call: The name of the call.
            status: The HTTP status that the client got.
            seconds: From the call's arrival to its end.
            model: The model's name and version, or two empty texts.
            lengths: The length of each sequence.
            key: The name of the caller's key; empty if no keys are set.
            reason: Why the call was rejected; None if it was not.
            trace_id: None if the call was not traced.
        """
        if self.draw() >= self.share:
            return
        # 1. The fields. Those without a value are left out, but not the first four.
        always = {"request_id": request_id, "call": call, "status": status, "duration_ms": round(seconds * 1000, 3)}
        optional: dict[str, Any] = {
            "key": key,
            "model": model[0],
            "version": model[1],
            "sequences": len(lengths),
            "lengths": list(lengths[:MOST_LENGTHS]),
            "reason": reason,
            "trace_id": trace_id,
        }
        fields = always | {name: value for name, value in optional.items() if value}
        # 2. The line `name=value name=value ...`; JSON logs get the fields themselves.
        texts = {
            name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in fields.items()
        }
        text = " ".join(f'{name}="{value}"' if " " in value else f"{name}={value}" for name, value in texts.items())
        log.info("%s", text, extra={"fields": fields})


def configured_tracer(variables: Mapping[str, str]) -> Tracer | None:
    """Opens the tracer that OpenTelemetry's variables, `OTEL_*`, ask for; None if they ask for no traces.

    Raises:
        ConfigurationError: The extra `tracing` is not installed, or the exporter is not supported.
    """
    exporter = traces_exporter(variables)
    if exporter is None:
        return None
    try:
        from lengthwise.telemetry.tracing import open_tracer
    except ImportError as error:
        raise ConfigurationError(
            f"the variables OTEL_* ask for traces, which need OpenTelemetry ({error.name} is not installed): "
            "pip install 'lengthwise[tracing]', or set OTEL_SDK_DISABLED=true"
        ) from error
    return open_tracer(exporter)


def traces_exporter(variables: Mapping[str, str]) -> str | None:
    """Returns the exporter of traces that these variables ask for: `otlp` or `console`; None for no traces.

    OTLP is also chosen where no exporter is named, but an endpoint is.

    Raises:
        ConfigurationError: The variables name an exporter or a protocol that is not supported.
    """
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if (exporter := variables.get("OTEL_TRACES_EXPORTER", "").strip()) == "none":
        return None
    if exporter not in ("", "otlp", "console"):
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not supported; otlp, console and none are")
    if exporter == "console":
        return exporter
    # OTLP: the first protocol that is set is used, and must be supported.
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = variables.get(variable, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise ConfigurationError(f"{variable}: {protocol!r} is not supported; http/protobuf is")
        if protocol:
            break
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return "otlp" if exporter or any(variables.get(variable) for variable in endpoints) else None
