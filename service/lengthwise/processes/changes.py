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
        """Calls every worker for one change (`load` or `unload`) of the model `name`; returns their answers.

        An answer has the worker's `pid`, an `error` (None: the change is made), and its models: `serves`, `unloaded`. A
        worker that does not answer in time (`error`) makes the change later; if it ends instead, its successor asks for
        the unloaded names. `call` is an id that the worker which asks for the change has chosen: it is told to all, so
        that this worker recognizes its own change.
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
            # A worker that has not answered an earlier change yet gets a moment only; `late` are the other calls.
            late = {call for slot, call in calls.items() if slot.change is None or slot.change.done()}
            if skipped := {*calls.values()} - late:
                await asyncio.wait(skipped, timeout=ANSWER_SECONDS)
            # The others get `CHANGE_SECONDS`, again and again while a model is fetched or verified.
            busy = True
            while late and busy:
                busy = self._is_busy()
                _, late = await asyncio.wait(late, timeout=CHANGE_SECONDS)
                busy = busy or self._is_busy()
            answers: list[dict[str, Any]] = []
            for slot, pending in calls.items():
                slot.change = pending
                late_answer = {"error": f"it has not answered within {CHANGE_SECONDS:g} s"}
                answer = pending.result() if pending.done() else late_answer
                if answer is not None and slot.process is not None:  # else it has ended: its successor asks
                    answers.append({"pid": slot.process.pid, **answer})
            # What the workers say now: a load counts as made even if the highest version was refused.
            names_of_workers = [answer["unloaded"] for answer in answers if "unloaded" in answer]
            if names_of_workers:
                self._unloaded = unloaded if all(name in names for names in names_of_workers) else loaded
        return answers
