"""Builds the ONNX graph of a torch module, in four steps.

    module --capture--> exported program --translate--> ONNX --name--> inputs, axes, metadata --ensure--> graph

The graph takes `values [rows, width, features]` float32 or `tokens [rows, width]` int64, and `lengths [rows]` int32; it
outputs `logits` and, if the model has it, `attention`. Rows and width are dynamic. Every recurrent node has lengths.
(The graph of a module that takes the steps alone has no lengths: it is to be mended.)

What the translation of torch's exporter loses is put right: numbers near 0 and 1 (`optimized`), sizes that are computed
with floats (`with_exact_sizes`), and sigmoids near 0 (`with_exact_sigmoids`).
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from onnxscript.rewriter.pattern import RewriteRule
from onnxscript.values import TracedOnnxFunction
from torch import fx, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from lengthwise.exporter_api.contract import CONTRACT, LENGTHS, STATIC, StepInput
from lengthwise_export.errors import ExportError
from lengthwise_export.onnx_graphs.protos import IN_GRAPH, NAME_IN_GRAPH, OF_ONNX
from lengthwise_export.options import HIGHEST_OPSET, OPSET
from lengthwise_export.tracing import recurrent_op, translations
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.capture import capture, quiet
from lengthwise_export.tracing.outputs import OutputSelector, output_selector
from lengthwise_export.tracing.process_wide import replaced
from lengthwise_export.tracing.source_lines import is_translation_of, location_in, location_of_node

_INSTEAD: Final = {
    "nanmedian": "sort along the steps with padding at the end, and gather the one at (lengths - 1) // 2",
    "_cdist_forward": "(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()",
}
"""Code to write instead of an operator that the exporter cannot translate, by the operator's name."""
_IN_REAL_NUMBERS: Final = (
    "compute with real numbers, as a Fourier transform is a product with cos and sin (torch.matmul), and what a "
    "transform convolves is a sum over the steps (F.conv1d, or a product with a matrix [width, width])"
)

_TRANSLATIONS: Final = recurrent_op.TRANSLATIONS | translations.TRANSLATIONS  # by the operator of torch

_DOMAIN_ALONE: Final = property(lambda function: SimpleNamespace(domain=function.opset.domain))
"""Stands for the intermediate form of onnxscript's traced functions, of which torch's exporter reads the domain alone.

It asks 500 functions for their form, for its registry; the source of each is parsed for that, which takes longer than
the translation of a small module.
"""

_TRY_EVERYWHERE: Final = RewriteRule.try_rewrite


