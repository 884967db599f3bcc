"""Branches of Python on the width: a graph holds the one way that the traced width went."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import SymInt
from torch.export import ExportedProgram

from lengthwise_export.tracing.patched_builtins import trace_error
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, is_users

WIDEST: Final = 2048
"""Wider batches are not tried: attention would need much memory."""


Lines = dict[str, CodeLocation]
"""The lines of the code that branch on a size, by the condition as torch writes it."""


@contextlib.contextmanager
def branching_lines() -> Iterator[Lines]:
    """Notes the lines that branch on a size inside the block. Process-wide: the caller holds `PROCESS_WIDE`."""
    lines: Lines = {}
    decide: Callable[[torch.SymBool], bool] = torch.SymBool.__bool__

    def noted(condition: torch.SymBool) -> bool:
        answer = decide(condition)
        branches = is_users(sys._getframe(1).f_code.co_filename, installed=True)  # and not torch for them
        location = current_location() if branches else None
        if location is not None:
            for each in (condition.node.expr, ~condition.node.expr):
                lines.setdefault(str(each), location)
        return answer

    torch.SymBool.__bool__ = noted  # type: ignore[method-assign]  # undone below
    try:
        yield lines
    finally:
        torch.SymBool.__bool__ = decide  # type: ignore[method-assign]


def require_one_way(program: ExportedProgram, lines: Lines, runs: Callable[[int], bool]) -> None:
    """Makes sure that the code does not take another way for wide batches.

    A table of positions ends the traced widths too, but the module raises for wider batches then: `runs` asks it.
    """
    widest = ends_at(program)
    if widest >= WIDEST or not runs(widest + 1):
        return
    symbol, env = _width(program).node.expr, _width(program).node.shape_env
    guards = [guard for guard in env.guards if symbol in guard.expr.free_symbols]
    last = next((guard for guard in guards if guard.expr.has(widest + 1) or guard.expr.has(widest)), None)
    raise trace_error(
        _line_of(None if last is None else str(last.expr), str(symbol), lines),
        f"the code branches on the width, and takes another way for batches wider than {widest}; a graph holds one. "
        "Compute both and choose with torch.where, or take the branch out",
    )


def _line_of(condition: str | None, width: str, lines: Lines) -> CodeLocation | None:
    """The line that branches on a condition; where torch has simplified it, the last one with the width in it."""
    others = (line for other, line in reversed(lines.items()) if width in other)
    return lines[condition] if condition in lines else next(others, None)


def ends_at(program: ExportedProgram) -> int:
    """The widest batch for which the code goes the traced way; `WIDEST` if it goes no other way below that."""
    width = _width(program)
    bounds = program.range_constraints.get(width.node.expr) if isinstance(width, SymInt) else None
    return WIDEST if bounds is None or not bounds.upper.is_Integer else min(WIDEST, int(bounds.upper))


def _width(program: ExportedProgram) -> Any:
    names = set(program.graph_signature.user_inputs)
    steps = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    return steps.meta["val"].shape[1]
