"""Work in another thread: a thread for one function, and a signal to stop, which work polls or has a callback for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

R = TypeVar("R")


def in_daemon_thread(name: str, function: Callable[[], R]) -> Future[R]:
    """Runs a function in a thread for which the process does not wait: reading a folder may block for ever."""
    future: Future[R] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Stopped(Exception):
    """The work was asked to stop."""


class Stopping:
    """A stop signal. Any thread may set it; it cannot be unset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stopped = False
        self._ends: list[Callable[[], object]] = []

    def stop(self) -> None:
        """Sets the signal and calls the registered callbacks."""
        with self._lock:
            self.stopped = True
            for end in self._ends:
                end()

    def check(self) -> None:
        """Raises if the work was asked to stop.

        Raises:
            Stopped: The signal is set.
        """
        if self.stopped:
            raise Stopped

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """While the block runs, `stop` calls `end` in its own thread. Calls `end` now if the signal is set already."""
        with self._lock:
            self._ends.append(end)
            if self.stopped:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
