"""Models by address: fetched into a cache, checked, and used as a folder; or pushed to where others fetch them.

A *store* is what an address leads to: the Hugging Face hub, a container registry, objects of a cloud, or a web server.
Its module has `open_source`, which finds out what is at an address (`cache.StoreContent`), and `upload`. In this
package, `where` is the address as a text, for messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib import import_module
from math import inf
from types import ModuleType
from typing import IO, Any, Final, NoReturn

from lengthwise.addresses import Address
from lengthwise.errors import ConfigurationError, StoreUnreachable, missing_extra

SLOW_SECONDS: Final = 60.0  # of an answer, after which its speed is measured
LEAST_BYTES_A_SECOND: Final = 2**14


def store_of(address: Address) -> ModuleType:
    """Imports the module for the store of an address; it has `open_source` and `upload`.

    Raises:
        ConfigurationError: The library that the module needs is not installed.
    """
    name = {"hf": "hub", "oci": "images"}.get(address.scheme, "objects")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(missing_extra(error, "stores", f"an address {address.scheme}://")) from error


def is_temporary(status: int) -> bool:
    """Whether an HTTP status is a failure that may be over later, such as 429 or 503, and not one of the request."""
    return status in (408, 425, 429) or status >= 500


def refuse(where: str, store: str, status: int, reason: str, login: str) -> NoReturn:
    """Raises the error for an answer with an HTTP status of failure, whose phrase is `reason`.

    `store` is who answered, as in "the hub"; `login` ends the text if credentials may be missing.

    Raises:
        ConfigurationError: The store refuses.
        StoreUnreachable: The failure may be over later.
    """  # noqa: DOC502 - the status chooses one of them
    error_class = StoreUnreachable if is_temporary(status) else ConfigurationError
    advice = f"; {login}" if status in (401, 403, 404) else ""
    raise error_class(f"{where}: {store} answers {status} {reason}{advice}") from None


def write_answer(
    parts: Iterable[Any],
    file: IO[bytes],
    where: str,
    most_bytes: float = inf,
    allow: Callable[[int], object] = abs,
) -> None:
    """Writes an answer of a store to a file, part by part as it arrives.

    Stops after the part with which the file has more than `most_bytes`: the caller finds out by the size or the digest.
    `allow` gets the size of each part before it is written, and raises if the fetch is too large or takes too long.
    The speed is checked here, too, since each part may come just before the timeout of the HTTP library.

    Raises:
        StoreUnreachable: The answer is too slow: over `SLOW_SECONDS`, less than `LEAST_BYTES_A_SECOND` arrived.
    """
    # The period over which the speed is measured: when it began, and the size of the file then
    start, start_bytes = time.monotonic(), 0
    for part in parts:
        allow(len(part))
        file.write(part)
        seconds, arrived_bytes = time.monotonic() - start, file.tell() - start_bytes
        if seconds > SLOW_SECONDS:
            if arrived_bytes < seconds * LEAST_BYTES_A_SECOND:
                raise StoreUnreachable(f"{where}: too slow, {arrived_bytes} bytes of the store in {seconds:.0f} s")
            start, start_bytes = time.monotonic(), file.tell()
        if file.tell() > most_bytes:
            return
