"""Serves gRPC calls on the event loop, straight from the events of gRPC's core.

`grpc.aio` takes two to three times as long for a call that does nothing as this does (`python -m benchmarks.protocols`
measures both): it makes several coroutines and tasks for each. So this does what both of gRPC's servers for Python do,
on the same functions of its core (`cygrpc`), and no more than the calls here need: bytes in, bytes out. One thread
waits for events, and the event loop handles all that have come at once.

The core works in *operations* (send a message, receive one, ...). A batch of operations is started with a *tag*: a
function that is called with the event when the batch is done.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

from lengthwise.connections.unread import PATIENCE_SECONDS
from lengthwise.protocols.turns import Turns, believed_bytes

log = logging.getLogger("lengthwise.grpc")

_REQUESTED: Final = 3  # calls that the core may hand over before it is asked for more
_EVENTS_AT_ONCE: Final = 64  # that are handled in one turn of the event loop
_NO_FLAGS: Final = 0
_LOOKS: Final = 8  # how often in `PATIENCE_SECONDS` calls are ended whose clients read nothing
# Messages are inflated here, so that their size on the way is known as well.
_COMPRESSED_AS_THEY_COME: Final = ("grpc.per_message_decompression", 0)
_INFLATED_HERE: Final = 65_536  # bytes of the largest inflated message that the event loop inflates itself
# How a gzip and a zlib stream begin, which no message does that has its own fields first: gRPC does not say which
# messages it leaves compressed.
_COMPRESSED: Final = (b"\x1f\x8b", b"\x78")
_GZIP_OR_ZLIB: Final = 32
_NO_DEADLINE_SECONDS: Final = 1e12  # since the epoch: the core writes no deadline as one far beyond
# A client's deadline begins when it calls, and here when the call arrives: it may pass there this much earlier.
_SHARE_OF_A_DEADLINE: Final = 0.1

Handler: TypeAlias = "Callable[[RpcCall], Coroutine[Any, Any, None] | None]"
"""Answers a call, in a coroutine that is cancelled with the call, or by callbacks."""
Metadata: TypeAlias = Sequence[tuple[str, str]]


class RpcCall:
    """One call, or stream, of a client; used on the event loop only."""

    def __init__(self, event: Any, unread: dict[RpcCall, float], turns: Turns, max_bytes: int) -> None:
        self._call: Any = event.call
        self._unread = unread  # the server's; see there
        self._turns = turns  # of connections that have messages to be inflated
        self._max_bytes = max_bytes  # of an inflated message
        self._inflation: asyncio.Task[bytes | None] | None = None  # while it waits for its turn
        self.method: str = event.call_details.method.decode("ascii", "replace")  # `/package.Service/Method`
        self._deadline: float = event.call_details.deadline  # on the clock of `time.time`
        # From then on, a client that cancels does so because of its deadline.
        self._late_from: float = self._deadline - _SHARE_OF_A_DEADLINE * (self._deadline - time.time())
        self.metadata: Sequence[tuple[str, str | bytes]] = event.invocation_metadata or ()  # names and values
        self.peer: str = self._call.peer().decode()  # as gRPC writes it: `ipv6:%5B::1%5D:50123`
        self.client = _client_of(self.peer)  # `ADDRESS:PORT`, as `AcceptedConnections` names it
        self.cancelled = False  # whether the client cancelled it, left, or set a deadline that has passed
        self.on_cancel: Callable[[], object] | None = None  # called when `cancelled` becomes True
        # Called when a message is received, with its number of bytes before it is inflated
        self.on_message: Callable[[int], object] | None = None
        # Called when all bytes of a message are here, before it waits to be inflated
        self.on_complete: Callable[[], object] | None = None
        self._end_callbacks: list[Callable[[], None]] = []  # of `on_end`
        self._operations = 0  # that are not done
        self._is_over = False  # all operations are done
        self._sent_head = False  # whether the initial metadata was sent
        self._status: tuple[grpc.StatusCode, str, Metadata] | None = None  # the final one
        self._start_operations((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    @property
    def finished(self) -> bool:
        """Whether the call has its status; nothing that is sent afterwards arrives."""
        return self._status is not None

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline, 0 where it has passed; None without one."""
        return None if self._deadline > _NO_DEADLINE_SECONDS else max(0.0, self._deadline - time.time())

    def is_late(self) -> bool:
        """Whether a client that leaves now does so because of its deadline, which began earlier there than here."""
        return time.time() >= self._late_from

    def run(self, handler: Handler) -> None:
        """Runs the handler of the call. If that is a coroutine function, a task runs it, and its return ends the call.

        Else the handler returns at once, and callbacks end the call later. A cancelled call cancels the task.
        """
        if (coroutine := handler(self)) is not None:
            self.on_cancel = asyncio.get_running_loop().create_task(self._run(coroutine)).cancel

    async def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the coroutine of a handler, and ends its call: with OK; with UNKNOWN for an error, which is logged."""
        try:
            await coroutine
            self.finish()
        except asyncio.CancelledError:
            self.cancel()
        except Exception:
            log.exception("the call of %s failed", self.method)
            self.finish(grpc.StatusCode.UNKNOWN, "the call could not be answered")

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has `callback` called at the end of the call: its answer was sent, or it was cancelled. May be at once."""
        if self._is_over:
            callback()
        else:
            self._end_callbacks.append(callback)

    def receive(self, on_received: Callable[[bytes | None], None]) -> None:
        """Receives the next message and calls `on_received` with it, or with None after the last. One at a time."""

        def done(event: Any) -> None:
            """Passes the message on, inflated if it is compressed."""
            message = event.batch_operations[0].message()
            if message is not None and self.on_message is not None:
                self.on_message(len(message))
            if message is not None and self.on_complete is not None:
                self.on_complete()
            if message and message.startswith(_COMPRESSED):
                self._receive_inflated(message, on_received)
            else:
                on_received(message)

        self._start_operations((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), done)

    def _receive_inflated(self, message: bytes, on_received: Callable[[bytes | None], None]) -> None:
        """Inflates a message and passes it to `on_received`; ends the call if it is larger than `_max_bytes`.

        A small message is inflated at once. For a large one a task waits until it is the connection's turn, and
        inflates it in a thread; if it has more bytes than were believed, the task waits again. That counts as an
        operation of the call, so that the call does not end before.
        """
        inflated, read_bytes = _inflate(message, min(_INFLATED_HERE, self._max_bytes))
        if inflated is not None or self._max_bytes <= _INFLATED_HERE:
            self._received_inflated(on_received, inflated)
            return

        async def in_turn() -> bytes | None:
            """Inflates the message in a thread, when it is the connection's turn; None if it is too large."""
            # As large as it would be if all of it were like its beginning
            likely = min(_INFLATED_HERE * len(message) // read_bytes, self._max_bytes)
            size = believed_bytes(len(message), self._max_bytes, likely)
            while True:
                async with self._turns.turn(self.client, size, math.inf, work="inflate", likely=likely) as reading:
                    self._inflation = None  # a thread cannot be cancelled
                    inflated, _ = await asyncio.to_thread(_inflate, message, size)
                    reading.size = size if inflated is None else len(inflated)
                    if inflated is not None or size == self._max_bytes or self.cancelled:
                        return inflated
                    reading.size = 0
                    self._inflation = asyncio.current_task()
                likely, size = size, believed_bytes(size, self._max_bytes)

        def done(inflating: asyncio.Task[bytes | None]) -> None:
            """Ends the operation of the inflation: passes the message on, unless the call was cancelled meanwhile."""
            self._inflation = None
            self._done(lambda _: None if inflating.cancelled() else finished(inflating.result()), None)

        finished = partial(self._received_inflated, on_received)
        self._operations += 1
        self._inflation = asyncio.get_running_loop().create_task(in_turn())
        self._inflation.add_done_callback(done)

    def _received_inflated(self, on_received: Callable[[bytes | None], None], message: bytes | None) -> None:
        """Passes an inflated message on. None: it was too large, so the call ends first."""
        if message is None:
            self.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, "the inflated message is too large")
        on_received(message)

    async def read(self) -> bytes | None:
        """Waits for the next message and returns it; None after the last. One at a time."""
        message: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.receive(lambda body: None if message.done() else message.set_result(body))
        return await message

    def write(self, message: bytes, on_sent: Callable[[], None]) -> None:
        """Sends a message of a stream. The next one may be sent when `on_sent` is called."""

        def done(_: object) -> None:
            """Called when the message is sent: then the client has read what was sent before."""
            if not self.finished:  # else the status was sent since, which the client has not read yet
                self._unread.pop(self, None)
            on_sent()

        self._unread[self] = time.monotonic()
        self._start_operations((*self._head(), cygrpc.SendMessageOperation(message, _NO_FLAGS)), done)

    async def send(self, message: bytes) -> None:
        """Sends a message of a stream, and waits until the next one may be sent."""
        sent = asyncio.get_running_loop().create_future()
        self.write(message, lambda: None if sent.done() else sent.set_result(None))
        await sent

    def finish(
        self,
        code: grpc.StatusCode = grpc.StatusCode.OK,
        details: str = "",
        trailing: Metadata = (),
        message: bytes | None = None,
    ) -> None:
        """Ends the call with a status, after the one message of a unary answer; a second call does nothing."""
        if self._status is not None:
            return
        self._status = code, details, trailing
        if self.cancelled:
            return
        status = cygrpc.SendStatusFromServerOperation(trailing, code.value[0], details.encode(), _NO_FLAGS)
        messages = () if message is None else (cygrpc.SendMessageOperation(message, _NO_FLAGS),)
        self._unread[self] = time.monotonic()
        self._start_operations((*self._head(), *messages, status), lambda _: None)

    def cancel(self) -> None:
        """Resets the call: the client gets no more of it."""
        if not self._is_over:
            self._call.cancel()

    def _head(self) -> tuple[Any, ...]:
        """The operation that sends the initial metadata, for the first batch of the call; later ()."""
        if self._sent_head:
            return ()
        self._sent_head = True
        return (cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _start_operations(self, operations: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        """Starts a batch of operations; `done` is called with its event when they are done."""
        self._operations += 1
        self._call.start_server_batch(operations, partial(self._done, done))

    def _done(self, done: Callable[[Any], None], event: Any) -> None:
        """Handles the event of a batch of operations that is done: calls `done` with it.

        If no operation is open after that, the call is over, and the callbacks of `on_end` are called. The operation
        that waits for the end of the call is open all the time (`__init__`), so that is not before the call has ended.
        """
        self._operations -= 1
        done(event)
        if self._operations == 0 and not self._is_over:
            self._is_over, self.on_cancel = True, None
            self._unread.pop(self, None)
            end_callbacks, self._end_callbacks = self._end_callbacks, []
            for callback in end_callbacks:
                callback()

    def _closed(self, event: Any) -> None:
        """Handles the end of the whole call; if the client cancelled it, what runs for it is cancelled too."""
        self.cancelled = bool(event.batch_operations[0].cancelled())
        if self.cancelled and self._inflation is not None:
            self._inflation.cancel()
        if self.cancelled and self.on_cancel is not None:
            self.on_cancel()
        self.on_cancel = None


def _inflate(message: bytes, max_bytes: int) -> tuple[bytes | None, int]:
    """Inflates a message that may be compressed with gzip or zlib; also returns how many of its bytes were read.

    Returns, in place of the inflated message:

    - the message as it is, if it is not compressed or not complete;
    - None, if it has more than `max_bytes` bytes when it is inflated; then only a part of it was read.
    """
    inflater = zlib.decompressobj(zlib.MAX_WBITS | _GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(message, max_bytes + 1)
    except zlib.error:
        return message, len(message)
    if len(inflated) > max_bytes:
        return None, len(message) - len(inflater.unconsumed_tail)
    return inflated if inflater.eof else message, len(message)


@lru_cache
def _client_of(peer: str) -> str:
    """The client of a peer as gRPC writes it: `[::1]:50123` without brackets."""
    return unquote(peer).partition(":")[2].replace("[", "").replace("]", "")


class RpcServer:
    """Accepts calls, and has the event loop run `begin` for each.

    A call is cancelled if its client does not read what is sent to it within `PATIENCE_SECONDS`. No message may be
    larger than `max_message_bytes`, as it comes and when it is inflated; large ones are inflated in `turns`,
    by default in slots of its own.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        max_message_bytes: int,
        begin: Callable[[RpcCall], None],
        turns: Turns | None = None,
    ) -> None:
        self._queue = cygrpc.CompletionQueue()
        limits = ("grpc.max_receive_message_length", max_message_bytes), _COMPRESSED_AS_THEY_COME
        self._server = cygrpc.Server((*options, *limits), False)
        self._server.register_completion_queue(self._queue)
        self._begin = begin
        self._max_message_bytes = max_message_bytes
        self._turns = turns or Turns()
        self._unread: dict[RpcCall, float] = {}  # calls whose clients have yet to read something, and since when
        self._wake_event: Any = None  # the event with which the thread wakes the loop
        self._had_events = False  # whether the loop handled some since it was woken, or since its last look
        self._polling = threading.Lock()  # the thread waits for it while the loop polls for events itself
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()  # done when all calls have ended

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Binds an address; returns its port, or 0 if it cannot be bound."""
        credential = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]
        return int(self._server.add_http2_port(address.encode(), *credential))

    def start(self) -> None:
        """Begins to accept calls."""
        self._server.start()
        for _ in range(_REQUESTED):
            self._request()
        threading.Thread(target=self._wait, name="grpc", daemon=True).start()
        self._cancel_unread()

    async def stop(self, seconds: float) -> None:
        """Accepts no more calls, waits for those that are open, and cancels the remaining ones after some seconds."""
        if self._stopping:
            return
        self._stopping = True
        self._server.shutdown(self._queue, lambda _: self._stopped.set_result(None))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._stopped)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._stopped
        self._server.destroy()
        self._queue.shutdown()

    def _cancel_unread(self) -> None:
        """Cancels the calls whose clients have read nothing for `PATIENCE_SECONDS`, and repeats itself regularly."""
        deadline = time.monotonic() - PATIENCE_SECONDS
        for call in [call for call, since in self._unread.items() if since < deadline]:
            call.cancel()
        if not self._stopping:
            self._loop.call_later(PATIENCE_SECONDS / _LOOKS, self._cancel_unread)

    def _request(self) -> None:
        """Asks the core for the next call."""
        self._server.request_call(self._queue, self._queue, self._requested)

    def _requested(self, event: Any) -> None:
        """Begins a new call, and asks the core for another one."""
        if not event.success:  # the server has stopped
            return
        if not self._stopping:
            self._request()
        self._begin(RpcCall(event, self._unread, self._turns, self._max_message_bytes))

    def _wait(self) -> None:
        """Runs in a thread: waits for an event, and has the event loop run `_handle`, for this event and the next ones.

        Then it waits until `_handle` has released the lock.
        """
        while True:
            self._polling.acquire()
            event = self._queue.poll()
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return
            self._wake_event = event
            del event  # it may hold the last reference to a call
            try:
                self._loop.call_soon_threadsafe(self._handle)
            except RuntimeError:  # the loop has ended without stopping the server
                return

    def _handle(self) -> None:
        """Handles the events that have come: calls the tag of each with it, for at most `_EVENTS_AT_ONCE` events.

        It runs in one turn of the event loop, and again in the next ones, until a turn has none. Only then it releases
        the lock that keeps the thread from waiting for events: a thread that hands over each event takes longer.
        """
        event, self._wake_event = self._wake_event, None  # first the event with which the thread woke the loop
        for _ in range(_EVENTS_AT_ONCE):
            if event is None:
                event = self._queue.poll(0)
            if event.completion_type != cygrpc.CompletionType.operation_complete:
                break
            try:
                event.tag(event)
            except Exception:
                log.exception("an event of gRPC could not be handled")
            event, self._had_events = None, True
        if self._had_events:
            self._had_events = False
            self._loop.call_soon(self._handle)  # the answers of this turn may bring the next ones
        else:
            self._polling.release()
