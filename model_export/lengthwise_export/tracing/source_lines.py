"""Finds the line of the user's code that called an operator or raised an error.

That is the innermost frame on the stack that belongs neither to torch, nor to this package, nor to another installed
package. If there is none, the innermost frame of an installed package is used.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import linecache
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

import lengthwise
import lengthwise_export

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """A line of code."""

    file: str
    line: int
    source: str  # The text of the line without indentation; empty if the file cannot be read
    function: str
    # The line of an installed package that this line's call leads to; None if it leads to none
    inside: CodeLocation | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """`path:line`, and in brackets the line of a library; paths below the working directory are relative."""
        return f"{self.file_and_line}" + ("" if self.inside is None else f" ({self.inside.file_and_line})")

    @property
    def file_and_line(self) -> str:
        """`path:line`; the path of an installed package begins with its name."""
        folder = next((folder for folder in _folders()[1] if self.file.startswith(folder)), None)
        return f"{relative_path(self.file) if folder is None else self.file.removeprefix(folder)}:{self.line}"

    def description(self) -> str:
        """The line with its text, and the line of a library: ``net.py:9: `y = f(x)`, in lib/part.py:4: `x.item()```."""
        inside = "" if self.inside is None else f", in {self.inside.description()}"
        return f"{self.file_and_line}: `{self.source}`{inside}"


def location_as_json(location: CodeLocation | None) -> dict[str, str | int | None]:
    """`file`, `line` and `source` of a report in JSON; all null if the line is unknown."""
    if location is None:
        return {"file": None, "line": None, "source": None}
    return {"file": relative_path(location.file), "line": location.line, "source": location.source}


def relative_path(file: str) -> str:
    """The path relative to the working directory if the file is below it, otherwise unchanged."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


_OWN: Final = str(Path(__file__).parent) + os.sep

_MACHINERY: Final = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy", "keras")
"""Packages that are never the user's code, wherever they are installed."""


@functools.cache
def _folders() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Three tuples of folders whose code is not the user's; each path ends in a separator.

    1. The folders of this package and of the libraries that it uses.
    2. The folders of other installed packages, wherever this process imports them from: also through PYTHONPATH,
       `pip --target`, a .pth file or a link.
    3. The folders of Python's standard library.

    Each folder is listed with its links resolved, and as it was named.
    """
    own = [str(Path(file).parent) for file in (lengthwise_export.__file__, lengthwise.__file__) if file is not None]
    libraries = [folder for name in _MACHINERY for folder in _folders_of_package(name)]
    sites = [*(sysconfig.get_path(name) for name in ("purelib", "platlib")), *site.getsitepackages()]
    around_libraries = [os.path.dirname(folder) for folder in libraries]
    installed = [*sites, site.getusersitepackages(), *around_libraries, *filter(_is_installed_in, sys.path)]
    here = os.getcwd()
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    parts = ([*own, *libraries], [folder for folder in installed if os.path.abspath(folder) != here], python)
    machinery, others, standard = (
        tuple(
            dict.fromkeys(
                path + os.sep for folder in part for path in (os.path.abspath(folder), os.path.realpath(folder))
            )
        )
        for part in parts
    )
    return machinery, others, standard


def forget_folders() -> None:
    """Clears the cached folders of packages, after a change of `sys.path`."""
    _folders.cache_clear()
    _owner_of_folder.cache_clear()


def _folders_of_package(name: str) -> list[str]:
    """The folders of a package's modules; none if it is not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a stub module without a spec
        return []
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _is_installed_in(folder: str) -> bool:
    """Whether packages are installed in a folder: each of them has a `.dist-info`."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder or os.curdir))
    except OSError:
        return False


_OTHERS, _INSTALLED, _USERS = range(3)
"""Who owns a file: Python, torch, another library we use or this package; another installed package; or the user."""


@functools.cache
def _owner_of_folder(folder: str) -> int:
    machinery, installed, python = _folders()
    inside = folder + os.sep
    if inside.startswith(machinery):
        return _OTHERS
    if inside.startswith(installed):
        return _INSTALLED
    return _OTHERS if inside.startswith(python) else _USERS


def _owner(file: str) -> int:
    """Who owns a file; code without a file, such as `<string>`, is not the user's."""
    return _OTHERS if file.startswith("<") else _owner_of_folder(file.rpartition(os.sep)[0])


