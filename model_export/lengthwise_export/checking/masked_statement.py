"""The fix of an operator that reads padded steps: the user's own statement, rewritten so that padding takes no part.

The recording knows the shape of the operator's input and the axes that it runs along (`Operation.reduced_axes`), the
user's file has the statement. `_PASTES` has for each operator a *paste*: code that replaces it, as a `string.Template`.
The last line of a paste is an expression that stands in the place of the operator, the lines before it go in front of
the statement. For `return x.mean(1)` in a `forward(self, x, lengths)`:

    valid = torch.arange(x.size(1), device=lengths.device) < lengths[:, None]  # [rows, width], true at valid steps
    return x.masked_fill(~valid[:, :, None], 0.0).sum(1) / valid[:, :, None].sum(1)

Where the statement or the shape is not known, the rules that `causes.py` reads have an example.

In this module, `axes` are the axis of rows and the axis of steps of the operator's input.
"""

from __future__ import annotations

import ast
import copy
import linecache
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Template
from typing import TYPE_CHECKING, Final

from lengthwise_export.checking.trials import Geometry

if TYPE_CHECKING:
    from lengthwise_export.checking.recording import ArgumentNames, Operation

_FILLS: Final = {
    "zero": "0.0",
    "one": "1.0",
    "nan": "float('nan')",
    "low": "torch.$info($x.dtype).min",
    "high": "torch.$info($x.dtype).max",
}
"""The words of a paste for the input with its padded steps filled, and the value of the fill."""

_MEAN: Final = "$mean = $zero.sum($axes, keepdim=True) / $counted.sum($axes, keepdim=True)\n"
_SQUARES: Final = "(($x - $mean).masked_fill(~$mask, 0.0) ** 2)"
_INDEX: Final = (
    "$t = torch.arange($x.size($steps), device=$x.device)\n"
    "$index = torch.where($t < $lengths[:, None], {}, $t)  # each row within its own length\n"
    "$x.gather($steps, $turned.expand_as($x))"
)
NAN: Final = "NaN"  # The kind of an operator whose result is masked, and not its input: it is NaN at padding
_OF_SEQUENCE: Final = (
    "$outputs = $x\n"
    "for $layer in $func:\n"
    "    $outputs = $layer($outputs.masked_fill(~$valid[:, None, :$outputs.size(2)], 0.0))\n"
    "$outputs"
)
"""The paste for an nn.Sequential with a convolution in it."""

