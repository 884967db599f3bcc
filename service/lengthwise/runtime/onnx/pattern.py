"""Follows values through the nodes of a graph, to find a pattern of nodes in it.

A *value* is an input or output of nodes, by name. `require` and the methods raise `NotFound` where the graph does not
have the form that the caller looks for; the caller then leaves the nodes as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.onnx.onnx_graph import BOOL, FLOAT, INT32, INT64, Graph, Node

ONNX: Final = ("", "ai.onnx")
"""The domains of ONNX's own operators."""
_OF_MASKS: Final = frozenset(
    {"And", "Cast", "Constant", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    | {"Range", "Reshape", "Shape", "Squeeze", "Sub", "Unsqueeze", "Where"}
)
"""The operators that compute which steps count, and how many."""

_SAME_NUMBERS: Final = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that change no number."""
HIDDEN: Final = -1e8
"""A number up to this, at padding, has no share in a softmax and is no maximum."""
# A mask may compare with small numbers, or with ones that are larger than every length. With a number in between, such
# as in "the first 500 steps", it may change at a length that the trial of `runtime.opening` does not have.
_MOST_IN_MASKS: Final = 16
_NO_LENGTH: Final = 2**31
_DOUBLE: Final = 11
_KEEPING: Final = (BOOL, FLOAT, INT32, INT64, _DOUBLE)
"""The types to which a Cast keeps every length; and that of masks."""

_OF_SIZES: Final = ("Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Unsqueeze")
"""Operators on the way from a shape to another one."""


class NotFound(Exception):
    """The graph does not have the form that is looked for."""


def require(condition: object) -> None:
    """Raises `NotFound` unless a condition of the graph holds.

    Raises:
        NotFound: The condition does not hold.
    """
    if not condition:
        raise NotFound


class Pattern:
    """The nodes of a graph by value.

    `makers` has the node that makes each value, `users` the nodes that use each value.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._index()

    def _index(self) -> None:
        """Computes makers and users anew, after a change of the graph's nodes."""
        self.makers, self.users = self.graph.makers(), self.graph.users()

    def replace(self, node: Node, replacement: Node, removed: list[Node]) -> None:
        """Puts the `replacement` where `node` is in the graph, and removes the `removed` nodes."""
        removed_ids = {id(removed_node) for removed_node in removed}
        self.graph.nodes = [
            replacement if kept is node else kept for kept in self.graph.nodes if id(kept) not in removed_ids
        ]
        self._index()

    def maker(self, name: str, *operators: str) -> Node:
        """Returns the node that makes a value. The node must have one of these operators of ONNX.

        Raises:
            NotFound: No node makes the value, or its node has another operator.
        """
        node = self.makers.get(name)
        if node is None or node.operator not in operators or node.domain not in ONNX:
            raise NotFound
        return node

    def only_user(self, name: str, *operators: str) -> Node:
        """Returns the only node that uses a value. The node must have one of these operators of ONNX.

        `NotFound` if several nodes use the value, or none; or if it is an output of the graph, or a graph inside a node
        uses it too.
        """
        users = self.users.get(name, [])
        require(len(users) == 1 and name not in self.graph.used_elsewhere)
        require(users[0].operator in operators and users[0].domain in ONNX)
        return users[0]

    def only_reshape(self, name: str) -> Node:
        """The Reshape that alone reads a value, maybe by sizes of its own; `NotFound` if none does."""
        waiting, found = [name], list[Node]()
        while waiting:
            value = waiting.pop()
            require(value not in self.graph.used_elsewhere)
            for node in self.users.get(value, []):
                if node.operator == "Reshape":
                    found.append(node)
                else:
                    require(node.operator in (("Shape",) if value == name else _OF_SIZES))
                    waiting += node.outputs
        require(found and found[0].inputs[0] == name and all(node is found[0] for node in found))
        return found[0]

    def before(self, name: str, *operators: str) -> str:
        """Goes back from a value over the nodes of these operators, by their first inputs; returns the value there."""
        while (node := self.makers.get(name)) is not None and node.operator in operators:
            name = node.inputs[0]
        return name

    def comes_from_outside(self, name: str) -> bool:
        """Whether a value is an input of the graph, maybe with other axes; or omitted, with an empty name."""
        name = self.before(name, *_SAME_NUMBERS)
        return name not in self.makers and name not in self.graph.tensors

    def numbers(self, name: str, *shape: int) -> NDArray[Any]:
        """Returns the numbers of an initializer. It must have this shape; -1 in `shape` stands for any size.

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
        """Returns the only number of a constant; `NotFound` if it has several, or the value is not constant."""
        numbers = self.graph.constants.get(name, ())
        require(len(numbers) == 1)
        return numbers[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of weights, which a Concat, Identity or Transpose may make of others; empty if not constant."""
        maker = self.makers.get(name, Node())
        if maker.operator in ("Identity", "Transpose"):
            return self.shape(maker.inputs[0])[:: -1 if maker.operator == "Transpose" else 1]
        if maker.operator == "Concat" and all(parts := [self.shape(part) for part in maker.inputs]):
            axis = int(maker.attributes["axis"])  # type: ignore[arg-type]  # an integer
            return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])
        return self.graph.tensors[name].shape if name in self.graph.tensors else ()

    def require_mask_of_lengths(self, name: str, *lengths: str, further: tuple[str, ...] = ()) -> None:
        """Requires that a mask depends on the lengths and the width only, and treats all lengths alike.

        The arguments are those of `mask_constants`.
        """
        for constant in self.mask_constants(name, *lengths, further=further):
            require(constant in self.graph.constants)  # not a boolean table with many numbers
            require(_is_no_length(self.graph.constants[constant]))

    def mask_constants(self, name: str, *lengths: str, further: tuple[str, ...] = ()) -> set[str]:
        """Follows a mask, or a count of its steps, back to what it is computed from; returns the constants.

        The nodes on the way are not understood. They only must have the operators of masks (`_OF_MASKS`), and may read
        nothing but the lengths, shapes, constants and boolean initializers. Otherwise `NotFound`, as where a number may
        hide in a node itself: a size of a tensor, what ConstantOfShape writes, or the largest of a small type.

        Args:
            name: The mask.
            *lengths: The graph's inputs with the lengths, or the mask.
            further: Further operators that are allowed.

        Returns:
            The names of the constants and of the boolean initializers.
        """
        waiting, visited, constants = [name], {*lengths, ""}, set()  # `waiting`: values that are to be followed back
        while waiting:
            name = waiting.pop()
            if name in visited:
                continue
            visited.add(name)
            tensor = self.graph.tensors.get(name)
            if name in self.graph.constants or (tensor is not None and tensor.kind == BOOL):
                constants.add(name)
            else:
                maker = self.maker(name, *_OF_MASKS, *further)
                match maker.operator:
                    case "Shape":
                        require(not self.shape(maker.inputs[0]))
                        continue
                    case "ConstantOfShape":
                        require(not maker.unread and _is_no_length(maker.attributes.get("value", 0.0)))
                    case "Cast":
                        require(maker.attributes.get("to") in _KEEPING)
                    case "Add" | "Div" | "Mul" | "Sub":
                        require(not self.graph.constants.keys() >= {*maker.inputs})
                waiting += maker.inputs
        return constants

    def axis(self, node: Node) -> float | None:
        """The axis of a Squeeze, an Unsqueeze or a reduction; None if it has several or none, or they are computed."""
        axes = self.graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get("axes")
        return axes[0] if isinstance(axes, tuple) and len(axes) == 1 else None


def are_equal_by_nodes(graph: Graph, names: Sequence[str]) -> bool:
    """Whether the same operators make all these values, of the same ones."""
    kinds: dict[Any, int] = {}
    made: dict[str, Any] = {name: (numbers,) for name, numbers in graph.constants.items()}
    for node in graph.before(*names):
        inputs = tuple(made.get(name, name) for name in node.inputs)
        is_known = not node.unread and not node.graphs
        how = node.operator, node.domain, tuple(sorted(node.attributes.items())), is_known or id(node), inputs
        for index, name in enumerate(node.outputs):
            made.setdefault(name, kinds.setdefault((how, index), len(kinds)))
    return len({made.get(name, name) for name in names}) == 1


def _is_no_length(numbers: Any) -> bool:
    """Whether a mask that is made with these numbers treats all lengths alike: see `_MOST_IN_MASKS`."""
    given = np.array(numbers)
    return bool(((np.abs(given) <= _MOST_IN_MASKS) | (given <= HIDDEN) | (given >= _NO_LENGTH)).all())
