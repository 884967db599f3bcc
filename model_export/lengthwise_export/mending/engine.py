"""The engine: applies to a node the rule for its operator, and keeps what is known of the outputs.

A rule is a value (`Rule`): its operators, what it requires of a node, and the function that writes the nodes of the
mended graph. That function's docstring has its cases, with the numbers that stand in its code; it returns the outputs.
A rule reads the node and its inputs from a `Mender`, and adds nothing but nodes and values with new names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import onnx
from onnx import NodeProto

from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import (
    DataTensor,
    KnownTensor,
    Value,
    constant_in,
    is_pure,
    run_node,
    run_on_tables,
)
from lengthwise_export.onnx_graphs.protos import OF_ONNX
from lengthwise_export.tracing.source_lines import CodeLocation, location_of_node, operator_name

NodeOutputs = Sequence[Value | None]
"""What is known of a node's outputs, in their order; None for one that nobody uses."""

Taken = Callable[[Mender], tuple[Any, ...]]
"""Reads from a node the arguments that the functions of its rule take after the mender."""


def data(mender: Mender) -> tuple[DataTensor]:
    """The first input, as data."""
    return (mender.data_input(0),)


def movable(mender: Mender) -> tuple[DataTensor]:
    """The first input of a node that only moves or copies elements: an index of rows as it is, else as data."""
    value = mender.input_value(0)
    return (value if isinstance(value, DataTensor) and value.is_row_index else mender.data_input(0),)


def along(default: int) -> Taken:
    """The first input as data, and the axis that the attribute `axis` names, counted from 0; without it `default`."""
    return lambda mender: mender.input_and_axis(default)


def values(mender: Mender) -> tuple[list[Value]]:
    """All inputs that the node has, as they are."""
    return (mender.inputs(),)


@dataclass(frozen=True, slots=True)
class Rule:
    """How a node of some operators is mended. The functions get the mender, and what the rule takes."""

    operators: tuple[str, ...]  # Types of ONNX's operators
    takes: Taken
    # By the reason for a refusal: the condition that a node has to fulfil; they are tried in this order
    requires: Mapping[str, Callable[..., object]]
    writes: Callable[..., Value | NodeOutputs]  # Writes what replaces the node; returns its first output, or several


RULES: Final[dict[str, Rule]] = {}  # by operator type
_Function = TypeVar("_Function", bound=Callable[..., Value | NodeOutputs])


def rule(
    *operators: str,
    takes: Taken = data,
    requires: Mapping[str, Callable[..., object]] = MappingProxyType({}),
    table: dict[str, Rule] = RULES,
) -> Callable[[_Function], _Function]:
    """A decorator: puts a rule for these operator types into a table; the function is what the rule `writes`."""

    def register(writes: _Function) -> _Function:
        table.update(dict.fromkeys(operators, Rule(operators, takes, requires, writes)))
        return writes

    return register


_REASONS: Final = {
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli": "draws random numbers, so "
    "the original does not give the same answer twice: export it in evaluation mode",
    "DFT STFT MelWeightMatrix": "transforms the whole width at once, and its frequencies depend on the width: "
    "transform outside of the model",
    "NonZero Compress Unique NonMaxSuppression": "gives as many indices as the data say, so no axis of time can be "
    "followed behind it",
    "If SequenceMap": "has a graph of its own inside: write the loop as a layer (LSTM, GRU, Conv), or the branch as "
    "Where",
    "Upsample GridSample AffineGrid": "resamples the steps to another number of steps, which depends on the width",
    "DynamicQuantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul": "takes one scale for the whole batch: mend the "
    "float32 graph, and quantise it with a fixed scale, or export with --precision int8",
}
"""By operator types, separated by blanks: why they cannot be mended."""


@dataclass(frozen=True, slots=True)
class MendedOperator:
    """One operator that a mend changed."""

    operator: str  # Its name, as `shown_operator` gives it
    kind: str  # Its operator type
    location: CodeLocation | None  # The line of code that it comes from, if the graph says it
    cause: str  # How padding reached its output
    before: tuple[str, ...]  # The operator as graph text, a line for each node
    after: tuple[str, ...]  # The nodes of the mended graph that replace it, as graph text


