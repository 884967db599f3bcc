"""The end of the process, which nothing may hold: no thread inside a library, and no event loop that is held."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Final

log = logging.getLogger("lengthwise.ending")

_OURS: Final = ("rescan", "runner-")
"""How the names of threads begin that may be inside a library for long."""
_WORDS_SECONDS: Final = 0.1


class LastResort:
    """Ends the process when its orderly end takes too long; a context manager around what has to end.

    Args:
        seconds: How long it may take from `begin` on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> LastResort:
        """Watches from now on."""
        threading.Thread(target=self._watch, name="last-resort", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """It has ended."""
        self._over.set()
        self._begun.set()

    def begin(self) -> None:
        """The end begins. Safe in a signal handler."""
        self._begun.set()

    def _watch(self) -> None:
        self._begun.wait()
        if not self._over.wait(self._seconds):
            words = "the process has not ended within %g s of the signal, so it is ended at once"
            saying = threading.Thread(target=log.error, args=(words, self._seconds), daemon=True)
            saying.start()
            saying.join(_WORDS_SECONDS)  # who reads the log may hang too
            os._exit(1)


def leave_behind(before: Iterable[threading.Thread], code: int = 0) -> None:
    """Ends the process where threads of its own are still inside a library; returns where there are none.

    The interpreter's own end would wait for some and pull the ground from under others: a thread that comes back from
    C++ then aborts the process.

    Args:
        before: The threads that were there before this service's.
        code: The exit code.
    """
    left = [thread.name for thread in set(threading.enumerate()).difference(before) if thread.name.startswith(_OURS)]
    if left:
        log.warning("the process ends over %s, still at work", ", ".join(sorted(left)))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
