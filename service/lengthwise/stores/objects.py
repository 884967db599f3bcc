"""Objects of S3, Google Cloud Storage and Azure, and archives on web servers: by obstore, with its credentials.

The *meta* of an object is obstore's dictionary about it: its path, size, ETag and time of change.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import HTTPStore, from_url

from lengthwise import files
from lengthwise.addresses import ARCHIVE_SUFFIXES, Address
from lengthwise.errors import ConfigurationError, StoreUnreachable, VerificationError
from lengthwise.stores import archives, is_temporary, write_answer

if TYPE_CHECKING:
    from obstore import ObjectMeta

# When an answer is there, a thread of obstore still lets go of the event loop that waited for it, which takes the
# interpreter lock. Where the interpreter has ended, that aborts the process. So its end gives the lock away first.
atexit.register(time.sleep, 0.1)

_RETRIES: Final[Any] = {"max_retries": 3, "retry_timeout": timedelta(minutes=5)}
_WEB_CLIENT: Final[Any] = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "1d"}
_PART_BYTES: Final = 2**22  # of an object that one request reads, for which obstore allows 30 seconds
_ANSWER_SECONDS: Final = 300.0  # most time for a whole list, whose pages may have no end, or until an answer begins
_HINTS: Final = {
    "builder error": "; a store without TLS needs AWS_ALLOW_HTTP=true, or AZURE_ALLOW_HTTP=true",
    "answers 401": "; docs/model-addresses.md says where credentials are read",
    "answers 403": "; docs/model-addresses.md says where credentials are read",
    "answers 404": ": nothing is there that you may see",
}
_STATUS: Final = re.compile(r"status code: ((\d{3}) [\w ]+)")  # groups: the status with its phrase, and its number


class ObjectSource:
    """The objects below a path, or an archive: a `StoreContent`."""

    def __init__(self, address: Address) -> None:
        """Asks the store for a list of the objects below the path; a web server for the archive, which is read later.

        Raises:
            ConfigurationError: The store refuses, or there is nothing, or too much.
            StoreUnreachable: The store gives no answer.
        """  # noqa: DOC502 - what it calls raises one of them
        self._where, self._digest = str(address), address.digest
        self._is_web = address.scheme.startswith("http")
        self._is_archive = self._is_web or address.path.endswith(ARCHIVE_SUFFIXES)
        limits = archives.FetchLimits(self._where)
        # What is there
        with _plain_errors(self._where):
            if self._is_web:  # one request, because a signed URL allows no other
                client: Any = {**_WEB_CLIENT, "allow_http": address.scheme == "http"}
                store = HTTPStore(address.url, client_options=client, retry_config=_RETRIES)
                self._answer = _in_time(lambda: obstore.get_async(store, ""))
                objects = [self._answer.meta]
            else:
                self._store = from_url(address.url, retry_config=_RETRIES)
                objects = _in_time(lambda: self._listed(limits))
        if not self._is_archive:  # empty objects may stand for folders
            paths = {PurePosixPath(meta["path"]) for meta in objects}
            folders = {PurePosixPath(), *(folder for path in paths for folder in path.parents)}
            objects = [meta for meta in objects if PurePosixPath(meta["path"]) not in folders]
        if not objects:
            raise ConfigurationError(f"there is nothing at {address}")
        # The state: a digest of paths, sizes, ETags and times, if the store gives an ETag or a time for each object
        self._objects = sorted(objects, key=lambda meta: meta["path"])
        fingerprints = [
            (meta["path"], meta["size"], meta["e_tag"], str(meta["last_modified"])) for meta in self._objects
        ]
        is_marked = all(meta["e_tag"] or meta["last_modified"].timestamp() for meta in self._objects)
        self.state: str | None = hashlib.sha256(repr(fingerprints).encode()).hexdigest() if is_marked else None

    async def _listed(self, limits: archives.FetchLimits) -> list[ObjectMeta]:
        """Lists the meta of each object below the path, within the limits; of an archive only its own."""
        if self._is_archive:
            return [await self._store.head_async("")]
        return [meta async for part in self._store.list() for meta in part if limits.allow(meta["size"])]

    def download(self, folder: Path) -> str | None:
        """Writes the objects, or the files in the archive, into a folder.

        Returns the SHA-256 of the archive in hexadecimal digits; None for objects.

        Raises:
            VerificationError: The archive has another digest than the address says; nothing of it is read then.
        """
        limits = archives.FetchLimits(self._where)  # of what really comes
        if not self._is_archive:
            for meta in self._objects:
                self._write(meta, archives.file_in(folder, meta["path"], self._where), limits)
            return None
        archive = folder.with_name("archive")
        self._write(self._objects[0], archive, limits)
        digest = files.digest(archive).removeprefix("sha256:")
        if self._digest not in ("", digest):
            raise VerificationError(f"{self._where} has the digest sha256:{digest}, which is not the expected one")
        archives.extract(archive, folder, self._where, limits=limits)
        return digest

    def _write(self, meta: ObjectMeta, path: Path, limits: archives.FetchLimits) -> None:
        """Downloads one object to a file."""
        # A stream waits until it has `min_chunk_size` bytes; with 1, `write_answer` sees how slow they come
        parts = self._answer.stream(min_chunk_size=1) if self._is_web else self._parts(meta)
        with path.open("wb") as file, _plain_errors(self._where):
            write_answer(parts, file, self._where, allow=partial(limits.allow, files=0))

    def _parts(self, meta: ObjectMeta) -> Iterator[obstore.Bytes]:
        """Reads an object in several requests, and yields their answers.

        obstore gives each request 30 seconds, unless the environment says otherwise: too little for a large object.
        """
        for start in range(0, meta["size"], _PART_BYTES):
            yield obstore.get_range(self._store, meta["path"], start=start, end=min(start + _PART_BYTES, meta["size"]))


open_source = ObjectSource


def upload(folder: Path, address: Address) -> str:
    """Uploads the files of a folder below the path of an address; returns the address.

    JSON files, such as manifests, come last: a version with a manifest is complete.

    Raises:
        ConfigurationError: The store refuses a file.
    """  # noqa: DOC502 - what it calls raises it
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".json")
    with _plain_errors(str(address)):
        store = from_url(address.url, retry_config=_RETRIES)
        for path in paths:
            obstore.put(store, path.relative_to(folder).as_posix(), path)
    return str(address)


def _in_time(call: Callable[[], Awaitable[Any]]) -> Any:
    """Runs an asynchronous call of obstore, and returns its result; it raises TimeoutError after `_ANSWER_SECONDS`."""

    async def answer() -> Any:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await call()

    return asyncio.run(answer())


@contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """Converts the errors that obstore raises in the block to errors of this package.

    Their texts have no URLs, which may hold a signature. obstore has the HTTP status in its texts only.

    Raises:
        ConfigurationError: The store refuses, or cannot be called with the variables of the environment.
        StoreUnreachable: It gives no answer, or a status that may be over later.
    """
    try:
        yield
    except TimeoutError:
        raise StoreUnreachable(f"{where}: no answer of the store within {_ANSWER_SECONDS:.0f} s") from None
    except (BaseError, FileNotFoundError, PermissionError) as error:
        line = str(error).partition("\n")[0]
        status = _STATUS.search(line)  # None: the error came before an answer
        why = f"the store answers {status[1]}" if status else f"no answer of the store ({line.rpartition(' - ')[2]})"
        why += next((hint for text, hint in _HINTS.items() if text in why), "")
        if isinstance(error, GenericError) and (status is None or is_temporary(int(status[2]))):
            raise StoreUnreachable(f"{where}: {why}") from None
        raise ConfigurationError(f"{where}: {why if status else line}") from None
    except BaseException as error:  # a panic of Rust may be no Exception, and its classes cannot be imported
        if type(error).__name__ not in ("PanicException", "RustPanic"):
            raise
        raise ConfigurationError(
            f"{where}: obstore fails with the variables of the store, such as its endpoint: {error}"
        ) from None
