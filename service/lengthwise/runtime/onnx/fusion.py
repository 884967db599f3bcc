"""Replaces nodes of a graph by operators that compute valid steps only; in memory, the file stays as it is.

The kernels of `recurrent_kernels` need not compute padding, but the nodes around them do: they turn the output of a
recurrent layer, and pool it, on the full rectangle of rows and steps. Two patterns are replaced:

| nodes | become |
|---|---|
| LSTM or GRU, Transpose, Reshape | a layer that writes its output in that order |
| MatMul, Add, Tanh, MatMul, Where, Softmax, and the weighted sum, over the output of such a layer | AttentionPooling |

The pooling may have its scores as `[rows, steps]` or `[rows, steps, 1]`, and its sum as a MatMul or as Mul and
ReduceSum. Its mask must compare the steps with the lengths that the recurrent layer gets. If nothing else reads the
output of a layer, its padding is not even written.

A graph in which nothing is found is used as it is. `lengthwise.runtime.session` tests the new graph, and uses the graph
of the file if it does not run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph, Node

DOMAIN: Final = "lengthwise"
"""The domain of the operators, as `kernels/_recurrent.c` registers them."""
_STEPS_FIRST, _ROWS_FIRST = 1, 2
_ORDERS: Final = {(0, 2, 1, 3): _STEPS_FIRST, (2, 0, 1, 3): _ROWS_FIRST}
"""The order of a layer's output, from `[steps, directions, rows, hidden]` to `[..., directions, hidden]`."""
_LAYERS: Final = ("LSTM", "GRU")
_KNOWN: Final = frozenset({"hidden_size", "direction", "input_forget", "layout", "linear_before_reset"})
"""The attributes of a layer that is replaced: with others, such as activations, it may compute something else."""
_LENGTHS: Final = 4
"""Where a layer has its lengths among its inputs."""
_MASKED: Final = -1e8
"""A score below this has no share in a softmax."""
_COMPARED: Final = {
    "Less": (False, True),
    "Greater": (True, True),
    "GreaterOrEqual": (False, False),
    "LessOrEqual": (True, False),
}
"""Comparisons of steps with lengths: whether the steps come second, and whether it is true at valid steps."""


class FusedGraph(NamedTuple):
    """A graph with these operators.

    Attributes:
        graph: The ONNX file.
        pools: Whether it has an AttentionPooling, whose sums are rounded in another order than those of the nodes that
            it replaces. A layer with its output in another order has the same bits.
    """

    graph: bytes
    pools: bool


