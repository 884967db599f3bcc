"""Keeps the number of rows and the width dynamic in a trace, where the user's code turns them into Python numbers.

A trace follows tensors and symbolic sizes, but `lengths.max().item()` would be a constant of the traced batch. So all
calls of torch go through a torch function mode, `OpenSizes`:

    lengths.max().item(), arange          return the width: wider padding changes no answer of a module without leaks
    mask.sum(1)                           returns the lengths; so do lengths.tolist() and lengths.numpy()
    if lengths.min() < 1: raise           takes the branch that all of several test batches took

`len(lengths)`, `int(lengths.max())` and `math.log(width)` call Python, not torch, and would give the numbers of the
traced batch. `open_numbers` defines these names in the globals of the modules that hold the user's code; functions of
`math` are replaced there and in `math`, and NumPy's find the same. All of that is process-wide.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

from lengthwise_export.errors import TraceError
from lengthwise_export.tracing.call_signature import Role
from lengthwise_export.tracing.open_functions import RETURN_INDICES, SUBSTITUTES, is_open
from lengthwise_export.tracing.process_wide import PROCESS_WIDE
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, is_users, modules_of_user

LOOP: Final = (
    "a Python loop runs a fixed number of times in a graph, but batches differ in size. Over the steps: use nn.LSTM or "
    "nn.GRU instead of a cell in a loop (their weights have the same names and shapes, with _l0). Over the rows: write "
    "it for the whole batch, with pack_padded_sequence for a recurrent layer and a mask for the rest"
)
A_LIST: Final = (
    "takes the lengths one by one, as list(lengths) or [int(n) for n in lengths] do, but a graph has them as a tensor: "
    "pass the tensor to pack_padded_sequence, as in lengths.cpu(), or lengths.tolist(). Where the loop is over the "
    "rows, write it for the whole batch, with a mask"
)
A_SIZE: Final = (
    "takes the number of steps or rows as a fixed Python number (a loop does, or a list of that many), but batches "
    "differ in size: compute with the size itself, as in torch.arange(x.shape[1]) or math.log(x.shape[1])"
)
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
    """The torch function mode of a trace of `[rows, width, ...]` and int64 lengths `[rows]`; see the module."""

    def __init__(
        self,
        sequences: Tensor,
        lengths: Tensor | None,
        arguments: Mapping[Role, Tensor],
        branches: Branches,
        lines: Mapping[str, CodeLocation],
    ) -> None:
        super().__init__()
        self._lines = lines  # that have branched on a size so far; the last one is what fixed a size
        self._seen_lines = len(lines)
        self._rows, self._width = sequences.shape[:2]
        self._lengths = lengths
        self._branches = branches
        # Tensors that hold the lengths, a mask, a padding mask or the longest length, in any element type.
        self._as_lengths = _TensorSet([] if lengths is None else [lengths])
        self._as_mask = _TensorSet([arguments["mask"]] if "mask" in arguments else [])
        self._as_padding_mask = _TensorSet([arguments["padding-mask"]] if "padding-mask" in arguments else [])
        self._as_longest = _TensorSet([])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces calls whose result would be a constant of the traced batch.

        Raises:
            TraceError: The code branches on a tensor, or asks for a number or a list of it.
        """
        kwargs = dict(kwargs or {})
        name = func.__name__
        first = args[0] if args else None
        if (replacement := self._replacement(func, name, first, args, kwargs)) is not None:
            return replacement
        if name == "__bool__":
            location = current_location()
            if location is None or (location.file, location.line) not in self._branches:
                raise TraceError(location, BRANCH)
            return self._branches[location.file, location.line]
        if name in ("__iter__", "unbind"):
            _require_fixed(A_LIST if first in self._as_lengths else LOOP, first, *args[1:2], **kwargs)
        if name in ("chunk", "tensor_split"):
            _require_fixed(PARTS, first, *args[2:3], **kwargs)
        if name in _NUMBERS and isinstance(first, Tensor) and (location := current_location()) is not None:
            raise TraceError(location, A_NUMBER)
        if name in SUBSTITUTES and func not in RETURN_INDICES:
            func = SUBSTITUTES[name]
        if name in _MADE_OF_SIZES:
            args, kwargs = self._with_width(args), self._with_width(kwargs)
        answer = func(*args, **kwargs)
        self._learn(name, first, args, answer)
        self._ensure_open()
        return answer

    def _replacement(
        self, func: Callable[..., Any], name: str, first: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The lengths or the width, if the call computes them from a tensor of the trace; otherwise None."""
        if first in self._as_lengths and name in ("tolist", "numpy"):
            return first
        if first in self._as_longest and name in ("item", "tolist"):
            return self._width
        if self._lengths is not None and first in self._as_mask and name == "sum" and _sums_steps(args, kwargs):
            answer = self._lengths.to(func(*args, **kwargs).dtype)
            return self._as_lengths.add(answer.unsqueeze(1) if kwargs.get("keepdim") else answer)
        if first in self._as_lengths and name in ("clamp", "clamp_min", "clip") and _at_least_one(args, kwargs):
            return first
        return None

    def _learn(self, name: str, first: Any, args: Sequence[Any], answer: Any) -> None:
        """Remembers an answer that is the lengths, the longest length or a mask, when it is computed from one."""
        if name in _COPIES and isinstance(answer, Tensor) and not answer.is_floating_point():
            for tensors in (self._as_lengths, self._as_longest):
                if first in tensors:
                    tensors.add(answer)
        with_zero = name in _EQUAL and len(args) == 2 and isinstance(args[1], int | float) and args[1] == 0
        for tensors, inverted in ((self._as_mask, self._as_padding_mask), (self._as_padding_mask, self._as_mask)):
            if first in tensors and name in _COPIES | _AS_FLOATS:
                tensors.add(answer)
            elif first in tensors and (name in _INVERTED or with_zero):
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

    def _ensure_open(self) -> None:
        frozen = [axis for axis, size in (("rows", self._rows), ("width", self._width)) if not is_open(size)]
        if frozen:
            decided = list(self._lines.values())[self._seen_lines :]
            raise TraceError(
                decided[-1] if decided else current_location(), f"this fixes the {frozen[0]} at the size of one batch"
            )
        self._seen_lines = len(self._lines)


class _TensorSet:
    """A set of tensors by identity. They are kept alive, so that no other tensor gets their id."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {id(tensor): tensor for tensor in tensors}

    def __contains__(self, value: object) -> bool:
        return id(value) in self._tensors

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors[id(tensor)] = tensor
        return tensor


class BranchRecorder(TorchFunctionMode):
    """Adds to `branches` the results of all branches on tensor values inside the block, by file and line."""

    def __init__(self, branches: dict[tuple[str, int], set[bool]]) -> None:
        super().__init__()
        self._branches = branches

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function."""
        answer = func(*args, **(kwargs or {}))
        if func.__name__ == "__bool__" and (location := current_location()) is not None:
            self._branches.setdefault((location.file, location.line), set()).add(bool(answer))
        return answer


def _at_least_one(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a `clamp` has a lower bound of at most 1 only, which does not change lengths."""
    bounds = [*args[1:], *kwargs.values()]
    return len(bounds) == 1 and "max" not in kwargs and isinstance(bounds[0], int | float) and bounds[0] <= 1


def _require_fixed(why: str, tensor: Any, dim: int = 0, **_options: Any) -> None:
    """Makes sure that the axis of a tensor is not open.

    Raises:
        TraceError: It is; `why` says what the code does with it.
    """
    if isinstance(tensor, Tensor) and tensor.dim() and is_open(tensor.shape[dim]):
        raise TraceError(current_location(), why)


def _sums_steps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments of `sum` name the axis of steps of a mask `[rows, width]`."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return dim in (1, -1, (1,), (-1,), [1], [-1])


_SQRT: Final = math.sqrt
_OF_NUMBERS: Final = (_SQRT, math.log, math.log2, math.log10, math.log1p, math.exp, math.sin, math.cos, math.tanh)
"""The functions of `math` that take a dynamic size; torch has each under the same name."""


@contextlib.contextmanager
def open_numbers(model: nn.Module) -> Iterator[None]:
    """Replaces the built-ins in the user's modules, and makes converting a dynamic size to a number an error."""
    # Of the user's code all modules that are imported, and those of the packages that define parts of the model
    own = {type(part).__module__.partition(".")[0] for part in model.modules()}
    namespaces = [vars(module) for module in modules_of_user(own)]
    with PROCESS_WIDE, contextlib.ExitStack() as undo:
        for namespace in namespaces:
            for name, substitute in _SUBSTITUTES.items():
                if name not in namespace:
                    namespace[name] = substitute
                    undo.callback(namespace.pop, name)
            for name, function in [*namespace.items()]:
                if callable(function) and any(function is other for other in _OF_NUMBERS):
                    undo.callback(namespace.__setitem__, name, function)
                    namespace[name] = partial(_of_size, function)
        for function in _OF_NUMBERS:
            undo.callback(setattr, math, function.__name__, function)
            setattr(math, function.__name__, partial(_of_size, function))
            for size in (torch.SymInt, torch.SymFloat):  # NumPy calls the method of this name of what is no number
                undo.callback(delattr, size, function.__name__)
                setattr(size, function.__name__, lambda number, function=function: _of_size(function, number))
        for size in (torch.SymInt, torch.SymFloat):
            undo.callback(delattr, size, "rint")
            size.rint = _round  # type: ignore[union-attr]  # undone above
        for name in ("__index__", "__int__"):
            undo.callback(setattr, torch.SymInt, name, getattr(torch.SymInt, name))
            setattr(torch.SymInt, name, _refusing(getattr(torch.SymInt, name)))
        # A dictionary may hold something for each size: a dynamic one is in none.
        undo.callback(setattr, torch.SymInt, "__hash__", torch.SymInt.__hash__)
        torch.SymInt.__hash__ = _hash  # type: ignore[method-assign, assignment]  # undone above
        # FakeTensor.tolist goes through the elements and bypasses torch function modes.
        undo.callback(setattr, FakeTensor, "tolist", FakeTensor.tolist)
        FakeTensor.tolist = Tensor.tolist  # type: ignore[method-assign]  # undone above
        yield


class OpenRange:
    """The result of `range` for a dynamic size. It can index a tensor, but not be iterated."""

    def __init__(self, *bounds: Any) -> None:
        self._bounds = bounds

    def as_tensor(self) -> Tensor:
        """The numbers of the range as a tensor `[numbers]`."""
        return torch.arange(*self._bounds)

    def __iter__(self) -> Iterator[int]:
        """Refuses to be iterated.

        Raises:
            TraceError: Always: a loop cannot run a dynamic number of times.
        """
        raise TraceError(current_location(), LOOP)


def _hash(size: torch.SymInt) -> int:
    return hash((id(size.node.shape_env), str(size.node.expr)) if is_open(size) else builtins.int(size))


def _len(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) and thing.dim() else builtins.len(thing)


def _of_size(function: Callable[..., float], number: Any, /, *base: Any) -> Any:
    """A function of `math`; of a dynamic size as a tensor, which follows the size."""
    if not isinstance(number, torch.SymInt | torch.SymFloat | Tensor):
        return function(number, *base)
    if function is _SQRT and not isinstance(number, Tensor):  # a size again, if it is made an int
        return number**0.5
    # In float64, as Python's numbers: torch rounds it where it meets a float32.
    wide = number.double() if isinstance(number, Tensor) else torch.scalar_tensor(number, dtype=torch.float64)  # type: ignore[arg-type]  # takes sizes
    answer = getattr(torch, function.__name__)(wide)
    return answer / math.log(*base) if base else answer


class _NumberType(type):
    """The type of `_Int` and `_Float`, which leave a dynamic size dynamic."""

    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, cls.__bases__[0])

    def __call__(cls, thing: Any = 0, *base: Any) -> Any:
        kind = cls.__bases__[0]
        if isinstance(thing, Tensor) and kind is builtins.int:
            thing = thing.item()
        if isinstance(thing, torch.SymInt | torch.SymFloat):  # a size, or a share of one
            return (torch.sym_int if kind is builtins.int else torch.sym_float)(thing)  # type: ignore[no-untyped-call]  # torch's
        return kind(thing, *base)


