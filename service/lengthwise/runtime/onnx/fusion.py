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

A graph in which nothing is found is used as it is. `lengthwise.runtime.opening` tests the new graph, and uses the graph
of the file if the new one does not run.

In the docstrings *flat* means scores, mask and attention of the form `[rows, steps]`. *Lengths* are the name of the
input with the lengths that a layer gets.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Node
from lengthwise.runtime.onnx.pattern import ONNX, NotFound, Pattern, require

DOMAIN: Final = "lengthwise"
"""The domain of the operators, as `kernels/_recurrent.c` registers them."""
LAYERS: Final = ("LSTM", "GRU")
KNOWN: Final = frozenset({"hidden_size", "direction", "input_forget", "layout", "linear_before_reset"})
"""The attributes of a layer that is replaced: with others, such as activations, it may compute something else."""
_STEPS_FIRST, _ROWS_FIRST = 1, 2  # as in `kernels/_recurrent.c`
_ORDERS: Final = {(0, 2, 1, 3): _STEPS_FIRST, (2, 0, 1, 3): _ROWS_FIRST}
"""The order of axes of a layer's output, by the `perm` of the Transpose of `[steps, directions, rows, hidden]`."""
_LENGTHS: Final = 4
"""The index of the lengths among the inputs of a layer."""
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
    """A graph with the operators of the module's table."""

    graph: bytes
    # Whether it has an AttentionPooling, whose sums are rounded in another order than those of the nodes that it
    # replaces. A layer with its output in another order has the same bits.
    pools: bool


def fused(model: bytes) -> FusedGraph | None:
    """Returns the graph with the operators of the module's table; None if no layer has the form that is replaced.

    A layer or an attention of another form stays as it is.

    Raises:
        ValueError: The bytes are not a graph, or a layer has cells that the kernels do not compute.
    """
    fusion = _Fusion(onnx_graph.read(model))
    for node in fusion.graph.walk():
        if node.operator in LAYERS and not {"activations", "clip"}.isdisjoint(node.attributes.keys() | node.unread):
            raise ValueError("a layer has activations of its own, or clips its sums")
    layers = []
    for node in fusion.graph.nodes:
        with suppress(NotFound):
            layers.append(fusion.replace_layer(node))
    pooled = [fusion.pool(layer) for layer in layers if layer.attributes["order"] == _ROWS_FIRST]
    for layer in layers:
        fusion.leave_padding_unwritten(layer)
    return FusedGraph(fusion.graph.write({DOMAIN: 1}), any(pooled)) if layers else None


