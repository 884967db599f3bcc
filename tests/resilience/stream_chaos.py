"""Many streams through a balancer while replicas are killed: `python -m tests.resilience.stream_chaos 10000`.

Each key sends its steps in chunks, over a few connections that take turns among the keys. Some chunks come twice, some
with an offset that is not the state's, and some with the state of another model. Meanwhile one of two replicas is
killed, at times both, and started again. A caller whose call has failed sends the same chunk and state again. Every
answer must have the bits of the answer to all steps so far.
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from lengthwise.bench.launch import free_port, serve_command
from lengthwise.padding import pad
from lengthwise.repository.loading import LoadedModel
from tests.deploy.live import started, until
from tests.deploy.tools import DEPLOY, program
from tests.support import proc
from tests.support.streaming_models import gru, model, place, sequences
from tests.support.waiting import answers

CONNECTIONS = 32
CHUNKS = 4
OTHER = "others"  # a second model, whose states are none of the first one's
SHARE_WRONG = 0.1  # of the chunks, for each way to be wrong: again, at another offset, of another model


@dataclass(eq=False)
class Key:
    """A sequence that goes on."""

    steps: np.ndarray
    ends: list[int]  # after how many steps each chunk ends
    expected: list[np.ndarray]  # the probabilities after each chunk
    state: str | None = None
    sent: int = 0  # chunks


@dataclass
class Replica:
    """A service that may be killed."""

    repository: Path
    log: Path
    port: int = field(default_factory=free_port)
    process: Any = None

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        command = serve_command(self.repository, self.port, {"runners": "1", "workers": "1"})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until("a replica is ready", 120, lambda: answers(self.port, "/readyz"), self.log.read_text)

    def kill(self) -> None:
        """Kills it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def resident_mib(self) -> float:
        """Its memory."""
        return proc.resident_bytes(self.process.pid) / 2**20


def keys(count: int, of: LoadedModel) -> list[Key]:
    """Keys with steps and their cuts at random, and what the whole so far is answered at each cut."""
    random = np.random.default_rng(0)
    made = [
        Key(steps, [*sorted(random.integers(1, len(steps) + 1, CHUNKS - 1).tolist()), len(steps)], [])
        for steps in sequences(random.integers(CHUNKS, 40, count).tolist())
    ]
    for number in range(CHUNKS):
        wholes = [key.steps[: key.ends[number]] for key in made]
        for start in range(0, count, 64):
            batch = pad(wholes[start : start + 64], blank=of.manifest.blank)
            for key, answer in zip(made[start : start + 64], of.answer(batch, False), strict=True):
                assert answer is not None
                key.expected.append(answer.probabilities)
    return made


@dataclass
class Callers:
    """Sends the chunks of all keys, and compares the answers."""

    client: httpx2.AsyncClient
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    ends: Counter[str] = field(default_factory=Counter)

    async def send(self, own: list[Key]) -> None:
        """Sends the chunks of these keys, whose turns are at random, until all are answered."""
        while own:
            key = own[self.random.integers(len(own))]
            await self._next(key)
            if key.sent == CHUNKS:
                own.remove(key)

    async def _next(self, key: Key) -> None:
        """Sends the next chunk of a key; before it, maybe what is refused, and after it, maybe the same again."""
        before, begin = key.state, key.ends[key.sent - 1] if key.sent else 0
        chunk = key.steps[begin : key.ends[key.sent]].tolist()
        draw = self.random.random(3) < SHARE_WRONG
        if draw[0]:
            refused = await self._ask(chunk, before, begin + 1)
            self._count("another offset", is_right=refused.status_code == 409)
        if draw[1] and before is not None:
            refused = await self._ask(chunk, before, begin, of=OTHER)
            self._count("another model's state", is_right=refused.status_code == 409)
        for what in ("a chunk", "a chunk again")[: 1 + draw[2]]:
            answer = await self._ask(chunk, before, begin)
            said = answer.json().get("predictions", [{}])[0]
            found = np.array(said.get("probabilities", []), np.float32)
            is_right = found.tobytes() == key.expected[key.sent].tobytes() and said["offset"] == key.ends[key.sent]
            self._count(what, is_right=is_right and key.state in (before, said["state"]))
            key.state = said["state"]
        key.sent += 1

    async def _ask(self, steps: Any, state: str | None, offset: int, of: str = "streams") -> httpx2.Response:
        """Sends a call until a replica answers it."""
        item = {"steps": steps, "offset": offset} | ({} if state is None else {"state": state})
        body = {"model": of, "sequences": [item], "outputs": ["state"]}
        while True:
            try:
                answer = await self.client.post("/predict", json=body)
            except httpx2.HTTPError as error:
                self.ends[f"sent again: {type(error).__name__}"] += 1
                continue
            if answer.status_code < 500:
                return answer
            self.ends[f"sent again: {answer.status_code}"] += 1
            await asyncio.sleep(0.05)  # as a caller would: both replicas are gone

    def _count(self, what: str, *, is_right: bool) -> None:
        self.ends[what if is_right else f"{what}: wrong"] += 1


