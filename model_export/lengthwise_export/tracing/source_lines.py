"""Finds the line of the user's code that called an operator or raised an error.

That is the innermost frame on the stack that belongs neither to torch, nor to this package, nor to another installed
package. If there is none, the innermost frame of an installed package is used.

The *owner* of a file is one of three: `_USERS`, another `_INSTALLED` package, or `_NOT_USERS`, which is Python, torch,
another library that is used here, or this package itself.
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
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """A line of code."""

    file: str
    line: int
    source: str  # The text of the line without indentation; empty if the file cannot be read
    function: str  # The name of the function that the line is in
    # The line of an installed package that ran in a call by this line; None if the line calls no such package
    inside: CodeLocation | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """`path:line`, and in brackets that of the line inside a library: `net.py:9 (lib/part.py:4)`."""
        return f"{self.file_and_line}" + ("" if self.inside is None else f" ({self.inside.file_and_line})")

    @property
    def file_and_line(self) -> str:
        """`path:line`; the path is relative to the working directory, or to the folder of installed packages."""
        folder = next((folder for folder in _folders()[1] if self.file.startswith(folder)), None)
        return f"{relative_path(self.file) if folder is None else self.file.removeprefix(folder)}:{self.line}"

    def description(self) -> str:
        """The line and its text, then the line inside a library: ``net.py:9: `f(x)`, in lib/part.py:4: `x.item()```."""
        inside = "" if self.inside is None else f", in {self.inside.description()}"
        return f"{self.file_and_line}: `{self.source}`{inside}"


def location_as_json(location: CodeLocation | None) -> dict[str, str | int | None]:
    """The keys `file`, `line` and `source` of a report in JSON; all are null if the location is not known."""
    if location is None:
        return {"file": None, "line": None, "source": None}
    return {"file": relative_path(location.file), "line": location.line, "source": location.source}


def relative_path(file: str) -> str:
    """The path of a file relative to the working directory; unchanged if the file is not below it."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


_OWN: Final = str(Path(__file__).parent) + os.sep  # this folder; paths of its files begin with it

_OWN_PACKAGES: Final = ("lengthwise", "lengthwise_export")

_MACHINERY: Final = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy", "keras")
"""Packages that are never the user's code, wherever they are installed."""


@functools.cache
def _folders() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The folders whose code is not the user's, in three tuples; each path ends in a separator.

    1. The folders of these packages and of the libraries that it uses.
    2. The folders of other installed packages, wherever this process imports them from: also through PYTHONPATH,
       `pip --target`, a .pth file or a link.
    3. The folders of Python's standard library.
    """
    own_folders = [folder for name in _OWN_PACKAGES for folder in _folders_of_package(name)]
    libraries = [folder for name in _MACHINERY for folder in _folders_of_package(name)]
    sites = [*(sysconfig.get_path(name) for name in ("purelib", "platlib")), *site.getsitepackages()]
    around_libraries = [os.path.dirname(folder) for folder in libraries]
    installed = [*sites, site.getusersitepackages(), *around_libraries, *filter(_is_installed_in, sys.path)]
    working_folder = os.getcwd()  # holds the user's code, even if packages are installed there too
    standard_library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return (
        _path_beginnings([*own_folders, *libraries]),
        _path_beginnings([folder for folder in installed if os.path.abspath(folder) != working_folder]),
        _path_beginnings(standard_library),
    )


def _path_beginnings(folders: Iterable[str]) -> tuple[str, ...]:
    """What the paths of files in these folders begin with: each folder as it is named, and with its links resolved."""
    paths = (path for folder in folders for path in (os.path.abspath(folder), os.path.realpath(folder)))
    return tuple(dict.fromkeys(path + os.sep for path in paths))


def _folders_of_package(name: str) -> list[str]:
    """The folders of a package's modules; empty if it is not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a stub module without a spec
        return []
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _is_installed_in(folder: str) -> bool:
    """Whether packages are installed in a folder: each of them has an entry `*.dist-info` there."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder or os.curdir))
    except OSError:
        return False


_NOT_USERS, _INSTALLED, _USERS = range(3)
"""The owners of a file, see the module; a larger number is nearer to the user."""


@functools.cache
def _owner_of_folder(folder: str) -> int:
    """The owner of the files in a folder."""
    libraries, installed, standard_library = _folders()
    path = folder + os.sep
    if path.startswith(libraries):
        return _NOT_USERS
    if path.startswith(installed):
        return _INSTALLED
    return _NOT_USERS if path.startswith(standard_library) else _USERS


def _owner(file: str) -> int:
    """The owner of a file; code without a file, such as `<string>`, is not the user's."""
    return _NOT_USERS if file.startswith("<") else _owner_of_folder(file.rpartition(os.sep)[0])


