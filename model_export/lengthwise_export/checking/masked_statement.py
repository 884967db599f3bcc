"""The fix of an operator that reads padded steps: the user's own statement, rewritten so that padding takes no part.

The recording knows the shape of the operator's input and the axes that it runs along, the user's file the statement.
`_PASTES` says for each operator what stands in its place. Where the statement or the shape is not known, the table in
`causes.py` has an example.
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
    from lengthwise_export.checking.causes import ArgumentNames
    from lengthwise_export.checking.recording import Operation

_FILLS: Final = {
    "zero": "0.0",
    "one": "1.0",
    "nan": "float('nan')",
    "low": "torch.finfo($x.dtype).min",
    "high": "torch.finfo($x.dtype).max",
}
"""What padded steps of the input are filled with."""

_MEAN: Final = "$mean = $zero.sum($axes, keepdim=True) / $counted.sum($axes, keepdim=True)\n"
_SQUARES: Final = "(($x - $mean).masked_fill(~$mask, 0.0) ** 2)"
_INDEX: Final = (
    "$t = torch.arange($x.size($steps), device=$x.device)\n"
    "$index = torch.where($t < $lengths[:, None], {}, $t)  # each row within its own length\n"
    "$x.gather($steps, $turned.expand_as($x))"
)
NAN: Final = "NaN"  # In the place of an operator: its result, which is NaN at padding, is to be masked
_OF_SEQUENCE: Final = (
    "$outputs = $x\n"
    "for $layer in $func:\n"
    "    $outputs = $layer($outputs.masked_fill(~$valid[:, None, :$outputs.size(2)], 0.0))\n"
    "$outputs"
)
"""What stands in the place of an nn.Sequential with a convolution in it."""

_PASTES: Final[tuple[tuple[str, str], ...]] = (
    # The operators; lines in front of the statement, and what stands in it in the place of the operator
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
_IN_OTHERS: Final = ("multi_head_attention_forward", "conv1d")  # These are in an encoder, or in an nn.Sequential
_NOT_BEFORE: Final = (ast.Lambda, ast.comprehension, ast.NamedExpr)
_SIZE: Final = re.compile(r"\.size\(|\.shape\[|\blen\(")
_OF_LENGTHS: Final = ("max", "amax", "min", "amin", "mean", "sum")
_OTHER_END: Final = re.compile(r"descending=True|largest=False|sort\(.*, True\)")
_OF_ALL: Final = {"max": "amax", "min": "amin"}  # What takes several axes
_OWN_NAMES: Final = ("mean", "var", "packed", "state", "outputs", "layer", "t", "index", "grouped", "wide", "valid")
_RECURRENT: Final = ("lstm", "gru", "rnn")


def axes_of_steps(at: Operation, batch: Geometry) -> tuple[int, int] | None:
    """The axes of rows and steps of a tensor whose steps an operator runs along; None if its sizes do not tell."""
    rows = [axis for axis, size in enumerate(at.shape) if size == batch.rows]
    among = range(len(at.shape)) if {*rows} & {*at.reduced} else at.reduced
    steps = [axis for axis in among if at.shape[axis] in (batch.width, batch.longest)]
    return (rows[0], steps[0]) if len(rows) == len(steps) == 1 else None


@dataclass(frozen=True, slots=True)
class _Site:
    """An operator in the user's file."""

    statement: ast.stmt
    node: ast.expr
    operand: ast.expr  # Its input
    call: ast.expr  # The node, or the same along other axes
    imported: set[str]
    taken: set[str]  # The names that the function has
    function: str

    @property
    def called(self) -> str:
        """What is called; empty for no call."""
        return ast.unparse(self.call.func) if isinstance(self.call, ast.Call) else ""

    def free(self, name: str) -> str:
        """The name, with `_` where the function has one like it."""
        return f"{name}_" if name in self.taken else name


def called_as(at: Operation, *, around: bool = False) -> frozenset[str]:
    """What code may call the layer of an operator; `around`, also the layers that it is in."""
    path, colon, _ = at.operator.partition(": ")
    parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".")]
    ends = range(1 if around else len(parts), len(parts) + 1)
    return frozenset("self" + "".join(parts[begin:end]) for end in ends for begin in range(end) if colon)


