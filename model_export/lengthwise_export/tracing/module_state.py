"""The state of a module: what a call may change, kept so that a change is seen, named and undone.

A state holds parameters, buffers and attributes, and what the containers and objects in them hold. Methods and hooks
are followed as well, to their classes, closures, default arguments and the globals that they name.
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
_PLAIN: Final = (bool, int, float, complex, str, bytes)
_OF_MODULE: Final = ("_parameters", "_buffers", "_modules")
"""Dictionaries of a module that are no part of the names of what they hold."""
_MISSING: Final = object()


class ModuleState:
    """A snapshot of the state of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts: dict[tuple[int, str], _Part] = {}
        self._keep(module, "")

    def now(self) -> ModuleState:
        """The state of the same module at this time."""
        return ModuleState(self._module)

    def changed(self) -> list[str]:
        """The names of what differs now, such as `norm.mean`."""
        return list(dict.fromkeys(name for part in self._parts.values() for name, _ in part.differing()))

    def restore(self, names: Collection[str] | None = None) -> None:
        """Puts back the values that differ now; with `names`, only values of these names."""
        with torch.no_grad():
            for part in self._parts.values():
                for name, key in part.differing():
                    if names is None or name in names:
                        part.put_back(key)

    def line_of_change(self, names: Collection[str], run: Callable[[], object]) -> CodeLocation | None:
        """Restores the state, and finds the line of the user's code that changes one of these names during a run."""
        self.restore()
        watched = [part for part in self._parts.values() if part.may_change(names)]
        locations: list[CodeLocation | None] = []
        line_before: CodeLocation | None = None

        def compare_state(frame: FrameType, event: str, _: object) -> Any:
            """A trace function for `sys.settrace`, which Python calls before each line.

            If the watched state differs, the line before has changed it. At a call no line has run since then.
            """
            nonlocal line_before
            if locations or not is_users(frame.f_code.co_filename, installed=True):
                return None
            if event != "call" and any(name in names for part in watched for name, _ in part.differing()):
                locations.append(line_before)
            line_before = location_of_frame(frame.f_back if event == "return" else frame)
            return compare_state

        before = sys.gettrace()
        sys.settrace(compare_state)
        try:
            run()
        finally:
            sys.settrace(before)
        return locations[0] if locations else None

    def _keep(self, thing: Any, name: str) -> None:
        """Stores the content of an object, and of the objects in it; `name` is that of the object in the module."""
        if isinstance(thing, (*_PLAIN, ModuleType)):
            return
        for part in _parts_of(thing, name):
            if (id(part.thing), part.scope) in self._parts:
                continue
            self._parts[id(part.thing), part.scope] = part
            entries = part.entries()
            for inner, value in entries if len(entries) <= _MAX_ENTRIES else ():
                self._keep(value, inner)


@dataclass(frozen=True, slots=True)
class _Part:
    """A container, and a copy of its content."""

    thing: Any
    name: str
    content: Any  # What it held: named entries, or the content of a list or tensor
    read: Callable[[Any], Any]
    # Puts content back; for named entries, one entry: the container, the key and the value or `_MISSING`
    write: Callable[..., object]
    prefix: str | None = None  # The beginning of its entries' names; None if they have the name of the container
    scope: str = ""  # Tells several views of one container apart

    def entries(self) -> list[tuple[str, Any]]:
        """The values in the container, each with its name."""
        if isinstance(self.content, dict):
            return [(self._named(key), value) for key, value in self.content.items()]
        return [(self.name, value) for value in self.content] if isinstance(self.content, list | tuple | set) else []

    def may_change(self, names: Iterable[str]) -> bool:
        """Whether `differing` may give one of these names."""
        return any(name == self.name or (self.prefix is not None and name.startswith(self.prefix)) for name in names)

    def differing(self) -> list[tuple[str, object]]:
        """The names of what differs now, each with its key in the container; None for all of its content."""
        now = self.read(self.thing)
        if not isinstance(self.content, dict):
            return [] if _is_same(self.content, now) else [(self.name, None)]
        keys = dict.fromkeys((*self.content, *now))
        differ = (key for key in keys if not _is_same(self.content.get(key, _MISSING), now.get(key, _MISSING)))
        return [(self._named(key), key) for key in differ]

    def put_back(self, key: object) -> None:
        """Restores an entry of the container, or all of its content where `differing` gives no key."""
        if isinstance(self.content, dict):
            self.write(self.thing, key, self.content.get(key, _MISSING))
        else:
            self.write(self.thing, self.content)

    def _named(self, key: object) -> str:
        return self.name if self.prefix is None else f"{self.prefix}{key}"


