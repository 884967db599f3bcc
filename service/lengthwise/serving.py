"""What serves, without a protocol: the models, a queue for each, the batcher and the figures.

Every protocol's room decodes into a `Call` and asks `Serving.answer` for it, so a sequence that came one way shares a
batch with one that came another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

from lengthwise.api_keys import Keys
from lengthwise.batching.batcher import Batcher
from lengthwise.batching.plan import BatchLimits
from lengthwise.batching.queues import PendingRequest, Timing, Waiter
from lengthwise.decoding import fast_json
from lengthwise.decoding.calls import Call
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.inflight import Inflight
from lengthwise.padding import Steps
from lengthwise.repository import judging
from lengthwise.repository.contents import Repository
from lengthwise.repository.judge_process import JudgeProcess
from lengthwise.repository.judging import Judge
from lengthwise.repository.model import Model
from lengthwise.repository.registry import Registry, Rescan
from lengthwise.repository.scan import scan
from lengthwise.repository.served import Served as Served
from lengthwise.runtime import answers, recurrent_kernels
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import GRAPH_FILE
from lengthwise.runtime.provider import choose
from lengthwise.settings import Settings, available_cores, bundled_models
from lengthwise.telemetry import triton_metrics
from lengthwise.telemetry.access_log import AccessLog
from lengthwise.telemetry.call_record import CallRecorder
from lengthwise.telemetry.metrics import Bounds, Gauges, Metrics, ModelMetrics
from lengthwise.versions import Policy

if TYPE_CHECKING:
    from lengthwise.telemetry.tracing import Trace, Tracer

log = logging.getLogger("lengthwise.serving")


class Serving:
    """Everything that lives while the server does.

    Args:
        settings: The options.
        rescan: Finds the models, at the start and again; tests and benchmarks give their own.
        tracer: Makes the spans of calls and batches, where they are traced.

    Attributes:
        accounts: What is noted of each inference call.
        keys: Who may call; None for everybody.
        choice: Where models run, and why there.
        inflight: How many bytes of bodies and answers are in hand.
        runners: Threads that run batches.

    Raises:
        ConfigurationError: The keys cannot be read, or the provider cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        rescan: Rescan | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self.limits = BatchLimits(settings.max_batch_rows, settings.max_batch_cost_steps)
        self.choice = choose(
            settings.provider,
            tf32=settings.tf32,
            memory_limit_bytes=settings.gpu_memory_bytes,
            runners=settings.runners if "runners" in settings.model_fields_set else None,
            recurrent_kernels=settings.recurrent_kernels,
        )
        self.runners = self.choice.runners(settings.runners)
        self.batcher = Batcher(
            runners=self.runners,
            max_queue_cost_steps=settings.max_queue_cost_steps,
            max_wait_seconds=settings.max_wait_ms / 1000,
            one_core=self.runners == available_cores() == 1 and not self.choice.provider.bound,
            on_batch=None if tracer is None else tracer.batch,
        )
        aliases = (triton_metrics.families,) if settings.triton_metrics else ()
        self.metrics = Metrics(self._gauges, self._bounds, *aliases)
        access = AccessLog(settings.access_log) if settings.access_log else None
        self.inflight = Inflight(settings.max_inflight_bytes)
        self.accounts = CallRecorder(self.metrics.unknown, access, tracer)
        # Whoever can change the bundled models can change the program too.
        in_process = settings.judge_in_process or settings.models.resolve() == bundled_models().resolve()
        self._judge: Judge = judging.judge
        if not in_process:
            self._judge = JudgeProcess(settings.judge_timeout_seconds, settings.judge_memory_bytes)
        self.keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
        self.shelf = Registry(rescan or self._scan, self._take_in, self._let_go, period_seconds=settings.reload_seconds)
        self._started = False
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Starts the runners, then loads and proves the models; ready afterwards.

        A model that is found good is answered for at once, while the others are judged.

        Raises:
            ConfigurationError: The repository cannot be read.
        """
        log.info("models run on %s", self.choice)
        if not fast_json.COMPILED:
            log.info(
                "the C module that reads JSON was not built (no compiler, or no headers): plain bodies take longer"
            )
        if not self.choice.provider.bound:
            log.info("recurrent layers: %s", recurrent_kernels.described(wanted=self.settings.recurrent_kernels))
        await self.batcher.start()
        await self.shelf.open()
        self._started = True
        if not self.shelf.served:
            log.error("no model is ready: every request will be answered with 503")

    async def stop(self) -> None:
        """Finishes what was accepted, then stops; whoever asks again waits for the same end."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await self._stopping

    async def _stop(self) -> None:
        await self.shelf.close()
        for listener in self.shelf.listeners:  # whoever watches is told that it is not ready any more
            await listener()
        if not await self.batcher.drain(self.settings.drain_seconds):
            log.warning("some accepted requests were not answered within drain_seconds")

    @property
    def ready(self) -> bool:
        """Whether all good models are served, and there is one."""
        starting = not self._started or self.repository.starting
        return not starting and bool(self.shelf.served) and not self.batcher.draining

    @property
    def started(self) -> bool:
        """Whether all models were looked at."""
        return self._started

    @property
    def repository(self) -> Repository:
        """What was found of the models at the last look, or so far."""
        return self.shelf.repository

    @property
    def served(self) -> Sequence[Served]:
        """Every model that is served, by name and ascending version."""
        return self.shelf.served

    def find(self, name: str | None, version: str | None) -> Served:
        """What a request means by a model's name and version; None for the default.

        Raises:
            RequestError: There is none, or none is ready.
        """
        return self.shelf.find(name, version)

    def ask(
        self,
        call: Call,
        arrived: float,
        finish: Callable[[list[Answer], Timing], Any],
        waiter: Waiter | None = None,
        trace: Trace | None = None,
    ) -> PendingRequest:
        """Queues a call. The future of the request has what `finish` makes of one `Answer` for each item.

        Args:
            call: What is asked.
            arrived: When, on the clock of `time.monotonic`; the deadline counts from it.
            finish: Makes the caller's answer; runs in a runner thread.
            waiter: Completed in the place of the future.
            trace: The caller's.

        Raises:
            RequestError: It cannot be queued; see `Batcher.submit`, and there for the future's errors.
        """
        served = call.model
        timeout_ms = self.settings.default_timeout_ms if call.timeout_ms is None else call.timeout_ms
        sequences: list[Steps] = [item.steps for item in call.items]
        longest = served.manifest.max_length
        windows = None
        if max(map(len, sequences)) > longest:
            windows = [answers.windows(steps, longest) for steps in sequences]
            sequences = [window for parts in windows for _, window in parts]

        def complete(found: list[Answer | None], timing: Timing) -> Any:
            if windows is None:
                return finish(_all_finite(call, found), timing)
            return finish(_all_finite(call, _merged(call, found, windows)), timing)

        return self.batcher.submit(
            served.queue,
            sequences,
            complete,
            deadline=arrived + timeout_ms / 1000,
            priority=call.priority,
            attention=call.attention,
            waiter=waiter,
            trace=trace,
        )

    def _scan(self, before: Repository, again: str | None) -> Repository:
        settings = self.settings
        return scan(
            settings.models,
            self.limits,
            policy=Policy.parse(settings.versions),
            max_model_bytes=settings.max_model_bytes,
            before=before,
            again=again,
            devices=self.choice.devices,
            judge=self._judge,
            most_bytes=settings.judge_memory_bytes,
            stopping=self.shelf.stopping,
            publish=self.shelf.publish,
        )

    def _take_in(self, model: Model) -> Served:
        manifest = model.manifest
        info = {"provider": model.session.provider, "digest": manifest.digests.get(GRAPH_FILE, "")}
        served = Served(model, self.metrics.model(manifest.name, str(manifest.version), info), self.limits)
        self.batcher.open(served.queue)
        return served

    def _let_go(self, served: Served) -> None:
        self.batcher.close(served.queue)
        if all(other.metrics is not served.metrics for other in self.served):
            self.metrics.let_go(served.metrics)
        log.info("%s is let go: it is freed when its last request is answered", served.manifest.key)

    def _gauges(self) -> dict[tuple[str, str], Gauges]:
        gauges = {_labels(served.metrics): Gauges(0, 0, 0, self.ready) for served in self.served}
        for queue in self.batcher.queues:  # also of models that are let go, while anything waits or runs there
            labels = _labels(queue.metrics)
            held = gauges.get(labels, Gauges(0, 0, 0, False))
            gauges[labels] = Gauges(
                held.queue_cost_steps + queue.padded_steps,
                held.queue_sequences + len(queue.pending),
                held.inflight_batches + queue.inflight,
                held.ready,
            )
        return gauges or {("", ""): Gauges(0, 0, 0, False)}

    def _bounds(self) -> Bounds:
        settings = self.settings
        return Bounds(
            runners=self.runners,
            max_queue_cost_steps=settings.max_queue_cost_steps,
            refused_models=len(self.repository.refused),
            inflight_bytes=self.inflight.bytes,
            max_inflight_bytes=self.inflight.max_bytes,
        )


