"""Ends the process in time, even if a thread hangs inside a library or the event loop is blocked."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("lengthwise.ending")

# Prefixes of the names of threads that may be inside a library for long.
_OWN_THREADS: Final = ("first run", "rescan", "verification", "probe", "runner-")
_STDERR: Final = 2
_ALARM_SECONDS: Final = 1.0  # in which the stacks are written


@contextmanager
def end_for_certain() -> Iterator[Callable[[float], None]]:
    """Yields a function `end_within(seconds)`, which starts a timer that ends the process; leaving the block stops it.

    The function may be called in a signal handler. When the timer ends the process, the stacks of all threads are
    written to stderr, and the exit code is 1. A library that keeps the interpreter lock cannot prevent that, because
    the timer is a thread of C. If stderr takes nothing, as a full pipe does that nobody reads, SIGALRM ends the process
    `_ALARM_SECONDS` later, with exit code 14: its handler is C's `_exit`, as the first process of a container ignores
    signals that have none.
    """

    def end_within(seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
        signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_SECONDS)

    ctypes.CDLL(None).signal(signal.SIGALRM, ctypes.CDLL(None)._exit)
    try:
        yield end_within
    finally:
        faulthandler.cancel_dump_traceback_later()  # waits for the stacks, if they are being written
        signal.setitimer(signal.ITIMER_REAL, 0)


def leave_behind(before: Iterable[threading.Thread]) -> None:
    """Ends the process with exit code 0 if threads of this service still run inside a library; else returns.

    At its own end, the interpreter would wait for some of these threads. Others would return from C++ into an
    interpreter that is gone, which aborts the process. `before` are the threads that ran before the service started.
    """
    new_threads = set(threading.enumerate()).difference(before)
    if running := [thread.name for thread in new_threads if thread.name.startswith(_OWN_THREADS)]:
        log.warning("the process ends while %s still run", ", ".join(sorted(running)))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
