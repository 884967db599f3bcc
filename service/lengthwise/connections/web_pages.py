"""Which web pages may call: those of the service, and of the origins that `--cors-origins` names.

A browser lets any page send a POST, and says only in headers which page it was; other programs send no such headers. A
page can also give its own host name the address 127.0.0.1 later (DNS rebinding), and then read answers. So a service on
a loopback address without keys answers only under host names that no other site can have: `localhost`, IP addresses,
and names without a dot.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from lengthwise.errors import Forbidden, Misdirected

HOST: Final = b"host"
ORIGIN: Final = b"origin"
SITE: Final = b"sec-fetch-site"
_OWN_PAGE: Final = (b"same-origin", b"none")  # what a browser says of a page of the service, and of a typed address
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class WebPages:
    """The rules for requests that web pages send.

    `allowed` are the origins of `--cors-origins`, `host` is the address on which the service listens, and `keys` says
    whether keys are set.
    """

    def __init__(self, allowed: Iterable[str], host: str, *, keys: bool) -> None:
        self._allowed = frozenset(origin.lower().encode() for origin in allowed)
        self._any = b"*" in self._allowed
        self._checks_host = is_loopback(host) and not keys and not self._any
        self._allowed_names = frozenset(_name(urlsplit(origin.decode()).netloc) for origin in self._allowed)

    def check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Checks the host name under which the service is called; does nothing where any name is right.

        Raises:
            Misdirected: Another site may have that name.
        """
        host = headers.get(HOST)
        if (
            self._checks_host
            and host is not None
            and not _is_local(host)
            and _name(host.decode("latin-1")) not in self._allowed_names
        ):
            raise Misdirected(
                "on a loopback address the service answers to localhost and to IP addresses only; "
                "--cors-origins http://NAME allows another name"
            )

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Checks the page and the host name of a request that changes, uploads or computes something.

        Raises:
            Forbidden: It comes from a page of another site, whose origin is not allowed.
            Misdirected: Another site may have the host name under which the service is called.
        """  # noqa: DOC502 - `check_host` raises it
        self.check_host(headers)
        if not from_page(headers):
            return
        origin, site = headers.get(ORIGIN, b"").lower(), headers.get(SITE)
        # `sec-fetch-site` is surer than the host, which a proxy may have changed; but old browsers do not send it.
        is_own = site in _OWN_PAGE or (site is None and _host_of(origin) == headers.get(HOST, b"").lower())
        if not (is_own or self._any or origin in self._allowed):
            raise Forbidden("web pages of other sites may not call; --cors-origins allows the pages of an origin")


def from_page(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sent these headers for a web page: of this service or another, or of one that has no origin."""
    return ORIGIN in headers or SITE in headers


def _host_of(origin: bytes) -> bytes:
    """The `host` header that a page of this origin sends: without a default port."""
    scheme, _, host = origin.decode("latin-1").partition("://")
    return host.removesuffix(_DEFAULT_PORTS.get(scheme, "")).encode("latin-1")


def _name(host: str) -> str:
    """A host without its port, brackets and last dot, in lower case."""
    name, colon, port = host.strip().lower().rpartition(":")
    return (name if colon and port.isdigit() else host.strip().lower()).strip("[]").removesuffix(".")


@lru_cache(maxsize=16)  # programs call under the same host again and again
def _is_local(host: bytes) -> bool:
    """Whether no site of the Internet can have the name in this `host` header."""
    name = _name(host.decode("latin-1"))
    return "." not in name or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
