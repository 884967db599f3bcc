"""Replaces `len`, `int`, `round` and functions of `math` for the user's modules during a trace: sizes stay dynamic.

`len(lengths)` and `int(lengths.max())` call Python, not torch, and would give the numbers of the traced batch. The
names are defined in the globals of the modules that hold the user's code; `math.log` and the like are replaced there
and in `math`, and NumPy's find the same. All of it is process-wide: `open_numbers` holds `PROCESS_WIDE`.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lengthwise_export.errors import ExportError
from lengthwise_export.tracing.process_wide import PROCESS_WIDE
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, file_of, is_users

_SQRT: Final = math.sqrt
_OF_NUMBERS: Final = (_SQRT, math.log, math.log2, math.log10, math.log1p, math.exp, math.sin, math.cos, math.tanh)
"""The functions of `math` that take a dynamic size; torch has each under the same name."""

LOOP: Final = (
    "a Python loop runs a fixed number of times in a graph, but batches differ in size. Over the steps: use nn.LSTM or "
    "nn.GRU instead of a cell in a loop (their weights have the same names and shapes, with _l0). Over the rows: write "
    "it for the whole batch, with pack_padded_sequence for a recurrent layer and a mask for the rest"
)
A_SIZE: Final = (
    "takes the number of steps or rows as a fixed Python number (a loop does, or a list of that many), but batches "
    "differ in size: compute with the size itself, as in torch.arange(x.shape[1]) or math.log(x.shape[1])"
)


@contextlib.contextmanager
def open_numbers(model: nn.Module) -> Iterator[None]:
    """Replaces the built-ins in the user's modules, and makes converting a dynamic size to a number an error."""
    with PROCESS_WIDE, contextlib.ExitStack() as undo:
        for namespace in _namespaces_of(model):
            for name, substitute in _SUBSTITUTES.items():
                if name not in namespace:
                    namespace[name] = substitute
                    undo.callback(namespace.pop, name)
            for name, function in [*namespace.items()]:
                if callable(function) and any(function is known for known in _OF_NUMBERS):
                    undo.callback(namespace.__setitem__, name, function)
                    namespace[name] = partial(_of_size, function)
        for function in _OF_NUMBERS:
            undo.callback(setattr, math, function.__name__, function)
            setattr(math, function.__name__, partial(_of_size, function))
        for size in (torch.SymInt, torch.SymFloat):  # NumPy calls the method of this name of what is no number
            for name, method in _METHODS.items():
                undo.callback(delattr, size, name)
                setattr(size, name, method)
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


def is_open(size: Any) -> bool:
    """Whether a size is dynamic: a symbol, not a number."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def trace_error(location: CodeLocation | None, why: str) -> ExportError:
    """The error for a line of the user's code that cannot be traced."""
    return ExportError("trace", why if location is None else f"{location.told()}: {why}")


class OpenRange:
    """The result of `range` for a dynamic size. It can index a tensor, but not be iterated."""

    def __init__(self, *bounds: Any) -> None:
        self._bounds = bounds

    def as_tensor(self) -> Tensor:
        """The same numbers as a tensor."""
        return torch.arange(*self._bounds)

    def __iter__(self) -> Iterator[int]:
        """Raises: a loop cannot run a dynamic number of times."""
        raise trace_error(current_location(), LOOP)


def _namespaces_of(model: nn.Module) -> list[dict[str, Any]]:
    """The globals of all imported modules of the user's code, and of the packages that define parts of the model."""
    own = {type(part).__module__.partition(".")[0] for part in model.modules()}
    return [
        vars(module)
        for name, module in list(sys.modules.items())
        if (file := file_of(module)) and is_users(file, installed=name.partition(".")[0] in own)
    ]


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


class _IntType(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, builtins.int)

    def __call__(cls, thing: Any = 0, *base: Any) -> Any:
        if isinstance(thing, Tensor):
            thing = thing.item()
        if isinstance(thing, torch.SymFloat):  # a share of a dynamic size
            return torch.sym_int(thing)  # type: ignore[no-untyped-call]  # torch's own
        return thing if isinstance(thing, torch.SymInt) else builtins.int(thing, *base)


class _FloatType(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, builtins.float)

    def __call__(cls, thing: Any = 0.0) -> Any:
        sizes = torch.SymInt | torch.SymFloat
        return torch.sym_float(thing) if isinstance(thing, sizes) else builtins.float(thing)  # type: ignore[no-untyped-call]


class _Float(builtins.float, metaclass=_FloatType):
    """`float`, except that a dynamic size stays dynamic."""


class _Int(builtins.int, metaclass=_IntType):
    """`int`, except that a dynamic size stays dynamic."""


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


def _method(function: Callable[..., float]) -> Callable[[Any], Any]:
    return lambda size: _of_size(function, size)


_METHODS: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {**{each.__name__: _method(each) for each in _OF_NUMBERS}, "rint": _round}
)
"""What NumPy calls for `np.log(size)` and the like."""

_SUBSTITUTES: Final[Mapping[str, Any]] = MappingProxyType(
    {"len": _len, "int": _Int, "float": _Float, "range": _range, "round": _round}
)
"""What stands in the place of Python's built-ins."""


def _refusing(convert: Callable[[torch.SymInt], int]) -> Callable[[torch.SymInt], int]:
    def number(size: torch.SymInt) -> int:
        if is_open(size) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
            raise trace_error(current_location(), A_SIZE)
        return convert(size)

    return number
