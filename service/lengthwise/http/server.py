"""The process: one uvicorn server around the application, and an ordered end.

The first SIGTERM or SIGINT: not ready, new requests are refused, what was accepted is finished, exit 0. The second
stops at once. SIGHUP: the model repository is looked at again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from starlette.types import ASGIApp

from lengthwise.connections.draining import ConnectionDrain, DrainedConnection
from lengthwise.connections.listener import REJECTED, Listener, listening
from lengthwise.connections.tls import context
from lengthwise.errors import ConfigurationError
from lengthwise.http.app import make_admin_app, make_app
from lengthwise.http.connection import BoundedConnection
from lengthwise.http.ending import LastResort, leave_behind
from lengthwise.http.fast_path import FastConnection
from lengthwise.http.fast_request import FastPath
from lengthwise.repository import scan
from lengthwise.serving import Serving
from lengthwise.settings import Settings, flag, traces_exporter

if TYPE_CHECKING:
    from lengthwise.telemetry.tracing import Tracer

log = logging.getLogger("lengthwise.server")

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread keeps the interpreter while others want it. A runner that comes back from the graph then waits half
a millisecond at most for the event loop to let go, instead of five."""
YOUNG_OBJECTS: Final = 10_000
"""How many objects more than before have the collector of reference cycles look at the young ones, Python's own figure
being 700: hundreds of requests wait at once, none of them is garbage, and to look costs the more, the colder they are.
No answer, refusal or closed connection leaves a cycle."""
ADMIN_CONNECTIONS: Final = 32
_END_SECONDS: Final = 2.9
"""How long after the drain the process is there at most."""
_LATE_SECONDS: Final = 1.0
"""How long connections stay after a drain that took all of its time: those that came last, and the last answers."""
_LAST_WORDS_SECONDS: Final = 0.1
"""How long what is said to the last of them may take to leave."""
LEAST_FILES: Final = 32
"""Files that the server needs for itself: listeners, the graph, the log, the event loop's own."""
_OTHER_FILES: Final = LEAST_FILES + ADMIN_CONNECTIONS + 2 * REJECTED
"""Files that are no callers' connections: its own, the admin port's, those of callers who are told that there are too
many."""


class _PortServer(uvicorn.Server):
    """uvicorn's server on a listener of this service's own.

    Args:
        config: uvicorn's.
        listener: Takes its connections.
    """

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self.listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and then takes connections."""
        await self.lifespan.startup()
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        self.listener.start(
            partial(make, config=self.config, server_state=self.server_state, app_state=self.lifespan.state),
            self.server_state.connections,
        )
        self.started = True

    def draining(self) -> ConnectionDrain:
        """What waits for this server's connections."""
        connections = cast("set[DrainedConnection]", self.server_state.connections)
        return ConnectionDrain(connections, lambda: self.listener.pending, asyncio.get_running_loop().time)

    async def farewell(self, draining: ConnectionDrain, seconds: float, until: float = 0.0) -> None:
        """Takes what is on its way in, and ends every connection; whoever has not said all of a request is told.

        Args:
            draining: Waits for them.
            seconds: How long they have at least.
            until: How long they have anyway, on the event loop's clock.
        """
        clock = asyncio.get_running_loop().time
        until = max(until, clock() + seconds)
        await self.listener.close()
        await draining.wait(until=until)
        draining.tell()
        await draining.wait(until=clock() + _LAST_WORDS_SECONDS)
        draining.abort()
        if tasks := list(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=_LAST_WORDS_SECONDS)
            for task in late:
                task.cancel()


class Server(_PortServer):
    """The server of the port that everybody calls, with this service's signals.

    Args:
        config: uvicorn's.
        listener: Takes its connections.
        serving: What to drain.
        beside: Serves before this one does, and until it has ended.
        last_resort: Told that the end begins.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: Listener,
        serving: Serving,
        beside: AdminServer | None = None,
        last_resort: LastResort | None = None,
    ) -> None:
        super().__init__(config, listener)
        self._serving = serving
        self._beside = beside
        self._last_resort = last_resort

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal."""
        if self._beside is None:
            await super().serve(sockets)
            return
        beside = asyncio.create_task(self._beside.serve())
        try:
            await super().serve(sockets)
        finally:
            self._beside.should_exit = True
            await beside

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains: who is there, and who still comes, is answered; then the listener is closed, and the rest ended."""
        left = self._serving.batcher.unanswered
        log.info("draining: %d accepted calls have no answer yet; another signal ends the process at once", left)
        draining, there = self.draining(), set(self.server_state.connections)
        stopping = asyncio.create_task(self._serving.stop())
        until = asyncio.get_running_loop().time() + self._serving.settings.drain_seconds
        await draining.wait(until=until, only=cast("set[DrainedConnection]", there))
        await stopping
        ended = asyncio.create_task(self.lifespan.shutdown())
        await self.farewell(draining, _LATE_SECONDS, until)
        await ended
        log.info("stopped")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while serving; unlike uvicorn's, does not raise them again after a good end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.handle_reload)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain; the second ends the process."""
        if self.should_exit:
            os._exit(128 + sig)  # at once: the runners' threads are inside the runtime
        self._serving.batcher.begin_draining()
        self.should_exit = True
        if self._last_resort is not None:
            self._last_resort.begin()

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Looks at the model repository again."""
        self._serving.shelf.ask()


class AdminServer(_PortServer):
    """The server of the admin port: in the same event loop, with connections of its own, and without signals.

    It is there before the first request and after the last, so a drain can be watched, and callers who take all
    connections of the other port take none of its.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the server that it stands beside."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends its connections: the drain is over."""
        await self.farewell(self.draining(), _LAST_WORDS_SECONDS)