def fused(model: bytes) -> FusedGraph | None:
    """A graph with these operators; None if there is no place for them.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    read = onnx_graph.read(model)
    fusion = _Fusion(read)
    layers = [layer for node in read.nodes if (layer := fusion.layer(node)) is not None]
    if not layers:
        return None
    for layer in layers:
        fusion.replace_layer(layer)
    pools = False
    for layer in layers:
        if layer.order == _ROWS_FIRST and (pooling := fusion.pooling(layer)) is not None:
            fusion.replace_pooling(pooling)
            pools = True
    for layer in layers:
        fusion.leave_padding_unwritten(layer)
    return FusedGraph(read.write({DOMAIN: 1}), pools)


@dataclass(slots=True)
class _TurnedLayer:
    """A recurrent layer whose output is turned.

    Attributes:
        node: The layer; its first output is the value that the last of the nodes gave.
        removed: The nodes that become part of it.
        output: The value in its new order.
        order: That order.
    """

    node: Node
    removed: list[Node]
    output: str
    order: int

    @property
    def lengths(self) -> str:
        """The value that holds its lengths."""
        return self.node.inputs[_LENGTHS]


@dataclass(slots=True)
class _Pooling:
    """Attention pooling over the output of a layer.

    Attributes:
        node: The operator that replaces it.
        removed: The nodes that become part of it.
        place: The node in whose place it stands.
    """

    node: Node
    removed: list[Node] = field(default_factory=list)
    place: Node | None = None


class _Fusion:
    """Finds the patterns in a model, and replaces them."""

    def __init__(self, model: Graph) -> None:
        self._model = model
        self._index()

    def _index(self) -> None:
        self._makers = {name: node for node in self._model.nodes for name in node.outputs if name}
        self._users = self._model.users()

    def layer(self, node: Node) -> _TurnedLayer | None:
        """A recurrent layer with its Transpose and Reshape; None if the node is not one."""
        if node.operator not in _LAYERS or node.domain or len(node.inputs) <= _LENGTHS or not node.inputs[_LENGTHS]:
            return None
        if node.unread or not node.attributes.keys() <= _KNOWN:
            return None
        turn = self._only_user(node.outputs[0])
        if turn is None or turn.operator != "Transpose":
            return None
        order = _ORDERS.get(turn.attributes.get("perm", ()))  # type: ignore[arg-type]
        shape = self._only_user(turn.outputs[0])
        if order is None or shape is None or shape.operator != "Reshape" or shape.inputs[0] != turn.outputs[0]:
            return None
        hidden, sizes = node.attributes.get("hidden_size"), self._model.constants.get(shape.inputs[1])
        both = node.attributes.get("direction") == "bidirectional"
        if not isinstance(hidden, int) or sizes is None or len(sizes) != 3 or shape.attributes.get("allowzero"):
            return None
        if sizes[:2] != (0, 0) or sizes[2] not in (-1, (1 + both) * hidden):
            return None
        return _TurnedLayer(node, [turn, shape], shape.outputs[0], order)

    def replace_layer(self, layer: _TurnedLayer) -> None:
        """Puts a layer that writes its output in the new order in the place of these nodes."""
        node = layer.node
        attributes = {**node.attributes, "order": layer.order}
        new = Node(node.operator, node.inputs, [layer.output, *node.outputs[1:]], attributes, domain=DOMAIN)
        self._replace({id(node): new}, layer.removed)
        layer.node = new

    def pooling(self, layer: _TurnedLayer) -> _Pooling | None:
        """The attention pooling over a layer's output; None if there is none of the form that is known."""
        for node in self._users.get(layer.output, []):
            if node.operator == "MatMul" and node.inputs[0] == layer.output and node.inputs[1] in self._model.tensors:
                found = self._pooling_from(node, layer)
                if found is not None:
                    return found
        return None

    def _pooling_from(self, product: Node, layer: _TurnedLayer) -> _Pooling | None:
        """As `pooling`, from the product of the values with the weights of the units."""
        chain, biases = [product], ""
        unit = self._only_user(product.outputs[0])
        if unit is not None and unit.operator == "Add":
            biases = next((name for name in unit.inputs if name != product.outputs[0]), "")
            chain.append(unit)
            unit = self._only_user(unit.outputs[0])
        scores = self._follow(unit, "Tanh", "MatMul", chain)
        after = None if scores is None else self._only_user(scores.outputs[0])
        if scores is None or after is None:
            return None
        flat = after.operator == "Squeeze" and self._has_axis(after, (-1, 2))
        masked = self._only_user(after.outputs[0]) if flat else after  # scores are [rows, steps] or [rows, steps, 1]
        given = after.outputs[0] if flat else scores.outputs[0]
        if masked is None or masked.operator != "Where" or not self._masks(masked, given, layer.lengths, flat=flat):
            return None
        softmax = self._only_user(masked.outputs[0])
        if softmax is None or softmax.operator != "Softmax":
            return None
        if softmax.attributes.get("axis", -1) not in ((-1, 1) if flat else (-2, 1)):
            return None
        if (biases and biases not in self._model.tensors) or scores.inputs[1] not in self._model.tensors:
            return None
        attention = softmax.outputs[0]
        last = self._product(attention, layer.output) if flat else self._sum(attention, layer.output)
        if last is None:
            return None
        inputs = [layer.output, layer.lengths, product.inputs[1], scores.inputs[1], *([biases] if biases else [])]
        outputs = [last[-1].outputs[0], *([attention] if flat else [])]
        node = Node("AttentionPooling", inputs, outputs, domain=DOMAIN)
        removed = [*chain, masked, *last, *([after] if flat else [])]
        return _Pooling(node, removed, softmax)

    def _masks(self, node: Node, scores: str, lengths: str, *, flat: bool) -> bool:
        """Whether a Where puts a very small number in the place of the scores at padding, and only there."""
        valid = self._is_valid(node.inputs[0], lengths, flat=flat)
        if valid is None or node.inputs[1 if valid else 2] != scores:
            return False
        least = self._model.constants.get(node.inputs[2 if valid else 1], ())
        return len(least) == 1 and least[0] < _MASKED

    def _product(self, attention: str, values: str) -> list[Node] | None:
        """The nodes of Squeeze(MatMul(Unsqueeze(attention), values)), which may be among several users of both."""
        for wide in self._users.get(attention, []):
            if wide.operator != "Unsqueeze" or not self._has_axis(wide, (1,)):
                continue
            total = self._only_user(wide.outputs[0])
            if total is None or total.operator != "MatMul" or total.inputs != [wide.outputs[0], values]:
                continue
            narrow = self._only_user(total.outputs[0])
            if narrow is not None and narrow.operator == "Squeeze" and self._has_axis(narrow, (1,)):
                return [wide, total, narrow]
        return None

    def _sum(self, attention: str, values: str) -> list[Node] | None:
        """The nodes of ReduceSum(attention * values) over the steps; the attention has no other user."""
        shares = self._only_user(attention)
        if shares is None or shares.operator != "Mul" or {*shares.inputs} != {attention, values}:
            return None
        total = self._only_user(shares.outputs[0])
        if total is None or total.operator != "ReduceSum" or total.attributes.get("keepdims", 1) != 0:
            return None
        return [shares, total] if self._has_axis(total, (1,)) else None

    def replace_pooling(self, pooling: _Pooling) -> None:
        """Puts the operator in the place of these nodes."""
        self._replace({id(pooling.place): pooling.node}, pooling.removed)

    def leave_padding_unwritten(self, layer: _TurnedLayer) -> None:
        """Has a layer write no padding, if only valid steps of its output are read."""
        users = self._users.get(layer.output, [])
        if layer.output in self._model.used_elsewhere or not users:
            return
        for user in users:  # a layer that the kernels do not know leads to an error, and then nothing is replaced
            place = _LENGTHS if user.operator in _LAYERS else 1 if user.operator == "AttentionPooling" else None
            if place is None or user.inputs.count(layer.output) != 1 or user.inputs[0] != layer.output:
                return
            if len(user.inputs) <= place or user.inputs[place] != layer.lengths:
                return
        layer.node.attributes["zeros"] = 0

    def _replace(self, new: dict[int, Node], removed: list[Node]) -> None:
        gone = {id(node) for node in removed}
        self._model.nodes = [new.get(id(node), node) for node in self._model.nodes if id(node) not in gone]
        self._index()

    def _only_user(self, name: str) -> Node | None:
        """The only node that uses a value; None if others do too, or none."""
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 and name not in self._model.used_elsewhere else None

    def _follow(self, node: Node | None, first: str, second: str, chain: list[Node]) -> Node | None:
        """The node of the second type after one of the first type; both are added to the chain."""
        if node is None or node.operator != first:
            return None
        after = self._only_user(node.outputs[0])
        if after is None or after.operator != second or after.inputs[0] != node.outputs[0]:
            return None
        chain += [node, after]
        return after

    def _has_axis(self, node: Node, axes: tuple[int, ...]) -> bool:
        """Whether a Squeeze or Unsqueeze is over one axis, one of these."""
        given = self._model.constants.get(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get("axes")
        return isinstance(given, tuple) and len(given) == 1 and given[0] in axes

    def _is_valid(self, mask: str, lengths: str, *, flat: bool) -> bool | None:
        """What a mask of the steps says: true at valid steps (True), true at padding (False), or something else (None).

        Args:
            mask: The value, `[rows, steps]` if `flat`, else `[rows, steps, 1]`.
            lengths: The value that holds the lengths.
            flat: See `mask`.
        """
        node = self._makers.get(mask)
        if node is None:
            return None
        if node.operator == "Not":
            inside = self._is_valid(node.inputs[0], lengths, flat=flat)
            return None if inside is None else not inside
        if node.operator == "Unsqueeze":
            return (
                self._is_valid(node.inputs[0], lengths, flat=True)
                if not flat and self._has_axis(node, (2, -1))
                else None
            )
        if not flat or node.operator not in _COMPARED:
            return None
        turned, valid = _COMPARED[node.operator]
        for steps, ends in ((0, 1), (1, 0)):
            if self._counts_steps(node.inputs[steps]) and self._are_lengths(node.inputs[ends], lengths):
                return valid if (steps == 1) == turned else None
        return None

    def _counts_steps(self, name: str) -> bool:
        """Whether a value is 0, 1, 2, ..., `[steps]` or `[1, steps]`."""
        node = self._makers.get(self._root(name))
        if node is not None and node.operator == "Unsqueeze" and self._has_axis(node, (0,)):
            node = self._makers.get(self._root(node.inputs[0]))
        if node is None or node.operator != "Range":
            return False
        constants = self._model.constants
        return constants.get(node.inputs[0]) == (0,) and constants.get(node.inputs[2]) == (1,)

    def _are_lengths(self, name: str, lengths: str) -> bool:
        """Whether a value is the lengths, `[rows, 1]`."""
        node = self._makers.get(self._root(name))
        if node is None or node.operator != "Unsqueeze" or not self._has_axis(node, (1, -1)):
            return False
        return self._root(node.inputs[0]) == self._root(lengths)

    def _root(self, name: str) -> str:
        """The value that a value is cast from, if it is; casts between integers that hold lengths change nothing."""
        while (node := self._makers.get(name)) is not None and node.operator == "Cast":
            name = node.inputs[0]
        return name
