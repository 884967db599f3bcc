"""Branches of Python on the width: a graph holds the one way that the traced width went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Final

from torch import SymInt
from torch.export import ExportedProgram

from lengthwise_export.tracing.patched_builtins import trace_error

WIDEST: Final = 2048
"""Wider batches are not tried: attention would need much memory."""


def require_one_way(program: ExportedProgram, runs: Callable[[int], bool]) -> None:
    """Makes sure that the code does not take another way for wide batches.

    A table of positions ends the traced widths too, but the module raises for wider batches then.

    Args:
        program: The traced program; its first input has rows and width as its first axes.
        runs: Whether the module itself answers a batch of this width.

    Raises:
        ExportError: It does.
    """
    widest = ends_at(program)
    if widest >= WIDEST or not runs(widest + 1):
        return
    symbol, env = _width(program).node.expr, _width(program).node.shape_env
    guards = [guard for guard in env.guards if symbol in guard.expr.free_symbols]
    last = next((guard for guard in guards if guard.expr.has(widest + 1) or guard.expr.has(widest)), None)
    place = "" if last is None else _place(str(last.sloc))
    raise trace_error(
        None,
        f"{place}the code branches on the width, and takes another way for batches wider than {widest}; a graph "
        "holds one. Compute both and choose with torch.where, or take the branch out",
    )


def ends_at(program: ExportedProgram) -> int:
    """The widest batch for which the code goes the traced way; `WIDEST` if it goes no other way below that."""
    width = _width(program)
    bounds = program.range_constraints.get(width.node.expr) if isinstance(width, SymInt) else None
    return WIDEST if bounds is None or not bounds.upper.is_Integer else min(WIDEST, int(bounds.upper))


def _width(program: ExportedProgram) -> Any:
    names = set(program.graph_signature.user_inputs)
    steps = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    return steps.meta["val"].shape[1]


def _place(location: str) -> str:
    """The file and the line in torch's text of a place in the code: `(…/model.py:12 in forward)`."""
    file, _, line = location.strip("()").partition(" in ")[0].rpartition(":")
    return f"{PurePath(file).name}:{line}: " if line.isdigit() else ""
