"""The registry: the models that are served now, and how they change while requests come in.

```
timer ── SIGHUP ── load ── unload         one change at a time
               │
            rescan                        in a thread: new versions are loaded and verified while others serve
               │
   add new models, replace the snapshot, remove models that are gone
```

A request finds its model in one immutable *snapshot*, and keeps this model even if the snapshot is replaced; the queue
of a removed model is closed after its last request. A *change* is a client's `load` or `unload` of a name. *Refused*:
see `contents`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.errors import ConfigurationError, Draining, LengthwiseError, ModelNotFound, RequestError, WorkersDiffer
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.stopping import Stopped, Stopping, in_daemon_thread
from lengthwise.runtime.free_memory import return_free_memory
from lengthwise.runtime.states import StateKeys
from lengthwise.telemetry.metrics import ModelMetrics

log = logging.getLogger("lengthwise.registry")

_MOST_RESOLVED: Final = 256  # names and versions of requests that a snapshot remembers

Publish: TypeAlias = Callable[[Repository], object]  # serves the result of a scan so far
# Scans: gets the last result, a name whose refused versions are verified again, and `Publish`; returns the new result
Rescan = Callable[[Repository, str | None, Publish], Repository]


class ServedModel:
    """A model that is served, with its queue and its metrics: what a request finds under a name and a version."""

    __slots__ = ("_served", "manifest", "metrics", "model", "queue", "state_keys")

    def __init__(
        self,
        model: LoadedModel,
        metrics: ModelMetrics,
        limits: BatchLimits,
        state_keys: StateKeys | None = None,
        served: Callable[[], Sequence[ServedModel]] = tuple,
    ) -> None:
        self.model = model
        self.state_keys = state_keys or StateKeys()
        self._served = served
        self.manifest = model.manifest
        self.metrics = metrics
        count_clipped = partial(metrics.count, "clipped_values")
        self.queue = ModelQueue(
            model.manifest.key,
            partial(model.answer, on_clipped=count_clipped) if model.manifest.graph.clipped else model.answer,
            model.cost,
            metrics,
            limits.at_most(model.manifest.max_batch_rows) if model.buckets is None else model.buckets.limits,
            multiple=model.manifest.width_multiple,
            buckets=model.buckets,
            steady=model.steady,
            blank=model.manifest.blank,
            cold={shape: partial(model.session.run_zeros, shape) for shape in model.cold},
        )

    def versions(self) -> list[ServedModel]:
        """All versions of this model that are served now, in ascending order."""
        return [served for served in self._served() if served.manifest.name == self.manifest.name]


@dataclass(frozen=True, slots=True)
class _RegistrySnapshot:
    """What is served at one moment: the models, and which of them answers a request for a name and a version."""

    repository: Repository
    served: Mapping[LoadedModel, ServedModel] = field(default_factory=dict)  # in the order of the repository
    # A cache, filled by requests: by (name, version) as they give them, None for one that is not given
    resolved: dict[tuple[str | None, str | None], ServedModel] = field(default_factory=dict)


class Registry:
    """The models that are served, and how they change.

    Args:
        rescan: Scans the repository; called in a thread.
        add: Makes the queue and the metrics of a new model.
        remove: Ends the queue and the metrics of a model that is gone.
        period_seconds: The time between periodic scans; 0 for none.
    """

    def __init__(
        self,
        rescan: Rescan,
        add: Callable[[LoadedModel], ServedModel],
        remove: Callable[[ServedModel], None],
        *,
        period_seconds: float = 0.0,
    ) -> None:
        # Makes a change in this process; where several workers serve, at all of them (an `EveryWorker`)
        self.change_everywhere = self.change_here
        # Asks the other workers which names a client has unloaded, before the first scan; None without workers
        self.ask_unloaded: Callable[[], Awaitable[list[str]]] | None = None
        self.listeners: list[Callable[[], Awaitable[None]]] = []  # awaited after each scan and change
        self.stopping = Stopping()  # stops a scan early, when the registry is closed
        self._rescan = rescan
        self._add = add
        self._remove = remove
        self._period = period_seconds
        self._defaults: Mapping[str, int | None] = {}  # by name: which version answers calls without one
        self.repository = Repository(starting=True)  # the result of the last scan
        self.served: Sequence[ServedModel] = ()  # by name and ascending version
        self._snapshot = _RegistrySnapshot(self.repository)
        self._changing = asyncio.Lock()  # held by a scan or a change
        self._change_task: asyncio.Task[Any] | None = None
        self._rescan_event = asyncio.Event()  # set to ask for a scan
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None  # runs `_watch`
        self._has_removed = False  # models were removed since free memory was last returned
        self.problem: str | None = None  # why the last scan failed, such as by a fetch that hangs; None if it did not

    def find(self, name: str | None, version: str | None) -> ServedModel:
        """Returns the model for a name and a version, as a request gives them; None for what it does not give.

        If no version is given, and the breaker of the default version is open, a version that works stands in: the next
        lower one, which was in use before, or else the highest. If none works, the default version is returned.
        `Repository.find` raises ModelNotFound, NotReady or NoSuchAlias.
        """
        # 1. The version that the request means, from the cache of the snapshot if it was found before
        snapshot = self._snapshot
        served = snapshot.resolved.get((name, version))
        if served is None:
            served = snapshot.served[snapshot.repository.find(name, version)]
            if len(snapshot.resolved) < _MOST_RESOLVED:
                snapshot.resolved[name, version] = served
        # 2. Another one, if that does not work
        if version is None and served.queue.breaker.open:
            versions = [model for model in self.served if model.manifest.name == served.manifest.name]
            working = [model for model in versions if not model.queue.breaker.open]
            lower = [model for model in working if model.manifest.version < served.manifest.version]
            return (lower or working or [served])[-1]
        return served

    def set_reason(self, reason: str) -> None:
        """Sets why nothing is served before the first scan, unless a reason is set already.

        The reason is logged, and is in the error of every request until the first scan.
        """
        if self.repository.reason is None:
            log.error("%s", reason)
            self._serve(replace(self.repository, reason=reason))

    async def open(self) -> None:
        """Scans the folder for the first time, and starts the task that scans it again.

        The names that a client has unloaded at the other workers are not served.

        Raises:
            CancelledError: The registry was closed meanwhile. A folder that cannot be read is a ConfigurationError.
        """
        self._loop = asyncio.get_running_loop()
        try:
            async with self._changing:
                before = self.repository
                if self.ask_unloaded is not None:
                    before = replace(before, unloaded=before.unloaded | {*await self.ask_unloaded()})
                await self._scan(before)
        except Draining:  # closed meanwhile
            raise asyncio.CancelledError from None
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends the scans; a running one stops early. The models stay served."""
        self.stopping.stop()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))

    def scan_soon(self) -> None:
        """Has the event loop start a scan. Safe in a signal handler."""
        if self._loop is not None:  # else the first scan is still to come
            with suppress(RuntimeError):  # the event loop is closed: the service has ended
                self._loop.call_soon_threadsafe(self._rescan_event.set)

    async def refresh(self, *, timed: bool = False) -> None:
        """Scans the folder, and serves its verified models; nothing changes if it cannot be read.

        A version that could not be verified is tried again, by a `timed` scan once it has rested (`scan.REST_SECONDS`).
        """
        async with self._changing:
            await self._scan(
                replace(
                    self.repository,
                    states={
                        key: state for key, state in self.repository.states.items() if timed or state[1] == float("inf")
                    },
                )
            )

    async def load(self, name: str) -> Refusal | None:
        """Serves a name again that was unloaded, and verifies its refused versions again, by a scan.

        Where several workers serve, all of them do. Returns why the highest version of the name is not served; None if
        it is.
        """
        return await self.change_everywhere("load", name)

    async def unload(self, name: str) -> None:
        """Stops serving a name, whatever is in the folder, until it is loaded by name or the server restarts."""
        await self.change_everywhere("unload", name)

    async def change_here(self, change: str, name: str) -> Refusal | None:
        """Makes a client's change, `load` or `unload`, of a name in this process.

        No scan or other change runs meanwhile. The change is made to its end even if the client leaves, because its
        scan, in another thread, would go on anyway.

        Returns:
            After a load, why the highest version is not served; otherwise None.
        """
        await self._changing.acquire()
        change_of_name: Coroutine[Any, Any, Refusal | None] = (
            self._load(name) if change == "load" else self._unload(name)
        )
        task = self._change_task = asyncio.create_task(change_of_name)  # the event loop itself keeps no task alive
        task.add_done_callback(lambda _: self._changing.release())
        return await asyncio.shield(task)

    async def _load(self, name: str) -> Refusal | None:
        """Makes the change `load` of a name in this process, with the lock `_changing` held.

        Returns why the highest version is not served; None if it is.

        Raises:
            ModelNotFound: The repository has no version of the name.
        """
        before = self.repository
        result = await self._scan(replace(before, unloaded=before.unloaded - {name}), name)
        refused = {refusal.key.version: refusal for refusal in result.refused if refusal.key.name == name}
        if not (versions := [*refused, *result.models.get(name, ())]):
            raise ModelNotFound("the repository has no version of such a model that may be served")
        return refused.get(max(versions))

    async def _unload(self, name: str) -> None:
        """Makes the change `unload` of a name in this process, with the lock `_changing` held.

        Raises:
            ModelNotFound: The name is neither served nor refused.
        """
        before = self.repository
        if name in before.unloaded:
            return
        if name not in before.models and all(refusal.key.name != name for refusal in before.refused):
            raise ModelNotFound("no such model is served")
        await self._serve_and_notify(before.without(name))
        log.info("%s is unloaded", name)

    async def _watch(self) -> None:
        """Scans again after each period, and when a scan is asked for, until the server drains."""
        while True:
            with suppress(TimeoutError):  # the period is over
                async with asyncio.timeout(self._period or None):
                    await self._rescan_event.wait()
            timed = not self._rescan_event.is_set()
            self._rescan_event.clear()
            try:
                await self.refresh(timed=timed)
            except ConfigurationError as error:
                log.error("%s; the served models stay", error)
            except Draining:
                return
            except Exception:  # an error in one scan must not end the later scans
                log.exception("an unexpected error ended the scan of the model repository; the served models stay")

    async def _scan(self, before: Repository, retry_name: str | None = None) -> Repository:
        """Scans the repository in a thread, and serves each model as soon as the scan has verified it.

        Args:
            before: The result of the last scan, perhaps with changes.
            retry_name: A name whose refused versions are verified again, even if they are unchanged.

        Returns:
            The result of the scan, which is served now.

        Raises:
            ConfigurationError: The repository cannot be scanned; what is served stays.
            Draining: The server is shutting down.
        """
        running, result = True, None
        loop = asyncio.get_running_loop()

        def serve_part(result: Repository) -> None:
            """Serves what the scan has verified so far; on the event loop."""
            if running and not self.stopping.stopped:
                self._serve(result)

        def rescan() -> Repository:
            """Scans the folder, and returns the repository that it found; first gives free memory back to the system.

            It runs in the thread.
            """
            if self._has_removed:  # by an earlier scan: by now their last requests are answered
                self._has_removed = False
                return_free_memory()
            return self._rescan(before, retry_name, lambda result: loop.call_soon_threadsafe(serve_part, result))

        try:
            scanned = await asyncio.wrap_future(in_daemon_thread("rescan", rescan))
            self.stopping.check()
            result, self.problem = scanned, None
        except ConfigurationError as error:
            self.problem = str(error)
            raise
        except Stopped as stopped:
            raise Draining("the server is shutting down", retry_after_seconds=1) from stopped
        except Exception as error:
            log.exception("an unexpected error ended the scan of the model repository")
            self.problem = "the model repository could not be scanned; the log says why"
            raise ConfigurationError(self.problem) from error
        finally:
            running = False  # what this scan publishes from now on is ignored
            # After a failed scan, what it has published stays. After a failed first one the service cannot start.
            if result is None and not before.starting:
                self._serve(replace(self.repository, unnamed=None, unverified=(), starting=False))
        await self._serve_and_notify(result)
        return result

    async def _serve_and_notify(self, result: Repository) -> None:
        """Serves the result of a scan or a change, and awaits the listeners."""
        self._serve(result)
        await self.tell_listeners()

    async def tell_listeners(self) -> None:
        """Awaits all listeners: functions that are called when the served models, or their readiness, change."""
        for listener in self.listeners:
            await listener()

    def _serve(self, result: Repository) -> None:
        """Serves the result of a scan: opens queues for new models, replaces the snapshot, removes old models."""
        # 1. Log which aliases changed.
        for name in sorted({*self.repository.aliases, *result.aliases}):
            aliases = result.aliases.get(name, {})
            if aliases != self.repository.aliases.get(name, {}):
                text = ", ".join(f"{alias} is version {version}" for alias, version in sorted(aliases.items()))
                log.info("aliases of %s: %s", name, text or "none")
        # 2. Replace the snapshot.
        before = self._snapshot.served
        served = {model: before[model] if model in before else self._add(model) for model in result}
        was_only_model = (None, None) in self._snapshot.resolved  # calls without a name were answered
        self._snapshot = _RegistrySnapshot(result, served)
        self.repository, self.served = result, list(served.values())
        # 3. Log what changes for calls without a version, or without a name.
        if not result.starting:
            self._log_defaults(result)
        with suppress(RequestError):  # if a call without name and version is answered, this puts it into `resolved`
            self.find(None, None)
        if was_only_model and (None, None) not in self._snapshot.resolved and len(result.models) > 1:
            log.warning("there are several models now, %s: calls that name none get 404", ", ".join(result.models))
        # 4. Remove models that are no longer served.
        for model, removed in before.items():
            if model not in served:
                self._remove(removed)
                self._has_removed = True

    def _log_defaults(self, result: Repository) -> None:
        """Logs which version of each name answers calls without a version, when that changes.

        A version that *stands in* for a champion which is not served is logged for a new name, too, as a warning.
        """
        defaults = {name: result.default(name) for name in result.models}
        for name, version in defaults.items():
            champion = result.champion(name)
            expected = champion or version  # without a champion, the highest version stands in for none
            stands_in = version != expected
            if version != self._defaults.get(name, expected) or (stands_in and name not in self._defaults):
                why = f", as the champion, {champion}, is not served" if stands_in and champion else ""
                level = logging.WARNING if stands_in else logging.INFO
                log.log(level, "calls of %s without a version are answered by %s%s", name, version, why)
        self._defaults = defaults


