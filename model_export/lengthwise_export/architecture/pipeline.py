"""A pipeline of scikit-learn that `train` fitted (`kind = "summaries"`): the file of its weights keeps its graph.

So no pickle is read, and what is scored and exported later is the graph that was compared with the pipeline.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lengthwise.exporter_api.contract import GraphNames
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.model import ClassifierOutput
from lengthwise_export.architecture.summaries_session import opened
from lengthwise_export.errors import CheckpointError, ConfigurationError


class TrainedPipeline(nn.Module):
    """The graph of a pipeline as a module, so that it is scored and stored as the other built-in models are."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.graph: Tensor
        self.register_buffer("graph", torch.frombuffer(bytearray(graph), dtype=torch.uint8))

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        """A session of the graph."""
        return opened(self.content, GraphNames(sequences="values"))

    @property
    def content(self) -> bytes:
        """The ONNX file."""
        return bytes(np.asarray(self.graph))

    def forward(self, values: Tensor, lengths: Tensor) -> ClassifierOutput:
        """The logits of `values [rows, width, features]`, padded, with these lengths."""
        feeds = {"values": values.numpy(), "lengths": lengths.int().numpy()}
        return ClassifierOutput(torch.from_numpy(self._session.run(["logits"], feeds)[0]))


def load(weights: Path | None) -> TrainedPipeline:
    """The module of a checkpoint.

    Raises:
        ConfigurationError: There is no checkpoint.
        CheckpointError: It cannot be read, or holds no graph.
    """
    if weights is None:
        raise ConfigurationError("kind = 'summaries' has no model without data: train one, and name its folder")
    if (graph := checkpoint.weights(weights).get("graph")) is None:
        raise CheckpointError(f"{weights} holds no graph of summaries: it is that of another model")
    return TrainedPipeline(graph.numpy().tobytes())
