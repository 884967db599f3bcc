"""What users do with each extra, as programs that run with what it brings, and that print `good` at their end."""

from dataclasses import dataclass

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
    """What a user does with some extras."""

    does: str
    extras: tuple[str, ...]
    program: str
    beside: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    is_slow: bool = False


SERVER = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "prometheus-client")
EXPORTER = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib")

PARTS = (
    Part(
        "help",
        (),
        "import sys; from lengthwise.commands.cli import main; sys.argv = ['lengthwise', '--help']\n"
        "try: main()\nexcept SystemExit as end: print('good' if end.code == 0 else end.code)",
        lacks=(*SERVER, *EXPORTER, "onnxruntime", "httpx2"),
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
        lacks=(*SERVER, *EXPORTER, "httpx2"),
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
        lacks=(*EXPORTER, "httpx2"),
    ),
    Part(
        "checking a module",
        ("check",),
        MODULE + "import lengthwise_export\n"
        "print('good' if lengthwise_export.check(Mean(), max_length=20).verdict == 'sound' else 'bad')",
        beside=("torch",),
        lacks=(*SERVER, "onnxruntime", "onnxscript", "matplotlib", "httpx2", "torch"),
    ),
    Part(
        "checking a module with torch alone",
        ("torch",),
        MODULE + "import lengthwise_export\n"
        "print('good' if lengthwise_export.check(Mean(), max_length=20).verdict == 'sound' else 'bad')",
        lacks=(*SERVER, "onnx", "safetensors", "onnxruntime", "onnxscript", "matplotlib", "httpx2"),
        is_slow=True,
    ),
    Part(
        "checking a graph",
        ("check", "cpu"),
        "import lengthwise_export, lengthwise.files as files\n"
        "target = files.bundled_models() / 'japanese-vowels' / '1'\n"
        "print(lengthwise_export.check(target, max_length=20).verdict == 'sound' and 'good')",
        lacks=(*SERVER, "torch", "onnxscript", "matplotlib", "httpx2"),
    ),
    Part(
        "exporting",
        ("export", "cpu"),
        MODULE + "import lengthwise_export, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    lengthwise_export.export(Mean(), folder + '/mean', labels=['0', '1'], max_length=20)\n"
        "print('good')",
        lacks=(*SERVER, "matplotlib", "httpx2"),
        is_slow=True,
    ),
    Part(
        "training",
        ("train",),
        "import lengthwise_export, random; random.seed(0)\n"
        "sequences = [[[random.gauss(index % 2, 1)] for _ in range(5)] for index in range(40)]\n"
        "lengthwise_export.train('auto', sequences, [str(index % 2) for index in range(40)], epochs=2)\n"
        "print('good')",
        lacks=(*SERVER, "onnx", "onnxruntime", "onnxscript", "httpx2"),
        is_slow=True,
    ),
)