_PASTES: Final[tuple[tuple[str, str], ...]] = (
    # A regular expression for kinds of operators, and their paste
    (NAN, "$x.masked_fill(~$mask, 0.0)"),
    (r"adaptive_avg_pool1d", "($zero.sum($steps, keepdim=True) / $mask.sum($steps, keepdim=True))"),
    (r"(nan)?mean", "($zero.sum($rest) / $counted.sum($rest))"),
    (r"var", _MEAN + f"({_SQUARES}.sum($rest) / ($counted.sum($rest) - $less))"),
    (r"std", _MEAN + f"({_SQUARES}.sum($rest) / ($counted.sum($rest) - $less)).sqrt()"),
    (
        r"std_mean",
        _MEAN + f"(({_SQUARES}.sum($rest) / ($counted.sum($rest) - $less)).sqrt(), "
        "$zero.sum($rest) / $counted.sum($rest))",
    ),
    (
        r"var_mean",
        _MEAN + f"({_SQUARES}.sum($rest) / ($counted.sum($rest) - $less), $zero.sum($rest) / $counted.sum($rest))",
    ),
    (r"prod|all", "$one_call"),
    (r"(nan)?median", "$nan.nanmedian($rest)"),
    (r"(nan)?quantile", "$nan.nanquantile($rest)"),
    (r"a?min|argmin|softmin|sort|argsort|msort|kthvalue", "$high_call"),
    (r"(log_?)?softmax|logsumexp|(a|arg)?max|topk|adaptive_max_pool1d|max_pool1d", "$low_call"),
    (r"(nan)?sum|count_nonzero|any|(linalg_)?(vector_)?norm|normalize|conv1d", "$zero_call"),
    (r"__r?matmul__|matmul|bmm|einsum|tensordot", "$zero_call"),
    (r"flip", _INDEX.format("$lengths[:, None] - 1 - $t")),
    (r"roll", _INDEX.format("($t - $first) % $lengths[:, None]")),
    (
        r"lstm|gru|rnn_(tanh|relu)",
        "$packed = torch.nn.utils.rnn.pack_padded_sequence($x, $lengths.cpu(), batch_first=$rows_first, "
        "enforce_sorted=False)\n"
        "$packed, $state = $func($packed$more)\n"
        "$outputs = torch.nn.utils.rnn.pad_packed_sequence($packed, batch_first=$rows_first, "
        "total_length=$x.size($steps))[0]\n"
        "($outputs, $state)",
    ),
    (r"multi_head_attention_forward", "$keyed"),
    (r"scaled_dot_product_attention", "$keyed"),
    (r"__getitem__|select", "$x[$last]"),
    (
        r"instance_norm",
        _MEAN + f"$var = {_SQUARES}.sum($axes, keepdim=True) / $counted.sum($axes, keepdim=True)\n"
        "(($x - $mean) / ($var + $func.eps).sqrt())$affine",
    ),
    (
        r"group_norm",
        "$grouped = $x.unflatten(1, ($func.num_groups, -1))\n"
        "$wide = $valid[:, None, None, :].expand_as($grouped)\n"
        "$mean = $grouped.masked_fill(~$wide, 0.0).sum((2, 3), keepdim=True) / $wide.sum((2, 3), keepdim=True)\n"
        "$var = (($grouped - $mean).masked_fill(~$wide, 0.0) ** 2).sum((2, 3), keepdim=True) / "
        "$wide.sum((2, 3), keepdim=True)\n"
        "(($grouped - $mean) / ($var + $func.eps).sqrt()).flatten(1, 2)$affine",
    ),
)

_OPERATORS: Final = {
    ast.Div: "div",
    ast.Mult: "mul",
    ast.MatMult: "matmul",
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Pow: "pow",
}
"""Operators that are written as signs, by their kinds in a recording."""
_IN_CONTAINERS: Final = ("multi_head_attention_forward", "conv1d")  # Inside an encoder, or inside an nn.Sequential
_WITH_LOCAL_NAMES: Final = (ast.Lambda, ast.comprehension, ast.NamedExpr)
_SIZE: Final = re.compile(r"\.size\(|\.shape\[|\blen\(")
_OF_LENGTHS: Final = ("max", "amax", "min", "amin", "mean", "sum")  # Operators that make one number of all lengths
_DESCENDING: Final = re.compile(r"descending=True|largest=False|sort\(.*, True\)")
"""Arguments by which padding must be filled with the value of the other end."""
_OF_SEVERAL_AXES: Final = {"max": "amax", "min": "amin"}  # The functions that take several axes
_NAMES_IN_PASTES: Final = (
    "mean",
    "var",
    "packed",
    "state",
    "outputs",
    "layer",
    "t",
    "index",
    "grouped",
    "wide",
    "valid",
)
_RECURRENT: Final = ("lstm", "gru", "rnn")
_TAKES_AXES: Final = re.compile(r"(nan)?(mean|sum)|a?(max|min)|(std|var)(_mean)?|(linalg_)?(vector_)?norm|all|any")
"""Functions that take several axes and `keepdim`, and return a tensor."""


def rows_and_steps_axes(operation: Operation, batch: Geometry) -> tuple[int, int] | None:
    """The axis of rows and the axis of steps of the input of an operator that reduces one of the two.

    If it reduces the rows, the steps may be any axis; else they are among the axes that it reduces. None if the sizes
    do not tell exactly one axis of each.
    """
    rows = [axis for axis, size in enumerate(operation.input_shape) if size == batch.rows]
    reduces_rows = {*rows} & {*operation.reduced_axes}
    candidates = range(len(operation.input_shape)) if reduces_rows else operation.reduced_axes
    steps = [axis for axis in candidates if operation.input_shape[axis] in (batch.width, batch.longest)]
    return (rows[0], steps[0]) if len(rows) == len(steps) == 1 else None


