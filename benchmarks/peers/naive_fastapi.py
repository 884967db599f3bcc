"""FastAPI as most tutorials write it: a pydantic body, one run of the graph a request.

The handler is a coroutine: on one core that measures better than FastAPI's thread pool.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.graph import Graph


class Request(BaseModel):
    """The body."""

    sequences: list[list[list[float]]]


class Prediction(BaseModel):
    """The answer to one sequence."""

    probabilities: list[float]


class Response(BaseModel):
    """The answer."""

    predictions: list[Prediction]


def app(directory: Path) -> FastAPI:
    graph = Graph(directory)
    api = FastAPI()

    @api.get("/readyz")
    async def ready() -> None:
        return None

    @api.post("/predict")
    async def predict(request: Request) -> Response:
        rows = [[np.array(steps, dtype=np.float32)] for steps in request.sequences]
        return Response(predictions=[Prediction(probabilities=row) for row in graph.probabilities(rows).tolist()])

    return api


if __name__ == "__main__":
    uvicorn.run(app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