def serve(settings: Settings) -> None:
    """Serves until a signal.

    Raises:
        ConfigurationError: An address cannot be had, the repository, the keys or the certificates cannot be read, or
            what traces need is not installed.
    """
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    most = _most_connections(settings)
    scan.check_readable(settings.models)
    tls = context(settings)
    tracer = wanted_tracer()
    serving = Serving(settings, tracer=tracer)
    app = make_app(serving, on_failure=failed)
    config = _config(app, settings, most, FastPath(app.predict, b"/predict"))
    listener = partial(Listener, tls=tls, handshake_seconds=settings.header_timeout_seconds)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    threads = threading.enumerate()
    with ExitStack() as stack:
        last_resort = stack.enter_context(LastResort(settings.drain_seconds + _END_SECONDS))
        if tracer is not None:
            stack.callback(tracer.close)
        beside = None
        if settings.admin_port is not None:
            admin = _config(make_admin_app(serving), settings, ADMIN_CONNECTIONS, None)
            taken = stack.enter_context(listening(settings.host, settings.admin_port, flag("admin_port")))
            beside = AdminServer(admin, listener(taken, most=ADMIN_CONNECTIONS))
        taken = stack.enter_context(listening(settings.host, settings.port, flag("port")))
        server = Server(config, listener(taken, most=most), serving, beside, last_resort)
        # The signals are ours from the moment that anybody can connect.
        stack.enter_context(server.capture_signals())
        scheme = "http" if settings.tls_cert_file is None else "https"
        if settings.admin_port is not None:
            log.info(
                "listening on %s://%s:%d for /metrics, /healthz and admin calls",
                scheme,
                settings.host,
                settings.admin_port,
            )
        log.info("listening on %s://%s:%d", scheme, settings.host, taken.getsockname()[1])
        server.run()
    if failures:
        raise failures[0]
    leave_behind(threads)


def wanted_tracer() -> Tracer | None:
    """The tracer that OpenTelemetry's variables ask for.

    Raises:
        ConfigurationError: They ask for what is not here, or the extra is not installed.
    """
    exporter = traces_exporter()
    if exporter is None:
        return None
    try:
        from lengthwise.telemetry.tracing import open_tracer
    except ImportError as error:
        raise ConfigurationError(
            f"the variables OTEL_* ask for traces, which need OpenTelemetry ({error.name} is not installed): "
            "pip install 'lengthwise[tracing]', or set OTEL_SDK_DISABLED=true"
        ) from error
    return open_tracer(exporter)


def _config(app: ASGIApp, settings: Settings, most: int, taken: FastPath | None) -> uvicorn.Config:
    """The configuration of one server, loaded."""
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", _protocol(settings, most, taken)),
        ws="none",
        lifespan="off" if taken is None else "auto",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
    config.load()
    return config


def _protocol(settings: Settings, most: int, taken: FastPath | None) -> Callable[..., BoundedConnection]:
    """The HTTP protocol with this process's bounds, and its way past ASGI."""
    bounds: dict[str, Any] = {"header_timeout_seconds": settings.header_timeout_seconds, "max_connections": most}
    return partial(BoundedConnection, **bounds) if taken is None else partial(FastConnection, fast_path=taken, **bounds)


def _most_connections(settings: Settings) -> int:
    """How many connections there may be, within the files that this process may open.

    Raises:
        ConfigurationError: They would not do for the server alone.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    if files < LEAST_FILES:
        raise ConfigurationError(
            f"this process may open {files} files (ulimit -n), and the server alone needs {LEAST_FILES}"
        )
    return max(1, min(settings.max_connections, files - _OTHER_FILES))
