"""Changes of the models that clients ask for, made at every worker before they are answered."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lengthwise.errors import LengthwiseError, WorkersDiffer
from lengthwise.repository.contents import Refusal

VersionChange = Callable[[str], Awaitable[Refusal | None]]


class EveryWorker:
    """Makes changes here, whoever was asked, and has all make those that this one was asked for.

    Args:
        here: The changes, by name.
        served: What is served here.
        ask: Calls an answer of every worker.
        answers: Those of this one.
    """

    def __init__(
        self,
        here: dict[str, VersionChange],
        served: Callable[[], list[str]],
        ask: Callable[..., Awaitable[list[dict[str, Any]]]],
        answers: MutableMapping[str, Callable[..., Awaitable[Any]]],
    ) -> None:
        self._here = here
        self._served = served
        self._ask = ask
        self._own: dict[str, Refusal | LengthwiseError | None] = {}
        self._numbers = itertools.count()
        answers["change"] = self._change

    async def __call__(self, change: str, name: str) -> Refusal | None:
        """Makes a change everywhere; what came of it here.

        Raises:
            LengthwiseError: What came of it here.
            WorkersDiffer: It was made at some workers only.
        """
        call = f"{os.getpid()} {next(self._numbers)}"
        found = await self._ask("change", change, name, call)
        own = self._own.pop(call)
        if len({one["error"] is None for one in found}) > 1:
            raise WorkersDiffer(f"{change} of {name} was not made at every worker: {'; '.join(map(_told, found))}")
        if isinstance(own, LengthwiseError):
            raise own
        return own

    async def _change(self, change: str, name: str, call: str) -> dict[str, Any]:
        found: Refusal | LengthwiseError | None
        try:
            found = await self._here[change](name)
        except LengthwiseError as error:
            found = error
        if call.split()[0] == str(os.getpid()):
            self._own[call] = found
        why = found.reason if isinstance(found, Refusal) else None if found is None else str(found)
        return {"pid": os.getpid(), "error": why, "serves": self._served()}


def _told(one: dict[str, Any]) -> str:
    outcome = "made" if one["error"] is None else f"failed ({one['error']})"
    return f"worker {one['pid']} {outcome}, and serves {', '.join(one.get('serves', ())) or 'nothing'}"
