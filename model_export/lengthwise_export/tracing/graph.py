"""Builds the ONNX graph of a torch module, in four steps.

    module --capture--> exported program --translate--> ONNX --name--> inputs, axes, metadata --ensure--> graph

The graph takes `values [rows, width, features]` float32 or `tokens [rows, width]` int64, and `lengths [rows]` int32; it
outputs `logits` and, if the model has it, `attention`. Rows and width are dynamic. Every recurrent node has lengths.
(That of a module that takes the steps alone has no lengths: it is to be mended.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from lengthwise.runtime.manifest import CONTRACT, StepInput
from lengthwise_export.errors import ExportError
from lengthwise_export.onnx_graphs.protos import IN_GRAPH, NAME_IN_GRAPH
from lengthwise_export.options import HIGHEST_OPSET, OPSET
from lengthwise_export.tracing import recurrent_op, translations
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector, output_selector
from lengthwise_export.tracing.capture import capture, quiet
from lengthwise_export.tracing.optimizing import optimized, with_exact_sigmoids, with_exact_sizes
from lengthwise_export.tracing.source_lines import location_in

BUILT_IN_NODES: Final = 60
"""Maximum number of nodes in a graph of the bundled architecture's size; unrolled code would exceed it."""

_INSTEAD: Final = {
    "nanmedian": "sort along the steps with padding at the end, and gather the one at (lengths - 1) // 2",
    "_cdist_forward": "(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()",
}
"""Code to write instead of an operator that the exporter cannot translate."""

_TRANSLATIONS: Final = recurrent_op.TRANSLATIONS | translations.TRANSLATIONS

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_LENGTHS_PLACE: Final = 4  # the index of `sequence_lens` among the inputs of a recurrent node


def build(
    model: nn.Module,
    steps: StepInput,
    *,
    name: str,
    labels: Sequence[str],
    signature: CallSignature | None = None,
    select_output: OutputSelector | None = None,
    opset: int = OPSET,
    most_nodes: int | None = None,
) -> onnx.ModelProto:
    """The graph of a torch module without leaks, or of one that takes the steps alone; `most_nodes` stops unrolling.

    Errors (`ExportError`) name the step, and the file and line of the module's code.
    """
    if not OPSET <= opset <= HIGHEST_OPSET:
        raise ExportError("translate", f"opset {opset} is not among {OPSET} to {HIGHEST_OPSET}: choose one of these")
    signature = signature or CallSignature()
    program, outputs = capture(model, steps, signature=signature, select_output=select_output or output_selector(None))
    graph = _translated(program, opset)
    sequences = "tokens" if steps.kind == "tokens" else "values"
    axes: list[str | int | None] = ["rows", "width"]
    promised: dict[str, tuple[str, Sequence[str | int | None]]] = {
        sequences: ("INT64", axes) if steps.kind == "tokens" else ("FLOAT", [*axes, steps.features])
    }
    if signature.second != "none":
        promised["lengths"] = ("INT32", ["rows"])
    _name(graph, list(promised), outputs)
    graph.metadata_props["lengthwise.contract"] = str(CONTRACT)
    graph.metadata_props[NAME_IN_GRAPH] = name
    graph.metadata_props[IN_GRAPH] = json.dumps(list(labels), ensure_ascii=False)
    ensure(graph, promised, most_nodes=most_nodes)
    proto = ir.to_proto(graph)
    translations.note_ties(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _translated(program: ExportedProgram, opset: int) -> ir.Model:
    """The program in ONNX of this opset, with constants folded."""
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=_TRANSLATIONS,
                verbose=False,
                optimize=False,  # `optimized` does, and keeps small numbers
            )
            if exported is None:
                raise ExportError("translate", "the exporter gave no graph")
            exact = with_exact_sizes(exported.model, exported.exported_program or program)
            return with_exact_sigmoids(optimized(exact))
        except (torch.onnx.errors.OnnxExporterError, ir.passes.PassError) as error:
            raise _untranslated(program, error) from error


