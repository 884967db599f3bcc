"""Cores that are lent to recurrent layers, in tests: lent and taken back at any moment, and how much they helped."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lengthwise.runtime import recurrent_kernels


@contextmanager
def lent_and_taken_back() -> Iterator[None]:
    """Lends cores and takes them back in another thread, as often as it can."""
    stopping = threading.Event()

    def lend_and_take() -> None:
        while not stopping.is_set():
            for lent in (1, 0, 2, 0):
                recurrent_kernels.lend_cores(lent)

    thread = threading.Thread(target=lend_and_take)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def is_helped(run: Callable[[], object]) -> bool:
    """Whether another thread works for this one when a core is lent; runs again until it does, for a minute at most."""

    def helped() -> float:
        return recurrent_kernels.processor_seconds() - time.thread_time()

    before = helped()
    recurrent_kernels.lend_cores(1)
    deadline = time.monotonic() + 60
    while helped() <= before + 1e-4 and time.monotonic() < deadline:
        run()
    return helped() > before + 1e-4
