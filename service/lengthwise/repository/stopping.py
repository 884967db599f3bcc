"""A stop signal for work in another thread: the work polls it, or registers a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The work was asked to stop."""


class Stopping:
    """A stop signal. Any thread may set it; it cannot be unset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._ends: list[Callable[[], None]] = []

    def stop(self) -> None:
        """Sets the signal and calls the registered callbacks."""
        with self._lock:
            self._stopped = True
            for end in self._ends:
                end()

    @property
    def stopped(self) -> bool:
        """Whether the signal is set."""
        return self._stopped

    def check(self) -> None:
        """Raises Stopped if the signal is set."""
        if self._stopped:
            raise Stopped

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Registers a short callback, run by the thread that stops, for a block; called at once if it is set."""
        with self._lock:
            self._ends.append(end)
            if self._stopped:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
