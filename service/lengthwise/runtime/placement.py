"""Which node of a graph runs where: none moves to the CPU unseen. Pure: what onnxruntime recorded is an argument.

onnxruntime gives a node that the device has no kernel for to the CPU, copies to it and back, and says so in its log at
most. Here such a graph is refused, by the names of these nodes. One kind of node belongs on the CPU all the same:
what computes nothing but shapes (a `Shape`, and the `Squeeze` that takes the width out of it). onnxruntime puts these
there on purpose, because the numbers they need are there already. The exporter finds them, and the manifest lists them;
nothing else is allowed. onnxruntime's own switch, `session.disable_cpu_ep_fallback`, refuses them too, and names none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import ModelError

CPU_PROVIDER: Final = "CPUExecutionProvider"
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """One node, as onnxruntime placed it.

    Attributes:
        name: Its name in the graph; may be empty.
        operator: Its operator.
        provider: onnxruntime's name of the provider that runs it.
    """

    name: str
    operator: str
    provider: str

    def __str__(self) -> str:
        """`node_LSTM_9 (LSTM)`, for people."""
        return f"{self.name or 'a node without a name'} ({self.operator})"


def check(nodes: Iterable[PlacedNode], provider: str, host_nodes: Collection[str], *, model: str) -> None:
    """Holds that every node runs on its provider, but for those that compute shapes.

    Args:
        nodes: All of the graph's, those of its subgraphs too.
        provider: onnxruntime's name of the one that was asked for.
        host_nodes: Names of the nodes that may run on the CPU.
        model: `name/version`, for the message.

    Raises:
        ModelError: Some node runs elsewhere, or none was recorded; names them.
    """
    placed = list(nodes)
    if not placed:
        raise ModelError(f"{model}: onnxruntime does not say where it runs the graph's nodes")
    strays = [
        node
        for node in placed
        if node.provider != provider and not (node.provider == CPU_PROVIDER and node.name and node.name in host_nodes)
    ]
    if strays:
        more = f", and {len(strays) - _MOST_NAMED} more" if len(strays) > _MOST_NAMED else ""
        raise ModelError(
            f"{model}: {provider} has no kernel for {', '.join(str(node) for node in strays[:_MOST_NAMED])}{more}: "
            "onnxruntime runs that on the CPU, which this service does not do unasked; export the model with operators "
            "that the device has, or serve it with --provider cpu"
        )
