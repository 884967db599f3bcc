"""mosec with summaries and trees written by hand: tsfresh with LightGBM, or aeon's QUANTClassifier.

`python -m benchmarks.peers.mosec_summaries fit` fits the model to the sequences of a file (`BENCH_DATA`, `.npz`), and
keeps it beside that. Without `fit` it is served: a batch is answered as it arrived.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas
from mosec import Server, Worker
from numpy.typing import NDArray

FITTED: Final = 30
"""Sequences that LightGBM is fitted to: tsfresh needs the better part of a second for each."""
DATA: Final = Path(os.environ["BENCH_DATA"])
KIND: Final = os.environ["BENCH_KIND"]
MODEL: Final = DATA.with_name(f"{KIND}.pickle")


class Summaries(Worker):
    """The one stage: from a batch of bodies to a batch of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = pickle.loads(MODEL.read_bytes()) if MODEL.is_file() else None

    def fit(self, sequences: NDArray[np.float32], labels: NDArray[np.str_]) -> None:
        """Fits the model to sequences `[sequences, length, features]`."""
        raise NotImplementedError

    def probabilities(self, sequences: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[sequences, classes]`."""
        raise NotImplementedError

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch as it arrived; all sequences are of one length."""
        sequences = np.array([body["sequences"][0] for body in data], dtype=np.float32)
        return [{"predictions": [{"probabilities": row}]} for row in self.probabilities(sequences).tolist()]


class Tsfresh(Summaries):
    """tsfresh's `EfficientFCParameters`, and LightGBM."""

    def fit(self, sequences: NDArray[np.float32], labels: NDArray[np.str_]) -> None:
        """Fits LightGBM to the summaries."""
        from lightgbm import LGBMClassifier

        self.model = LGBMClassifier(n_jobs=1, verbose=-1).fit(self.table(sequences[:FITTED]), labels[:FITTED])

    def probabilities(self, sequences: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[sequences, classes]`."""
        return np.asarray(self.model.predict_proba(self.table(sequences)))

    def table(self, sequences: NDArray[np.float32]) -> NDArray[np.float64]:
        """The summaries of each sequence."""
        from tsfresh import extract_features
        from tsfresh.feature_extraction import EfficientFCParameters

        count, length, features = sequences.shape
        steps = pandas.DataFrame(sequences.reshape(-1, features).astype(np.float64))
        steps.columns = [f"x{index}" for index in range(features)]
        steps["id"] = np.repeat(np.arange(count), length)
        table = extract_features(steps, EfficientFCParameters(), column_id="id", n_jobs=0, disable_progressbar=True)
        return np.nan_to_num(table.to_numpy())


class Quant(Summaries):
    """aeon's `QUANTClassifier`."""

    def fit(self, sequences: NDArray[np.float32], labels: NDArray[np.str_]) -> None:
        """Fits it to sequences with their axes in aeon's order."""
        import torch
        from aeon.classification.interval_based import QUANTClassifier

        torch.set_num_threads(1)
        self.model = QUANTClassifier(random_state=0).fit(sequences.transpose(0, 2, 1), labels)

    def probabilities(self, sequences: NDArray[np.float32]) -> NDArray[np.float64]:
        """`[sequences, classes]`."""
        return np.asarray(self.model.predict_proba(sequences.transpose(0, 2, 1)))


if __name__ == "__main__":
    kind = {"tsfresh": Tsfresh, "quant": Quant}[KIND]
    if sys.argv[1:] == ["fit"]:
        data, worker = np.load(DATA), kind()
        worker.fit(data["sequences"], data["labels"])
        MODEL.write_bytes(pickle.dumps(worker.model))
        sys.exit()
    server = Server()
    rows, wait = int(os.environ["BENCH_BATCH_ROWS"]), int(os.environ["BENCH_WAIT_MS"])
    server.append_worker(kind, num=1, max_batch_size=rows, max_wait_time=wait, timeout=600, route="/predict")
    sys.exit(server.run())