class _Float(builtins.float, metaclass=_NumberType):
    """`float` in the user's modules."""


class _Int(builtins.int, metaclass=_NumberType):
    """`int` in the user's modules."""


def _range(*bounds: Any) -> Any:
    sizes: list[Any] = [bound.item() if isinstance(bound, Tensor) else bound for bound in bounds]
    return OpenRange(*sizes) if any(map(is_open, sizes)) else builtins.range(*sizes)


def _round(size: Any, digits: Any = None) -> Any:
    """`round`; of a share of a dynamic size as a size again, the nearest, and of two the even one."""
    if not isinstance(size, torch.SymFloat) or digits is not None:
        return builtins.round(size, digits)
    number: Any = size
    fourth = (2 * number - 1) / 4  # a whole number where the even one is below
    return math.floor(number + 0.5) + math.ceil(fourth) - math.floor(fourth) - 1


def _refusing(convert: Callable[[torch.SymInt], int]) -> Callable[[torch.SymInt], int]:
    def number(size: torch.SymInt) -> int:
        if is_open(size) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
            raise TraceError(current_location(), A_SIZE)
        return convert(size)

    return number


_SUBSTITUTES: Final = {"len": _len, "int": _Int, "float": _Float, "range": _range, "round": _round}
"""What replaces Python's built-ins."""