@dataclass
class EveryWorker:
    """Makes a client's change at every worker before the client gets its answer.

    Every worker has an object of this class. The worker with the client asks all workers, itself too, to call their
    handler `change`. The other workers' answers are JSON. Of its own change it needs the result itself, a refusal or an
    error, so each call has an id, under which its own handler keeps this result.
    """

    here: Callable[[str, str], Awaitable[Refusal | None]]  # makes a change in this process
    state: Callable[[], dict[str, list[str]]]  # what this process serves, and which names are unloaded
    ask: Callable[..., Awaitable[list[dict[str, Any]]]]  # has every worker call a handler; returns their answers
    handlers: MutableMapping[str, Callable[..., Awaitable[Any]]]  # by name: what this process does at such a call
    # By the id of a call from here that has no answer yet: the result of this process
    _results: dict[str, Refusal | LengthwiseError | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.handlers["change"] = self._change

    async def __call__(self, change: str, name: str) -> Refusal | None:
        """Makes a change at every worker; returns this worker's result (`Registry.change_here`), or raises its error.

        Raises:
            WorkersDiffer: Only some workers made the change, or one did not answer. The message lists what each did.
        """
        call = uuid.uuid4().hex
        self._results[call] = None
        try:
            answers = await self.ask("change", change, name, call)
        finally:
            result = self._results.pop(call)
        # Without `serves` it is no answer of the worker itself: the worker gave none in time, and `error` says so.
        silent = [answer for answer in answers if "serves" not in answer]
        if silent or len({answer["error"] is None for answer in answers}) > 1:
            outcomes = []
            for answer in answers:
                outcome = "made" if answer["error"] is None else f"failed ({answer['error']})"
                serves = "" if answer in silent else f", and serves {', '.join(answer['serves']) or 'nothing'}"
                outcomes.append(f"worker {answer['pid']} {outcome}{serves}")
            raise WorkersDiffer(f"{change} of {name} was not made at every worker: {'; '.join(outcomes)}")
        if isinstance(result, LengthwiseError):
            raise result
        return result

    async def _change(self, change: str, name: str, call: str) -> dict[str, Any]:
        """Handles the call `change` of a worker: makes the change here, and answers with this worker's state.

        The answer also has `pid`, and `error`: why the change was not made, None if it was. The result itself is kept
        in `_results` if the call with this id came from this process.
        """
        result: Refusal | LengthwiseError | None
        try:
            result = await self.here(change, name)
        except LengthwiseError as error:
            result = error
        if call in self._results:
            self._results[call] = result
        why = result.reason if isinstance(result, Refusal) else None if result is None else str(result)
        return {"pid": os.getpid(), "error": why, **self.state()}
