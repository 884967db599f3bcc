"""Sessions of graphs with summaries of sequences, with the service's kernel in them; nothing here imports torch."""

from __future__ import annotations

import onnxruntime

from lengthwise.exporter_api.contract import GraphNames
from lengthwise.exporter_api.graphs import summaries as kernel
from lengthwise.exporter_api.verification import register


def opened(graph: bytes, names: GraphNames) -> onnxruntime.InferenceSession:
    """Opens a session of a graph with summaries in one thread: with the kernel, where that was built.

    Args:
        graph: The ONNX file, whose metadata describe the summaries.
        names: The names of its inputs and outputs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it warns of constants of the nodes that the kernel replaces
    if kernel.INSTRUCTION_SETS:
        graph = kernel.fused(graph, names.sequences, str(names.lengths))
        register(options, "summaries")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
