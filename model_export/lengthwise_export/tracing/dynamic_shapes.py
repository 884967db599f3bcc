"""Keeps the number of rows and the width dynamic in a trace, where the user's code turns them into Python numbers.

A trace follows tensors and symbolic sizes, but `lengths.max().item()` would be a constant of the traced batch. So all
calls of torch go through a torch function mode, `OpenSizes`:

    lengths.max().item(), arange          return the width: wider padding changes no answer of a module without leaks
    mask.sum(1)                           returns the lengths; so do lengths.tolist() and lengths.numpy()
    self.dilations[1].item()              returns the number: a buffer, or a plain tensor, depends on no batch
    [int(n) for n in lengths], list(...)  makes a list of two `ListItem`s, which stands for the tensor
    if lengths.min() < 1: raise           takes the branch that all of several test batches took

`len(lengths)`, `int(lengths.max())` and `math.log(width)` call Python, not torch, and would give the numbers of the
traced batch. `open_numbers` defines these names in the globals of the modules that hold the user's code; functions of
`math` are replaced there and in `math`, and NumPy's find the same. All of that is process-wide.

A size is *dynamic*, or open, while it is a symbol (`torch.SymInt`); code can fix it at the number of the traced batch.
The *content* of a tensor says whether it is the lengths or a mask of the trace; it is known by the tensor's id.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from lengthwise_export.errors import TraceError
from lengthwise_export.tracing.call_signature import Role
from lengthwise_export.tracing.open_functions import RETURN_INDICES, SUBSTITUTES, is_open
from lengthwise_export.tracing.process_wide import replaced
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, is_users, modules_of_user

# The messages of a TraceError, which follow the user's line: what the line does, and what to write instead
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
    "splits an axis whose size depends on the batch into parts, of which a graph has a fixed number: slice it, with "
    "bounds that are computed from its size, as in x[:, : x.size(1) // 2]"
)

Branches = Mapping[tuple[str, int], bool]
"""The result of branches on tensor values by file and line, for those that are the same for all test batches."""

_Content = Literal["steps", "lengths", "longest length", "mask", "padding-mask"]
"""What a tensor of the trace is, in any element type."""

# The names of torch's functions, by what their answer is
_COPIES: Final = ("to", "cpu", "long", "int", "clone", "detach", "contiguous", "type", "view_as")
_TYPES: Final = ("float", "bool", "byte", "type_as")
_EQUAL: Final = ("__eq__", "eq")
_INVERTED: Final = (
    "__invert__",
    "bitwise_not",
    "logical_not",
    *_EQUAL,
)  # `mask == 0` inverts; other comparisons do not
_LARGEST: Final = ("max", "amax")

_CONTENT_OF_ANSWER: Final[Mapping[tuple[_Content | None, str], _Content]] = {
    **{("lengths", name): "lengths" for name in _COPIES},
    **{("lengths", name): "longest length" for name in _LARGEST},
    **{("longest length", name): "longest length" for name in _COPIES},
    **{("mask", name): "mask" for name in (*_COPIES, *_TYPES)},
    **{("mask", name): "padding-mask" for name in _INVERTED},
    **{("padding-mask", name): "padding-mask" for name in (*_COPIES, *_TYPES)},
    **{("padding-mask", name): "mask" for name in _INVERTED},
}
"""The content of a function's answer, by the content of its first argument and the name of the function."""

_MADE_OF_SIZES: Final = frozenset(
    {"arange", "linspace", "zeros", "ones", "full", "empty", "rand", "randn", "__getitem__", "narrow"}
)
"""Functions whose arguments may be sizes: there the longest length stands for the width."""
_NUMBERS: Final = frozenset({"item", "__int__", "__index__", "__float__", "tolist", "numpy", "__array__"})
"""Functions that turn a tensor into Python numbers or a NumPy array."""
_IN_PLACE: Final = re.compile(r"[a-z]\w*[^_]_|__(setitem|iadd|isub|imul|itruediv)__")
"""Names of functions that write into their first argument."""
_PLAIN_PARTS: Final = frozenset({slice, int, torch.SymInt, type(None), type(...)})
"""The types of the parts of an index that take one axis each, or none."""


