"""The state of a module: what a call may change, copied so that a change can be found, named and undone.

A state holds parameters, buffers and attributes, and what the containers and objects in them hold. Methods and hooks
are followed as well, to their classes, closures, default arguments and the globals that they name.

It is a list of *parts*. A part is one container, such as a dictionary of attributes, a list or a tensor, with a copy of
its content. A change has a name, such as `norm.mean`: the path of the value in the module.
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import partial
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lengthwise_export.tracing.source_lines import CodeLocation, is_users, location_of_frame

_MAX_ENTRIES: Final = 10_000  # larger containers hold data; what their entries hold is not followed
_PLAIN: Final = (bool, int, float, complex, str, bytes)  # types of values that never change
_OF_MODULE: Final = ("_parameters", "_buffers", "_modules")
"""Dictionaries of a module whose own names are left out of names: `weight`, and not `_parameters.weight`."""
_MISSING: Final = object()  # the value of a key that a dictionary does not have


class ModuleState:
    """A snapshot of the state of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts: dict[tuple[int, str], _Part] = {}  # by the id of the container, and the scope of the part
        self._copy(module, "")

    def now(self) -> ModuleState:
        """A new snapshot of the same module."""
        return ModuleState(self._module)

    def changed(self) -> list[str]:
        """The names of the values that differ now from this snapshot, such as `norm.mean`."""
        return list(dict.fromkeys(name for part in self._parts.values() for name, _ in part.differing()))

    def restore(self, names: Collection[str] | None = None) -> None:
        """Puts back the values that differ now from this snapshot; with `names`, only values of these names."""
        with torch.no_grad():
            for part in self._parts.values():
                for name, key in part.differing():
                    if names is None or name in names:
                        part.put_back(key)

    def line_of_change(self, names: Collection[str], run: Callable[[], object]) -> CodeLocation | None:
        """Restores the state, calls `run`, and returns the line of the user's code that changes one of these names.

        None if no line changes one.
        """
        self.restore()
        watched = [part for part in self._parts.values() if part.may_change(names)]
        locations: list[CodeLocation | None] = []  # the line of the first change
        line_before: CodeLocation | None = None

        def compare_state(frame: FrameType, event: str, _: object) -> Any:
            """A trace function for `sys.settrace`: Python calls it before each line, and where functions begin and end.

            If the watched state differs, the line before has changed it. When a function begins, nothing is compared:
            no line has run since the last comparison.
            """
            nonlocal line_before
            if locations or not is_users(frame.f_code.co_filename, installed=True):
                return None
            if event != "call" and any(name in names for part in watched for name, _ in part.differing()):
                locations.append(line_before)
            line_before = location_of_frame(frame.f_back if event == "return" else frame)
            return compare_state

        former_trace = sys.gettrace()
        sys.settrace(compare_state)
        try:
            run()
        finally:
            sys.settrace(former_trace)
        return locations[0] if locations else None

    def _copy(self, value: Any, name: str) -> None:
        """Adds the parts of a value, and of the values inside it; `name` is that of the value in the module."""
        if isinstance(value, (*_PLAIN, ModuleType)):
            return
        for part in _parts_of(value, name):
            if (id(part.container), part.scope) in self._parts:
                continue
            self._parts[id(part.container), part.scope] = part
            entries = part.entries()
            for inner_name, entry in entries if len(entries) <= _MAX_ENTRIES else ():
                self._copy(entry, inner_name)


