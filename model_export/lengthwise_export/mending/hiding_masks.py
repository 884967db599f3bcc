"""Masks that a graph computes from the values of its steps: a step is hidden where all its values are one number.

    Masking(0.0), Embedding(mask_zero=True)     Not(Equal(steps, 0.0)) -> any over the features -> mask

An author of such a model meant lengths: the number marks the padding. Where a mend puts lengths in the place of such a
mask, the mask is *opened*: true everywhere, and only the length says where a sequence ends.

Such a mask is recognised by the operators that compute it from the input. The *stage* of a value says how many of them
have run; the stages are called by these words:

    steps -Equal-> equal -Not-> differs -ReduceSum or ReduceMax-> counted -Greater or Cast-> mask

Tokens have no features to reduce, so the output of Not is their mask.
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
"""Operators that move or repeat a mask, so that their output is the same mask."""

_STAGES: Final = {
    **{(stage, kind): stage for stage in ("steps", "differs") for kind in ("Identity", "Cast")},
    ("steps", "Equal"): "equal",
    ("equal", "Not"): "differs",
    **dict.fromkeys([("differs", "ReduceSum"), ("differs", "ReduceMax")], "counted"),
    **dict.fromkeys([("counted", "Greater"), ("counted", "Cast"), *(("mask", kind) for kind in _SAME)], "mask"),
}
"""By the stage of an operator's first input and the operator type: the stage of its output."""


@dataclass(frozen=True, slots=True)
class HidingMask:
    """A mask that hides the steps whose values are all one number."""

    name: str  # The value of the graph that is the mask, before it is transposed or reshaped
    number: float  # The number
    is_opened: bool = False  # Whether it was made true everywhere


class StepsHidden(Exception):
    """A loop is a recurrent layer if some masks are made true everywhere: `mend` begins again with these masks.

    Argument: by the name of each mask, the number that marks the steps that it hides.
    """


def hiding_masks(model: ModelProto, sequences: str, opened_names: Collection[str]) -> dict[str, HidingMask]:
    """Finds the masks of a graph that hide steps by their values.

    Args:
        model: The graph.
        sequences: The name of its input with the steps.
        opened_names: The names of the masks that are made true everywhere.

    Returns:
        By the name of each value that is such a mask, or one transposed or reshaped: the mask.
    """
    steps = next(value for value in model.graph.input if value.name == sequences)
    has_tokens = len(steps.type.tensor_type.shape.dim) == 2 and steps.type.tensor_type.elem_type != TensorProto.FLOAT
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in constants_of(model.graph).items()}
    stages = {sequences: "steps"}  # by the name of a value, its stage; empty for one that leads to no mask
    numbers: dict[str, float] = {}  # by the name of a value after Equal, the number that the steps are compared with
    masks: dict[str, HidingMask] = {}
    for node in model.graph.node:
        if not node.input or not node.output:
            continue
        # A mask is followed from the first input of a node to its first output.
        first, *further = node.input
        if node.op_type == "Equal" and first in constants:  # Equal(0.0, steps)
            first, further = further[0], [first]
        second_input = constants.get(further[0]) if further else None
        output, stage = node.output[0], _next_stage(node, stages.get(first, ""), second_input, has_tokens=has_tokens)
        if stage == "equal" and second_input is not None:
            numbers[output] = float(second_input.item())
        elif first in numbers:
            numbers[output] = numbers[first]
        stages[output] = stage
        if stage == "mask":  # if `first` is one already, this is the same mask, transposed or reshaped
            masks[output] = masks.get(first, HidingMask(output, numbers[output], output in opened_names))
    return masks


def _next_stage(node: NodeProto, stage: str, second_input: NDArray[Any] | None, *, has_tokens: bool) -> str:
    """The stage of a node's output, one of the words in the docstring of this module; empty if it leads to no mask.

    Args:
        node: The node.
        stage: The stage of its first input; empty if that leads to no mask.
        second_input: Its second input, if that is a constant: the number of an Equal or Greater, the axes of a Reduce.
        has_tokens: Whether the steps are tokens.
    """
    kind, attributes = node.op_type, attributes_of(node)
    if has_tokens and (stage, kind) == ("equal", "Not"):
        return "mask"
    # Some operators have to fulfil a condition besides their type: a comparison has one number (for Greater that is 0),
    # a reduction is over the features, the last of three axes, and a Cast is to booleans.
    axes = list(attributes.get("axes", [] if second_input is None else second_input.reshape(-1)))
    is_number = second_input is not None and second_input.size == 1
    conditions = {
        ("steps", "Equal"): is_number,
        ("differs", "ReduceSum"): axes in ([-1], [2]),
        ("differs", "ReduceMax"): axes in ([-1], [2]),
        ("counted", "Greater"): is_number and not np.any(second_input),
        ("counted", "Cast"): attributes.get("to") == TensorProto.BOOL,
    }
    return _STAGES.get((stage, kind), "") if conditions.get((stage, kind), True) else ""


def opened(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy of a graph in which some masks are true everywhere.

    After each, a Not and an Or are added: `Or(mask, Not(mask))` is true everywhere, and has the mask's shape.

    Args:
        model: The graph, which stays as it is.
        names: The names of the masks.
    """
    copy = deepcopy(model)
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if name in names:
            # The mask gets another name, so that all nodes that take it take the Or.
            node.output[0], opposite = f"{name}_before", f"{name}_opposite"
            nodes.append(helper.make_node("Not", [node.output[0]], [opposite]))
            nodes.append(helper.make_node("Or", [node.output[0], opposite], [name], name=f"{node.name}_opened"))
    refill(copy.graph.node, nodes)
    return copy
