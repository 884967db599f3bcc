"""Finds the attention of encoders in a graph, and puts one operator of onnxruntime in the place of its nodes.

    query, key, value ─> heads apart ─> MatMul ─> scale, mask ─> Softmax ─> MatMul ─> heads joined

becomes `MultiHeadAttention` of com.microsoft, which reads `[rows, width, features]` and has the heads apart inside; or
`Attention`, which has also the product inside that makes query, key and value side by side in its features; three
products of one value become that by their weights side by side. The mask is added to the scores as the graph has it, so
it hides what it hid: the operator's own mask of keys is a finite number, which large scores pass. If the graph writes a
number over the scores of padding instead (`Where`), the mask adds the lowest number, and keys and values at padding are
set to zero, so that no score there can be large.

The layout of query, key and value is followed back over the operators that only move numbers, to the value that a
product made. How these operators move them is not computed: the usual order is assumed. So `runtime.opening` runs both
graphs on sequences of several lengths, and uses the operator only if the answers agree.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final, NamedTuple

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import AttributeValue, Graph, Node
from lengthwise.runtime.onnx.pattern import HIDDEN, NotFound, Pattern, require

_DOMAIN: Final = "com.microsoft"
_APART: Final = "MultiHeadAttention"  # reads query, key and value
_OF_ONE: Final = "Attention"  # reads what they are made of, the weights of all three, and what is added
OF_VALID_STEPS: Final = "AttentionOfValidSteps"
"""The operator of `onnx.valid_attention`, which reads and writes what these do."""
DOMAIN: Final = "lengthwise.attention"
"""Its domain, and that of LengthsOfMask; both occur in no file."""
_DOMAINS: Final = {_APART: _DOMAIN, _OF_ONE: _DOMAIN, OF_VALID_STEPS: DOMAIN}
_LOWEST: Final = -3.4028234663852886e38  # of float32; -inf would make NaN of a row all of whose keys are hidden
_MOST: Final = 8  # nodes between the product and the softmax; each may have the product behind both of its inputs
_SELECTING: Final = ("Gather", "Slice", "Split")
_MOVING: Final = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", *_SELECTING)
"""The operators that leave every number as it is."""
_AXES: Final = ("Identity", "Reshape", "Squeeze", "Unsqueeze")  # between a mask of the scores and one of the keys
_HEADS_FIRST: Final = (0, 2, 1, 3)  # from steps before heads to heads before steps, and back
_KEY_TURNED: Final = (0, 3, 1, 2)  # from a key as the second factor of a MatMul to steps before heads
_KEYS_FIRST: Final = (0, 2, 1)  # the last two axes of a mask, in the other order
_TURNED: Final = (1, 0, 2)  # from rows first to steps first, and back
# By the axes of the Transpose that moves the result: whether steps come first, and whether rows and heads are one axis
_ORDERS: Final[dict[AttributeValue | None, tuple[bool, bool]]] = {
    _HEADS_FIRST: (False, False),
    (2, 0, 1, 3): (True, False),
    _TURNED: (True, True),
    (): (False, True),  # one head, which nothing moves
}


def fused(model: bytes) -> bytes:
    """Returns the graph with MultiHeadAttention in it; `NotFound` (`require`) if it has no attention that is known.

    Args:
        model: The ONNX file.
    """
    require(b"Softmax" in model)
    attention = Attention(onnx_graph.read(model))
    attention.replace_all()
    return attention.graph.write({_DOMAIN: 1})


class MaskedScores(NamedTuple):
    """The product of query and key, and what is done to it before the softmax."""

    product: Node
    scale: float = 1.0
    bias: str = ""  # what is added to it
    valid: str = ""  # a mask that is true at valid steps, if a number is written over the scores of others at last


class PartPath(NamedTuple):
    """From what query, key or value is made, by moving numbers and one factor."""

    source: str
    scale: float = 1.0
    head: int = 0  # features of a head; 0 if the heads are not taken apart
    is_part: bool = False  # whether query, key and value are parts of one source, side by side in its features


class Attention(Pattern):
    """A graph whose attention is replaced, one softmax after the other."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._new: list[Node] = []  # what replaces the attention of a softmax, in order

    def replace_all(self) -> None:
        """Replaces the attention around every softmax; `NotFound` (`require`) if there is none that is known."""
        softmaxes = [node for node in self.graph.nodes if node.operator == "Softmax"]
        require([softmax for softmax in softmaxes if self._replaces(softmax)])
        self.graph.remove_unused()

    def _replaces(self, softmax: Node) -> bool:
        """Puts one operator in the place of the attention around a softmax; False if it has another form."""
        self._new.clear()
        try:
            last = self._replace(softmax)
        except NotFound:
            return False
        self._new[-1].outputs = last.outputs
        place = next(index for index, node in enumerate(self.graph.nodes) if node is last)
        self.graph.nodes[place : place + 1] = self._new
        self._index()
        return True

    def _replace(self, softmax: Node) -> Node:
        """Makes the nodes that replace the attention; returns the node in whose place the last of them is."""
        # 1. The product with the values, and how its result is moved
        scores = self._scores(softmax.inputs[0], _MOST)
        product = self._weighted(softmax.outputs[0], scores.valid)
        last = product
        order: AttributeValue | None = ()
        with suppress(NotFound):
            last = self.only_user(product.outputs[0], "Transpose")
            order = last.attributes.get("perm")
        require(order in _ORDERS)
        steps_first, is_flat = _ORDERS[order]
        # 2. Query, key and value, with rows first, and the mask, which the new nodes write over the last two
        names = (*scores.product.inputs, product.inputs[1])
        paths = [self._path(name, valid) for name, valid in zip(names, ("", scores.valid, scores.valid), strict=True)]
        heads = 1 if order == () else self._heads(paths)
        if not is_flat and not all(path.head for path in paths):
            key_order = _KEY_TURNED if scores.product.operator == "MatMul" else _HEADS_FIRST
            orders = (_HEADS_FIRST, key_order, _HEADS_FIRST)
            paths = [PartPath(self._joined(name, order)) for name, order in zip(names, orders, strict=True)]
        require(paths[2].scale == 1)
        operator, inputs = self._operator(paths, scores, heads, steps_first, is_flat)
        scale = scores.scale * paths[0].scale * paths[1].scale
        attended = self._emit(operator, inputs, num_heads=heads, scale=scale)
        # 3. The result, as the nodes behind read it
        if order == ():
            return last
        try:
            joined = self.only_reshape(last.outputs[0])
        except NotFound:
            require(not steps_first)
            self._emit("Reshape", [attended, self._integers(0, 0, heads, -1)])
            return last
        return self._projected(joined, attended) if steps_first else self._joined_heads(joined, attended)

    def _emit(self, operator: str, inputs: list[str], **attributes: AttributeValue) -> str:
        """Adds a new node; returns the name of its output."""
        name = f"attention/{len(self.graph.nodes)}/{len(self._new)}"
        domain = _DOMAINS.get(operator, "")
        self._new.append(Node(operator, inputs, [name], attributes, domain=domain))
        return name

    def _integers(self, *numbers: int) -> str:
        return self._emit("Constant", [], value_ints=numbers)

    def _sizes(self, name: str, *axes: int) -> str:
        """The sizes of axes."""
        return self._emit("Gather", [self._emit("Shape", [name]), self._integers(*axes)])

    def _number(self, number: float) -> str:
        return self._emit("Constant", [], value_float=number)

    def _copied(self, node: Node, first: str) -> Node:
        """Adds a copy of a node with another first input; returns the node."""
        self._emit(node.operator, [first, *node.inputs[1:]], **node.attributes)
        return node

    def _joined_heads(self, joined: Node, attended: str) -> Node:
        """Adds what joins the heads, which the operator has joined already; returns the node that did."""
        shape = joined.inputs[1]
        count = len(self.graph.constants.get(shape, self.makers.get(shape, Node()).inputs))
        is_same = count == 3 and (shape in self.graph.constants or self.maker(shape, "Concat"))
        self._emit("Identity", [attended]) if is_same else self._copied(joined, attended)
        return joined

    # Scores

    def _scores(self, name: str, most: int) -> MaskedScores:
        """Goes back from the input of a softmax to the product of query and key, over `most` nodes at most."""
        node = self.maker(name, "Add", "Div", "Einsum", "MatMul", "Mul", "Sub", "Where")
        require(most and len(node.inputs) > 1)
        match node.operator:
            case "Add" | "Sub":
                return self._biased(node, most - 1)
            case "Div" | "Mul":
                scores = self._scores(node.inputs[0], most - 1)
                require(not scores.bias)
                return scores._replace(scale=scores.scale * self._factor(node))
            case "Where":
                return self._masked(node, most - 1)
        return MaskedScores(node)

    def _factor(self, node: Node) -> float:
        """What a Mul or Div by a number multiplies with."""
        number = self._number_of(node.inputs[1], _MOST)
        require(number)
        return number if node.operator == "Mul" else 1 / number

    def _number_of(self, name: str, most: int) -> float:
        """A constant number, or one that `most` nodes compute of the features of a head, as for torch's scale."""
        require(most)
        node = self.makers.get(name, Node())
        match node.operator:
            case "Cast":
                return self._number_of(node.inputs[0], most - 1)
            case "Sqrt":
                square = self._number_of(node.inputs[0], most - 1)
                require(square >= 0)
                return math.sqrt(square)
            case "Div":
                below = self._number_of(node.inputs[1], most - 1)
                require(below)
                return self._number_of(node.inputs[0], most - 1) / below
            case "Gather" | "Slice":
                require(self.constant(node.inputs[1]) in (-1, 3))  # the last axis
                head = self._path(self.maker(node.inputs[0], "Shape").inputs[0], "").head
                require(head)
                return head
        return self.constant(name)

    def _biased(self, node: Node, most: int) -> MaskedScores:
        """Scores to which something is added, or from which something is subtracted.

        Raises:
            NotFound: The product of query and key is behind neither.
        """
        is_sum = node.operator == "Add"
        for name, bias in (node.inputs, node.inputs[::-1])[: 1 + is_sum]:
            with suppress(NotFound):
                return self._with_bias(self._scores(name, most), bias if is_sum else self._emit("Neg", [bias]))
        raise NotFound

    def _masked(self, where: Node, most: int) -> MaskedScores:
        """Scores that are a very small number at padding."""
        valid, name, fill = where.inputs
        if name in self.graph.constants:
            valid, name, fill = self._emit("Not", [valid]), fill, name
        scores = self._scores(name, most)
        require(self.constant(fill) <= HIDDEN)
        bias = self._emit("Where", [valid, self._number(0.0), self._number(_LOWEST)])
        return self._with_bias(scores, bias)._replace(valid=valid)

    def _mask(self, name: str, *moving: str) -> tuple[str, bool]:
        """From what a mask is made by `Not` and the `moving` operators, and whether it is true where that is."""
        makers, is_true = self.makers | {node.outputs[0]: node for node in self._new}, True
        while (node := makers.get(name)) is not None and node.operator in ("Not", *moving):
            name, is_true = node.inputs[0], is_true ^ (node.operator == "Not")
        return name, is_true

    def _with_bias(self, scores: MaskedScores, bias: str) -> MaskedScores:
        return scores._replace(bias=self._emit("Add", [scores.bias, bias]) if scores.bias else bias)

    def _bias(self, name: str, heads: int, is_flat: bool) -> str:
        """What is added to the scores, as the operator wants it: `[rows or 1, heads or 1, width, width]`.

        `is_flat` says that heads and rows are one axis of it.
        """
        before = name
        while (node := self.makers.get(before)) is not None and node.operator in ("Expand", "Reshape"):
            before = node.inputs[0]
            if self.graph.constants.get(node.inputs[1]) == (1, heads, 1, 1):  # the operator does that by itself
                name, is_flat = before, False
        if is_flat:
            name = self._emit("Unsqueeze", [name, self._integers(0)])
            name = self._emit("Reshape", [name, self._integers(-1, heads, 0, 0)])
        shape = self._emit("Concat", [self._integers(1, 1), self._sizes(name, -1), self._integers(1)], axis=0)
        return self._emit("Expand", [name, shape])

    # Query, key and value

    def _path(self, name: str, valid: str) -> PartPath:
        """Goes back from query, key or value to what it is made from.

        Zeros that the mask `valid` writes are passed over: the new nodes write them again. What another mask writes
        stays in the graph.
        """
        path, valid_source = PartPath(name), self._mask(valid, *_AXES)
        while (node := self.makers.get(path.source)) is not None and node.inputs:
            source, constant = node.inputs[0], self.graph.constants.get(node.inputs[-1], ())
            if node.operator in ("Div", "Mul"):
                try:
                    path = path._replace(scale=path.scale * self._factor(node))
                except NotFound:
                    break
            elif node.operator == "Where" and constant == (0.0,) and self._mask(source, *_AXES) == valid_source:
                source = node.inputs[1]
            elif node.operator == "Reshape":
                path = path._replace(head=path.head or self._last_size(node.inputs[1]))
            elif node.operator not in _MOVING:
                break
            path = path._replace(source=source, is_part=path.is_part or node.operator in _SELECTING)
        require(path.source not in self.graph.tensors)
        return path

    def _last_size(self, shape: str) -> int:
        """The last of the sizes that a Reshape makes."""
        if shape not in self.graph.constants:
            shape = self.maker(shape, "Concat").inputs[-1]
        return int(self.graph.constants.get(shape, (0,))[-1])

    def _operator(
        self, paths: list[PartPath], scores: MaskedScores, heads: int, steps_first: bool, is_flat: bool
    ) -> tuple[str, list[str]]:
        """The operator for attention, and its inputs.

        Args:
            paths: Of query, key and value.
            scores: How the scores are made.
            heads: How many heads there are.
            steps_first: Whether steps come first in what the paths are made from, if they have heads.
            is_flat: Whether heads and rows are one axis of the scores.
        """
        operator, inputs = self._inputs(paths, steps_first, scores.valid)
        return operator, inputs + (["", "", self._bias(scores.bias, heads, is_flat)] if scores.bias else [])

    def _inputs(self, paths: list[PartPath], steps_first: bool, valid: str) -> tuple[str, list[str]]:
        """The operator for attention, and its inputs before the mask.

        Args:
            paths: Of query, key and value.
            steps_first: Whether steps come first in what they are made from, if they have heads.
            valid: A mask that is true at valid steps, if keys and values have to be zero at others; or empty.
        """
        if not valid:
            with suppress(NotFound):
                return _OF_ONE, self._of_one(paths, steps_first)
        inputs = [self._input(path, part, steps_first) for part, path in enumerate(paths)]
        if valid:
            # `[rows, keys, 1]`; of a mask of queries `[rows, 1, queries]`, with which no run succeeds
            shape = self._emit("Concat", [self._integers(-1), self._sizes(valid, -2, -1)], axis=0)
            valid = self._emit("Transpose", [self._emit("Reshape", [valid, shape])], perm=_KEYS_FIRST)
            inputs[1:] = [self._emit("Where", [valid, name, self._number(0.0)]) for name in inputs[1:]]
        return _APART, inputs

    def _of_one(self, paths: list[PartPath], steps_first: bool) -> list[str]:
        """What query, key and value are made of, the weights of all three side by side, and what is added to them.

        `NotFound` if they are not made of one value, or not in the same way. The arguments are those of `_inputs`.
        """
        products = [self._product(path.source, steps_first and bool(path.head)) for path in paths]
        is_part = [path.is_part for path in paths]
        if all(is_part) and len({path.source for path in paths}) == 1:
            return products[0]
        sources, weights, added = zip(*products, strict=True)
        require(not any(is_part) and len({*sources}) == 1 and all(added))
        require(len({self.shape(each) for each in weights}) == 1)
        return [sources[0], self._emit("Concat", [*weights], axis=1), self._emit("Concat", [*added], axis=0)]

    def _input(self, path: PartPath, part: int, steps_first: bool) -> str:
        """Query, key or value as `[rows, width, features]`: the source of its path, or the `part` of it."""
        name = self._rows_first(path.source) if steps_first and path.head else path.source
        if not path.is_part:
            return name
        apart = self._emit("Reshape", [name, self._integers(0, 0, 3, -1)])
        return self._emit("Gather", [apart, self._emit("Constant", [], value_int=part)], axis=2)

    def _rows_first(self, name: str) -> str:
        """A value `[width, rows, features]` with rows first: where a product made it, by one with rows first."""
        with suppress(NotFound):
            source, weights, added = self._product(name, steps_first=True)
            product = self._emit("MatMul", [source, weights])
            return self._emit("Add", [product, added]) if added else product
        return self._emit("Transpose", [name], perm=_TURNED)

    def _product(self, name: str, steps_first: bool) -> list[str]:
        """What a value is made of by a product with weights: what that reads, with rows first, the weights, the bias.

        The bias may be empty. `NotFound` if it is made otherwise; or, if `steps_first` says so, not of a value that had
        rows first before.
        """
        add, added = self.makers.get(name, Node()), ""
        if add.operator == "Add":
            name, added = sorted(add.inputs, key=lambda each: bool(self.shape(each)))
            require(self.shape(added))
        source, weights = self.maker(name, "MatMul").inputs
        require(self.shape(weights))
        if steps_first:
            turned = self.maker(source, "Transpose")
            require(turned.attributes.get("perm") == _TURNED)
            source = turned.inputs[0]
        return [source, weights, added]

    def _joined(self, name: str, order: tuple[int, ...]) -> str:
        """A value with an axis of heads, `[rows, width, features]`; `order` brings its axes behind rows and width."""
        return self._emit("Reshape", [self._emit("Transpose", [name], perm=order), self._integers(0, 0, -1)])

    def _heads(self, paths: list[PartPath]) -> int:
        """How many heads there are, by the weights that make query, key or value, and the features of a head.

        Raises:
            NotFound: No weights make them.
        """
        for path in paths:
            made = self.makers.get(path.source, Node())
            shapes = [shape for name in made.inputs[::-1] if (shape := self.shape(name))]
            if shapes and path.head:
                return shapes[0][-1] // (3 if path.is_part else 1) // path.head
            if shapes and made.operator in ("Add", "Einsum"):
                require(len(shapes[0]) > 1)
                return shapes[0][-2]
        raise NotFound

    # The result

    def _weighted(self, name: str, valid: str) -> Node:
        """The product of the softmax `name` with the values.

        Between them, zeros may be written only over weights that are NaN, or that the mask `valid` of the scores hides.
        In the operator, only these are zero.
        """
        for where in self.users.get(name, []):
            if where.operator == "Where" and name in where.inputs[1:]:
                condition, kept, fill = where.inputs
                if fill == name:
                    condition, kept, fill = self._emit("Not", [condition]), fill, kept
                mask, is_valid = self._mask(condition)
                maker = self.makers.get(mask, Node())
                is_no_nan = maker.operator == "IsNaN" and maker.inputs == [name] and not is_valid
                require(self.constant(fill) == 0 and (is_no_nan or (mask, is_valid) == self._mask(valid)))
                name = where.outputs[0]
        product = self.only_user(name, "Einsum", "MatMul")
        require(product.inputs[0] == name)
        return product

    def _projected(self, joined: Node, attended: str) -> Node:
        """Joins the heads, with steps first; or with rows first, where the product behind is turned to these."""
        count, name = len(self._new), attended
        with suppress(NotFound):
            node = self.only_user(joined.outputs[0], "Gemm", "MatMul")
            while node.operator != "Transpose":
                name = name if node.operator == "Reshape" else self._multiplied(node, name)
                node = self.only_user(node.outputs[0], "Add", "Reshape", "Transpose")
            require(node.attributes.get("perm") == _TURNED and count < len(self._new))
            return node
        del self._new[count:]
        return self._copied(joined, self._emit("Transpose", [attended], perm=_TURNED))

    def _multiplied(self, node: Node, name: str) -> str:
        """Adds a copy of an Add or a product with weights, which reads `[rows, width, features]`."""
        if node.operator != "Gemm":
            return self._emit(node.operator, [name, *node.inputs[1:]])
        weights, *added = node.inputs[1:]
        numbers = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | node.attributes
        require((numbers["alpha"], numbers["beta"], numbers["transA"]) == (1, 1, 0))
        weights = self._emit("Transpose", [weights], perm=(1, 0)) if numbers["transB"] else weights
        product = self._emit("MatMul", [name, weights])
        return self._emit("Add", [product, *added]) if any(added) else product
