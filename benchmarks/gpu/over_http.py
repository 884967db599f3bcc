"""Section `over_http`: the service end to end, started as its operator would, with the load in a process of its own."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.sections import NotHere
from benchmarks.gpu.stage import DISTRIBUTIONS, FOLDERS, Stage

NEEDED = (
    "click",
    "fastapi",
    "httptools",
    "orjson",
    "prometheus_client",
    "pydantic_settings",
    "rich",
    "uvicorn",
    "uvloop",
)


def measure(stage: Stage, figures: Figures) -> None:
    """Notes requests a second at some numbers of connections, and percentiles at half of the most."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotHere(f"the service over HTTP wants {', '.join(missing)}; without it, `throughput` says what it takes")
    # Only here: they want packages that a bare machine may not have.
    from lengthwise.bench import launch
    from lengthwise.bench.trial import Load, prepare

    sequences = stage.sequences(DISTRIBUTIONS[0], stage.pick(1000, 20))
    options = {"provider": stage.provider, "log_level": "warning"}
    with TemporaryDirectory() as repository, ExitStack() as stack:
        # By itself: to prove and warm up the others on a device takes as long again.
        place = shutil.copytree(stage.models / FOLDERS["fp32"], Path(repository, FOLDERS["fp32"]))
        served = stack.enter_context(launch.served(str(place / "1"), options))
        # On a device neighbours may move the last digits, so answers are compared in `isolation`, with a measure.
        trial = prepare(served.target, sequences, fields=served.fields, check=stage.provider == "cpu", form="binary")
        most = 0.0
        for connections in stage.pick((1, 64, 256, 1024), (1, 16)):
            if stage.left < stage.pick(20.0, 0.0):
                figures.note(cut_short=f"no time left for {connections} connections and more")
                break
            stage.say(f"over HTTP, {connections} connections")
            load = Load(
                concurrency=connections,
                seconds=stage.pick(4.0, 0.5),
                warmup_seconds=stage.pick(1.0, 0.1),
                seed=stage.seed,
            )
            seen = trial.run(load)
            most = max(most, seen.requests_per_second)
            figures.note(closed={str(connections): seen.to_json()})
        load = Load(concurrency=256, rate=most / 2, seconds=stage.pick(6.0, 0.5), warmup_seconds=0.2, seed=stage.seed)
        figures.note(half_load={"rate": most / 2, **trial.run(load).to_json()})