@dataclass(frozen=True, slots=True)
class _Site:
    """Where an operator is in the user's file. The comments show it for `y = torch.mean(h, 1)`."""

    statement: ast.stmt  # `y = torch.mean(h, 1)`
    node: ast.expr  # The operator: `torch.mean(h, 1)`
    operand: ast.expr  # Its input: `h`
    call: ast.expr  # The node, or a copy of it that runs along other axes
    imported: set[str]  # The names that the file imports
    used_names: set[str]  # The names that the function around it has
    function: str  # The name of that function

    @property
    def callee(self) -> str:
        """The code of what is called, such as `torch.mean`; empty if the operator is not a call."""
        return ast.unparse(self.call.func) if isinstance(self.call, ast.Call) else ""

    def unused(self, name: str) -> str:
        """The name for a new variable, with `_` after it if the function has this name already."""
        return f"{name}_" if name in self.used_names else name


def possible_callees(operation: Operation, *, with_containers: bool = False) -> frozenset[str]:
    """What code may call the layer of an operator: `self.encoder.norm` or `self.norm` for `encoder.norm: layer_norm`.

    With `with_containers`, also what may call the layers around it, such as `self.encoder`. Empty for an operator
    outside a layer.
    """
    path, colon, _ = operation.operator.partition(": ")
    parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".")] if colon else []
    ends = range(1 if with_containers else len(parts), len(parts) + 1)
    return frozenset("self" + "".join(parts[begin:end]) for end in ends for begin in range(end))


def write_masked(operation: Operation, axes: tuple[int, int], names: ArgumentNames, kind: str = "") -> str | None:
    """The user's statement with an operator rewritten so that padding takes no part, and the lines before it.

    Args:
        operation: The operator.
        axes: The axis of rows and the axis of steps of its input.
        names: The names of the module's arguments.
        kind: The kind of operator whose paste is used; empty for that of the operator.

    Returns:
        The code; None if there is no paste for the operator, or the statement cannot be read or rewritten.
    """
    # 1. The paste, and the statement
    paste = next((paste for kinds, paste in _PASTES if re.fullmatch(kinds, kind or operation.kind)), None)
    site = _site_of(operation) if paste is not None else None
    if paste is None or site is None:
        return None
    # 2. A convolution in an nn.Sequential: the statement calls the container, or the variable of a loop over several
    container = r"self\..*" if re.search(r"\d\.\d+:", operation.operator) is None else r"self\..*|\w+"
    calls_container = re.fullmatch(container, site.callee) and site.callee not in possible_callees(operation)
    if operation.kind == "conv1d" and calls_container:
        paste = _OF_SEQUENCE
    # 3. An operator that runs along the rows too: along the steps of each row alone
    if axes[0] in operation.reduced_axes and not operation.kind.startswith(_RECURRENT):
        if (call := _call_along_steps(site, operation, *axes)) is None:
            return None
        reduced = operation.reduced_axes if len(operation.reduced_axes) > 1 else axes[1:]
        operation = replace(operation, reduced_axes=tuple(axis for axis in reduced if axis != axes[0]))
        site = replace(site, call=call)
    # 4. The paste with the names of its variables, `x` for the operator's input, and with code for its other words
    operand = ast.unparse(site.node if kind == NAN else site.operand)
    x = operand if isinstance(site.operand, ast.Name) and kind != NAN else site.unused("inputs")
    lengths = names.lengths_or_mask if names.role == "lengths" else site.unused("lengths")
    code_of_input = {"x": x, "lengths": lengths, "operand": operand, "width": f"{x}.size({axes[1]})"}
    variables = {name: site.unused(name) for name in _NAMES_IN_PASTES} | code_of_input
    code = Template(paste).safe_substitute(variables | _substitutes(operation, axes, site, variables))
    *lines, expression = code.split("\n")
    if "$" in code:  # a word that has no code for this call
        return None
    # 5. The lines that define what it uses, and the statement with it in the place of the operator
    definitions = _definitions(site, names, variables, {*re.findall(r"\w+", code)})
    return "\n".join([*definitions, *lines, _with_code(site.statement, site.node, expression)])