@dataclass(frozen=True, slots=True)
class _Part:
    """A container, and a copy of its content."""

    container: Any
    name: str  # The name of the container in the module
    content: Any  # A copy of what it held: a dictionary of entries, or the content of a list, tensor, ...
    read: Callable[[Any], Any]  # Takes the container, and returns a copy of its content
    # Puts content back: takes the container and the content. If that is a dictionary, it puts one entry back: takes the
    # container, the key and the value, which is `_MISSING` to remove the entry
    write: Callable[..., object]
    prefix: str | None = None  # What the names of its entries begin with; None if they have the name of the container
    scope: str = ""  # Distinguishes several parts of one container

    def entries(self) -> list[tuple[str, Any]]:
        """The values in the container, each after its name; empty for a tensor or an array."""
        if isinstance(self.content, dict):
            return [(self._named(key), value) for key, value in self.content.items()]
        return [(self.name, value) for value in self.content] if isinstance(self.content, list | tuple | set) else []

    def may_change(self, names: Iterable[str]) -> bool:
        """Whether `differing` may return one of these names."""
        return any(name == self.name or (self.prefix is not None and name.startswith(self.prefix)) for name in names)

    def differing(self) -> list[tuple[str, object]]:
        """The name and the key of each entry that differs now from the copy.

        If the content is no dictionary, it differs as a whole: the name of the container, and None as the key.
        """
        now = self.read(self.container)
        if not isinstance(self.content, dict):
            return [] if _is_same(self.content, now) else [(self.name, None)]
        keys = dict.fromkeys((*self.content, *now))
        differ = (key for key in keys if not _is_same(self.content.get(key, _MISSING), now.get(key, _MISSING)))
        return [(self._named(key), key) for key in differ]

    def put_back(self, key: object) -> None:
        """Restores the entry of a key that `differing` returns; the whole content if that is no dictionary."""
        if isinstance(self.content, dict):
            self.write(self.container, key, self.content.get(key, _MISSING))
        else:
            self.write(self.container, self.content)

    def _named(self, key: object) -> str:
        """The name of the entry with this key."""
        return self.name if self.prefix is None else f"{self.prefix}{key}"


def _parts_of(value: Any, name: str) -> Iterator[_Part]:
    """Yields the parts of a module, class, function, container or other object; `name` is that of it in the module.

    There are none of what a call cannot change, such as a number or a class of Python's, nor of a tensor whose values
    cannot be copied (lazy, sparse, or on the device meta).
    """
    prefix = f"{name}." if name else ""
    if isinstance(value, nn.Module):
        yield from (
            _entries(vars(value)[dictionary], name, prefix) for dictionary in _OF_MODULE if dictionary in vars(value)
        )
        yield from _parts_of_object(value, name, prefix)
    elif isinstance(value, type):
        if _is_of_users(value):
            prefix = f"{value.__name__}."
            yield _Part(value, name, dict(vars(value)), lambda owner: dict(vars(owner)), _write_attribute, prefix)
    elif isinstance(value, FunctionType | staticmethod | classmethod | property):
        function: Any = value.fget if isinstance(value, property) else value
        yield from _parts_of_function(inspect.unwrap(function), name)
    elif isinstance(value, MethodType):  # such as a hook
        yield from (*_parts_of(value.__self__, name), *_parts_of(value.__func__, name))
    elif isinstance(value, dict):
        yield _entries(value, name, None)
    elif functions := next((functions for kind, functions in _CONTENT.items() if isinstance(value, kind)), None):
        if not (isinstance(value, Tensor) and (is_lazy(value) or value.is_meta or value.layout != torch.strided)):
            read, write = functions
            yield _Part(value, name, read(value), read, write)
    elif type(value).__dictoffset__ and _is_of_users(type(value)):  # has `__dict__`; `hasattr` may run the user's code
        yield from _parts_of_object(value, name, prefix)


def _parts_of_object(owner: Any, name: str, prefix: str) -> Iterator[_Part]:
    """Yields two parts of an object: its attributes, and its class, which the first call of a lazy layer changes.

    The content of the second part is the class with its bases, so that a change of their attributes is found, too.
    """
    yield _entries(vars(owner), name, prefix)
    yield _Part(
        owner,
        name,
        type(owner).__mro__,
        read=lambda owner: type(owner).__mro__,
        write=lambda owner, classes: setattr(owner, "__class__", classes[0]),
        scope="class",
    )