def write_masked(at: Operation, axes: tuple[int, int], names: ArgumentNames, kind: str = "") -> str | None:
    """Lines, and the statement with an operator rewritten; None if it is not such an operator or statement."""
    paste = next((paste for kinds, paste in _PASTES if re.fullmatch(kinds, kind or at.kind)), None)
    site = _site(at) if paste is not None else None
    if paste is None or site is None:
        return None
    in_sequence = r"self\..*" if re.search(r"\d\.\d+:", at.operator) is None else r"self\..*|\w+"  # or one of a list
    if at.kind == "conv1d" and re.fullmatch(in_sequence, site.called) and site.called not in called_as(at):
        paste = _OF_SEQUENCE
    if axes[0] in at.reduced and not at.kind.startswith(_RECURRENT):
        if (call := _along_steps(site, at, *axes)) is None:
            return None
        along = at.reduced if len(at.reduced) > 1 else axes[1:]
        at, site = replace(at, reduced=tuple(axis for axis in along if axis != axes[0])), replace(site, call=call)
    operand = ast.unparse(site.node if kind == NAN else site.operand)
    name = operand if isinstance(site.operand, ast.Name) and kind != NAN else site.free("inputs")
    lengths = names.second if names.role == "lengths" else site.free("lengths")
    words = {own: site.free(own) for own in _OWN_NAMES} | {"x": name, "lengths": lengths}
    *lines, changed = Template(paste).safe_substitute(words | _words(at, axes, site, words)).split("\n")
    if "$" in changed:
        return None
    words |= {"operand": operand, "width": f"{name}.size({axes[1]})"}
    front = _front(site, names, words, {*re.findall(r"\w+", "\n".join([*lines, changed]))})
    return "\n".join([*front, *lines, _swapped(site.statement, site.node, changed)])


def write_lengths(at: Operation, batch: Geometry, names: ArgumentNames) -> str | None:
    """The statement with each row's length instead of the width, or of one number for all; None without either."""
    site = _site(at) if batch.rows in at.shape else None
    if site is None:
        return None
    node = site.node
    if isinstance(node, ast.BinOp) and _SIZE.search(ast.unparse(node.right)):
        node = node.right
    elif not isinstance(node, ast.Call) or at.shape != (batch.rows,) or at.kind not in _OF_LENGTHS:
        return None
    lengths = names.second if names.role == "lengths" else site.free("lengths")
    places = [":" if size == batch.rows else "None" for size in at.shape]
    index = f"[{', '.join(places)}]" if len(places) > 1 else ""
    # A number of all lengths divides what has an axis of features, nearly always
    own = f"{lengths}{index}" if node is not site.node else f"{ast.unparse(site.operand)}[:, None]"
    words = {"x": "", "operand": "", "valid": "valid", "lengths": lengths, "width": names.width}
    return "\n".join([*_front(site, names, words, {lengths}), _swapped(site.statement, node, own)])


def _front(site: _Site, names: ArgumentNames, words: Mapping[str, str], used: set[str]) -> Iterator[str]:
    """The lines before the fix: they define the names in `used`, among them the mask and the lengths.

    `words` are the names by what they stand for; `names.second` is the model's argument of lengths or of a mask.
    """
    if names.second not in site.taken:
        yield f"# {names.second}: pass this argument of the model to {site.function}"
    if "torch" not in site.imported:
        yield "import torch"
    if words["x"] != words["operand"]:
        yield f"{words['x']} = {words['operand']}"
    if words["valid"] in used:
        mask = replace(names, width=words["width"]).valid
        # The argument may be a mask that is wider than the tensor here.
        cut = "" if names.role == "lengths" else f"[:, :{words['width']}]"
        yield f"{words['valid']} = {mask}{cut}  # [rows, width], true at valid steps"
    if names.role != "lengths" and words["lengths"] in used:
        yield f"{words['lengths']} = {names.second if names.role == 'mask' else f'({names.valid})'}.sum(1)"


