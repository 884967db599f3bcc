"""One Keras model as a graph in four ways. `python -m benchmarks.keras_exports --tensorflow PYTHON`.

The model is `Masking(0.0) -> LSTM(128) -> LSTM(128) -> Dense(softmax)`, in a `.keras` file. It is exported by this
project, by Keras on torch (`model.export(format="onnx")`), by Keras on TensorFlow, and by tf2onnx. The last two need an
environment of their own, because TensorFlow is not among this project's dependencies:

python -m venv runs/tensorflow && runs/tensorflow/bin/pip install tensorflow-cpu tf2onnx
python -m benchmarks.keras_exports --tensorflow runs/tensorflow/bin/python

Without it their lines say so. Right is a graph at a length if its answer to a sequence of this length alone is that of
`model.predict`. Each graph is also given to `lengthwise export`, and what is published is put under load.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import SERVICE
from benchmarks.workloads import Work
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.commands.command import Command
from lengthwise_export.keras_models.backend import import_keras

MODEL = "tests.gallery.keras_sound"
PAGE = pages.RESULTS / "keras_exports.md"
TENSORFLOW = Path(__file__).with_name("peers") / "keras_tensorflow.py"
FEATURES, CLASSES, LONGEST = 12, 9, 512
LENGTHS = (*range(1, 61), 100, 200, LONGEST)
TOLERANCE = 1e-5

Steps = NDArray[np.float32]


@dataclass(slots=True)
class Exported:
    """The model as one graph.

    Attributes:
        name: Who exported it.
        path: The graph.
        failed: Why there is none.
        directory: The model directory that `lengthwise export` makes of it.
        refused: Why it makes none.
        right: The lengths at which it is right alone, of `LENGTHS`.
        unbatched: Sequences a second in onnxruntime, one at a time, on one thread.
        requests: Requests a second of the service.
    """

    name: str
    path: Path
    failed: str | None = None
    directory: Path | None = None
    refused: str | None = None
    right: tuple[int, ...] = ()
    unbatched: float | None = None
    requests: float | None = None


def exports(folder: Path, tensorflow: str | None) -> tuple[Any, list[Exported]]:
    """The model, and its graphs in all four ways."""
    keras = import_keras()
    model = importlib.import_module(MODEL).masking_lstm_lstm_dense()
    file = folder / "model.keras"
    model.save(file)
    own = Exported("this project", folder / "lengthwise" / "1" / "model.onnx")
    publish(own, file)
    on_torch = Exported("Keras on torch, `model.export`", folder / "on_torch.onnx")
    try:
        model(np.zeros((2, 20, FEATURES), np.float32))  # Keras exports only what was called
        model.export(on_torch.path, format="onnx", verbose=False)
    except Exception as error:  # whatever it is: the page says so
        on_torch.failed = f"{type(error).__name__}: {error}"
    return model, [own, on_torch, *_by_tensorflow(file, folder, tensorflow, keras.__version__)]


def _by_tensorflow(file: Path, folder: Path, tensorflow: str | None, ours: str) -> list[Exported]:
    made = [
        Exported("Keras on TensorFlow, `model.export`", folder / "keras.onnx"),
        Exported("tf2onnx, `from_function`", folder / "tf2onnx.onnx"),
    ]
    if tensorflow is None:
        why = "skipped: needs --tensorflow PYTHON, an environment with tensorflow-cpu and tf2onnx"
        click.echo(why, err=True)
        for each in made:
            each.failed = why
        return made
    command = [tensorflow, str(TENSORFLOW), str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise click.ClickException(f"{tensorflow} could not export the model: {why}")
    told = json.loads(done.stdout.splitlines()[-1])
    found = told["versions"]
    versions = f"TensorFlow {found['tensorflow-cpu'] or found['tensorflow']}, tf2onnx {found['tf2onnx']}"
    for each in made:
        each.failed = told["failed"].get(each.path.stem)
        each.name += f" ({versions}, Keras {found['keras']})" if found["keras"] != ours else f" ({versions})"
    return made


def publish(each: Exported, target: Path) -> None:
    """Gives a target to `lengthwise export`, and keeps the directory or the reason."""
    directory = each.path.parent if each.path.name == "model.onnx" else each.path.parent / each.path.stem / "1"
    words = [str(target), "--out", str(directory), "--max-length", str(LONGEST)]
    done = subprocess.run(
        [sys.executable, "-m", "lengthwise", "export", *words], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        each.directory = directory
    else:
        told = " ".join(done.stderr.split()).rpartition("error: ")[2]
        each.refused = told.partition(": ")[0] if len(told) > 200 else told


def session(each: Exported) -> onnxruntime.InferenceSession:
    """A session of one thread on a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(each.path), options, providers=["CPUExecutionProvider"])


def answer(running: onnxruntime.InferenceSession, steps: Steps) -> Steps:
    """A graph's answer to one sequence alone; a graph with lengths is given its length."""
    values, *lengths = (each.name for each in running.get_inputs())
    feed: dict[str, Any] = {values: steps[None]}
    feed |= {name: np.array([len(steps)], np.int32) for name in lengths}
    return np.asarray(running.run(None, feed)[0])[0]


