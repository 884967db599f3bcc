"""Whether calls are traced, and where to, by OpenTelemetry's own variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lengthwise.errors import ConfigurationError
from lengthwise.settings import open_telemetry_variables

if TYPE_CHECKING:
    from lengthwise.telemetry.tracing import Tracer


def configured_tracer() -> Tracer | None:
    """The tracer that OpenTelemetry's environment variables ask for; None where they ask for none.

    Raises:
        ConfigurationError: They ask for an exporter that is not supported, or the extra is not installed.
    """
    exporter = traces_exporter(open_telemetry_variables())
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
    """The exporter of traces, from OpenTelemetry's own variables: `otlp`, `console`, or None for no traces."""
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    named = variables.get("OTEL_TRACES_EXPORTER", "").strip()
    if named == "none":
        return None
    if named not in ("", "otlp", "console"):
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: {named!r} is not supported; otlp, console and none are")
    if named == "console":
        return named
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = variables.get(variable, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise ConfigurationError(f"{variable}: {protocol!r} is not supported; http/protobuf is")
        if protocol:
            break
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return "otlp" if named or any(variables.get(variable) for variable in endpoints) else None
