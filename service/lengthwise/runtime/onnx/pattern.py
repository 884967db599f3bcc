"""Follows values through the nodes of a graph, to find a pattern in it; `NotFound` where it has another form."""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from lengthwise.runtime.onnx.onnx_graph import Graph, Node

ONNX: Final = ("", "ai.onnx")
"""The domains of ONNX's own operators."""


class NotFound(Exception):
    """The graph has another form."""


def require(condition: object) -> None:
    """Requires a condition of the graph.

    Raises:
        NotFound: The condition does not hold.
    """
    if not condition:
        raise NotFound


class Pattern:
    """The nodes of a graph, by the values that they make and use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._index()

    def _index(self) -> None:
        self.makers, self.users = self.graph.makers(), self.graph.users()

    def replace(self, old: Node, new: Node, removed: list[Node]) -> None:
        """Replaces node `old` by `new`, and removes others."""
        removed_ids = {id(node) for node in removed}
        self.graph.nodes = [new if node is old else node for node in self.graph.nodes if id(node) not in removed_ids]
        self._index()

    def maker(self, name: str, *operators: str) -> Node:
        """The node that makes a value, of one of these operators of ONNX.

        Raises:
            NotFound: No node makes the value, or one of another operator.
        """
        node = self.makers.get(name)
        if node is None or node.operator not in operators or node.domain not in ONNX:
            raise NotFound
        return node

    def only_user(self, name: str, *operators: str) -> Node:
        """The only node that uses a value, of one of these operators of ONNX."""
        users = self.users.get(name, [])
        require(len(users) == 1 and name not in self.graph.used_elsewhere)
        require(users[0].operator in operators and users[0].domain in ONNX)
        return users[0]

    def numbers(self, name: str, *shape: int) -> NDArray[Any]:
        """A tensor's numbers; -1 in its shape is any size.

        Raises:
            NotFound: There is no such tensor, or it has another shape.
        """
        tensor = self.graph.tensors.get(name)
        numbers = None if tensor is None else tensor.numbers()
        if numbers is None or len(numbers.shape) != len(shape):
            raise NotFound
        require(all(size in (-1, actual) for size, actual in zip(shape, numbers.shape, strict=True)))
        return numbers

    def constant(self, name: str) -> float:
        """The only number of a small tensor."""
        numbers = self.graph.constants.get(name, ())
        require(len(numbers) == 1)
        return numbers[0]

    def axis(self, node: Node) -> float | None:
        """The only axis of a Squeeze, an Unsqueeze or a reduction."""
        axes = self.graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get("axes")
        return axes[0] if isinstance(axes, tuple) and len(axes) == 1 else None
