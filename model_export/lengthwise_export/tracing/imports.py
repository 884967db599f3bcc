"""What makes importing large libraries cheaper: most of the processor time of a short command is spent on that.

A command begins with `collect_rarely`. `late_modules` is for libraries that import others for what is rarely used.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

_RARELY: Final = (100_000, 20, 20)  # objects, and collections of the generation before

LATE: Final = frozenset({"keras._tf_keras", "keras.visualization", "keras.src.visualization", "keras.wrappers"})
"""The modules of Keras for which it imports Matplotlib and scikit-learn, with SciPy, and which nothing here needs."""


def collect_rarely() -> None:
    """Makes Python look for garbage in cycles rarely; for a process that runs one command and ends.

    Importing makes a million objects, none of which is garbage, and each search looks at many of them again.
    """
    gc.set_threshold(*_RARELY)


@contextmanager
def late_modules() -> Iterator[None]:
    """Runs the code of the modules in `LATE`, if the block imports them, at the first access to one of their names."""
    finder = _LateFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _LateFinder(MetaPathFinder):
    """Finds the modules in `LATE`, and leaves each empty until a name of it is asked for.

    `importlib.util.LazyLoader` runs a module's code at the access to any name, also to `__file__`, which `inspect` asks
    every module for.
    """

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in LATE else None
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = partial(self._leave_empty, loader.exec_module)
        return spec

    def _leave_empty(self, run: Callable[[ModuleType], None], module: ModuleType) -> None:
        """Gives a module nothing but a function, which runs its code."""

        def fill(name: str) -> Any:
            if name.startswith("__"):  # `inspect` asks every module for such names
                raise AttributeError(name)
            vars(module).pop("__getattr__", None)
            run(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = fill
