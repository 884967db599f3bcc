"""Extracts tar archives that others made: writes plain files only, only into one folder, and within limits."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

from lengthwise.errors import ConfigurationError, LengthwiseError

MOST_FILES: Final = 20_000  # of one fetch
MOST_BYTES: Final = 2**36
_DEEPEST: Final = 32  # folders in folders
_MOST_HEADER_BYTES: Final = 2**20  # of the long names and attributes before a file, which are read into the memory


class FetchLimits:
    """Counts the files and bytes of one fetch, so that it cannot fill the disk."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._files = self._bytes = 0

    def allow(self, size: int) -> bool:
        """Counts a file of `size` bytes before it is written. Returns True if the limits allow it, or raises.

        Raises:
            ConfigurationError: The fetch has more than `MOST_FILES` files, or more than `MOST_BYTES` bytes.
        """
        self._files, self._bytes = self._files + 1, self._bytes + size
        if self._files > MOST_FILES or self._bytes > MOST_BYTES:
            raise ConfigurationError(
                f"{self._where} holds more than {MOST_FILES} files or {MOST_BYTES // 2**30} GiB, which is too much for "
                "models: name a part of it"
            )
        return True


def file_in(folder: Path, name: str, where: str) -> Path:
    """The path in a folder for a file with the name that the store gives it; creates the folders above it.

    Raises:
        ConfigurationError: The name leads out of the folder, or too deep into it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or len(path.parts) > _DEEPEST:
        raise ConfigurationError(f"{where} has a file {name!a:.200}, which would lie outside its folder, or too deep")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


class _Member(tarfile.TarInfo):
    """A member of a tar archive; one with very large headers, which tarfile reads into the memory, is refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Parses the header of a member; tarfile calls it.

        Raises:
            ReadError: The member extends the next header, such as with a long name, and has too many bytes.
        """
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and member.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"one of its headers has {member.size} bytes")
        return member


def extract(archive: Path, folder: Path, where: str, *, inside: str = "") -> None:
    """Writes the files of a tar archive into a folder.

    Args:
        archive: The archive.
        folder: The folder.
        where: The address, for messages.
        inside: A folder of the archive, whose files only are written, without its name; "" for all files.

    Raises:
        ConfigurationError: It is no tar archive, is cut off, is too large, or has something else than plain files.
    """
    limits = FetchLimits(where)
    prefix = f"{inside}/" if inside else ""
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # an attribute of every release, which keeps all of them
                name = str(PurePosixPath(member.name))
                if member.isdir() or not name.startswith(prefix):
                    continue
                if not member.isreg():
                    raise ConfigurationError(f"{where} has a link or device {member.name!a:.200}; files are expected")
                limits.allow(member.size)
                if (content := tar.extractfile(member)) is not None:
                    with content, file_in(folder, name.removeprefix(prefix), where).open("wb") as file:
                        shutil.copyfileobj(content, file, 2**20)
    except Exception as error:  # each compression has errors of its own; an errno is of a file that is written
        if isinstance(error, LengthwiseError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = str(error).partition("\n")[0].rstrip(":")  # the other lines are of each compression that was tried
        raise ConfigurationError(f"{where} cannot be read as a tar archive: {why}") from error
