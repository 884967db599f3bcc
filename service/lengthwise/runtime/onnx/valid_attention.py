"""Rewrites a graph with attention so that it computes valid steps only; in memory, the file stays as it is.

    values [rows, width, features] ─> Pack ─> product ─> AttentionOfValidSteps ─> product, norm, ... ─> Unpack

`onnx.attention` finds the attention, and `kernels/_attention.c` computes it, of packed steps (`onnx.fusion`). So does
onnxruntime what is before and behind it, as far as its operators compute each step by itself: products with weights,
norms, and operators on single elements. A value with the axes `[rows, width, features]` for sure is *stepwise*: query,
key, value and answer of an attention, and what such a value is made of, or what is made of such values alone, step by
step. Where another node reads a stepwise value, it is 0 at padding.

How long rows are is what the mask of the attention says. It may depend on the graph's lengths and the width only, and
`runtime.opening` compares the answers at several lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import numpy as np

from lengthwise.runtime.kernels import _kernels
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.attention import DOMAIN, OF_VALID_STEPS, Attention, MaskedScores, PartPath
from lengthwise.runtime.onnx.fusion import DOMAIN as PACKED
from lengthwise.runtime.onnx.onnx_graph import AttributeValue, Graph, Node
from lengthwise.runtime.onnx.pattern import ONNX, NotFound, Pattern, are_equal_by_nodes, require

INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS.get("attention", ())
"""The instruction sets that this processor and the kernels support, best first; empty if there are none."""
_SUM: Final = "StepSum"
_LENGTHS: Final = "lengthwise.lengths"
_OF_FIRST: Final = "lengthwise.lengths_of_first"  # 1 for each row that has steps
_PLACE: Final = "lengthwise.first_place"
_ON_ELEMENTS: Final = (
    *("Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
    *("Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
    *("Sqrt", "Sub", "Tanh"),
)
_OF_MASKS: Final = (
    *("Add", "Concat", "ConstantOfShape", "CumSum", "Equal", "Expand", "Gather", "Identity", "Mul", "Neg", "Slice"),
    "Transpose",
)
"""Operators on the way to a mask, beside those of `Pattern.mask_constants`."""


def fused(model: bytes, *lengths: str) -> bytes:
    """Returns the graph with the operators in it; `NotFound` (`require`) if it has no attention of valid steps.

    Args:
        model: The ONNX file.
        *lengths: The names of its inputs with the lengths, or the mask.
    """
    require(b"Softmax" in model)
    attention = _OfValidSteps(onnx_graph.read(model))
    attention.replace_all()
    masks = [node.inputs[-1] for node in attention.graph.nodes if node.operator == OF_VALID_STEPS]
    packing = _Packing(attention.graph, masks[0], lengths)
    require(all(map(packing.is_mask, masks)) and are_equal_by_nodes(attention.graph, masks))
    return packing.packed().write({DOMAIN: 1, PACKED: 1})


class _OfValidSteps(Attention):
    """A graph whose attention is replaced by the operator, which still reads `[rows, width, features]` and a mask."""

    def _operator(
        self, paths: list[PartPath], scores: MaskedScores, heads: int, steps_first: bool, is_flat: bool
    ) -> tuple[str, list[str]]:
        mask = self._of_keys(scores.bias)
        try:
            source, weights, added = self._of_one(paths, steps_first)
        except NotFound:
            return OF_VALID_STEPS, [*(self._input(path, part, steps_first) for part, path in enumerate(paths)), mask]
        product = self._emit("MatMul", [source, weights])
        return OF_VALID_STEPS, [self._emit("Add", [product, added]) if added else product, "", "", mask]

    def _of_keys(self, mask: str) -> str:
        """A mask of the scores before it is repeated for each query and head."""
        before = mask
        while (node := self.makers.get(before, Node())).operator in ("Expand", "Reshape"):
            before = node.inputs[0]
            mask = before if node.operator == "Expand" else mask
        return mask


class _Packing(Pattern):
    """Makes new nodes of a graph whose attention is that of `_OfValidSteps`.

    Args:
        graph: The graph.
        mask: What is added to the scores of its attention.
        lengths: The names of its inputs with the lengths, or the mask.
    """

    def __init__(self, graph: Graph, mask: str, lengths: Sequence[str]) -> None:
        super().__init__(graph)
        self._mask, self._of_lengths = mask, lengths
        self._parts: dict[str, tuple[int, ...]] = {}  # shapes of parts of weights
        self._fixed = {*graph.tensors}  # values that depend on no input
        for node in graph.nodes:
            if not node.graphs and self._fixed.issuperset(filter(None, node.inputs)):
                self._fixed.update(node.outputs)
        self._stepwise = self._find()
        self._lengths: dict[str, str] = {}  # of packed steps that are no row's all steps, by the stepwise value
        self._firsts: dict[str, str] = {}  # the first step of each row alone, by the stepwise value
        self._packed: dict[str, str] = {}  # packed steps by the stepwise value
        self._rectangles: dict[str, list[str]] = {
            _LENGTHS: [],
            _OF_FIRST: [],
        }  # stepwise values that exist as such, too
        self._nodes: list[Node] = []  # the new ones

    def is_mask(self, name: str) -> bool:
        """Whether a value is a mask that may depend on the lengths and the width only."""
        with suppress(NotFound):
            self.require_mask_of_lengths(name, *self._of_lengths, further=_OF_MASKS)
            return bool(name)
        return False

    def _find(self) -> set[str]:
        """The stepwise values."""
        attentions = [node for node in self.graph.nodes if node.operator == OF_VALID_STEPS]
        found = {name for node in attentions for name in (*self._stepwise_inputs(node), *node.outputs)}
        count = 0
        while count < len(found):
            count = len(found)
            for node in self.graph.nodes[::-1]:  # what they are made of
                if not found.isdisjoint(node.outputs):
                    found |= self._source(node)
            for node in self.graph.nodes:  # what is made of them
                if (read := self._stepwise_inputs(node)) and read <= found:
                    found.update(node.outputs)
        return found

    def _source(self, node: Node) -> set[str]:
        """The input of a node that has the axes of its output: the only one, or one of which the other is made.

        The difference from a mean over the features is such, or a product with the error function.
        """
        read, made_of = self._stepwise_inputs(node), set[str]()
        for name in read:
            while len(before := self._stepwise_inputs(self.makers.get(name, Node()))) == 1:
                (name,) = before
                made_of.add(name)
        return read & made_of or (read if len(read) == 1 else set())

    def _stepwise_inputs(self, node: Node) -> set[str]:
        """The inputs that have to be stepwise, of a node that computes each step by itself; empty for another node.

        Constants need not be, nor masks that zero the padding, nor the mask of attention over valid steps.
        """
        read = {name for name in node.inputs if name} - self._fixed
        if node.operator == OF_VALID_STEPS:
            return read - {node.inputs[-1]}
        fixed = [name for name in node.inputs if name in self._fixed]
        match node.operator if node.domain in ONNX and not node.unread and len(node.outputs) == 1 else "":
            case "MatMul":
                good = node.inputs[1:] == fixed and len(self.shape(fixed[0])) == 2
            case "LayerNormalization":
                good = node.inputs[1:] == fixed and node.attributes.get("axis", -1) in (-1, 2)
            case "ReduceMean":
                good = self.axis(node) == -1 and node.attributes.get("keepdims", 1) == 1
            case "Where" | "Mul" if kept := self._masked(node):
                return {kept}
            case operator:
                good = operator in _ON_ELEMENTS and all(map(self._is_number_or_of_features, fixed))
        return read if good else set()

    def _masked(self, node: Node) -> str:
        """What a mask lets be at valid steps, and makes 0 at others; empty if a node is not that."""
        if node.operator == "Mul":
            masks = [name for name in node.inputs if name not in self._fixed and self.is_mask(name)]
            kept = [name for name in node.inputs if name not in masks]
        else:
            masks = [name for name in node.inputs[:1] if self.is_mask(name)]
            kept = [name for name in node.inputs[1:] if self.graph.constants.get(name) != (0.0,)]
        return kept[0] if len(masks) == len(kept) == 1 and kept[0] not in self._fixed else ""

    def _sum(self, node: Node) -> Node:
        """A sum of a stepwise value over the steps, as an operator of packed steps; another node as it is.

        It is a ReduceSum; or, as exports write it for equal bits at every width, the first row of a product with ones.
        """
        with suppress(NotFound):
            axes = "rf"
            if node.operator == "Gather":
                product = self.maker(node.inputs[0], "MatMul")
                self.maker(product.inputs[0], "ConstantOfShape")
                require(node.attributes.get("axis") == 1 and self.constant(node.inputs[1]) == 0)
                name = product.inputs[1]
            else:
                require(node.operator == "ReduceSum" and self.axis(node) == 1)
                name, axes = node.inputs[0], "r1f" if node.attributes.get("keepdims", 1) else "rf"
            require(name in self._stepwise)
            return Node(_SUM, [name], node.outputs, {"axes": axes}, domain=PACKED)
        return node

    def _is_number_or_of_features(self, name: str) -> bool:
        """Whether a constant is one number, or one for each feature."""
        # The shape is () as well for what is no constant here: `constants` has the number of one that is.
        return len(self.shape(name)) == 1 or (not self.shape(name) and len(self.graph.constants.get(name, ())) == 1)

    def packed(self) -> Graph:
        """Returns the graph with packed steps."""
        self.graph.nodes = [self._sum(node) for node in self.graph.nodes]
        self._cut()
        self.graph.remove_unused()
        self._nodes = self.graph.before(self._mask)
        first = {id(node) for node in self._nodes}
        self._nodes.append(Node("LengthsOfMask", [self._mask], [_LENGTHS, _OF_FIRST], domain=DOMAIN))
        for node in self.graph.nodes:
            if id(node) in first:
                continue
            if node.operator == _SUM:
                self._nodes.append(replace(node, inputs=[self._pack(node.inputs[0]), _LENGTHS]))
                continue
            if (read := self._stepwise_inputs(node)) and read <= self._stepwise:
                self._add(node, read)
                continue
            inner = (each for graph in node.graphs for each in graph.walk())
            self._unpack(*node.inputs, *(name for each in inner for name in each.inputs))
            self._nodes.append(node)
        self._unpack(*self.graph.outputs)
        self.graph.nodes = self._nodes
        self.graph.remove_unused()
        return self.graph

    def _emit(
        self, operator: str, inputs: list[str], output: str, domain: str = "", /, **attributes: AttributeValue
    ) -> str:
        """Adds a new node; returns the name of its output."""
        self._nodes.append(Node(operator, inputs, [output], attributes, domain=domain))
        return output

    def _add(self, node: Node, read: set[str]) -> None:
        """Adds a node that computes each step by itself, of packed steps in the place of what it `read`s."""
        output = node.outputs[0]
        if node.operator in ("Mul", "Where") and (kept := self._masked(node)):
            self._packed[output] = self._pack(kept)
            return
        inputs = [self._pack(name) if name in read else name for name in node.inputs]
        if node.operator == OF_VALID_STEPS:
            inputs[-1:] = [_LENGTHS, *([_OF_FIRST] if output in self._lengths else [])]
        attributes = node.attributes | ({"axis": -1} if node.operator == "LayerNormalization" else {})
        operator, product = node.operator, self._nodes[-1]
        if operator == "Add" and product.operator == "MatMul" and self._is_bias(node, read, product):
            operator, inputs = "Gemm", [*product.inputs, *({*node.inputs} - read)]
            self._nodes.pop()
        self._packed[output] = self._emit(operator, inputs, f"{output}/packed", node.domain, **attributes)

    def _is_bias(self, add: Node, read: set[str], product: Node) -> bool:
        """Whether an Add adds a bias to a product of packed steps, and nothing else reads that."""
        (name, *others), biases = [*read], {*add.inputs} - read
        return (
            not others
            and product.outputs == [self._packed[name]]
            and self.users[name] == [add]
            and name not in self.graph.used_elsewhere
            and [len(self.shape(bias)) for bias in biases] == [1]
        )

    def _pack(self, name: str) -> str:
        """Returns the packed steps of a stepwise value."""
        if name not in self._packed:
            lengths = self._lengths.get(name, _LENGTHS)
            self._rectangles[lengths].append(name)
            self._packed[name] = self._emit("Pack", [name, lengths], f"{name}/packed", PACKED, axes="rsf")
        return self._packed[name]

    def _unpack(self, *names: str) -> None:
        """Lets those of the values that are packed steps be rectangles, as a node reads them as such."""
        for name in names:
            lengths = self._lengths.get(name, _LENGTHS)
            if name in self._packed and name not in self._rectangles[lengths]:
                inputs = [self._packed[name], lengths, self._rectangles[lengths][0]]
                self._emit("Unpack", inputs, name, PACKED, axes="rsf", axis=1)
                self._rectangles[lengths].append(name)

    # The first step of each row

    def shape(self, name: str) -> tuple[int, ...]:
        return self._parts.get(name) or super().shape(name)

    def _cut(self) -> None:
        """Lets nodes compute the first step of each row alone, where no other step is read of what they make."""
        in_full, nodes = {*self.graph.used_elsewhere}, list[Node]()  # the last node comes first
        self.graph.add_tensor(_PLACE, np.zeros(1, np.int32))
        for node in self.graph.nodes[::-1]:
            output = next(iter(node.outputs), "")
            if self._takes_first(node):
                nodes.append(
                    Node("Gather", [self._first(node.inputs[0]), node.inputs[1]], node.outputs, node.attributes)
                )
            elif output in self._firsts and output not in in_full and (made := self._of_first(node, in_full)):
                nodes += made[::-1]
            else:
                if output in self._firsts:
                    nodes.append(Node("Gather", [output, _PLACE], [self._firsts[output]], {"axis": 1}))
                in_full.update(node.inputs)
                nodes.append(node)
        inputs = [name for name in self._firsts if name not in self.makers]
        nodes += [Node("Gather", [name, _PLACE], [self._firsts[name]], {"axis": 1}) for name in inputs]
        self.graph.nodes = nodes[::-1]
        self._index()

    def _takes_first(self, node: Node) -> bool:
        """Whether a node takes the first step of each row of a stepwise value."""
        is_gather = node.operator == "Gather" and node.inputs[0] in self._stepwise and node.attributes.get("axis") == 1
        return is_gather and self.graph.constants.get(node.inputs[1]) == (0,)

    def _first(self, name: str) -> str:
        """The first step of each row of a stepwise value, which `_cut` makes."""
        return self._firsts.setdefault(name, self._with_one_step(f"{name}/first"))

    def _with_one_step(self, name: str) -> str:
        """Notes that a stepwise value has the first step of each row alone; returns its name."""
        self._stepwise.add(name)
        self._lengths[name] = _OF_FIRST
        return name

    def _of_first(self, node: Node, in_full: set[str]) -> list[Node]:
        """The nodes that make the first step of what a node makes; what they read in full is added to `in_full`.

        They are none if it does not compute each step by itself.
        """
        output, read = self._firsts[node.outputs[0]], self._stepwise_inputs(node)
        if not read or not read <= self._stepwise:
            return []
        if node.operator != OF_VALID_STEPS:
            inputs = [self._first(name) if name in read else name for name in node.inputs]
            return [Node(node.operator, inputs, [output], node.attributes)]
        query, key, value, mask = node.inputs
        before = list[Node]()
        if key:
            in_full.update((key, value))
            query = self._first(query)
        else:
            try:
                query, key, value = self._three(query, before, in_full)
            except NotFound:
                return []
        return [*before, Node(OF_VALID_STEPS, [query, key, value, mask], [output], node.attributes, domain=DOMAIN)]

    def _three(self, name: str, nodes: list[Node], in_full: set[str]) -> list[str]:
        """Adds three products in the place of one that makes query, key and value: the first is of first steps."""
        product, bias = self.makers.get(name, Node()), ""
        require(len(self.users[name]) == 1)
        if product.operator == "Add":
            before, bias = sorted(product.inputs, key=self._fixed.__contains__)
            require(len(self.users[before]) == 1 and bias in self._fixed)
            product = self.maker(before, "MatMul")
        require(product.operator == "MatMul" and product.inputs[1] in self._fixed)
        source, weights = product.inputs
        in_full.add(source)
        size, width = self.shape(weights)
        made = []
        for part in range(3):
            here = f"{name}/{part}"
            columns = np.arange(part * width // 3, (part + 1) * width // 3, dtype=np.int32)
            self.graph.add_tensor(f"{here}/columns", columns)
            self._parts |= {f"{here}/weights": (size, len(columns)), f"{here}/bias": (len(columns),)}
            note = self._stepwise.add if part else self._with_one_step
            nodes.append(Node("Gather", [weights, f"{here}/columns"], [f"{here}/weights"], {"axis": 1}))
            read = source if part else self._first(source)
            nodes.append(Node("MatMul", [read, f"{here}/weights"], [f"{here}/product" if bias else here]))
            if bias:
                nodes.append(Node("Gather", [bias, f"{here}/columns"], [f"{here}/bias"], {"axis": 0}))
                nodes.append(Node("Add", [f"{here}/product", f"{here}/bias"], [here]))
            note(f"{here}/product")
            note(here)
            made.append(here)
        self._fixed |= self._parts.keys()
        return made
