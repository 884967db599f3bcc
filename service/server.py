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
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import uvicorn
from starlette.types import ASGIApp

from service.app import make_admin_app, make_app
from service.direct import DirectPath
from service.errors import ConfigurationError
from service.protocol import BoundedProtocol
from service.serving import Serving
from service.settings import Settings, flag, traces_exporter
from service.shortcut import Shortcut, ShortcutProtocol

if TYPE_CHECKING:
    from service.tracing import Tracer

log = logging.getLogger("lengthwise.server")

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread keeps the interpreter while others want it. A runner that comes back from the graph then waits half
a millisecond at most for the event loop to let go, instead of five."""
YOUNG_OBJECTS: Final = 10_000
"""How many objects more than before have the collector of reference cycles look at the young ones, Python's own figure
being 700: hundreds of requests wait at once, none of them is garbage, and to look costs the more, the colder they are.
No answer, refusal or closed connection leaves a cycle."""
ADMIN_CONNECTIONS: Final = 32
_LAST_WORDS_SECONDS: Final = 3
"""How long connections stay after the drain, for its last answers to get out."""
_OTHER_FILES: Final = 64
"""Files that are no callers' connections: listeners, the graph, the log, the event loop's own, the admin port's."""


class Server(uvicorn.Server):
    """uvicorn's server, with this service's signals.

    Args:
        config: uvicorn's.
        serving: What to drain.
        beside: Serves before this one does, and until it has ended.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving, beside: AdminServer | None = None) -> None:
        super().__init__(config)
        self._serving = serving
        self._beside = beside

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
        """Drains while the connections are still there to be answered; uvicorn would wait for them first."""
        left = self._serving.batcher.unanswered
        log.info("draining: %d accepted calls have no answer yet; another signal ends the process at once", left)
        draining = asyncio.create_task(self._serving.stop())
        await super().shutdown(sockets)
        await draining
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

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Looks at the model repository again."""
        self._serving.shelf.ask()


class AdminServer(uvicorn.Server):
    """The server of the admin port: in the same event loop, with connections of its own, and without signals.

    It is there before the first request and after the last, so a drain can be watched, and callers who take all
    connections of the other port take none of its.

    Args:
        config: uvicorn's.
        listener: Its socket.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the server that it stands beside."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to end."""
        await super().serve(sockets or [self._listener])


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

    tracer = wanted_tracer()
    serving = Serving(settings, tracer=tracer)
    app = make_app(serving, on_failure=failed)
    config = _config(app, settings, settings.max_connections, DirectPath(app.predict, b"/predict"))
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    with ExitStack() as stack:
        if tracer is not None:
            stack.callback(tracer.close)
        beside = None
        if settings.admin_port is not None:
            admin = _config(make_admin_app(serving), settings, ADMIN_CONNECTIONS, None)
            beside = AdminServer(admin, stack.enter_context(_listening(settings, "admin_port")))
        listener = stack.enter_context(_listening(settings, "port"))
        server = Server(config, serving, beside)
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
        log.info("listening on %s://%s:%d", scheme, settings.host, listener.getsockname()[1])
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def wanted_tracer() -> Tracer | None:
    """The tracer that OpenTelemetry's variables ask for.

    Raises:
        ConfigurationError: They ask for what is not here, or the extra is not installed.
    """
    exporter = traces_exporter()
    if exporter is None:
        return None
    try:
        from service.tracing import open_tracer
    except ImportError as error:
        raise ConfigurationError(
            f"the variables OTEL_* ask for traces, which need OpenTelemetry ({error.name} is not installed): "
            "pip install 'lengthwise[tracing]', or set OTEL_SDK_DISABLED=true"
        ) from error
    return open_tracer(exporter)


def _config(app: ASGIApp, settings: Settings, max_connections: int, taken: Shortcut | None) -> uvicorn.Config:
    """The configuration of one server, loaded.

    Raises:
        ConfigurationError: The certificates cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", _protocol(settings, max_connections, taken)),
        ws="none",
        lifespan="off" if taken is None else "auto",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + _LAST_WORDS_SECONDS,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_ca_certs=None if settings.tls_client_ca_file is None else str(settings.tls_client_ca_file),
        ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca_file is None else ssl.CERT_REQUIRED,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"the TLS files cannot be used: {error}") from error
    return config


def _protocol(settings: Settings, most: int, taken: Shortcut | None) -> Callable[..., BoundedProtocol]:
    """The HTTP protocol with this process's bounds, and its way past ASGI."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        most = max(1, min(most, files - _OTHER_FILES))
    bounds: dict[str, Any] = {"header_timeout_seconds": settings.header_timeout_seconds, "max_connections": most}
    return partial(BoundedProtocol, **bounds) if taken is None else partial(ShortcutProtocol, shortcut=taken, **bounds)


@contextmanager
def _listening(settings: Settings, option: Literal["port", "admin_port"]) -> Iterator[socket.socket]:
    """The listening socket of an option."""
    port: int = getattr(settings, option)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host}:{port}: {error.strerror}; another {flag(option)} may be free"
            ) from error
        listener.listen(2048)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()
