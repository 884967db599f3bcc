"""The two workloads: skewed lengths on a graph of some size, and a real data set on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lengthwise.bench.workload import Input, draw_lengths, make_sequences
from lengthwise.decoding import dataset
from lengthwise.padding import Steps
from lengthwise.settings import bundled_models

HERE = Path(__file__).parent
CACHE = HERE.parent / "runs" / "bench-models"


@dataclass(frozen=True)
class Work:
    """A workload: a model and the sequences sent to it.

    Attributes:
        name: In results and reports.
        title: For people.
        directory: The model directory, `MODELS/NAME/VERSION`.
        sequences: To send, each `[length, features]`.
    """

    name: str
    title: str
    directory: Path
    sequences: list[Steps]

    @property
    def repository(self) -> Path:
        """The folder that is served."""
        return self.directory.parents[1]


def lognormal(seed: int, count: int) -> Work:
    """Lengths of median 50 and sigma 0.7, 12 features; the graph is exported once and kept."""
    directory = CACHE / "lognormal" / "1"
    if not directory.is_dir():
        spec = HERE / "specs" / "lognormal.toml"
        subprocess.run([sys.executable, "-m", "lengthwise", "export", str(spec), "--out", str(directory)], check=True)
    random = np.random.default_rng(seed)
    lengths = draw_lengths("lognormal:50,0.7", count, 1024, random)
    title = "lognormal lengths (median 50, sigma 0.7), two-layer BiLSTM of 128 with attention"
    return Work("lognormal", title, directory, make_sequences(lengths, Input("values", 12), random))


def japanese_vowels(seed: int, count: int) -> Work:
    """The 370 test recordings of JapaneseVowels, in an order drawn from the seed, or the first `count` of them."""
    directory = bundled_models() / "japanese-vowels" / "1"
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    order = np.random.default_rng(seed).permutation(len(records))
    title = "JapaneseVowels, lengths 7 to 29, the bundled model"
    return Work("japanese-vowels", title, directory, [records[place].steps for place in order[:count]])


WORKLOADS = {"lognormal": lognormal, "japanese-vowels": japanese_vowels}
