"""How what runs in another thread is told to end: it looks whether it should, or has itself told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """What was asked for is not wanted any more."""


class Stopping:
    """Whether to end. Set once, by any thread, and then for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._ends: list[Callable[[], None]] = []

    def stop(self) -> None:
        """Has everything end."""
        with self._lock:
            self._stopped = True
            for end in self._ends:
                end()

    def check(self) -> None:
        """Returns while there is no end.

        Raises:
            Stopped: There is.
        """
        if self._stopped:
            raise Stopped

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Has a function called at the end, if it comes within the block, or has come before it.

        Args:
            end: Ends what the block waits for; called at once or by the thread that stops, and quick.
        """
        with self._lock:
            self._ends.append(end)
            if self._stopped:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
