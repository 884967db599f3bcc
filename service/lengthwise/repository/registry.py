"""What is served at this moment, and how that changes while requests come in.

```
a period ── SIGHUP ── load ── unload            one change at a time
                  │
               rescan            in a thread: what is new is loaded, proved and measured beside what runs
                  │
   take in what is new, put all of it in the place of what was, let go of what is gone
```

A look publishes what it has found so far: one bad version that is judged for minutes keeps no good one waiting.

Everything a request can find stands in one value that is never changed, only replaced: a request sees the models before
a change or those after it, never some of both. What it found is its own until it is answered; what is let go is closed
when the last such request is done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from lengthwise.errors import ConfigurationError, Draining, ModelNotFound, RequestError
from lengthwise.repository.contents import Refusal, Repository
from lengthwise.repository.model import Model
from lengthwise.stopping import Stopped, Stopping

log = logging.getLogger("lengthwise.shelf")

R = TypeVar("R")
S = TypeVar("S")

Rescan = Callable[[Repository, str | None], Repository]
"""Looks at the folder again: what was found before, and a name whose refused versions are judged anew; see `scan`."""


@dataclass(frozen=True, slots=True)
class _Now(Generic[S]):
    """The models of one moment, each with what serves it; and what a request means that names none, if it may."""

    repository: Repository = field(default_factory=lambda: Repository(starting=True))
    served: Mapping[Model, S] = field(default_factory=dict)
    unnamed: S | None = None


class Registry(Generic[S]):
    """The models that are served, each with what serves it.

    Args:
        rescan: Finds out what is served from now on; runs in a thread.
        take_in: Makes what serves a model.
        let_go: Told, after the change, of what served a model that is gone.
        period_seconds: How often the folder is looked at unasked; 0 for never.

    Attributes:
        listeners: Awaited after each look and each call that changes something.
    """

    def __init__(
        self,
        rescan: Rescan,
        take_in: Callable[[Model], S],
        let_go: Callable[[S], None],
        *,
        period_seconds: float = 0.0,
    ) -> None:
        self.listeners: list[Callable[[], Awaitable[None]]] = []
        self._rescan = rescan
        self._take_in = take_in
        self._let_go = let_go
        self._period = period_seconds
        self._now: _Now[S] = _Now()
        self._changing = asyncio.Lock()
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = Stopping()
        self._thread = threading.local()

    @property
    def stopping(self) -> Stopping:
        """Whether looking is to end early: once the shelf is closed."""
        return self._stopping

    @property
    def repository(self) -> Repository:
        """What was found at the last look."""
        return self._now.repository

    @property
    def served(self) -> Sequence[S]:
        """What serves, for all models by name and ascending version."""
        return list(self._now.served.values())

    def find(self, name: str | None, version: str | None) -> S:
        """What serves the model that a request means; see `Repository.find`."""
        now = self._now
        if name is None and version is None and now.unnamed is not None:
            return now.unnamed
        return now.served[now.repository.find(name, version)]

    async def open(self) -> None:
        """Looks at the folder for the first time, and from then on as often as it is to.

        Raises:
            ConfigurationError: The folder cannot be read.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await self.refresh()
        except Draining:  # it was closed meanwhile
            raise asyncio.CancelledError from None
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Looks no more; a look that goes on ends as soon as it sees that. What is served stays."""
        self._stopping.stop()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    def publish(self, found: Repository) -> None:
        """Serves what a look has found so far; called by `rescan`, in its thread. Returns before it is served."""
        self._thread.publish(found)

    def ask(self) -> None:
        """Has the folder looked at soon. Safe in a signal handler."""
        if self._loop is None:  # it will be looked at anyway
            return
        with suppress(RuntimeError):  # the loop is closed: the end has come
            self._loop.call_soon_threadsafe(self._asked.set)

    async def refresh(self) -> None:
        """Looks at the folder, and serves what is good of it.

        Raises:
            ConfigurationError: The folder cannot be read; nothing changes.
        """
        async with self._changing:
            await self._look(self.repository)

    async def load(self, name: str) -> Refusal | None:
        """Looks at the folder for a model's sake: judges anew what was refused of it, and serves it if it was unloaded.

        Returns:
            Why its highest version is not served, or None where it is. What was served before is served still.

        Raises:
            ModelNotFound: The folder has no version of it that may be served.
            ConfigurationError: The folder cannot be read; nothing changes.
        """
        async with self._changing:
            await self._look(self.repository.allowing(name), name)
            found = self.repository
        refused = {refusal.key.version: refusal for refusal in found.refused if refusal.key.name == name}
        versions = [*refused, *found.models.get(name, ())]
        if not versions:
            raise ModelNotFound("the repository has no version of such a model that may be served")
        return refused.get(max(versions))

    async def unload(self, name: str) -> None:
        """Serves a model no more, whatever is in the folder, until it is loaded by its name or the server starts again.

        Raises:
            ModelNotFound: It is not served, and nothing of it was refused.
        """
        async with self._changing:
            before = self.repository
            if name in before.unloaded:
                return
            if name not in before.models and all(refusal.key.name != name for refusal in before.refused):
                raise ModelNotFound("no such model is served")
            await self._change(before.without(name))
            log.info("%s is unloaded", name)

    async def _keep(self) -> None:
        """Looks at the folder whenever the period is over or somebody asks."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period or None):
                    await self._asked.wait()
            self._asked.clear()
            try:
                await self.refresh()
            except ConfigurationError as error:
                log.error("%s; what is served stays as it is", error)
            except Draining:
                return
            except Exception:  # whatever is wrong with one look must not be the end of looking
                log.exception("the repository could not be looked through; what is served stays as it is")

    async def _look(self, before: Repository, again: str | None = None) -> None:
        going_on = True
        loop = asyncio.get_running_loop()

        def put(found: Repository) -> None:
            if going_on:
                self._put(found)

        def rescan() -> Repository:
            self._thread.publish = lambda found: loop.call_soon_threadsafe(put, found)
            return self._rescan(before, again)

        try:
            found = await _in_thread_of_its_own(rescan)
        except ConfigurationError:
            raise
        except Stopped as stopped:
            raise Draining("the server is shutting down", retry_after_seconds=1) from stopped
        except Exception as error:
            log.exception("the repository could not be looked through")
            raise ConfigurationError("the model repository could not be looked through; the log says why") from error
        finally:
            going_on = False  # nobody waits for this look any more
            if not before.starting:  # else the service cannot start
                self._put(self.repository.settled())
        await self._change(found)

    async def _change(self, found: Repository) -> None:
        self._put(found)
        for listener in self.listeners:
            await listener()

    def _put(self, found: Repository) -> None:
        before = self._now.served
        served = {model: before[model] if model in before else self._take_in(model) for model in found}
        unnamed = None
        with suppress(RequestError):  # whoever names none is told why there is none
            unnamed = served[found.find(None, None)]
        self._now = _Now(found, served, unnamed)
        for model, gone in before.items():
            if model not in served:
                self._let_go(gone)


async def _in_thread_of_its_own(function: Callable[[], R]) -> R:
    """What a function returns or raises that runs in a thread which the end of the process does not wait for.

    The event loop's own threads are waited for, and a folder may be one that nobody can read to the end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def run() -> None:
        try:
            tell: Callable[[], None] = partial(_settle, done, function(), None)
        except BaseException as error:
            tell = partial(_settle, done, None, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name="rescan", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Completes a future, unless it was cancelled."""
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
