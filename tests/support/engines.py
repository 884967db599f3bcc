"""For the tests of engines: recordings with their answers, and a scorer that kills its process once."""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import lengthwise
from lengthwise.scoring.scorer import Scorer

ROWS = 600
FILES = 6
FATAL_STEPS = 61
"""The length of one recording, which no other has."""

Answers = dict[str, tuple[str, bytes]]
"""The label and the bytes of the probabilities, by id."""


@dataclass(frozen=True)
class Recordings:
    """Recordings for the bundled model."""

    folder: Path
    answers: Answers


def write_recordings(folder: Path) -> Recordings:
    """Writes `FILES` Parquet files with `ROWS` recordings; the fatal one is in the fourth."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, ROWS)
    per_file = ROWS // FILES
    lengths[3 * per_file + per_file // 2] = FATAL_STEPS
    sequences = [random.normal(size=(length, 12)).astype(np.float32) for length in lengths]
    names = [f"r{row}" for row in range(ROWS)]
    for number in range(FILES):
        part = slice(number * per_file, (number + 1) * per_file)
        steps = pa.array([steps.tolist() for steps in sequences[part]], pa.list_(pa.list_(pa.float32())))
        table = pa.table({"id": names[part], "steps": steps, "site": pa.array([number] * per_file)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=per_file)
    predictions = lengthwise.load(recurrent_kernels=True).predict(sequences)
    answers = {
        name: (str(one.label), one.probabilities.tobytes()) for name, one in zip(names, predictions, strict=True)
    }
    return Recordings(folder, answers)


def found_in(rows: Iterable[Any]) -> Answers:
    """The answers of rows, each of which has an id of its own."""
    found: Answers = {}
    for row in rows:
        assert row["id"] not in found, "a row was answered twice"
        found[row["id"]] = (row["label"], np.asarray(row["probabilities"], dtype=np.float32).tobytes())
    return found


@dataclass(frozen=True)
class MortalScorer(Scorer):
    """Kills its process when it is given the fatal recording, if none has done so before."""

    marker: str = ""

    def __call__(self, batch: Any) -> Any:
        """Answers a batch, or dies."""
        self._die_once(len(steps) for steps in batch["steps"].to_pylist())
        return super().__call__(batch)

    def predictions(self, sequences: Any) -> list[dict[str, Any]]:
        """Answers sequences, or dies."""
        self._die_once(map(len, sequences))
        return super().predictions(sequences)

    def _die_once(self, lengths: Iterable[int]) -> None:
        if FATAL_STEPS in lengths and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