def follow(mender: Mender, node: NodeProto) -> list[MendedOperator]:
    """Mends one node: writes what stands for it in the mended graph, and puts its outputs into `mender.values`.

    Returns:
        The operator in a list, if the mend changes it; an empty list if padding does not reach its output.

    Raises:
        UnmendableError: It cannot be mended; the error names it, or the node in its body, with the line of code.
    """
    before = len(mender.writer.nodes)
    try:
        outputs = apply(mender, node)
    except UnmendableError as error:
        if error.operator:  # it is of a node in the body of this one, a loop
            raise
        raise UnmendableError(shown_operator(node), error.reason, location_of_node(node)) from error
    inputs = [mender.values[name] for name in node.input if name]
    data = [value for value in inputs if isinstance(value, DataTensor)]
    sources = frozenset().union(*(value.sources for value in data))
    is_steps = node.op_type in ("Cast", "Identity") and any(value.is_steps for value in data[:1])
    for name, value in zip(node.output, outputs, strict=False):
        if isinstance(value, DataTensor):
            facts = {"sources": sources, "is_steps": is_steps, "hides": mender.hiding_masks.get(name)}
            mender.values[name] = value.with_name(value.name, cause="", **facts)
        elif value is not None:
            mender.values[name] = value
    cause = next((value.cause for value in outputs if isinstance(value, DataTensor) and value.cause), None)
    if cause is None:
        return []
    after = tuple(map(_text, mender.writer.nodes[before:]))
    return [MendedOperator(shown_operator(node), node.op_type, location_of_node(node), cause, (_text(node),), after)]


def apply(mender: Mender, node: NodeProto) -> NodeOutputs:
    """Writes the nodes that stand for a node of the original, and returns what is known of its outputs.

    1. If the numbers of all its inputs are known for each length, those of its output are computed for each length.
    2. Else the rule for its operator writes the nodes. A node is refused if its operator has no rule, or if it does not
       fulfil what the rule requires.

    Args:
        mender: The mender of any node of the same graph.
        node: The node.

    Raises:
        UnmendableError: It cannot be mended; the error has the reason alone.
    """  # noqa: DOC502 - `refuse_if` raises it
    mender, kind, rules = replace(mender, node=node), node.op_type, mender.rules
    if (computed := _computed_from_sizes(mender)) is not None:
        return [computed]
    for kinds, reason in _REASONS.items():
        mender.refuse_if(kind in kinds.split(), reason)
    mender.refuse_if(node.domain not in OF_ONNX, f"is an operator of {node.domain}, not of ONNX")
    mender.refuse_if(kind not in rules, "is an operator that has no rule for mending")
    taken = rules[kind].takes(mender)
    for reason, is_fulfilled in rules[kind].requires.items():
        mender.refuse_if(not is_fulfilled(mender, *taken), reason)
    result = rules[kind].writes(mender, *taken)
    return [result] if isinstance(result, KnownTensor | DataTensor) else result


def _computed_from_sizes(mender: Mender) -> KnownTensor | None:
    """Computes the output of a node for each length, if all inputs are known for each length (each a `KnownTensor`).

    The mended graph gets a copy of the node, which computes the output for the width of the batch.

    Returns:
        The output; None if an input is data, or the node has to be mended by a rule: then nothing was written.
    """
    node = mender.node
    inputs = [mender.values[name] if name else None for name in node.input]
    tables = [value.table if isinstance(value, KnownTensor) else None for value in inputs]
    has_own_rule = node.op_type in ("Shape", "ConstantOfShape", "Range") or not is_pure(node)
    if any(isinstance(value, DataTensor) for value in inputs) or len(node.output) != 1 or has_own_rule:
        return None
    # 1. From constants, a constant: by any operator
    constants = [constant_in(value) for value in inputs]
    is_constant = all(value is None or constant is not None for value, constant in zip(inputs, constants, strict=True))
    results = run_node(node, constants) if is_constant else None
    # 2. Else a table, by an operator that can be run on tables
    table = mender.known("", results[0]).table if results else run_on_tables(node, tables)
    if table is None:
        return None
    mender.copy_node(["" if value is None else value.name for value in inputs])
    return KnownTensor(node.output[0], table)


def shown_operator(node: NodeProto) -> str:
    """A node as text: its module or its own name, and its operator type, such as `Conv encoder.conv`."""
    name = operator_name(node)
    return name if node.op_type in name else f"{node.op_type} {name or node.output[0]}"


def _text(node: NodeProto) -> str:
    """A node as graph text (ONNX's textual syntax), without its name and metadata."""
    fields = {name: getattr(node, name) for name in ("op_type", "domain", "input", "output", "attribute")}
    return str(onnx.printer.to_text(NodeProto(**fields))).strip()
