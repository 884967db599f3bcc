"""API keys: which clients may call, from a file that is read again when it changes, in a thread.

The file, one key a line, may be on a network and not answer for minutes: until then the old keys stay valid. Only
digests of the keys are in memory; a key is looked up by its digest, so the time of a check says nothing about the keys,
and is the same for any number of them. No key is ever logged. A key may have a name (`team-a: KEY`), which is logged
and counted.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final

from lengthwise import files
from lengthwise.errors import ConfigurationError, Unauthorized

log = logging.getLogger("lengthwise.keys")

SHORTEST: Final = 16  # characters of a valid key: shorter keys can be guessed
MOST_NAMES: Final = 100  # names with a label of their own in the metrics
OTHER: Final = "other"  # the label of all further names
_LINE: Final = re.compile(rb"(?:(?!other\s*:)([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s*:\s+)?(\S{%d,}(?<!:))" % SHORTEST)
_FORM: Final = (
    f"a key has at least {SHORTEST} characters, and no space; with a name the line is 'name: KEY', where a name has up "
    "to 64 letters, digits, '.', '_' and '-', begins with a letter or a digit, and is not 'other'"
)
_CHECK_SECONDS: Final = 1.0  # between two checks of the file, at least
_LOOK_SECONDS: Final = 60.0  # after which it is read even if its stamp stays: some file systems give none that changes
_MOST_BYTES: Final = 2**24  # of the file
_READ_SECONDS: Final = 0.1  # that a caller waits for a check; while one takes longer, no other check begins


class Keys:
    """The keys of a file.

    The caller whose check finds the file due waits at most `patience_seconds` while it is read.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, *, patience_seconds: float = _READ_SECONDS
    ) -> None:
        self._path = path
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._checked = self._looked = clock()  # when the file was checked, and when it was read last
        self._labels: dict[str, str] = {}  # by name; in the order of the file, so that every worker has the same
        self._use(*_read(path))
        self._reading = threading.Thread()

    def check(self, authorization: bytes | None) -> tuple[str, str] | None:
        """The name of the key that the client sent as `Bearer KEY`, and its label in the metrics.

        None if that key has no name.

        Raises:
            Unauthorized: The client sent none of the keys.
        """
        self._reload()
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise Unauthorized("a key is needed: send it as 'authorization: Bearer KEY'")
        sent_digest = hashlib.sha256(key.strip()).digest()
        digest, caller = self._callers.get(sent_digest, (bytes(32), None))
        if not hmac.compare_digest(sent_digest, digest):
            raise Unauthorized("the key is not known")
        return caller

    def _use(self, stamp: tuple[int, ...], names: dict[bytes, str]) -> None:
        """Replaces the valid keys; `names` has the name of each key by its digest, empty for a key without a name.

        A new name gets a label in the metrics: the name itself, or `OTHER` from the `MOST_NAMES`-th on.
        """
        for name in filter(None, names.values()):
            self._labels.setdefault(name, name if len(self._labels) < MOST_NAMES else OTHER)
        # By the digest of a key: the digest, and the caller's name and label
        self._callers = {
            digest: (digest, (name, self._labels[name]) if name else None) for digest, name in names.items()
        }
        self._stamp = stamp

    def _reload(self) -> None:
        """Reads the file in a thread if it has changed, at most once a second; waits at most `patience_seconds` for it.

        Until the thread has read it, the old keys are valid.
        """
        now = self._clock()
        if now - self._checked < _CHECK_SECONDS or self._reading.is_alive():
            return
        self._checked = now
        self._reading = threading.Thread(target=self._read_if_changed, name="api-keys", daemon=True)
        try:
            self._reading.start()
        except RuntimeError as error:  # no further thread can be started now
            log.error("the API keys could not be checked for changes: %s", error)
        else:
            self._reading.join(self._patience_seconds)

    def _read_if_changed(self) -> None:
        """Reads the file if its stamp changed or a minute has passed, in a thread; if that fails, the old keys stay."""
        try:
            if _stamp(self._path) != self._stamp or self._checked - self._looked >= _LOOK_SECONDS:
                self._looked, before = self._checked, self._callers
                self._use(*_read(self._path, before))
                if before != self._callers:
                    log.info("the API keys were read again: there are %d", len(self._callers))
        except (OSError, ConfigurationError) as error:
            log.error("the API keys could not be read again, the old keys stay valid: %s", error)


def _read(path: Path, known: Container[bytes] = ()) -> tuple[tuple[int, ...], dict[bytes, str]]:
    """The stamp of the file, and the name of each key by its digest; the name is empty for a key without one.

    `known`: the digests of the keys so far, of which nothing is logged again.

    Raises:
        ConfigurationError: The file cannot be read, has no key, or a line of another form; the message names the line.
    """
    try:
        stamp = _stamp(path)
        lines = enumerate(files.read(path, _MOST_BYTES).removeprefix(codecs.BOM_UTF8).splitlines(), start=1)
    except OSError as error:
        raise ConfigurationError(f"the API keys {path} cannot be read: {error.strerror}") from error
    names: dict[bytes, str] = {}
    # All lines but comments and empty ones.
    for number, line in [(number, line.strip()) for number, line in lines if not re.match(rb"\s*(#|$)", line)]:
        if (match := _LINE.fullmatch(line)) is None:
            raise ConfigurationError(f"{path}:{number}: {_FORM}")
        digest = hashlib.sha256(match[2]).digest()
        if match[1] is None and re.match(rb"[A-Za-z][\w.-]*:", line) and digest not in known:
            log.warning(
                "%s:%d: the key has a ':' in it; if a name stands before it, write a space after it", path, number
            )
        name = (match[1] or b"").decode()
        if names.setdefault(digest, name) != name:
            raise ConfigurationError(f"{path}:{number}: the same key stands above with another name, or without")
    if not names:
        raise ConfigurationError(f"{path} has no key: one a line, with a name as 'name: KEY'")
    return stamp, names


def _stamp(path: Path) -> tuple[int, ...]:
    """What of a file's status changes with its content: two times in nanoseconds, the size, and which file it is.

    Trees with fixed modification times, such as images of containers, have a new file with the old time.
    """
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
