"""API keys: which clients may call, from a file that is read again when it changes, in a thread.

The file, one key a line, may be on a network and not answer for minutes: until then the old keys hold. Only digests are
in memory, compared in constant time. No key is ever logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lengthwise.errors import ConfigurationError, Unauthorized

log = logging.getLogger("lengthwise.keys")

SHORTEST: Final = 16  # characters of a valid key: shorter ones can be guessed
_CHECK_SECONDS: Final = 1.0  # between two checks of the file, at least
_READ_SECONDS: Final = 0.1  # that a caller waits for that; while it takes longer, no other check begins


class Keys:
    """The keys of a file; one caller waits `patience_seconds`, once, while the file is looked at."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, *, patience_seconds: float = _READ_SECONDS
    ) -> None:
        self._path = path
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._checked = clock()
        self._stamp, self._digests = _read(path)
        self._reading = threading.Thread()

    def check(self, authorization: bytes | None) -> None:
        """Returns if the client sent one of the keys as `Bearer KEY`; raises Unauthorized if not."""
        self._reload()
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise Unauthorized("a key is needed: send it as 'authorization: Bearer KEY'")
        sent_digest = hashlib.sha256(key.strip()).digest()
        known = False
        for digest in self._digests:  # all of them, so that the time does not depend on which one matches
            known |= hmac.compare_digest(sent_digest, digest)
        if not known:
            raise Unauthorized("the key is not known")

    def _reload(self) -> None:
        """Reads the file again if it changed, in a thread; the old keys stay valid until it is read."""
        now = self._clock()
        if now - self._checked < _CHECK_SECONDS or self._reading.is_alive():
            return
        self._checked = now
        self._reading = threading.Thread(target=self._read_again, name="api-keys", daemon=True)
        try:
            self._reading.start()
        except RuntimeError as error:  # no further thread can be started now
            log.error("the API keys could not be checked for changes: %s", error)
        else:
            self._reading.join(self._patience_seconds)

    def _read_again(self) -> None:
        try:
            if _stamp(self._path) != self._stamp:
                self._stamp, self._digests = _read(self._path)
                log.info("the API keys were read again: there are %d", len(self._digests))
        except (OSError, ConfigurationError) as error:
            log.error("the API keys could not be read again, the old keys stay valid: %s", error)


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
    """Modification time and size: what changes when the file changes."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