def is_users(file: str, *, installed: bool = False) -> bool:
    """Whether a file is the user's code; with `installed`, other installed packages count as well."""
    return _owner(file) >= (_INSTALLED if installed else _USERS)


def modules_of_user(packages: Collection[str] = ()) -> list[ModuleType]:
    """The imported modules of the user's code, and of some installed packages.

    Args:
        packages: The names of these packages, such as those that define parts of a model.
    """
    modules = []
    for name, module in list(sys.modules.items()):
        # Read from `__dict__`: reading an attribute of a lazy module would import it
        file = getattr(module, "__dict__", {}).get("__file__")
        required_owner = _INSTALLED if name.partition(".")[0] in packages else _USERS  # or one nearer to the user
        # The body of `_owner`, without the call for speed: there are thousands of modules
        if isinstance(file, str) and file[:1] != "<" and _owner_of_folder(file.rpartition(os.sep)[0]) >= required_owner:
            modules.append(module)
    return modules


def _innermost(calls: list[tuple[str, int, str]]) -> CodeLocation | None:
    """The line of the innermost call in the user's code; else in an installed package; None if there is neither.

    If the user's line called an installed package, the innermost line of that is in the field `inside`.

    Args:
        calls: File, line and function of each call on the stack, outermost first.
    """
    in_package: CodeLocation | None = None  # the innermost line of an installed package, so far
    for file, line, function in reversed(calls):
        owner = _owner(file)
        if owner == _USERS or (owner == _INSTALLED and in_package is None):
            location = CodeLocation(file, line, linecache.getline(file, line).strip(), function)
            if owner == _USERS:
                return replace(location, inside=in_package)
            in_package = location
    return in_package


def current_location() -> CodeLocation | None:
    """The line of the user's code that is running; None if there is none.

    Only frames that this package has called count, directly or not. The user's code that called the package, as in
    `check(...)`, is not meant.
    """
    outwards = traceback.walk_stack(sys._getframe(1))
    calls = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in outwards][::-1]
    outermost_of_package = next((index for index, call in enumerate(calls) if call[0].startswith(_OWN)), 0)
    return _innermost(calls[outermost_of_package:])


def location_of_frame(frame: FrameType | None) -> CodeLocation | None:
    """The line that runs in a frame, or else in the innermost frame around it that is the user's or a library's.

    None if there is no such frame.
    """
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


# The keys of a node's metadata, as torch's exporter writes them
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
    """The name of a node for messages: `module.path: kind` for a traced one, such as `encoder.layers.0: Softmax`.

    It is `kind` alone if the node is outside of any submodule. A node that was not traced has its own name.
    """
    try:
        scopes = ast.literal_eval(_metadata(node, _SCOPES) or "None")
    except (SyntaxError, ValueError):
        scopes = None
    # The last scope is the node itself, those before it are modules.
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str)] if isinstance(scopes, list) else []
    paths = [scope.partition(".")[2] for scope in modules if scope.partition(".")[0] == _WRAPPED]
    if not paths:
        return node.name or f"{node.op_type} giving {next(filter(None, node.output), '')}"
    return f"{paths[-1]}: {node.op_type}" if paths[-1] else node.op_type


def is_translation_of(node: onnx.NodeProto, operator: str) -> bool:
    """Whether a traced node belongs to the translation of an operator of torch, such as `sort.stable`."""
    return operator in _metadata(node, _NAMESPACE)


def _metadata(node: onnx.NodeProto, key: str) -> str:
    """The value of a key in a node's metadata; empty if it has no such key."""
    return next((entry.value for entry in node.metadata_props if entry.key == key), "")
