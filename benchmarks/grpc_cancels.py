"""Memory that a cancelled gRPC call leaves behind, here and in a plain server. `python -m benchmarks.grpc_cancels`.

grpcio's asyncio server does not free what it allocated for an operation that fails, or whose call is cancelled
(grpc/grpc#43360, open for grpcio 1.85). Two servers get the same calls in turns: callers on connections of their own
cancel each call after a random time. The plain one (`benchmarks/peers/plain_grpc.py`) has none of this project's code.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.peers.plain_grpc import METHOD
from lengthwise.bench import launch
from lengthwise.commands.command import Command
from lengthwise.protocols.grpc_infer import SERVICE
from lengthwise.protocols.open_inference import open_inference_pb2 as pb

PAGE = pages.RESULTS / "grpc_cancels.md"
CALLERS: Final = 8
STEPS: Final = np.zeros((1, 20, 12), dtype="<f4")
"""A sequence for the bundled model."""


@contextmanager
def plain() -> Iterator[tuple[int, int, str]]:
    """Process, port and method of the plain server."""
    port = launch.free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.plain_grpc", str(port)])
    try:
        yield process.pid, port, METHOD
    finally:
        process.kill()
        process.wait()


@contextmanager
def lengthwise() -> Iterator[tuple[int, int, str]]:
    """Process, port and method of the service with the bundled model."""
    port, grpc_port = launch.free_port(), launch.free_port()
    command = launch.serve_command(None, port, {"grpc_port": str(grpc_port), "log_level": "warning"})
    with launch.running(command, port) as running:
        yield running.pid, grpc_port, f"/{SERVICE}/ModelInfer"


def resident_bytes(process: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


async def cancelled(port: int, method: str, count: int, latest: float, seed: int) -> None:
    """Cancels so many calls, each up to `latest` seconds after it began."""
    request = pb.ModelInferRequest(model_name="japanese-vowels", raw_input_contents=[STEPS.tobytes()])
    request.inputs.add(name="values", datatype="FP32", shape=STEPS.shape)
    message = request.SerializeToString()
    own = [("grpc.use_local_subchannel_pool", 1)]

    async def caller(number: int) -> None:
        random = Random(f"{seed}-{number}")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) as channel:
            call = channel.unary_unary(method)
            for _ in range(count // CALLERS):
                asked = call(message, wait_for_ready=True)
                await asyncio.sleep(random.uniform(0, latest))
                asked.cancel()
                with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await asked

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


@click.command(cls=Command)
@click.option("--calls", type=click.IntRange(CALLERS), default=8000, show_default=True, help="In each turn.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Of both servers.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(calls: int, turns: int, out: Path) -> None:
    """Measures resident memory per cancelled call."""
    facts = machine.facts()
    lines = []
    for latest in (0.0005, 0.005):
        left: list[list[float]] = [[], []]
        with plain() as one, lengthwise() as other:
            for turn in track(range(turns + 1), f"up to {latest * 1e3:g} ms", console=Console(stderr=True)):
                for place, (process, port, method) in enumerate((one, other)):
                    before = resident_bytes(process)
                    asyncio.run(cancelled(port, method, calls, latest, turn))
                    if turn:  # the first turn warms up
                        left[place].append((resident_bytes(process) - before) / calls)
        lines.append(
            (f"{latest * 1e3:g} ms", *(f"{median(each):,.0f} ({min(each):,.0f}-{max(each):,.0f})" for each in left))
        )
    table = pages.table(("cancelled within", "a plain server, bytes a call", "Lengthwise, bytes a call"), lines)
    said = (
        f"`python -m benchmarks.grpc_cancels`, grpcio {grpc.__version__}: {turns} turns of {calls:,} calls over "
        f"{CALLERS} connections, each cancelled after a random time; growth of resident memory, median and range."
    )
    pages.write(out, pages.page(facts, "Memory after cancelled gRPC calls", said, table))
    click.echo(table)


if __name__ == "__main__":
    main()