def _words(at: Operation, axes: tuple[int, int], site: _Site, own: Mapping[str, str]) -> dict[str, str]:
    """Code for the words of a paste that depend on the call, and on the axes."""
    x, func = own["x"], site.called
    mask = _broadcast(own["valid"], axes, len(at.shape))
    rest = _rest(site.call, site.operand)
    corrected = [one for one in rest if isinstance(one, ast.keyword) and one.arg in ("unbiased", "correction")]
    arguments = [ast.unparse(one) for one in rest if one not in corrected]
    words = {name: f"{x}.masked_fill(~{mask}, {fill.replace('$x', x)})" for name, fill in _FILLS.items()}
    words |= {f"{name}_call": _swapped(site.call, site.operand, masked) for name, masked in words.items()}
    if _OTHER_END.search(ast.unparse(site.call)):
        words["low_call"], words["high_call"] = words["high_call"], words["low_call"]
    if (keyed := _keyed(at, site, own["valid"])) is not None:
        words["keyed"] = keyed
    index = [":"] * len(at.shape)
    index[axes[0]] = f"torch.arange(len({own['lengths']}), device={own['lengths']}.device)"
    index[axes[1]] = f"{own['lengths']} - 1"
    return words | {
        "mask": mask,
        "rest": ", ".join(arguments),
        "more": "".join(f", {one}" for one in arguments),
        "first": "".join(ast.unparse(_value(one)) for one in rest[:1]),
        "less": "0" if any(ast.unparse(one.value) in ("False", "0") for one in corrected) else "1",
        "axes": str(at.reduced[0] if len(at.reduced) == 1 else at.reduced),
        "steps": str(axes[1]),
        "counted": mask if len(at.reduced) == 1 else f"{mask}.expand_as({x})",
        "turned": _broadcast(own["index"], axes, len(at.shape)),
        "rows_first": str(axes[0] < axes[1]),
        "func": func,
        "affine": f" * {func}.weight[:, None] + {func}.bias[:, None]" if len(at.inputs) > 1 else "",
        "last": ", ".join(index[: max(axes) + 1]),
    }


def _keyed(at: Operation, site: _Site, valid: str) -> str | None:
    """An attention with a mask of padding; None for another call, or one that has a mask which may be causal."""
    if not isinstance(site.call, ast.Call):
        return None
    key, mask = "key_padding_mask", f"~{valid}"
    if at.kind == "scaled_dot_product_attention":
        key, mask = "attn_mask", f"{valid}[:, {'None, ' * (len(at.shape) - 2)}:]"
        if len(site.call.args) > 3 or {"attn_mask", "is_causal"} & {one.arg for one in site.call.keywords}:
            return None
    elif site.called not in called_as(at) and "self_attn" in at.operator:  # one of an encoder
        key = "src_key_padding_mask"
    call = copy.copy(site.call)
    value = ast.parse(mask, mode="eval").body
    call.keywords = [*(one for one in call.keywords if one.arg != key), ast.keyword(key, value)]
    return ast.unparse(call)


def _along_steps(site: _Site, at: Operation, rows: int, steps: int) -> ast.Call | None:
    """A call that runs over the rows too, along each row alone; None for one that cannot."""
    if not isinstance(site.node, ast.Call):
        return None
    call = copy.deepcopy(site.node, {id(site.operand): site.operand})
    rest = _rest(call, site.operand)
    call.args = [one for one in call.args if one is site.operand]
    call.keywords = [ast.keyword("dim", ast.Constant(steps))]
    if re.fullmatch(r"(log_?)?softm(ax|in)|normalize", at.kind) and len(rest) == 1:
        return call
    if rest or len(at.reduced) < len(at.shape):
        return None
    others = [axis for axis in range(len(at.shape)) if axis != rows]
    call.keywords = [
        ast.keyword("dim", ast.parse(str(tuple(others)), mode="eval").body),
        ast.keyword("keepdim", ast.Constant(True)),
    ]
    if isinstance(call.func, ast.Attribute):
        call.func.attr = _OF_ALL.get(call.func.attr, call.func.attr)
    return call


def _rest(node: ast.expr, operand: ast.expr) -> list[ast.expr | ast.keyword]:
    """The arguments of a call besides its input."""
    arguments: list[ast.expr | ast.keyword] = [*node.args, *node.keywords] if isinstance(node, ast.Call) else []
    return [one for one in arguments if _value(one) is not operand]


