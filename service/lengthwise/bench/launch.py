"""Starts a service as a process on a free port, waits until it is ready, and stops it afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lengthwise.addresses import is_address, names_models
from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import MANIFEST_FILE, Manifest

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
_DYING_SECONDS = 0.5  # its sockets are closed before it has ended


@dataclass(frozen=True, slots=True)
class ServiceUnderLoad:
    """A running service, and the model under load."""

    target: ServerAddress
    name: str | None = None
    version: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a body that name the model; none where the service chooses it."""
        return {name: value for name, value in (("model", self.name), ("version", self.version)) if value is not None}


@contextmanager
def served(where: str | None, *, model: str | None = None) -> Iterator[ServiceUnderLoad]:
    """The service at a URL, or one started for the model or model repository at a path (None: the bundled one).

    Raises:
        ConfigurationError: There is nothing at the path.
    """
    if where is not None and "://" in where and not names_models(where):
        yield ServiceUnderLoad(ServerAddress.parse(where), model)
        return
    repository: Path | str | None = None
    options: dict[str, str] = {}
    name = version = None
    if where is not None and is_address(where):
        repository = where
    elif where is not None:
        repository = Path(where).resolve()
        if not repository.is_dir():
            raise ConfigurationError(f"{where} is neither a URL (http://HOST:PORT) nor a folder")
        if (repository / MANIFEST_FILE).is_file():
            Manifest.read(repository)
            repository, name, version = repository.parents[1], repository.parent.name, repository.name
            options["versions"] = f"{name}/{version}"  # only this one, though there may be others
    port = free_port()
    with running(serve_command(repository, port, options), port) as server:
        yield ServiceUnderLoad(server.target, name or model, version)


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(models: Path | str | None, port: int, options: Mapping[str, str]) -> list[str]:
    """The command line of `serve` for a model repository (None: the bundled one) and further options by name."""
    command = [sys.executable, "-m", "lengthwise", "serve", *([str(models)] if models else [])]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", value]
    return command


@dataclass(frozen=True, slots=True)
class Running:
    """A server's process."""

    target: ServerAddress
    pid: int


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    *,
    ready_path: str = "/readyz",
    cores: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Runs a server's command while the block runs, and yields the server once `ready_path` answers 200.

    `cores` are those that it and its children may use.

    Raises:
        ConfigurationError: It ended, has no model to serve, or was not ready within `READY_SECONDS`; or it ended while
            the block used it. The message has the end of its output.
    """
    with tempfile.TemporaryFile() as output:

        def last_words(state: str) -> str:
            output.seek(0)
            return f"{' '.join(command)} {state}:\n{output.read()[-2000:].decode(errors='replace').strip()}"

        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            if cores is not None:
                os.sched_setaffinity(process.pid, cores)
            target = ServerAddress("127.0.0.1", port)
            deadline = time.monotonic() + READY_SECONDS
            while not _is_ready(target, ready_path):
                state = "ended" if process.poll() is not None else remote.refusals(target)
                if state is None and time.monotonic() > deadline:
                    state = f"was not ready within {READY_SECONDS:.0f} s"
                if state is not None:
                    raise ConfigurationError(last_words(state))
                time.sleep(0.02)
            try:
                yield Running(target, process.pid)
            except ConfigurationError as error:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DYING_SECONDS)
                if process.returncode is None:
                    raise
                raise ConfigurationError(last_words(f"ended with code {process.returncode} under load")) from error
        finally:
            _stop(process)


def _is_ready(target: ServerAddress, path: str) -> bool:
    with suppress(ConfigurationError):
        return remote.get(target, path)[0] == 200
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server with SIGTERM; kills it and its children if it does not end in time."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