class ListItem:
    """One of the two items of a list that is made of a tensor, such as the lengths `[rows]`, which may have any size.

    It takes the place of a number, and has nothing that a number has: Python refuses to compute with it. There are two,
    so that what depends on their order, such as `sorted`, has to compare them.
    """

    def __init__(self, tensor: Tensor, index: int) -> None:
        self.tensor = tensor
        self.index = index

    def item(self) -> ListItem:
        """The item itself: it is no tensor of one number."""
        return self

    def __index__(self) -> int:
        """Refuses to be a number.

        Raises:
            TraceError: Always: it stands for several.
        """
        raise TraceError(current_location(), A_LIST)


def listed_tensor(numbers: Any) -> Tensor | None:
    """The tensor that a list or a tuple was made of in a trace, item by item; None if `numbers` is anything else."""
    items = list(numbers) if isinstance(numbers, list | tuple) else []
    is_whole = [item.index for item in items if isinstance(item, ListItem)] == [0, 1] and len(items) == 2
    return items[0].tensor if is_whole and items[0].tensor is items[1].tensor else None


class OpenSizes(TorchFunctionMode):
    """The torch function mode of a trace, through which all calls of torch go; see the module.

    Args:
        sequences: `[rows, width, ...]`.
        lengths: int64 `[rows]`; None if the module is called with the steps alone.
        arguments: What the module gets, by role.
        branches: The results with which branches on a value in a tensor are traced.
        lines: The lines that have branched on a size so far; the trace adds to them.
        buffers: Each buffer of the module as the trace has it, and its values.
    """

    def __init__(
        self,
        sequences: Tensor,
        lengths: Tensor | None,
        arguments: Mapping[Role, Tensor],
        branches: Branches,
        lines: Mapping[str, CodeLocation],
        buffers: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__()
        # The values of buffers and their items, by the tensor's id, with the version that counts writes into it
        self._values = {id(traced): (traced, values, traced._version) for traced, values in buffers}
        self._wholes = dict[int, Tensor]()  # the buffer or plain tensor of an item, by the item's id
        self._written = dict[int, Tensor]()  # plain tensors that were written into, by their ids
        self._read = list[tuple[Tensor, int, CodeLocation | None]]()  # with their versions: whose numbers were taken
        self._lines = lines
        self._seen_lines = len(lines)  # the number of lines before the last call: if it fixed a size, a later one did
        self._rows, self._width = sequences.shape[:2]
        self._lengths = lengths
        self._branches = branches
        self._calls = 0
        # The tensors whose content is known, by their id. They are kept alive, so that no other tensor gets that id
        self._contents: dict[int, tuple[Tensor, Any]] = {
            id(tensor): (tensor, role)
            for role, tensor in (("lengths", lengths), *arguments.items())
            if tensor is not None
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs a call of torch in the traced code, and returns an answer that is right for every size of a batch.

        That is the answer of the function itself, if it can be; else what the trace knows (`_replacement`), or the
        answer of a function that takes its place (`SUBSTITUTES`), or of a call with the width as an argument.

        Raises:
            TraceError: The code branches on a tensor, or asks for numbers or a list of it; or it has fixed a size.
        """
        kwargs = dict(kwargs or {})
        name = func.__name__
        first = args[0] if args else None
        self._calls += 1
        # Results that the trace knows
        if (replacement := self._replacement(func, name, first, args, kwargs)) is not None:
            return replacement
        if name == "__bool__":
            location = current_location()
            if location is None or (location.file, location.line) not in self._branches:
                raise TraceError(location, BRANCH)
            return self._branches[location.file, location.line]
        # Calls that a graph cannot follow
        if name in ("__iter__", "unbind"):
            _require_fixed(LOOP, first, *args[1:2], **kwargs)
        sizes = args[1] if len(args) > 1 else kwargs.get("split_size")
        if name in ("chunk", "tensor_split") or (name == "split" and isinstance(sizes, int | torch.SymInt)):
            _require_fixed(PARTS, first, *args[2:3], **kwargs)
        if name in _NUMBERS and isinstance(first, Tensor) and (location := current_location()) is not None:
            raise TraceError(location, A_NUMBER)
        # Calls with another function, or with the width in the place of the longest length
        if name in SUBSTITUTES and func not in RETURN_INDICES:
            func = SUBSTITUTES[name]
        if name in _MADE_OF_SIZES:
            args, kwargs = self._with_width(args), self._with_width(kwargs)
        if name == "__getitem__" and isinstance(first, Tensor):
            args = (first, _within(args[1], first.shape))
        answer = func(*args, **kwargs)
        self._learn(name, first, args, answer)
        self._ensure_open()
        return answer

    def _replacement(
        self, func: Callable[..., Any], name: str, first: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The lengths or the width, if a call of torch computes them from a tensor of the trace; otherwise None.

        `name` is that of the function, and `first` its first argument.
        """
        content = self._content(first)
        # self.dilations[1].item()
        if name in _NUMBERS and (values := self._values_of(first)) is not None:
            whole = self._wholes.get(id(first), first)
            self._read.append((whole, whole._version, current_location()))
            with _disable_current_modes():
                return func(values, *args[1:], **kwargs)
        # list(lengths), and torch.tensor(list(lengths))
        if name in ("__iter__", "unbind") and _is_open_list(first):
            return self._items_of(first)
        if name in ("tensor", "as_tensor") and (listed := listed_tensor(first)) is not None:
            return listed
        # lengths.max().item()
        if content == "longest length" and name in ("item", "tolist"):
            return self._width
        # mask.sum(1)
        if content == "mask" and self._lengths is not None and name == "sum" and _sums_steps(args, kwargs):
            answer = self._lengths.to(func(*args, **kwargs).dtype)
            answer = answer.unsqueeze(1) if kwargs.get("keepdim") else answer
            self._contents[id(answer)] = (answer, "lengths")
            return answer
        # lengths.clamp(min=1), which changes no length, and lengths.tolist(), which stays a tensor
        keeps_lengths = name in ("clamp", "clamp_min", "clip") and _is_bound_of_one(args, kwargs)
        stays_tensor = name in ("tolist", "numpy") and _is_open_list(first)
        return first if (content == "lengths" and keeps_lengths) or stays_tensor else None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Ends the trace.

        Raises:
            TraceError: A number was taken from a tensor into which the code then writes: it is another one each call.
        """
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]  # of torch
        changed = [
            location
            for tensor, version, location in self._read
            if tensor._version != version or id(tensor) in self._written
        ]
        if kind is None and changed:
            raise TraceError(changed[0], A_NUMBER)

    def _items_of(self, tensor: Tensor) -> Iterator[ListItem]:
        """Yields the items of a list that is made of a tensor.

        Raises:
            TraceError: Something is computed for each item: that would run a fixed number of times.
        """
        for index in range(2):
            before = self._calls
            yield ListItem(tensor, index)
            if self._calls != before:
                raise TraceError(current_location(), A_LIST)

    def _content(self, value: object) -> _Content | None:
        """The content of a tensor of the trace, such as `lengths`; None if `value` is anything else."""
        return self._contents[id(value)][1] if id(value) in self._contents else None

    def _values_of(self, tensor: object) -> Tensor | None:
        """The values of a buffer of the module, of a plain tensor, or of an item of one; None of anything else."""
        if id(tensor) in self._values:
            traced, values, version = self._values[id(tensor)]
            return values if traced._version == version else None  # else the code has written into it
        return tensor if type(tensor) is Tensor else None  # in a trace, what depends on the batch has another type

    def _learn(self, name: str, first: Any, args: Sequence[Any], answer: Any) -> None:
        """Remembers a function's answer, if it is the lengths, the longest length, a mask or an item of a buffer.

        `name` is that of the function, and `first` the first of its arguments `args`.
        """
        if type(first) is Tensor and _IN_PLACE.fullmatch(name):
            self._written[id(first)] = first
        is_item = name == "__getitem__" and isinstance(args[1], tuple) and {*map(type, args[1])} == {int}
        if is_item and (values := self._values_of(first)) is not None:
            with _disable_current_modes():
                self._values[id(answer)] = (answer, values[args[1]], answer._version)
            self._wholes[id(answer)] = self._wholes.get(id(first), first)
        content = _CONTENT_OF_ANSWER.get((self._content(first), name))
        if content is None or not isinstance(answer, Tensor):
            return
        if content in ("mask", "padding-mask"):  # `mask == 0` is the inverted mask, `mask == 1` is not
            is_known = name not in _EQUAL or (len(args) == 2 and isinstance(args[1], int | float) and args[1] == 0)
        else:  # float lengths are for arithmetic, and not for sizes
            is_known = not answer.is_floating_point() and (name not in _LARGEST or answer.dim() == 0)
        if is_known:
            self._contents[id(answer)] = (answer, content)

    def _with_width(self, value: Any) -> Any:
        """An argument of a call, or a container of arguments, in which the width replaces the longest length."""
        if isinstance(value, OpenRange):
            return value.as_tensor()
        if isinstance(value, Tensor):
            return self._width if self._content(value) == "longest length" else value
        if isinstance(value, tuple | list):
            return type(value)(self._with_width(item) for item in value)
        if isinstance(value, dict):
            return {key: self._with_width(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._with_width(item) for item in (value.start, value.stop, value.step)))
        return value

    def _ensure_open(self) -> None:
        """Makes sure that the rows and the width are still dynamic after a call.

        Raises:
            TraceError: One is fixed; the error names the last line that has branched on a size since the call before.
        """
        frozen = [axis for axis, size in (("rows", self._rows), ("width", self._width)) if not is_open(size)]
        if frozen:
            new_lines = list(self._lines.values())[self._seen_lines :]
            raise TraceError(
                new_lines[-1] if new_lines else current_location(),
                f"this fixes the {frozen[0]} at the size of one batch",
            )
        self._seen_lines = len(self._lines)


class BranchRecorder(TorchFunctionMode):
    """A torch function mode that adds to `branches` the results of all branches on a value in a tensor.

    Its keys are the file and the line of the user's code; a line may branch several times, with several results.
    """

    def __init__(self, branches: dict[tuple[str, int], set[bool]]) -> None:
        super().__init__()
        self._branches = branches

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch, and records its answer if it is the condition of a branch."""
        answer = func(*args, **(kwargs or {}))
        if func.__name__ == "__bool__" and (location := current_location()) is not None:
            self._branches.setdefault((location.file, location.line), set()).add(bool(answer))
        return answer


def _is_open_list(tensor: Any) -> bool:
    """Whether a tensor holds whole numbers `[rows]`, or as many as another size that is dynamic."""
    is_list = isinstance(tensor, Tensor) and tensor.dim() == 1 and is_open(tensor.shape[0])
    return is_list and not tensor.is_floating_point() and tensor.dtype != torch.bool


def _is_bound_of_one(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments of a `clamp` are only a lower bound of at most 1, which changes no length."""
    bounds = [*args[1:], *kwargs.values()]
    return len(bounds) == 1 and "max" not in kwargs and isinstance(bounds[0], int | float) and bounds[0] <= 1


def _require_fixed(message: str, tensor: Any, dim: int = 0, **_options: Any) -> None:
    """Makes sure that the size of the axis `dim` of a tensor is a number, and not dynamic.

    `tensor`, `dim` and further keywords are the arguments of a call of torch.

    Raises:
        TraceError: The size is dynamic; `message` says what the code does with the axis.
    """
    if isinstance(tensor, Tensor) and tensor.dim() and is_open(tensor.shape[dim]):
        raise TraceError(current_location(), message)


def _within(index: Any, shape: Sequence[Any]) -> Any:
    """An index of a tensor with bounds that are at most the size of their axis, where that depends on the batch.

    Of `x[:, :512]`, torch would ask whether the batch is narrower, and fix the answer for the trace. An index with
    tensors or lists in it stays as it is.
    """
    parts = index if isinstance(index, tuple) else (index,)
    count = sum(part is not None and part is not Ellipsis for part in parts)
    if not {*map(type, parts)} <= _PLAIN_PARTS or count > len(shape):
        return index
    sizes, bounded = [*shape], []
    for part in parts:
        if part is Ellipsis:
            del sizes[: len(shape) - count]
        elif part is not None and is_open(size := sizes.pop(0)) and isinstance(part, slice):
            part = slice(_at_most(size, part.start, size.node.hint), _at_most(size, part.stop), part.step)
        bounded.append(part)
    return tuple(bounded)


def _at_most(size: Any, bound: Any, fine_up_to: int = -1) -> Any:
    """A bound of a slice that is at most a size.

    As it is, if it always is, or up to `fine_up_to`, where a trace is right as well: CUDA has no kernel for the smaller
    of two sizes.
    """
    may_be_past = type(bound) is int and bound > fine_up_to and not statically_known_true(size >= bound)
    return torch.sym_min(size, bound) if may_be_past else bound  # type: ignore[no-untyped-call]  # torch gives no types


def _sums_steps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments of `sum` name the axis of steps of a mask `[rows, width]`."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return dim in (1, -1, (1,), (-1,), [1], [-1])


_SQRT: Final = math.sqrt
_FUNCTIONS_OF_MATH: Final = (
    *(_SQRT, math.log, math.log2, math.log10, math.log1p, math.exp, math.sin, math.cos, math.tanh),
)
"""The functions of `math` that take a dynamic size during a trace; torch has each under the same name."""


@contextlib.contextmanager
def open_numbers(model: nn.Module) -> Iterator[None]:
    """Replaces, during the block, Python's functions of numbers by functions that keep a dynamic size dynamic.

    Built-ins such as `len` are replaced in the modules of the user's code, and in those of the packages that define
    parts of the model. Any other conversion of a dynamic size to a number is an error there.
    """
    packages_of_model = {type(part).__module__.partition(".")[0] for part in model.modules()}
    modules = modules_of_user(packages_of_model)
    built_ins = [
        (module, name, substitute)
        for module in modules
        for name, substitute in _SUBSTITUTES.items()
        if name not in vars(module)
    ]
    functions_of_math = [
        (module, name, partial(_computed_of_size, value))
        for module in (math, *modules)
        for name, value in vars(module).items()
        if any(value is function for function in _FUNCTIONS_OF_MATH)  # `==` may be a tensor's
    ]
    sizes = (torch.SymInt, torch.SymFloat)
    # For an object that is not a number, `np.log(x)` calls `x.log()`
    methods = [
        (size, function.__name__, lambda number, function=function: _computed_of_size(function, number))
        for function in _FUNCTIONS_OF_MATH
        for size in sizes
    ]
    conversions = [
        (torch.SymInt, name, _refuse_dynamic(getattr(torch.SymInt, name))) for name in ("__index__", "__int__")
    ]
    with replaced(
        *built_ins,
        *functions_of_math,
        *methods,
        *((size, "rint", _round) for size in sizes),
        *conversions,
        # A module may look a size up in its cache, a dictionary: a dynamic one is not in it, and torch's hash raises
        (torch.SymInt, "__hash__", _hash),
        (Tensor, "__len__", _length_hint),
        # FakeTensor.tolist goes through the elements, and bypasses torch function modes
        (FakeTensor, "tolist", Tensor.tolist),
    ):
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
    """The hash of a size; the hash of its expression if it is dynamic, for which torch's own `__hash__` raises."""
    return hash((id(size.node.shape_env), str(size.node.expr)) if is_open(size) else builtins.int(size))


def _len(value: Any) -> Any:
    """Replaces `len`: of a tensor, or a list made of one, returns the size of the first axis, which may be dynamic."""
    value = value if (listed := listed_tensor(value)) is None else listed
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)


_TENSOR_LEN: Final[Callable[[Tensor], int]] = Tensor.__len__


def _length_hint(tensor: Tensor) -> int:
    """Replaces `Tensor.__len__`, which `list(lengths)` asks first; it goes on without an answer.

    Raises:
        TypeError: The size is dynamic, and the user's code asks.
    """
    if tensor.dim() and is_open(tensor.shape[0]) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
        raise TypeError(A_SIZE)
    return _TENSOR_LEN(tensor)


def _computed_of_size(function: Callable[..., float], number: Any, /, *base: Any) -> Any:
    """Replaces a function of `math`, such as `math.log`; `base` is that of a logarithm, if it is passed.

    - Of a dynamic size: a float64 tensor, which follows the size. A square root is a symbol, so that `int(...)` of it
      is a dynamic size again.
    - Of a tensor: a float64 tensor.
    - Of a number: what `function` itself returns.
    """
    if not isinstance(number, torch.SymInt | torch.SymFloat | Tensor):
        return function(number, *base)
    if function is _SQRT and not isinstance(number, Tensor):
        return number**0.5
    # In float64, as Python's numbers: torch rounds the answer where it meets a float32 tensor
    wide = number.double() if isinstance(number, Tensor) else torch.scalar_tensor(number, dtype=torch.float64)  # type: ignore[arg-type]  # takes sizes
    answer = getattr(torch, function.__name__)(wide)
    return answer / math.log(*base) if base else answer


class _NumberType(type):
    """The type of `_Int` and `_Float`, which replace `int` and `float`: they leave a dynamic size dynamic.

    `isinstance(3, _Int)` is true, so that the user's checks of types are as before.
    """

    @property
    def built_in(cls) -> type:
        """`int` or `float`: the type that the class replaces, its only base."""
        return cls.__bases__[0]

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls.built_in)

    def __call__(cls, value: Any = 0, *base: Any) -> Any:
        """`int(value)` or `float(value)`; a symbol, if the value is a dynamic size or is computed from one."""
        if isinstance(value, Tensor | ListItem) and cls.built_in is builtins.int:
            value = value.item()
        if isinstance(value, ListItem):
            return value
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return (torch.sym_int if cls.built_in is builtins.int else torch.sym_float)(value)  # type: ignore[no-untyped-call]  # torch's
        return cls.built_in(value, *base)


class _Float(builtins.float, metaclass=_NumberType):
    """`float` in the user's modules."""


class _Int(builtins.int, metaclass=_NumberType):
    """`int` in the user's modules."""


def _range(*bounds: Any) -> Any:
    """Replaces `range`: returns an `OpenRange` if a bound is dynamic. A bound may be a tensor of one number."""
    sizes: list[Any] = [bound.item() if isinstance(bound, Tensor) else bound for bound in bounds]
    return OpenRange(*sizes) if any(map(is_open, sizes)) else builtins.range(*sizes)


def _round(size: Any, digits: Any = None) -> Any:
    """Replaces `round`: of a fraction of a dynamic size, returns the nearest whole number as a dynamic size.

    As in Python, of two numbers that are equally near it is the even one.
    """
    if not isinstance(size, torch.SymFloat) or digits is not None:
        return builtins.round(size, digits)
    number: Any = size
    # floor(x + 0.5) rounds a half up. That is wrong for 0.5, 2.5, 4.5, ...: for these (2x - 1) / 4 is a whole number,
    # so that ceil and floor are equal, and 1 is taken away
    fourth = (2 * number - 1) / 4
    return math.floor(number + 0.5) + math.ceil(fourth) - math.floor(fourth) - 1


def _refuse_dynamic(convert: Callable[[torch.SymInt], int]) -> Callable[[torch.SymInt], int]:
    """Wraps a conversion of sizes to numbers: it then raises a TraceError if the user's code converts a dynamic size.

    torch itself still converts them.
    """

    def convert_fixed(size: torch.SymInt) -> int:
        if is_open(size) and is_users(sys._getframe(1).f_code.co_filename, installed=True):
            raise TraceError(current_location(), A_SIZE)
        return convert(size)

    return convert_fixed


_SUBSTITUTES: Final = {"len": _len, "int": _Int, "float": _Float, "range": _range, "round": _round}
"""The functions and types that replace Python's built-ins in the user's modules, by their names."""
