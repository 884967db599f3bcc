"""The registry: the models that are served now, and how they change while requests come in.

```
timer ── SIGHUP ── load ── unload         one change at a time
               │
            rescan                        in a thread: new versions are loaded and verified while others serve
               │
   add new models, replace the snapshot, remove models that are gone
```

A request finds one immutable snapshot, and keeps its model, whose queue is closed after its last request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from lengthwise.errors import ConfigurationError, Draining, ModelNotFound, RequestError
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.repository.model import LoadedModel
from lengthwise.repository.served import ServedModel
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.runtime.free_memory import return_free_memory

log = logging.getLogger("lengthwise.registry")

R = TypeVar("R")

_MOST_FOUND: Final = 256

Rescan = Callable[[Repository, str | None], Repository]  # after the last result; rejected ones of a name again


@dataclass(frozen=True, slots=True)
class _RegistrySnapshot:
    """The models that are served, and the one for requests that name neither model nor version."""

    repository: Repository = field(default_factory=lambda: Repository(starting=True))
    served: Mapping[LoadedModel, ServedModel] = field(default_factory=dict)
    unnamed: ServedModel | None = None
    found: dict[tuple[str | None, str | None], ServedModel] = field(default_factory=dict)  # what was asked for


class Registry:
    """The models that are served; `add` makes the queue and metrics of a new one, `remove` gets one that is gone."""

    def __init__(
        self,
        rescan: Rescan,
        add: Callable[[LoadedModel], ServedModel],
        remove: Callable[[ServedModel], None],
        *,
        period_seconds: float = 0.0,
        unloaded: frozenset[str] = frozenset(),
    ) -> None:
        self.everywhere: Callable[[str, str], Awaitable[Refusal | None]] | None = None  # where others serve the same
        self.listeners: list[Callable[[], Awaitable[None]]] = []  # awaited after each scan and change
        self._rescan = rescan
        self._add = add
        self._remove = remove
        self._period = period_seconds
        self._snapshot = _RegistrySnapshot(Repository(starting=True, unloaded=unloaded))
        self._changing = asyncio.Lock()
        self._change_made: asyncio.Task[Any] | None = None
        self._rescan_wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = Stopping()
        self._thread = threading.local()
        self._has_removed = False

    @property
    def stopping(self) -> Stopping:
        """Stops a scan early, when the registry is closed."""
        return self._stopping

    @property
    def repository(self) -> Repository:
        """The result of the last scan."""
        return self._snapshot.repository

    @property
    def served(self) -> Sequence[ServedModel]:
        """All models that are served, by name and ascending version."""
        return list(self._snapshot.served.values())

    def find(self, name: str | None, version: str | None) -> ServedModel:
        """The model that a request means; see `Repository.find`."""
        snapshot = self._snapshot
        if name is None and version is None and snapshot.unnamed is not None:
            return snapshot.unnamed
        found = snapshot.found.get((name, version))
        if found is None:
            found = snapshot.served[snapshot.repository.find(name, version)]
            if len(snapshot.found) < _MOST_FOUND:
                snapshot.found[name, version] = found
        return found

    async def open(self) -> None:
        """Scans the folder for the first time, and then periodically; ConfigurationError if it cannot be read."""
        self._loop = asyncio.get_running_loop()
        try:
            await self.refresh()
        except Draining:  # closed meanwhile
            raise asyncio.CancelledError from None
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends the scans; a running one stops early. The models stay served."""
        self._stopping.stop()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))

    def publish(self, result: Repository) -> None:
        """Serves what a scan has found so far, soon after it returns. Called by `rescan`, in its thread."""
        self._thread.publish(result)

    def ask(self) -> None:
        """Starts a scan soon. Safe in a signal handler."""
        if self._loop is None:  # the first scan is still to come
            return
        with suppress(RuntimeError):  # the event loop is closed: the service has ended
            self._loop.call_soon_threadsafe(self._rescan_wanted.set)

    async def refresh(self) -> None:
        """Scans the folder, and serves its verified models; nothing changes if it cannot be read."""
        async with self._changing:
            await self._look(self.repository)

    async def load(self, name: str) -> Refusal | None:
        """Scans for one name, rejected versions too, and no longer unloaded; returns why its highest is not served."""
        return await (self.load_here(name) if self.everywhere is None else self.everywhere("load", name))

    async def load_here(self, name: str) -> Refusal | None:
        """As `load`, in this process alone."""
        result = await self._to_its_end(lambda: self._look(self.repository.allowing(name), name))
        refused = {refusal.key.version: refusal for refusal in result.refused if refusal.key.name == name}
        versions = [*refused, *result.models.get(name, ())]
        if not versions:
            raise ModelNotFound("the repository has no version of such a model that may be served")
        return refused.get(max(versions))

    async def unload(self, name: str) -> None:
        """Stops serving a name, whatever is in the folder, until it is loaded by name or the server restarts."""
        await (self.unload_here(name) if self.everywhere is None else self.everywhere("unload", name))

    async def unload_here(self, name: str) -> None:
        """As `unload`, in this process alone."""
        await self._to_its_end(lambda: self._unload(name))

    async def _unload(self, name: str) -> None:
        before = self.repository
        if name in before.unloaded:
            return
        if name not in before.models and all(refusal.key.name != name for refusal in before.refused):
            raise ModelNotFound("no such model is served")
        await self._change(before.without(name))
        log.info("%s is unloaded", name)

    async def _to_its_end(self, change: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Makes a client's change alone and to its end, even if the client leaves: its scan would go on anyway."""
        await self._changing.acquire()
        task = asyncio.create_task(change())
        self._change_made = task  # the event loop itself keeps no task alive
        task.add_done_callback(lambda _: self._changing.release())
        return await asyncio.shield(task)

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period or None):
                    await self._rescan_wanted.wait()
            self._rescan_wanted.clear()
            try:
                await self.refresh()
            except ConfigurationError as error:
                log.error("%s; the served models stay", error)
            except Draining:
                return
            except Exception:  # an error in one scan must not end the later scans
                log.exception("an unexpected error ended the scan of the model repository; the served models stay")

    async def _look(self, before: Repository, again: str | None = None) -> Repository:
        running = True
        loop = asyncio.get_running_loop()

        def put(result: Repository) -> None:
            if running and not self._stopping.stopped:
                self._put(result)

        def rescan() -> Repository:
            if self._has_removed:  # by an earlier scan: by now their last requests are answered
                self._has_removed = False
                return_free_memory()
            self._thread.publish = lambda result: loop.call_soon_threadsafe(put, result)
            return self._rescan(before, again)

        try:
            result = await in_daemon_thread(rescan)
            self._stopping.check()
        except ConfigurationError:
            raise
        except Stopped as stopped:
            raise Draining("the server is shutting down", retry_after_seconds=1) from stopped
        except Exception as error:
            log.exception("an unexpected error ended the scan of the model repository")
            raise ConfigurationError("the model repository could not be scanned; the log says why") from error
        finally:
            running = False  # what this scan publishes from now on is ignored
            if not before.starting:  # after a failed first scan the service cannot start
                self._put(self.repository.settled())
        await self._change(result)
        return result

    async def _change(self, result: Repository) -> None:
        self._put(result)
        for listener in self.listeners:
            await listener()

    def _put(self, result: Repository) -> None:
        _log_aliases(self.repository, result)
        before = self._snapshot.served
        served = {model: before[model] if model in before else self._add(model) for model in result}
        unnamed = None
        with suppress(RequestError):  # such a request will get this error from `find`
            unnamed = served[result.find(None, None)]
        if self._snapshot.unnamed is not None and unnamed is None and len(result.models) > 1:
            log.warning("there are several models now, %s: calls that name none get 404", ", ".join(result.models))
        self._snapshot = _RegistrySnapshot(result, served, unnamed)
        for model, gone in before.items():
            if model not in served:
                self._remove(gone)
                self._has_removed = True


def _log_aliases(before: Repository, now: Repository) -> None:
    for name in sorted({*before.aliases, *now.aliases}):
        pointed = now.aliases.get(name, {})
        if pointed != before.aliases.get(name, {}):
            shown = ", ".join(f"{alias} is version {version}" for alias, version in sorted(pointed.items()))
            log.info("aliases of %s: %s", name, shown or "none")


async def in_daemon_thread(function: Callable[[], R]) -> R:
    """Runs a function in a thread for which the process does not wait: reading a folder may block for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def run() -> None:
        try:
            tell: Callable[[], None] = partial(_settle, done, function(), None)
        except BaseException as error:
            tell = partial(_settle, done, None, error)
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name="rescan", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
