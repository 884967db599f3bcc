"""Several processes that serve together, as `/healthz` shows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2

from tests.support.server_process import PATIENCE_SECONDS, ServerProcess
from tests.support.waiting import wait_until

GOOD = {"sequences": [[[0.5] * 12] * 3]}


class Workers:
    """A service of two workers, and what `/healthz` says of them."""

    def __init__(self, server: ServerProcess, get: Callable[[str], httpx2.Response] | None = None) -> None:
        self.server = server
        self._get = get or server.get

    def __call__(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with suppress(httpx2.TransportError):  # it was of a worker that has just ended: ask again, on a new one
                return list(self._get("/healthz").json()["workers"])
            assert time.monotonic() < deadline, self.server.text

    def when(self, good: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The workers, once they are as they should be."""
        found: list[dict[str, Any]] = []

        def is_good() -> bool:
            found[:] = self()
            return good(found)

        wait_until(is_good, lambda: (found, self.server.text), PATIENCE_SECONDS)
        return found

    def ready(self) -> list[dict[str, Any]]:
        return self.when(lambda found: all(one["ready"] for one in found))

    def replaced(self, pid: int) -> list[dict[str, Any]]:
        """The workers, once another one has the place of this one and all are ready."""
        return self.when(lambda found: all(one["ready"] and one["pid"] != pid for one in found))


def until_said(server: ServerProcess, words: str, times: int) -> None:
    """Waits until the log has these words so often: a worker may be ready before its line has come here."""
    wait_until(lambda: server.text.count(words) >= times, lambda: server.text)
