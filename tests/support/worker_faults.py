"""What is done to the workers of a service at random, and what may not be seen meanwhile.

| what | how |
|---|---|
| a worker is killed, or stopped until it is replaced | SIGKILL, SIGSTOP |
| a worker is stopped for a moment; the parent is | SIGSTOP, SIGCONT |
| a worker is killed, and its successor cannot start | the file of keys is empty; the folder of models is away |
| the repository is read again | SIGHUP, `load` and `unload` of another model |

Meanwhile every scrape is compared with the one before: no counter goes back. Whoever `/healthz` shows as ready lives.
At the end of each trouble all workers are ready again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.support import proc
from tests.support.chaos import until
from tests.support.server_process import ServerProcess

KEY = "a-key-of-the-callers-of-chaos"
OTHER = "other"
"""A model that is loaded and unloaded; nobody calls it."""
SHM = 'mount -t tmpfs -o size=16k shm /dev/shm && cat /dev/zero > /dev/shm/full; exec "$@"'
"""A shell's line: a command with a full `/dev/shm` of its own (after `unshare -m sh -c`)."""
_COUNTED = ("_total", "_count", "_sum", "_bucket")
_NO_ANSWER = (httpx2.HTTPError, OSError, KeyError, ValueError)
"""A connection that is reset, or refused with an empty 503 where a worker has no files left."""
_LIVES_SECONDS = 5.0  # within which one that has died may still be shown as ready, while the parent is stopped


def may_mount() -> bool:
    """Whether this process may have mounts of its own."""
    return not subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode


def _send(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class WorkerFaults:
    """The troubles, and what was wrong."""

    server: ServerProcess
    models: Path
    keys: Path
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    folder: asyncio.Lock = field(default_factory=asyncio.Lock)  # of who changes the folder of models
    _last: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self.keys.write_text(KEY)

    async def run(self) -> None:
        """One trouble after the other, until it is cancelled."""
        troubles = [self.kill, self.hang, self.stop_for_a_moment, self.stop_parent, self.lose_keys, self.lose_models]
        try:
            await asyncio.gather(self._change(), self._watch(), self._trouble([*troubles, self.kill, self.hang]))
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self.wrong.append(f"no trouble is made any more: {error!r}")
            raise

    async def _trouble(self, troubles: list[Any]) -> None:
        while True:
            trouble = self._chance.choice(troubles)
            await trouble()
            self.done[trouble.__name__] += 1
            await until(self.all_ready, f"all workers are ready after {trouble.__name__}")
            await asyncio.sleep(self._chance.uniform(0, 3))

    def _workers(self) -> list[int]:
        return [pid for pid in proc.serving(self.server.process.pid) if pid != self.server.process.pid]

    def all_ready(self) -> bool:
        """Whether `/healthz` shows all workers as ready."""
        with suppress(*_NO_ANSWER):
            return all(one["ready"] for one in self.server.get("/healthz").json()["workers"])
        return False

    def _signal(self, number: signal.Signals) -> int | None:
        """Sends a signal to one of the workers: its process id, if there is any."""
        pid = self._chance.choice(self._workers() or [None])
        _send(pid, number)
        return pid

    async def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def hang(self) -> None:
        pid = self._signal(signal.SIGSTOP)

        def replaced() -> bool:
            if pid not in self._workers():
                return True
            _send(pid, signal.SIGSTOP)  # whoever stops all of them for a moment has them go on
            return False

        await until(replaced, "a worker that hangs is replaced")

    async def stop_for_a_moment(self) -> None:
        pid = self._signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0, 1.5))
        _send(pid, signal.SIGCONT)

    async def stop_parent(self) -> None:
        os.kill(self.server.process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._chance.uniform(0, 4))
            if self._chance.random() < 0.5:
                self._signal(signal.SIGKILL)
        finally:
            os.kill(self.server.process.pid, signal.SIGCONT)

    async def lose_keys(self) -> None:
        self.keys.write_text("")
        try:
            self._signal(signal.SIGKILL)
            await asyncio.sleep(self._chance.uniform(1, 6))
        finally:
            self.keys.write_text(KEY)

    async def lose_models(self) -> None:
        away = self.models.with_name("away")
        async with self.folder:
            self.models.rename(away)
            try:
                self._signal(signal.SIGKILL)
                await asyncio.sleep(self._chance.uniform(1, 6))
            finally:
                away.rename(self.models)

    async def _change(self) -> None:
        """Reloads, and loads and unloads a model that nobody calls; where a worker hangs, that may be refused."""
        headers = self.server.client.headers
        async with httpx2.AsyncClient(base_url=self.server.url, headers=headers, timeout=90, trust_env=False) as client:
            while True:
                await asyncio.sleep(self._chance.uniform(0, 4))
                what = self._chance.choice(("load", "unload", "hangup"))
                if what == "hangup":
                    self.server.process.send_signal(signal.SIGHUP)
                    self.done["hangup"] += 1
                    continue
                began = time.monotonic()
                with suppress(httpx2.HTTPError):
                    answer = await client.post(f"/v2/repository/models/{OTHER}/{what}")
                    self.done[f"{what}: {answer.status_code}"] += 1
                if time.monotonic() - began > 60:
                    self.wrong.append(f"{what} took {time.monotonic() - began:.0f} s")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            with suppress(*_NO_ANSWER):
                self._compare(await asyncio.to_thread(self.server.figures))
            with suppress(*_NO_ANSWER):
                await self._look(await asyncio.to_thread(self._ready))

    def _compare(self, figures: dict[str, float]) -> None:
        """Notes a counter that is lower than in the scrape before; counts of models that are gone may end."""
        self.done["scrapes"] += 1
        for name, number in figures.items():
            if name.partition("{")[0].endswith(_COUNTED):
                if number < self._last.get(name, 0) - 1e-6:
                    self.wrong.append(f"{name} went back from {self._last[name]} to {number}")
                self._last[name] = number

    def _ready(self) -> list[int]:
        return [one["pid"] for one in self.server.get("/healthz").json()["workers"] if one["ready"]]

    async def _look(self, ready: list[int]) -> None:
        dead = {pid for pid in ready if not proc.is_there(pid)}
        if dead:
            await asyncio.sleep(_LIVES_SECONDS)
            still = dead.intersection(await asyncio.to_thread(self._ready))
            self.wrong.extend(f"worker {pid} is dead, and shown as ready" for pid in still)
