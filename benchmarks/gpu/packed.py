"""The same model in torch, with packed sequences: on a GPU its recurrent layers are cuDNN's, which skip padding.

Written for speed: sequences are sorted on the host, so that packing sorts nothing on the device; lengths stay on the
host, so that packing waits for nothing; values are copied from pinned memory.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.device import module
from benchmarks.gpu.stage import ENCODER, FOLDERS, ROOT, WEIGHTS, Precision, Stage
from lengthwise.padding import Steps, pad

SPEC = ROOT / "benchmarks" / "specs" / "lognormal.toml"


def precisions(stage: Stage) -> list[Precision]:
    """Those that torch is measured in; none where it is not installed."""
    if module("torch") is None:
        return []
    return ["fp32", "tf32", "fp16"] if stage.provider == "cuda" else ["fp32"]


class Packed:
    """The model on the device; at fp16 all but the standardisation is in half precision.

    Without weights on the stage torch's own are taken, which a graph exported without a checkpoint has too.
    """

    def __init__(self, stage: Stage, precision: Precision) -> None:
        import torch

        from lengthwise_export.architecture import checkpoint, layers
        from lengthwise_export.architecture.model import SequenceClassifier
        from lengthwise_export.architecture.spec import Spec

        self._torch, self._layers, self._precision = torch, layers, precision
        self._device = torch.device(stage.provider)
        if stage.provider == "cpu":
            torch.set_num_threads(1)
        torch.manual_seed(0)
        model: Any = SequenceClassifier(Spec.read(SPEC)).eval()
        weights = stage.models / WEIGHTS
        if weights.is_file():
            checkpoint.load(model, weights)
        self._model = model.to(self._device)
        if precision == "fp16":
            for part in (self._model.body, self._model.pooling, self._model.head):
                part.half()
        self._model.body.rnn.flatten_parameters()

    def logits(self, sequences: Sequence[Steps]) -> NDArray[np.float32]:
        """`[rows, classes]`, in the order of the sequences."""
        torch = self._torch
        order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
        batch = pad([sequences[place] for place in order])
        with torch.inference_mode(), self._tf32():
            values, lengths = torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()
            if self._device.type == "cuda":
                values = values.pin_memory()
            sorted_logits = self._run(values.to(self._device, non_blocking=True), lengths).cpu().numpy()
        logits: NDArray[np.float32] = np.empty_like(sorted_logits)
        logits[order] = sorted_logits
        return logits

    def _run(self, values: Any, lengths: Any) -> Any:
        """Logits of `values [rows, width, features]` on the device; `lengths [rows]`, descending, on the host."""
        rnn = self._torch.nn.utils.rnn
        model, width = self._model, values.shape[1]
        there = lengths.to(self._device, non_blocking=True)
        mask = self._layers.step_mask(there, width)
        hidden = model.first(values, mask)
        if self._precision == "fp16":
            hidden = hidden.half()
        outputs, _ = model.body.rnn(rnn.pack_padded_sequence(hidden, lengths, batch_first=True))
        hidden, _ = rnn.pad_packed_sequence(outputs, batch_first=True, total_length=width)
        pooled, _ = model.pooling(hidden, there, mask)
        return model.head(pooled).float()

    @contextmanager
    def _tf32(self) -> Iterator[None]:
        """TF32 in matrix products and in cuDNN, or not, while the block runs."""
        backends = self._torch.backends
        before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = self._precision == "tf32"
        try:
            yield
        finally:
            backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before


def prepare(models: Path) -> Iterator[str]:
    """Makes the graphs of the spec with its initial weights, which are kept for torch; yields a line for each."""
    import torch

    from lengthwise_export.architecture import checkpoint
    from lengthwise_export.architecture.model import SequenceClassifier
    from lengthwise_export.architecture.spec import Spec

    torch.manual_seed(0)
    weights = models / WEIGHTS
    weights.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(weights, SequenceClassifier(Spec.read(SPEC)).state_dict(), {})
    yield f"made {weights}"
    of_spec = (str(SPEC), "--checkpoint", str(weights))
    for folder, arguments in (
        (FOLDERS["fp32"], of_spec),
        (FOLDERS["fp16"], (*of_spec, "--precision", "fp16")),
        (ENCODER, (f"{ROOT}/benchmarks/transformer.py:large", "--features", "12", "--max-length", "1024")),
    ):
        directory = models / folder / "1"
        shutil.rmtree(directory, ignore_errors=True)  # made by another version of the exporter, perhaps
        command = [sys.executable, "-m", "lengthwise", "export", *arguments]
        done = subprocess.run([*command, "--out", str(directory)], capture_output=True, text=True, check=False)
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()
        yield f"made {directory}" if directory.is_dir() else f"NOT made: {directory}: {output[-1] if output else done}"