def _labels(metrics: ModelMetrics) -> tuple[str, str]:
    name, version = metrics.labels
    return name, version


def _merged(call: Call, found: list[Answer | None], windows: list[list[tuple[int, Steps]]]) -> list[Answer | None]:
    """One answer for each item again, of the answers of all windows."""
    ends = list(accumulate(len(parts) for parts in windows))
    merged: list[Answer | None] = []
    for item, parts, end in zip(call.items, windows, ends, strict=True):
        of_item = found[end - len(parts) : end]
        whole = [answer for answer in of_item if answer is not None]
        if len(whole) < len(of_item):
            merged.append(None)
        elif len(parts) == 1:
            merged.append(whole[0])
        else:
            starts = [start for start, _ in parts]
            merged.append(answers.merge(whole, starts, len(item.steps), call.model.manifest))
    return merged


def _all_finite(call: Call, found: list[Answer | None]) -> list[Answer]:
    """The answers, if every one is there.

    Raises:
        InvalidRequest: With the pointers of those that are not finite.
    """
    if call.attention:
        found = answers.with_attention(found)
    if None in found:
        bad = [i for i, answer in enumerate(found) if answer is None]
        raise InvalidRequest([Problem(call.pointer.format(i), answers.NOT_FINITE) for i in bad[:20]], total=len(bad))
    return cast("list[Answer]", found)
