"""How long other callers wait while `/metrics` is read with hundreds of versions. `python -m benchmarks.scrape`.

The bundled model is served under so many versions (the first start takes a minute or two: each is loaded). Callers ask
`/livez` again and again on kept connections, first alone, then while another process makes one scrape after the other;
their longest waits are those of the event loop, and of whatever else runs on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import httpx2
import numpy as np

from benchmarks import machine
from lengthwise.runtime.manifest import MANIFEST_FILE
from tests.support import prepared
from tests.support.server_process import started

_CALLERS = 4
_PAUSE_SECONDS = 0.0005
_ASK = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


def versions(folder: Path, count: int) -> None:
    """Makes a repository of so many versions of the bundled model, whose files are links."""
    (first,) = prepared.models().glob("*/1")
    for number in range(1, count + 1):
        directory = folder / first.parent.name / str(number)
        shutil.copytree(first, directory, copy_function=os.link)
        manifest = json.loads((first / MANIFEST_FILE).read_text()) | {"version": number}
        (directory / MANIFEST_FILE).unlink()
        (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def waits(port: int, over: threading.Event) -> list[float]:
    """Milliseconds of each answer to callers, until it is over."""
    found: list[float] = []

    def call() -> None:
        with socket.create_connection(("127.0.0.1", port)) as wire:
            while not over.wait(_PAUSE_SECONDS):
                began = time.perf_counter()
                wire.sendall(_ASK)
                wire.recv(65_536)
                found.append((time.perf_counter() - began) * 1000)

    callers = [threading.Thread(target=call) for _ in range(_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return found


def scrape(url: str, count: int) -> tuple[float, int]:
    """Reads the page so often: seconds of each, and its bytes."""
    began = time.perf_counter()
    sizes = [len(httpx2.get(f"{url}/metrics", timeout=60).content) for _ in range(count)]
    return (time.perf_counter() - began) / count, sizes[-1]


@click.command()
@click.option("--versions", "count", default=500, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--scrapes", default=10, show_default=True)
def main(count: int, workers: int, scrapes: int) -> None:
    """Measures the waits of callers without and with scrapes."""
    click.echo(f"load average before: {machine.facts()['load_average'][0]}")
    with tempfile.TemporaryDirectory(dir=prepared.models().parent) as folder, ProcessPoolExecutor(1) as other:
        versions(Path(folder), count)
        with started("--versions", "all", "--workers", str(workers), **{prepared.VARIABLE: folder}) as server:
            other.submit(scrape, server.url, 1).result()
            for name, work in (
                ("alone", partial(time.sleep, 0.3 * scrapes)),
                ("scrapes", partial(scrape, server.url, scrapes)),
            ):
                over, found = threading.Event(), list[float]()
                thread = threading.Thread(target=lambda over=over, found=found: found.extend(waits(server.port, over)))
                thread.start()
                result = other.submit(work).result()
                over.set()
                thread.join()
                middle, late, most = np.percentile(found, [50, 99, 100])
                click.echo(f"{name}: {len(found)} calls, median {middle:.1f}, p99 {late:.1f}, longest {most:.1f} ms")
            click.echo(f"a scrape took {result[0]:.2f} s and has {result[1]:,} bytes")


if __name__ == "__main__":
    main()
