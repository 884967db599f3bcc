"""Masks that a graph computes from the values of its steps: a step is hidden where all its values are one number.

    Masking(0.0), Embedding(mask_zero=True)     Not(Equal(steps, 0.0)) -> any over the features -> mask

Who made such a model meant lengths: the number marks the padding. Where a mend puts lengths in the place of such a
mask, the mask is *opened*: true everywhere, and only the length says where a sequence ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.onnx_graphs.protos import constants_of, refill

SAME: Final = frozenset(
    {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "ReverseSequence", "Expand", "Flatten"}
)
"""Operators behind which a mask is the same mask."""


@dataclass(frozen=True, slots=True)
class HidingMask:
    """A mask that hides the steps whose values are all one number."""

    name: str  # The value of the graph that is the mask, before it is transposed or reshaped
    number: float


def hiding_masks(model: ModelProto, sequences: str) -> dict[str, HidingMask]:
    """The masks of a graph that hide steps, by the name of each value that is one."""
    steps = next(each for each in model.graph.input if each.name == sequences)
    tokens = len(steps.type.tensor_type.shape.dim) == 2 and steps.type.tensor_type.elem_type != TensorProto.FLOAT
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in constants_of(model.graph).items()}
    found = _Found(tokens, {sequences}, constants)
    for node in model.graph.node:
        if node.input and node.output:
            found.follow(node)
    return found.masks


@dataclass
class _Found:
    """What the values of a graph are, as far as it was followed."""

    tokens: bool  # Whether a step is a token: then whether it differs from a number is the mask
    raw: set[str]  # The values that are the steps
    constants: dict[str, np.ndarray]
    # By value that says whether the steps are a number: that number
    equal: dict[str, float] = field(default_factory=dict)
    differs: dict[str, float] = field(default_factory=dict)  # The same for whether they are not
    counted: dict[str, float] = field(default_factory=dict)  # The same for how many features of a step are not
    masks: dict[str, HidingMask] = field(default_factory=dict)

    def follow(self, node: NodeProto) -> None:
        first, out, kind = node.input[0], node.output[0], node.op_type
        if kind == "Equal" and (number := _compared(node, self.raw, self.constants)) is not None:
            self.equal[out] = number
        elif kind == "Not" and first in self.equal:
            self.differs[out] = self.equal[first]
            if self.tokens:
                self.masks[out] = HidingMask(out, self.equal[first])
        elif kind in ("ReduceSum", "ReduceMax") and first in self.differs and _over_features(node, self.constants):
            self.counted[out] = self.differs[first]
        elif first in self.counted and self._is_any(node):
            self.masks[out] = HidingMask(out, self.counted[first])
        elif kind in ("Identity", "Cast") and first in self.raw:
            self.raw.add(out)
        elif kind in ("Identity", "Cast") and first in self.differs:
            self.differs[out] = self.differs[first]
        if kind in SAME and first in self.masks:
            self.masks[out] = self.masks[first]

    def _is_any(self, node: NodeProto) -> bool:
        """Whether a node says that a count is not zero."""
        if node.op_type == "Greater":
            bound = self.constants.get(node.input[1])
            return bound is not None and bound.size == 1 and bool(bound.item() == 0)
        return node.op_type == "Cast" and bool(node.attribute[0].i == TensorProto.BOOL)


def _compared(node: NodeProto, raw: Collection[str], constants: dict[str, np.ndarray]) -> float | None:
    """The number that the steps are compared with."""
    for steps, other in (node.input, node.input[::-1]):
        number = constants.get(other)
        if steps in raw and number is not None and number.size == 1:
            return float(number.item())
    return None


def _over_features(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether a reduction of the steps is one over the features, the last of three axes."""
    axes = next((list(each.ints) for each in node.attribute if each.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = constants[node.input[1]].reshape(-1).tolist()
    return axes in ([-1], [2])


def opened(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy of the graph with some masks true at every step."""
    copy = deepcopy(model)
    refill(copy.graph.node, (each for node in model.graph.node for each in _opened(node, names)))
    return copy


def _opened(node: NodeProto, names: Collection[str]) -> Iterator[NodeProto]:
    """A node; of one that makes such a mask, the mask or its opposite."""
    name = node.output[0] if node.output else ""
    if name not in names:
        yield node
        return
    changed = deepcopy(node)
    changed.output[0] = f"{name}_before"
    yield changed
    yield helper.make_node("Not", [changed.output[0]], [f"{name}_opposite"])
    yield helper.make_node("Or", [changed.output[0], f"{name}_opposite"], [name], name=f"{node.name}_opened")
