"""One service, whose calls share batches: its models, a queue for each, the batcher, and how it starts and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lengthwise.batching.queues import PendingRequest, Timing, Waiter
from lengthwise.batching.watchdog import Watchdog
from lengthwise.connections.api_keys import Keys
from lengthwise.connections.inflight import Inflight
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.connections.web_pages import WebPages
from lengthwise.decoding import fast_json
from lengthwise.decoding.calls import Call
from lengthwise.errors import QueueFull, RequestError
from lengthwise.padding import RowInput
from lengthwise.repository.contents import Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.probing import Probing
from lengthwise.repository.registry import EveryWorker, Publish, Registry, Rescan, ServedModel
from lengthwise.repository.scan import Scan
from lengthwise.repository.source import ModelSource
from lengthwise.repository.stopping import in_daemon_thread
from lengthwise.repository.verification_process import end_unused_process
from lengthwise.repository.verifier import Verifier
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise.runtime.session import begin_devices
from lengthwise.runtime.states import StateKeys
from lengthwise.serving import collaborators
from lengthwise.serving.figures import ServiceFigures
from lengthwise.settings import Settings
from lengthwise.telemetry.call_record import ANYBODY, AccessLog, Caller, CallRecorder
from lengthwise.telemetry.families import Openings
from lengthwise.versions import Policy

if TYPE_CHECKING:
    from lengthwise.processes.worker import Worker
    from lengthwise.telemetry.tracing import Trace, Tracer

log = logging.getLogger("lengthwise.serving")


class Serving:
    """The models, queues, batcher and metrics of one service.

    `worker` is this process among several workers. `rescan` and `verify` are replaced in tests only.
    """

    def __init__(
        self,
        settings: Settings,
        rescan: Rescan | None = None,
        tracer: Tracer | None = None,
        verify: Verifier | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.settings = settings
        self.worker = worker  # where several processes serve together
        self.workers_reason = "one process"  # why there are so many workers, for `/healthz`
        self.choice = collaborators.device_choice(settings)
        self.runners = self.choice.runners(settings.runners)
        self.limits = collaborators.batch_limits(settings, self.choice, self.runners)
        self.batcher = collaborators.batcher_of(
            settings, self.choice, self.runners, worker, tracer, lambda queue: self.probing.begin_soon(queue)
        )
        self.watchdog = Watchdog(self.batcher.execution.turns.running, settings.hung_seconds)
        self.openings = Openings()
        self.figures = ServiceFigures(self)
        self.metrics = self.figures.metrics
        self.keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
        self.state_keys = StateKeys(settings.state_key_file)
        self.request_limits = RequestLimits.of(settings)
        self.inflight = Inflight(self.request_limits.inflight_bytes, *(() if worker is None else worker.inflight))
        access = AccessLog(settings.access_log) if settings.access_log else None
        caller = ANYBODY if self.keys is None else Caller()
        self.call_records = CallRecorder(self.metrics.unknown, access, tracer, caller)
        self.verify = collaborators.verifier_for(settings, verify, worker)
        self.source = ModelSource(settings, None if worker is None else worker.ask_from_thread)
        self.web_pages = WebPages(settings.cors_origins, settings.host, keys=self.keys is not None)
        self.registry = Registry(rescan or self._scan, self._add, self._remove, period_seconds=settings.reload_seconds)
        self.find = self.registry.find
        self.monitoring = collaborators.monitoring_of(settings, self.choice, lambda: self.batcher.at_rest)
        self.probing = Probing(lambda: self.served, self.registry.tell_listeners)
        self.created = time.time()
        self.in_lifespan = False  # a lifespan has started it, and will end it
        self.started = False  # the first scan is over
        self._stopping: asyncio.Future[None] | None = None
        self._join(worker)

    def _join(self, worker: Worker | None) -> None:
        """Connects this service with the other workers, if there are any: changes of models, metrics, readiness."""
        if worker is None:
            return
        self.registry.change_everywhere = EveryWorker(
            self.registry.change_here,
            lambda: {
                "serves": [served.manifest.key for served in self.served],
                "unloaded": sorted(self.repository.unloaded),
            },
            worker.ask,
            worker.handlers,
        )
        self.registry.ask_unloaded = lambda: worker.ask("unloaded")
        self.registry.listeners.append(self._note_readiness)
        worker.handlers["metrics"] = self.figures.snapshot
        worker.is_alive = lambda: self.alive

    async def _note_readiness(self) -> None:
        """Shows the other workers whether this one is ready."""
        if self.worker is not None:
            self.worker.set_ready(self.ready)

    async def start(self, listen: Callable[[], Awaitable[object]] | None = None) -> None:
        """Starts the runners, then loads and verifies the models; returns when the service is ready.

        Each model is served as soon as it is loaded. `listen` is awaited when all are loaded, before the service is
        ready.

        Raises:
            BaseException: The error of the first scan: a ConfigurationError if the folder cannot be read, a
                CancelledError if the service was stopped meanwhile.
        """  # noqa: DOC502 - it raises what the scan raised
        self.in_lifespan = True
        log.info("models run on %s", self.choice)
        if not fast_json.COMPILED:
            log.info("the C module that reads JSON was not built (no compiler or headers): reading bodies takes longer")
        if not self.choice.provider.bound:
            log.info("recurrent layers: %s", recurrent_kernels.described(option=self.settings.recurrent_kernels))
        self.watchdog.start(asyncio.get_running_loop())
        self.probing.start()
        await self.batcher.start()
        if self.monitoring is not None:
            self.monitoring.start()
        starting: list[Awaitable[None]] = [self.registry.open()]
        if self.choice.provider.bound:  # meanwhile: another process verifies the models
            starting.append(
                asyncio.wrap_future(in_daemon_thread("first run", lambda: begin_devices(self.choice.devices)))
            )
        # An error waits for the first run: a thread in C++ that outlasts the interpreter aborts the process.
        error, *_ = await asyncio.gather(*starting, return_exceptions=True)
        end_unused_process()
        if error is not None:
            raise error
        if self.worker is not None:
            await self.worker.wait_for_others(serves=bool(self.served))
        if listen is not None:
            await listen()
        self.started = True
        await self._note_readiness()
        if not self.served:
            log.error(
                "no model is ready: every request is answered with 503 until %s",
                "a client loads one of those that are unloaded"
                if self.repository.unloaded
                else f"{self.source.folder} has one and is read again, by SIGHUP or --reload-seconds",
            )

    async def stop(self) -> None:
        """Answers the accepted requests, then stops the service. A second call waits for the same end."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await self._stopping

    async def _stop(self) -> None:
        """Ends scans and probes, drains the queues, and stops the monitoring, in this order."""
        await self.registry.close()
        await self.probing.stop()
        await self.registry.tell_listeners()  # such as gRPC's health service: not ready any more
        if not await self.batcher.drain(self.settings.drain_seconds):
            log.warning("some accepted requests were not answered within drain_seconds")
        self.watchdog.stop()
        if self.monitoring is not None:
            await asyncio.to_thread(self.monitoring.stop)

    def begin_draining(self) -> None:
        """Refuses new requests from now on. It may be called in a signal handler."""
        self.batcher.begin_draining()
        if self.worker is not None:
            self.worker.set_ready(False)

    @property
    def ready(self) -> bool:
        """Whether all verified models are served, and at least one of them works."""
        starting = not self.started or self.repository.starting
        works = any(not served.queue.breaker.open for served in self.served)
        return not starting and works and not self.batcher.draining

    @property
    def alive(self) -> bool:
        """Whether the process can recover by itself: false while a batch hangs."""
        return self.watchdog.problem is None

    def answers(self, served: ServedModel) -> bool:
        """Whether a request for this model would be answered."""
        return self.ready and not served.queue.breaker.open

    @property
    def repository(self) -> Repository:
        """The result of the last scan, or of the running one so far."""
        return self.registry.repository

    @property
    def served(self) -> Sequence[ServedModel]:
        """Every model that is served, by name and ascending version."""
        return self.registry.served

    def default_of(self, name: str) -> ServedModel | None:
        """Returns the model that answers requests for a name without a version; None if such requests get an error."""
        with suppress(RequestError):
            return self.find(name, None)
        return None

    def aliases_of(self, served: ServedModel) -> list[str]:
        """The aliases of a version, sorted."""
        version_of_alias = self.repository.aliases.get(served.manifest.name, {})
        return sorted(alias for alias, version in version_of_alias.items() if version == served.manifest.version)

    def check_key(self, headers: Mapping[bytes, bytes]) -> tuple[str, str] | None:
        """Checks the key of a caller; returns its name, and its label in the metrics.

        None if the key has no name, or if no keys are set: then every caller is let in.

        The caller is checked before a body is read, so each of the four ways in calls this: an ordinary call
        (`http.fast_path`, which leaves a call without a key to ASGI), every inference call (`InferenceCall.admit`,
        which counts a refusal), and all other requests over HTTP (`application.gate`) and gRPC (`grpc.server`).

        Args:
            headers: Of a request, by lower-case name; or the metadata of a gRPC call.

        Raises:
            Unauthorized: The caller sent none of the keys.
        """  # noqa: DOC502 - what it calls raises it
        return None if self.keys is None else self.keys.check(headers.get(b"authorization"))

    def full(self) -> QueueFull | None:
        """Returns the error for requests without a priority if all queues are full, so that no body need be decoded.

        None if a queue is open; and while the service drains, as requests then get another error.
        """
        admission = self.batcher.admission
        queue = admission.closed()
        return None if queue is None or self.batcher.draining else admission.full(queue)

    def submit(
        self,
        call: Call,
        sequences: Sequence[RowInput],
        finish: Callable[[list[Answer | None], Timing], Any],
        *,
        arrived: float,
        waiter: Waiter | None = None,
        trace: Trace | None = None,
    ) -> PendingRequest:
        """Queues a call, which `Batcher.submit` may refuse.

        Args:
            call: The call; its timeout, or that of the options, counts from `arrived`.
            sequences: Its sequences, or their windows.
            finish: Makes the answer from one result for each sequence; None for a result that is not finite.
            arrived: When the call arrived, in seconds of `time.monotonic`.
            waiter: What is completed with the answer; None for a new future.
            trace: The trace of the call; None if it is not traced.

        Returns:
            The request, with the future of its answer.
        """
        timeout_ms = self.settings.default_timeout_ms if call.timeout_ms is None else call.timeout_ms
        return self.batcher.submit(
            call.model.queue,
            sequences,
            finish,
            waiter=waiter,
            deadline=arrived + timeout_ms / 1000,
            priority=call.priority,
            attention=call.attention,
            trace=trace,
        )

    def _scan(self, last_repository: Repository, retry_name: str | None, publish: Publish) -> Repository:
        """Reads the keys of states again, scans the repository and loads its models, in this thread.

        Returns the result of the scan.

        Args:
            last_repository: The result of the last scan.
            retry_name: A name whose refused versions are verified again; None for no name.
            publish: Called with the result so far, each time a model is loaded.
        """
        settings = self.settings
        stopping = self.registry.stopping
        self.state_keys.refresh()
        return Scan(
            self.source.refresh(stopping, first=last_repository.starting),
            self.limits,
            policy=Policy.parse(settings.versions),
            max_model_bytes=settings.max_model_bytes,
            before=last_repository,
            retry_name=retry_name,
            devices=self.choice.devices,
            verify=self.verify,
            most_bytes=settings.judge_memory_bytes,
            stopping=stopping,
            publish=publish,
        ).run()

    def _add(self, model: LoadedModel) -> ServedModel:
        """Opens the queue and the metrics of a model that is served from now on."""
        manifest = model.manifest
        info = {"provider": model.session.provider, "digest": manifest.digests.get(GRAPH_FILE, "")}
        if model.session.recurrent:
            info["kernels"] = model.session.kernels
        metrics = self.metrics.model(manifest.name, str(manifest.version), info)
        served = ServedModel(model, metrics, self.limits, self.state_keys, lambda: self.served)
        self.batcher.open(served.queue)
        return served

    def _remove(self, served: ServedModel) -> None:
        """Closes the queue of a model, and its metrics unless another load of the same version uses them."""
        self.batcher.close(served.queue)
        if all(model.metrics is not served.metrics for model in self.served):
            self.metrics.remove(served.metrics)
        log.info("%s is no longer served; its memory is freed when its last request is answered", served.manifest.key)
