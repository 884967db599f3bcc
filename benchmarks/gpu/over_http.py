"""Section `over_http`: answers a second and latency over HTTP, and seconds until ready, beside a hand-made peer.

The peer is mosec with what a careful user adds: orjson, one run of the graph for at most 64 sequences, which are sorted
by length. Both run the same graph on the same device, one server at a time, on three quarters of the cores; the load,
wrk, has the others. The service starts twice: once without stored costs, and once with those of the first start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import wrk
from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import DISTRIBUTIONS, ENCODER, FOLDERS, Stage

if TYPE_CHECKING:  # these need the service's packages, which a bare machine lacks
    from benchmarks.contenders import Contender
    from benchmarks.workloads import Work
    from lengthwise.bench.launch import Running

CONNECTIONS: Final = (64, 256, 1024)
MODELS: Final = {"BiLSTM 2 x 128": FOLDERS["fp32"], "encoder of 4 layers of 256": ENCODER}
"""The folders of the graphs, by what the page calls them."""
_NEEDED: Final = ("fastapi", "mosec", "pydantic_settings", "rich", "uvicorn")
_SEQUENCES: Final = 256  # of different lengths
_SECONDS_OF_A_CONTENDER: Final = 40.0


def measure(stage: Stage, figures: Figures) -> None:
    """Notes the `servers` by model and contender: seconds until ready, and the figures of `wrk.load`."""
    missing = [name for name in _NEEDED if module(name) is None] + ["wrk"] * (not wrk.is_installed())
    if missing:
        figures.note(left_out={"everything": f"not installed: {', '.join(missing)}"})
        return
    cores = sorted(os.sched_getaffinity(0))
    of_server = cores[: max(1, 3 * len(cores) // 4)]
    os.sched_setaffinity(0, cores[len(of_server) :] or cores)
    figures.note(cores=len(of_server))
    peer, service, one = contenders(stage)
    bilstm, encoder = MODELS
    full = [(bilstm, peer), (bilstm, service), (encoder, peer), (encoder, service), (bilstm, one), (encoder, one)]
    for title, contender in stage.pick(full, full[:2]):
        directory = stage.models / MODELS[title] / "1"
        name = f"{title}, {contender.title}"
        if stage.left < stage.pick(_SECONDS_OF_A_CONTENDER, 0.0):
            figures.note(cut_short={name: "no time left"})
            continue
        stage.say(f"over_http, {name}")
        with figures.trying(name), _copied(stage, directory) as work:
            figures.note(servers={name: {"model": title, **_figures_of(stage, contender, work, of_server)}})


def contenders(stage: Stage) -> tuple[Contender, Contender, Contender]:
    """The peer, the service as it starts by itself, and the service with one process on the device."""
    from benchmarks.contenders import MOSEC_SORTED, Contender

    serve = ("serve", "{repository}", "--port", "{port}", "--provider", stage.provider, "--log-level", "warning")
    service = Contender("lengthwise", "the service", ("lengthwise", *serve))
    peer = replace(
        MOSEC_SORTED,
        title="mosec, sorted by hand",
        # Its own bounds are 1,024 waiting requests, those of closed connections among them, and 3 s for an answer.
        module=(*MOSEC_SORTED.module, "--capacity", "8192", "--timeout", "30000"),
        environment={**MOSEC_SORTED.environment, "BENCH_PROVIDER": stage.provider, "BENCH_ROWS_PER_RUN": "64"},
    )
    one = replace(service, title="the service, 1 worker", module=(*service.module, "--workers", "1"))
    return peer, service, one


@contextmanager
def _copied(stage: Stage, directory: Path) -> Iterator[Work]:
    """A copy of a model, without what a service stored beside it, and the sequences that are sent."""
    from benchmarks.workloads import Work

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / directory.parent.name / directory.name
        shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("costs.json", "kernels.json", "promises.json"))
        yield Work(directory.parent.name, "", copy, stage.sequences(DISTRIBUTIONS[0], _SEQUENCES))


def _figures_of(stage: Stage, contender: Contender, work: Work, cores: list[int]) -> dict[str, Any]:
    """The server's name, the seconds of its starts, and the figures of each load by its connections."""
    lua = work.repository / "wrk.lua"
    lua.write_text(wrk.script(work.sequences), encoding="utf-8")
    starts = []
    if not contender.is_peer:
        with _running(contender, work, cores) as (_, seconds):
            starts.append(seconds)
    with _running(contender, work, cores) as (server, seconds):
        starts.append(seconds)
        loads = {
            connections: wrk.load(
                f"http://{server.target.host}:{server.target.port}/predict",
                server.pid,
                lua,
                connections,
                stage.pick(2, 1),
                threads=stage.pick(2, 1),
                warm_up_seconds=stage.pick(4, 1),  # the first runs of a shape on a device are slow
                patience_seconds=10,
            )
            for connections in stage.pick(CONNECTIONS, CONNECTIONS[:1])
        }
    return {"server": contender.title, "is_peer": contender.is_peer, "ready_seconds": starts, "loads": loads}


@contextmanager
def _running(contender: Contender, work: Work, cores: list[int]) -> Iterator[tuple[Running, float]]:
    """A server, and the seconds from the start of its process until it answered."""
    started = time.monotonic()
    with contender.running(work, cores) as server:
        yield server, round(time.monotonic() - started, 2)
