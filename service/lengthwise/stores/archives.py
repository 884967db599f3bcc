"""Extracts tar archives that others made: writes plain files only, only into one folder, and within limits."""

from __future__ import annotations

import shutil
import tarfile
import time
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Final

from lengthwise.errors import ConfigurationError, LengthwiseError

MOST_FILES: Final = 20_000  # of one fetch
MOST_BYTES: Final = 2**36
MOST_SECONDS: Final = 7200.0
_DEEPEST: Final = 32  # folders in folders
_MOST_HEADER_BYTES: Final = 2**20  # of the long names and attributes before a file, which are read into the memory


class FetchLimits:
    """Counts the files, bytes and seconds of one fetch, so that it can neither fill the disk nor go on for ever."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._files = self._bytes = 0
        self._end = time.monotonic() + MOST_SECONDS

    def allow(self, size: int, *, files: int = 1) -> bool:
        """Counts a file of `size` bytes before it is written. Returns True if the limits allow it, or raises.

        With `files=0`, counts bytes of a file as they come.

        Raises:
            ConfigurationError: The fetch has more than `MOST_FILES` files or `MOST_BYTES` bytes, has taken more than
                `MOST_SECONDS`, or has a file of less than no bytes.
        """
        if size < 0 or time.monotonic() > self._end:
            why = "has a file whose size makes no sense" if size < 0 else f"is not fetched after {MOST_SECONDS:.0f} s"
            raise ConfigurationError(f"{self._where} {why}")
        self._files, self._bytes = self._files + files, self._bytes + size
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


class _Archive(tarfile.TarFile):
    """A tar archive that reads little before each member: its headers, which are in the memory, and maps of holes."""

    def next(self) -> tarfile.TarInfo | None:
        """Reads the headers of the next member; tarfile calls it, also when the archive is opened.

        tarfile reads as much as headers announce, and at the end of a file some of its releases read for ever.
        """
        file, left = self.fileobj, _MOST_HEADER_BYTES

        def read(size: int) -> Any:
            """Reads a part of the headers.

            Raises:
                ReadError: They have too many bytes, or less than none.
            """
            nonlocal left
            if size < 0 or (left := left - size) < 0:
                raise tarfile.ReadError(f"one of its headers has {size} bytes")
            return file.read(size)

        self.fileobj = SimpleNamespace(read=read, seek=file.seek, tell=file.tell)
        try:
            return super().next()
        finally:
            self.fileobj = file


def extract(archive: Path, folder: Path, where: str, *, inside: str = "", limits: FetchLimits | None = None) -> None:
    """Writes the files of a tar archive into a folder.

    Args:
        archive: The archive.
        folder: The folder.
        where: The address, for messages.
        inside: A folder of the archive, whose files only are written, without its name; "" for all files.
        limits: Those of the whole fetch; None if this is all of it. Every member counts, even if it is not written.

    Raises:
        ConfigurationError: It is no tar archive, is cut off, is too large, or has something else than plain files.
    """
    limits = limits or FetchLimits(where)
    prefix = f"{inside}/" if inside else ""
    try:
        with _Archive.open(archive) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # an attribute of every release, which keeps all of them
                tar.pax_headers = {}  # the same for headers of the whole archive, which no model needs
                # With a false size, the next header would be before this one, and again and again
                limits.allow(member.size if tar.offset > member.offset else -1)
                name = str(PurePosixPath(member.name))
                if member.isdir() or not name.startswith(prefix):
                    continue
                if not member.isreg():
                    raise ConfigurationError(f"{where} has a link or device {member.name!a:.200}; files are expected")
                if (content := tar.extractfile(member)) is not None:
                    with content, file_in(folder, name.removeprefix(prefix), where).open("wb") as file:
                        shutil.copyfileobj(content, file, 2**20)
    except Exception as error:  # each compression has errors of its own; an errno is of a file that is written
        if isinstance(error, LengthwiseError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = str(error).partition("\n")[0].rstrip(":")  # the other lines are of each compression that was tried
        raise ConfigurationError(f"{where} cannot be read as a tar archive: {why}") from error