def write_lengths(
    operation: Operation, batch: Geometry, names: ArgumentNames, operations: Sequence[Operation]
) -> str | None:
    """The user's statement, changed so that each row is divided by its own length; with the lines that it needs before.

    Two kinds of statements use one number for all rows:

    - Divided by the width, as in `h.sum(1) / h.size(1)`: the divisor becomes `lengths[:, None]`.
    - A number made of all lengths, as in `lengths.max()`: the call becomes the lengths themselves.

    `operations` are those of the run. None if the statement cannot be read, or is of neither kind.
    """
    site = _site_of(operation) if batch.rows in operation.input_shape else None
    if site is None:
        return None
    lengths = names.lengths_or_mask if names.role == "lengths" else site.unused("lengths")
    replaced, code, shape = site.node, lengths, operation.input_shape
    if isinstance(replaced, ast.BinOp) and _SIZE.search(ast.unparse(replaced.right)):
        replaced = replaced.right
    elif shape == (batch.rows,) and operation.kind in _OF_LENGTHS and isinstance(replaced, ast.Call):
        code, shape = ast.unparse(site.operand), _shape_of_users(operation, operations)
    else:
        return None
    if batch.rows not in shape:
        return None
    # `[:, None]`, so that the lengths broadcast to the tensor
    index = [":" if size == batch.rows else "None" for size in shape]
    code = f"{code}[{', '.join(index)}]" if len(index) > 1 else code
    variables = {"x": "", "operand": "", "valid": "valid", "lengths": lengths, "width": names.width}
    return "\n".join([*_definitions(site, names, variables, {lengths}), _with_code(site.statement, replaced, code)])


def _shape_of_users(number: Operation, operations: Sequence[Operation]) -> tuple[int, ...]:
    """The shape of what is computed with a number of all lengths; empty if there is none, or one of another rank."""
    keys, shapes = number.output_keys, []
    for operation in (operation for operation in operations if operation.input_keys & keys):
        shape = operation.outputs[0][1].shape if operation.outputs else ()
        if shape:
            shapes.append(shape)
        else:  # such as `number.float()`
            keys |= operation.output_keys
    return shapes[0] if len({len(shape) for shape in shapes}) == 1 else ()


def _definitions(
    site: _Site, names: ArgumentNames, variables: Mapping[str, str], used_names: set[str]
) -> Iterator[str]:
    """Yields the first lines of a fix: they define the input, the mask and the lengths, where the fix uses them.

    `variables` has the names in the fix: `x` is that of the operator's input, `operand` the user's code for it, `width`
    code for its number of steps; `valid` and `lengths` are those of the mask and the lengths.
    """
    if names.lengths_or_mask not in site.used_names:
        to_add = "add this argument to the model's forward" if names.is_to_add else ""
        to_pass = "" if to_add and site.function == "forward" else f"pass this argument of the model to {site.function}"
        yield f"# {names.lengths_or_mask}: {'; '.join(filter(None, (to_add, to_pass)))}"
    if "torch" not in site.imported:
        yield "import torch"
    if variables["x"] != variables["operand"]:
        yield f"{variables['x']} = {variables['operand']}"
    if variables["valid"] in used_names:
        mask = replace(names, width=variables["width"]).valid
        # The argument may be a mask that is wider than the tensor here.
        cut = "" if names.role == "lengths" else f"[:, :{variables['width']}]"
        yield f"{variables['valid']} = {mask}{cut}  # [rows, width], true at valid steps"
    if names.role != "lengths" and variables["lengths"] in used_names:
        mask = names.lengths_or_mask if names.role == "mask" else f"({names.valid})"
        yield f"{variables['lengths']} = {mask}.sum(1)"


