"""Section `placement`: which node runs where, and that the service rejects a node which the device cannot run.

The assignment comes from onnxruntime itself, so the service's own check is checked too. The graph to be rejected is
the same graph with `clip` in its recurrent layers, which changes no number: cuDNN's layers do not have it, and
onnxruntime moves such a node to the CPU without a message. (An opset is no such graph: onnxruntime-gpu 1.31 runs an
LSTM of opset 22 on CUDA.)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import Graph, Stage
from lengthwise.errors import ModelError
from lengthwise.runtime.manifest import GRAPH_FILE

_NEVER_REACHED = 1e6  # by the sums in a layer


def measure(stage: Stage, figures: Figures) -> None:
    """Notes for each graph the nodes of each provider, those elsewhere, and whether the service loads it."""
    for graph in stage.graphs():
        stage.say(f"placement, {graph}")
        with figures.trying(graph):
            nodes = placed(stage.directory(graph) / GRAPH_FILE, stage, graph)
            wanted, allowed = stage.device(graph).provider.execution_provider, stage.manifest(graph).host_nodes
            found = {
                "nodes": Counter(provider for _, _, provider in nodes),
                "elsewhere": [
                    f"{name} ({operator}{', as the manifest allows' if name in allowed else ''})"
                    for name, operator, provider in nodes
                    if provider != wanted
                ],
            }
            figures.note(graphs={graph: found})
        with figures.trying(f"{graph}, as the service loads it"):
            figures.note(served_on={graph: stage.session(graph).provider})
    with figures.trying("rejection"):
        figures.note(rejection=rejection(stage))


def placed(file: Path | bytes, stage: Stage, graph: Graph) -> list[tuple[str, str, str]]:
    """Name, operator and provider of each node, from onnxruntime itself."""
    import onnxruntime

    device = stage.device(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what it would warn of, the section tells
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(
        file if isinstance(file, bytes) else str(file),
        options,
        providers=[(device.provider.execution_provider, device.options)],
    )
    return [
        (node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def rejection(stage: Stage) -> str:
    """The service's error for a graph with a node that the device cannot run."""
    if stage.provider == "cpu":
        return "not tried: the CPU runs every node"
    onnx = module("onnx")
    if onnx is None:
        return "not tried: onnx is not installed"
    graph: Any = onnx.load(stage.directory("fp32") / GRAPH_FILE)
    for node in graph.graph.node:
        if node.op_type in ("LSTM", "GRU"):
            node.attribute.append(onnx.helper.make_attribute("clip", _NEVER_REACHED))
    changed = graph.SerializeToString()
    try:
        stage.opened(changed, "fp32")
    except ModelError as error:
        return f"rejected: {error}"
    where = Counter(provider for _, _, provider in placed(changed, stage, "fp32"))
    return f"NOT rejected with clip in its recurrent layers: onnxruntime runs {dict(where)}"
