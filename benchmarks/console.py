"""What the live view costs callers: `python -m benchmarks.console`.

One server runs the graph of the lognormal workload on the first core; the load and the viewers run on the others. The
load is open, at half of what the server can answer. Turns without the view and with it open alternate; the p99 of each
pair of turns is compared. A viewer reads `/console/live` as the page does, parses each frame, and asks for
`/console/state` every 5 seconds. With `--browsers`, Chromium windows show the page itself (Playwright); they need cores
of their own, or they slow the load down.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages, processes
from benchmarks.workloads import lognormal
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.commands.command import Command

PAGE = pages.RESULTS / "console.md"
VIEWERS = 3
STATE_FRAMES = 25


class Reader(threading.Thread):
    """A viewer: reads the live view until it is ended, and counts frames, the batches in them and their bytes."""

    def __init__(self, target: ServerAddress) -> None:
        super().__init__(daemon=True)
        self.frames = self.batches = self.read_bytes = 0
        self._connection = http.client.HTTPConnection(target.host, target.port, timeout=30)
        self._state = http.client.HTTPConnection(target.host, target.port, timeout=30)
        self._connection.request("GET", "/console/live")
        self._socket = self._connection.sock  # the connection forgets it, because the response ends it
        self._answer = self._connection.getresponse()
        if self._answer.status != 200:
            raise click.ClickException(f"/console/live: {self._answer.status} {self._answer.read()!r}")

    def run(self) -> None:
        """Reads frames until the connection is closed."""
        try:
            while line := self._answer.readline():
                if line.startswith(b"data: {"):
                    self.frames += 1
                    self.read_bytes += len(line)
                    self.batches += json.loads(line[6:])["totals"]["batches"]
                    if self.frames % STATE_FRAMES == 0:
                        self._state.request("GET", "/console/state")
                        self._state.getresponse().read()
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # `end` closed the connection

    def end(self) -> None:
        """Closes the connection."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._connection.close()
        self._state.close()


@contextmanager
def readers(target: ServerAddress, seen: list[Reader]) -> Iterator[None]:
    """Three viewers while the block runs; they are added to `seen`."""
    opened = [Reader(target) for _ in range(VIEWERS)]
    for reader in opened:
        reader.start()
    try:
        yield
    finally:
        for reader in opened:
            reader.end()
        seen += opened


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(1), default=6.0, show_default=True, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True, help="Pairs of turns.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(seconds: float, rounds: int, out: Path) -> None:
    """Measures p99 with the live view open three times over without."""
    facts = machine.facts()
    work = lognormal(0, 500)
    server = processes.first_core()
    name, version = work.directory.parts[-2:]
    seen: list[Reader] = []
    p99: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        port = launch.free_port()
        command = launch.serve_command(work.repository, port, {"versions": f"{name}/{version}"})
        running = stack.enter_context(launch.running(command, port, cores=[server]))
        test = prepare(running.target, work.sequences, fields={"model": name, "version": version}, check=False)
        capacity = test.run(LoadSpec(concurrency=64, seconds=seconds)).requests_per_second
        load = LoadSpec(concurrency=256, seconds=seconds, rate=capacity / 2)
        for turn in track(range(rounds), "rounds", console=Console(stderr=True)):
            for looked_at in (False, True) if turn % 2 else (True, False):
                with ExitStack() as view:
                    if looked_at:
                        view.enter_context(readers(running.target, seen))
                    figures = test.run(replace(load, seed=turn))
                p99[looked_at].append(figures.latency_ms.p99 if figures.latency_ms else float("nan"))
    ratios = [one / other for other, one in zip(*p99, strict=True)]
    rows = [
        ("p99 without the view, ms", f"{median(p99[0]):.2f}", f"{min(p99[0]):.2f}-{max(p99[0]):.2f}"),
        ("p99 with it, ms", f"{median(p99[1]):.2f}", f"{min(p99[1]):.2f}-{max(p99[1]):.2f}"),
        ("with it, over without", f"{median(ratios):.3f}", f"{min(ratios):.2f}-{max(ratios):.2f}"),
    ]
    if seen:
        of = [reader.read_bytes / max(reader.frames, 1) / 1024 for reader in seen]
        rows.append(("KiB of a frame", f"{median(of):.1f}", f"{min(of):.1f}-{max(of):.1f}"))
    table = pages.table(("at half load", "median", "range"), rows)
    said = (
        f"`python -m benchmarks.console`: the server on one core, an open load of "
        f"{capacity / 2:,.0f} requests/s (half of what it answers over 64 connections), {rounds} pairs of turns of "
        f"{seconds:g} s, the view open in three readers, "
        f"which read the stream as the page does, on the other core together with the load."
    )
    pages.write(out, pages.page(facts, "What the live view costs callers", said, table))
    click.echo(table)


if __name__ == "__main__":
    main()
