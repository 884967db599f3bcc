"""Models by address: fetched into a cache, checked, and used as a folder; or pushed to where others fetch them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import import_module
from math import inf
from types import ModuleType
from typing import IO, Any, Final

from lengthwise.addresses import Address
from lengthwise.errors import ConfigurationError, StoreUnreachable, missing_extra

SLOW_SECONDS: Final = 60.0
LEAST_BYTES_A_SECOND: Final = 2**14


def store_of(address: Address) -> ModuleType:
    """The module for the store of an address, which has the functions `open_source` and `upload`.

    Raises:
        ConfigurationError: The library for it is not installed.
    """
    name = {"hf": "hub", "oci": "images"}.get(address.scheme, "objects")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(missing_extra(error, "stores", f"an address {address.scheme}://")) from error


def may_pass(status: int) -> bool:
    """Whether a status says that a store cannot answer now, and nothing about what was asked."""
    return status in (408, 425, 429) or status >= 500


def write(parts: Iterable[Any], file: IO[bytes], where: str, most: float = inf) -> None:
    """Writes the parts (bytes) of an answer as they come, until there are more bytes than `most`.

    Each part may come just before the timeout of its library, so an answer has a least speed.

    Raises:
        StoreUnreachable: It comes with less than `LEAST_BYTES_A_SECOND` over `SLOW_SECONDS`.
    """
    start, before = time.monotonic(), 0
    for part in parts:
        file.write(part)
        seconds, size = time.monotonic() - start, file.tell() - before
        if seconds > SLOW_SECONDS:
            if size < seconds * LEAST_BYTES_A_SECOND:
                raise StoreUnreachable(f"{where}: too slow, {size} bytes of the store in {seconds:.0f} s")
            start, before = time.monotonic(), file.tell()
        if file.tell() > most:
            return
