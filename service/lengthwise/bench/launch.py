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

READY_SECONDS = 60.0  # within which a service must be ready
STOP_SECONDS = 15.0  # within which it must end after SIGTERM
_DYING_SECONDS = 0.5  # between the loss of its connections and its exit code, if it ends under load


@dataclass(frozen=True, slots=True)
class ServiceUnderLoad:
    """A running service, and the model under load."""

    target: ServerAddress  # where it listens
    name: str | None = None  # of the model; None: the only one, or chosen by the service
    version: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a request's body that name the model; empty if the service chooses it."""
        return {name: value for name, value in (("model", self.name), ("version", self.version)) if value is not None}


@contextmanager
def served(url_or_path: str | None, *, model: str | None = None) -> Iterator[ServiceUnderLoad]:
    """Yields a service: the one at a URL, or one that is started for the block.

    Args:
        url_or_path: The URL of a running service; or what the new one serves: an address of models, a model directory,
            the folder of a model (its highest version), that of a repository, or None for the bundled repository.
        model: The name of the model under load; None: the only one.

    Raises:
        ConfigurationError: There is no folder at the path, or the new service does not get ready.
    """
    if url_or_path is not None and "://" in url_or_path and not names_models(url_or_path):
        yield ServiceUnderLoad(ServerAddress.parse(url_or_path), model)
        return
    # A new service. It serves a repository; of the one that a model directory NAME/VERSION is in, only this version.
    repository: Path | str | None = None
    name = version = None
    if url_or_path is not None and is_address(url_or_path):
        repository = url_or_path
    elif url_or_path is not None:
        repository = Path(url_or_path).resolve()
        if not repository.is_dir():
            raise ConfigurationError(f"{url_or_path} is neither a URL (http://HOST:PORT) nor a folder")
        repository = max(  # of the folder of a model, its highest version
            (file.parent for file in repository.glob(f"[1-9]*/{MANIFEST_FILE}") if file.parent.name.isdecimal()),
            key=lambda path: int(path.name),
            default=repository,
        )
        if (repository / MANIFEST_FILE).is_file():
            Manifest.read(repository)  # raises if it is wrong
            name, version = repository.parent.name, repository.name
            repository = repository.parent.parent
    port = free_port()
    with running(
        serve_command(repository, port, {} if version is None else {"versions": f"{name}/{version}"}), port
    ) as server:
        yield ServiceUnderLoad(server.target, name or model, version)


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(models: Path | str | None, port: int, options: Mapping[str, str]) -> list[str]:
    """The command line of `serve` for a model repository (None: the bundled one), with further options by name."""
    command = [sys.executable, "-m", "lengthwise", "serve", *([str(models)] if models else [])]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", value]
    return command


@dataclass(frozen=True, slots=True)
class Running:
    """The process of a server that runs."""

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
    """Starts a server, yields it when it is ready, and stops it after the block.

    Args:
        command: Its command line.
        port: The port that it listens on.
        ready_path: The path that it answers with 200 when it is ready.
        cores: The cores that it and its children may use; None: all.
        environment: Variables for it, besides those of this process.

    Raises:
        ConfigurationError: It ended, has no model to serve, or was not ready within `READY_SECONDS`; or it ended while
            the block used it. The message has the end of its output.
    """
    with tempfile.TemporaryFile() as output:

        def failure(problem: str) -> str:
            """The message for a server that failed: its command, the problem and the end of its output."""
            output.seek(0)
            return f"{' '.join(command)} {problem}:\n{output.read()[-2000:].decode(errors='replace').strip()}"

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
            if (problem := _wait_until_ready(process, target, ready_path)) is not None:
                raise ConfigurationError(failure(problem))
            try:
                yield Running(target, process.pid)
            except ConfigurationError as error:  # perhaps since the server ended: then its output tells why
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DYING_SECONDS)
                if process.returncode is None:
                    raise
                raise ConfigurationError(failure(f"ended with code {process.returncode} under load")) from error
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], target: ServerAddress, path: str) -> str | None:
    """Waits until a server answers a path with 200; returns why it does not, if it has ended or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    problem = None
    while problem is None and not _is_ready(target, path):
        problem = "ended" if process.poll() is not None else remote.refusals(target)
        if problem is None and time.monotonic() > deadline:
            problem = f"was not ready within {READY_SECONDS:.0f} s"
        time.sleep(0.02)
    return problem


def _is_ready(target: ServerAddress, path: str) -> bool:
    """Whether the server answers a path with 200."""
    with suppress(ConfigurationError):
        return remote.get(target, path)[0] == 200
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server with SIGTERM; kills it and its children if it does not end within `STOP_SECONDS`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
