"""The fix of an operator that reads padded steps: the user's own statement, with the operator's input masked.

The recording knows the shape of that input and the axes that are reduced, the user's file the statement. Where either
is not known, the table in `causes.py` has an example, with a comment that names its shape.
"""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lengthwise_export.checking.trials import Geometry

if TYPE_CHECKING:
    from lengthwise_export.checking.causes import ArgumentNames
    from lengthwise_export.checking.recording import Operation

_MEANS: Final = ("mean", "adaptive_avg_pool1d")
_SUMS: Final = (*_MEANS, "sum", "nansum", "count_nonzero")
_COMPARES: Final = re.compile(r"(log_?)?soft(max|min)|logsumexp|(a|arg)?(max|min)|adaptive_max_pool1d")


def axes_of_steps(at: Operation, batch: Geometry) -> tuple[int, int] | None:
    """The axes of rows and steps of a tensor whose steps are reduced, row by row; None if its sizes do not tell."""
    rows = [axis for axis, size in enumerate(at.shape) if size == batch.rows]
    steps = [axis for axis in at.reduced if at.shape[axis] in (batch.width, batch.longest)]
    return (rows[0], steps[0]) if len(rows) == len(steps) == 1 and rows[0] not in at.reduced else None


def write_masked(at: Operation, axes: tuple[int, int], names: ArgumentNames, layer: str) -> str | None:
    """A mask, and the statement with the input of an operator masked; None if it is not such an operator or call."""
    kind, place = at.kind, at.location
    if place is None or not (kind in _SUMS or _COMPARES.fullmatch(kind)):
        return None
    try:
        nodes = [*ast.walk(ast.parse("".join(linecache.getlines(place.file))))]
    except (SyntaxError, ValueError):
        return None
    around = [one for one in nodes if isinstance(one, ast.stmt) and one.lineno <= place.line <= (one.end_lineno or 0)]
    imported = {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    calls = [*_calls(around[-1], kind, "" if place.inside else layer, imported)] if around else []
    if len(calls) != 1:
        return None
    call, operand = calls[0]
    inside = (node for one in around if isinstance(one, ast.FunctionDef) for node in ast.walk(one))
    taken = {node.id if isinstance(node, ast.Name) else getattr(node, "arg", None) for node in inside}
    valid = "valid" + "_" * ("valid" in taken)
    name = operand.id if isinstance(operand, ast.Name) else "inputs" + "_" * ("inputs" in taken)
    width = f"{name}.size({axes[1]})"
    own = replace(names, width=width).valid + f"[:, :{width}]" * (names.role != "lengths")
    index = ", ".join(":" if axis in axes else "None" for axis in range(len(at.shape)))
    mask = valid + ".T" * (axes[0] > axes[1]) + f"[{index}]" * (len(at.shape) > 2)
    fill = "0.0" if kind in _SUMS else f"torch.finfo({name}.dtype).{'max' if 'min' in kind else 'min'}"
    masked = f"{name}.masked_fill(~{mask}, {fill})"
    given = ", ".join(ast.unparse(one) for one in (*call.args, *call.keywords) if one is not operand)
    if kind in _MEANS:
        reduced = given if kind == "mean" else f"{axes[1]}, keepdim=True"
        new = f"({masked}.sum({reduced}) / {mask}{f'.expand_as({name})' * (len(at.reduced) > 1)}.sum({reduced}))"
    else:
        new = f"{ast.unparse(call.func)}({masked}, {given})" if operand in call.args else f"{masked}.{kind}({given})"
    lines = (
        "import torch" * ("torch" not in imported),
        f"# {names.second}: pass this argument of the model to {place.function}" * (names.second not in taken),
        f"{name} = {ast.unparse(operand)}" * (not isinstance(operand, ast.Name)),
        f"{valid} = {own}  # [rows, width], true at valid steps",
        ast.unparse(ast.parse(ast.unparse(around[-1]).replace(ast.unparse(call), new))),  # drops needless parentheses
    )
    return "\n".join(filter(None, lines))


def _calls(statement: ast.stmt, kind: str, layer: str, imported: set[str]) -> Iterator[tuple[ast.Call, ast.expr]]:
    """The calls of an operator with their inputs: `h.mean(1)`, `torch.mean(h, 1)` or `self.mean(h)`."""
    nodes = [*ast.walk(statement)]
    # What a block, a comprehension or a lambda names is not known before it
    if any(hasattr(node, "body") or isinstance(node, ast.comprehension | ast.NamedExpr) for node in nodes):
        return
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        func = ast.unparse(call.func)
        path, _, name = func.rpartition(".")
        is_module = not path or ("(" not in path and path.split(".")[0] in imported)
        if isinstance(call.func, ast.Attribute) and name == kind and path != "self" and not is_module:
            yield call, call.func.value
        elif call.args and (func == layer or (name == kind and is_module)):
            yield call, call.args[0]
