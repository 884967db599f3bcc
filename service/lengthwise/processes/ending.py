"""Ends the process in time, even if a thread hangs inside a library or the event loop is blocked."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Final

log = logging.getLogger("lengthwise.ending")

_OWN_THREADS: Final = (
    "rescan",
    "verification",
    "probe",
    "runner-",
)  # may be inside a library for long: so their names begin
_LOG_SECONDS: Final = 0.1


class LastResort:
    """A context manager that ends the process if its block takes more seconds from `begin` on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> LastResort:
        """Starts a thread that ends the process when the time is over."""
        threading.Thread(target=self._watch, name="last-resort", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops that thread: the block has ended in time."""
        self._over.set()
        self._begun.set()

    def begin(self) -> None:
        """Starts the timer. Safe in a signal handler."""
        self._begun.set()

    def _watch(self) -> None:
        self._begun.wait()
        if not self._over.wait(self._seconds):
            text = "the process has not ended within %g s of the signal, so it is ended at once"
            logging_it = threading.Thread(target=log.error, args=(text, self._seconds), daemon=True)
            logging_it.start()
            logging_it.join(_LOG_SECONDS)  # writing to the log may block too
            os._exit(1)


def leave_behind(before: Iterable[threading.Thread]) -> None:
    """Ends the process if threads of its own are still inside a library; returns if there are none.

    The interpreter would wait for some of them at its end. Others would return from C++ into an interpreter that is
    gone, which aborts the process. Threads that were there `before` are not this service's.
    """
    own = set(threading.enumerate()).difference(before)
    left = [thread.name for thread in own if thread.name.startswith(_OWN_THREADS)]
    if left:
        log.warning("the process ends while %s still run", ", ".join(sorted(left)))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
