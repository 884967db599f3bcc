"""What makes importing large libraries cheaper: most of the processor time of a short command is spent on that.

A command calls `collect_rarely` and `import_torch` before anything of torch is imported. `late_modules` is
for libraries that import others for what is rarely used.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any, Final

_RARELY: Final = (100_000, 20, 20)  # objects, and collections of the generation before

LATE: Final = frozenset(
    {"keras._tf_keras", "keras.visualization", "keras.src.visualization", "keras.wrappers"}
    | {"torch.distributed.fsdp", "torch.distributed.fsdp._fully_shard"}
    | {"torch.distributed.fsdp._fully_shard._fsdp_param_group"}
)
"""Modules that their libraries import, and need for nothing here.

For those of Keras it imports Matplotlib and scikit-learn, with SciPy; torch's compiler, which `torch.export` and Keras
bring along, would know a function of sharded modules by the others.
"""


def collect_rarely() -> None:
    """Makes Python look for garbage in cycles rarely; for a process that runs one command and ends.

    Importing makes a million objects, none of which is garbage, and each search looks at many of them again.
    """
    gc.set_threshold(*_RARELY)


def import_torch() -> None:
    """Imports torch without reading the source of each line that registers an operator.

    torch asks `inspect.getframeinfo` for the number of the line, which by default returns the lines around it, too.
    """
    if "torch" in sys.modules:
        return
    getframeinfo: Any = inspect.getframeinfo

    def without_lines(frame: FrameType, context: int = 0) -> Any:
        return getframeinfo(frame, context=min(context, 0))

    inspect.getframeinfo = without_lines
    try:
        import torch  # noqa: F401 - for `sys.modules`
    finally:
        inspect.getframeinfo = getframeinfo


@contextmanager
def late_modules(names: Set[str] = LATE) -> Iterator[None]:
    """Runs the code of modules of these names, if the block imports them, at the first access to one of their names."""
    finder = _LateFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _LateFinder(MetaPathFinder):
    """Finds the modules of these names, and gives them a `_LateLoader`."""

    def __init__(self, names: Set[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader, self._names)
        return spec


class _LateLoader(Loader):
    """Runs the code of a module at the first access to a name that the import system has not given it.

    `importlib.util.LazyLoader` runs it at the access to any name, also to `__file__`, which `inspect` asks every module
    for.
    """

    def __init__(self, loader: Loader, names: Set[str]) -> None:
        self._loader = loader
        self._names = names

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the module empty, but for a function that fills it."""

        def fill(name: str) -> Any:
            # `inspect` asks every module for such names; and a module of these is imported, not found in another
            if name.startswith("__") or f"{module.__name__}.{name}" in self._names:
                raise AttributeError(name)
            vars(module).pop("__getattr__", None)
            self._loader.exec_module(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = fill
