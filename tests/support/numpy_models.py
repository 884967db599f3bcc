"""Models of a few lines of NumPy, and a service around them, so that a test of the service needs no export.

A `Sums` model answers each row by itself: the logit of class `c` is `c` times the mean of the row's valid, present
values, so an answer can be worked out on paper. What it does beside that is a callable that sees each batch: it may
raise, or wait for an event.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import numpy as np

from lengthwise.application.app import Application
from lengthwise.batching.cost import CostTable
from lengthwise.errors import ModelNotFound, NotReady
from lengthwise.padding import PaddedBatch
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.runtime.session import CPU_LABEL, Outputs
from lengthwise.serving import Serving
from lengthwise.settings import Settings

NOT_FINITE = -999.0
"""A sequence that starts with it gets logits that are not finite."""
BLIND = -998.0
"""A sequence that starts with it gets attention that is not finite."""


def manifest(
    *, name: str = "sums", version: int = 1, features: int = 2, attention: bool = True, **fields: Any
) -> Manifest:
    """A manifest with three labels; of one with `vocabulary`, a step is a token id; `inputs` names the features."""
    vocabulary, inputs = fields.pop("vocabulary", None), fields.pop("inputs", None)
    features = features if inputs is None else len(inputs)
    step = StepInput(features=features, names=inputs)
    if vocabulary:
        step = StepInput(kind="tokens", vocabulary=vocabulary)
    names = GraphNames(attention="attention" if attention else None)
    return Manifest(name=name, version=version, input=step, labels=("a", "b", "c"), graph=names, **fields)


MANIFESTS = {
    "refuses missing": manifest(),
    "takes missing": manifest(missing="zero"),
    "one feature": manifest(features=1, missing="zero"),
    "tokens": manifest(vocabulary=10),
    "head": manifest(long="head", max_length=2, missing="indicator"),
    "short": manifest(max_length=2, attention=False),
    "not too short": manifest(min_length=3, max_length=9, missing="zero"),
    "named": manifest(inputs=("a", "b/c~")),
    "named, takes missing": manifest(inputs=("a", "b/c~"), missing="zero"),
}
"""One for each way that a body is read."""


class OneModel:
    """A catalog of one model, for reading bodies without a service."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def find(self, name: str | None, version: str | None) -> OneModel:
        if name not in (None, self.manifest.name) or version not in (None, str(self.manifest.version)):
            raise ModelNotFound("no such model is served")
        return self


class NoModel:
    """A catalog of none."""

    def find(self, name: str | None, version: str | None) -> OneModel:
        raise NotReady("no model is ready", retry_after_seconds=5)


class Sums:
    """A session that answers each row by itself; see the module."""

    provider = CPU_LABEL
    recurrent = True
    kernels = "numpy"
    bound = False

    def __init__(self, manifest: Manifest, before: Callable[[PaddedBatch], None]) -> None:
        self._manifest = manifest
        self._before = before

    def run(self, batch: PaddedBatch, outputs: tuple[str, ...] = ("logits",)) -> Outputs:
        self._before(batch)
        per_step = self._manifest.task == "per-step"
        logits, attention = [], np.zeros((batch.rows, batch.width), dtype=np.float32)
        for row, (steps, length) in enumerate(zip(batch.steps, batch.lengths, strict=True)):
            valid = steps[:length].astype(np.float32).reshape(length, -1)
            means = np.nanmean(np.where(np.isnan(valid).all(axis=1, keepdims=True), 0, valid), axis=1)
            padded = np.zeros(batch.width, dtype=np.float32)
            padded[:length] = means
            figure = padded[:, None] if per_step else means.mean(keepdims=True)
            if means[0] == NOT_FINITE:
                figure = figure * np.nan
            logits.append((figure * np.arange(3)).astype(np.float32))
            attention[row, :length] = np.nan if means[0] == BLIND else 1 / length
        return Outputs(np.stack(logits), attention if "attention" in outputs else None)


def model(
    manifest: Manifest,
    before: Callable[[PaddedBatch], None] = lambda _: None,
    *,
    seconds: float = 0.01,
    clock: Callable[[], float] = time.thread_time,
) -> LoadedModel:
    """A model whose batches are said to take long enough that none runs on the event loop."""
    table = CostTable([1, 64], [4, 1024], np.full((2, 2), seconds), clock=clock)
    return LoadedModel(manifest, Sums(manifest, before), table, promise=manifest.promise(CPU_LABEL))  # type: ignore[arg-type]


def held_batch() -> tuple[threading.Event, asyncio.Event, Callable[[PaddedBatch], None]]:
    """What makes a model's batches wait: `release` lets them go, `running` says that one waits."""
    release, running, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def wait(_: PaddedBatch) -> None:
        loop.call_soon_threadsafe(running.set)
        release.wait(60)

    return release, running, wait


def repository(*models: LoadedModel) -> Repository:
    """The models as a repository."""
    return Repository.of(models)


@dataclass(frozen=True)
class Service:
    """A service in this process, with a client that speaks to its application directly."""

    serving: Serving
    app: Any
    client: httpx2.AsyncClient

    async def predict(self, body: Any, **headers: str) -> httpx2.Response:
        """`POST /predict` of bytes as they are, or of a value as JSON."""
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        if isinstance(body, bytes):
            return await self.client.post("/predict", content=body, headers=sent)
        return await self.client.post("/predict", json=body, headers=sent)

    async def figures(self) -> dict[str, float]:
        """The samples of `/metrics`, by their text up to the value."""
        return samples((await self.client.get("/metrics")).text)


def samples(exposition: str) -> dict[str, float]:
    """Every sample of a Prometheus exposition, under its name and labels as they stand there."""
    lines = (line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def idle(figures: dict[str, float]) -> bool:
    """Whether nothing waits, nothing runs and nothing is in hand, by the gauges of every model."""
    names = ("lengthwise_queue_cost_steps", "lengthwise_queue_sequences", "lengthwise_inflight_batches")
    gauges = {name: value for name, value in figures.items() if name.startswith(names)}
    return len(gauges) >= len(names) and not any(gauges.values()) and not figures.get("lengthwise_inflight_bytes")


@asynccontextmanager
async def serving(
    *models: LoadedModel,
    refused: Sequence[Refusal] = (),
    tracer: Any = None,
    aliases: Mapping[str, Mapping[str, int]] | None = None,
    **options: Any,
) -> AsyncIterator[Service]:
    """A started service of some models while the block runs; `refused` stood beside them."""
    found = replace(Repository.of(models, refused), aliases=aliases or {})
    made = Serving(Settings(**{"runners": 1} | options), lambda *_: found, tracer)
    async with started(made) as service:
        yield service


@asynccontextmanager
async def started(serving: Serving) -> AsyncIterator[Service]:
    """A service while the block runs."""
    await serving.start()
    app = Application(serving)
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as client:
            yield Service(serving, app, client)
    finally:
        await serving.stop()