class _Fusion(Pattern):
    """Finds the patterns in a graph, and replaces them; `NotFound` (`require`) where nodes have another form."""

    def replace_layer(self, node: Node) -> Node:
        """Replaces a layer, its Transpose and its Reshape by a new layer, which writes its output in their order.

        Returns:
            The new layer.

        Raises:
            NotFound: The nodes have another form, or the layer has no lengths.
        """
        require(node.operator in LAYERS and node.domain in ONNX and any(node.inputs[_LENGTHS : _LENGTHS + 1]))
        require(not node.unread and node.attributes.keys() <= KNOWN)
        transpose = self.only_user(node.outputs[0], "Transpose")
        reshape = self.only_user(transpose.outputs[0], "Reshape")
        order = _ORDERS.get(transpose.attributes.get("perm", ()))  # type: ignore[arg-type]
        hidden, sizes = node.attributes.get("hidden_size"), self.graph.constants.get(reshape.inputs[1])
        directions = 2 if node.attributes.get("direction") == "bidirectional" else 1
        if order is None or not isinstance(hidden, int):
            raise NotFound
        require(reshape.inputs[0] == transpose.outputs[0] and not reshape.attributes.get("allowzero"))
        require(sizes in ((0, 0, -1), (0, 0, directions * hidden)))
        outputs = [reshape.outputs[0], *node.outputs[1:]]
        layer = Node(node.operator, node.inputs, outputs, {**node.attributes, "order": order}, domain=DOMAIN)
        self.replace(node, layer, [transpose, reshape])
        return layer

    def pool(self, layer: Node) -> bool:
        """Replaces the attention over a layer's output by an AttentionPooling; returns whether there is one."""
        for product in self.users.get(layer.outputs[0], []):
            with suppress(NotFound):
                self._replace_pooling(product, layer.outputs[0], layer.inputs[_LENGTHS])
                return True
        return False

    def _replace_pooling(self, product: Node, values: str, lengths: str) -> None:
        """Replaces an attention by an AttentionPooling; `NotFound` if the nodes have another form.

        The attention weights are as follows, where the Add and the Squeeze may be missing. A weighted sum follows.

            Softmax(Where(mask, Squeeze(MatMul(Tanh(Add(product(values, weights), bias)), weights)), -large))

        Args:
            product: The MatMul with which the attention begins.
            values: The output of a layer.
            lengths: The lengths of that layer.
        """
        # 1. The scores
        require(product.operator == "MatMul" and product.inputs[0] == values)
        biases: list[str] = []
        removed = [product]
        units = self.only_user(product.outputs[0], "Add", "Tanh")
        if units.operator == "Add":
            biases = [name for name in units.inputs if name != product.outputs[0]]
            require(len(biases) == 1)
            removed.append(units)
            units = self.only_user(units.outputs[0], "Tanh")
        scores = self.only_user(units.outputs[0], "MatMul")
        require(scores.inputs[0] == units.outputs[0])
        weights = [product.inputs[1], scores.inputs[1], *biases]
        require(all(name in self.graph.tensors for name in weights))
        # 2. The mask and the softmax
        unmasked, masked = scores, self.only_user(scores.outputs[0], "Squeeze", "Where")
        is_flat = masked.operator == "Squeeze"  # scores are [rows, steps], or [rows, steps, 1]
        if is_flat:
            require(self.axis(masked) in (-1, 2))
            removed.append(masked)
            unmasked, masked = masked, self.only_user(masked.outputs[0], "Where")
        self._require_mask(masked, unmasked.outputs[0], lengths, is_flat=is_flat)
        softmax = self.only_user(masked.outputs[0], "Softmax")
        require(softmax.attributes.get("axis", -1) in ((-1, 1) if is_flat else (-2, 1)))
        # 3. The weighted sum of the values
        attention = softmax.outputs[0]
        total = self._sum_by_product(attention, values) if is_flat else self._sum(attention, values)
        outputs = [total[-1].outputs[0], attention][: 2 if is_flat else 1]
        pooling = Node("AttentionPooling", [values, lengths, *weights], outputs, domain=DOMAIN)
        self.replace(softmax, pooling, [*removed, units, scores, masked, *total])

    def _require_mask(self, where: Node, scores: str, lengths: str, *, is_flat: bool) -> None:
        """Requires that a Where replaces the scores at padding, and no others, by a very small number."""
        is_valid = self._is_true_at_valid_steps(where.inputs[0], lengths, is_flat=is_flat)
        scores_index, fill_index = (1, 2) if is_valid else (2, 1)
        require(where.inputs[scores_index] == scores and self.constant(where.inputs[fill_index]) < _MASKED)

    def _sum_by_product(self, attention: str, values: str) -> list[Node]:
        """Returns the nodes of the weighted sum Squeeze(MatMul(Unsqueeze(attention), values)).

        Other nodes may use the attention and the values, too.

        Raises:
            NotFound: There are no such nodes.
        """
        for unsqueeze in self.users.get(attention, []):
            with suppress(NotFound):
                require(unsqueeze.operator == "Unsqueeze" and self.axis(unsqueeze) == 1)
                product = self.only_user(unsqueeze.outputs[0], "MatMul")
                squeeze = self.only_user(product.outputs[0], "Squeeze")
                require(product.inputs == [unsqueeze.outputs[0], values] and self.axis(squeeze) == 1)
                return [unsqueeze, product, squeeze]
        raise NotFound

    def _sum(self, attention: str, values: str) -> list[Node]:
        """Returns the nodes of the weighted sum ReduceSum(Mul(attention, values)) over the steps.

        No other node may use the attention; otherwise `NotFound`.
        """
        product = self.only_user(attention, "Mul")
        total = self.only_user(product.outputs[0], "ReduceSum")
        require({*product.inputs} == {attention, values} and total.attributes.get("keepdims", 1) == 0)
        require(self.axis(total) == 1)
        return [product, total]

    def leave_padding_unwritten(self, layer: Node) -> None:
        """Lets a layer write no zeros at padding (the attribute `zeros=0`), if nothing reads its output there.

        So only other layers and poolings with the same lengths may read the output, as the values that they compute
        with. If one of these layers does not run in the kernels, the test of the new graph fails, and the graph of the
        file is used.
        """
        output = layer.outputs[0]
        users = self.users.get(output, [])
        for user in users:
            lengths_index = 1 if user.operator == "AttentionPooling" else _LENGTHS
            has_same_lengths = user.inputs[lengths_index : lengths_index + 1] == [layer.inputs[_LENGTHS]]
            is_known = user.operator in (*LAYERS, "AttentionPooling")
            reads_as_values = user.inputs[0] == output and user.inputs.count(output) == 1
            if not (is_known and reads_as_values and has_same_lengths):
                return
        if users and output not in self.graph.used_elsewhere:
            layer.attributes["zeros"] = 0

    def _is_true_at_valid_steps(self, mask: str, lengths: str, *, is_flat: bool) -> bool:
        """Reads a mask that compares the steps with the lengths; `NotFound` for any other mask.

        Args:
            mask: The mask: `[rows, steps]` if `is_flat`, otherwise `[rows, steps, 1]`.
            lengths: The lengths with which it must compare.
            is_flat: Its form.

        Returns:
            True if it is true at valid steps, False if it is true at padding.
        """
        node = self.maker(mask, "Not", *(_COMPARED if is_flat else ["Unsqueeze"]))
        if node.operator == "Not":
            return not self._is_true_at_valid_steps(node.inputs[0], lengths, is_flat=is_flat)
        if node.operator == "Unsqueeze":
            require(self.axis(node) in (2, -1))
            return self._is_true_at_valid_steps(node.inputs[0], lengths, is_flat=True)
        steps_second, is_valid = _COMPARED[node.operator]
        steps, ends = node.inputs[::-1] if steps_second else node.inputs
        self._require_steps(steps)
        column = self.maker(self._root(ends), "Unsqueeze")  # the lengths, [rows, 1]
        require(self.axis(column) in (1, -1) and self._root(column.inputs[0]) == self._root(lengths))
        return is_valid

    def _require_steps(self, name: str) -> None:
        """Requires that a value is the steps' indices 0, 1, 2, ..., `[steps]` or `[1, steps]`."""
        node = self.maker(self._root(name), "Range", "Unsqueeze")
        if node.operator == "Unsqueeze":
            require(self.axis(node) == 0)
            node = self.maker(self._root(node.inputs[0]), "Range")
        require(self.constant(node.inputs[0]) == 0 and self.constant(node.inputs[2]) == 1)

    def _root(self, name: str) -> str:
        """Goes back from a value over its casts; returns the value before them.

        Casts between integer types do not change lengths.
        """
        while (node := self.makers.get(name)) is not None and node.operator == "Cast":
            name = node.inputs[0]
        return name