def _substitutes(
    operation: Operation, axes: tuple[int, int], site: _Site, variables: Mapping[str, str]
) -> dict[str, str]:
    """The code for those words of a paste that depend on the call and on its axes; the comments say what each means.

    `variables` has the names for the other words, such as `x` and `lengths`. Words that the call has no code for are
    left out:

    - `keyed` of an attention to which no mask can be added.
    - `nan` of integers, and `low` and `high` of booleans too.
    - `turned`, the variable `index` in a form that broadcasts to the input, along several axes.
    - `func`, the layer that is called, of a function.
    - `more`, the arguments after the input, of a recurrent layer over the rows: its state has the width for rows.
    """
    x, callee = variables["x"], site.callee
    dimensions = len(operation.input_shape)
    mask = _broadcast_mask(variables["valid"], axes, dimensions)
    arguments = _arguments_after_input(site.call, site.operand)
    of_variance = _correction(operation, arguments)
    correction = "1" if of_variance is None else ast.unparse(_value(of_variance))
    shown_arguments = [ast.unparse(argument) for argument in arguments if argument is not of_variance]
    attention = _attention_with_mask(operation, site, variables["valid"])
    # The last valid step of each row, as an index
    index = [":"] * dimensions
    index[axes[0]] = f"torch.arange(len({variables['lengths']}), device={variables['lengths']}.device)"
    index[axes[1]] = f"{variables['lengths']} - 1"
    reduced = operation.reduced_axes
    shift = next((_value(word) for word in arguments if getattr(word, "arg", "shifts") == "shifts"), None)
    # A function such as `F.instance_norm` has no settings, as a layer has; a layer may have its name
    is_function = callee.rpartition(".")[2] == operation.kind and callee not in possible_callees(operation)
    return (
        _filled(operation, site, x, mask)
        | ({} if attention is None else {"keyed": attention})
        | ({"turned": _broadcast_mask(variables["index"], axes, dimensions)} if len(reduced) == 1 else {})
        | ({} if is_function else {"func": callee})
        | ({} if shown_arguments and axes[0] in reduced else {"more": "".join(f", {word}" for word in shown_arguments)})
        | {
            # The mask of valid steps that broadcasts to the input
            "mask": mask,
            # The arguments after the input: as the whole list, and that of a shift
            "rest": ", ".join(shown_arguments),
            "first": "" if shift is None else ast.unparse(getattr(shift, "elts", [shift])[0]),
            # Of a variance: what is subtracted from the number of values
            "less": {"False": "0", "True": "1"}.get(correction, correction),
            # The axes that the operator runs along, and that of the steps
            "axes": str(reduced[0] if len(reduced) == 1 else reduced),
            "steps": str(axes[1]),
            # A mask whose sum along the axes is the number of values
            "counted": mask if len(reduced) == 1 else f"{mask}.expand_as({x})",
            # For a recurrent layer: whether the rows come before the steps
            "rows_first": str(axes[0] < axes[1]),
            # The scale and shift of a layer that has them
            "affine": f" * {callee}.weight[:, None] + {callee}.bias[:, None]" if len(operation.input_keys) > 1 else "",
            "last": ", ".join(index[: max(axes) + 1]),
        }
    )


def _correction(operation: Operation, arguments: Sequence[ast.expr | ast.keyword]) -> ast.expr | ast.keyword | None:
    """The argument of a variance that says what is subtracted from the number of values; None if it has none."""
    for index, argument in enumerate(arguments):
        is_second = index == 1 and operation.kind.startswith(("std", "var")) and isinstance(argument, ast.Constant)
        if is_second or getattr(argument, "arg", None) in ("unbiased", "correction"):
            return argument
    return None


def _filled(operation: Operation, site: _Site, x: str, mask: str) -> dict[str, str]:
    """The words `zero`, `low`, ...: the input `x` with its padding filled; `zero_call`, ...: the call with it.

    Left out are those that an input of this type has no value for.
    """
    info = {"bool": ""}.get(operation.input_type, "iinfo" if "int" in operation.input_type else "finfo")
    filled = {
        name: f"{x}.masked_fill(~{mask}, {Template(fill).substitute(x=x, info=info)})"
        for name, fill in _FILLS.items()
        if (info or "$info" not in fill) and (info == "finfo" or name != "nan")
    }
    calls = {f"{name}_call": _with_code(site.call, site.operand, code) for name, code in filled.items()}
    if _DESCENDING.search(ast.unparse(site.call)):
        calls["low_call"], calls["high_call"] = calls["high_call"], calls["low_call"]
    return filled | calls