def _name(graph: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names inputs, outputs and dynamic axes, and connects each recurrent node directly to the input `lengths`."""
    counts = (len(graph.graph.inputs), len(graph.graph.outputs))
    if counts != (len(inputs), len(outputs)):
        raise ExportError(
            "name", f"the graph has {counts[0]} inputs and {counts[1]} outputs, not {inputs} and {outputs}"
        )
    for value, name in zip((*graph.graph.inputs, *graph.graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    sizes = list(graph.graph.inputs[0].shape or ())[:2]
    frozen = [axis for axis, size in zip(("rows", "width"), sizes, strict=True) if isinstance(size, int)]
    if frozen:
        raise ExportError("name", f"{' and '.join(frozen)} is frozen at {sizes}: the module's code fixes it")
    _rename_axes(graph, {str(size): axis for size, axis in zip(sizes, ("rows", "width"), strict=True)})
    for node in graph.graph:
        if node.op_type in _RECURRENT and (ends := _lengths_of(node)) is not None:
            node.replace_input_with(_LENGTHS_PLACE, _before_casts(ends))
    ir.passes.common.RemoveUnusedNodesPass()(graph)


def _rename_axes(graph: ir.Model, names: Mapping[str, str]) -> None:
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    values = [*graph.graph.inputs, *(output for node in graph.graph for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, ir.SymbolicDim) and size.value is not None and not value.shape.frozen:
                value.shape[axis] = symbol.sub(lambda match: names[match.group()], size.value)


def _before_casts(value: ir.Value | None) -> ir.Value | None:
    """The int32 value at the start of a chain of casts; the value itself if there is no such chain.

    Lengths are at least 1 and fit into 32 bits, so casting to int64 and back does not change them.
    """
    begin = value
    while begin is not None and (node := begin.producer()) is not None and node.op_type == "Cast":
        begin = node.inputs[0]
    return begin if begin is not None and begin.dtype == ir.DataType.INT32 else value


def ensure(
    graph: ir.Model, promised: Mapping[str, tuple[str, Sequence[str | int | None]]], *, most_nodes: int | None = None
) -> None:
    """Makes sure that a graph can be published: it has these inputs, and all recurrent nodes have lengths."""
    inputs = {value.name: (value.dtype.name if value.dtype else "", _axes(value)) for value in graph.graph.inputs}
    expected = {name: (element, list(axes)) for name, (element, axes) in promised.items()}
    if inputs != expected:
        raise ExportError("ensure", f"the graph's inputs are {inputs}, expected were {expected}")
    opset = graph.opset_imports.get("", 0)
    if opset > HIGHEST_OPSET:
        raise ExportError("ensure", f"the graph is of opset {opset}, past {HIGHEST_OPSET}")
    others = sorted(domain for domain in graph.opset_imports if domain not in ("", "ai.onnx"))
    if others:
        raise ExportError("ensure", f"the graph uses operators outside of ONNX: {', '.join(others)}")
    for node in graph.graph:
        if node.op_type not in _RECURRENT:
            continue
        if "lengths" in promised and _lengths_of(node) is None:
            raise ExportError("ensure", f"{node.op_type} node {node.name} has no lengths, so it would read padding")
        if any(weights is None or not weights.is_initializer() for weights in node.inputs[1:3]):
            raise ExportError("ensure", f"the weights of {node.op_type} node {node.name} are computed at every run")
    count = sum(1 for _ in graph.graph)
    if most_nodes is not None and count > most_nodes:
        raise ExportError("ensure", f"the graph has {count} nodes, expected were {most_nodes} at most")


def _lengths_of(node: ir.Node) -> ir.Value | None:
    """The lengths of a recurrent node; None if every row runs over the full width."""
    return node.inputs[_LENGTHS_PLACE] if len(node.inputs) > _LENGTHS_PLACE else None


def _axes(value: ir.Value) -> list[str | int | None]:
    return [size.value if isinstance(size, ir.SymbolicDim) else size for size in value.shape or ()]


def _untranslated(program: ExportedProgram, error: Exception) -> ExportError:
    """The error for an operator that cannot be translated, with its line in the user's code."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    why = str(chain[-1]).strip().split("\n")[0]
    name = next((match[1] for each in chain if (match := re.search(r"translating node %(\w+)", str(each)))), None)
    node = next((node for node in program.graph.nodes if node.name == name), None) or _first_unknown(program)
    if node is None:
        return ExportError("translate", why)
    operator = getattr(node.target, "__name__", str(node.target)).removeprefix("aten.").split(".")[0]
    location = location_in(node.meta.get("stack_trace") or "")
    at = "" if location is None else f"{location.told()}: "
    detail = "" if why.startswith("No ONNX function") else f" in this form ({why})"
    instead = _INSTEAD.get(operator, "write it with operators that ONNX has")
    return ExportError("translate", f"{at}{operator} has no translation to ONNX{detail}: {instead}")


def _first_unknown(program: ExportedProgram) -> torch.fx.Node | None:
    """The first operator that the exporter has no translation for; None if it has one for each.

    Checks of torch, whose results nobody uses, are dropped; what torch itself composes, such as `to`, is taken apart.
    """
    registry = ONNXRegistry.from_torchlib(OPSET)
    calls = (
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and node.users
        and not (isinstance(node.target, torch._ops.OpOverload) and node.target._can_decompose())
    )
    return next(
        (node for node in calls if node.target not in _TRANSLATIONS and not registry.is_registered(node.target)), None
    )


def without_exporter_metadata(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's metadata of each node: lines of code and paths of the machine that built the graph."""
    graph: Any = proto.graph
    for each in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
    return proto
