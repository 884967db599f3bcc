"""The graph as the peers run it: directly in onnxruntime, one thread, padded to the longest sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lengthwise.runtime.manifest import GRAPH_FILE, Manifest


class Graph:
    """The graph of a model directory, `MODELS/NAME/VERSION`."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(directory / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
        )
        self._names = Manifest.read(directory).graph

    def probabilities(self, sequences: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """`[rows, classes]` of sequences `[length, features]`."""
        lengths = np.array([len(steps) for steps in sequences], dtype=np.int32)
        values = np.zeros((len(sequences), lengths.max(), sequences[0].shape[1]), dtype=np.float32)
        for row, steps in zip(values, sequences, strict=True):
            row[: len(steps)] = steps
        feed = {self._names.sequences: values, self._names.lengths: lengths}
        (logits,) = self._session.run([self._names.logits], feed)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
