"""FastAPI as most tutorials write it, for a folder of optimum: a pydantic body, one run of its own graph a request."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.naive_fastapi import Prediction, Response


class Request(BaseModel):
    """The body."""

    sequences: list[list[int]]


def app(folder: Path) -> FastAPI:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    api = FastAPI()

    @api.get("/readyz")
    async def ready() -> None:
        return None

    @api.post("/predict")
    async def predict(request: Request) -> Response:
        predictions = []
        for ids in request.sequences:
            given = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
            logits = session.run(None, {name: np.array([given[name]], dtype=np.int64) for name in names})[0][0]
            powers = np.exp(logits - logits.max())
            predictions.append(Prediction(probabilities=(powers / powers.sum()).tolist()))
        return Response(predictions=predictions)

    return api


if __name__ == "__main__":
    uvicorn.run(app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
