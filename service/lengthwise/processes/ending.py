"""Ends the process in time, even if a thread hangs inside a library or the event loop is blocked."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("lengthwise.ending")

_OWN_THREADS: Final = (
    "rescan",
    "verification",
    "probe",
    "runner-",
)  # may be inside a library for long: so their names begin
_STDERR: Final = 2


@contextmanager
def end_for_certain() -> Iterator[Callable[[float], None]]:
    """A function that ends the process unless the block ends within so many seconds of its call.

    It may be called in a signal handler. The stacks of all threads are written to stderr before, and the exit code is
    1. A library that keeps the interpreter cannot prevent it: the timer is a thread of C.
    """
    try:
        yield lambda seconds: faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
    finally:
        faulthandler.cancel_dump_traceback_later()


def leave_behind(before: Iterable[threading.Thread]) -> None:
    """Ends the process if threads of its own are still inside a library; returns if there are none.

    The interpreter would wait for some of them at its end. Others would return from C++ into an interpreter that is
    gone, which aborts the process. Threads that were there `before` are not this service's.
    """
    own = set(threading.enumerate()).difference(before)
    if left := [thread.name for thread in own if thread.name.startswith(_OWN_THREADS)]:
        log.warning("the process ends while %s still run", ", ".join(sorted(left)))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
