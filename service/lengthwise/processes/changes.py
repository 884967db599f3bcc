"""Changes of the models by admin calls (`load`, `unload`): every worker makes them before the call is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lengthwise.processes.supervisor import WorkerSlot

CHANGE_SECONDS: Final = 30.0  # that a worker may take for a change while no model is fetched or verified
ANSWER_SECONDS: Final = 5.0  # that a worker may take for any other call of the parent; then it is left out


class Changes:
    """Makes changes at every worker, one change after the other, and keeps the names of the unloaded models.

    A worker that starts later asks for these names. `is_busy` says whether a model is fetched or verified: then a
    change may take longer.
    """

    def __init__(self, slots: list[WorkerSlot], is_busy: Callable[[], bool]) -> None:
        self._slots = slots
        self._is_busy = is_busy
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()

    def unloaded_before(self, slot: WorkerSlot) -> list[str]:
        """The names that a starting worker has to leave out of its first scan; it gets all later changes."""
        slot.scans = True
        return sorted(self._unloaded)

    async def make(self, change: str, name: str, call: str) -> list[Any]:
        """Has every worker make one change (`load` or `unload`) of the model `name`; returns their answers.

        An answer has the worker's `pid`, an `error` (None: the change is made), and its models: `serves`, `unloaded`. A
        worker that does not answer in time has an `error`, and makes the change later; a worker that ends has no
        answer, and its successor asks for the unloaded names.

        One of the workers has asked for the change. `call` is an id that it has chosen, and by which it recognizes its
        own change among those that the parent sends to all.
        """
        async with self._changing:
            # Workers that start from now on get the changed names.
            unloaded, loaded = self._unloaded | {name}, self._unloaded - {name}
            self._unloaded = unloaded if change == "unload" else loaded
            calls = {
                slot: asyncio.ensure_future(slot.channel.call("change", change, name, call))
                for slot in self._slots
                if slot.scans and slot.channel is not None
            }
            # Workers that still make an earlier change get a moment to answer.
            open_calls = {call for slot, call in calls.items() if slot.change is None or slot.change.done()}
            if behind_earlier_change := {*calls.values()} - open_calls:
                await asyncio.wait(behind_earlier_change, timeout=ANSWER_SECONDS)
            # All others get `CHANGE_SECONDS`, and again as long while a model is fetched or verified.
            busy = True
            while open_calls and busy:
                busy = self._is_busy()
                _, open_calls = await asyncio.wait(open_calls, timeout=CHANGE_SECONDS)
                busy = busy or self._is_busy()
            # The answers that are there.
            answers: list[dict[str, Any]] = []
            for slot, pending in calls.items():
                slot.change = pending
                problem = f"it has not answered within {CHANGE_SECONDS:g} s"
                if pending in behind_earlier_change:
                    problem = "it still makes an earlier change"
                answer = pending.result() if pending.done() else {"error": problem}
                if answer is not None and slot.process is not None:  # else the worker has ended
                    answers.append({"pid": slot.process.pid, **answer})
            # The name stays unloaded if it is so at all workers: a load counts even if the highest version was refused.
            names_of_workers = [answer["unloaded"] for answer in answers if "unloaded" in answer]
            if names_of_workers:
                self._unloaded = unloaded if all(name in names for names in names_of_workers) else loaded
        return answers
