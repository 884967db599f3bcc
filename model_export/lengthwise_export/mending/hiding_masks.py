"""Masks that a graph computes from the values of its steps: a step is hidden where all its values are one number.

    Masking(0.0), Embedding(mask_zero=True)     Not(Equal(steps, 0.0)) -> any over the features -> mask

Who made such a model meant lengths: the number marks the padding. Where a mend puts lengths instead of such a
mask, the mask is *opened*: true everywhere, and only the length says where a sequence ends.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.onnx_graphs.protos import attributes_of, constants_of, refill

_SAME: Final = frozenset(
    {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "ReverseSequence", "Expand", "Flatten"}
)
"""Operators behind which a mask is the same mask."""

_STAGES: Final = {
    **{(stage, kind): stage for stage in ("steps", "differs") for kind in ("Identity", "Cast")},
    ("steps", "Equal"): "equal",
    ("equal", "Not"): "differs",
    **dict.fromkeys([("differs", "ReduceSum"), ("differs", "ReduceMax")], "counted"),
    **dict.fromkeys([("counted", "Greater"), ("counted", "Cast"), *(("mask", kind) for kind in _SAME)], "mask"),
}
"""The stage behind an operator, on the way from the steps to a mask."""


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
    stages = {sequences: "steps"}  # how far each value is on the way from the steps to a mask
    numbers: dict[str, float] = {}  # the number that it compares them with
    masks: dict[str, HidingMask] = {}
    for node in model.graph.node:
        if not node.input or not node.output:
            continue
        first, *others = node.input
        if node.op_type == "Equal" and first in constants:
            first, others = others[0], [first]
        number = constants.get(others[0]) if others else None
        out, stage = node.output[0], _stage_behind(node, stages.get(first, ""), number, tokens=tokens)
        if stage == "equal" and number is not None:
            numbers[out] = float(number.item())
        elif first in numbers:
            numbers[out] = numbers[first]
        stages[out] = stage
        if stage == "mask":
            masks[out] = masks.get(first, HidingMask(out, numbers[out]))
    return masks


def _stage_behind(node: NodeProto, stage: str, number: NDArray[Any] | None, *, tokens: bool) -> str:
    """The stage of a node's output; empty if it is on no way to a mask. `number`: its second input, if constant."""
    kind, attributes = node.op_type, attributes_of(node)
    axes = attributes.get("axes", [] if number is None else number.reshape(-1).tolist())
    is_one = number is not None and number.size == 1
    conditions = {
        ("steps", "Equal"): is_one,
        ("differs", "ReduceSum"): list(axes) in ([-1], [2]),  # over the features, the last of three axes
        ("differs", "ReduceMax"): list(axes) in ([-1], [2]),
        ("counted", "Greater"): is_one and not np.any(number),
        ("counted", "Cast"): attributes.get("to") == TensorProto.BOOL,
    }
    behind = _STAGES.get((stage, kind), "") if conditions.get((stage, kind), True) else ""
    return "mask" if tokens and (stage, kind) == ("equal", "Not") else behind


def opened(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy of the graph with some masks true at every step: each is the mask or its opposite."""
    copy = deepcopy(model)
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if name in names:
            node.output[0], opposite = f"{name}_before", f"{name}_opposite"
            nodes.append(helper.make_node("Not", [node.output[0]], [opposite]))
            nodes.append(helper.make_node("Or", [node.output[0], opposite], [name], name=f"{node.name}_opened"))
    refill(copy.graph.node, nodes)
    return copy
