"""The routes of the console, besides `/`: its files, the state of the service, the live view, and uploaded files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lengthwise.console import page
from lengthwise.console.live import MEDIA_TYPE, MOST_VIEWERS, LiveStream, LiveView
from lengthwise.console.uploads import Uploads
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving

_LIMITS: Final = {"max_sequences", "max_body_bytes", "max_batch_rows", "max_queue_cost_steps"}  # settings for the page


def routes(serving: Serving, health: Callable[[Serving], dict[str, Any]], *, predict: str) -> list[Route]:
    """Makes the routes of the console.

    Args:
        serving: What is served; gets a function that counts the viewers of the live view.
        health: Returns the answer of `/healthz`, with the models that are served.
        predict: The path to which the page sends its calls.
    """
    live = LiveView(serving.batcher)
    uploads = Uploads(serving.inflight, serving.request_limits.body_bytes)
    serving.openings.viewers.append(lambda: live.viewers)

    async def state(_: Request) -> Response:
        """Answers with the state of the service (`page_state`)."""
        return _json(orjson.dumps(page_state(serving, health(serving), predict)))

    async def examples(request: Request) -> Response:
        """Answers with the example sequences of a model, as JSON Lines."""
        served = serving.find(request.query_params.get("model"), request.query_params.get("version"))
        return Response(
            served.model.examples or b"", media_type="application/x-ndjson", headers={"cache-control": "no-store"}
        )

    async def frames(request: Request) -> Response:
        """Answers with the stream of the live view.

        Raises:
            HTTPException: There are too many viewers.
        """
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE)
        if live.viewers >= MOST_VIEWERS:
            raise HTTPException(503, f"{MOST_VIEWERS} viewers look already; try again later", {"retry-after": "5"})
        request.scope["headers"] = []  # they would stay in memory as long as the view
        return LiveStream(live, live.join())

    async def sequences(request: Request) -> Response:
        """Answers an upload with the sequences of the file, in the order of the model's features.

        An empty `id` in the query says that no column of a table is the id: all its rows are one sequence.
        """
        query, headers = request.query_params, dict(request.headers.raw)
        name, kind = query.get("name", ""), query.get("kind", "values")
        columns = _column_names(serving, query)
        single, padding = query.get("id") == "", query.get("padding")
        return _json(await uploads.read(name, kind, headers, request.receive, columns, single=single, padding=padding))

    return [
        Route(f"{page.PREFIX}state", state, include_in_schema=False),
        Route(f"{page.PREFIX}examples", examples, include_in_schema=False),
        Route(f"{page.PREFIX}live", frames, include_in_schema=False),
        Route(f"{page.PREFIX}sequences", sequences, methods=["POST"], include_in_schema=False),
        Route(f"{page.PREFIX}{{name}}", _file, include_in_schema=False),
    ]


async def _file(request: Request) -> Response:
    """Answers with a file of the page.

    Raises:
        HTTPException: The page has no file of this name (status 404).
    """
    file = page.files().get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    return page.answer(request, file)


def _column_names(serving: Serving, query: QueryParams) -> ColumnNames:
    """The columns of an uploaded table that a query names, and those with the names of the model's features."""
    step = serving.find(query["model"], query.get("version")).manifest.input if "model" in query else None
    return ColumnNames(
        query.get("id") or None,
        query.get("time"),
        query.get("label"),
        values=tuple(query.getlist("values")) or None,
        inputs=None if step is None else step.names or (),
        static=() if step is None else step.static_names,
    )


def page_state(serving: Serving, health: dict[str, Any], predict: str) -> dict[str, Any]:
    """What the page needs to know, as a JSON object: what is served, the limits of a call, and where calls are sent."""
    settings = serving.settings
    return {
        **health,
        "models": [{**model, **_input(served)} for model, served in zip(health["models"], serving.served, strict=True)],
        "predict": predict,
        "public_port": None if settings.admin_port is None else settings.port,
        "keys": serving.keys is not None,
        "runners": serving.runners,
        "limits": settings.model_dump(include=_LIMITS),
    }


def _input(served: ServedModel) -> dict[str, Any]:
    """What the page needs to draw and invent sequences: scales, threshold, examples, usual lengths; and of states."""
    return {
        **served.manifest.input.model_dump(include={"mean", "std"}),
        "threshold": served.manifest.threshold,
        "examples": (served.model.examples or b"").count(b"\n"),
        "usual_lengths": served.model.usual_lengths,
        **served.manifest.model_dump(include={"streaming": {"state_bytes", "promise"}}),
    }


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})