def _parts_of(thing: Any, name: str) -> Iterator[_Part]:
    """The containers of values that a call may change, in a module, class, function, container or other object."""
    prefix = f"{name}." if name else ""
    if isinstance(thing, nn.Module):
        yield from (_entries(vars(thing)[own], name, prefix) for own in _OF_MODULE if own in vars(thing))
        yield from _parts_of_object(thing, name, prefix)
    elif isinstance(thing, type):
        if _is_of_users(thing):
            prefix = f"{thing.__name__}."
            yield _Part(thing, name, dict(vars(thing)), lambda kind: dict(vars(kind)), _write_attribute, prefix)
    elif isinstance(thing, FunctionType | staticmethod | classmethod | property):
        function: Any = thing.fget if isinstance(thing, property) else thing
        yield from _parts_of_function(inspect.unwrap(function), name)
    elif isinstance(thing, MethodType):  # such as a hook
        yield from (*_parts_of(thing.__self__, name), *_parts_of(thing.__func__, name))
    elif isinstance(thing, dict):
        yield _entries(thing, name, None)
    elif kind := next((kind for of, kind in _CONTENT.items() if isinstance(thing, of)), None):
        if not (isinstance(thing, Tensor) and (is_lazy(thing) or thing.is_meta or thing.layout != torch.strided)):
            yield _Part(thing, name, kind[0](thing), *kind)
    elif type(thing).__dictoffset__ and _is_of_users(type(thing)):  # `hasattr` would ask the thing itself
        yield from _parts_of_object(thing, name, prefix)


def _parts_of_object(thing: Any, name: str, prefix: str) -> Iterator[_Part]:
    """The attributes of an object, and its class, which the first call of a lazy layer changes."""
    yield _entries(vars(thing), name, prefix)

    def write(thing: Any, classes: tuple[type, ...]) -> None:
        thing.__class__ = classes[0]

    yield _Part(thing, name, type(thing).__mro__, lambda thing: type(thing).__mro__, write, scope="class")


def _parts_of_function(function: Any, name: str) -> Iterator[_Part]:
    """The closure, the default arguments, and the globals that a function of the user's names."""
    if not isinstance(function, FunctionType) or not is_users(function.__code__.co_filename, installed=True):
        return
    code = function.__code__
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield from _parts_of(cell, variable)
    yield from _parts_of((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()), name)
    for named in sorted(_names_in(code) & function.__globals__.keys()):
        read = partial(_one_entry, named)
        yield _Part(function.__globals__, named, read(function.__globals__), read, _write_entry, scope=named)


def _names_in(code: CodeType) -> set[str]:
    """The global names that code uses, also in the functions inside of it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _is_of_users(kind: type) -> bool:
    """Whether a class is defined in the user's code or in an installed package."""
    # Read from `__dict__`: an attribute of a lazy module would import it
    file = getattr(sys.modules.get(kind.__module__), "__dict__", {}).get("__file__")
    return kind.__module__ == "__main__" or (isinstance(file, str) and is_users(file, installed=True))


def _entries(thing: dict[Any, Any], name: str, prefix: str | None) -> _Part:
    """The part for a dictionary."""
    return _Part(thing, name, _read_entries(thing), _read_entries, _write_entry, prefix)


def _read_entries(entries: dict[Any, Any]) -> dict[Any, Any]:
    """The stored entries, not those that a subclass of `dict` makes of them, as registries do."""
    return dict(dict.items(entries))


def _one_entry(key: str, entries: MutableMapping[str, Any]) -> dict[str, Any]:
    return {key: entries[key]} if key in entries else {}


def _write_entry(entries: MutableMapping[Any, Any], key: object, value: object) -> None:
    if value is _MISSING:
        entries.pop(key, None)
    else:
        entries[key] = value


def _write_attribute(kind: type, name: str, value: object) -> None:
    if value is _MISSING:
        delattr(kind, name)
    else:
        setattr(kind, name, value)


def _write_tensor(tensor: Tensor, values: Tensor) -> None:
    if tensor.shape == values.shape:
        tensor.copy_(values)
    else:
        tensor.data = values.clone()


def _refill(container: Any, entries: Any) -> None:
    """Replaces the content of a deque or a set."""
    container.clear()
    (container.extend if isinstance(container, deque) else container.update)(entries)


def _read_cell(cell: CellType) -> tuple[Any, ...]:
    """The value of a variable in a closure; no value if it is not set yet."""
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
"""For each kind of container without names: what copies its content, and what puts it back."""


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same object, or have equal content."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(torch.equal(one, other) or ((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(one.tobytes() == other.tobytes())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, (*_PLAIN, set)) and (bool(one == other) or bool(one != one))
