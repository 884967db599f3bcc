"""Rewrites a graph with recurrent layers so that it computes valid steps only; in memory, the file stays as it is.

    values [rows, width, features] ─> Pack ─> dense, LSTM, norm of [packed, features] ─> StepSum ─> [rows, features]

*Packed steps* are the valid steps of all rows, one row behind the other. The kernels of `recurrent_kernels` read and
write them, and so do the operators of `kernels/_packed_steps.h`. The rewriting goes through the nodes in their order,
and knows what the values with an axis of steps are (`step_values`). Of packed steps

- a Transpose, Squeeze or Unsqueeze is no operator at all, and neither is a mask;
- an operator on single elements, or on the features of a step, is the same operator;
- a product with constant weights is a Dense, and a convolution that keeps the number of steps is one with a window;
- what goes over the steps (a sum, a maximum, a softmax, a weighted sum) is an operator of the kernels. The original
  must have masked its input: a sum reads 0 at padding, a maximum or softmax a very small number.

All other values are *rectangles*. If a node that is not known here reads packed steps, they are unpacked where the
original has 0 at padding. Other values may then not be packed: the rewriting begins again with that value as a
rectangle. So such a node reads at padding what it always did.

A graph in which nothing is found is used as it is. `lengthwise.runtime.opening` tests the new graph, and uses the graph
of the file if the new one does not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.manifest import GraphNames
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.known_steps import KnownSteps
from lengthwise.runtime.onnx.onnx_graph import FLOAT, AttributeValue, Graph, Node
from lengthwise.runtime.onnx.pattern import HIDDEN, ONNX, NotFound, require
from lengthwise.runtime.onnx.step_values import (
    Count,
    Mask,
    Packed,
    StepValue,
    broadcast,
    inserted,
    removed,
)

DOMAIN: Final = "lengthwise"
"""The domain of the operators, as `kernels/_recurrent.c` registers them."""
LAYERS: Final = ("LSTM", "GRU")
KNOWN: Final = frozenset({"hidden_size", "direction", "input_forget", "layout", "linear_before_reset"})
"""The attributes of a layer that is replaced: with others, such as activations, it may compute something else."""
_LENGTHS: Final = 4
"""The index of the lengths among the inputs of a layer."""
_ZERO_STAYS: Final = frozenset(
    {"Abs", "Cast", "Elu", "Erf", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Selu", "Softsign", "Sqrt"}
    | {"Add", "Sub", "Tanh"}
)
_ON_ELEMENTS: Final = (
    *("And", "Clip", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish"),
    *("IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Not", "Or", "Pow", "Reciprocal", "Round"),
    *("Sigmoid", "Softplus", "Where", *sorted(_ZERO_STAYS)),
)
_CONTINUES: Final = {"Add": "StepSum", "Max": "StepMax"}
"""The operators that join what earlier steps are with what these are, which a reduction of the kernels does itself."""
_SAME_ORDER: Final = frozenset({*LAYERS, "StepMax", "Pack", "Spread", "Unpack"})
"""Operators of the kernels whose results have the bits of the nodes that they replace."""


class FusedGraph(NamedTuple):
    """A graph with packed steps."""

    graph: bytes
    # Whether it has operators of the kernels whose sums are rounded in another order than those of the nodes that they
    # replace. A layer has the same bits.
    pools: bool


def fused(model: bytes, *names: GraphNames) -> FusedGraph | None:
    """Returns the graph with packed steps; None if no layer reads packed steps.

    Of several sequences each has lengths of its own. The graph is rewritten for one after the other: what is not of
    its steps stays as it is.

    Args:
        model: The ONNX file.
        names: Of each sequence, the names of the graph's inputs, and the orders of their axes.

    Raises:
        ValueError: The bytes are not a graph, or a layer has cells that the kernels do not compute.
    """
    graph = onnx_graph.read(model)
    for node in graph.walk():
        if node.operator in LAYERS and not {"activations", "clip"}.isdisjoint(node.attributes.keys() | node.unread):
            raise ValueError("a layer has activations of its own, or clips its sums")
    lengths: dict[str, str] = {}  # of the layers that read a sequence, by the name of its steps
    for node in graph.nodes:
        if node.operator in LAYERS and any(node.inputs[_LENGTHS : _LENGTHS + 1]):
            name = node.inputs[_LENGTHS]
            read = {name, *(each for before in graph.before(name) for each in before.inputs)}
            own_sequence = next((each for each in names if each.lengths in read), names[0])
            lengths.setdefault(own_sequence.sequences, name)
    tensors: dict[str, NDArray[np.float32]] = {}
    for of_sequence in names:
        if of_sequence.sequences in lengths:
            tensors |= _pack(graph, of_sequence, lengths[of_sequence.sequences])
    for name, numbers in tensors.items():
        graph.add_tensor(name, numbers)
    own = {node.operator for node in graph.nodes if node.domain == DOMAIN}
    return FusedGraph(graph.write({DOMAIN: 1}), not own <= _SAME_ORDER) if not own.isdisjoint(LAYERS) else None


def _pack(graph: Graph, names: GraphNames, lengths: str) -> dict[str, NDArray[np.float32]]:
    """Packs the steps of one sequence, whose layers get these lengths, in the graph's nodes.

    Returns the initializers that the new nodes read.
    """
    rectangles: set[str] = set()
    count = -1
    while count < len(rectangles):  # until no further value has to be a rectangle
        count = len(rectangles)
        fusion = _Fusion(graph, names, lengths, rectangles)
        fusion.rewrite()
    graph.nodes = fusion.nodes
    graph.remove_unused()
    return fusion.tensors


class _Fusion(KnownSteps):
    """Makes new nodes of those of a graph. A method for an operator raises `NotFound` (`require`) where it cannot.

    Args:
        graph: The graph.
        names: The names of its inputs.
        lengths: The lengths that its layers get.
        rectangles: The values that may not be packed; more are added.
    """

    def __init__(self, graph: Graph, names: GraphNames, lengths: str, rectangles: set[str]) -> None:
        super().__init__(graph, names, lengths)
        self._rectangles = rectangles
        self.nodes: list[Node] = []  # the new ones
        self.tensors: dict[str, NDArray[np.float32]] = {}  # new initializers
        self._also_unpacked: set[str] = {names.sequences}  # packed values that the new graph has as rectangles, too

    def rewrite(self) -> None:
        """Goes through all nodes, those that compute the lengths first, as Pack reads the lengths."""
        before, names = self.graph.before(self._lengths), self._names
        if names.mask is not None:
            is_valid = float(names.mask_marks == "valid")
            self._values[names.mask] = Mask("sr" if names.time_first else "rs", is_valid, 1 - is_valid)
        if names.lengths is not None:
            self._values[names.lengths] = Count("r")
        for node in before:
            self._add(node)
        # If the layers get other lengths, there may be values behind these, and masks are of other steps.
        has_all_steps = isinstance(self._values.get(self._lengths), Count)
        if not has_all_steps:
            self._values, self._may_be_empty = dict.fromkeys(self._same_lengths(before), Count("r")), True
        axes = "srf" if names.time_first else "rfs" if names.channels_first else "rsf"
        axes = axes if names.features_axis else axes.replace("f", "")
        packed = self._own("Pack", [names.sequences, self._lengths], _packed(names.sequences), axes=axes)
        self._values[names.sequences] = Packed(axes, packed, 0.0 if has_all_steps else None)
        before_ids = {id(node) for node in before}
        for node in self.graph.nodes:
            if id(node) not in before_ids:
                self._add(node)
        for name in self.graph.outputs:
            self._write_rectangle(name)

    def _add(self, node: Node) -> None:
        """Adds what a node becomes: itself, or what computes the same from packed steps."""
        count, output = len(self.nodes), node.outputs[0]
        try:
            require(node.domain in ONNX and not node.unread and node.operator in self._READERS)
            require(not self._rectangles.intersection(node.outputs))
            value = self._READERS[node.operator](self, node)
            if value is not None:
                self._values[output] = value
            if value is None or isinstance(value, Packed):
                return
        except (NotFound, KeyError):  # a KeyError is of a value that is not known
            del self.nodes[count:]
        # The node stays. So does one that computes a mask: it costs little, and another node may read the mask.
        inner = {name for graph in node.graphs for inner_node in graph.walk() for name in inner_node.inputs}
        for name in (*node.inputs, *inner):
            self._write_rectangle(name)
        self.nodes.append(node)
        if not self._of_rows.keys().isdisjoint(node.inputs):  # what a node makes of sums has axes that are not known
            self._of_rows.update(dict.fromkeys(node.outputs, ""))

    def _write_rectangle(self, name: str) -> None:
        """Makes a packed value a rectangle again, because a node reads it as one.

        `Unpack` puts zeros at padding and writes no axis of directions (d). A value that has another padding, or this
        axis, is noted instead as one that must not be packed, and the rewrite begins again (`_pack`).
        """
        value = self._values.get(name)
        if not isinstance(value, Packed) or name in self._also_unpacked:
            return
        if value.padding != 0 or "d" in value.axes:
            self._rectangles.add(name)
            return
        self._also_unpacked.add(name)
        inputs = [value.name, self._lengths, self._names.sequences]
        self._own("Unpack", inputs, name, axes=value.axes, axis=self._names.open_axes[1])

    # Operators of the kernels

    def _own(
        self, operator: str, inputs: list[str], output: str, domain: str = DOMAIN, /, **attributes: AttributeValue
    ) -> str:
        """Adds a node, of the kernels or of another domain; returns the name of its output."""
        self.nodes.append(Node(operator, inputs, [output], attributes, domain=domain))
        return output

    def _packed_once(self, operator: str, name: str, inputs: list[str], **attributes: AttributeValue) -> str:
        """Packs a rectangle, once for all nodes that read it so; returns the name of the packed steps."""
        packed = f"{_packed(name)}/{self._lengths}"
        if not any(packed in node.outputs for node in self.nodes):
            self._own(operator, inputs, packed, **attributes)
        return packed

    def _pooled(self, node: Node, operator: str, inputs: list[str], axes: str) -> None:
        """Adds a node that sums over the steps; its output is the rectangle that `node` makes, with these axes."""
        self._of_rows[self._own(operator, inputs, node.outputs[0], axes=axes)] = axes

    # Recurrent layers

    def _layer(self, node: Node) -> Packed:
        """A recurrent layer reads packed steps, and writes them if anything reads its output of every step."""
        x, lengths = node.inputs[0], node.inputs[_LENGTHS : _LENGTHS + 1]
        require(node.attributes.keys() <= KNOWN and not node.attributes.get("layout"))
        require(lengths and self._values.get(lengths[0]) == Count("r"))
        if isinstance(value := self._values.get(x), Packed):
            require(value.axes == "srf")
            packed = value.name
        else:
            packed = self._packed_once("Pack", x, [x, self._lengths], axes="srf")
        y, *states = node.outputs
        inputs = [packed, *node.inputs[1:_LENGTHS], self._lengths, *node.inputs[_LENGTHS + 1 :]]
        outputs = [y and _packed(y), *states]
        self.nodes.append(Node(node.operator, inputs, outputs, {**node.attributes, "packed": 1}, domain=DOMAIN))
        self._of_rows.update(dict.fromkeys(states, ""))
        return Packed("sdrf", outputs[0], 0.0)

    # Axes

    def _transpose(self, node: Node) -> StepValue:
        value = self._values[node.inputs[0]]
        order = self._integers(node, "perm", *range(len(value.axes))[::-1])
        return value._replace(axes="".join(value.axes[axis] for axis in order))

    def _squeeze(self, node: Node) -> StepValue:
        change = removed if node.operator == "Squeeze" else inserted
        return change(self._values[node.inputs[0]], self._only_axis(node))

    def _reshape(self, node: Node) -> StepValue:
        """A Reshape that keeps rows and steps, and joins the directions of a layer."""
        value, sizes = self._steps(node.inputs[0]), self.graph.constants.get(node.inputs[1], ())
        require(len(sizes) == 3 and sizes[:2] == (0, 0) and not node.attributes.get("allowzero"))
        require({*value.axes[:2]} == {*"rs"} and value.axes[2:] in ("", "f", "df"))
        return value._replace(axes=value.axes[:2] + "f")

    # Single elements, and masks

    def _elements(self, node: Node) -> StepValue | None:
        """An operator on single elements: of packed steps, of masks, or of both."""
        values = [self._values.get(name) for name in node.inputs]
        if any(isinstance(value, Count) for value in values):
            return self._of_counts(node)
        if any(isinstance(value, Mask) for value in values):
            is_mixed = any(isinstance(value, Packed) for value in values)
            return self._masked(node, values) if is_mixed else self._mask(node)
        steps = [value for value in values if isinstance(value, Packed)]
        axes = {value.axes for value in steps}
        if node.operator in _CONTINUES and not axes:
            self._continue(node)
            return None
        require(len(axes) == 1 and node.outputs[0])
        if node.operator == "Add":
            with suppress(NotFound, KeyError):
                return self._biased(node)
        inputs = [self._operand(name, steps[0]) for name in node.inputs]
        output = self._own(node.operator, inputs, _packed(node.outputs[0]), "", **node.attributes)
        zeros = sum(value.padding == 0 for value in steps)
        needed = len(node.inputs) if node.operator in _ZERO_STAYS else 1 if node.operator == "Mul" else math.inf
        return Packed(axes.pop(), output, 0.0 if zeros >= needed else None)

    def _biased(self, add: Node) -> Packed:
        """Lets the Dense before an Add add the bias; `NotFound` if it may not."""
        value, dense = self._steps(add.inputs[0]), self.nodes[-1]
        require(dense.operator == "Dense" and dense.outputs == [value.name] and len(dense.inputs) == 3)
        require(self.only_user(add.inputs[0], "Add") is add and value.axes[-1] == "f")
        require(len(self.graph.tensors[add.inputs[1]].shape) == 1)
        dense.inputs.append(add.inputs[1])
        return value

    def _continue(self, node: Node) -> None:
        """Lets a reduction go on from that of earlier steps, which comes from outside; `NotFound` if it may not."""
        operator = _CONTINUES[node.operator]
        made = [each for each in self.nodes if each.operator == operator and each.outputs[0] in node.inputs]
        earlier = [name for name in node.inputs if not made or name != made[0].outputs[0]]
        require(made and len(earlier) == 1 and self.comes_from_outside(earlier[0]))
        require(self.only_user(made[0].outputs[0], node.operator) is node)
        self.nodes.remove(made[0])
        self._pooled(node, operator, made[0].inputs + earlier, str(made[0].attributes["axes"]))

    def _operand(self, name: str, beside: Packed) -> str:
        """Returns the name of an input of an operator on packed steps: of packed steps, or a constant for each feature.

        Args:
            name: The input's name in the original graph.
            beside: Packed steps that are another input.
        """
        if not name or name in self._values:
            return name and self._steps(name).name
        tensor, constants = self.graph.tensors.get(name), self.graph.constants.get(name, ())
        if tensor is None:
            return name if len(constants) == 1 else self._spread(name, beside)
        axes = beside.axes[len(beside.axes) - len(tensor.shape) :]
        require(len(tensor.shape) <= len(beside.axes))
        require(all(size == 1 or letter == "f" for size, letter in zip(tensor.shape, axes, strict=True)))
        if len(tensor.shape) < 2 and axes in ("", "f"):
            return name
        numbers = self.numbers(name, *tensor.shape)
        require(tensor.kind == FLOAT)
        self.tensors[f"{name}/features"] = numbers.ravel()
        return f"{name}/features"

    def _spread(self, name: str, beside: Packed) -> str:
        """Returns packed steps with the numbers of each step's row."""
        require(broadcast(self._axes_of_rows(name), beside.axes) == beside.axes)
        return self._packed_once("Spread", name, [beside.name, self._lengths, name])

    # Features of a step

    def _on_features(self, node: Node) -> Packed:
        """An operator on the features of a step: a norm, or a softmax."""
        value, is_channels = self._steps(node.inputs[0]), node.operator == "BatchNormalization"
        axis = node.attributes.get("axis", 1 if is_channels else -1)
        require(value.axes[int(axis)] == "f" and (is_channels or value.axes[-1] == "f"))  # type: ignore[arg-type]
        attributes = node.attributes if is_channels else {**node.attributes, "axis": -1}
        inputs = [value.name, *node.inputs[1:]]
        return Packed(value.axes, self._own(node.operator, inputs, _packed(node.outputs[0]), "", **attributes))

    def _concat(self, node: Node) -> Packed:
        """Features side by side."""
        values = [self._steps(name) for name in node.inputs]
        axes, axis = values[0].axes, node.attributes.get("axis")
        require({value.axes for value in values} == {axes} and axes[int(axis)] == "f")  # type: ignore[arg-type]
        output = self._own("Concat", [value.name for value in values], _packed(node.outputs[0]), "", axis=1)
        return Packed(axes, output, 0.0 if all(value.padding == 0 for value in values) else None)

    def _softmax(self, node: Node) -> Packed:
        """A softmax over the steps, of what is very small at padding; or over the features of a step."""
        value = self._steps(node.inputs[0])
        if value.axes[int(node.attributes.get("axis", -1))] != "s":  # type: ignore[arg-type]
            return self._on_features(node)
        require((value.padding or 0) <= HIDDEN)
        return Packed(value.axes, self._own("StepSoftmax", [value.name, self._lengths], _packed(node.outputs[0])), 0.0)

    # Products, and sums over the steps

    def _product(self, node: Node) -> Packed | None:
        """A product of steps with constant weights, with the numbers of each row, or of two tensors of steps.

        Axes are written as letters: r rows, s steps, f features.
        """
        first, second = node.inputs
        # 1. Two tensors of steps: their outer products, summed over the steps
        one, other = self._values.get(first), self._values.get(second)
        if isinstance(one, Packed) and isinstance(other, Packed):
            require((one.axes, other.axes) == ("rfs", "rsf") and 0 in (one.padding, other.padding))
            self._pooled(node, "OuterSum", [one.name, self._lengths, other.name], "rff")
            return None
        # 2. Weights
        if isinstance(one, Packed) and self._are_weights(second):
            require(one.axes.endswith("f"))
            return Packed(one.axes, self._own("Dense", [one.name, self._lengths, second], _packed(node.outputs[0])))
        # 3. Numbers of each row, behind the steps or before them
        name, rows, axes = (first, second, ("rsf", "rf1")) if one is not None else (second, first, ("rfs", "r1f"))
        steps = self._steps(name)
        require((steps.axes, self._axes_of_rows(rows)) == axes)
        return Packed(steps.axes, self._own("Dots", [steps.name, self._lengths, rows], _packed(node.outputs[0])))

    def _convolution(self, node: Node) -> Packed:
        """A convolution that keeps the number of steps is a product with a window of them, `[taps * channels]`."""
        value, attributes = self._steps(node.inputs[0]), node.attributes
        weights = self.numbers(node.inputs[1], -1, -1, -1)  # [outputs, channels, taps]
        taps, dilation = weights.shape[2], self._integers(node, "dilations", 1)[0]
        left, right = self._integers(node, "pads", 0, 0)
        require(value.axes == "rfs" and (value.padding == 0 or taps == 1) and left + right == (taps - 1) * dilation)
        require(
            attributes.get("group", 1) == 1 and self._integers(node, "strides", 1) == (1,) and min(left, right) >= 0
        )
        require(attributes.get("auto_pad", "NOTSET") == "NOTSET")
        matrix = f"{node.inputs[1]}/windows"
        self.tensors[matrix] = weights.transpose(2, 1, 0).reshape(-1, len(weights))
        inputs = [value.name, self._lengths, matrix, *node.inputs[2:]]
        output = self._own("Dense", inputs, _packed(node.outputs[0]), taps=taps, dilation=dilation, left=left)
        return Packed(value.axes, output)

    def _reduced(self, node: Node) -> Count | None:
        """A sum or maximum over the steps, of what is 0 or very small at padding. The sum of a mask are the lengths."""
        value = self._values[node.inputs[0]]
        place = int(self._only_axis(node)) % len(value.axes)
        axes = value.axes[:place] + ("1" if node.attributes.get("keepdims", 1) else "") + value.axes[place + 1 :]
        require(value.axes[place] == "s" and "d" not in axes)
        if isinstance(value, Mask):
            require(node.operator == "ReduceSum" and (value.valid, value.padding) == (1, 0))
            return Count(axes)
        value = self._steps(node.inputs[0])
        require(value.padding == 0 if node.operator == "ReduceSum" else (value.padding or 0) <= HIDDEN)
        if node.operator == "ReduceMax" and self._may_be_empty:
            # A row without steps has no maximum: only one that goes on from an earlier one is right there.
            require(any(map(self.comes_from_outside, self.only_user(node.outputs[0], "Max").inputs)))
        operator = {"ReduceSum": "StepSum", "ReduceMax": "StepMax"}[node.operator]
        self._pooled(node, operator, [value.name, self._lengths], axes)
        return None

    def _log_sum(self, node: Node) -> None:
        """The logarithm of a sum of exponentials over the steps, of what is very small at padding; its axis stays.

        Of a row without steps it is minus infinity.
        """
        value, output = self._steps(node.inputs[0]), node.outputs[0]
        place = int(self._only_axis(node)) % len(value.axes)
        require(value.axes[place] == "s" and "d" not in value.axes and node.attributes.get("keepdims", 1))
        require((value.padding or 0) <= HIDDEN)
        axes, largest = value.axes.replace("s", "1"), f"{output}/largest"
        self._own("StepMax", [value.name, self._lengths], largest, axes=axes)
        spread = self._own("Spread", [value.name, self._lengths, largest], _packed(largest))
        smaller = self._own("Sub", [value.name, spread], f"{output}/smaller", "")
        powers = self._own("Exp", [smaller], f"{output}/powers", "")
        total = self._own("StepSum", [powers, self._lengths], f"{output}/total", axes=axes)
        logarithm = self._own("Log", [total], f"{output}/logarithm", "")
        self._of_rows[self._own("Add", [largest, logarithm], output, "")] = axes

    _READERS: Final[dict[str, Callable[..., StepValue | None]]] = {
        **dict.fromkeys(_ON_ELEMENTS, _elements),
        **dict.fromkeys(LAYERS, _layer),
        **dict.fromkeys(("BatchNormalization", "LayerNormalization"), _on_features),
        **{
            "Concat": _concat,
            "Conv": _convolution,
            "MatMul": _product,
            "Range": KnownSteps._range,
            "Reshape": _reshape,
        },
        **{"ReduceLogSumExp": _log_sum, "ReduceMax": _reduced, "ReduceSum": _reduced, "Softmax": _softmax},
        **{"Squeeze": _squeeze, "Transpose": _transpose, "Unsqueeze": _squeeze},
    }
    """The methods by operator. None stands for a rectangle that other nodes than the original one make."""


def _packed(name: str) -> str:
    """The name of packed steps in the new graph."""
    return f"{name}/packed"
