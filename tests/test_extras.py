"""Each part works with what its extras bring, and with nothing else: here by hiding the rest, and nightly installed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lengthwise.errors import EXTRAS_OF
from tests.support.extras import brought, required, with_only

MODULE = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, values, lengths):
        valid = torch.arange(values.shape[1]) < lengths[:, None]
        return self.out(torch.where(valid[:, :, None], values, 0.0).sum(dim=1) / lengths[:, None])
"""


@dataclass(frozen=True)
class Part:
    """What a user does with some extras.

    Attributes:
        does: In words.
        extras: What is installed.
        program: What is run; it prints `good` at its end.
        beside: What users of this part have anyway.
        lacks: Packages that the extras are not to bring.
        is_slow: Whether it takes more than some seconds.
    """

    does: str
    extras: tuple[str, ...]
    program: str
    beside: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    is_slow: bool = False


FOLLOWED = ("serve", "cpu", "client", "check", "export", "train", "bench")
NEVER_IMPORTED = {"fastapi_offline"}

SERVER = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "prometheus-client")
EXPORTER = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib")

PARTS = (
    Part(
        "help",
        (),
        "import sys; from lengthwise.commands.cli import main; sys.argv = ['lengthwise', '--help']\n"
        "try: main()\nexcept SystemExit as end: print('good' if end.code == 0 else end.code)",
        lacks=(*SERVER, *EXPORTER, "onnxruntime", "httpx"),
    ),
    Part(
        "calling a server",
        ("client",),
        "import lengthwise\n"
        "try: lengthwise.Client('http://127.0.0.1:9').predict([[[1.0]]])\n"
        "except lengthwise.errors.ServerUnreachable: print('good')",
        lacks=(*SERVER, *EXPORTER, "onnxruntime"),
    ),
    Part(
        "scoring in a program",
        ("cpu",),
        "import lengthwise; print('good' if lengthwise.load().predict([[[0.0] * 12] * 5])[0].label else 'bad')",
        lacks=(*SERVER, *EXPORTER, "httpx"),
    ),
    Part(
        "serving",
        ("serve", "cpu"),
        "import os, signal, sys, threading, time, urllib.request\n"
        "from lengthwise.bench.launch import free_port\n"
        "from lengthwise.commands.cli import main; port = free_port()\n"
        "def ask():\n"
        "    while True:\n"
        "        try: urllib.request.urlopen(f'http://127.0.0.1:{port}/readyz', timeout=5); break\n"
        "        except OSError: time.sleep(0.05)\n"
        "    asked = [f'http://127.0.0.1:{port}/{page}' for page in ('docs', 'metrics')]\n"
        "    pages = [urllib.request.urlopen(url).status for url in asked]\n"
        "    print('good' if pages == [200, 200] else pages, flush=True); os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=ask).start(); main(['serve', '--port', str(port)])",
        lacks=(*EXPORTER, "httpx"),
    ),
    Part(
        "checking a module",
        ("check",),
        MODULE + "import lengthwise_export\n"
        "print('good' if lengthwise_export.check(Mean(), max_length=20).verdict == 'sound' else 'bad')",
        beside=("torch",),
        lacks=(*SERVER, "onnxruntime", "onnxscript", "matplotlib", "httpx", "torch"),
    ),
    Part(
        "checking a graph",
        ("check", "cpu"),
        "import lengthwise_export, lengthwise.files as files\n"
        "target = files.bundled_models() / 'japanese-vowels' / '1'\n"
        "print(lengthwise_export.check(target, max_length=20).verdict == 'sound' and 'good')",
        lacks=(*SERVER, "torch", "onnxscript", "matplotlib", "httpx"),
    ),
    Part(
        "exporting",
        ("export", "cpu"),
        MODULE + "import lengthwise_export, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    lengthwise_export.export(Mean(), folder + '/mean', labels=['0', '1'], max_length=20)\n"
        "print('good')",
        lacks=(*SERVER, "matplotlib", "httpx"),
        is_slow=True,
    ),
    Part(
        "training",
        ("train",),
        "import lengthwise_export, random; random.seed(0)\n"
        "sequences = [[[random.gauss(index % 2, 1)] for _ in range(5)] for index in range(40)]\n"
        "lengthwise_export.train('auto', sequences, [str(index % 2) for index in range(40)], epochs=2)\n"
        "print('good')",
        lacks=(*SERVER, "onnx", "onnxruntime", "onnxscript", "httpx"),
        is_slow=True,
    ),
)


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.long if part.is_slow else ()) for part in PARTS],
    ids=lambda part: part.does,
)
def test_a_part_runs_with_its_extras_alone(part: Part) -> None:
    assert brought(part.extras).isdisjoint(part.lacks)
    done = with_only(part.extras, part.program, beside=part.beside)
    assert done.stdout.split()[-1:] == ["good"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extras", "call", "named"),
    [
        ((), "serve", "serve"),
        (("serve",), "serve --port 1", "cpu"),
        (("cpu",), "serve", "serve"),
        ((), "check examples/masking.py:lengths_given", "check"),
        (("check",), "check examples/masking.py:lengths_given", "export"),
        (("check",), "check service/lengthwise/models/japanese-vowels/1", "cpu"),
        (("cpu",), "export examples/masking.py:lengths_given --out nowhere", "export"),
        ((), "train model_export/lengthwise_export/specs/japanese-vowels.toml no.jsonl --out nowhere", "train"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(extras: tuple[str, ...], call: str, named: str) -> None:
    done = with_only(extras, "from lengthwise.commands.cli import main; main()", *call.split())
    assert done.returncode == 2  # 1 is a verdict: of `check`, that something leaks
    assert f"pip install 'lengthwise[{named}]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_each_extra_brings_what_errors_say_that_it_brings() -> None:
    told = {extra: {module for module, extras in EXTRAS_OF.items() if extra in extras} for extra in FOLLOWED}
    asked = {extra: {one.name.replace("-", "_") for one in required([extra])} for extra in FOLLOWED}
    shared = {one.name.replace("-", "_") for one in required([])}
    assert {extra: modules - shared - NEVER_IMPORTED for extra, modules in asked.items()} == told
