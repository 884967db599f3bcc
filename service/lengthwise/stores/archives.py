"""Extracts tar archives that others made: writes plain files only, only into one folder, and within limits."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Final

from lengthwise.errors import ConfigurationError, LengthwiseError

MOST_FILES: Final = 20_000  # of one fetch, which are written
MOST_MEMBERS: Final = 200_000  # of the archives of one fetch: an image has those of the system that it is built from
MOST_BYTES: Final = 2**36
MOST_SECONDS: Final = 7200.0
_DEEPEST: Final = 32  # folders in folders
_PIECE_BYTES: Final = 2**20  # that are read or skipped between two looks at the time
_MOST_HEADER_BYTES: Final = 2**20  # of the long names and attributes before a file, which are read into the memory


class FetchLimits:
    """Counts the files, bytes and seconds of one fetch, so that it can neither fill the disk nor go on for ever."""

    def __init__(self, where: str, cure: str = "name a part of it") -> None:
        """Begins to count; `cure` is what a message says to do if a fetch is too large."""
        self._where, self._cure = where, cure
        self._files = self._members = self._bytes = 0
        self._end = time.monotonic() + MOST_SECONDS

    def allow(self, size: int, *, files: int = 1, members: int = 0) -> bool:
        """Counts a file of `size` bytes before it is written. Returns True if the limits allow it, or raises.

        With `files=0`, counts bytes of a file as they come; `members` are those of an archive, written or not.

        Raises:
            ConfigurationError: The fetch has more than `MOST_FILES` files, `MOST_MEMBERS` members or `MOST_BYTES`
                bytes, has taken more than `MOST_SECONDS`, or has a file of less than no bytes.
        """
        if size < 0 or time.monotonic() > self._end:
            why = "has a file whose size makes no sense" if size < 0 else f"is not fetched after {MOST_SECONDS:.0f} s"
            raise ConfigurationError(f"{self._where} {why}")
        self._files, self._bytes = self._files + files, self._bytes + size
        self._members += members
        if self._files > MOST_FILES or self._members > MOST_MEMBERS or self._bytes > MOST_BYTES:
            most = f"{MOST_MEMBERS} members" if self._members > MOST_MEMBERS else f"{MOST_FILES} files"
            raise ConfigurationError(
                f"{self._where} holds more than {most} or {MOST_BYTES // 2**30} GiB, which is too much for models: "
                f"{self._cure}"
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

    look: Callable[[], object] = staticmethod(lambda: None)  # called between the pieces of a member that is skipped

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

        def seek(position: int) -> None:
            """Skips the rest of a member, which is inflated for that."""
            for place in range(file.tell() + _PIECE_BYTES, position, _PIECE_BYTES):
                self.look()
                file.seek(place)
            file.seek(position)

        self.fileobj = SimpleNamespace(read=read, seek=seek, tell=file.tell)
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
    limits, end = limits or FetchLimits(where), 0
    prefix = f"{inside}/" if inside else ""
    try:
        with _Archive.open(archive) as tar:
            tar.look = look = partial(limits.allow, 0, files=0)
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # an attribute of every release, which keeps all of them
                tar.pax_headers = {}  # the same for headers of the whole archive, which no model needs
                name = str(PurePosixPath(member.name))
                is_written = name.startswith(prefix) and not member.isdir()
                # Its bytes, and those of its headers. With a false size, the next header would be before this one,
                # and again and again.
                size = max(member.size, tar.offset - end) if tar.offset > member.offset else -1
                limits.allow(size, files=is_written, members=1)
                end = tar.offset
                if not is_written:
                    continue
                if not member.isreg():
                    raise ConfigurationError(f"{where} has a link or device {member.name!a:.200}; files are expected")
                if (content := tar.extractfile(member)) is not None:
                    with content, file_in(folder, name.removeprefix(prefix), where).open("wb") as file:
                        pieces = SimpleNamespace(read=lambda size, content=content: look() and content.read(size))
                        shutil.copyfileobj(pieces, file, _PIECE_BYTES)
    except Exception as error:  # each compression has errors of its own; an errno is of a file that is written
        if isinstance(error, LengthwiseError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = str(error).partition("\n")[0].rstrip(":")  # the other lines are of each compression that was tried
        raise ConfigurationError(f"{where} cannot be read as a tar archive: {why}") from error
