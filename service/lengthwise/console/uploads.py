"""Reads an uploaded file of sequences in a process of its own (`file_reader`), one at a time, and keeps nothing."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args

import orjson
from starlette.types import Receive

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.record_fields import StepKind
from lengthwise.datasets.tables import Padding
from lengthwise.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Problem,
    UnsupportedMedia,
    how_to_install,
)
from lengthwise.protocols.body import read_body
from lengthwise.repository.modest import LEAST_BYTES, share_of_memory
from lengthwise.settings import passed_to_children

READ_SECONDS: Final = 20.0
MOST_VALUES: Final = 500_000  # of all sequences in the answer
MEMORY_BYTES: Final = 2**30  # address space of the process that reads a file
_MEMORY_FACTOR: Final = 12  # bytes of an answer for each value, about
_ANY: Final = ColumnNames()  # no column is named


_ENVIRONMENT: Final = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # Each thread, and each thread's arena, takes address space.
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass
class Uploads:
    """Reads uploaded files, one at a time; their bytes count as memory of calls (`inflight`)."""

    inflight: Inflight
    max_bytes: int
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)  # while a file is read

    async def read(
        self,
        name: str,
        kind: str,
        headers: dict[bytes, bytes],
        receive: Receive,
        columns: ColumnNames = _ANY,
        *,
        single: bool = False,
        padding: str | None = None,
    ) -> bytes:
        """Reads a file from the body of a request, and returns its sequences: the JSON that `file_reader` writes.

        Args:
            name: The name of the file, whose end is the format.
            kind: Whether a step is values or a token id.
            headers: The headers of the request.
            receive: The ASGI callable that receives the body.
            columns: The columns that the user named.
            single: Whether the user said that a table without ids is one sequence.
            padding: What is cut off the end of each sequence: `zeros`, `nan`, or None for nothing.

        Raises:
            UnsupportedMedia: The file has another format, or reading Parquet needs pyarrow, which is not installed.
            InvalidRequest: `kind` is not a kind of step, or `padding` is another word.
            NotReady: Other files are being read, or the server cannot store this one.
        """
        from lengthwise.datasets.dataset import ENDINGS  # with what reads files, which a start does not need

        suffix = next((suffix for suffix in ENDINGS if name.lower().endswith(suffix)), None)
        if suffix is None:
            raise UnsupportedMedia(f"the file's name must end with one of {', '.join(ENDINGS)}")
        if suffix == ".parquet" and find_spec("pyarrow") is None:
            raise UnsupportedMedia(f"reading Parquet needs pyarrow on the server: {how_to_install('parquet')}")
        for parameter, word, words in (("kind", kind, get_args(StepKind)), ("padding", padding, get_args(Padding))):
            if word is not None and word not in words:
                raise InvalidRequest([Problem("", f"query parameter {parameter}: must be {' or '.join(words)}")])
        late_at = time.monotonic() + READ_SECONDS  # when the body must have arrived
        with ExitStack() as stack:
            # The bytes of this call in memory: the body while it arrives and waits, later the answer, too
            hold = Hold(self.inflight)
            stack.callback(hold.close)
            body = await read_body(receive, headers, self.max_bytes, hold, late_at=late_at)
            try:  # one file at a time
                await asyncio.wait_for(self._reading.acquire(), READ_SECONDS)
            except TimeoutError:
                raise NotReady("other files are being read", retry_after_seconds=READ_SECONDS) from None
            stack.callback(self._reading.release)
            hold.set(len(body) + _MEMORY_FACTOR * MOST_VALUES)
            try:
                folder = tempfile.TemporaryDirectory(prefix="lengthwise-", ignore_cleanup_errors=True)
                path = Path(stack.enter_context(folder)) / f"upload{suffix}"
                await asyncio.to_thread(path.write_bytes, body)
            except OSError as error:
                raise NotReady(f"the server cannot store the file: {error.strerror}") from error
            del body
            return await read_in_process(path, kind, columns, single=single, padding=padding)


async def read_in_process(
    path: Path, kind: str, columns: ColumnNames = _ANY, *, single: bool = False, padding: str | None = None
) -> bytes:
    """Reads a file in a process of its own, and returns its sequences as JSON.

    Raises:
        NotReady: There is no memory for it, or the process cannot be started.
        DeadlineExceeded: It takes longer than `READ_SECONDS`.
        InvalidRequest: The file cannot be read; the problem says why.
    """
    if (memory_bytes := share_of_memory(MEMORY_BYTES)) < LEAST_BYTES:
        raise NotReady("the container has no memory left to read a file", retry_after_seconds=READ_SECONDS)
    task: dict[str, Any] = {
        "path": str(path),
        "kind": kind,
        "columns": asdict(columns),
        "single": single,
        "padding": padding,
        "most_values": MOST_VALUES,
        "memory_bytes": memory_bytes,
        "seconds": math.ceil(READ_SECONDS),
        "parent": os.getpid(),
    }
    process = await _reading_process()
    try:
        async with asyncio.timeout(READ_SECONDS):
            output, _ = await process.communicate(orjson.dumps(task))
    except TimeoutError:
        raise DeadlineExceeded(f"the file could not be read within {READ_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return output
    try:
        reason = orjson.loads(output)["reason"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        reason = "the file cannot be read: reading it ended the reading process, perhaps for lack of memory"
    raise InvalidRequest([Problem("", reason)])


async def _reading_process() -> asyncio.subprocess.Process:
    """Starts a process that reads a file (`file_reader`): it takes its task from stdin, and writes to stdout.

    Raises:
        NotReady: It cannot be started, for lack of descriptors, processes or memory.
    """
    try:
        return await asyncio.create_subprocess_exec(
            # -P: nothing is imported from the folder in which the service was started
            *(sys.executable, "-P", "-m", "lengthwise.console.file_reader"),
            stdin=asyncio.subprocess.PIPE,  # names of columns may be more than an argument can have
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**passed_to_children(), **_ENVIRONMENT},
        )
    except OSError as error:
        raise NotReady(f"the server cannot start a process for the file: {error.strerror}") from error
