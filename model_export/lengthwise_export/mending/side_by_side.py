"""Runs of one graph side by side: a proof is hundreds of runs in one thread each, and a machine has cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from lengthwise.exporter_api.contract import files

MOST_THREADS: Final = 4
"""Each thread has a batch of its own in memory, and a graph's weights are read from one memory by all."""

_I = TypeVar("_I")
_R = TypeVar("_R")


def side_by_side(call: Callable[[_I], _R], items: Iterable[_I]) -> Iterator[_R]:
    """The results of a call for each item, in the order of the items; as many calls as cores run at once.

    `Executor.map` would read all items at once, and they are batches.

    What a call raises is raised where its result would come; calls after it may have run by then. What the items raise
    comes before the results of calls that run.

    Args:
        call: May run in several threads at once, as a session of onnxruntime may.
        items: Read in the caller's thread, as many ahead of the results as threads.
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