def _attention_with_mask(operation: Operation, site: _Site, valid: str) -> str | None:
    """The code of a call of attention with a mask of padding added; `valid` is the name of the mask of valid steps.

    None if the operator is not written as a call, if the call has a mask, which may be causal, or if it is that of a
    decoder, which takes two masks.
    """
    if not isinstance(site.call, ast.Call):
        return None
    argument, mask = "key_padding_mask", f"~{valid}"
    keywords = {keyword.arg for keyword in site.call.keywords}
    if operation.kind == "scaled_dot_product_attention":
        argument, mask = "attn_mask", f"{valid}[:, {'None, ' * (len(operation.input_shape) - 2)}:]"
        if len(site.call.args) > 3 or {"attn_mask", "is_causal"} & keywords:
            return None
    elif site.callee not in possible_callees(operation):  # the statement calls what is around the attention
        # With two arguments it may be a decoder, whose second one is the memory
        if "multihead_attn" in operation.operator or "memory" in keywords or len(site.call.args) == 2:
            return None
        argument = "src_key_padding_mask" if "self_attn" in operation.operator else argument
    call = copy.copy(site.call)
    value = ast.parse(mask, mode="eval").body
    call.keywords = [*(word for word in call.keywords if word.arg != argument), ast.keyword(argument, value)]
    return ast.unparse(call)


def _call_along_steps(site: _Site, operation: Operation, row_axis: int, step_axis: int) -> ast.Call | None:
    """A copy of a call that runs along the rows, changed to run along the steps of each row; None if it cannot.

    A softmax or a normalization runs along the steps only. What reduces all axes keeps the rows, with `keepdim`.
    """
    if not isinstance(site.node, ast.Call):
        return None
    # The operand itself stays, and is not copied, so that it can be found in the copy.
    call = copy.deepcopy(site.node, {id(site.operand): site.operand})
    arguments = _arguments_after_input(call, site.operand)
    call.args = [argument for argument in call.args if argument is site.operand]
    call.keywords = [ast.keyword("dim", ast.Constant(step_axis))]
    if re.fullmatch(r"(log_?)?softm(ax|in)|normalize", operation.kind) and len(arguments) == 1:
        return call
    has_rest = len(operation.reduced_axes) < len(operation.input_shape)
    if arguments or has_rest or not _TAKES_AXES.fullmatch(operation.kind):
        return None
    other_axes = [axis for axis in range(len(operation.input_shape)) if axis != row_axis]
    call.keywords = [
        ast.keyword("dim", ast.parse(str(tuple(other_axes)), mode="eval").body),
        ast.keyword("keepdim", ast.Constant(True)),
    ]
    if isinstance(call.func, ast.Attribute):
        call.func.attr = _OF_SEVERAL_AXES.get(call.func.attr, call.func.attr)
    return call


def _arguments_after_input(node: ast.expr, operand: ast.expr) -> list[ast.expr | ast.keyword]:
    """The arguments of a call without its input; empty if the node is not a call."""
    arguments: list[ast.expr | ast.keyword] = [*node.args, *node.keywords] if isinstance(node, ast.Call) else []
    return [argument for argument in arguments if _value(argument) is not operand]


def _value(argument: ast.expr | ast.keyword) -> ast.expr:
    return argument.value if isinstance(argument, ast.keyword) else argument


def _with_code(tree: ast.AST, node: ast.expr, code: str) -> str:
    """The source of a tree in which `code` replaces one node."""
    return ast.unparse(copy.deepcopy(tree, {id(node): ast.parse(code, mode="eval").body}))


def _broadcast_mask(mask: str, axes: tuple[int, int], dimensions: int) -> str:
    """Code for a mask `[rows, width]` that broadcasts to a tensor with more axes, such as `valid[:, :, None]`."""
    turned = f"{mask}.T" if axes[0] > axes[1] else mask
    index = ", ".join(":" if axis in axes else "None" for axis in range(dimensions))
    return turned if dimensions == len(axes) else f"{turned}[{index}]"


