"""Masks that a graph computes from the values of its steps: a step is hidden where all its values are one number.

    Masking(0.0), Embedding(mask_zero=True)     Not(Equal(steps, 0.0)) -> any over the features -> mask

Who made such a model meant lengths: the number marks the padding. Where a mend puts lengths in the place of such a
mask, the mask is *opened*: it is true everywhere, and only the length says where a sequence ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SAME: Final = frozenset(
    {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "ReverseSequence", "Expand", "Flatten"}
)
"""Operators behind which a mask is the same mask."""


@dataclass(frozen=True, slots=True)
class HidingMask:
    """A mask that hides the steps whose values are all one number.

    Attributes:
        name: The value of the graph that is the mask, before it is transposed or reshaped.
        number: The number.
    """

    name: str
    number: float


def hiding_masks(model: ModelProto, sequences: str) -> dict[str, HidingMask]:
    """The masks of a graph that hide steps, by the name of each value that is one.

    Args:
        model: The graph.
        sequences: Its input with the steps.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps = next(each for each in model.graph.input if each.name == sequences)
    tokens = len(steps.type.tensor_type.shape.dim) == 2 and steps.type.tensor_type.elem_type != TensorProto.FLOAT
    raw, equal, differs, counted = {sequences}, {}, {}, {}
    masks: dict[str, HidingMask] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if not node.input or not node.output:
            continue
        first, out = node.input[0], node.output[0]
        kind = node.op_type
        if kind in ("Identity", "Cast") and first in raw:
            raw.add(out)
        elif kind == "Equal" and (number := _compared(node, raw, constants)) is not None:
            equal[out] = number
        elif kind == "Not" and first in equal:
            differs[out] = equal[first]
            if tokens:
                masks[out] = HidingMask(out, equal[first])
        elif kind in ("Cast", "Identity") and first in differs:
            differs[out] = differs[first]
        elif kind in ("ReduceSum", "ReduceMax") and first in differs and _over_features(node, constants):
            counted[out] = differs[first]
        elif (kind == "Greater" and first in counted and _is_zero(constants.get(node.input[1]))) or (
            kind == "Cast" and first in counted and node.attribute[0].i == TensorProto.BOOL
        ):
            masks[out] = HidingMask(out, counted[first])
        elif kind in SAME and first in masks:
            masks[out] = masks[first]
    return masks


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


def _is_zero(array: np.ndarray | None) -> bool:
    return array is not None and array.size == 1 and array.item() == 0


def opened(model: ModelProto, names: Collection[str]) -> ModelProto:
    """The graph with some masks true at every step.

    Args:
        model: The graph; it stays unchanged.
        names: The masks.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = [each for node in model.graph.node for each in _opened(node, names)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _opened(node: NodeProto, names: Collection[str]) -> Iterator[NodeProto]:
    """A node; of one that makes such a mask, the mask or its opposite."""
    name = node.output[0] if node.output else ""
    if name not in names:
        yield node
        return
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.output[0] = f"{name}_before"
    yield changed
    yield helper.make_node("Not", [changed.output[0]], [f"{name}_opposite"])
    yield helper.make_node("Or", [changed.output[0], f"{name}_opposite"], [name], name=f"{node.name}_opened")
