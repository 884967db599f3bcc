"""Where a server listens, and how many connections HTTP and gRPC may have.

Each connection needs an open file. With gRPC, HTTP and gRPC get half of the connections each.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from lengthwise.connections.listener import REFUSED
from lengthwise.connections.web_pages import is_loopback
from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings

log = logging.getLogger("lengthwise.server")

ADMIN_CONNECTIONS: Final = 32  # at most on the admin port
LEAST_FILES: Final = 32  # open files of the server itself: listeners, the graph, the log, those of the event loop
_OTHER_FILES: Final = LEAST_FILES + ADMIN_CONNECTIONS + 2 * REFUSED  # all but those of clients
_GRPC_FILES: Final = LEAST_FILES  # of gRPC itself, and of connections that it refuses


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The largest numbers of connections over HTTP and over gRPC, and of files that this process may open."""

    http: int
    grpc: int  # 0 if gRPC is off
    files: int | None  # None: no limit

    def log(self) -> None:
        """Logs the limits."""
        of_files = "" if self.files is None else f"; this process may open {self.files} files"
        log.info("connections: at most %d over HTTP, %d over gRPC%s", self.http, self.grpc, of_files)


def connection_limits(max_connections: int, *, grpc: bool) -> ConnectionLimits:
    """Raises this process's limit of open files, and returns how many connections HTTP and gRPC may have.

    The soft limit (RLIMIT_NOFILE) is raised to the hard one. Each connection needs a file, so there are at most as many
    as `max_connections` and as the files that are left. With `grpc` they are halved; else gRPC gets 0.

    Raises:
        ConfigurationError: This process may open fewer than `LEAST_FILES` files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the soft limit stays: the system allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    files = None if soft == resource.RLIM_INFINITY else soft
    if files is not None and files < LEAST_FILES:
        raise ConfigurationError(
            f"this process may open {files} files (ulimit -n), and the server alone needs {LEAST_FILES}"
        )
    if files is not None:
        max_connections = min(max_connections, files - _OTHER_FILES - (_GRPC_FILES if grpc else 0))
    grpc_connections = max_connections // 2 if grpc else 0
    return ConnectionLimits(max(1, max_connections - grpc_connections), max(1, grpc_connections) if grpc else 0, files)


def announce(settings: Settings) -> None:
    """Logs where the server listens, and a warning if anybody may call it."""
    scheme, host, port = _scheme(settings), _host(settings), settings.port
    if settings.admin_port is not None:
        log.info("listening on %s://%s:%d for /metrics, /healthz and admin calls", scheme, host, settings.admin_port)
    log.info("listening on %s://%s:%d", scheme, host, port)
    if not (is_loopback(settings.host) or settings.api_keys_file or settings.tls_client_ca_file):
        log.warning(
            "anybody who reaches %s:%d may call this service: set --api-keys-file, or --host 127.0.0.1", host, port
        )


def pages_to_try(settings: Settings) -> dict[str, str]:
    """The pages that a person may open in a browser on this machine: `{what it shows: address}`."""
    host = _host(settings)
    with suppress(ValueError):
        host = "localhost" if ip_address(settings.host).is_unspecified else host
    pages = {"every call, with examples": f"{_scheme(settings)}://{host}:{settings.port}/docs"}
    if settings.console:
        pages = {"the console": f"{_scheme(settings)}://{host}:{settings.admin_port or settings.port}/"} | pages
    return pages


def invitation(pages: Mapping[str, str]) -> str:
    """The line of the log that names the pages to try, `{what it shows: address}`: written when all workers answer."""
    return "try it: " + ", ".join(f"{address} ({what})" for what, address in pages.items())


def _host(settings: Settings) -> str:
    """The host as it stands in an address: one of IPv6 in brackets."""
    return f"[{settings.host}]" if ":" in settings.host else settings.host


def _scheme(settings: Settings) -> str:
    return "http" if settings.tls_cert_file is None else "https"
