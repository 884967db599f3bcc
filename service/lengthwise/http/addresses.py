"""Where a server listens, and what it says of that."""

from __future__ import annotations

import logging
from contextlib import suppress
from ipaddress import ip_address

from lengthwise.connections.web_pages import is_loopback
from lengthwise.settings import Settings

log = logging.getLogger("lengthwise.server")


def announce(settings: Settings) -> None:
    """Says in the log where the server listens, and warns if anybody may call it."""
    scheme, host, port = _scheme(settings), settings.host, settings.port
    if settings.admin_port is not None:
        log.info("listening on %s://%s:%d for /metrics, /healthz and admin calls", scheme, host, settings.admin_port)
    log.info("listening on %s://%s:%d", scheme, host, port)
    if not (is_loopback(host) or settings.api_keys_file or settings.tls_client_ca_file):
        log.warning(
            "anybody who reaches %s:%d may call this service: set --api-keys-file, or --host 127.0.0.1", host, port
        )


def to_try(settings: Settings) -> dict[str, str]:
    """What a person may open in a browser on this machine, by what is there."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    with suppress(ValueError):
        host = "localhost" if ip_address(settings.host).is_unspecified else host
    found = {"every call, with examples": f"{_scheme(settings)}://{host}:{settings.port}/docs"}
    if settings.console:
        found = {"the console": f"{_scheme(settings)}://{host}:{settings.admin_port or settings.port}/"} | found
    return found


def _scheme(settings: Settings) -> str:
    return "http" if settings.tls_cert_file is None else "https"
