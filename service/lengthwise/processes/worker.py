"""One of several processes that serve together: what it reads of the others, and what it asks the parent.

```
shared memory: pid, state, beat, connections, ... of each ──> who accepts the next connection; /healthz; who hangs
channel to the parent: a call ──> the parent calls all workers ──> answers of all
```

All workers accept connections from the same sockets. The kernel wakes every worker for each connection, so one of them
might take all of a few long-lived ones. So a worker that has its part of the connections, open and waiting ones, leaves
the next one for `GIVE_WAY_SECONDS` to a worker that has fewer. A worker that is not ready leaves all to those that are.
No worker leaves any to one that hangs: whose event loop has noted no beat for `SILENT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final, cast

import numpy as np

from lengthwise.batching.runners import Cores
from lengthwise.errors import missing_extra
from lengthwise.files import share_among, shared_cores
from lengthwise.processes.channel import Channel, encode, receive_start
from lengthwise.processes.shared_memory import ABSENT, ENDING, LOADED, READY, STARTING, SharedMemory
from lengthwise.repository.modest import end_with_parent
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.settings import take_channel_of_worker
from lengthwise.telemetry.snapshots import Snapshot

BEAT_SECONDS: Final = 0.5  # between two beats
GIVE_WAY_SECONDS: Final = 0.001  # that a connection is left to others: a busy event loop needs some to see it
NOT_READY_SECONDS: Final = 0.01  # the same while this worker is not ready
# By call: for so long its answer is waited for before the parent is asked for a sign of life, and then for that
_SIGN_SECONDS: Final = {"metrics": 2.0, "statistics": 2.0, "change": 15.0}


class Connections(set[Any]):
    """A set of connections that reports its new size when a connection ends."""

    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self._note = note

    def discard(self, connection: Any) -> None:
        """Removes a connection, and reports how many are left."""
        super().discard(connection)
        self._note(len(self))


class Worker:
    """This process as one of several workers.

    Args:
        end: Its end of the channel.
        start: The content of the first message.
        descriptors: Of the shared memory and the listening sockets.
    """

    def __init__(self, end: socket.socket, start: dict[str, Any], descriptors: list[int]) -> None:
        self.index: int = start["index"]
        self.number: int = start["workers"]  # how many workers there are
        self.reason: str = start["reason"]  # why there are so many
        self.settings: dict[str, Any] = start["settings"]
        memory, *sockets = descriptors
        self._sockets = dict(zip(start["sockets"], sockets, strict=True))
        self.memory = SharedMemory(memory, self.number)
        self.counts = self.memory.counts[self.index]  # the memory of its counts
        self._others = [index for index in range(self.number) if index != self.index]  # their indices
        self.handlers: dict[str, Callable[..., Any]] = {}  # of the parent's messages, by kind
        self._end = end
        self._channel: Channel
        self._receiving: asyncio.Task[None]
        self._loop: asyncio.AbstractEventLoop
        self.is_alive: Callable[[], bool] = lambda: True  # false while a batch hangs: then no beat is noted

    @classmethod
    def of_this_process(cls) -> Worker | None:
        """This process as the first message of its parent describes it; None if the process serves alone."""
        if (descriptor := take_channel_of_worker()) is None:
            return None
        end_with_parent()  # where the kernel cannot do that, the end of the channel does
        end = socket.socket(fileno=descriptor)
        worker = cls(end, *receive_start(end))
        share_among(worker.number)  # the cores of the machine
        return worker

    @property
    def first(self) -> bool:
        """Whether this worker logs what is the same for all: it is worker 0, and was not restarted."""
        return self.index == 0 and not self.memory.table["restarts"][0]

    @property
    def restarts(self) -> int:
        """How many workers were replaced since the start of the parent."""
        return int(self.memory.table["restarts"].sum())

    @property
    def inflight(self) -> tuple[Any, int]:
        """The bytes in flight of each worker, as shared cells, and the index of this worker's cell."""
        return memoryview(self.memory.table["inflight"]), self.index

    def _states(self) -> Any:
        """The states of the other workers, as an array; one that hangs counts as absent."""
        states, silent = self.memory.table["state"][self._others], self.memory.is_silent()[self._others]
        return np.where(silent & (states != STARTING), ABSENT, states)

    @property
    def _state(self) -> float:
        return float(self.memory.table["state"][self.index])

    def set_ready(self, ready: bool) -> None:
        """Shows the other workers whether this one would answer requests."""
        if self._state != ENDING:
            self.memory.put(self.index, state=READY if ready else min(self._state, LOADED))

    async def wait_for_others(self, *, serves: bool) -> None:
        """Waits until all workers have loaded their models, so that connections are spread from the first one on.

        `serves`: whether this one has a model. The parent answers after `TOGETHER_SECONDS` in any case.
        """
        if self._state != ENDING:
            self.memory.put(self.index, state=LOADED)
        await self._channel.call("loaded", serves)

    def accept_delay(self, connections: int, waiting: int = 0) -> float:
        """For how many seconds this worker leaves the next connection to the others, by the rules of the module.

        Also writes `connections`, the number that this worker has, into the shared memory; `waiting` is the number of
        those that wait in the kernel.

        - 0: it accepts the connection, because it has fewer than its part, or no other worker is ready.
        - `GIVE_WAY_SECONDS`: a worker with fewer connections should take it.
        - `-NOT_READY_SECONDS`: this worker is not ready. The sign tells the `Listener` to wait in any case.
        """
        self.memory.put(self.index, connections=connections)
        others_counts = self.memory.table["connections"][self._others][self._states() == READY]
        if not len(others_counts):  # no other worker is ready
            return 0.0
        if self._state != READY:
            return -NOT_READY_SECONDS
        fair_share = (others_counts.sum() + connections + waiting) // (len(others_counts) + 1)
        return 0.0 if connections < fair_share or connections <= others_counts.min() else GIVE_WAY_SECONDS

    def cores(self, local: int) -> Cores:
        """The `local` cores of this worker, with the cores of all workers, which it may borrow."""
        return Cores(local, shared_cores(), cast("Any", memoryview(self.memory.table["batches"])), self.index)

    def connections(self) -> Connections:
        """A set for the connections of this worker, whose size the other workers see."""
        return Connections(lambda count: self.memory.put(self.index, connections=count))

    def stop_accepting(self) -> bool:
        """Notes that this worker accepts no more connections; returns whether no other worker accepts any."""
        self.memory.put(self.index, state=ENDING)
        return not np.isin(self._states(), (STARTING, LOADED, READY)).any()

    def _beat(self) -> None:
        """Notes the time in shared memory every `BEAT_SECONDS`: a worker whose beat is old counts as hanging."""
        if self.is_alive():
            self.memory.put(self.index, beat=time.monotonic())
        self._loop.call_later(BEAT_SECONDS, self._beat)

    async def open(self) -> None:
        """Handles the messages of the parent from now on, and tells it so (`up`)."""
        self._loop = asyncio.get_running_loop()
        self._beat()
        self._channel = await Channel.open(self._end.dup(), self.handlers)
        self._receiving = asyncio.ensure_future(self._receive())
        self._channel.send("up")

    async def _receive(self) -> None:
        """Handles messages until the parent is gone, and then ends this process."""
        await self._channel.receive()
        os._exit(1)  # frees the ports for a new parent

    def report(self, error: Exception) -> bool:
        """Tells the parent why this worker cannot start, and returns True: the parent logs that once for all workers.

        Does nothing, and returns False, if this worker replaces one that has ended. Then other workers serve, the
        parent does not log the error, and the caller has to. So it is with a missing module that no extra installs.
        """
        reason = (
            missing_extra(error, "serve", "'lengthwise serve'")
            if isinstance(error, ModuleNotFoundError)
            else str(error)
        )
        if reason is None or self.memory.table["restarts"][self.index]:
            return False
        with suppress(OSError):  # the parent is gone
            self._end.sendall(encode("failed", reason))
        return True

    def socket(self, name: str) -> socket.socket:
        """The socket of a port (its option), on which the parent listens."""
        shared = socket.socket(fileno=self._sockets[name])
        shared.setblocking(False)
        return shared

    def forget(self, model: tuple[str, str], counts: Snapshot) -> None:
        """Tells the parent the counts of a model that this worker counts no more."""
        self._channel.send("forgot", model, counts)

    async def close(self, last: Snapshot) -> None:
        """Tells the parent the last counts of this worker."""
        await self._channel.call("last", last)

    def send_from_thread(self, kind: str, *content: Any) -> None:
        """Sends the parent a message, from another thread than the event loop's."""
        self._loop.call_soon_threadsafe(self._channel.send, kind, *content)

    async def ask(self, kind: str, *content: Any) -> list[Any]:
        """Calls the parent, and returns the list that it answers.

        - `metrics`, with the metrics of this worker: those of all others.
        - `statistics`: those of all others that answer.
        - `change`: the answer of each worker, this one included.
        - `unloaded`: the names of unloaded models, before the first scan; it waits for them for as long as it takes.

        A parent that is stopped or hangs answers nothing. It is found out in twice the `_SIGN_SECONDS`: then `metrics`
        and `statistics` are of this worker alone, and a `change` has failed at the parent.
        """
        seconds = _SIGN_SECONDS.get(kind)
        answer = asyncio.ensure_future(self._channel.call(kind, *content))
        try:
            while not (await asyncio.wait((answer,), timeout=seconds))[0]:  # it may take its time, as at a verification
                await asyncio.wait_for(self._channel.call("alive"), seconds)
        except TimeoutError:
            return (
                [
                    {
                        "pid": os.getppid(),
                        "error": "the parent of the workers has not answered, and makes the change later",
                    }
                ]
                if kind == "change"
                else []
            )
        finally:
            answer.cancel()
        return list(answer.result())

    def ask_from_thread(self, stopping: Stopping, kind: str, *content: Any) -> Any:
        """Calls the parent from another thread than the event loop's, and returns its answer.

        Raises:
            Stopped: `stopping` was set while the thread waited.
        """
        call = asyncio.run_coroutine_threadsafe(self._channel.call(kind, *content), self._loop)
        try:
            with stopping.ending(call.cancel):
                return call.result()
        except CancelledError:
            raise Stopped from None
