"""mosec as its documentation shows: JSON by default, a batch as it arrived, one run of the graph for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mosec import Server, Worker

from benchmarks.peers.graph import Graph


class Classifier(Worker):
    """The one stage: from a batch of bodies to a batch of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph(Path(os.environ["BENCH_MODEL"]))

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch as it arrived."""
        rows = [[np.array(body["sequences"][0], dtype=np.float32)] for body in data]
        return [{"predictions": [{"probabilities": row}]} for row in self.graph.probabilities(rows).tolist()]


def serve(worker: type[Worker]) -> None:
    """Serves one stage with the rows and the wait that the variables say."""
    server = Server()
    rows, wait = int(os.environ["BENCH_BATCH_ROWS"]), int(os.environ["BENCH_WAIT_MS"])
    server.append_worker(worker, num=1, max_batch_size=rows, max_wait_time=wait, route="/predict")
    server.run()


if __name__ == "__main__":
    serve(Classifier)
