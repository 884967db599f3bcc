"""The server process: one uvicorn server around the application, and its shutdown.

- The first SIGTERM or SIGINT begins the *drain*: the service is not ready, new requests are refused, accepted ones are
  answered, and the exit code is 0.
- The second one ends the process at once.
- SIGHUP: the model repository is read again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp

from lengthwise.application.app import Application, make_admin_app
from lengthwise.connections.draining import ConnectionDrain, DrainedConnection
from lengthwise.connections.limits import ADMIN_CONNECTIONS, announce, connection_limits, pages_to_try
from lengthwise.connections.listener import Listener, context, listening
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.http.connection import Connection
from lengthwise.http.fast_path import FastPath
from lengthwise.processes.ending import end_for_certain, leave_behind
from lengthwise.processes.worker import Worker
from lengthwise.processes.worker_count import ONE_PROCESS, WorkerCount
from lengthwise.runtime.free_memory import map_large_blocks
from lengthwise.serving import Serving
from lengthwise.settings import Settings, flag, mmap_threshold_is_set, open_telemetry_variables
from lengthwise.telemetry.call_record import configured_tracer

log = logging.getLogger("lengthwise.server")

# How long a thread keeps the interpreter lock while others wait for it (Python's default: 5 ms). So a runner that
# returns from the graph waits for the event loop for half a millisecond at most.
SWITCH_INTERVAL_SECONDS: Final = 0.0005
# The threshold of generation 0 of the garbage collector (default 700). Hundreds of requests wait at once, and to scan
# them takes time and finds nothing: no answer, refusal or closed connection leaves a reference cycle.
YOUNG_OBJECTS: Final = 10_000
_END_SECONDS: Final = 2.9  # for which the process may run after the drain
_LATE_SECONDS: Final = 1.0  # for which connections stay open after the whole time of a drain, for the last answers
_LAST_REFUSALS_SECONDS: Final = 0.1  # that the last refusals may take to be sent


class _PortServer(uvicorn.Server):
    """uvicorn's server on one port, with this service's own listener."""

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self.listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the lifespan of the application, and then accepts connections."""
        await self.lifespan.startup()
        make = partial(
            cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            keep_alive=self.listener.keep_alive,
        )
        self.listener.start(make, self.server_state.connections)
        self.started = True

    def open_connections(self) -> int:
        """The number of open connections, with those that have no protocol yet."""
        return len(self.server_state.connections) + self.listener.pending

    def draining(self) -> ConnectionDrain:
        """A drain of this server's connections."""
        connections: Any = self.server_state.connections
        return ConnectionDrain(connections, lambda: self.listener.pending)

    async def end_connections(self, draining: ConnectionDrain, seconds: float, deadline: float = 0.0) -> None:
        """Accepts the connections that are being opened, and no more, and waits until all connections have ended.

        It waits for `seconds`, or until `deadline` (on the event loop's clock), whichever is later. Connections that
        are still open then get 503, and are aborted after `_LAST_REFUSALS_SECONDS`.
        """
        clock = asyncio.get_running_loop().time
        deadline = max(deadline, clock() + seconds)
        await self.listener.close()
        await draining.wait(deadline=deadline)
        draining.refuse()
        await draining.wait(deadline=clock() + _LAST_REFUSALS_SECONDS)
        draining.abort()
        if tasks := list(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=_LAST_REFUSALS_SECONDS)
            for task in late:
                task.cancel()


class Server(_PortServer):
    """The server of the main port, which handles the signals of the process and drains `serving`.

    `admin` runs from before this server starts until after it has ended. `end_within(seconds)` is called at the first
    signal: it starts a timer that ends the process if the drain takes longer.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: Listener,
        serving: Serving,
        admin: AdminServer | None = None,
        end_within: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(config, listener)
        self._serving = serving
        self._admin = admin
        self._end_within = end_within

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal; as a worker also handles the messages of the parent."""
        worker, serving = self._serving.worker, self._serving
        if worker is not None:
            worker.handlers |= {"drain": self._drain, "reload": serving.registry.scan_soon}
            await worker.open()
        admin = None if self._admin is None else asyncio.create_task(self._admin.serve())
        try:
            await super().serve(sockets)
        finally:
            if self._admin is not None and admin is not None:
                self._admin.should_exit = True
                await admin
            if worker is not None:
                await worker.close(serving.metrics.snapshot())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains: accepted requests get their answers, and those that still arrive a 503; then all connections end."""
        log.info(
            "draining: %d accepted calls have no answer yet; another signal ends the process at once",
            self._serving.batcher.unanswered,
        )
        # First the connections that are open now get their answers, while new ones are still accepted.
        draining, connections = self.draining(), {*self.server_state.connections}
        stopping = asyncio.create_task(self._serving.stop())
        drain_end = asyncio.get_running_loop().time() + self._serving.settings.drain_seconds
        await draining.wait(deadline=drain_end, only=cast("set[DrainedConnection]", connections))
        await stopping
        # Then all connections and the lifespan (gRPC) end.
        lifespan_end = asyncio.create_task(self.lifespan.shutdown())
        await self.end_connections(draining, _LATE_SECONDS, drain_end)
        await lifespan_end
        log.info("stopped")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals in the block; unlike uvicorn's, it does not raise them again after a good end."""
        old_handlers = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        old_handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: self._serving.registry.scan_soon())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*old_handlers])  # they were blocked until now
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT: the first one begins the drain, the second ends the process."""
        if self.should_exit:
            os._exit(128 + sig)  # at once, without waiting for the threads that run batches
        self._serving.begin_draining()
        self.should_exit = True
        self._end_within(self._serving.settings.drain_seconds + _END_SECONDS)

    def _drain(self) -> None:
        """Begins the drain as a signal does, unless it has begun."""
        if not self.should_exit:
            self.handle_exit(signal.SIGTERM, None)


class AdminServer(_PortServer):
    """The server of the admin port: in the same event loop, with connections of its own, and without signals.

    It runs until the main server has ended, so that a drain can be watched. Clients that use up the connections of the
    main port take none from this one.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: the server of the main port handles the signals."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections of this port; the drain of the main port is over by then."""
        await self.end_connections(self.draining(), _LAST_REFUSALS_SECONDS)


