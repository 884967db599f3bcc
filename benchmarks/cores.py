"""Workers and runners on cores that are not here: `python -m benchmarks.cores`.

A runner of the service sleeps, with the interpreter's lock released, as long as the graph would compute
(`benchmarks.variants sleeping-run`), so as many runners as there would be cores work at once on a machine of two.
Python is not simulated: what reads, plans and answers takes the processor time of the real cores, which wrk shares. So
the figures show what one interpreter's lock costs, and what many processes cost, and nothing of what cores share:
memory, caches, their clock. The graph takes longer here than the small ones of users, so that the real cores are not
what ends the growth; the table has how much of them the service used, and a line near 2 says nothing.

For each number of cores: every way to divide them into workers and runners, and `serve` with no option (`auto`). The
second table has one caller, who reaches one worker: with one process, and with `auto`, which borrows the cores of the
workers that rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks import machine, output, pages, processes, wrk
from benchmarks.workloads import lognormal
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import free_port
from lengthwise.bench.load import Load, Schedule
from lengthwise.bench.trial import groups_of, json_requests
from lengthwise.files import available_cores
from lengthwise.padding import Steps
from tests.support import prepared

PAGE = pages.RESULTS / "cores.md"
MODELS: Final = {"small": (15, 0.8), "larger": (50, 4.0)}
"""The mean steps of a request, and the milliseconds that its graph takes on one simulated core."""
REAL: Final = {"JapaneseVowels": 15, "BiLSTM of 128": 50}
"""The mean steps of a request to models that really run, on the cores of this machine (`--real`)."""
LONE: Final = {"256 sequences in a body": 256, "8 sequences in a body": 8, "gRPC channel, 64 calls at once": 1}
"""What one caller sends, one after the other but on the channel, and how many sequences in each."""
_CHANNEL_CALLS = 64
_SEQUENCES = 64  # of different lengths, sent in turn
_AUTO = "auto"


def settings_of(cores: int) -> list[str]:
    """Every way to divide cores into workers and runners, by `WORKERSxRUNNERS`, and `auto`."""
    return [f"{workers}x{cores // workers}" for workers in range(1, cores + 1) if cores % workers == 0] + [_AUTO]


def program(cores: int, model: str) -> list[str]:
    """The command that serves a model, on so many simulated cores or on those of this machine."""
    if model in REAL:
        models = prepared.models() if model == "JapaneseVowels" else lognormal(0, 1).repository
        return [sys.executable, "-m", "lengthwise", "serve", str(models)]
    steps, milliseconds = MODELS[model]
    part = f"sleeping-run:{cores}:{milliseconds / steps / 1000:g}"
    return [sys.executable, "-m", "benchmarks.variants", part, "serve", str(prepared.models())]


@contextmanager
def served(command: Sequence[str], setting: str, grpc_port: int | None = None) -> Iterator[tuple[int, str, int]]:
    """A service: its process, its address, and how many workers it has."""
    port = free_port()
    command = [*command, "--provider", "cpu", "--port", str(port), "--log-level", "error", "--no-console"]
    if grpc_port is not None:
        command += ["--grpc-port", str(grpc_port)]
    if setting != _AUTO:
        workers, runners = setting.split("x")
        command += ["--workers", workers, "--runners", runners]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        yield process.pid, url, processes.wait_for_workers(url, process)
    finally:
        process.terminate()
        process.wait()


def sequences(steps: int, count: int = _SEQUENCES) -> list[Steps]:
    """Sequences `[length, 12]` of lognormal lengths with so many steps on average."""
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(0, 0.7, count)
    lengths = np.clip(np.round(lengths * steps / lengths.mean()), 1, 500).astype(int)
    return [draw.normal(size=(length, 12)).round(3).astype(np.float32) for length in lengths]


def alone(url: str, grpc_port: int, steps: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The figures of one caller, for each of `LONE`."""
    from benchmarks import protocols  # with gRPC, which a bare machine lacks

    target = ServerAddress.parse(url)
    for kind, count in LONE.items():
        if count == 1:
            messages = [protocols.message(target, one) for one in sequences(steps)]
            calls = protocols.calls(grpc_port, messages, _CHANNEL_CALLS, seconds, float("inf"), wait=True)
            _, latencies, _ = asyncio.run(calls)
        else:
            requests = json_requests(target, groups_of(sequences(steps, 256), count))
            Load(target, requests, Schedule(seconds=0.5)).run(1)
            latencies = Load(target, requests, Schedule(seconds=seconds)).run(1).latency.tolist()
        p50, p99 = np.percentile(latencies, [50, 99], method="inverted_cdf") * 1e3
        yield {"lone": kind, "rate": count * len(latencies) / seconds, "p50": p50, "p99": p99}


def cells(one: dict[str, Any], best: float) -> list[str]:
    """The figures of one load, beside the most requests/s of any setting."""
    return [
        *(f"{one['rate']:,.0f}", f"{one['rate'] / best:.2f}", f"{one['p50']:.1f}, {one['p99']:.1f}"),
        *(f"{one['refused']:.0f}, {one['lost']:.0f}", f"{one['cores']:.2f}, {one['cores'] / one['rate'] * 1e6:.0f}"),
    ]


