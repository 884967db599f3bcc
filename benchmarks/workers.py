"""One and several workers: memory, start, throughput, spread of connections: `python -m benchmarks.workers`.

The services take turns, one and then two workers, under the same `lengthwise bench`, on all cores: the load generator
needs some of them, so throughput says less than requests for each second of processor time. Memory is proportional
(shared pages are divided among those that share them), of parent and workers together.

Four connections are opened at once, fifty times, in three ways of taking them: by workers that leave a connection to
another that has fewer, as the service does; by whichever comes first; and by the kernel's hash (SO_REUSEPORT).

Over gRPC the model is a BiLSTM at int8, and the load is h2load (Debian's nghttp2-client), which needs little: one
sequence of 50 steps, from 64 callers on four connections. How much of its cores a service uses says what another worker
could add.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import machine, output, pages, processes
from benchmarks.workloads import lognormal
from lengthwise.bench.launch import free_port
from lengthwise.files import bundled_models
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import INFER
from lengthwise.repository.modest import memory_bytes
from tests.support import proc

PAGE = pages.RESULTS / "workers.md"
PATIENCE_SECONDS = 180.0
OPENED = 4
CALLERS = 64  # over gRPC
STEPS = 50  # of each of their sequences
_MAIN = "from lengthwise.commands.cli import main; main()"
_FIRST_COME = "from lengthwise.processes.worker import Worker; Worker.accept_delay = lambda *_: 0.0; "
_HASHED = """
import contextlib, socket, sys
from lengthwise.processes import supervisor, worker
port = int(sys.argv[sys.argv.index("--port") + 1])
def bound():
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", port))
    held.setblocking(False)
    return held
@contextlib.contextmanager
def listening(*_):
    with bound() as held:
        yield held
def own(self, name):
    held = bound()
    held.listen(2048)
    return held
