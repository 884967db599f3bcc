"""Keeps rows and width open while a module is traced, through all the ways in which code makes Python numbers of them.

A trace follows tensors and sizes. What a user's code asks Python for instead is lost to it: `len(lengths)` and
`int(lengths.max())` are numbers of the traced batch, and the graph would be good for that batch alone. So, for the time
of a trace:

    len(x), int(size)                     give the open size
    int(lengths.max()), .item(), arange   give the width: to pad wider changes nothing in a sound module
    mask.sum(1)                           gives the lengths themselves, lengths.tolist() and .numpy() too
    if lengths.min() < 1: raise           goes the way it went for every batch that was tried before

and a loop over steps or rows is refused by name, at its line.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

from model_export.errors import ExportError
from model_export.frames import Place, current_place, is_users

LOOP_OVER_STEPS: Final = (
    "a Python loop over the steps is as long as one batch, and a graph is for all widths: use nn.LSTM or nn.GRU over "
    "the packed sequence in the place of a cell in a loop (their weights have the same names and shapes, with _l0)"
)
LOOP_OVER_ROWS: Final = (
    "a Python loop over the rows of a batch is as long as one batch: write it for the whole batch, with "
    "pack_padded_sequence for a recurrent layer and a mask for the rest"
)
BRANCH: Final = (
    "Python branches on a value in a tensor, and takes one way or the other depending on the batch: use torch.where"
)
A_NUMBER: Final = "makes a Python number of a value in a tensor, which a graph cannot follow: stay with tensors"

Branches = Mapping[tuple[str, int], bool]
"""Which way each branch on a tensor's value went, by file and line, where it was the same for every batch tried."""

_COPIES: Final = frozenset({"to", "cpu", "long", "int", "clone", "detach", "contiguous", "type", "view_as"})
_AS_FLOATS: Final = frozenset({"float", "bool", "byte", "type_as"})
_LARGEST: Final = frozenset({"max", "amax"})
_MADE_OF_SIZES: Final = frozenset(
    {"arange", "zeros", "ones", "full", "empty", "rand", "randn", "__getitem__", "narrow"}
)
_NUMBERS: Final = frozenset({"item", "__int__", "__index__", "__float__", "tolist", "numpy", "__array__"})


class OpenSizes(TorchFunctionMode):
    """What a traced module's calls of torch pass through."""

    def __init__(self, sequences: Tensor, lengths: Tensor, mask: Tensor | None, branches: Branches) -> None:
        """Takes the traced batch: `[rows, width, ...]`, int64 `[rows]` and, where there is one, `[rows, width]`."""
        super().__init__()
        self._rows, self._width = sequences.shape[:2]
        self._lengths = lengths
        self._branches = branches
        # The tensors that are, in whatever type, the lengths, the mask and the longest length.
        self._as_lengths = _Known([lengths])
        self._as_mask = _Known([] if mask is None else [mask])
        self._as_longest = _Known([])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answers for torch where the answer would be a number of this batch."""
        kwargs = dict(kwargs or {})
        name = func.__name__
        first = args[0] if args else None
        if first in self._as_lengths and name in ("tolist", "numpy"):
            return first
        if first in self._as_longest and name in ("item", "tolist", "__index__"):
            return self._width
        if first in self._as_mask and name == "sum" and _over_steps(args, kwargs):
            answer = self._lengths.to(func(*args, **kwargs).dtype)
            return self._as_lengths.add(answer.unsqueeze(1) if kwargs.get("keepdim") else answer)
        if first in self._as_lengths and name in ("clamp", "clamp_min", "clip") and _at_least_one(args, kwargs):
            return first
        if name == "__bool__":
            return self._way(first)
        if name in ("__iter__", "unbind"):
            self._refuse_loop(first, *args[1:2], **kwargs)
        if name in _NUMBERS and isinstance(first, Tensor) and (place := current_place()) is not None:
            raise refused(place, A_NUMBER)
        if name in _MADE_OF_SIZES:
            args, kwargs = self._with_width(args), self._with_width(kwargs)
        answer = func(*args, **kwargs)
        self._learn(name, first, args, answer)
        self._ensure_open()
        return answer

    def _learn(self, name: str, first: Any, args: Sequence[Any], answer: Any) -> None:
        if name in _COPIES and isinstance(answer, Tensor) and not answer.is_floating_point():
            for known in (self._as_lengths, self._as_longest):
                if first in known:
                    known.add(answer)
        if name in _COPIES | _AS_FLOATS and first in self._as_mask:
            self._as_mask.add(answer)
        if name in _LARGEST and first in self._as_lengths and isinstance(answer, Tensor) and answer.dim() == 0:
            self._as_longest.add(answer)

    def _with_width(self, value: Any) -> Any:
        """An argument with the width in the place of the longest length."""
        if isinstance(value, Tensor):
            return self._width if value in self._as_longest else value
        if isinstance(value, tuple | list):
            return type(value)(self._with_width(item) for item in value)
        if isinstance(value, dict):
            return {key: self._with_width(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._with_width(item) for item in (value.start, value.stop, value.step)))
        return value

    def _way(self, condition: Any) -> bool:
        place = current_place()
        if place is None or (place.file, place.line) not in self._branches:
            raise refused(place, BRANCH)
        return self._branches[place.file, place.line]

    def _refuse_loop(self, tensor: Any, dim: int = 0) -> None:
        if isinstance(tensor, Tensor) and tensor.dim() and isinstance(size := tensor.shape[dim], torch.SymInt):
            raise refused(current_place(), LOOP_OVER_STEPS if _same(size, self._width) else LOOP_OVER_ROWS)

    def _ensure_open(self) -> None:
        frozen = [axis for axis, size in (("rows", self._rows), ("width", self._width)) if not _is_open(size)]
        if frozen:
            raise refused(current_place(), f"this fixes the number of {frozen[0]} at what it is in one batch")


class _Known:
    """Tensors known by identity, and kept so that no other can get their place in memory."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {id(tensor): tensor for tensor in tensors}

    def __contains__(self, thing: object) -> bool:
        return id(thing) in self._tensors

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors[id(tensor)] = tensor
        return tensor


