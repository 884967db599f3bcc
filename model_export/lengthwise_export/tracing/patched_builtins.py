"""Python's own `len`, `int` and `range`, for the time of a trace: an open size goes through them and stays open.

`len(lengths)` and `int(lengths.max())` are called on Python, not on torch, and give numbers of the traced batch. In the
files that a user's module is written in, these names mean what stands here while it is traced.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lengthwise_export.errors import ExportError
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, is_users

LOOP: Final = (
    "a Python loop is as long as one batch, and a graph is for all of them. Over the steps: use nn.LSTM or nn.GRU in "
    "the place of a cell in a loop (their weights have the same names and shapes, with _l0). Over the rows: write it "
    "for the whole batch, with pack_padded_sequence for a recurrent layer and a mask for the rest"
)


@contextlib.contextmanager
def open_numbers(model: nn.Module) -> Iterator[None]:
    """Puts the substitutes into the files of a user's module, and refuses to make a number of an open size."""
    with contextlib.ExitStack() as undo:
        for namespace in _namespaces_of(model):
            for name, substitute in (("len", _len), ("int", _Int), ("range", _range)):
                if name not in namespace:
                    namespace[name] = substitute
                    undo.callback(namespace.pop, name)
        for name in ("__index__", "__int__"):
            undo.callback(setattr, torch.SymInt, name, getattr(torch.SymInt, name))
            setattr(torch.SymInt, name, _refusing(getattr(torch.SymInt, name)))
        # The trace's own tensors answer tolist row by row, without asking a mode first.
        undo.callback(setattr, FakeTensor, "tolist", FakeTensor.tolist)
        FakeTensor.tolist = Tensor.tolist  # type: ignore[method-assign]  # undone above
        yield


def is_open(size: Any) -> bool:
    """Whether a size is a symbol still, and no number."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def trace_error(location: CodeLocation | None, why: str) -> ExportError:
    """The error that says why a line of the user's code cannot be traced."""
    return ExportError("trace", why if location is None else f"{location}: `{location.source}`: {why}")


class OpenRange:
    """What `range` gives over an open size: fit to index a tensor with, not to loop over."""

    def __init__(self, *bounds: Any) -> None:
        """Takes what `range` takes."""
        self._bounds = bounds

    def as_tensor(self) -> Tensor:
        """The same numbers as a tensor."""
        return torch.arange(*self._bounds)

    def __iter__(self) -> Iterator[int]:
        """Refuses to be looped over."""
        raise trace_error(current_location(), LOOP)


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


def _range(*bounds: Any) -> Any:
    sizes: list[Any] = [bound.item() if isinstance(bound, Tensor) else bound for bound in bounds]
    return OpenRange(*sizes) if any(map(is_open, sizes)) else builtins.range(*sizes)


def _refusing(convert: Callable[[torch.SymInt], int]) -> Callable[[torch.SymInt], int]:
    def number(size: torch.SymInt) -> int:
        if is_open(size) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
            raise trace_error(current_location(), LOOP)
        return convert(size)

    return number
