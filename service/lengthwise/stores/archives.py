"""Tar archives from elsewhere, of which only plain files are written, and only into a folder."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

from lengthwise.errors import ConfigurationError, LengthwiseError

MOST_FILES: Final = 20_000  # of one fetch
MOST_BYTES: Final = 2**36
_DEEPEST: Final = 32  # folders in folders
_MOST_HEADER_BYTES: Final = 2**20  # of the names and marks before a file, which are read into the memory


class FetchLimits:
    """Counts the files and bytes of one fetch."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._files = self._bytes = 0

    def add(self, size: int) -> bool:
        """Counts a file before it is written; returns True.

        Raises:
            ConfigurationError: These are too many files, or bytes.
        """
        self._files, self._bytes = self._files + 1, self._bytes + size
        if self._files > MOST_FILES or self._bytes > MOST_BYTES:
            raise ConfigurationError(
                f"{self._where} holds more than {MOST_FILES} files or {MOST_BYTES // 2**30} GiB, which is too much for "
                "models: name a part of it"
            )
        return True


def file_in(folder: Path, name: str, where: str) -> Path:
    """The path of a file in a folder, by the name that it has elsewhere; its parents are made.

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
    """A member of an archive, whose headers take little memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Reads a header.

        Raises:
            ReadError: What follows it belongs to it, and has very many bytes.
        """
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and member.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"one of its headers has {member.size} bytes")
        return member


def extract(archive: Path, folder: Path, where: str, *, inside: str = "") -> None:
    """Writes the files of a tar archive into a folder; with `inside` only the files of that folder in the archive.

    Raises:
        ConfigurationError: It is no tar archive, is cut off, is too large, or has something else than plain files.
    """
    limits, prefix = FetchLimits(where), f"{inside}/" * bool(inside)
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # an attribute of every release, which keeps all of them
                name = str(PurePosixPath(member.name))
                if member.isdir() or not name.startswith(prefix):
                    continue
                if not member.isreg():
                    raise ConfigurationError(f"{where} has a link or device {member.name!a:.200}; files are expected")
                limits.add(member.size)
                if (content := tar.extractfile(member)) is not None:
                    with content, file_in(folder, name.removeprefix(prefix), where).open("wb") as file:
                        shutil.copyfileobj(content, file, 2**20)
    except Exception as error:  # each of the compressions has its own; with a number it is of a file that is written
        if isinstance(error, LengthwiseError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = str(error).partition("\n")[0].rstrip(":")  # the other lines are of each compression that was tried
        raise ConfigurationError(f"{where} cannot be read as a tar archive: {why}") from error
