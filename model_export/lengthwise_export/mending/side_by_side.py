"""Runs one graph in several threads: a proof is hundreds of runs, each in one thread, and a machine has more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from lengthwise.exporter_api.contract import files

MOST_THREADS: Final = 4
"""Each thread holds a batch in memory, and all of them read the graph's weights from the same memory."""

_I = TypeVar("_I")
_R = TypeVar("_R")


def side_by_side(call: Callable[[_I], _R], items: Iterable[_I]) -> Iterator[_R]:
    """Calls a function for each item, in a thread for each core, but at most `MOST_THREADS` of them.

    `Executor.map` would read all items at once, and here they are batches.

    Args:
        call: The function; it may run in several threads at once, as a session of onnxruntime may.
        items: Read in the caller's thread. At most one more than there are threads is read before a result is yielded.

    Yields:
        The results, in the order of the items. An error of a call is raised in the place of its result; calls for later
        items may have run by then. An error while the next item is read is raised in the place of all results that
        were not yielded yet.
    """
    threads = min(MOST_THREADS, files.available_cores())
    waiting = deque[Future[_R]]()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