def _value(argument: ast.expr | ast.keyword) -> ast.expr:
    return argument.value if isinstance(argument, ast.keyword) else argument


def _swapped(tree: ast.AST, node: ast.expr, code: str) -> str:
    """Code of a tree with other code for one of its nodes."""
    return ast.unparse(copy.deepcopy(tree, {id(node): ast.parse(code, mode="eval").body}))


def _broadcast(valid: str, axes: tuple[int, int], dimensions: int) -> str:
    """Code for a mask `[rows, width]` with as many axes as a tensor has."""
    turned = f"{valid}.T" if axes[0] > axes[1] else valid
    index = ", ".join(":" if axis in axes else "None" for axis in range(dimensions))
    return turned if dimensions == len(axes) else f"{turned}[{index}]"


def _site(at: Operation) -> _Site | None:
    """Where an operator is in the user's file; None if that cannot be read, or is not one call in a statement."""
    location = at.location
    if location is None:
        return None
    try:
        nodes = [*ast.walk(ast.parse("".join(linecache.getlines(location.file))))]
    except (SyntaxError, ValueError):
        return None
    around = [
        one for one in nodes if isinstance(one, ast.stmt) and one.lineno <= location.line <= (one.end_lineno or 0)
    ]
    inner = [*ast.walk(around[-1])] if around else []
    # What a block, a comprehension or a lambda names is not known before it
    if any(isinstance(node, _NOT_BEFORE) or isinstance(getattr(node, "body", None), list) for node in inner):
        return None
    imported = {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    inside = (node for one in around if isinstance(one, ast.FunctionDef) for node in ast.walk(one))
    taken = {node.id if isinstance(node, ast.Name) else getattr(node, "arg", "") for node in inside}
    loops = {one.target.id for one in around if isinstance(one, ast.For) and isinstance(one.target, ast.Name)}
    more = (imported, taken, location.function)
    sites = [_Site(around[-1], node, operand, node, *more) for node, operand in _nodes(inner, at, imported, loops)]
    # In the order in which they run
    sites.sort(key=lambda site: (site.node.end_lineno or 0, site.node.end_col_offset or 0))
    return sites[at.occurrence % len(sites)] if sites else None


def _nodes(
    nodes: Sequence[ast.AST], at: Operation, imported: set[str], loops: set[str]
) -> Iterator[tuple[ast.expr, ast.expr]]:
    """The nodes that are an operator, with its input: `h.mean(1)`, `torch.mean(h, 1)`, `self.mean(h)` or `h[:, -1]`."""
    kind, in_library = at.kind, at.location is not None and at.location.inside is not None
    layers = (
        frozenset()
        if in_library
        else called_as(at, around=kind in _IN_OTHERS) | (loops if ": " in at.operator else set())
    )
    for node in nodes:
        if isinstance(node, ast.BinOp) and _OPERATORS.get(type(node.op)) == kind:
            yield node, node.left
        elif isinstance(node, ast.Subscript) and kind == "__getitem__" and "-" in ast.unparse(node.slice):
            yield node, node.value
        elif isinstance(node, ast.Call):
            func = ast.unparse(node.func)
            path, _, name = func.rpartition(".")
            is_own = name == kind.removeprefix("linalg_")
            is_module = not path or ("(" not in path and path.split(".")[0] in imported)
            arguments = [*node.args, *(word.value for word in node.keywords if word.arg in ("input", "query", "key"))]
            tensors = [one for one in arguments if not isinstance(one, ast.Constant)]
            if isinstance(node.func, ast.Call):  # nn.Softmax(dim=1)(h)
                name = ast.unparse(node.func.func).rpartition(".")[2]
                is_own = is_module = name.lower() == kind.replace("_", "")
            if isinstance(node.func, ast.Attribute) and is_own and path != "self" and not is_module:
                yield node, node.func.value
            elif tensors and (func in layers or (is_own and is_module)):
                yield node, tensors[1 if "attention" in kind and len(tensors) > 2 else 0]  # its keys
