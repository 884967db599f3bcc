"""What a plain request crosses: `python -m benchmarks.path` counts the modules and calls from its bytes to its answer.

It serves a model directory (the bundled ones, if none is named) in this process, with one runner. Some requests over
one connection warm up; then one `POST /predict` of 20 steps is followed with Python's profiler, in every thread.
Counted are the Python functions of the service that are entered, and how often; comprehensions and generators belong
to the function around them. Calls into C (the runtime, the C modules) and into other packages are not counted. The
number of calls varies a little, because an idle runner looks for work some times before it sleeps. The functions of a
module stand in the order in which they were first entered.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import numpy as np

import lengthwise
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import free_port
from lengthwise.bench.workload import json_body
from lengthwise.http.server import serve
from lengthwise.settings import Settings, bundled_models

FEATURES: Final = 12
STEPS: Final = 20
WARM: Final = 50
_ROOT: Final = str(Path(lengthwise.__file__).parent) + os.sep
_PARTS: Final = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
_NOT_OF_A_REQUEST: Final = ("Server.serve",)
"""Coroutines that run on while requests come and go."""


class Followed:
    """The calls of the service's own functions while `on` is set.

    Attributes:
        on: Whether calls are counted now.
        calls: Each call's module, below the package, and its function's name, in order.
    """

    def __init__(self) -> None:
        self.on = False
        self.calls: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """For `sys.setprofile`."""
        code = frame.f_code
        if self.on and event == "call" and code.co_filename.startswith(_ROOT) and code.co_name not in _PARTS:
            if code.co_qualname in _NOT_OF_A_REQUEST:
                return
            module = code.co_filename.removeprefix(_ROOT).removesuffix(".py").replace(os.sep, ".")
            self.calls.append((module, code.co_qualname))


def ask(port: int, followed: Followed) -> None:
    """Sends the requests, the last of them followed, and then ends this process's service."""
    try:
        target = ServerAddress("127.0.0.1", port)
        steps = np.linspace(-1, 1, STEPS * FEATURES, dtype=np.float32).reshape(STEPS, FEATURES)
        request = target.request("/predict", json_body([steps]), {"content-type": "application/json"})
        with socket.create_connection((target.host, port), timeout=60) as connection:
            answered = False
            while not answered:  # 503 until the models are there
                connection.sendall(request)
                answered = connection.recv(65_536).startswith(b"HTTP/1.1 200")
            for _ in range(WARM):
                connection.sendall(request)
                connection.recv(65_536)
            threading.Event().wait(0.2)  # what follows an answer, such as counting its batch, is not of this request
            followed.on = True
            connection.sendall(request)
            connection.recv(65_536)
            threading.Event().wait(0.2)  # and of this one it is
            followed.on = False
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def table(calls: list[tuple[str, str]]) -> Iterator[str]:
    """A line for each module: its name, its calls, its functions."""
    modules = dict.fromkeys(module for module, _ in calls)
    yield f"{len(modules)} modules, {len(set(calls))} functions, {len(calls)} calls"
    for module in modules:
        names = [name for where, name in calls if where == module]
        yield f"{module:28} {len(names):3}  {', '.join(dict.fromkeys(names))}"


@click.command()
@click.argument("models", type=click.Path(exists=True, path_type=Path), required=False)
def main(models: Path | None) -> None:
    """Counts the modules and the calls that one plain request crosses."""
    followed, port = Followed(), free_port()
    threading.setprofile(followed)
    sys.setprofile(followed)
    client = threading.Thread(target=wait_and_ask, args=(port, followed))
    client.start()
    serve(Settings(models=models or bundled_models(), host="127.0.0.1", port=port, runners=1))
    client.join()
    sys.setprofile(None)
    click.echo("\n".join(table(followed.calls)))


def wait_and_ask(port: int, followed: Followed) -> None:
    """The same once somebody listens."""
    sys.setprofile(None)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            threading.Event().wait(0.05)
        else:
            break
    ask(port, followed)


if __name__ == "__main__":
    main()
