"""Branches of Python on the width: a graph holds the one way that the traced width went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Final

from torch import SymInt
from torch.export import ExportedProgram

from lengthwise_export.tracing.patched_builtins import trace_error

_WIDEST: Final = 2048
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
    names = set(program.graph_signature.user_inputs)
    steps = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    width = steps.meta["val"].shape[1]
    if not isinstance(width, SymInt):
        return
    symbol = width.node.expr
    bounds = program.range_constraints.get(symbol)
    if bounds is None or not bounds.upper.is_Integer or int(bounds.upper) >= _WIDEST:
        return
    widest = int(bounds.upper)
    if not runs(widest + 1):
        return
    guards = [guard for guard in width.node.shape_env.guards if symbol in guard.expr.free_symbols]
    last = next((guard for guard in guards if guard.expr.has(widest + 1) or guard.expr.has(widest)), None)
    place = "" if last is None else _place(str(last.sloc))
    raise trace_error(
        None,
        f"{place}the code branches on the width, and takes another way for batches wider than {widest}; a graph "
        "holds one. Compute both and choose with torch.where, or take the branch out",
    )


def _place(location: str) -> str:
    """The file and the line in torch's text of a place in the code: `(…/model.py:12 in forward)`."""
    file, _, line = location.strip("()").partition(" in ")[0].rpartition(":")
    return f"{PurePath(file).name}:{line}: " if line.isdigit() else ""
