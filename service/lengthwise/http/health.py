"""Whether the service is alive and ready, what it serves, and its metrics: for probes, people and Prometheus."""

from __future__ import annotations

import os
import time
from importlib import metadata
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from lengthwise.batching.breaker import Breaker
from lengthwise.errors import Draining, NotReady, RequestError
from lengthwise.http import document, pages, schemas
from lengthwise.protocols import kserve
from lengthwise.repository.contents import Repository, listed
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving


def add_probes(router: APIRouter, serving: Serving) -> None:
    """Adds `/livez` and `/readyz`."""

    @router.get(
        "/livez",
        operation_id="livez",
        tags=["health"],
        summary="Whether the process can answer, or heal itself",
        response_class=PlainTextResponse,
        responses={503: {"description": "A run hangs: only a new process helps", "content": {"text/plain": {}}}},
    )
    async def livez() -> Response:
        problem = serving.watchdog.problem
        return PlainTextResponse("ok") if problem is None else PlainTextResponse(problem, 503)

    @router.get(
        "/readyz",
        operation_id="readyz",
        tags=["health"],
        summary="Whether a request would be answered",
        response_class=PlainTextResponse,
        responses=document.refusals(503),
    )
    async def readyz() -> Response:
        return PlainTextResponse("ok") if serving.ready else kserve.response(_why_not_ready(serving), "/readyz")


def add_state(router: APIRouter, serving: Serving) -> None:
    """Adds `/healthz`, `/metrics` and `/shadow`."""

    @router.get(
        "/healthz",
        operation_id="healthz",
        tags=["health"],
        summary="What is served, and what is not and why",
        response_model=schemas.Health,
        responses={503: {"description": "The same, where nothing is ready", "model": schemas.Health}},
    )
    async def healthz() -> Response:
        body = orjson.dumps(described(serving))
        return Response(body, 200 if serving.ready else 503, media_type="application/json")

    @router.get(
        "/metrics",
        operation_id="metrics",
        tags=["health"],
        summary="Figures for Prometheus",
        response_class=PlainTextResponse,
        responses={200: {"content": {"application/openmetrics-text": document.TEXT}}},
    )
    async def metrics(request: Request) -> Response:
        page, media_type = await serving.exposition(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": media_type})

    @router.get(
        "/shadow",
        operation_id="shadow",
        tags=["health"],
        summary="How the answers of the shadow version compare with those that were sent",
        response_model=schemas.Shadow,
        responses={200: {"content": {"text/html": document.TEXT}}},
    )
    async def shadow(request: Request) -> Response:
        compared = None if serving.monitoring is None else serving.monitoring.shadow
        found = {"candidate": None, "versions": {}} if compared is None else compared.as_json()
        if "text/html" in request.headers.get("accept", ""):
            return pages.comparison(found)
        return Response(orjson.dumps(found), media_type="application/json", headers={"vary": "accept"})


def described(serving: Serving) -> dict[str, Any]:
    """The body of `/healthz`: for people, and for tools that look up the inputs of a model."""
    return {
        "ready": serving.ready,
        "starting": serving.repository.starting,
        "draining": serving.batcher.draining,
        "version": metadata.version("lengthwise"),
        "provider": {
            "name": serving.choice.provider.name,
            "devices": [device.label for device in serving.choice.devices],
            "reason": serving.choice.reason,
        },
        "hung": serving.watchdog.problem,
        "models": [_described(served, serving) for served in serving.served],
        "shadow": serving.settings.shadow,
        "reason": _reason(serving.repository),
        "workers": [_alone(serving)] if serving.worker is None else serving.worker.memory.described(),
        "refused": [{"model": refusal.path, "reason": refusal.reason} for refusal in serving.repository.refused],
    }


def _alone(serving: Serving) -> dict[str, Any]:
    """The process as the only worker."""
    return {"pid": os.getpid(), "ready": serving.ready, "started": serving.created, "restarts": 0}


def _described(served: ServedModel, serving: Serving) -> dict[str, Any]:
    manifest, made = served.manifest, served.manifest.made
    return {
        "model": manifest.name,
        "version": str(manifest.version),
        "default": serving.default_of(manifest.name) is served,
        "aliases": serving.aliases_of(served),
        "shadow": serving.settings.shadow == served.manifest.key,
        "accuracy": made.get("data_accuracy"),
        "accuracy_answers": made.get("data_answers"),
        "accuracy_data": made.get("data"),
        "trained": made.get("trained"),
        "exported": made.get("exported"),
        "input": manifest.input.kind,
        "features": manifest.input.features,
        "vocabulary": manifest.input.vocabulary,
        "labels": manifest.labels,
        "task": manifest.task,
        "min_length": manifest.min_length,
        "max_length": manifest.max_length,
        "long": manifest.long,
        "missing": manifest.missing,
        "attention": manifest.graph.attention is not None,
        "provider": served.model.session.provider,
        "precision": manifest.precision,
        "planned_by": served.model.cost.planned_by,
        "promise": None if served.model.promise is None else served.model.promise.model_dump(),
        "promises": [promise.model_dump() for promise in manifest.promises],
        "queue_sequences": len(served.queue.pending),
        "broken": _broken(served.queue.breaker),
    }


def _broken(breaker: Breaker) -> dict[str, Any] | None:
    """Why a model does not work; None if it does."""
    if not breaker.open:
        return None
    return {"reason": breaker.reason, "next_try_seconds": max(0.0, breaker.probe_time - time.monotonic())}


def _reason(repository: Repository) -> str | None:
    """The reason why nothing is ready, if no version is the cause."""
    if not repository.starting or not repository.unjudged:
        return repository.reason
    return f"starting: not verified yet are {listed([str(key) for key in repository.unjudged])}"


def _why_not_ready(serving: Serving) -> RequestError:
    if serving.batcher.draining:
        return Draining("the server is shutting down", retry_after_seconds=1)
    if not serving.started and not serving.repository.starting:
        return NotReady("the server is starting", retry_after_seconds=1)
    broken = [served.manifest.key for served in serving.served if served.queue.breaker.open]
    if broken and len(broken) == len(serving.served):
        return NotReady(f"no model works: {listed(broken)}; /healthz says why", retry_after_seconds=5)
    return serving.repository.none_ready()
