"""Bad, slow and leaving callers, failing runs, reloads and stops at once: one answer to each request, the right one.

`make soak` runs the same for half an hour and measures memory and latency meanwhile.
"""

from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port
from lengthwise.protocols.turns import LARGE_BODIES_AT_ONCE
from tests.support import proc
from tests.support.chaos import Chaos, is_idle, publish, stop_for, until
from tests.support.grpc_chaos import GrpcChaos
from tests.support.model_directories import place
from tests.support.server_process import started

pytestmark = pytest.mark.process

CALLERS = 12
GRPC_CALLERS = 3
ANSWERS = 20


def seen(chaos: Chaos, code: str) -> int:
    """How many requests ended with a status."""
    return sum(count for end, count in list(chaos.ends.items()) if end.endswith(code))


@pytest.mark.long
async def test_every_request_gets_one_answer_and_nothing_is_left_behind(tmp_path: Path) -> None:
    models, faults = tmp_path / "models", tmp_path / "faults"
    place(models, timed=True)
    port = free_port()
    with started(str(models), "--runners", "2", "--grpc-port", str(port), faults=faults) as server:
        chaos = Chaos(server)
        over_grpc = GrpcChaos(chaos, port)
        await chaos.ask_alone()
        await over_grpc.ask_alone()
        async with chaos.callers(CALLERS), over_grpc.callers(GRPC_CALLERS):
            await until(lambda: seen(chaos, "200") > ANSWERS, "some are answered")
        await until(lambda: is_idle(server), "nothing runs")
        files = proc.open_files(server.process.pid)
        # Threads for large bodies start with the first of them, and stay.
        most_threads = proc.threads(server.process.pid) + LARGE_BODIES_AT_ONCE
        async with chaos.callers(CALLERS), over_grpc.callers(GRPC_CALLERS):
            faults.write_text("0.1")
            publish(server, models, 2)
            await until(lambda: seen(chaos, "500"), "a run fails")
            await stop_for(server, 0.5)
            answered = seen(chaos, "200")
            await until(lambda: seen(chaos, "200") > answered + ANSWERS, "others are answered")
            faults.unlink()
            await until(lambda: '"version":"2"' in server.get("/healthz").text, "the next version is served")
            answered = seen(chaos, "200")
            await until(lambda: seen(chaos, "200") > answered + ANSWERS, "it answers")
        assert chaos.wrong == []
        ends = {end.partition(":")[0] for end in chaos.ends}
        assert ends >= {"good", "bad", "leaves", "slow", "gRPC good", "gRPC bad", "gRPC cancels"}
        await until(lambda: is_idle(server), "nothing waits, runs or is in memory")
        await until(lambda: proc.open_files(server.process.pid) <= files, "the files are closed")
        await until(lambda: proc.threads(server.process.pid) <= most_threads, "the threads have ended")
        server.terminate()
        assert server.end() == 0