def lines(figures: Sequence[dict[str, Any]], cores: int, model: str) -> list[list[str]]:
    """A line for each setting, of one number of cores and one model."""
    settings: dict[str, list[dict[str, Any]]] = {}
    best: dict[int, float] = {}
    for one in figures:
        if (one["of"], one["model"]) == (cores, model) and "connections" in one:
            settings.setdefault(one["setting"], []).append(one)
            if one["setting"] != _AUTO:
                best[one["connections"]] = max(best.get(one["connections"], 1.0), one["rate"])
    return [
        [
            *(str(cores), model, setting + (f" = {loads[0]['workers']}" if setting == _AUTO else "")),
            *(cell for one in loads for cell in cells(one, best.get(one["connections"], one["rate"]))),
        ]
        for setting, loads in settings.items()
    ]


def lone_lines(figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each kind of caller, of each number of cores and model: one process, and `auto`."""
    of: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in figures:
        if "lone" in one:
            of.setdefault((f"{one['of']:2}", one["model"], one["lone"]), []).append(one)
    return [
        [*kind, *(f"{one['rate']:,.0f}, {one['p50']:.1f}, {one['p99']:.1f}" for one in both)]
        for kind, both in sorted(of.items())
    ]


def page(facts: dict[str, Any], figures: Sequence[dict[str, Any]], seconds: float) -> str:
    """The figures as a page."""
    heads = ["cores", "graph", "workers x runners"]
    for connections in dict.fromkeys(one["connections"] for one in figures if "connections" in one):
        heads += [f"{connections} connections: requests/s", "of the best", "p50, p99 ms", "refused, lost"]
        heads += ["real cores used, us a request"]
    kinds = sorted({(one["model"], one["of"]) for one in figures})
    table = pages.table(heads, [line for model, cores in kinds for line in lines(figures, cores, model)])
    if kinds and all(model in REAL for model, _ in kinds):
        return pages.page(
            facts,
            "Workers and runners on real cores",
            "`python -m benchmarks.cores --real`: models that run, on the cores that the command may use; "
            f"{seconds:g} s a load by wrk, in one thread. `auto` is `serve` with no option, with the number of its "
            "workers. Lost: not answered within the time that wrk waits.",
            table,
        )
    text = ", ".join(f"{name} {ms:g} ms for {steps} steps" for name, (steps, ms) in MODELS.items())
    return pages.page(
        facts,
        "Workers and runners on simulated cores",
        "`python -m benchmarks.cores`: runs of the graph sleep, and Python runs on the machine's own cores beside wrk. "
        f"{seconds:g} s a load. Graphs on one core: {text}. A setting that uses near two real cores is bounded by this "
        "machine. `auto` goes by the bytes of a graph: here one that would take so long (`benchmarks.variants`). Lost: "
        "not answered within the time that wrk waits.",
        table,
        "One caller, who reaches one worker: sequences/s, p50 and p99 in ms.",
        pages.table(["cores", "graph", "the caller sends", "one process", "auto"], lone_lines(figures)),
    )


@click.command()
@click.option("--cores", "counts", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 12, 16), show_default=True)
@click.option("--model", "models", type=click.Choice([*MODELS]), multiple=True, default=[*MODELS], show_default=True)
@click.option("--real", is_flag=True, help="Models that run, on the cores of this machine; without the single callers.")
@click.option("--setting", "chosen", multiple=True, metavar="WxR", help="Only these, or auto.")
@click.option("--connections", "clients", type=click.IntRange(1), multiple=True, default=(64, 256), show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=3, show_default=True, help="Of each load.")
@click.option(
    "--add-to", type=click.Path(dir_okay=False, path_type=Path), help="File of figures: those of earlier calls."
)
@output.as_json_or_page(PAGE)
def main(
    counts: Sequence[int],
    models: Sequence[str],
    real: bool,
    chosen: Sequence[str],
    clients: Sequence[int],
    seconds: int,
    add_to: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measures every division of simulated cores into workers and runners, and what `serve` chooses by itself."""
    if not wrk.is_installed():
        raise click.ClickException("wrk is missing: apt-get install wrk")
    facts = machine.facts()
    figures: list[dict[str, Any]] = json.loads(add_to.read_text()) if add_to is not None and add_to.exists() else []
    models, counts = ([*REAL], [available_cores()]) if real else (models, counts)
    has_lone_callers = not real and find_spec("grpc") is not None
    with tempfile.TemporaryDirectory() as folder:
        for model, cores in itertools.product(models, counts):
            steps, lua = REAL[model] if real else MODELS[model][0], Path(folder) / f"{model}.lua"
            lua.write_text(wrk.script(sequences(steps)))
            for setting in chosen or settings_of(cores):
                kind, grpc_port = (
                    {"of": cores, "model": model, "setting": setting},
                    free_port() if has_lone_callers else None,
                )
                with served(program(cores, model), setting, grpc_port) as (pid, url, workers):
                    loads = (
                        {"connections": count, "workers": workers}
                        | wrk.load(f"{url}/predict", pid, lua, count, seconds)
                        for count in clients
                    )
                    lone = (
                        alone(url, grpc_port, steps, seconds)
                        if grpc_port is not None and setting in (_AUTO, f"1x{cores}")
                        else ()
                    )
                    for one in itertools.chain(loads, lone):
                        figures.append(kind | one)
                        click.echo(f"{cores} cores, {model}, {setting}: {one}", err=True)
    if add_to is not None:
        add_to.write_text(json.dumps(figures))
    output.tell(page(facts, figures, seconds), figures, as_json=as_json, out=out)


if __name__ == "__main__":
    main()
