"""Models of each framework stream: specs, rocket models among them, a torch module, and Keras."""

from pathlib import Path

import keras
import pytest
import torch

import lengthwise_export
from lengthwise_export.architecture.spec import Spec, as_toml
from lengthwise_export.exporting import verify
from lengthwise_export.exporting.candidate import from_spec_target
from lengthwise_export.options import ExportOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import SpecTarget

pytestmark = pytest.mark.long

FORWARD = {"hidden": 8, "layers": 1, "bidirectional": False}
CONV = {"rnn": "none", "layers": 0}
SPECS = {
    "attention": {"model": {**FORWARD, "layers": 2, "rnn": "gru", "pooling": "attention"}},
    "mean and maximum": {"model": {**FORWARD, "pooling": "mean-max"}},
    "last, with missing values": {"input": {"missing": "mean"}, "model": {**FORWARD, "pooling": "last"}},
    "each step": {"model": FORWARD, "output": {"task": "per-step"}},
    "features of the sequence": {
        "input": {"missing": "indicator"},
        "model": {**CONV, "layers": 1, "hidden": 8, "sequence_features": ["length", "missing"], "pooling": "mean"},
    },
    "static values": {"input": {"static": 2}, "model": {**FORWARD, "rnn": "gru", "pooling": "mean"}},
    "convolutions": {
        "model": {
            **CONV,
            "pooling": "mean-max",
            "conv": [{"channels": 8, "kernel": 3}, {"channels": 8, "kernel": 5, "residual": 1}],
        }
    },
    "convolutions before a layer": {"model": {**FORWARD, "rnn": "gru", "conv": [{"channels": 8, "kernel": 3}]}},
    "rocket": {"model": {"kind": "rocket", "grid": "training", "kernels": 168}},
    "rocket with the length": {
        "model": {"kind": "rocket", "grid": "training", "kernels": 84, "sequence_features": ["length"]}
    },
    "rocket with missing values": {
        "input": {"missing": "mean"},
        "model": {"kind": "rocket", "grid": "training", "kernels": 84},
    },
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_streams(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    table = {
        "input": {"features": 4, "max_length": 60, **spec.get("input", {})},
        "model": spec["model"],
        "output": {"labels": ["a", "b", "c"], **spec.get("output", {})},
    }
    (tmp_path / "s.toml").write_text(as_toml(Spec.from_table(table)))
    options = ExportOptions(streaming=True)
    target = targets.read(str(tmp_path / "s.toml"), options)
    assert isinstance(target, SpecTarget)
    candidate = from_spec_target(target, options)
    streaming = verify.verify(candidate, candidate.manifest, options, None).manifest.streaming
    assert streaming is not None
    if "rocket" in name:  # counts are exact
        assert streaming.promise.bits
        assert streaming.look_ahead_steps >= 8
    assert streaming.promise.max_difference < 1e-5


def test_a_torch_module_streams(tmp_path: Path) -> None:
    published = lengthwise_export.export(
        "examples/streaming.py:forward_lstm", tmp_path / "m", features=12, max_length=64, streaming=True
    )
    assert published.manifest.streaming is not None


class ConvolutionAndAttention(torch.nn.Module):
    """A causal convolution, then a mean of its steps by weights that a softmax gives."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.score = torch.nn.Conv1d(2, 8, 3), torch.nn.Linear(8, 1)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
        kept = torch.where(mask.unsqueeze(-1), x, torch.zeros(()))
        padded = torch.nn.functional.pad(kept.transpose(1, 2), (2, 0))
        steps = torch.relu(self.convolution(padded)).transpose(1, 2)
        scores = self.score(steps).squeeze(-1).masked_fill(~mask, -torch.inf)
        return self.head((torch.softmax(scores, 1).unsqueeze(-1) * steps).sum(1))


def test_a_torch_module_with_attention_behind_a_convolution_streams(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = lengthwise_export.export(
        ConvolutionAndAttention(), tmp_path / "m", features=2, labels=["a", "b"], max_length=64, streaming=True
    )
    assert published.manifest.streaming is not None
    assert published.manifest.streaming.promise.max_difference < 1e-5


def test_a_keras_model_streams(tmp_path: Path) -> None:
    steps = keras.Input((None, 4))
    hidden = keras.layers.LSTM(6, return_sequences=True)(keras.layers.Masking()(steps))
    model = keras.Model(steps, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(hidden)))
    published = lengthwise_export.export(model, tmp_path / "m", max_length=40, streaming=True)
    assert published.manifest.streaming is not None
