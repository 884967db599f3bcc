"""Makes the graphs: `python -m benchmarks.gpu --prepare`, where the exporter is installed; no GPU is needed.

The spec of the skewed benchmark with its initial weights, which are kept, so that torch runs the same model.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.packed import SPEC
from benchmarks.gpu.stage import FOLDERS, WEIGHTS

EXPORTS = {FOLDERS["fp32"]: (), FOLDERS["fp16"]: ("--precision", "fp16")}
"""Each graph's folder, with the exporter's further options."""


def prepare(models: Path) -> Iterator[str]:
    """Makes them again; yields a line for each."""
    weights = models / WEIGHTS
    write_weights(weights)
    yield f"made {weights}"
    for folder, options in EXPORTS.items():
        directory = models / folder / "1"
        shutil.rmtree(directory, ignore_errors=True)  # made by another version of the exporter, perhaps
        command = [sys.executable, "-m", "lengthwise", "export", str(SPEC), "--checkpoint", str(weights), *options]
        done = subprocess.run([*command, "--out", str(directory)], capture_output=True, text=True, check=False)
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()
        yield f"made {directory}" if directory.is_dir() else f"NOT made: {directory}: {output[-1] if output else done}"


def write_weights(path: Path) -> None:
    """The weights that the spec begins with, as the exporter would draw them."""
    import torch

    from lengthwise_export.architecture import checkpoint
    from lengthwise_export.architecture.model import SequenceClassifier
    from lengthwise_export.architecture.spec import Spec

    torch.manual_seed(0)
    model = SequenceClassifier(Spec.read(SPEC))
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, model.state_dict(), {})