def is_users(file: str, *, installed: bool = False) -> bool:
    """Whether a file is the user's code; with `installed`, other installed packages count as well."""
    return _owner(file) >= (_INSTALLED if installed else _USERS)


def modules_of_user(packages: Collection[str] = ()) -> list[ModuleType]:
    """The imported modules of the user's code.

    Args:
        packages: Installed packages whose modules count too, such as those that define parts of a model.
    """
    modules = []
    for name, module in list(sys.modules.items()):
        # Read from `__dict__`: an attribute of a lazy module would import it
        file = getattr(module, "__dict__", {}).get("__file__")
        least_owner = _INSTALLED if name.partition(".")[0] in packages else _USERS
        # `_owner`, written out for speed: there are thousands of modules
        if isinstance(file, str) and file[:1] != "<" and _owner_of_folder(file.rpartition(os.sep)[0]) >= least_owner:
            modules.append(module)
    return modules


def _innermost(calls: list[tuple[str, int, str]]) -> CodeLocation | None:
    """The innermost call in the user's code, otherwise in an installed package.

    Args:
        calls: File, line and function of each call on the stack, outermost first.
    """
    inside: CodeLocation | None = None
    for file, line, function in reversed(calls):
        owner = _owner(file)
        if owner == _USERS or (owner == _INSTALLED and inside is None):
            location = CodeLocation(file, line, linecache.getline(file, line).strip(), function)
            if owner == _USERS:
                return replace(location, inside=inside)
            inside = location
    return inside


def current_location() -> CodeLocation | None:
    """The line of the user's code that is running, inside the outermost call of this package; None if there is none."""
    outwards = traceback.walk_stack(sys._getframe(1))
    calls = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in outwards][::-1]
    outermost_of_package = next((index for index, call in enumerate(calls) if call[0].startswith(_OWN)), 0)
    return _innermost(calls[outermost_of_package:])


def location_of_frame(frame: FrameType | None) -> CodeLocation | None:
    """The line that runs in a frame, or in the first frame around it that is the user's; None if there is none."""
    while frame is not None and not is_users(frame.f_code.co_filename, installed=True):
        frame = frame.f_back
    return None if frame is None else _innermost([(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)])


def location_of(error: BaseException) -> CodeLocation | None:
    """The line of the user's code in the traceback of an exception or of its cause; None if there is none."""
    calls = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    location = _innermost(calls)
    return location_of(error.__cause__) if location is None and error.__cause__ is not None else location


def error_text(error: BaseException) -> str:
    """The first line of an exception's message; for `SystemExit`, which has none, its exit code."""
    if isinstance(error, SystemExit):
        return f"it quits with SystemExit({error.code!r})"
    return str(error).strip().split("\n")[0]


def location_in(stack: str) -> CodeLocation | None:
    """The line of the user's code in a stack trace as text, such as that of a traced node; None if there is none."""
    calls = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', stack)
    return _innermost([(file, int(line), function) for file, line, function in calls])


_STACK: Final = "pkg.torch.onnx.stack_trace"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_NAMESPACE: Final = "namespace"
_EXPORTER: Final = "torch/"  # how torch's exporter begins the path of its own code, for nodes that only compute sizes
_WRAPPED: Final = "model"  # the attribute of the traced wrapper that holds the user's module; see `capture`


def location_of_node(node: onnx.NodeProto) -> CodeLocation | None:
    """The line of the user's code that a node computes; None if its metadata does not tell."""
    location = location_in(_metadata(node, _STACK))
    return None if location is None or location.file.startswith(_EXPORTER) else location


def operator_name(node: onnx.NodeProto) -> str:
    """`module.path: kind` of a traced node, or `kind` outside of an inner module; for other nodes their own names."""
    try:
        scopes = ast.literal_eval(_metadata(node, _SCOPES) or "None")
    except (SyntaxError, ValueError):
        scopes = None
    # The last scope is the node itself, those before it are modules.
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str)] if isinstance(scopes, list) else []
    paths = [scope.partition(".")[2] for scope in modules if scope.partition(".")[0] == _WRAPPED]
    if not paths:
        return node.name or f"{node.op_type} giving {node.output[0]}"
    return f"{paths[-1]}: {node.op_type}" if paths[-1] else node.op_type


def is_translation_of(node: onnx.NodeProto, operator: str) -> bool:
    """Whether a traced node belongs to the translation of an operator of torch, such as `sort.stable`."""
    return operator in _metadata(node, _NAMESPACE)


def _metadata(node: onnx.NodeProto, key: str) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == key), "")