def _try_at_its_operator(rule: RewriteRule, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
    """Stands for `RewriteRule.try_rewrite`, which begins a match of every rule at every node.

    Nearly all of these end at once, as the operator is another one; without them, onnxscript's optimizer takes a third
    of the time. Returns what replaces the node, or None.
    """
    operator = rule._target_pattern.output_nodes[0].op_identifier()  # None: any
    return (
        None if operator not in (None, node.op_identifier()) else _TRY_EVERYWHERE(rule, model, graph, node, **options)
    )


_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_LENGTHS_INPUT: Final = 4  # the index of `sequence_lens` among the inputs of a recurrent node


def build(
    model: nn.Module,
    steps: StepInput,
    *,
    name: str,
    labels: Sequence[str],
    signature: CallSignature | None = None,
    select_output: OutputSelector | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Builds the graph of a torch module without leaks, or of one that takes the steps alone.

    Args:
        model: The module.
        steps: Whether a step is numbers or a token id, and how many there are.
        name: The name of the model, for the metadata of the graph.
        labels: The names of the classes, for the metadata of the graph.
        signature: How the module is called; by default with the steps and the lengths.
        select_output: Takes the outputs of the graph from the module's answer, by name; by default `logits` and, if
            there is one, `attention`.
        opset: The version of ONNX's operators.

    Raises:
        ExportError: A step failed; the message names the step, and the file and line of the module's code.
    """
    if not OPSET <= opset <= HIGHEST_OPSET:
        raise ExportError("translate", f"opset {opset} is not among {OPSET} to {HIGHEST_OPSET}: choose one of these")
    # Capture and translate
    signature = signature or CallSignature()
    program, outputs = capture(model, steps, signature=signature, select_output=select_output or output_selector(None))
    graph = _translated(program, opset)
    # Name
    inputs: dict[str, tuple[str, list[str | int | None]]] = {"values": ("FLOAT", ["rows", "width", steps.features])}
    if steps.kind == "tokens":
        inputs = {"tokens": ("INT64", ["rows", "width"])}
    if signature.second != "none":
        inputs["lengths"] = ("INT32", ["rows"])
    inputs |= _inputs_beside(steps)
    _name_values(graph, inputs, outputs)
    _connect_lengths(graph)
    graph.metadata_props["lengthwise.contract"] = str(CONTRACT)
    graph.metadata_props[NAME_IN_GRAPH] = name
    graph.metadata_props[IN_GRAPH] = json.dumps(list(labels), ensure_ascii=False)
    # Ensure
    ensure(graph, inputs, all_steps=steps.width is not None)
    proto = ir.to_proto(graph)
    _note_ties(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _inputs_beside(steps: StepInput) -> dict[str, tuple[str, list[str | int | None]]]:
    """The inputs of a graph beside the first sequence and its lengths: the element type and the axes of each."""
    inputs: dict[str, tuple[str, list[str | int | None]]] = {}
    if steps.static is not None:
        inputs[STATIC] = ("FLOAT", ["rows", steps.static.count])
    for sequence in steps.sequences[1:]:
        kind: tuple[str, list[str | int | None]] = ("INT64", [])
        if sequence.features is not None:
            kind = ("FLOAT", [sequence.features])
        inputs[sequence.name] = (kind[0], ["rows", f"{sequence.name}_width", *kind[1]])
        inputs[LENGTHS.format(sequence.name)] = ("INT32", ["rows"])
    return inputs


def _translated(program: ExportedProgram, opset: int) -> ir.Model:
    """Translates the program to ONNX operators of this opset, with constants folded and exact sizes and sigmoids.

    Raises:
        ExportError: An operator has no translation; the message names it, its line, and what to write instead.
    """
    faster = (
        (TracedOnnxFunction, "function_ir", _DOMAIN_ALONE),
        (RewriteRule, "try_rewrite", _try_at_its_operator),
    )
    with quiet(), replaced(*faster):
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=_TRANSLATIONS,
                verbose=False,
                optimize=False,  # `optimized` does, and keeps small numbers
            )
            assert exported is not None  # it is, if no file is named
            exact = with_exact_sizes(exported.model, exported.exported_program or program)
            return with_exact_sigmoids(optimized(exact))
        except (torch.onnx.errors.OnnxExporterError, ir.passes.PassError) as error:
            raise ExportError("translate", _why_untranslated(program, error)) from error


def _name_values(
    graph: ir.Model, inputs: Mapping[str, tuple[str, list[str | int | None]]], outputs: Sequence[str]
) -> None:
    """Names inputs, outputs and dynamic axes of a graph, in place.

    Args:
        graph: The graph.
        inputs: The element type and the axes of each input, by its name: a size, or the name of a dynamic axis.
        outputs: The names of the outputs.

    Raises:
        ExportError: The rows or a width of the graph are frozen.
    """
    # Inputs and outputs
    for value, name in zip((*graph.graph.inputs, *graph.graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    # Axes: the exporter calls them `s0`, `s1 + 1`, ...; they become `rows`, `width + 1`, ...
    axis_of_symbol: dict[str, str] = {}
    for value, (_, axes) in zip(graph.graph.inputs, inputs.values(), strict=True):
        sizes = list(value.shape or ())
        named = [(axis, size) for axis, size in zip(axes, sizes, strict=False) if isinstance(axis, str)]
        if frozen := [axis for axis, size in named if isinstance(size, int)]:
            raise ExportError("name", f"{' and '.join(frozen)} is frozen at {sizes[:2]}: the module's code fixes it")
        axis_of_symbol |= {str(size): axis for axis, size in named}
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in axis_of_symbol))
    values = (*graph.graph.inputs, *(output for node in graph.graph for output in node.outputs))
    for value in values:
        if value.shape is not None:  # a new one, as the optimizer leaves some frozen
            value.shape = ir.Shape(
                symbols.sub(lambda match: axis_of_symbol[match.group()], size.value)
                if isinstance(size, ir.SymbolicDim) and size.value is not None
                else size
                for size in value.shape
            )


def _connect_lengths(graph: ir.Model) -> None:
    """Connects each recurrent node directly to the int32 input `lengths`, and removes Casts that are unused then."""
    for node in (node for node in graph.graph if node.op_type in _RECURRENT):
        source = _without_casts(_lengths_of(node))
        if source is not None and source.dtype == ir.DataType.INT32:
            node.replace_input_with(_LENGTHS_INPUT, source)
    ir.passes.common.RemoveUnusedNodesPass()(graph)


def _without_casts(lengths: ir.Value | None) -> ir.Value | None:
    """The value that a chain of Casts to `lengths` begins with: it is equal, because lengths fit into 32 bits.

    Without Casts, `lengths` itself; None if a recurrent node has none.
    """
    producer = None if lengths is None else lengths.producer()
    is_cast = producer is not None and producer.op_type == "Cast"
    return _without_casts(producer.inputs[0]) if producer is not None and is_cast else lengths


def ensure(
    graph: ir.Model, expected: Mapping[str, tuple[str, list[str | int | None]]], *, all_steps: bool = False
) -> None:
    """Makes sure that a graph can be published: it has the expected inputs, and all recurrent nodes have lengths.

    `expected` are the element type and the axes of each input, by name: a size, or the name of a dynamic axis. With
    `all_steps`, recurrent nodes may read all steps, as there is no padding where they are.

    Raises:
        ExportError: It has other inputs, operators outside of ONNX, or a recurrent node without lengths or with
            computed weights.
    """
    actual = {
        value.name: (
            value.dtype.name if value.dtype else "",
            [size.value if isinstance(size, ir.SymbolicDim) else size for size in value.shape or ()],
        )
        for value in graph.graph.inputs
    }
    if actual != expected:
        raise ExportError("ensure", f"the graph's inputs are {actual}, expected were {expected}")
    if domains := sorted(domain for domain in graph.opset_imports if domain not in OF_ONNX):
        raise ExportError("ensure", f"the graph uses operators outside of ONNX: {', '.join(domains)}")
    for node in (node for node in graph.graph if node.op_type in _RECURRENT):
        if "lengths" in expected and not all_steps and _lengths_of(node) is None:
            raise ExportError("ensure", f"{node.op_type} node {node.name} has no lengths, so it would read padding")
        if any(weights is None or not weights.is_initializer() for weights in node.inputs[1:3]):
            raise ExportError("ensure", f"the weights of {node.op_type} node {node.name} are computed at every run")


def _lengths_of(node: ir.Node) -> ir.Value | None:
    """The input `sequence_lens [rows]` of a recurrent node; None if every row runs over the full width."""
    return node.inputs[_LENGTHS_INPUT] if len(node.inputs) > _LENGTHS_INPUT else None


def _why_untranslated(program: ExportedProgram, error: Exception) -> str:
    """The message for a program that cannot be translated: the operator, its line, and what to write instead.

    Without such an operator it is the first line of the exporter's innermost error.
    """
    chain: list[BaseException] = [error]  # the error, its cause, the cause of that, ...
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    why = str(chain[-1]).strip().split("\n")[0]
    # The operator is the node that an error names, or the first that has no translation
    matches = (re.search(r"translating node %(\w+)", str(link)) for link in chain)
    name = next((match[1] for match in matches if match is not None), None)
    node = next((node for node in program.graph.nodes if node.name == name), None) or _first_unknown(program)
    if node is None or _is_complex(node):
        node = next(filter(_is_complex, program.graph.nodes), None) if node or "complex" in why else None
    if node is None:
        return why
    operator = getattr(node.target, "__name__", str(node.target)).removeprefix("aten.").split(".")[0]
    location = location_in(node.meta.get("stack_trace") or "")
    line = "" if location is None else f"{location.description()}: "
    if _is_complex(node):
        return f"{line}{operator} gives complex numbers, which are missing in ONNX: {_IN_REAL_NUMBERS}"
    detail = "" if why.startswith("No ONNX function") else f" in this form ({why})"
    instead = _INSTEAD.get(operator, "write it with operators that ONNX has")
    return f"{line}{operator} has no translation to ONNX{detail}: {instead}"


def _is_complex(node: torch.fx.Node) -> bool:
    """Whether a node of the program gives complex numbers."""
    return isinstance(value := node.meta.get("val"), torch.Tensor) and value.is_complex()


def _first_unknown(program: ExportedProgram) -> torch.fx.Node | None:
    """The first node of the program whose operator has no translation; None if each has one."""
    registry = ONNXRegistry.from_torchlib(OPSET)

    def is_known(target: Any) -> bool:
        is_composed = isinstance(target, torch._ops.OpOverload) and target._can_decompose()  # such as `to`
        return is_composed or target in _TRANSLATIONS or registry.is_registered(target)

    # The exporter drops calls whose results no node uses, such as checks of torch.
    calls = (node for node in program.graph.nodes if node.op == "call_function" and node.users)
    return next((node for node in calls if not is_known(node.target)), None)


_TIES: Final = "lengthwise.ties"  # the key of a note in the metadata of a graph


def _note_ties(model: onnx.ModelProto) -> None:
    """Writes the user's lines that use the indices of an unstable sort into the metadata of a graph.

    There the graph may differ from torch, which may put either of two equal values first. `ties_in` returns advice for
    the user about these lines.
    """
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    # The second output of TopK are the indices
    sorts = [node for node in graph.node if node.op_type == "TopK" and len(node.output) > 1 and node.output[1] in used]
    locations = [location_of_node(node) for node in sorts if not is_translation_of(node, "sort.stable")]
    lines = dict.fromkeys(f"{location}: `{location.source}`" for location in locations if location is not None)
    if lines:
        model.metadata_props.add(key=_TIES, value="; ".join(lines))


def ties_in(model: onnx.ModelProto) -> str | None:
    """The advice about unstable sorts in a graph, with their lines from the note of the trace; None without a note."""
    lines = next((entry.value for entry in model.metadata_props if entry.key == _TIES), None)
    advice = "torch leaves the order of equal values open, and the graph has the first one first: sort with stable=True"
    return None if lines is None else f"{lines}: {advice}, and for topk take the first of that"


def forget_ties(model: onnx.ModelProto) -> None:
    """Removes the note about unstable sorts from a graph: a published one does not show lines of code."""
    for note in [entry for entry in model.metadata_props if entry.key == _TIES]:
        model.metadata_props.remove(note)


def without_exporter_metadata(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's metadata from a graph, in place, and returns the graph.

    It has lines of code, and paths of the machine that built the graph.
    """
    graph: Any = proto.graph
    for message in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del message.metadata_props[:]
    return proto


_NEAR_ZERO: Final = 1e-6  # the largest number that is hidden from the optimizer as nearly 0
_NEAR_ONE: Final = 1e-3  # the largest difference from 1 that is; both are wider than the optimizer's own bounds


def optimized(model: ir.Model) -> ir.Model:
    """Folds constants and removes needless operators of a model, in place; returns the model.

    onnxscript's optimizer takes a number below 1e-8 for 0, and one within 1e-5 of 1 for 1: `log(x + 1e-12)` would
    become `log(x)`, which is not finite for a sequence of zeros. So such numbers are hidden from it: inputs of the
    graph stand in their place while it runs.
    """
    optimizer.inline(model)
    optimizer.fold_constants(model)
    hidden = []  # each stand-in, and the number that it stands for
    for count, (value, tensor) in enumerate([*_mistakable(model)]):
        kind = value.type or ir.TensorType(tensor.dtype)
        stand_in = ir.Value(name=f"small_number_{count}", type=kind, shape=ir.Shape([]))
        ir.convenience.replace_all_uses_with(value, stand_in)
        model.graph.inputs.append(stand_in)
        hidden.append((stand_in, tensor))
    optimizer.optimize_ir(model)
    for stand_in, tensor in hidden:
        model.graph.inputs.remove(stand_in)
        if stand_in.uses():
            stand_in.const_value = tensor
            model.graph.register_initializer(stand_in)
    return model


def _mistakable(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yields the single float numbers of a graph that an optimizer would take for 0 or 1: each value, and its tensor.

    They are nearly 0 or 1, but not equal.
    """
    for value in {id(value): value for node in model.graph.all_nodes() for value in node.inputs}.values():
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is None or tensor is None or tensor.shape.rank() or not tensor.dtype.is_floating_point():
            continue
        number = float(tensor.numpy())
        is_near = abs(number) < _NEAR_ZERO or math.isclose(number, 1.0, rel_tol=_NEAR_ONE)
        if is_near and number not in (0.0, 1.0):
            yield value, tensor


_ROUNDING: Final[Mapping[Any, str | None]] = {math.trunc: None, math.floor: "Floor", math.ceil: "Ceil"}
"""Functions that make a float whole, with their operator of ONNX; None for `trunc`, as a cast to int64 truncates."""

_OPERATORS: Final[Mapping[Any, str]] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    operator.pow: "Pow",
    operator.neg: "Neg",
    torch.sym_float: "Identity",
    torch.sym_sqrt: "Sqrt",
}
"""The operators of ONNX for Python's arithmetic with floats that are computed from sizes."""


def with_exact_sizes(model: ir.Model, program: ExportedProgram) -> ir.Model:
    """Makes a graph compute sizes such as `int(0.29 * x.shape[1])` in float64, as Python does; in place.

    The exporter translates Python's floats to float32, in which 0.29 * 100 is 29 and not 28.999... The graph must not
    be optimised yet, so that its values have the names of the nodes of the program.
    """
    outputs = (value for node in model.graph for value in node.outputs)
    values = {value.name: value for value in (*model.graph.inputs, *outputs)}
    for node in (node for node in program.graph.nodes if node.target in _ROUNDING and node.name in values):
        # A size that is a rounded number: add the nodes that compute this number in float64
        size, tape = values[node.name], ir.tape.Tape()
        producer, number = size.producer(), _in_float64(node.args[0], values, tape)
        if producer is None or number is None:
            continue
        # Round it, and put the result in the place of the size
        rounding = _ROUNDING[node.target]
        whole_number = number if rounding is None else _add(tape, rounding, [number])
        exact = _add(tape, "Cast", [whole_number], {"to": ir.DataType.INT64}, dtype=ir.DataType.INT64, shape=size.shape)
        model.graph.insert_before(producer, tape.nodes)
        ir.convenience.replace_all_uses_with(size, exact)
    return model


def _in_float64(number: Any, values: Mapping[str | None, ir.Value], tape: ir.tape.Tape) -> ir.Value | None:
    """Adds the nodes that compute a number of a program in float64 to `tape`, and returns their output.

    None if the number is not computed with `_OPERATORS` from sizes and constants.

    Args:
        number: A node of the program, or a constant.
        values: The values of the graph, by the names of the program's nodes.
        tape: Records the new nodes.
    """
    if isinstance(number, int | float):
        return _add(tape, "Constant", [], {"value": ir.tensor(np.float64(number))}, shape=ir.Shape([]))
    if not isinstance(number, fx.Node):
        return None
    if isinstance(number.meta.get("val"), torch.SymInt):
        size = values.get(number.name)
        return None if size is None else _add(tape, "Cast", [size], {"to": ir.DataType.DOUBLE})
    kind = _OPERATORS.get(number.target)
    inputs = [_in_float64(argument, values, tape) for argument in number.args]
    return None if kind is None or None in inputs else _add(tape, kind, inputs)


def _add(
    tape: ir.tape.Tape,
    kind: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    dtype: ir.DataType = ir.DataType.DOUBLE,
    shape: ir.Shape | None = None,
) -> ir.Value:
    """Adds a node of an operator to `tape`, and returns its output; `shape` is None if it is not known."""
    return tape.op(kind, inputs, attributes, output=ir.Value(type=ir.TensorType(dtype), shape=shape))


_SHARP: Final = frozenset({"Log", "Reciprocal", "Pow", "Sqrt", "Div"})
"""Operators whose result has a large error if their operand is near 0 and has a small error."""

_PASSING: Final = frozenset(
    {"Add", "Sub", "Mul", "Neg", "Abs", "Clip", "Max", "Min", "Where", "Identity", "Cast", "Reshape", "Transpose"}
    | {"Squeeze", "Unsqueeze", "Expand", "Slice", "Gather", "Concat", "Split", "Pad", "CumSum", "MatMul", "Einsum"}
    | {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
)
"""Operators behind which a small error is still a small error, of a size that a sum of small weights may have, too."""


def with_exact_sigmoids(model: ir.Model) -> ir.Model:
    """Replaces each Sigmoid that `_SHARP` operators read by `1 / (1 + exp(-x))`, in place; returns the model.

    onnxruntime's Sigmoid has an absolute error of 1e-7, and is 0 below -18, where torch's is `exp(x)`.
    """
    for node in [node for node in model.graph if node.op_type == "Sigmoid" and _is_read_sharply(node)]:
        # The new nodes
        (sigmoid,), tape = node.outputs, ir.tape.Tape()
        dtype = sigmoid.dtype or ir.DataType.FLOAT
        one = tape.op("Constant", [], {"value": ir.tensor(np.asarray(1, dtype=dtype.numpy()))})
        power = tape.op("Exp", [tape.op("Neg", node.inputs)])
        exact = tape.op("Reciprocal", [tape.op("Add", [power, one])])
        # Each has a name, a type, and the metadata of the Sigmoid, which holds its line
        for index, new_node in enumerate(tape.nodes):
            value = new_node.outputs[0]
            value.name, value.type, value.shape = f"{sigmoid.name}_exact_{index}", sigmoid.type, sigmoid.shape
            new_node.metadata_props.update(node.metadata_props)
        one.shape = ir.Shape([])
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, [sigmoid], [exact])
    return model


def _is_read_sharply(sigmoid: ir.Node) -> bool:
    """Whether a logarithm, root or quotient (`_SHARP`) is computed of the output of a Sigmoid.

    It may be computed directly, or with `_PASSING` operators between, such as additions: the search follows the readers
    of each output.
    """
    visited: set[ir.Node] = set()
    waiting = [sigmoid]
    while waiting:
        for reader, index in [use for output in waiting.pop().outputs for use in output.uses()]:
            if reader.op_type in _SHARP and not (reader.op_type == "Div" and index == 0):  # of a Div, only the divisor
                return True
            if reader.op_type in _PASSING and reader not in visited:
                visited.add(reader)
                waiting.append(reader)
    return False
