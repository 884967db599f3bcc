"""Reads ONNX graphs as the service does, without onnx; and what its kernels take.

`onnx_graph.read` gives the graph with its nodes (`Node`), and a `Pattern` looks for nodes that belong together: it
raises `NotFound`. `recurrent_without_rows` finds an LSTM or GRU that may get no rows, at which onnxruntime crashes;
`why_refused` says so. `fixed_kernels` are the kernels of MiniRocket: there are `KERNELS`, each with `TAPS` weights. A
graph with a description under `DOMAIN` in its metadata has its summaries of sequences computed by the service's kernel.
"""

from __future__ import annotations

from lengthwise.runtime import fixed_kernels
from lengthwise.runtime.fixed_kernels import KERNELS, TAPS, DilatedKernels, kernel_weights
from lengthwise.runtime.onnx import onnx_graph, summaries
from lengthwise.runtime.onnx.data_dependence import (
    ENDS_WITHOUT_ROWS,
    ENDS_WITHOUT_ROWS_AT_INT8,
    recurrent_without_rows,
    why_refused,
)
from lengthwise.runtime.onnx.onnx_graph import Node
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, require
from lengthwise.runtime.onnx.summaries import DOMAIN

__all__ = [
    "DOMAIN",
    "ENDS_WITHOUT_ROWS",
    "ENDS_WITHOUT_ROWS_AT_INT8",
    "KERNELS",
    "TAPS",
    "DilatedKernels",
    "Node",
    "NotFound",
    "Pattern",
    "fixed_kernels",
    "kernel_weights",
    "onnx_graph",
    "recurrent_without_rows",
    "require",
    "summaries",
    "why_refused",
]
