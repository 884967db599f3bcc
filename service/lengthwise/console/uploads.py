"""Reads an uploaded file of sequences in a process of its own (`file_reader`), one at a time, and keeps nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final, get_args

import orjson
from starlette.types import Receive

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.console.file_reader import COLUMNS_FILE
from lengthwise.datasets.long_table import ColumnNames
from lengthwise.datasets.record_fields import StepKind
from lengthwise.datasets.text_files import CSV_SUFFIXES
from lengthwise.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Problem,
    RequestError,
    UnsupportedMedia,
    how_to_install,
)
from lengthwise.protocols.body import read_body
from lengthwise.repository.modest import LEAST_BYTES, share_of_memory
from lengthwise.settings import passed_to_children

FORMATS: Final = (*CSV_SUFFIXES, ".jsonl", ".jsonl.gz", ".parquet", ".ts")
READ_SECONDS: Final = 20.0
MOST_VALUES: Final = 500_000  # of all sequences in the answer
MEMORY_BYTES: Final = 2**30  # address space of the process that reads a file
_MEMORY_FACTOR: Final = 12  # bytes of an answer for each of its values, about


def parquet_is_installed() -> bool:
    """Whether Parquet files can be read."""
    return importlib.util.find_spec("pyarrow") is not None


class Uploads:
    """Reads uploaded files, one at a time, and counts their bytes."""

    def __init__(self, inflight: Inflight, max_bytes: int) -> None:
        self._inflight = inflight
        self._max_bytes = max_bytes
        self._one = asyncio.Lock()

    async def read(
        self,
        name: str,
        kind: str,
        headers: dict[bytes, bytes],
        receive: Receive,
        columns: ColumnNames | None = None,
    ) -> bytes:
        """The sequences of a file, as the JSON that `file_reader` writes; the end of its name is its format."""
        suffix = _suffix(name)
        if kind not in get_args(StepKind):
            raise InvalidRequest([Problem("", f"query parameter kind: must be {' or '.join(get_args(StepKind))}")])
        hold = Hold(self._inflight)
        late_at = time.monotonic() + READ_SECONDS
        try:
            body = await read_body(receive, headers, self._max_bytes, hold, late_at=late_at)
            async with self._turn():
                hold.set(len(body) + _MEMORY_FACTOR * MOST_VALUES)
                async with _file(body, suffix, columns) as path:
                    del body
                    return await read_in_process(path, kind)
        finally:
            hold.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits until no other file is read; NotReady if that takes too long, as it holds memory of callers."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                await self._one.acquire()
        except TimeoutError:
            raise NotReady("other files are being read", retry_after_seconds=READ_SECONDS) from None
        try:
            yield
        finally:
            self._one.release()


def _suffix(name: str) -> str:
    suffix = next((suffix for suffix in FORMATS if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UnsupportedMedia(f"the file's name must end with one of {', '.join(FORMATS)}")
    if suffix == ".parquet" and not parquet_is_installed():
        raise UnsupportedMedia(f"reading Parquet needs pyarrow on the server: {how_to_install('parquet')}")
    return suffix


@asynccontextmanager
async def _file(body: bytes, suffix: str, columns: ColumnNames | None) -> AsyncIterator[Path]:
    """The file in a folder of its own, which is removed afterwards."""
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="lengthwise-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(made)) / f"upload{suffix}"
            await asyncio.to_thread(path.write_bytes, body)
            if columns is not None:
                path.with_name(COLUMNS_FILE).write_bytes(orjson.dumps(asdict(columns)))
        except OSError as error:
            raise NotReady(f"the server cannot store the file: {error.strerror}") from error
        yield path


async def read_in_process(path: Path, kind: str) -> bytes:
    """The sequences of a file as JSON, read in a process of its own."""
    memory_bytes = share_of_memory(MEMORY_BYTES)
    if memory_bytes < LEAST_BYTES:
        raise NotReady("the container has no memory left to read a file", retry_after_seconds=READ_SECONDS)
    try:
        process = await _started(path, kind, memory_bytes)
    except OSError as error:  # out of descriptors, processes or memory
        raise NotReady(f"the server cannot start a process for the file: {error.strerror}") from error
    try:
        async with asyncio.timeout(READ_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        raise DeadlineExceeded(f"the file could not be read within {READ_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return said
    raise _refusal(said)


async def _started(path: Path, kind: str, memory_bytes: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # nothing is imported from the folder in which the service was started
        "-m",
        "lengthwise.console.file_reader",
        str(path),
        kind,
        *map(str, (MOST_VALUES, memory_bytes, math.ceil(READ_SECONDS), os.getpid())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={
            **passed_to_children(),
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            # Each thread and each arena of theirs takes address space.
            "MALLOC_ARENA_MAX": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )


def _refusal(said: bytes) -> RequestError:
    try:
        reason = orjson.loads(said)["reason"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        reason = "the file cannot be read: reading it ended the reading process, perhaps for lack of memory"
    return InvalidRequest([Problem("", reason)])
