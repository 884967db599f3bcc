"""Work in another thread: a thread for one function, and a signal to stop.

The work polls the signal (`Stopping.check`), or registers a callback that ends it (`Stopping.ending`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Final, TypeVar

R = TypeVar("R")

_SIGNAL_SECONDS: Final = 0.5  # within which a main thread that waits handles a signal


def in_daemon_thread(name: str, function: Callable[[], R]) -> Future[R]:
    """Runs a function in a new daemon thread; returns the future of its result or error.

    The process does not wait for this thread when it ends: reading a folder may block for ever.
    """
    future: Future[R] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        """Runs the function, and passes its result or error to the future."""
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def run_interruptibly(name: str, function: Callable[[], R]) -> R:
    """Runs a function that may block for ever in another thread, and returns its result; the caller only waits.

    In the main thread, a signal whose handler raises, such as Ctrl-C, ends the wait within `_SIGNAL_SECONDS`. One wait
    without an end could miss it: Python runs no handler while the main thread sleeps, and a signal that comes just
    before the main thread falls asleep, or to another thread, does not wake it.
    """
    future = in_daemon_thread(name, function)
    while not future.done():
        wait([future], _SIGNAL_SECONDS)
    return future.result()


class Stopped(Exception):
    """The work was asked to stop."""


class Stopping:
    """A stop signal. Any thread may set it; it cannot be unset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stopped = False  # whether the signal is set
        self._ends: list[Callable[[], object]] = []  # callbacks

    def stop(self) -> None:
        """Sets the signal and calls the registered callbacks."""
        with self._lock:
            self.stopped = True
            for end in self._ends:
                end()

    def check(self) -> None:
        """Raises `Stopped` if the signal is set.

        Raises:
            Stopped: The signal is set.
        """
        if self.stopped:
            raise Stopped

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """While the block runs, `stop` calls `end`, in the thread that stops; `end` must be safe in any thread.

        If the signal is set already, `end` is called now.
        """
        with self._lock:
            self._ends.append(end)
            if self.stopped:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
