"""Which web pages may call: none of other sites, unless `--cors-origins` names their origin.

A browser lets any page send a POST, and says only in headers which page it was; other programs send no such headers. A
page can also give its own name the address 127.0.0.1 later (DNS rebinding), and then read answers: so on a loopback
address without keys only names are answered that no other site can have (`localhost`, IP addresses, names without a
dot).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from lengthwise.errors import Forbidden, Misdirected

HOST: Final = b"host"
ORIGIN: Final = b"origin"
SITE: Final = b"sec-fetch-site"
_OWN_PAGE: Final = (b"same-origin", b"none")  # what a browser says of a page of the service, and of a typed address
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_MOST_KNOWN: Final = 64


class WebPages:
    """The rules for requests that web pages send; `host` is the address on which the service listens."""

    def __init__(self, allowed: Iterable[str], host: str, *, keys: bool) -> None:
        self._allowed = frozenset(origin.lower().encode() for origin in allowed)
        self._any = b"*" in self._allowed
        self._checks_host = is_loopback(host) and not keys and not self._any
        self._named = frozenset(_name(urlsplit(origin.decode()).netloc) for origin in self._allowed)
        self._known: set[bytes] = set()

    def check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Checks under which name the service is called.

        Raises:
            Misdirected: Another site may have that name.
        """
        host = headers.get(HOST)
        if not self._checks_host or host is None or host in self._known:
            return
        name = _name(host.decode("latin-1"))
        own = "." not in name or name.endswith(".localhost") or _is_address(name)  # no site of the Internet can have it
        if not own and name not in self._named:
            raise Misdirected(
                "on a loopback address the service answers to localhost and to IP addresses only; "
                "--cors-origins http://NAME allows another name"
            )
        if len(self._known) < _MOST_KNOWN:
            self._known.add(host)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Checks a request that changes, uploads or computes something. Raises also as `check_host` does.

        Raises:
            Forbidden: It comes from a page of another site, whose origin is not allowed.
        """
        self.check_host(headers)
        if ORIGIN not in headers and SITE not in headers:  # not a browser's
            return
        origin, site = headers.get(ORIGIN, b"").lower(), headers.get(SITE)
        # A proxy may have changed the host. What the browser says of the page is surer, but old ones do not say it.
        is_own = site in _OWN_PAGE or (site is None and _host_of(origin) == headers.get(HOST, b"").lower())
        if not (is_own or self._any or origin in self._allowed):
            raise Forbidden("web pages of other sites may not call; --cors-origins allows the pages of an origin")


def _host_of(origin: bytes) -> bytes:
    scheme, _, host = origin.decode("latin-1").partition("://")
    return host.removesuffix(_DEFAULT_PORTS.get(scheme, "")).encode("latin-1")


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    name, colon, port = host.strip().lower().rpartition(":")
    return (name if colon and port.isdigit() else host.strip().lower()).strip("[]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
