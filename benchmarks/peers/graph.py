"""The graph as the peers run it: directly in onnxruntime, one thread, padded to the longest sequence.

On the CPU, or on the first GPU where the variable `BENCH_PROVIDER` is `cuda`.
"""

from __future__ import annotations

import os
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
        providers = ["CPUExecutionProvider"]
        if os.environ.get("BENCH_PROVIDER") == "cuda":
            onnxruntime.preload_dlls()  # CUDA's libraries and cuDNN, from NVIDIA's Python packages
            providers = ["CUDAExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(directory / GRAPH_FILE), options, providers=providers)
        if self._session.get_providers()[0] != providers[0]:
            raise RuntimeError(f"onnxruntime has no {providers[0]} here")
        manifest = Manifest.read(directory)
        names, self._logits = manifest.graph, manifest.graph.logits
        # The inputs of each sequence: its steps and their lengths
        self._inputs = [(names.sequences, names.lengths), *((name, f"{name}_lengths") for name in manifest.further)]

    def probabilities(self, rows: Sequence[Sequence[NDArray[np.float32]]]) -> NDArray[np.float32]:
        """`[rows, classes]` of rows, each with its sequences `[length, features]`."""
        feed = {}
        for (name, of_lengths), sequences in zip(self._inputs, zip(*rows, strict=True), strict=True):
            lengths = np.array([len(steps) for steps in sequences], dtype=np.int32)
            values = np.zeros((len(sequences), lengths.max(), sequences[0].shape[1]), dtype=np.float32)
            for row, steps in zip(values, sequences, strict=True):
                row[: len(steps)] = steps
            feed |= {name: values, of_lengths: lengths}
        (logits,) = self._session.run([self._logits], feed)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
