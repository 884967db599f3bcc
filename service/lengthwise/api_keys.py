"""API keys: which callers may ask, from a file that is read again when it changes.

The file has one key a line; blank lines and lines that start with `#` are left out. Only digests stay in memory, and a
caller's key is compared, by its digest, with every one of them in constant time. No key is ever logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lengthwise.errors import ConfigurationError, Unauthorized

log = logging.getLogger("lengthwise.keys")

SHORTEST: Final = 16
"""Shortest key that is taken, in characters: shorter ones can be guessed."""
_LOOK_AGAIN_SECONDS: Final = 1.0


class Keys:
    """The keys of a file.

    Args:
        path: The file.
        clock: Seconds; for tests.

    Raises:
        ConfigurationError: The file cannot be read, has no key, or a key too short.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp, self._digests = _read(path)

    def check(self, authorization: bytes | None) -> None:
        """Lets a caller pass who has one of the keys.

        Args:
            authorization: The header's value, `Bearer KEY`; None where there is none.

        Raises:
            Unauthorized: There is none, or it is none of the keys.
        """
        self._look_again()
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise Unauthorized("a key is needed: send it as 'authorization: Bearer KEY'")
        given = hashlib.sha256(key.strip()).digest()
        known = False
        for digest in self._digests:  # every one of them, so that the time says nothing about which
            known |= hmac.compare_digest(given, digest)
        if not known:
            raise Unauthorized("the key is not known")

    def _look_again(self) -> None:
        """Reads the file again if it changed; keeps what it had if it cannot."""
        now = self._clock()
        if now - self._looked < _LOOK_AGAIN_SECONDS:
            return
        self._looked = now
        try:
            if _stamp(self._path) != self._stamp:
                self._stamp, self._digests = _read(self._path)
                log.info("the API keys were read again: there are %d", len(self._digests))
        except (OSError, ConfigurationError) as error:
            log.error("the API keys could not be read again, the old ones go on: %s", error)


def _read(path: Path) -> tuple[tuple[int, int], tuple[bytes, ...]]:
    try:
        stamp = _stamp(path)
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigurationError(f"the API keys {path} cannot be read: {error.strerror}") from error
    keys = [(number, line) for number, line in enumerate(lines, start=1) if line and not line.startswith(b"#")]
    if not keys:
        raise ConfigurationError(f"{path} has no key: one a line")
    for number, key in keys:
        if len(key) < SHORTEST or b" " in key:
            raise ConfigurationError(f"{path}:{number}: a key has at least {SHORTEST} characters, and no space")
    return stamp, tuple(hashlib.sha256(key).digest() for _, key in keys)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when the file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
