"""mosec with summaries and trees written by hand: tsfresh with LightGBM, or aeon's QUANTClassifier.

Each fits its model to the sequences of an `.npz` file as it starts (`BENCH_DATA`), and answers a batch as it arrived.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import numpy as np
import pandas
from mosec import Server, Worker
from numpy.typing import NDArray

FITTED: Final = 60
"""Sequences that LightGBM is fitted to: tsfresh needs a tenth of a second for each."""


class Summaries(Worker):
    """The one stage: from a batch of bodies to a batch of answers."""

    def __init__(self) -> None:
        super().__init__()
        data = np.load(os.environ["BENCH_DATA"])
        self.fit(data["sequences"], data["labels"])

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
    kind = {"tsfresh": Tsfresh, "quant": Quant}[os.environ["BENCH_KIND"]]
    server = Server()
    rows, wait = int(os.environ["BENCH_BATCH_ROWS"]), int(os.environ["BENCH_WAIT_MS"])
    server.append_worker(kind, num=1, max_batch_size=rows, max_wait_time=wait, timeout=600, route="/predict")
    sys.exit(server.run())