@contextlib.contextmanager
def open_numbers(model: nn.Module) -> Iterator[None]:
    """Lets `len` and `int` keep sizes open in the files of a user's module, and refuses `range` over an open size."""
    with contextlib.ExitStack() as undo:
        for namespace in _namespaces_of(model):
            for name, replacement in (("len", _len), ("int", _Int)):
                if name not in namespace:
                    namespace[name] = replacement
                    undo.callback(namespace.pop, name)
        for name in ("__index__", "__int__"):
            undo.callback(setattr, torch.SymInt, name, getattr(torch.SymInt, name))
            setattr(torch.SymInt, name, _refusing(getattr(torch.SymInt, name)))
        # The trace's own tensors answer tolist row by row, without asking a mode first.
        undo.callback(setattr, FakeTensor, "tolist", FakeTensor.tolist)
        FakeTensor.tolist = Tensor.tolist  # type: ignore[method-assign]  # undone above
        yield


def _namespaces_of(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of the files that a module's code, and the code it calls, stands in."""
    own = {type(part).__module__ for part in model.modules()}
    return [
        vars(module)
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None)) and is_users(file, installed=name in own)
    ]


def _len(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) and thing.dim() else builtins.len(thing)


class _IntType(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, builtins.int)

    def __call__(cls, thing: Any = 0, *base: Any) -> Any:
        if isinstance(thing, Tensor):
            thing = thing.item()
        return thing if isinstance(thing, torch.SymInt) else builtins.int(thing, *base)


class _Int(builtins.int, metaclass=_IntType):
    """`int`, but an open size stays one."""


def _refusing(convert: Callable[[torch.SymInt], int]) -> Callable[[torch.SymInt], int]:
    def number(size: torch.SymInt) -> int:
        if _is_open(size) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
            raise refused(current_place(), LOOP_OVER_STEPS)
        return convert(size)

    return number


@contextlib.contextmanager
def watched_branches(seen: dict[tuple[str, int], set[bool]]) -> Iterator[None]:
    """Notes which way each branch on a tensor's value goes while a module runs."""
    with _Branching(seen):
        yield


class _Branching(TorchFunctionMode):
    def __init__(self, seen: dict[tuple[str, int], set[bool]]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func.__name__ == "__bool__" and (place := current_place()) is not None:
            self._seen.setdefault((place.file, place.line), set()).add(bool(answer))
        return answer


def refused(place: Place | None, why: str) -> ExportError:
    """The error that says why a line of the user's code cannot be traced."""
    return ExportError("trace", why if place is None else f"{place}: `{place.source}`: {why}")


def _at_least_one(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a `clamp` only holds lengths at 1 or more, where they are anyway."""
    bounds = [*args[1:], *kwargs.values()]
    return len(bounds) == 1 and "max" not in kwargs and isinstance(bounds[0], int | float) and bounds[0] <= 1


def _over_steps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return dim in (1, -1, (1,), (-1,), [1], [-1])


def _is_open(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _same(size: torch.SymInt, other: Any) -> bool:
    return isinstance(other, torch.SymInt) and bool(size.node.expr == other.node.expr)