supervisor.listening, worker.Worker.socket, worker.Worker.accept_delay = listening, own, lambda *_: 0.0
"""
WAYS = {"leave it to the one that has fewer": "", "first come": _FIRST_COME, "SO_REUSEPORT": _HASHED}


@contextlib.contextmanager
def served(
    workers: int, before: str = "", *options: str, models: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """A service of so many workers, its address, and the seconds until all were ready."""
    port = free_port()
    program = [sys.executable, "-c", before + _MAIN, "serve", str(models or bundled_models()), "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*program, "--workers", str(workers), "--log-level", "error", *options], start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        processes.wait_for_workers(url, process)
        yield process, url, time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


def memory_mib(pids: Sequence[int]) -> float:
    """The proportional memory of processes."""
    return sum(map(memory_bytes, pids)) / 2**20


def turn(workers: int, connections: Sequence[int], seconds: float) -> dict[str, float]:
    """The figures of one service."""
    with served(workers) as (process, url, start):
        pids = {process.pid, *(one["pid"] for one in processes.workers(url))}
        figures = {"start s": start, "memory MiB": memory_mib([*pids])}
        for count in connections:
            before = processes.cpu_seconds(process.pid)
            command = [sys.executable, "-m", "lengthwise", "bench", url, "--json", "--concurrency", str(count)]
            done = subprocess.run(
                [*command, "--duration-seconds", str(seconds)],
                stdout=subprocess.PIPE,
                check=True,
            )
            load = json.loads(done.stdout)["loads"][0]
            spent = processes.cpu_seconds(process.pid) - before
            figures[f"requests/s, {count} connections"] = load["requests_per_second"]
            figures[f"p99 ms, {count} connections"] = load["latency_ms"]["p99"]
            figures[f"core-seconds, {count} connections"] = spent
    return figures


def over_grpc(workers: int, cores: int, seconds: float) -> dict[str, float]:
    """The figures over gRPC of one service on so many cores."""
    work, port = lognormal(0, 1, precision="int8"), free_port()
    request = pb.ModelInferRequest(model_name=work.name, raw_input_contents=[bytes(STEPS * 12 * 4)])
    request.inputs.add(name="values", datatype="FP32", shape=[1, STEPS, 12])
    message = request.SerializeToString()
    pin = f"import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[:cores]}); "
    with (
        served(workers, pin, "--grpc-port", str(port), models=work.repository) as (process, url, _start),
        tempfile.NamedTemporaryFile() as body,
    ):
        body.write(b"\0" + len(message).to_bytes(4, "big") + message)
        body.flush()
        load = ["h2load", f"--clients={OPENED}", f"--max-concurrent-streams={CALLERS // OPENED}", f"--data={body.name}"]
        load += ["--header=content-type: application/grpc", "--header=te: trailers", f"http://127.0.0.1:{port}/{INFER}"]
        subprocess.run([*load, "--duration=1"], stdout=subprocess.DEVNULL, check=True)
        answered, spent = _answered(url), processes.cpu_seconds(process.pid)
        subprocess.run([*load, f"--duration={seconds:g}"], stdout=subprocess.DEVNULL, check=True)
        answered, spent = _answered(url) - answered, processes.cpu_seconds(process.pid) - spent
    return {"calls/s": answered / seconds, "cores used": spent / seconds, "calls per core-second": answered / spent}


def _answered(url: str) -> float:
    """The calls that were answered well, as the service counts them."""
    families = text_string_to_metric_families(httpx2.get(f"{url}/metrics", trust_env=False).text)
    samples = (sample for family in families for sample in family.samples)
    return sum(each.value for each in samples if each.name.endswith("requests_total") and each.labels["code"] == "200")


def spread(before: str, times: int) -> list[Counter[int]]:
    """How many of four connections each of two workers had, each time."""
    found = []
    with served(2, before) as (_, url, _start):
        port = int(url.rpartition(":")[2])
        pids = [one["pid"] for one in processes.workers(url)]
        for _ in range(times):
            wires = [socket.create_connection(("127.0.0.1", port)) for _ in range(OPENED)]
            for wire in wires:
                wire.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                wire.recv(4096)
            found.append(Counter({pid: proc.connections(pid, port) for pid in pids}))
            for wire in wires:
                wire.close()
            while sum(proc.connections(pid, port) for pid in pids):
                time.sleep(0.005)
    return found


@click.command()
@click.option("--connections", "counts", type=click.IntRange(1), multiple=True, default=(64, 4), show_default=True)
@click.option("--workers", type=click.IntRange(2), default=2, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Pairs of turns.")
@click.option("--times", type=click.IntRange(1), default=50, show_default=True, help="Of four connections.")
@output.as_json_or_page(PAGE)
def main(
    counts: Sequence[int], workers: int, seconds: float, rounds: int, times: int, as_json: bool, out: Path | None
) -> None:
    """Measures one worker beside several."""
    facts = machine.facts()
    if shutil.which("h2load") is None:
        raise click.ClickException("h2load is missing: apt-get install nghttp2-client")
    services = [(1, 1), (1, workers), (workers, workers)]
    calls = [over_grpc(*services[place], seconds) for _ in range(rounds) for place in range(3)]
    rpc = {service: calls[place::3] for place, service in enumerate(services)}
    found: dict[int, list[dict[str, float]]] = {1: [], workers: []}
    for number in range(rounds):
        for count in (1, workers) if number % 2 == 0 else (workers, 1):
            found[count].append(turn(count, counts, seconds))
    names = [*found[1][0]]
    shown = {count: {name: median(one[name] for one in turns) for name in names} for count, turns in found.items()}
    lines = [[name, *(f"{shown[count][name]:.4g}" for count in shown)] for name in names]
    rpc_lines = [
        [f"{count} on {cores}", *(f"{median(one[name] for one in turns):.4g}" for name in turns[0])]
        for (count, cores), turns in rpc.items()
    ]
    ways = {way: spread(before, times) for way, before in WAYS.items()}
    shares = {way: Counter(max(each.values()) for each in all_of) for way, all_of in ways.items()}
    taken = [[way, *(str(shares[way].get(most, 0)) for most in (2, 3, 4))] for way in WAYS]
    text = pages.page(
        facts,
        "One worker and several",
        f"`python -m benchmarks.workers`: the bundled model, {seconds:g} s a load, medians of {rounds}. Memory is "
        "proportional, of parent and workers together.",
        pages.table(("", "1 worker", f"{workers} workers"), lines),
        f"A BiLSTM of 128 at int8 over gRPC, {CALLERS} callers, {STEPS} steps each, the load on the same cores:",
        pages.table(("workers on cores", *calls[0]), rpc_lines),
        f"How many of four connections the busier of two workers had, {times} times each:",
        pages.table(("connections are taken by", "2", "3", "4"), taken),
    )
    output.tell(text, {"figures": shown, "connections": shares}, as_json=as_json, out=out)


if __name__ == "__main__":
    main()