def _parts_of_function(function: Any, name: str) -> Iterator[_Part]:
    """Yields the parts of a user's function: its closure, its default arguments, and the globals that it names."""
    if not isinstance(function, FunctionType) or not is_users(function.__code__.co_filename, installed=True):
        return
    code = function.__code__
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield from _parts_of(cell, variable)
    yield from _parts_of((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()), name)
    for global_name in sorted(_names_in(code) & function.__globals__.keys()):
        read = partial(_one_entry, global_name)
        yield _Part(
            function.__globals__, global_name, read(function.__globals__), read, _write_entry, scope=global_name
        )


def _names_in(code: CodeType) -> set[str]:
    """The global names and attributes that code uses, also in the functions inside it."""
    inner_functions = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names_in, inner_functions))


def _is_of_users(kind: type) -> bool:
    """Whether a class is defined in the user's code or in an installed package."""
    # Read from `__dict__`: reading an attribute of a lazy module would import it
    file = getattr(sys.modules.get(kind.__module__), "__dict__", {}).get("__file__")
    return kind.__module__ == "__main__" or (isinstance(file, str) and is_users(file, installed=True))


def _entries(entries: dict[Any, Any], name: str, prefix: str | None) -> _Part:
    """The part of a dictionary; `prefix` is the beginning of its entries' names, as in `_Part`."""
    return _Part(entries, name, _read_entries(entries), _read_entries, _write_entry, prefix)


def _read_entries(entries: dict[Any, Any]) -> dict[Any, Any]:
    """A copy of the stored entries; a subclass of `dict`, such as a registry, may return other ones.

    Those of a TorchScript module are in no `dict`.
    """
    return dict(dict.items(entries) if isinstance(entries, dict) else entries.items())


def _one_entry(key: str, entries: MutableMapping[str, Any]) -> dict[str, Any]:
    """The entry of a key alone; empty without such an entry."""
    return {key: entries[key]} if key in entries else {}


def _write_entry(entries: MutableMapping[Any, Any], key: object, value: object) -> None:
    """Sets an entry, or removes it if the value is `_MISSING`."""
    if value is _MISSING:
        entries.pop(key, None)
    else:
        entries[key] = value


def _write_attribute(owner: type, name: str, value: object) -> None:
    """Sets an attribute of a class, or deletes it if the value is `_MISSING`."""
    if value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _write_tensor(tensor: Tensor, values: Tensor) -> None:
    """Puts values back into a tensor, which stays the same object; it may have another shape now."""
    if tensor.shape == values.shape:
        tensor.copy_(values)
    else:
        tensor.data = values.clone()


def _refill(container: Any, entries: Any) -> None:
    """Replaces the content of a deque or a set."""
    container.clear()
    if isinstance(container, deque):
        container.extend(entries)
    else:
        container.update(entries)


def _read_cell(cell: CellType) -> tuple[Any, ...]:
    """The value of a variable in a closure, as a tuple of one; an empty tuple if the variable is not set yet."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


_CONTENT: Final[dict[type, tuple[Callable[[Any], Any], Callable[..., object]]]] = {
    Tensor: (lambda tensor: tensor.detach().clone(), _write_tensor),
    np.ndarray: (np.copy, lambda array, values: array.__setitem__(..., values)),
    list: (list, lambda entries, values: entries.__setitem__(slice(None), values)),
    tuple: (tuple, lambda entries, values: None),
    deque: (list, _refill),
    set: (set, _refill),
    CellType: (_read_cell, lambda cell, values: setattr(cell, "cell_contents", *values)),
}
"""For each type of container that is no dictionary: the functions `read` and `write` of its `_Part`."""


def _is_same(first: Any, second: Any) -> bool:
    """Whether two values are the same object, or have equal content; NaN is equal to NaN.

    Other objects than tensors, arrays, lists, tuples, sets and plain values are equal only if they are the same object.
    """
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(torch.equal(first, second) or ((first == second) | ((first != first) & (second != second))).all())
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and bool(first.tobytes() == second.tobytes())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return isinstance(first, (*_PLAIN, set)) and (bool(first == second) or bool(first != first))
