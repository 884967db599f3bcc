"""Runs of one graph side by side: what is verified are hundreds of runs in one thread each, and a machine has cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Final, TypeVar

from lengthwise.files import available_cores

MOST_THREADS: Final = 4
"""Each thread has a batch of its own in memory, and a graph's weights are read from one memory by all."""

_I = TypeVar("_I")
_R = TypeVar("_R")


def side_by_side(call: Callable[[_I], _R], items: Iterable[_I]) -> Iterator[_R]:
    """The results of a call for each item, in the order of the items; as many calls as cores run at once.

    What a call raises is raised where its result would come; calls after it may have run by then.

    Args:
        call: May run in several threads at once, as `Session.run` may.
        items: Read in the caller's thread, as many ahead of the results as threads.
    """
    threads, rest = min(MOST_THREADS, available_cores()), iter(items)
    ahead = [*islice(rest, min(threads, 2))]
    if len(ahead) < 2:  # one core, or a single item: a thread takes longer to start than a small graph to run
        yield from (call(item) for item in chain(ahead, rest))  # `map` would end where a call raises StopIteration
        return
    waiting = deque[Future[_R]]()
    with ThreadPoolExecutor(threads) as pool:
        for item in chain(ahead, rest):
            waiting.append(pool.submit(call, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
