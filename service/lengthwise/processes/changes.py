"""Changes of the models by admin calls: made at every worker, one after the other, before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lengthwise.processes.supervisor import WorkerSlot

CHANGE_SECONDS: Final = 30.0  # that a worker may take for an admin call while no model is fetched or verified
ANSWER_SECONDS: Final = 5.0  # that a worker may take for any other call; then it is left out


class Changes:
    """Makes admin calls at every worker, and keeps the names of unloaded models for workers that start later.

    A call may take longer while `is_busy` says that a model is fetched or verified.
    """

    def __init__(self, slots: list[WorkerSlot], is_busy: Callable[[], bool]) -> None:
        self._slots = slots
        self._is_busy = is_busy
        self._unloaded: set[str] = set()
        self._changing = asyncio.Lock()

    def unloaded_before(self, slot: WorkerSlot) -> list[str]:
        """The names that are unloaded before the first scan of a worker, which takes part in all later changes."""
        slot.scans = True
        return sorted(self._unloaded)

    async def make(self, change: str, name: str, call: str) -> list[Any]:
        """Calls every worker for one change, and returns their answers.

        Who does not answer in time makes it later, or ends and has a successor that asks. Later changes wait for it
        a moment only.
        """
        async with self._changing:
            before = self._unloaded
            self._unloaded = before | {name} if change == "unload" else before - {name}
            calls = {
                slot: asyncio.ensure_future(slot.channel.call("change", change, name, call))
                for slot in self._slots
                if slot.scans and slot.channel is not None
            }
            late, busy = {one for slot, one in calls.items() if slot.change is None or slot.change.done()}, True
            if skipped := {*calls.values()} - late:  # they may have come back
                await asyncio.wait(skipped, timeout=ANSWER_SECONDS)
            while late and busy:
                busy = self._is_busy()
                _, late = await asyncio.wait(late, timeout=CHANGE_SECONDS)
                busy = busy or self._is_busy()
            answers: list[dict[str, Any]] = []
            for slot, one in calls.items():
                slot.change = one
                answer = one.result() if one.done() else {"error": f"it has not answered within {CHANGE_SECONDS:g} s"}
                if answer is not None and slot.process is not None:  # else it has ended: its successor asks
                    answers.append({"pid": slot.process.pid, **answer})
            unloaded = [one["unloaded"] for one in answers if "unloaded" in one]
            if unloaded:  # a load whose highest version is refused has been made all the same
                self._unloaded = before | {name} if all(name in names for names in unloaded) else before - {name}
        return answers