def judge(each: Exported, model: Any, seconds: float) -> None:
    """At which lengths a graph is right, and how fast it is unbatched where it is right at all of them."""
    random = np.random.default_rng(0)
    running = session(each)
    right = []
    for length in LENGTHS:
        steps = random.standard_normal((length, FEATURES)).astype(np.float32)
        expected = model.predict(steps[None], verbose=0)[0]
        try:
            got = answer(running, steps)
        except Exception:  # onnxruntime has many kinds
            continue
        if np.abs(got - expected).max() <= TOLERANCE:
            right.append(length)
    each.right = tuple(right)
    if each.right != LENGTHS:
        return
    sequences = workload(200)
    run, until = 0, time.perf_counter() + seconds
    begin = time.process_time()
    while time.perf_counter() < until:
        answer(running, sequences[run % len(sequences)])
        run += 1
    each.unbatched = run / (time.process_time() - begin)


def workload(count: int) -> list[Steps]:
    """Lengths of median 50 and sigma 0.7."""
    random = np.random.default_rng(1)
    return make_sequences(draw_lengths("lognormal:50,0.7", count, LONGEST, random), Input("values", FEATURES), random)


def load(graphs: list[Exported], seconds: float, rounds: int, connections: int) -> None:
    """Serves each published graph on the first core, and puts it under load from another one, in turns."""
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    spec = LoadSpec(concurrency=connections, seconds=seconds, warmup_seconds=0.5)
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        trials = {}
        for each in graphs:
            if each.directory is None:
                continue
            work = Work("keras", each.name, each.directory, workload(2000))
            running = stack.enter_context(SERVICE.running(work, [server]))
            trials[each.name] = prepare(running.target, work.sequences, check=False), running.pid
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            for name, trial in trials.items():
                rates.setdefault(name, []).append(measure_load(*trial, spec)["requests_per_second"])
    for each in graphs:
        each.requests = median(rates[each.name]) if each.name in rates else None


def lines(graphs: list[Exported]) -> list[tuple[str, ...]]:
    """A line for each graph."""
    shown = []
    for each in graphs:
        if each.failed is not None:
            shown.append((each.name, each.failed.splitlines()[0], "", "", "", ""))
            continue
        size = each.path.stat().st_size
        nodes = _nodes(onnx.load(str(each.path)).graph)
        unbatched = "" if each.unbatched is None else f"{each.unbatched:,.0f}"
        served = f"{each.requests:,.0f}" if each.requests is not None else f"refused: {each.refused}"
        shown.append((each.name, _told(each.right), f"{size / 1e6:.2f} MB", str(nodes), unbatched, served))
    return shown


def _told(right: tuple[int, ...]) -> str:
    if right == LENGTHS:
        return f"all {len(LENGTHS)}"
    return f"{len(right)} of {len(LENGTHS)}: {', '.join(map(str, right[:5]))}" if right else "none"


def _nodes(graph: onnx.GraphProto) -> int:
    """With those of the bodies of its loops and branches."""
    inner = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return len(graph.node) + sum(map(_nodes, inner))


@click.command(cls=Command)
@click.option("--tensorflow", help="A Python with tensorflow-cpu and tf2onnx; without it, their exports are skipped.")
@click.option("--seconds", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of every server.")
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True, help="Connections.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, {PAGE} for one.")
def main(tensorflow: str | None, seconds: float, rounds: int, connections: int, out: Path | None) -> None:
    """Compares this project's export of a Keras model with those of Keras and tf2onnx."""
    facts = machine.facts()
    heads = ("exported by", "right at these lengths", "file", "nodes", "unbatched, sequences/s", "served, requests/s")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own, of NumPy and of ONNX
        model, graphs = exports(Path(folder), tensorflow)
        for each in graphs:
            if each.failed is None:
                judge(each, model, seconds)
                if each.path.name != "model.onnx":
                    publish(each, each.path)
        load(graphs, seconds, rounds, connections)
        table = pages.table(heads, lines(graphs))
    said = (
        "`python -m benchmarks.keras_exports --tensorflow PYTHON`: Masking(0.0), LSTM(128), LSTM(128), Dense(softmax). "
        f"Right: within {TOLERANCE:g} of `model.predict` alone, at the lengths 1 to 60, 100, 200 and {LONGEST}. "
        "Unbatched: in onnxruntime, one sequence at a time, one thread, by processor time. Served: by this service on "
        f"one core, {connections} connections; medians of {rounds} turns of {seconds:g} s. Lengths of both: lognormal, "
        "median 50, sigma 0.7. Nodes: with those in loops and branches."
    )
    text = pages.page(facts, "A Keras model as a graph", said, table)
    if out is not None:
        pages.write(out, text)
    click.echo(text)


if __name__ == "__main__":
    main()
