"""Model directories whose golden sequences are spoilt."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.lib import format as numpy_format

from lengthwise.runtime.manifest import GOLDEN_FILE
from tests.support.model_directories import sign

npy: Any = numpy_format  # it has no type annotations


def rewritten(directory: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], **how: Any) -> None:
    """Writes the archive anew, with its right digest."""
    with zipfile.ZipFile(directory / GOLDEN_FILE) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(directory / GOLDEN_FILE, "w", **how) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)
    sign(directory)


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """An array of that shape that holds nothing."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def text_for_lengths(directory: Path) -> None:
    rewritten(directory, lambda members: members | {"lengths.npy": b"hello"})


def trillions_of_steps(directory: Path) -> None:
    rewritten(directory, lambda members: members | {"steps.npy": header((10**12, 12))})


def patched(directory: Path, local: int, central: int, value: bytes) -> None:
    """Changes a field of every entry, in its own header and in the list of all."""
    content = bytearray((directory / GOLDEN_FILE).read_bytes())
    for sign_of, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        place = content.find(sign_of)
        while place >= 0:
            content[place + offset : place + offset + len(value)] = value
            place = content.find(sign_of, place + 4)
    (directory / GOLDEN_FILE).write_bytes(content)
    sign(directory)


def encrypted(directory: Path) -> None:
    patched(directory, 6, 8, b"\x01\x00")
