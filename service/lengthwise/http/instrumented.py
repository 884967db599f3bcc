"""Whether something sees the calls of an application that it was not given: instrumentation, or a route before ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FunctionType
from typing import Final

import fastapi.routing
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import BaseRoute

_CALLED: Final = (
    (FastAPI, "__call__"),
    (FastAPI, "build_middleware_stack"),
    (Starlette, "__call__"),
    (fastapi.routing, "get_request_handler"),
    (fastapi.routing, "request_response"),
)
"""What instrumentation replaces in FastAPI and Starlette to see calls."""


def is_instrumented() -> bool:
    """Whether instrumentation sees all calls of this process."""
    return any(_is_replaced(getattr(owner, name)) for owner, name in _CALLED) or _is_traced()


def is_preceded(own: Sequence[BaseRoute], routes: Sequence[BaseRoute]) -> bool:
    """Whether another route of `routes` may answer a POST before the last of `own` does, or one of `own` is gone."""
    ours = {id(route) for route in own}
    places = [number for number, route in enumerate(routes) if id(route) in ours]
    if len(places) < len(ours):
        return True
    others = (route for route in routes[: places[-1]] if id(route) not in ours)
    return any("POST" in (getattr(route, "methods", None) or ("POST",)) for route in others)


def _is_replaced(function: object) -> bool:
    """Whether a function of FastAPI or Starlette is another one now."""
    if not isinstance(function, FunctionType) or type(function) is not FunctionType:
        return True
    return function.__globals__["__name__"].partition(".")[0] not in ("fastapi", "starlette")


def _is_traced() -> bool:
    """Whether the process has OpenTelemetry's tracing set up for all its libraries; FastAPI itself then makes spans."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
