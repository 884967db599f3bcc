"""The proxy that the environment names for a URL: `http_proxy`, `https_proxy`, `all_proxy`, and `no_proxy`."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or its address; then no proxy is used for it."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def proxy_of(url: str) -> str:
    """The variable that sets a proxy for a URL, and the proxy without its user: `http_proxy (proxy.example:3128)`.

    '' if there is no proxy for it.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    variable = next((scheme for scheme in (parts.scheme, "all") if proxies.get(scheme)), None)
    if variable is None or is_loopback(host) or proxy_bypass(host):
        return ""
    address = proxies[variable]
    proxy = urlsplit(address if "://" in address else f"http://{address}").netloc.rpartition("@")[2]
    return f"{variable}_proxy ({proxy})"
