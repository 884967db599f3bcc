"""Keeps the number of rows and the width dynamic in a trace, where the user's code turns them into Python numbers.

A trace follows tensors and symbolic sizes, but `lengths.max().item()` would be a constant of the traced batch. So all
calls of torch go through a torch function mode:

    lengths.max().item(), arange          return the width: wider padding changes no answer of a module without leaks
    mask.sum(1)                           returns the lengths; so do lengths.tolist() and lengths.numpy()
    if lengths.min() < 1: raise           takes the branch that all of several test batches took
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from lengthwise_export.tracing.call_signature import Role
from lengthwise_export.tracing.open_functions import RETURN_INDICES, SUBSTITUTES
from lengthwise_export.tracing.patched_builtins import LOOP, OpenRange, is_open, trace_error
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, is_users

BRANCH: Final = (
    "a Python branch on a value in a tensor depends on the batch, but a graph cannot branch: use torch.where"
)
A_NUMBER: Final = (
    "turns a value in a tensor, or a logarithm or power of a size, into a Python number, which a graph cannot follow: "
    "use tensors only, or a number that does not depend on the batch"
)

PARTS: Final = (
    "splits an axis whose size depends on the batch into a fixed number of parts: slice it, with bounds that are "
    "computed from its size, as in x[:, : x.size(1) // 2]"
)

Branches = Mapping[tuple[str, int], bool]
"""The result of branches on tensor values by file and line, for those that are the same for all test batches."""

_COPIES: Final = frozenset({"to", "cpu", "long", "int", "clone", "detach", "contiguous", "type", "view_as"})
_AS_FLOATS: Final = frozenset({"float", "bool", "byte", "type_as"})
_INVERTED: Final = frozenset({"__invert__", "bitwise_not", "logical_not"})
_EQUAL: Final = frozenset({"__eq__", "eq"})
_LARGEST: Final = frozenset({"max", "amax"})
_MADE_OF_SIZES: Final = frozenset(
    {"arange", "linspace", "zeros", "ones", "full", "empty", "rand", "randn", "__getitem__", "narrow"}
)
_NUMBERS: Final = frozenset({"item", "__int__", "__index__", "__float__", "tolist", "numpy", "__array__"})


class OpenSizes(TorchFunctionMode):
    """The torch function mode of a trace of `[rows, width, ...]` and int64 lengths `[rows]`; see the module.

    Args:
        lines: The lines that have branched on a size so far; the last one is what fixed a size.
    """

    def __init__(
        self,
        sequences: Tensor,
        lengths: Tensor | None,
        given: Mapping[Role, Tensor],
        branches: Branches,
        lines: Mapping[str, CodeLocation],
    ) -> None:
        super().__init__()
        self._lines = lines
        self._seen_lines = len(lines)
        self._rows, self._width = sequences.shape[:2]
        self._lengths = lengths
        self._branches = branches
        # Tensors that hold the lengths, a mask, a padding mask or the longest length, in any element type.
        self._as_lengths = _Known([] if lengths is None else [lengths])
        self._as_mask = _Known([given["mask"]] if "mask" in given else [])
        self._as_padding_mask = _Known([given["padding-mask"]] if "padding-mask" in given else [])
        self._as_longest = _Known([])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces calls whose result would be a constant of the traced batch."""
        kwargs = dict(kwargs or {})
        name = func.__name__
        first = args[0] if args else None
        known = self._known(func, name, first, args, kwargs)
        if known is not None:
            return known
        if name == "__bool__":
            return self._branch(first)
        if name in ("__iter__", "unbind"):
            self._reject_loop(first, *args[1:2], **kwargs)
        if name in ("chunk", "tensor_split"):
            self._reject_parts(*args, **kwargs)
        if name in _NUMBERS and isinstance(first, Tensor) and (location := current_location()) is not None:
            raise trace_error(location, A_NUMBER)
        if name in SUBSTITUTES and func not in RETURN_INDICES:
            func = SUBSTITUTES[name]
        if name in _MADE_OF_SIZES:
            args, kwargs = self._with_width(args), self._with_width(kwargs)
        answer = func(*args, **kwargs)
        self._learn(name, first, args, answer)
        self._ensure_open()
        return answer

    def _known(
        self, func: Callable[..., Any], name: str, first: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result where it is the lengths or the width; None where it is something else."""
        if first in self._as_lengths and name in ("tolist", "numpy"):
            return first
        if first in self._as_longest and name in ("item", "tolist"):
            return self._width
        if self._lengths is not None and first in self._as_mask and name == "sum" and _over_steps(args, kwargs):
            answer = self._lengths.to(func(*args, **kwargs).dtype)
            return self._as_lengths.add(answer.unsqueeze(1) if kwargs.get("keepdim") else answer)
        if first in self._as_lengths and name in ("clamp", "clamp_min", "clip") and _at_least_one(args, kwargs):
            return first
        return None

    def _learn(self, name: str, first: Any, args: Sequence[Any], answer: Any) -> None:
        if name in _COPIES and isinstance(answer, Tensor) and not answer.is_floating_point():
            for known in (self._as_lengths, self._as_longest):
                if first in known:
                    known.add(answer)
        for known, inverted in ((self._as_mask, self._as_padding_mask), (self._as_padding_mask, self._as_mask)):
            if first in known and name in _COPIES | _AS_FLOATS:
                known.add(answer)
            elif first in known and (name in _INVERTED or (name in _EQUAL and _is_zero(args[1:]))):
                inverted.add(answer)
        if name in _LARGEST and first in self._as_lengths and isinstance(answer, Tensor) and answer.dim() == 0:
            self._as_longest.add(answer)

    def _with_width(self, value: Any) -> Any:
        """An argument with the longest length replaced by the width."""
        if isinstance(value, OpenRange):
            return value.as_tensor()
        if isinstance(value, Tensor):
            return self._width if value in self._as_longest else value
        if isinstance(value, tuple | list):
            return type(value)(self._with_width(item) for item in value)
        if isinstance(value, dict):
            return {key: self._with_width(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._with_width(item) for item in (value.start, value.stop, value.step)))
        return value

    def _branch(self, condition: Any) -> bool:
        location = current_location()
        if location is None or (location.file, location.line) not in self._branches:
            raise trace_error(location, BRANCH)
        return self._branches[location.file, location.line]

    def _reject_loop(self, tensor: Any, dim: int = 0) -> None:
        if isinstance(tensor, Tensor) and tensor.dim() and is_open(tensor.shape[dim]):
            raise trace_error(current_location(), LOOP)

    def _reject_parts(self, tensor: Any, _parts: Any = None, dim: int = 0, **_kwargs: Any) -> None:
        if isinstance(tensor, Tensor) and is_open(tensor.shape[dim]):
            raise trace_error(current_location(), PARTS)

    def _ensure_open(self) -> None:
        frozen = [axis for axis, size in (("rows", self._rows), ("width", self._width)) if not is_open(size)]
        if frozen:
            decided = list(self._lines.values())[self._seen_lines :]
            raise trace_error(
                decided[-1] if decided else current_location(), f"this fixes the {frozen[0]} at the size of one batch"
            )
        self._seen_lines = len(self._lines)


class _Known:
    """A set of tensors by identity. They are kept alive, so that no other tensor gets their id."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {id(tensor): tensor for tensor in tensors}

    def __contains__(self, thing: object) -> bool:
        return id(thing) in self._tensors

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors[id(tensor)] = tensor
        return tensor


class BranchRecorder(TorchFunctionMode):
    """Records into `seen` the results of all branches on tensor values inside the block, by file and line."""

    def __init__(self, seen: dict[tuple[str, int], set[bool]]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function."""
        answer = func(*args, **(kwargs or {}))
        if func.__name__ == "__bool__" and (location := current_location()) is not None:
            self._seen.setdefault((location.file, location.line), set()).add(bool(answer))
        return answer


def _at_least_one(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a `clamp` has a lower bound of at most 1 only, which does not change lengths."""
    bounds = [*args[1:], *kwargs.values()]
    return len(bounds) == 1 and "max" not in kwargs and isinstance(bounds[0], int | float) and bounds[0] <= 1


def _is_zero(args: Sequence[Any]) -> bool:
    return len(args) == 1 and isinstance(args[0], int | float) and args[0] == 0


def _over_steps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return dim in (1, -1, (1,), (-1,), [1], [-1])


WIDEST: Final = 2048  # wider batches are not tried: attention would need much memory


Lines = dict[str, CodeLocation]  # the lines of the code that branch on a size, by the condition as torch writes it


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
