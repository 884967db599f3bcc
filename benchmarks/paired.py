"""Two checkouts in short alternating turns on one machine: `python -m benchmarks.paired --before PATH`.

Both servers run on the first core, one of them idle; the load comes from another core. Requests are measured in
processor time of the server, which other work on the machine disturbs little. Each turn measures both checkouts and
takes the ratio; the result is the median of the turns with the range of its middle half. Two processes of the same
program may differ by some percent for as long as they run, so the servers are started anew several times. Both
checkouts run with this Python and need their modules in C built: `python setup.py build_ext --inplace` in each.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click
import grpc
import numpy as np
import orjson
from rich.console import Console

from benchmarks import machine, pages
from benchmarks.protocols import FORMS
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import drive
from lengthwise.bench.schedule import Closed
from lengthwise.bench.workload import Input, json_body, make_sequences
from lengthwise.padding import Steps
from lengthwise.protocols.grpc_server import INFER

MODEL = "japanese-vowels"
_JSON = {"content-type": "application/json"}

Measure = Callable[[], float]
"""Measures once; smaller is better."""


@dataclass(frozen=True)
class Checkout:
    """A folder with the project's source, old layout or new."""

    root: Path

    @property
    def nested(self) -> bool:
        """Whether the packages lie one folder deeper, and are called `lengthwise`."""
        return (self.root / "service/lengthwise").is_dir()

    @property
    def environment(self) -> dict[str, str]:
        """Finds its packages before those that are installed."""
        places = ("service", "model_export", ".") if self.nested else (".",)
        return os.environ | {"PYTHONPATH": ":".join(str(self.root / place) for place in places)}

    @property
    def package(self) -> Path:
        """The service's package."""
        return self.root / ("service/lengthwise" if self.nested else "service")

    @property
    def model(self) -> Path:
        """The bundled model's directory."""
        return self.package / "models" / MODEL / "1"

    def command(self, *words: str) -> float:
        """Processor seconds of a command of its own Python process.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        before = _children_seconds()
        self.output(*words)
        return _children_seconds() - before

    def output(self, *words: str) -> str:
        """The output of a command of its own Python process."""
        options = {"env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        done = subprocess.run([sys.executable, *words], cwd=self.root, check=True, text=True, **options)
        return str(done.stdout)


@dataclass(frozen=True)
class PairedServer:
    """A running server of a checkout."""

    target: ServerAddress
    grpc_port: int
    pid: int

    def requests(self, requests: list[bytes], count: int, connections: int = 1) -> float:
        """Microseconds of the server's processor time per request."""
        drive(self.target, requests, Closed(60, count // 4), connections=connections)
        before = server_seconds(self.pid)
        seen = drive(self.target, requests, Closed(60, count), connections=connections)
        spent = server_seconds(self.pid) - before
        if len(seen.status) != count or set(seen.status.tolist()) != {200}:
            raise click.ClickException(f"{self.target} answered {len(seen.status)} of {count}: {set(seen.status)}")
        return spent / count * 1e6

    def calls(self, messages: list[bytes], count: int) -> float:
        """The same over gRPC."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            call = channel.unary_unary(f"/{INFER}")
            for message in itertools.islice(itertools.cycle(messages), count // 4):
                call(message)
            before = server_seconds(self.pid)
            for message in itertools.islice(itertools.cycle(messages), count):
                call(message)
            return (server_seconds(self.pid) - before) / count * 1e6


def server_seconds(pid: int) -> float:
    """Processor time of a process's threads so far, to the nanosecond."""
    spent = [path.read_text(encoding="ascii").split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, spent)) / 1e9


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def served(checkout: Checkout, core: int, *, empty: bool = False) -> Iterator[PairedServer]:
    """Starts a checkout's server with one runner on a core; `empty` leaves the graph's runs out."""
    port, grpc_port = launch.free_port(), launch.free_port()
    words = ["serve", "--port", str(port), "--grpc-port", str(grpc_port), "--runners", "1", "--log-level", "error"]
    module = ["benchmarks.variants", "empty-run"] if empty else ["lengthwise"]
    command = ["env", "-C", str(checkout.root), sys.executable, "-m", *module, *words]
    with launch.running(command, port, cores=[core], environment=checkout.environment) as server:
        yield PairedServer(server.target, grpc_port, server.pid)


def first_answer(checkout: Checkout, core: int) -> float:
    """Seconds from the start of the command to the first answer."""
    start = time.perf_counter()
    with served(checkout, core):
        return time.perf_counter() - start


def of_servers(server: PairedServer, sequences: list[Steps], scale: float) -> dict[str, Measure]:
    """Measures of a running server."""
    by_name = {form.name: form for form in FORMS}
    many = [server.target.request("/predict", json_body(sequences[:64]), _JSON)]
    measures: dict[str, Measure] = {}
    for name in ("JSON `/predict`", "octets `/predict`", "v2 JSON"):
        single = [by_name[name].write(server.target, steps) for steps in sequences]
        measures[f"{name}, cpu us a request"] = partial(server.requests, single, int(1000 * scale))
        if name.startswith("JSON"):
            title = f"{name}, 64 connections, cpu us a request"
            measures[title] = partial(server.requests, single, int(2000 * scale), 64)
            measures[f"{name}, 64 sequences, cpu us a request"] = partial(server.requests, many, int(100 * scale))
    messages = [by_name["gRPC"].write(server.target, steps) for steps in sequences]
    return measures | {"gRPC, cpu us a request": partial(server.calls, messages, int(500 * scale))}


def of_commands(checkout: Checkout, records: Path, count: int, core: int) -> dict[str, Measure]:
    """Measures of commands that are started."""
    server = "lengthwise.http.server" if checkout.nested else "service.server"
    out = records.with_suffix(".out")

    def scoring() -> float:
        words = ["score", str(records), str(out), "--model", str(checkout.model), "--threads", "1", "--overwrite"]
        summary = json.loads(checkout.output("-m", "lengthwise", *words, "--json"))
        return sum(summary["cpu_seconds"].values()) / count * 1e6

    def planning() -> float:
        rows = json.loads(checkout.output("-m", "benchmarks.planner", "--waiting", "256", "--rounds", "3", "--json"))
        return median(row["steady_us"] for row in rows)

    return {
        "scoring a file, cpu us a sequence": scoring,
        "planning, us a decision at 256 waiting": planning,
        "serve to the first answer, s": partial(first_answer, checkout, core),
        "`lengthwise --help`, cpu s": partial(checkout.command, "-m", "lengthwise", "--help"),
        "`import lengthwise`, cpu s": partial(checkout.command, "-c", "import lengthwise"),
        "import of the server, cpu s": partial(checkout.command, "-c", f"import {server}"),
    }


def in_turns(
    measures: list[dict[str, Measure]], turns: int, only: str, pairs: dict[str, list[tuple[float, float]]]
) -> None:
    """Adds pairs of figures; the checkout that is measured first alternates."""
    for turn, name in itertools.product(range(turns), (name for name in measures[0] if only in name)):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        seen = {place: measures[place][name]() for place in order}
        pairs.setdefault(name, []).append((seen[0], seen[1]))


def row(name: str, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
    """Medians, and the median ratio with the quartiles around it."""
    low, middle, high = np.quantile([after / before for before, after in pairs], [0.25, 0.5, 0.75]).tolist()
    shown = (f"{median(side):,.4g}" for side in zip(*pairs, strict=True))
    return (name, *shown, f"{middle:.3f}", f"{low:.3f}-{high:.3f}")


@click.command()
@click.option("--before", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--after", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", show_default=True)
@click.option("--turns", type=click.IntRange(1), default=4, show_default=True, help="With each start.")
@click.option("--starts", type=click.IntRange(1), default=5, show_default=True, help="Of both servers.")
@click.option("--quick", is_flag=True, help="A tenth of the requests: to see that it runs.")
@click.option("--empty-run", is_flag=True, help="Servers that do not run the graph: what else a request takes.")
@click.option("--only", default="", help="Measures whose name contains this.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Page to write.")
def main(
    before: Path, after: Path, turns: int, starts: int, quick: bool, empty_run: bool, only: str, out: Path | None
) -> None:
    """Compares two checkouts."""
    facts = machine.facts()
    checkouts = [Checkout(path.resolve()) for path in (before, after)]
    for checkout in checkouts:
        if not [*checkout.package.rglob("_*.so")]:
            raise click.UsageError(f"{checkout.root} has no modules in C: python setup.py build_ext --inplace there")
    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [core])
    random = np.random.default_rng(0)
    sequences = make_sequences(random.integers(7, 30, 128), Input("values", 12), random)
    scale, count = (0.1, 200) if quick else (1.0, 20_000)
    pairs: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack, Console(stderr=True).status("measuring"):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with (records := folder / "records.jsonl").open("wb") as file:
            for number in range(count):
                record = {"id": f"r{number}", "steps": sequences[number % len(sequences)]}
                file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        for start in range(starts):
            with ExitStack() as running:
                order = checkouts if start % 2 == 0 else checkouts[::-1]
                servers = {each: running.enter_context(served(each, core, empty=empty_run)) for each in order}
                both = [of_servers(servers[each], sequences, scale) for each in checkouts]
                in_turns(both, turns, only, pairs)
        in_turns([of_commands(each, records, count, core) for each in checkouts], starts, only, pairs)
    titles = [machine.described(checkout.root) or str(checkout.root) for checkout in checkouts]
    table = pages.table(("", *titles, "ratio", "middle half"), [row(name, seen) for name, seen in pairs.items()])
    how = f"`python -m benchmarks.paired`: medians of {turns} turns after each of {starts} starts."
    text = pages.page(facts, f"{titles[1]} against {titles[0]}", how, table)
    if out is not None:
        pages.write(out, text)
    click.echo(text)


if __name__ == "__main__":
    main()
