"""The fix of an operator that reads padded steps: the user's own statement, with the operator's input masked.

The recording knows the shape of that input and the axes that are reduced, the user's file the statement. Where either
is not known, the table in `causes.py` has an example, with a comment that names its shape.
"""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class _Reduction:
    """A call in the user's file that reduces the steps of its operand."""

    statement: ast.stmt
    call: ast.Call
    operand: ast.expr
    imported: set[str]
    taken: set[str]  # the names that the function has

    def free(self, name: str) -> str:
        """The name, with `_` where the function has one like it."""
        return f"{name}_" if name in self.taken else name

    def rewritten(self, call: str) -> str:
        """The statement with other code for the call."""
        changed = ast.unparse(self.statement).replace(ast.unparse(self.call), call)
        return ast.unparse(ast.parse(changed))  # without needless parentheses


def write_masked(at: Operation, axes: tuple[int, int], names: ArgumentNames, layer: str) -> str | None:
    """A mask, and the statement with the input of an operator masked; None if it is not such an operator or call."""
    found = _reduction(at, layer) if at.kind in _SUMS or _COMPARES.fullmatch(at.kind) else None
    if found is None or at.location is None:
        return None
    lines, operand, valid = [], ast.unparse(found.operand), found.free("valid")
    name = operand if isinstance(found.operand, ast.Name) else found.free("inputs")
    width = f"{name}.size({axes[1]})"
    own = replace(names, width=width).valid
    if "torch" not in found.imported:
        lines.append("import torch")
    if names.second not in found.taken:
        lines.append(f"# {names.second}: pass this argument of the model to {at.location.function}")
    if name != operand:
        lines.append(f"{name} = {operand}")
    if names.role != "lengths":
        own += f"[:, :{width}]"
    lines.append(f"{valid} = {own}  # [rows, width], true at valid steps")
    lines.append(found.rewritten(_masked_call(at, found, name, _broadcast(valid, axes, len(at.shape)), axes[1])))
    return "\n".join(lines)


def _reduction(at: Operation, layer: str) -> _Reduction | None:
    """The call of an operator in the user's file; None if that cannot be read, or it is not the only one there."""
    place = at.location
    if place is None:
        return None
    try:
        nodes = [*ast.walk(ast.parse("".join(linecache.getlines(place.file))))]
    except (SyntaxError, ValueError):
        return None
    around = [one for one in nodes if isinstance(one, ast.stmt) and one.lineno <= place.line <= (one.end_lineno or 0)]
    imported = {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    inside = (node for one in around if isinstance(one, ast.FunctionDef) for node in ast.walk(one))
    taken = {node.id if isinstance(node, ast.Name) else getattr(node, "arg", "") for node in inside}
    calls = [*_calls(around[-1], at.kind, "" if place.inside else layer, imported)] if around else []
    return _Reduction(around[-1], *calls[0], imported, taken) if len(calls) == 1 else None


def _broadcast(valid: str, axes: tuple[int, int], dimensions: int) -> str:
    """Code for a mask `[rows, width]` with as many axes as a tensor has."""
    turned = f"{valid}.T" if axes[0] > axes[1] else valid
    index = ", ".join(":" if axis in axes else "None" for axis in range(dimensions))
    return turned if dimensions == len(axes) else f"{turned}[{index}]"


def _masked_call(at: Operation, found: _Reduction, name: str, mask: str, steps: int) -> str:
    """Code for the call, with padded steps of the tensor `name` as if they were not there."""
    call, kind = found.call, at.kind
    given = ", ".join(ast.unparse(one) for one in (*call.args, *call.keywords) if one is not found.operand)
    fill = "0.0" if kind in _SUMS else f"torch.finfo({name}.dtype).{'max' if 'min' in kind else 'min'}"
    masked = f"{name}.masked_fill(~{mask}, {fill})"
    if kind in _MEANS:
        reduced = given if kind == "mean" else f"{steps}, keepdim=True"
        counted = f"{mask}.expand_as({name})" if len(at.reduced) > 1 else mask
        return f"({masked}.sum({reduced}) / {counted}.sum({reduced}))"
    if found.operand in call.args:
        return f"{ast.unparse(call.func)}({masked}, {given})"
    return f"{masked}.{kind}({given})"


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