def _site_of(operation: Operation) -> _Site | None:
    """Where an operator is in the user's file.

    None if the file cannot be read, or if its line is not a simple statement with this operator.
    """
    location = operation.location
    if location is None:
        return None
    try:
        nodes = [*ast.walk(ast.parse("".join(linecache.getlines(location.file))))]
    except (SyntaxError, ValueError):
        return None
    # 1. The statements that contain the line, the innermost last, and the nodes of that one
    statements = [
        node for node in nodes if isinstance(node, ast.stmt) and node.lineno <= location.line <= (node.end_lineno or 0)
    ]
    if not statements:
        return None
    statement = statements[-1]
    inner = [*ast.walk(statement)]
    # What a block, a comprehension or a lambda names is not known in the lines before it.
    if any(isinstance(node, _WITH_LOCAL_NAMES) or isinstance(getattr(node, "body", None), list) for node in inner):
        return None
    # 2. The names that the file imports, that the function around the line uses, and of loops around it
    imported = {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    in_functions = (node for outer in statements if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer))
    used_names = {node.id if isinstance(node, ast.Name) else getattr(node, "arg", "") for node in in_functions}
    loop_variables = {
        loop.target.id for loop in statements if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name)
    }
    # 3. The nodes that may be the operator
    sites = [
        _Site(statement, node, operand, node, imported, used_names, location.function)
        for node, operand in _operator_nodes(inner, operation, imported, loop_variables)
    ]
    # In the order in which they run: of several equal operators, that of this occurrence, if all of them run.
    sites.sort(key=lambda site: (site.node.end_lineno or 0, site.node.end_col_offset or 0))
    is_any_left_out = len(sites) > 1 and any(isinstance(node, (ast.IfExp, ast.BoolOp)) for node in inner)
    return sites[operation.occurrence % len(sites)] if sites and not is_any_left_out else None


def _operator_nodes(
    nodes: Sequence[ast.AST], operation: Operation, imported: set[str], loop_variables: set[str]
) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yields the nodes that may be an operator, each with its input.

    Such are `h @ w`, `h[:, -1]`, `h.mean(1)`, `torch.mean(h, 1)`, `nn.Softmax(dim=1)(h)`, and `self.mean(h)`, which
    calls its layer; for each of them the input is `h`. Of an attention it is the keys.

    Args:
        nodes: The nodes of a statement.
        operation: The operator.
        imported: The names that the file imports: the first part of the path of a function is one of them.
        loop_variables: The variables of loops around the statement, which may be layers.
    """
    kind = operation.kind
    is_in_library = operation.location is not None and operation.location.inside is not None
    layers = possible_callees(operation, with_containers=kind in _IN_CONTAINERS)
    layers |= loop_variables if ": " in operation.operator else set()
    for node in nodes:
        if isinstance(node, ast.BinOp) and _OPERATORS.get(type(node.op)) == kind:
            yield node, node.left
        elif isinstance(node, ast.Subscript) and kind == "__getitem__" and "-" in ast.unparse(node.slice):
            yield node, node.value
        elif isinstance(node, ast.Call):
            callee = ast.unparse(node.func)
            path, _, name = callee.rpartition(".")
            has_name = name == kind.removeprefix("linalg_")
            is_function = not path or ("(" not in path and path.split(".")[0] in imported)
            arguments = [*node.args, *(word.value for word in node.keywords if word.arg in ("input", "query", "key"))]
            tensors = [argument for argument in arguments if not isinstance(argument, ast.Constant)]
            if isinstance(node.func, ast.Call):  # nn.Softmax(dim=1)(h)
                name = ast.unparse(node.func.func).rpartition(".")[2]
                has_name = is_function = name.lower() == kind.replace("_", "")
            if isinstance(node.func, ast.Attribute) and has_name and path != "self" and not is_function:
                yield node, node.func.value  # h.mean(1)
            elif tensors and ((callee in layers and not is_in_library) or (has_name and is_function)):
                yield node, tensors[1 if "attention" in kind and len(tensors) > 2 else 0]
