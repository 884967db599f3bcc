"""One call whose sequences wait in two queues, because two versions of a model answer it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from lengthwise.batching.queues import Finish, ModelQueue, PendingRequest, Timing
from lengthwise.padding import Steps


class JointRequest:
    """The parts of one call. Each is submitted as a request of its own; the last that finishes completes the call.

    Args:
        future: Completed once: with what `finish` returns, or with the first error of a part.
        finish: Builds the answer from all results; runs in the thread that finishes the last part.
        places: For each part, the places of its sequences in the call.
        withdraw: Ends the work for a part.

    Attributes:
        future: As given.
        parts: The requests of the parts, as they are submitted.
    """

    def __init__(
        self,
        future: Any,
        finish: Finish,
        places: Sequence[Sequence[int]],
        withdraw: Callable[[PendingRequest, BaseException], None],
    ) -> None:
        self.future = future
        self._finish = finish
        self._places = places
        self._withdraw = withdraw
        self._lock = threading.Lock()
        self._results: list[Any] = [None] * sum(map(len, places))
        self._missing = len(places)
        self._timing = Timing(0.0, 0.0)
        self._failed = False
        self.parts: list[PendingRequest] = []

    def finish_of(self, part: int) -> Finish:
        """The `finish` of a part: stores its results; of the last part, returns the answer of the call."""

        def finish(results: list[Any], timing: Timing) -> Any:
            with self._lock:
                for place, result in zip(self._places[part], results, strict=True):
                    self._results[place] = result
                self._timing = Timing(
                    max(self._timing.queue, timing.queue), max(self._timing.inference, timing.inference)
                )
                self._missing -= 1
                if self._missing:
                    return _PENDING
            return self._finish(self._results, self._timing)

        return finish

    def done(self) -> bool:
        """Whether the call is complete or its caller has gone."""
        return self._failed or self.future.done()

    def set_result(self, result: Any, /) -> None:
        """Called on the event loop with what the `finish` of a part returned."""
        if result is not _PENDING and not self.done():
            self.future.set_result(result)

    def abandon(self, error: BaseException) -> None:
        """Ends the work for all parts; the caller knows the error."""
        self._failed = True
        for part in self.parts:
            self._withdraw(part, error)

    def withdraw(self, error: BaseException) -> None:
        """Ends the call, whose caller no longer waits: whoever still awaits it gets this error."""
        if self._failed:
            return
        self.abandon(error)
        if not self.future.done():
            self.future.set_exception(error)

    def set_exception(self, exception: BaseException, /) -> None:
        """Called on the event loop when a part fails: the call fails, and its other parts are not run."""
        if self.done():
            return
        self.abandon(exception)
        if not self.future.done():
            self.future.set_exception(exception)


_PENDING = object()
"""What the `finish` of a part returns while other parts are missing."""


def submit_joint(
    submit: Callable[..., PendingRequest],
    withdraw: Callable[[PendingRequest, BaseException], None],
    parts: Sequence[tuple[ModelQueue, Sequence[Steps], Sequence[int]]],
    finish: Finish,
    future: Any,
) -> JointRequest:
    """Submits a call in parts.

    Args:
        submit: `Batcher.submit`, with the options of the call.
        withdraw: `Batcher.withdraw`.
        parts: Of each part its queue, its sequences, and their places in the call.
        finish: Builds the answer from the results of all sequences.
        future: Completed once; a future, or another `Waiter`.

    Raises:
        RequestError: A part cannot be queued; then no part is.
    """
    joint = JointRequest(future, finish, [places for _, _, places in parts], withdraw)
    try:
        for number, (queue, sequences, _) in enumerate(parts):
            joint.parts.append(submit(queue, sequences, joint.finish_of(number), waiter=joint))
    except BaseException as error:
        joint.abandon(error)
        raise
    return joint
