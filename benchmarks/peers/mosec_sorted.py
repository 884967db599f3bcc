"""mosec with what a careful user adds by hand: orjson, and a large batch divided into runs of similar lengths."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.peers import mosec_documented
from benchmarks.peers.mosec_documented import serve

ROWS_PER_RUN = int(os.environ.get("BENCH_ROWS_PER_RUN", "8"))


class Classifier(mosec_documented.Classifier):
    """The one stage: from a batch of bodies to a batch of answers."""

    def deserialize(self, data: bytes) -> list[NDArray[np.float32]]:
        """The sequences of one body's row, each `[length, features]`: nearly always one."""
        row = orjson.loads(data)["sequences"][0]
        sequences = [*row["inputs"].values()] if isinstance(row, dict) else [row]
        return [np.array(steps, dtype=np.float32) for steps in sequences]

    def serialize(self, data: dict[str, Any]) -> bytes:
        """One body."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: list[list[NDArray[np.float32]]]) -> list[dict[str, Any]]:
        """One batch, run in order of the first sequence's length a few rows at a time."""
        by_length = sorted(range(len(data)), key=lambda place: len(data[place][0]))
        answers: list[dict[str, Any]] = [{}] * len(data)
        for first in range(0, len(data), ROWS_PER_RUN):
            places = by_length[first : first + ROWS_PER_RUN]
            rows = self.graph.probabilities([data[place] for place in places])
            for place, row in zip(places, rows, strict=True):
                answers[place] = {"predictions": [{"probabilities": row}]}
        return answers


if __name__ == "__main__":
    serve(Classifier)
