"""The process: one uvicorn server around the application, and an ordered end.

The first SIGTERM or SIGINT: not ready, new requests are refused, what was accepted is finished, exit 0. The second
stops at once.
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
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final, cast

import uvicorn

from service.app import make_app
from service.errors import ConfigurationError
from service.protocol import BoundedProtocol
from service.serving import Serving
from service.settings import Settings

log = logging.getLogger("lengthwise.server")

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread keeps the interpreter while others want it. A runner that comes back from the graph then waits half
a millisecond at most for the event loop to let go, instead of five."""


_OTHER_FILES: Final = 64
"""Files that are no connections: the listener, the graph, the log, the event loop's own."""


class Server(uvicorn.Server):
    """uvicorn's server, with this service's signals.

    Args:
        config: uvicorn's.
        serving: What to drain.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while serving; unlike uvicorn's, does not raise them again after a good end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
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


def serve(settings: Settings) -> None:
    """Serves until a signal.

    Raises:
        ConfigurationError: The address cannot be had, or the repository cannot be read.
    """
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    serving = Serving(settings)
    config = uvicorn.Config(
        make_app(serving, on_failure=failed),
        host=settings.host,
        port=settings.port,
        http=cast("type[asyncio.Protocol]", _protocol(settings)),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_ca_certs=None if settings.tls_client_ca_file is None else str(settings.tls_client_ca_file),
        ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca_file is None else ssl.CERT_REQUIRED,
    )
    _load(config)
    server = Server(config, serving)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    gc.freeze()
    # The signals are ours from the moment that anybody can connect.
    with _listening(settings) as listener, server.capture_signals():
        scheme = "http" if settings.tls_cert_file is None else "https"
        log.info("listening on %s://%s:%d", scheme, settings.host, listener.getsockname()[1])
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _load(config: uvicorn.Config) -> None:
    """Loads what the configuration names: here, the certificates."""
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"the TLS files cannot be used: {error}") from error


def _protocol(settings: Settings) -> Callable[..., BoundedProtocol]:
    """The HTTP protocol with this process's bounds."""
    most = settings.max_connections
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        most = max(1, min(most, files - _OTHER_FILES))
    return partial(BoundedProtocol, header_timeout_seconds=settings.header_timeout_seconds, max_connections=most)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; another --port may be free"
            ) from error
        listener.listen(2048)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()
