"""Checks that every node of a graph runs on the chosen provider. What onnxruntime recorded is passed as an argument.

If the device has no kernel for a node, onnxruntime runs the node on the CPU, copies its tensors there and back, and at
most logs it. Here such a graph is refused, with the names of these nodes. One kind of node may run on the CPU: those
that compute shapes only (a `Shape`, and the `Squeeze` that takes the width out of it), because the numbers that they
need are on the CPU. The exporter finds these nodes, and the manifest lists them. onnxruntime's own option
`session.disable_cpu_ep_fallback` would refuse them too, and names no node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import ModelError

CPU_PROVIDER: Final = "CPUExecutionProvider"
"""onnxruntime's name of the provider that runs on the CPU."""
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node, and the provider that onnxruntime chose for it."""

    name: str  # its name in the graph; may be empty
    operator: str
    provider: str  # onnxruntime's name of the provider that runs it

    def __str__(self) -> str:
        """`node_LSTM_9 (LSTM)`, for people."""
        return f"{self.name or 'a node without a name'} ({self.operator})"


def check(placed: Sequence[PlacedNode], provider: str, host_nodes: Collection[str], *, model: str) -> None:
    """Checks that a provider runs every node, those of subgraphs too, except `host_nodes`, which the CPU may run.

    Raises:
        ModelError: Some nodes run on another provider, and the message has their names; or onnxruntime recorded no
            nodes at all.
    """
    if not placed:
        raise ModelError(f"{model}: onnxruntime does not say where it runs the graph's nodes")
    strays = [
        node
        for node in placed
        if node.provider != provider and not (node.provider == CPU_PROVIDER and node.name and node.name in host_nodes)
    ]
    if strays:
        rest = f", and {len(strays) - _MOST_NAMED} more" if len(strays) > _MOST_NAMED else ""
        raise ModelError(
            f"{model}: {provider} has no kernel for {', '.join(str(node) for node in strays[:_MOST_NAMED])}{rest}: "
            "onnxruntime runs that on the CPU, which this service does not allow; export the model with operators "
            "that the device has, or serve it with --provider cpu"
        )
