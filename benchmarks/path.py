"""What a flow crosses: `python -m benchmarks.path FLOW` counts the files and calls that it enters.

- **request**: a warm `POST /predict` of `STEPS` steps over a kept connection, of a service with one runner and the
  bundled models in this process. Of `REQUESTS` requests it is the one with the fewest calls: in each second one makes
  the header of the date, and another thread may take the batch.
- **export**: `lengthwise export` of an LSTM in a file of its own.
- **training**: `lengthwise train` of a small LSTM, two epochs of 60 records.
- **load**: the first load of the bundled model, of which nothing is stored yet.

Python's profiler follows every thread. Counted are the Python functions of this project that are entered;
comprehensions and generators belong to the function around them. Calls into C, templates and other packages are not
counted, nor what other processes do, nor `_NOT_OF_A_FLOW`. Files stand in the order in which they were first entered.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import numpy as np

import lengthwise
import lengthwise_export
from lengthwise.batching.limits import BatchLimits
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import free_port
from lengthwise.bench.workload import json_body
from lengthwise.commands.cli import main as lengthwise_command
from lengthwise.files import bundled_models
from lengthwise.processes.server import serve
from lengthwise.repository import loading
from lengthwise.settings import Settings

FEATURES: Final = 12
STEPS: Final = 4  # so few that a slow processor, too, runs the batch on the event loop: another path has other calls
WARM: Final = 50
REQUESTS: Final = 5
ROOTS: Final = tuple(
    str(folder) + os.sep for folder in (Path(lengthwise.__file__).parent, Path(lengthwise_export.__file__).parent)
)
_PARTS: Final = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
_NOT_OF_A_FLOW: Final = (
    *("Server.serve", "Watchdog.look_at_runs", "Watchdog.look_at_loop"),
    *("say", "_owner_of_folder", "_is_installed_in"),
)
"""A coroutine and a thread that run on while requests come and go; the lines of progress, one for some seconds; and
what is asked once for each folder of the modules and paths of this process, which differ from machine to machine."""
_MODEL: Final = """
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        return self.head(state[-1])

def make():
    return Tagger()
"""
_SPEC: Final = (
    '[input]\nfeatures = 3\n[model]\nrnn = "lstm"\nhidden = 8\nlayers = 1\n[output]\nlabels = ["down", "up"]\n'
)


class Followed:
    """The calls of this project's own functions while `on` is set: of each, in order, its file and its name."""

    def __init__(self) -> None:
        self.on = False
        self.calls: list[tuple[str, str]] = []
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """For `sys.setprofile`."""
        code = frame.f_code
        if (
            self.on
            and event == "call"
            and code.co_filename.startswith(ROOTS)
            and code.co_filename.endswith(".py")  # not a template, which Jinja compiles
            and code.co_name not in _PARTS
            and code.co_qualname not in _NOT_OF_A_FLOW
        ):
            self.calls.append((code.co_filename, code.co_qualname))


def request(followed: Followed, _folder: Path) -> None:
    """One plain request, after those that warm up."""
    port = free_port()
    threading.Thread(target=_ask, args=(port, followed), daemon=True).start()  # a service may fail to start
    serve(Settings(host="127.0.0.1", port=port, runners=1))


def _ask(port: int, followed: Followed) -> None:
    """Sends the requests, the last `REQUESTS` of them followed, and then ends this process's service."""
    sys.setprofile(None)
    body = json_body([np.linspace(-1, 1, STEPS * FEATURES, dtype=np.float32).reshape(STEPS, FEATURES)])
    sent = ServerAddress("127.0.0.1", port).request("/predict", body, {"content-type": "application/json"})
    try:
        with _connected(port) as connection:
            while not _answer(connection, sent).startswith(b"HTTP/1.1 200"):  # 503 until the models are there
                threading.Event().wait(0.05)
            for _ in range(WARM):
                _answer(connection, sent)
            followed.calls = min((_calls_of(connection, sent, followed) for _ in range(REQUESTS)), key=len)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _calls_of(connection: socket.socket, sent: bytes, followed: Followed) -> list[tuple[str, str]]:
    """The calls of one request."""
    threading.Event().wait(0.2)  # what follows an answer, such as counting its batch, is not of this request
    followed.calls = []
    followed.on = True
    _answer(connection, sent)
    threading.Event().wait(0.2)  # and of this one it is
    followed.on = False
    return followed.calls


def _answer(connection: socket.socket, sent: bytes) -> bytes:
    """The answer to a request, which is shorter than 64 KiB."""
    connection.sendall(sent)
    return connection.recv(65_536)


def _connected(port: int) -> socket.socket:
    """A connection, once somebody listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError:
            threading.Event().wait(0.05)


def export(followed: Followed, folder: Path) -> None:
    """One export of a torch module."""
    (folder / "tagger.py").write_text(_MODEL)
    _command(followed, "export", f"{folder / 'tagger.py'}:make", "--out", folder / "models" / "tagger")


def training(followed: Followed, folder: Path) -> None:
    """One training."""
    random = np.random.default_rng(0)
    records = [
        {"id": str(number), "label": "up", "steps": (random.normal(size=(8, 3)) + 1).tolist()}
        if number % 2
        else {"id": str(number), "label": "down", "steps": (random.normal(size=(8, 3)) - 1).tolist()}
        for number in range(60)
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "spec.toml").write_text(_SPEC)
    _command(
        followed, "train", folder / "spec.toml", folder / "records.jsonl", "--out", folder / "run", "--epochs", "2"
    )


def load(followed: Followed, folder: Path) -> None:
    """One first load, of a copy of the bundled model."""
    directory = folder / "japanese-vowels" / "1"
    shutil.copytree(bundled_models() / "japanese-vowels" / "1", directory)
    followed.on = True
    loading.load(directory, BatchLimits())
    followed.on = False


def _command(followed: Followed, *arguments: object) -> None:
    """Runs a command of `lengthwise`; its modules are imported before, as what they do then is not of the flow."""
    for package in (lengthwise, lengthwise_export):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith("lengthwise.__main__"):
                with suppress(ModuleNotFoundError):  # one of an extra that is not installed is not of the flow
                    importlib.import_module(module.name)
    followed.on = True
    code = lengthwise_command.main([str(argument) for argument in arguments], standalone_mode=False)
    followed.on = False
    if code:
        raise SystemExit(code)


FLOWS: Final[dict[str, Callable[[Followed, Path], None]]] = {
    "request": request,
    "export": export,
    "training": training,
    "load": load,
}


@click.command()
@click.argument("flow", type=click.Choice([*FLOWS]))
@click.option("--json", "as_json", is_flag=True, help="Print the counts only, as JSON in the last line.")
def main(flow: str, as_json: bool) -> None:
    """Counts the files and the calls of one flow."""
    with tempfile.TemporaryDirectory() as folder:
        followed = Followed()
        FLOWS[flow](followed, Path(folder))
        sys.setprofile(None)
        threading.setprofile(None)
    files = dict.fromkeys(name for name, _ in followed.calls)
    counts = {"files": len(files), "functions": len({*followed.calls}), "calls": len(followed.calls)}
    if as_json:
        click.echo(json.dumps(counts))
        return
    click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
    for file in files:
        names = [name for where, name in followed.calls if where == file]
        shown = next(file.removeprefix(root) for root in ROOTS if file.startswith(root))
        click.echo(f"{shown:34} {len(names):5}  {', '.join(dict.fromkeys(names))}")


if __name__ == "__main__":
    main()