def serve(
    settings: Settings,
    workers: WorkerCount = ONE_PROCESS,
    worker: Worker | None = None,
) -> int:
    """Serves in this process until a signal; returns the exit code.

    Args:
        settings: All options.
        workers: For the log and `/healthz`: why this process serves alone.
        worker: This process as one of several, which `supervise` has started; None if it serves alone.

    Raises:
        ConfigurationError: An option is wrong, an address or a file cannot be used, or an extra is not installed.
        BaseException: The error that ended the service.
    """  # noqa: DOC502 - what it calls raises them
    tls = context(settings)
    failures: list[BaseException] = []
    # Filled below where this process serves alone: the application logs them when it is ready. The parent of several
    # workers logs them when all are.
    addresses: dict[str, str] = {}

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    # The service and its application
    limits = connection_limits(settings.max_connections, grpc=settings.grpc_port is not None)
    tracer = configured_tracer(open_telemetry_variables())
    serving = Serving(settings, tracer=tracer, worker=worker)
    serving.workers_reason = workers.reason if worker is None else worker.reason
    app = Application(serving, on_failure=failed, addresses=lambda: addresses, grpc_connections=limits.grpc)
    _tune()
    threads = threading.enumerate()
    with ExitStack() as stack:
        end_within = stack.enter_context(end_for_certain())
        if tracer is not None:
            stack.callback(tracer.close)
        listener = partial(_listener, stack, settings, tls, worker)
        server = _main_server(app, limits.http, listener, end_within)
        # Serve. Signals are handled from the moment that clients can connect.
        stack.enter_context(server.capture_signals())
        limits.log()
        if worker is None:
            log.info("1 worker (%s)", workers.reason)
            announce(settings)
            addresses |= pages_to_try(settings)
        server.run()
    if failures:
        raise failures[0]
    leave_behind(threads)
    return 0


def _main_server(
    app: Application,
    max_connections: int,
    listener: Callable[[str, int], Listener],
    end_within: Callable[[float], None],
) -> Server:
    """Makes the server of the main port, and that of the admin port if the options have one; both count connections.

    `listener` makes the listener of a port, from the name of its option and the most connections.
    """
    serving, openings = app.serving, app.serving.openings.connections
    admin = None
    if serving.settings.admin_port is not None:
        config_of_admin = _config(make_admin_app(serving), serving, ADMIN_CONNECTIONS)
        admin = AdminServer(config_of_admin, listener("admin_port", ADMIN_CONNECTIONS))
        openings["admin"] = (admin.open_connections, ADMIN_CONNECTIONS)
    config = _config(app, serving, max_connections)
    server = Server(config, listener("port", max_connections), serving, admin, end_within)
    if serving.worker is not None:
        server.server_state.connections = serving.worker.connections()
    openings["http"] = (server.open_connections, max_connections)
    return server


def _listener(
    stack: ExitStack,
    settings: Settings,
    tls: ssl.SSLContext | None,
    worker: Worker | None,
    port: str,
    max_connections: int,
) -> Listener:
    """Makes the listener of a port, on a socket of its own, or on the one that all workers share.

    `port` is the name of the port's option. `stack` closes the socket. Workers take turns on the main port only.
    """
    make = partial(
        Listener, max_connections=max_connections, tls=tls, handshake_seconds=settings.header_timeout_seconds
    )
    if worker is None:
        return make(stack.enter_context(listening(settings.host, getattr(settings, port), flag(port))))
    turns: dict[str, Any] = {"accept_delay": worker.accept_delay} if port == "port" else {}
    return make(stack.enter_context(worker.socket(port)), is_last=worker.stop_accepting, **turns)


def _tune() -> None:
    """Sets up the interpreter for a server: short switches between threads, freed memory, few garbage collections."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    if not mmap_threshold_is_set():
        map_large_blocks()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _config(app: ASGIApp, serving: Serving, max_connections: int) -> uvicorn.Config:
    """The configuration of uvicorn for one server, loaded."""
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", protocol(app, serving.request_limits, max_connections)),
        ws="none",
        lifespan="auto" if isinstance(app, Application) else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=serving.settings.keep_alive_seconds,
    )
    config.load()
    return config


def protocol(app: ASGIApp, limits: RequestLimits, max_connections: int) -> Callable[..., Connection]:
    """A function that makes the connections of a server, with the limits of their requests.

    They answer ordinary calls without the application, unless a user added something that has to see every call.
    """
    make = partial(Connection, limits=limits, max_connections=max_connections)
    if not isinstance(app, Application):
        return make
    fast_path = FastPath(app.inference)
    return lambda **options: make(fast_path=None if app.extended() else fast_path, **options)
