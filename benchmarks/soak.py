"""Half an hour of chaos: `make soak`, or `python -m benchmarks.soak --minutes 2`.

Twenty callers send good, wrong, slow and unfinished requests over `/predict`, KServe v1 and v2, on connections of their
own: 20 % are wrong, 20 % leave at some point. Five more send good and wrong ones over gRPC; with `--grpc-cancels` they
also cancel 20 % of them, and memory grows: grpcio keeps some hundred bytes of each such call, whatever the server.
A fifth of the calls is recorded. Meanwhile

| every | happens |
|---|---|
| 5 s | a new version of the model is published and loaded |
| 20 s | for 5 s, a tenth of all runs fails |
| 30 s | the whole process is stopped for a second |
| 43 s | for 3 s, the process gets no further descriptors |
| 57 s | for 5 s, no file can grow, as on a full disk |

The service has keys and `--hung-seconds 3`. With `--workers 2` it has a full `/dev/shm` where this process may mount
one. And all the time one of its workers is killed, stopped, or kept from starting, the parent is stopped, or another
model is loaded or unloaded, as `tests.support.worker_faults` says. Then the run passes only if no counter of `/metrics`
ever went back, too, and nobody who was dead was shown as ready.

Meanwhile the clock of the day jumps at every reading, and the log goes to a full disk. The run passes if every request
that kept its connection got exactly one answer; every good answer had the same bits as its sequences got alone;
a worker that was killed cost each caller one request at most, and no counts but of these;
nothing waits, runs or is in memory at the end; descriptors and threads are as before; every file of records can be
read; and memory grew by less than 5 %.
"""

from __future__ import annotations

import asyncio
import math
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx2
import numpy as np
import pyarrow.parquet

from benchmarks import machine, output, pages
from lengthwise.bench.launch import free_port
from lengthwise.bench.plots import save
from lengthwise.protocols.turns import LARGE_BODIES_AT_ONCE
from tests.support import proc
from tests.support.chaos import Chaos, is_idle, publish, stop_for, until
from tests.support.grpc_chaos import GrpcChaos
from tests.support.model_directories import place
from tests.support.server_process import ServerProcess
from tests.support.worker_faults import KEY, OTHER, SHM, WorkerFaults, may_mount

PAGE = pages.RESULTS / "soak.md"
MOST_GROWTH = 0.05
_LOST = ("lost its connection", "over gRPC got UNAVAILABLE")
_CALLERS = 20
_GRPC_CALLERS = 5
_CONNECTIONS_OF_WATCH = 2  # that sample or reload when connections are counted
_WARM_SECONDS = 30.0
"""Memory of a process counts from this age on: the first versions and large bodies take what is kept."""
_SAMPLE_SECONDS = 2.0
_PARTS = 20
"""The slope of the memory is that of the means of so many parts of the time."""
_LEAST_SAMPLES = 4
"""Of fewer, a line has no standard error to speak of."""
_FULL_DISK = "/dev/full"


