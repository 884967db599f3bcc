"""Where in a user's own code something happened: the file, the line and the text of that line.

Both recorders and the trace ask it the same question: of all the frames on the stack, which is the innermost one that
is neither torch's, nor this package's, nor anything else's that was installed?
"""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import lengthwise
import lengthwise_export


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """A line of somebody's code.

    Attributes:
        file: Its path, as Python knows it.
        line: Counted from 1.
        source: The line's text without its indentation; empty where the file cannot be read.
        function: The function it stands in.
    """

    file: str
    line: int
    source: str
    function: str

    def __str__(self) -> str:
        """`path:line`, the path relative to the working directory where it lies below it."""
        return f"{relative_path(self.file)}:{self.line}"


def relative_path(file: str) -> str:
    """A path as people want to read it: relative where it lies below the working directory."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


_OWN: Final = str(Path(__file__).parent) + os.sep

_MACHINERY: Final = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy")
"""Packages whose lines are never the user's, wherever they are installed."""


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where code lies that is not the user's own, each folder with a separator behind it.

    Attributes:
        machinery: This package's, and those of the libraries that it works with.
        installed: Those that packages are installed in.
        python: Those of Python's own library.
    """

    machinery: tuple[str, ...]
    installed: tuple[str, ...]
    python: tuple[str, ...]


@functools.cache
def _folders() -> _Folders:
    """The folders that this process imports from: by way of PYTHONPATH, `pip --target`, a .pth file or a link too."""
    own = [str(Path(file).parent) for file in (lengthwise_export.__file__, lengthwise.__file__) if file is not None]
    libraries = [folder for name in _MACHINERY for folder in _folders_of_package(name)]
    sites = [*(sysconfig.get_path(name) for name in ("purelib", "platlib")), *site.getsitepackages()]
    beside = [os.path.dirname(folder) for folder in libraries]
    installed = [*sites, site.getusersitepackages(), *beside, *filter(_is_installed_in, sys.path)]
    here = os.getcwd()
    return _Folders(
        machinery=_with_separators([*own, *libraries]),
        installed=_with_separators(folder for folder in installed if os.path.abspath(folder) != here),
        python=_with_separators(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
    )


def _folders_of_package(name: str) -> list[str]:
    """Where a package's modules lie, imported or not; none where it is not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a stand-in without a spec
        return []
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _is_installed_in(folder: str) -> bool:
    """Whether an installer put packages into a folder: it leaves a `.dist-info` for each."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder or os.curdir))
    except OSError:
        return False


def _with_separators(folders: Iterable[str]) -> tuple[str, ...]:
    """Folders as they are called and as they are without links, each with a separator behind it."""
    named = [name for folder in folders for name in (os.path.abspath(folder), os.path.realpath(folder))]
    return tuple(dict.fromkeys(name + os.sep for name in named))


@functools.lru_cache(maxsize=4096)
def _belongs_to(file: str) -> int:
    """How near a file is to the user: 2 their own, 1 a package they installed, 0 Python, torch or this package."""
    folders = _folders()
    if file.startswith(("<", *folders.machinery)):
        return 0
    if file.startswith(folders.installed):
        return 1
    return 0 if file.startswith(folders.python) else 2


def is_users(file: str, *, installed: bool = False) -> bool:
    """Whether a file is of the user's own code; with `installed`, a package they installed counts as well."""
    return _belongs_to(file) >= (1 if installed else 2)


def _innermost(calls: list[tuple[str, int, str]]) -> CodeLocation | None:
    """Of calls, outermost first, the innermost in the user's own code, or else in a package that they installed."""
    for nearness in (2, 1):
        for file, line, function in reversed(calls):
            if _belongs_to(file) == nearness:
                return CodeLocation(file, line, linecache.getline(file, line).strip(), function)
    return None


def current_location() -> CodeLocation | None:
    """The line of the user's code that runs now, below the first call of this package; None where there is none."""
    calls = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        calls.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    calls.reverse()
    below = next((index for index, call in enumerate(calls) if call[0].startswith(_OWN)), 0)
    return _innermost(calls[below:])


def location_of(error: BaseException) -> CodeLocation | None:
    """The line of the user's code that an exception, or what caused it, passed through; None where there is none."""
    calls = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    location = _innermost(calls)
    return location_of(error.__cause__) if location is None and error.__cause__ is not None else location


def error_text(error: BaseException) -> str:
    """What an exception of somebody's code says, in one line."""
    if isinstance(error, SystemExit):
        return f"it quits with SystemExit({error.code!r})"
    return str(error).strip().split("\n")[0]


def location_in(stack: str) -> CodeLocation | None:
    """The line of the user's code in a stack as text, such as a traced operator carries; None where there is none."""
    calls = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', stack)
    return _innermost([(file, int(line), function) for file, line, function in calls])
