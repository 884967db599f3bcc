"""Recognises files that hold a whole model as a program or a pickle, and says how to convert them.

They are not loaded, because loading them runs code that is in them:

    TorchScript (torch.jit.save)     its code runs in torch's interpreter, which can also write files
    torch.export.save                torch.export.load unpickles parts of it, and evaluates texts in it
    pickles of objects (torch.save)  unpickling calls whatever functions it names
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

# The suffixes that such files have, and files of weights too
SUFFIXES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pt2", ".ptl", ".jit", ".torchscript", ".pkl", ".pickle"})
# torch before 1.6 wrote some pickles in a row: a number, a version, the machine, the object, the keys of tensors
_PICKLES_OF_OLD_FILES: Final = 5
# Where the names in a file of weights are defined
_OF_WEIGHTS: Final = re.compile(r"(collections|copyreg|_codecs|builtins|numpy|torch|torch\._utils|torch\.storage)\s")

_FACTORY: Final = "and name the function that returns the module, as in package.module:factory --checkpoint weights.pt"
FROM_TORCHSCRIPT: Final = (
    "Write it as a graph where it was made, with torch.onnx.export(torch.jit.load('model.pt'), (x,), 'model.onnx', "
    "dynamo=False, input_names=['x'], dynamic_axes={'x': {0: 'rows', 1: 'width'}}), where width is axis 2 of a model "
    "that takes [rows, features, width]"
)
_FROM_EXPORTED_PROGRAM: Final = (
    "If you trust it, write a function that returns torch.export.load('model.pt2').module(), and name it, as in "
    "package.module:factory"
)
_FROM_PICKLE: Final = (
    "If you trust it, load it where it was made, write the weights with torch.save(model.state_dict(), 'weights.pt'), "
    f"{_FACTORY}"
)
_FROM_LEARNER: Final = (
    "If you trust it, load it where it was made with learn = load_learner(...), write the weights with "
    f"torch.save(learn.model.state_dict(), 'weights.pt'), {_FACTORY} --channels-first --mend"
)


def why_refused(path: Path) -> str | None:
    """Why a file is not loaded, and what to do instead; None if it may hold weights only, or is not a file of torch."""
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), path.open("rb") as file:
        first_bytes = file.read(2)
        file.seek(0)
        if first_bytes == b"PK":
            return _why_archive(path, file)
        if first_bytes.startswith(b"\x80"):
            # Each call of `_names_in_pickle` reads one of the pickles, which follow each other in an old file
            return _why_pickle(path, (name for _ in range(_PICKLES_OF_OLD_FILES) for name in _names_in_pickle(file)))
    return None


def _why_archive(path: Path, file: IO[bytes]) -> str | None:
    """Why an open zip archive, which torch's newer formats are, is not loaded; None if it may hold weights only."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for pattern, kind, instead in (
            (r"[^/]+/(code/.*|constants\.pkl)", "is TorchScript", FROM_TORCHSCRIPT),
            (
                r"([^/]+/)?(models/.+\.json|serialized_exported_program\.json)",
                "was written by torch.export.save",
                _FROM_EXPORTED_PROGRAM,
            ),
        ):
            if any(re.fullmatch(pattern, name) for name in names):
                return f"{path} {kind}, and loading it would run code. {instead}"
        data = next((name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)), None)
        return None if data is None else _why_pickle(path, _names_in_pickle(archive.open(data)))


def _why_pickle(path: Path, names: Iterator[str]) -> str | None:
    """Why a pickle that names these functions and classes (each `module name`) is not loaded; None if it may be."""
    foreign_name = next((name.replace(" ", ".") for name in names if not _OF_WEIGHTS.match(name)), None)
    if foreign_name is None:
        return None
    instead = _FROM_LEARNER if foreign_name.startswith(("fastai.", "tsai.")) else _FROM_PICKLE
    return f"{path} holds more than weights: a pickled {foreign_name}, and loading it would run code. {instead}"


def _names_in_pickle(file: IO[bytes]) -> Iterator[str]:
    """Yields the functions and classes that a pickle names, each as `module name`; that of the whole object is first.

    Reads the pickle's operations without running them.
    """
    texts: list[str] = []  # all texts that the pickle has put on its stack
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            yield str(argument)
        elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
            yield f"{texts[-2]} {texts[-1]}"
        elif isinstance(argument, str):
            texts.append(argument)