@dataclass
class Watch:
    """What is measured while the chaos lasts."""

    server: ServerProcess
    warm: float  # seconds from which on the memory of a process counts
    seconds: list[float] = field(default_factory=list)  # when each sample was taken, since the start
    # The resident MiB of a process that serves at each; with workers, the mean of those that are warm, and the parent's
    resident: list[float] = field(default_factory=list)
    seen: dict[int, float] = field(default_factory=dict)  # when each process was first there
    versions: int = 1  # how many versions were published
    stops: int = 0  # how many times the process was stopped
    started: float = field(default_factory=time.monotonic)
    answered: dict[str, float] = field(default_factory=dict)  # answers of 200 by series: those of old versions end

    def scrape(self) -> None:
        """Keeps what each series has counted."""
        for name, number in self.server.figures().items():
            if 'requests_total{code="200"' in name:
                self.answered[name] = max(number, self.answered.get(name, 0))

    async def sample_counts(self) -> None:
        """Samples the counts until it is cancelled; apart from the memory, as a stopped worker answers late."""
        while True:
            with suppress(OSError, httpx2.HTTPError):  # no worker answers now
                await asyncio.to_thread(self.scrape)
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def sample_memory(self) -> None:
        """Samples the memory until it is cancelled."""
        while True:
            with suppress(OSError):  # one of them has just ended
                self._sample_memory(time.monotonic() - self.started)
            await asyncio.sleep(_SAMPLE_SECONDS)

    def _sample_memory(self, now: float) -> None:
        parent = self.server.process.pid
        those = proc.serving(parent)
        warm = [pid for pid in those if now - self.seen.setdefault(pid, now) >= self.warm]
        if warm:
            of_parent = 0 if those == [parent] else proc.resident_bytes(parent)
            self.resident.append((of_parent + sum(map(proc.resident_bytes, warm)) / len(warm)) / 2**20)
            self.seconds.append(now)

    def _after(self, seconds: float) -> tuple[Any, Any]:
        """The samples after a time: seconds, MiB."""
        times, resident = np.array(self.seconds), np.array(self.resident)
        return times[times >= seconds], resident[times >= seconds]

    def memory(self, seconds: float) -> dict[str, Any]:
        """Of so many seconds of chaos: resident MiB early and late, and the slope; nothing known of too few samples.

        The slope is in MiB a minute, of the least-squares line through the means of parts of the time, with its
        standard error. Samples that follow each other are alike: taken one by one, the error would be too small.
        In a short run on a busy machine, hardly a worker lives long enough to be warm.
        """
        times, resident = self._after(self.warm + seconds / 10)
        if len(times) < _LEAST_SAMPLES:
            return dict.fromkeys(("early_mib", "late_mib"), math.nan) | {"slope": [math.nan, math.nan]}
        parts = [np.array_split(each, min(_PARTS, len(times))) for each in (times / 60, resident)]
        minutes, means = ([part.mean() for part in of_each] for of_each in parts)
        line_of, covariance = np.polyfit(minutes, means, 1, cov=True)
        _, resident = self._after(self.warm)
        few = max(1, len(resident) // 10)
        return {
            "early_mib": float(np.median(resident[:few])),
            "late_mib": float(np.median(resident[-few:])),
            "slope": [float(line_of[0]), float(np.sqrt(covariance[0, 0]))],
        }


async def _reload(watch: Watch, faults: WorkerFaults) -> None:
    while True:
        await asyncio.sleep(5)
        watch.versions += 1
        async with faults.folder:
            await asyncio.to_thread(publish, watch.server, faults.models, watch.versions)


async def _fail(faults: Path) -> None:
    while True:
        await asyncio.sleep(15)
        faults.write_text("0.1")
        await asyncio.sleep(5)
        faults.unlink()


async def _stop(watch: Watch) -> None:
    while True:
        await asyncio.sleep(29)
        await stop_for(watch.server, 1.0)
        watch.stops += 1


async def _starve(watch: Watch) -> None:
    while True:
        await asyncio.sleep(40)
        await _limited(watch, resource.RLIMIT_NOFILE, proc.open_files, 3)


async def _fill(watch: Watch) -> None:
    """A full disk, for files that are written to; the log goes to one all the time."""
    while True:
        await asyncio.sleep(52)
        await _limited(watch, resource.RLIMIT_FSIZE, lambda _: 0, 5)


async def _limited(watch: Watch, limit: int, most: Callable[[int], int], seconds: float) -> None:
    """Has the processes that serve live with a limit for a while."""
    before: dict[int, tuple[int, int]] = {}
    try:
        for pid in proc.serving(watch.server.process.pid):
            with suppress(OSError):
                before[pid] = resource.prlimit(pid, limit)
                resource.prlimit(pid, limit, (most(pid), before[pid][1]))
        await asyncio.sleep(seconds)
    finally:
        for pid, limits in before.items():
            with suppress(OSError):
                resource.prlimit(pid, limit, limits)


def _held(server: ServerProcess) -> tuple[int, int, int]:
    """Open connections, other open files, and threads of all processes of a service."""
    pids = {server.process.pid, *proc.serving(server.process.pid)}
    counted = (n for name, n in server.figures().items() if name.startswith("lengthwise_open_connections"))
    connections = int(sum(counted))
    return connections, sum(map(proc.open_files, pids)) - connections, sum(map(proc.threads, pids))


@asynccontextmanager
async def _meanwhile(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def soak(seconds: float, pause_seconds: float, *, grpc_cancels: bool, workers: int) -> dict[str, Any]:
    """The figures of so many seconds."""
    with tempfile.TemporaryDirectory() as name:
        models, faults, records = Path(name) / "models", Path(name) / "faults", Path(name) / "records"
        place(models)
        port = free_port()
        options = ["--access-log", "0.5", "--grpc-port", str(port), "--record", str(records), "--record-share", "0.2"]
        options += ["--workers", str(workers), "--hung-seconds", "3"]
        options += ["--admin-calls", "--api-keys-file", str(Path(name) / "keys")]
        (Path(name) / "keys").write_text(KEY)
        place(models, OTHER)
        through = ["unshare", "-m", "sh", "-c", SHM, "sh"] if workers > 1 and may_mount() else []
        server = ServerProcess(str(models), *options, faults=faults, log=Path(_FULL_DISK), through=through)
        server.client.headers["authorization"] = f"Bearer {KEY}"
        try:
            await until(lambda: _answers(server), "the service is ready")
            chaos = Chaos(server, pause_seconds=pause_seconds, headers=(f"authorization: Bearer {KEY}",))
            of_workers = WorkerFaults(server, models, Path(name) / "keys")
            over_grpc = GrpcChaos(chaos, port, cancels=grpc_cancels)
            figures = await _soaked(server, of_workers, faults, seconds, over_grpc, workers)
            tables = [pyarrow.parquet.read_table(path) for path in records.glob("record-*.parquet")]  # raises if broken
            return figures | {"recorded": sum(table.num_rows for table in tables)}
        finally:
            server.kill()


def _answers(server: ServerProcess) -> bool:
    try:
        return server.get("/readyz").status_code == 200
    except OSError:
        return False
    except Exception as error:  # httpx2's errors have no common base with the system's
        return "Connect" not in type(error).__name__


async def _soaked(
    server: ServerProcess,
    of_workers: WorkerFaults,
    faults: Path,
    seconds: float,
    over_grpc: GrpcChaos,
    workers: int,
) -> dict[str, Any]:
    chaos = over_grpc.chaos
    await chaos.ask_alone()
    await over_grpc.ask_alone()
    warm = min(_WARM_SECONDS, seconds / 4)
    watch = Watch(server, warm)
    connections, files, tasks = 0, 0, 0
    async with _meanwhile(watch.sample_counts(), watch.sample_memory(), _reload(watch, of_workers)):
        async with chaos.callers(_CALLERS), over_grpc.callers(_GRPC_CALLERS):
            await asyncio.sleep(warm)
        await until(lambda: is_idle(server), "nothing runs")
        connections, files, tasks = _held(server)
        of_all = _fail(faults), _stop(watch), _starve(watch), _fill(watch)
        troubles = _meanwhile(*of_all, *([of_workers.run()] if workers > 1 else []))
        async with chaos.callers(_CALLERS), over_grpc.callers(_GRPC_CALLERS), troubles:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                wrong = f"{len(chaos.wrong)} lost or wrong {chaos.wrong[-1:]}"
                click.echo(f"{left / 60:.1f} min left, {chaos.ends.total()} requests, {wrong}", err=True)
                await asyncio.sleep(min(left, 30.0))
            faults.unlink(missing_ok=True)
    await until(of_workers.all_ready, "all workers are ready")
    await until(lambda: is_idle(server), "nothing waits, runs or is in memory")
    lost_records = server.figures()["lengthwise_record_lost_sequences_total"]
    await asyncio.sleep(1)
    restarts = server.figures()["lengthwise_worker_restarts_total"]
    watch.scrape()
    answered = sum(watch.answered.values())
    got = sum(count for end, count in chaos.ends.items() if end.endswith((": 200", ": OK")))
    lost = [each for each in chaos.wrong if restarts and any(sign in each for sign in _LOST)]
    connections_after, files_after, threads_after = _held(server)
    server.terminate()
    code = server.end()
    return {
        "seconds": seconds,
        "ends": dict(sorted(chaos.ends.items())),
        "wrong": [each for each in chaos.wrong if each not in lost] + of_workers.wrong,
        "troubles": dict(sorted(of_workers.done.items())),
        "lost": len(lost),
        "answered": [answered, got],
        "versions": watch.versions,
        "stops": watch.stops,
        "restarts": restarts,
        "connections": [connections, connections_after],
        "files": [files, files_after],
        "threads": [tasks, threads_after],
        **watch.memory(seconds),
        "exit": code,
        "lost_records": lost_records,
        "p99": _p99_by_minute(chaos, watch.started),
        "samples": [watch.seconds, watch.resident],
    }


def _p99_by_minute(chaos: Chaos, started: float) -> list[tuple[int, float]]:
    """Of each minute, the 99th percentile of the good answers' seconds."""
    minutes: dict[int, list[float]] = {}
    for moment, taken in chaos.latencies:
        minutes.setdefault(int((moment - started) // 60), []).append(taken)
    return [(minute, float(np.percentile(each, 99))) for minute, each in sorted(minutes.items())]


def shortcomings(figures: dict[str, Any]) -> list[str]:
    """What a run lacks; empty if it passes."""
    lacking = [f"{len(figures['wrong'])} wrong"] if figures["wrong"] else []
    if figures["lost"] > figures["restarts"] * (_CALLERS + _GRPC_CALLERS):
        lacking.append("more was lost than the killed workers had")
    counted, got = figures["answered"]
    if not got - figures["lost"] <= counted <= got + figures["lost"] + figures["ends"]["leaves"]:
        lacking.append(f"{counted:.0f} answers of 200 are counted, {got} came")
    if figures["connections"][1] > figures["connections"][0] + _CONNECTIONS_OF_WATCH:
        lacking.append("connections are left open")
    if figures["files"][1] > figures["files"][0]:
        lacking.append("descriptors are left open")
    if figures["threads"][1] > figures["threads"][0] + LARGE_BODIES_AT_ONCE:
        lacking.append("threads are left")
    if not figures["late_mib"] <= (1 + MOST_GROWTH) * figures["early_mib"]:  # what is not known fails, too
        lacking.append("memory grew")
    if figures["exit"]:
        lacking.append(f"it ended with {figures['exit']}")
    return lacking


def page(facts: dict[str, Any], figures: dict[str, Any], workers: int) -> str:
    """The figures as a page."""
    growth = figures["late_mib"] / figures["early_mib"] - 1
    p99 = [each for _, each in figures["p99"]]
    lines = [
        ("lasted", f"{figures['seconds'] / 60:g} minutes"),
        ("requests", f"{sum(figures['ends'].values()):,}"),
        *((f"... {end}", f"{count:,}") for end, count in figures["ends"].items()),
        ("lost, doubled or wrong answers", f"{len(figures['wrong'])}"),
        ("recorded sequences in files that can be read", f"{figures['recorded']:,}"),
        ("... lost with a full disk, as counted", f"{figures['lost_records']:,.0f}"),
        ("versions loaded, stops of a second", f"{figures['versions']}, {figures['stops']}"),
        *((f"of workers: {each}", f"{count:,}") for each, count in figures["troubles"].items()),
        ("workers replaced, requests lost with them", f"{figures['restarts']:g}, {figures['lost']}"),
        ("answers of 200 counted, got", "{:,.0f}, {:,}".format(*figures["answered"])),
        ("connections before and after", "{}, {}".format(*figures["connections"])),
        ("other descriptors before and after", "{}, {}".format(*figures["files"])),
        ("threads before and after", "{}, {}".format(*figures["threads"])),
        (
            "resident memory of a warm worker and its parent, early and late"
            if workers > 1
            else "resident memory, early and late",
            f"{figures['early_mib']:.1f}, {figures['late_mib']:.1f} MiB ({growth:+.1%})",
        ),
        ("slope of the memory", "{:+.3f} MiB a minute, standard error {:.3f}".format(*figures["slope"])),
        ("p99 of a minute, least to most", f"{min(p99) * 1e3:.0f} to {max(p99) * 1e3:.0f} ms"),
    ]
    lacking = shortcomings(figures)
    return pages.page(
        facts,
        "Chaos",
        f"`python -m benchmarks.soak --minutes {figures['seconds'] / 60:g} --workers {workers}`: what happens "
        "meanwhile is in its text.",
        pages.table(("", "value"), lines),
        *(f"    {each}" for each in figures["wrong"][:20]),
        "Passed: " + ("yes." if not lacking else f"no: {'; '.join(lacking)}."),
    )


def _draw(axes: Any, figures: dict[str, Any]) -> None:
    seconds, resident = figures["samples"]
    axes.plot([each / 60 for each in seconds], resident, color="#3b6ea5", linewidth=1)
    axes.set_ylim(0, 1.2 * max(resident))
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident MiB", color="#3b6ea5")
    other = axes.twinx()
    other.plot(
        [each + 0.5 for each, _ in figures["p99"]], [each * 1e3 for _, each in figures["p99"]], "o-", color="#b8322a"
    )
    other.set_ylim(0)
    other.set_ylabel("p99 of each minute, ms", color="#b8322a")


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=30.0, show_default=True)
@click.option("--pause", type=float, default=0.02, show_default=True, help="Seconds between two requests of a caller.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Of several, some are killed.")
@click.option("--grpc-cancels", is_flag=True, help="Callers over gRPC cancel as well; then memory grows.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True)
def main(minutes: float, pause: float, workers: int, grpc_cancels: bool, out: Path) -> None:
    """Lets chaos loose on the service, and checks what every caller got."""
    facts = machine.facts()
    figures = asyncio.run(soak(60 * minutes, pause, grpc_cancels=grpc_cancels, workers=workers))
    text = page(facts, figures, workers)
    pages.write(out, text)
    save(partial(_draw, figures=figures), out.with_suffix(".png"))
    click.echo(text)
    sys.exit(bool(shortcomings(figures)))


if __name__ == "__main__":
    main()