async def storm(count: int, folder: Path, tell: Callable[[str], object] = str) -> tuple[Counter[str], list[float]]:
    """Runs it with so many keys.

    Returns:
        How the calls ended, and the MiB of the two replicas after half of the keys without kills, and at their end.
    """
    for name, seed in (("streams", 0), (OTHER, 1)):
        place(folder / "models", gru, options={"seed": seed}, name=name)
    port, replicas = free_port(), [Replica(folder / "models", folder / f"{number}.log") for number in (1, 2)]
    text = (DEPLOY / "nginx" / "nginx.conf").read_text().replace("/tmp/", f"{folder}/")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace(
        "worker_processes auto", "worker_processes 1"
    )
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"lengthwise-{number}:8000", f"127.0.0.1:{replica.port}")
    (folder / "nginx.conf").write_text(text)
    nginx = [program("nginx", "apt-get install nginx-light"), "-p", folder, "-c", folder / "nginx.conf"]
    folder.chmod(0o755)
    limits, every = httpx2.Limits(max_connections=CONNECTIONS), keys(count, model(gru))
    with ExitStack() as stack:
        for replica in replicas:
            replica.start()
            stack.callback(replica.kill)
        stack.enter_context(started([*nginx, "-g", "daemon off;"], folder / "nginx.log"))
        until("nginx answers", 20, lambda: answers(port, "/readyz"))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60) as client:
            callers, memory = Callers(client), []
            first = asyncio.create_task(_send(callers, every[: count // 2]))
            await _kills(replicas, callers, first, count * CHUNKS // 24, tell)
            await first
            for share in (every[count // 2 : count * 3 // 4], every[count * 3 // 4 :]):
                await _send(callers, share)
                memory += [replica.resident_mib for replica in replicas]
    return callers.ends, memory


async def _send(callers: Callers, some: list[Key]) -> None:
    await asyncio.gather(*(callers.send(some[first::CONNECTIONS]) for first in range(CONNECTIONS)))


async def _kills(
    replicas: list[Replica], callers: Callers, load: asyncio.Task[None], calls: int, tell: Callable[[str], object]
) -> None:
    """Kills a replica after so many calls, every third time both, and starts it again, until the load is over."""
    turn = 0
    while True:
        turn, before = turn + 1, callers.ends.total()
        while callers.ends.total() < before + calls:
            if load.done():
                return
            await asyncio.sleep(0.01)
        killed = replicas if turn % 3 == 0 else [replicas[turn % 2]]
        for replica in killed:
            replica.kill()
        callers.ends["both killed" if len(killed) == 2 else "one killed"] += 1
        tell(f"killed {len(killed)}: {callers.ends.total()} calls")
        await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in killed))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        ends, mib = asyncio.run(storm(int(sys.argv[1]), Path(made), print))
    print(dict(ends), [f"{each:.1f} MiB" for each in mib])
