"""The workloads: skewed lengths on graphs of several sizes and kinds, and a real data set on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from lengthwise.bench.workload import Input, Sent, draw_lengths, make_sequences
from lengthwise.datasets import dataset
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, Precision
from lengthwise.settings import bundled_models

HERE = Path(__file__).parent
CACHE = HERE.parent / "runs" / "bench-models"


@dataclass(frozen=True)
class Work:
    """A workload: a model and the sequences sent to it."""

    name: str  # in results and reports
    title: str  # for people
    directory: Path  # the model directory, `MODELS/NAME/VERSION`
    sequences: list[Sent]  # to send, each `[length, features]`, or an object with several

    @property
    def repository(self) -> Path:
        """The folder that is served."""
        return self.directory.parents[1]


MODELS: Final[Mapping[str, str]] = {
    "lognormal": "two-layer BiLSTM of 128 with attention",
    "lstm-256": "two-layer BiLSTM of 256 with attention",
    "lstm-512": "one-layer BiLSTM of 512 with attention",
    "gru-128": "two-layer BiGRU of 128 with attention",
    "convolutions-lstm": "two convolutions, one-layer BiLSTM of 128",
}
"""Models of several sizes and kinds, by the name of their spec."""


def exported(directory: Path, target: Path | str, *options: str, python: Path | str = sys.executable) -> Path:
    """A model directory, which is exported once and kept; alone in its repository, all of which a service serves.

    `python` is the interpreter whose lengthwise exports it.
    """
    if not directory.is_dir():
        command = [str(python), "-m", "lengthwise", "export", str(target), *options, "--out", str(directory)]
        subprocess.run(command, check=True)
    return directory


def lognormal(seed: int, count: int, *, model: str = "lognormal", precision: Precision = "fp32") -> Work:
    """So many sequences with lengths of median 50 and sigma 0.7, 12 features, and the graph of one of `MODELS`."""
    name = model if precision == "fp32" else f"{model}-{precision}"
    repository = CACHE if name == "lognormal" else CACHE.parent / f"{CACHE.name}-{name}"
    directory = exported(repository / name / "1", HERE / "specs" / f"{model}.toml", "--precision", precision)
    random = np.random.default_rng(seed)
    lengths = draw_lengths("lognormal:50,0.7", count, 1024, random)
    title = f"lognormal lengths (median 50, sigma 0.7), {MODELS[model]}"
    return Work(name, title, directory, make_sequences(lengths, Input("values", 12), random))


def japanese_vowels(seed: int, count: int) -> Work:
    """The 370 test recordings of JapaneseVowels, in an order drawn from the seed, or the first `count` of them."""
    directory = bundled_models() / "japanese-vowels" / "1"
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    order = np.random.default_rng(seed).permutation(len(records))
    title = "JapaneseVowels, lengths 7 to 29, the bundled model"
    return Work("japanese-vowels", title, directory, [records[place].steps for place in order[:count]])


def at_int8(work: Work) -> Work:
    """The same workload with its graph at int8."""
    if work.name in MODELS:
        return replace(work, directory=lognormal(0, 1, model=work.name, precision="int8").directory)
    name = f"{work.name}-int8"
    manifest = Manifest.read(work.directory)
    options = ("--labels", ",".join(manifest.labels), "--max-length", str(manifest.max_length), "--precision", "int8")
    directory = CACHE.parent / f"{CACHE.name}-{name}" / name / "1"
    directory = exported(directory, work.directory / GRAPH_FILE, *options)
    return replace(work, directory=directory)


WORKLOADS = {"lognormal": lognormal, "japanese-vowels": japanese_vowels}
