"""Graphs that were exported from Keras, and what to do where such an export cannot be used."""

from __future__ import annotations

from typing import Final

import onnx

_CURE: Final = "; if it was exported from Keras, give the .keras file instead"


def cure(graph: onnx.ModelProto) -> str:
    """The end of an error about a graph that Keras or tf2onnx wrote; empty for the graphs of others."""
    names = [value.name for value in graph.graph.input]
    from_keras = graph.producer_name == "tf2onnx" or any(name.startswith("keras_tensor") for name in names)
    return _CURE if from_keras else ""
