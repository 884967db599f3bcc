"""Whether the service is alive and ready, what it serves, and its metrics: for probes, people and Prometheus."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from importlib import metadata
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from lengthwise.application import document
from lengthwise.errors import Draining, NotReady, RequestError
from lengthwise.protocols import kserve
from lengthwise.repository.contents import listed
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving

_MANIFEST_FIELDS: Final = {
    *("labels", "task", "dimensions", "streaming", "min_length", "max_length", "long", "missing", "precision"),
    "promises",
}


def add_probes(router: APIRouter, serving: Serving) -> None:
    """Adds the routes `/livez` and `/readyz`, and `/ping`, which is SageMaker's name of `/readyz`."""

    @router.get("/livez", **document.operation("livez"))
    async def livez() -> Response:
        problem = serving.watchdog.problem
        return PlainTextResponse("ok") if problem is None else PlainTextResponse(problem, 503)

    @router.get("/ping", **document.operation("readyz", "ping"))
    @router.get("/readyz", **document.operation("readyz"))
    async def readyz() -> Response:
        return PlainTextResponse("ok") if serving.ready else kserve.response(_why_not_ready(serving), "/readyz")


def add_state(router: APIRouter, serving: Serving) -> None:
    """Adds `/healthz` and `/metrics`."""

    @router.get("/healthz", **document.operation("healthz"))
    async def healthz() -> Response:
        return document.answer(described(serving), 200 if serving.ready else 503)

    @router.get("/metrics", **document.operation("metrics"))
    async def metrics(request: Request) -> Response:
        pieces, media_type = await serving.figures.exposition(request.headers.get("accept", ""))
        headers = {"content-type": media_type, "content-length": str(sum(map(len, pieces)))}
        return StreamingResponse(_in_turns(pieces), headers=headers)


async def _in_turns(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Yields the pieces of a body of megabytes, with a turn of the event loop for other tasks after each."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


def described(serving: Serving) -> dict[str, Any]:
    """The body of `/healthz`: for people, and for tools that look up the inputs of a model."""
    repository, choice, worker = serving.repository, serving.choice, serving.worker
    this_process = {"pid": os.getpid(), "ready": serving.ready, "started": serving.created, "restarts": 0}
    reason = repository.why_empty
    if repository.starting and repository.unverified:
        reason = f"starting: not verified yet are {listed([str(key) for key in repository.unverified])}"
    return {
        "ready": serving.ready,
        "starting": repository.starting,
        "draining": serving.batcher.draining,
        "version": metadata.version("lengthwise"),
        "provider": {
            "name": choice.provider.name,
            "devices": [device.label for device in choice.devices],
            "reason": choice.reason,
        },
        "hung": serving.watchdog.problem,
        "models": [_described_model(served, serving) for served in serving.served],
        "reason": reason,
        "scan_problem": serving.registry.problem,
        "workers": [this_process] if worker is None else worker.memory.described(),
        "workers_reason": serving.workers_reason,
        "refused": [{"model": str(refusal.key), "reason": refusal.reason} for refusal in repository.refused],
    }


def _described_model(served: ServedModel, serving: Serving) -> dict[str, Any]:
    """The entry of a served version in `/healthz`."""
    manifest, origin, breaker = served.manifest, served.manifest.made, served.queue.breaker
    return {
        "model": manifest.name,
        "version": str(manifest.version),
        "default": serving.default_of(manifest.name) is served,
        "aliases": serving.aliases_of(served),
        "accuracy": origin.get("data_accuracy"),
        "accuracy_answers": origin.get("data_answers"),
        "accuracy_data": origin.get("data"),
        "trained": origin.get("trained"),
        "exported": origin.get("exported"),
        "input": manifest.input.kind,
        **manifest.input.model_dump(include={"features", "names", "vocabulary", "static", "sequences"}),
        **manifest.model_dump(include=_MANIFEST_FIELDS),
        "attention": manifest.graph.attention is not None,
        "provider": served.model.session.provider,
        "padding_cost": served.model.cost.padding_cost,
        "promise": None if served.model.promise is None else served.model.promise.model_dump(),
        "queue_sequences": len(served.queue.pending),
        "broken": {
            "reason": breaker.reason,
            "next_try_seconds": max(0.0, breaker.probe_time - time.monotonic()),
        }
        if breaker.open
        else None,
    }


def _why_not_ready(serving: Serving) -> RequestError:
    """The refusal of `/readyz` while the service is not ready: it drains, starts, or has no model that works."""
    broken = [served.manifest.key for served in serving.served if served.queue.breaker.open]
    refusals: tuple[tuple[bool, RequestError], ...] = (
        (serving.batcher.draining, Draining("the server is shutting down", retry_after_seconds=1)),
        (
            not serving.started and not serving.repository.starting,
            NotReady("the server is starting", retry_after_seconds=1),
        ),
        (
            0 < len(broken) == len(serving.served),
            NotReady(f"no model works: {listed(broken)}; /healthz says why", retry_after_seconds=5),
        ),
    )
    return next((refusal for applies, refusal in refusals if applies), serving.repository.none_ready())
