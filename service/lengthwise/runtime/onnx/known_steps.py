"""What is known of the values of a graph while it is rewritten: which of them are steps, masks or numbers of rows.

`fusion` reads it, node by node, and adds to it what the new nodes make. A method raises `NotFound` (`require`) where a
node is not what it looks for.
"""

from __future__ import annotations

from typing import Final

from lengthwise.runtime.manifest import GraphNames
from lengthwise.runtime.onnx.onnx_graph import BOOL, INT32, INT64, Graph, Node
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, require
from lengthwise.runtime.onnx.step_values import (
    COMPARISONS,
    MASK_ARITHMETIC,
    Count,
    Mask,
    Packed,
    StepValue,
    broadcast,
    inserted,
    masked,
)

_OF_SIZES: Final = ("Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
"""The operators that take one of the sizes that Shape gives."""


class KnownSteps(Pattern):
    """The values of a graph that have an axis of steps, or are computed from the lengths.

    Args:
        graph: The graph.
        names: The names of its inputs.
        lengths: The lengths that its layers get.
    """

    def __init__(self, graph: Graph, names: GraphNames, lengths: str) -> None:
        super().__init__(graph)
        self._names = names
        self._lengths = lengths
        self._values: dict[str, StepValue] = {}
        # Whether a row may have no steps: a chunk of a sequence that goes on from states; every other sequence has one
        self._may_be_empty = any(name.endswith("_next") for name in graph.outputs)
        # Rectangles that are computed from what was summed over the steps, with their axes if these are known
        self._of_rows: dict[str, str] = {}

    def _steps(self, name: str) -> Packed:
        """Returns the packed steps that a value is.

        Raises:
            NotFound: It is something else.
        """
        value = self._values.get(name)
        if not isinstance(value, Packed):
            raise NotFound
        return value

    def _axes_of_rows(self, name: str) -> str:
        """Returns the axes of a rectangle that was summed over the steps; they are `rf` but for an axis of size one.

        `NotFound` if they are not known.
        """
        if axes := self._of_rows.get(name, ""):
            return axes
        node = self.maker(name, "Unsqueeze")
        require(node.inputs[0] in self._of_rows)
        return inserted(Count("rf"), self._only_axis(node)).axes

    # Attributes and constants

    def _only_axis(self, node: Node) -> float:
        axis = self.axis(node)
        if axis is None:
            raise NotFound
        return axis

    def _integers(self, node: Node, name: str, *otherwise: int) -> tuple[int, ...]:
        """Returns the integers of an attribute, of which there must be as many as in `otherwise`.

        Raises:
            NotFound: There are more or fewer.
        """
        integers = node.attributes.get(name, otherwise)
        if not isinstance(integers, tuple) or len(integers) != len(otherwise):
            raise NotFound
        return tuple(map(int, integers))

    def _are_weights(self, name: str) -> bool:
        """Whether a value is a constant matrix, maybe of bytes that are dequantised."""
        maker = self.makers.get(name)
        if maker is not None and maker.operator == "DequantizeLinear":
            name = maker.inputs[0]
        return name in self.graph.tensors and len(self.graph.tensors[name].shape) == 2

    # Masks

    def _range(self, node: Node) -> Count:
        """The steps' indices 0, 1, 2, ... of all steps."""
        first, end, by = node.inputs
        require(self.constant(first) == 0 and self.constant(by) == 1 and self._is_width(end))
        return Count("s")

    def _is_width(self, name: str) -> bool:
        """Whether a number is that of all steps, or the largest length: a mask of fewer would have other steps."""
        node = self.maker(self.before(name, *_OF_SIZES), "ReduceMax", "Shape")
        of = node.inputs[0]
        if node.operator == "ReduceMax":
            return self._values.get(of) == Count("r")
        if (table := self.makers.get(of, Node())).operator == "Gather" and table.inputs[0] in self.graph.tensors:
            of = table.inputs[1]  # tokens
        return of in (self._names.sequences, self._names.mask) or "s" in self._values[of].axes

    def _same_lengths(self, before: list[Node]) -> set[str]:
        """The names of the lengths that the layers get: before and behind their casts, if no cast rounds them."""
        names, name = {self._lengths}, self._lengths
        while (node := self.makers.get(name)) is not None and node.operator == "Cast":
            name = node.inputs[0]
            names.add(name)
        are_integers = all(node.operator != "Cast" or node.attributes.get("to") in (INT32, INT64) for node in before)
        return names if are_integers else {self._lengths}

    def _of_counts(self, node: Node) -> StepValue:
        """What is computed of lengths or indices: the same numbers, or a comparison of the two.

        A Clip or Max keeps lengths if its least number is one that each sequence has.
        """
        if node.operator in ("Cast", "Identity"):
            return self._values[node.inputs[0]]
        if node.operator in ("Clip", "Max"):
            require(len(node.inputs) == 2 and not self._may_be_empty)
            name, least = sorted(node.inputs, key=lambda each: each not in self._values)  # Max has them in any order
            require(self._values[name] == Count(self._values[name].axes.replace("s", "")) and self.constant(least) <= 1)
            return self._values[name]
        return self._comparison(node)

    def _comparison(self, node: Node) -> Mask:
        """A comparison of the steps' indices with the lengths."""
        require(node.operator in COMPARISONS)
        first, second = (self._values.get(name, Count("")) for name in node.inputs)
        letter, valid = COMPARISONS[node.operator]
        require(letter in first.axes and {"r": "s", "s": "r"}[letter] in second.axes)
        return Mask(broadcast(first.axes, second.axes), valid, 1 - valid)

    def _mask(self, node: Node) -> Mask:
        """What is computed of masks and constants only."""
        require(node.operator in MASK_ARITHMETIC)
        masks = []
        for name in node.inputs:
            value = self._values.get(name)
            masks.append(value if isinstance(value, Mask) else Mask("", *[self.constant(name)] * 2))
        compute = MASK_ARITHMETIC[node.operator]
        numbers = [compute(*(mask.valid for mask in masks)), compute(*(mask.padding for mask in masks))]
        if node.operator == "Cast" and node.attributes.get("to") == BOOL:
            numbers = [float(number != 0) for number in numbers]
        return Mask(broadcast(*(mask.axes for mask in masks)), *numbers)

    def _masked(self, node: Node, values: list[StepValue | None]) -> Packed:
        """Packed steps that are masked: they stay as they are, with another number at padding."""
        steps = [value for value in values if isinstance(value, Packed)]
        masks = [value for value in values if isinstance(value, Mask)]
        if node.operator == "Where" and isinstance(condition := values[0], Mask):
            valid, padding = (2 if number == 0 else 1 for number in (condition.valid, condition.padding))
            value = self._steps(node.inputs[valid])
            name, other = node.inputs[padding], values[padding]
            if isinstance(other, Packed | Mask):
                axes, number = other.axes, other.padding
            elif name in self.graph.constants:
                axes, number = "", self.constant(name)
            else:  # Keras lets the last state of a row stay
                axes, number = self._axes_of_rows(name), None
            require(valid != padding and broadcast(axes, condition.axes, value.axes) == value.axes)
            return value._replace(padding=number)
        require(len(steps) == len(masks) == 1 and (node.operator != "Sub" or values[0] is steps[0]))
        return masked(node.operator, steps[0], masks[0])
