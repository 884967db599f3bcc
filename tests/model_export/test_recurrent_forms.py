"""Torch models of the forms around recurrent layers that people write: served over packed steps, the same answers."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lengthwise.padding import pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.onnx import fusion
from lengthwise.runtime.session import Session
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets

pytestmark = pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="no kernels for this processor")

FEATURES, HIDDEN, CLASSES = 5, 6, 3
WIDE = 2 * HIDDEN
LENGTHS = (7, 1, 19, 4, 30, 2)


class Form(nn.Module):
    """Two bidirectional layers, with `before` in front of them and `pool` behind them."""

    inputs, head_inputs = FEATURES, WIDE

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(self.inputs, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.parts = self.make()
        self.head = nn.Linear(self.head_inputs, CLASSES)

    def make(self) -> nn.ModuleList:
        """Makes the parts of its own."""
        return nn.ModuleList()

    def before(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the layers get."""
        return x

    def recur(self, rnn: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The states of all steps, and the last ones."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, (last, _) = rnn(packed)
        steps, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        return steps, torch.cat([last[-2], last[-1]], 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[None, :] < lengths[:, None]
        steps, last = self.recur(self.rnn, self.before(x, mask), lengths)
        pooled: Tensor = self.head(self.pool(steps, last, mask, lengths))
        return pooled

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """What the head gets."""
        return last


class Additive(Form):
    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, 8), nn.Linear(8, 1, bias=False)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = self.parts[1](torch.tanh(self.parts[0](steps))).squeeze(-1)
        shares = scores.masked_fill(~mask, float("-inf")).softmax(1)
        return torch.bmm(shares.unsqueeze(1), steps).squeeze(1)


class OfTanh(Form):
    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, 1, bias=False)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = self.parts[0](torch.tanh(steps)).squeeze(-1)
        shares = scores.masked_fill(~mask, float("-inf")).softmax(1)
        return torch.tanh((shares.unsqueeze(-1) * steps).sum(1))


class ByProduct(Form):
    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, 1)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = self.parts[0](steps).masked_fill(~mask.unsqueeze(-1), -1e9)
        shares = scores.softmax(1)
        return torch.bmm(steps.transpose(1, 2), shares).squeeze(2)


class Heads(Form):
    head_inputs = 4 * WIDE

    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, 8, bias=False), nn.Linear(8, 4, bias=False)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = self.parts[1](torch.tanh(self.parts[0](steps)))
        shares = scores.masked_fill(~mask.unsqueeze(-1), float("-inf")).softmax(1)
        return torch.bmm(shares.transpose(1, 2), steps).flatten(1)


class DenseBefore(Form):
    inputs = 7

    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(FEATURES, 7)])

    def before(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.relu(self.parts[0](x))


class DenseHead(Form):
    head_inputs = 9

    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, 9)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        heads = torch.relu(self.parts[0](steps)) * mask.unsqueeze(-1)
        return heads.sum(1) / lengths.unsqueeze(1)


class ConvolutionBefore(Form):
    inputs = 7

    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Conv1d(FEATURES, 7, 5, padding=2)])

    def before(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.relu(self.parts[0](x.transpose(1, 2) * mask.unsqueeze(1))).transpose(1, 2)


class ByLastState(Form):
    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(WIDE, WIDE)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = torch.bmm(steps, self.parts[0](last).unsqueeze(2)).squeeze(2)
        shares = scores.masked_fill(~mask, float("-inf")).softmax(1)
        return torch.bmm(shares.unsqueeze(1), steps).squeeze(1)


class Mean(Form):
    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).float()
        return (steps * weights).sum(1) / weights.sum(1)


class Maximum(Form):
    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return steps.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)


class NormAndThird(Form):
    def make(self) -> nn.ModuleList:
        return nn.ModuleList([nn.LayerNorm(WIDE), nn.LSTM(WIDE, HIDDEN, bidirectional=True, batch_first=True)])

    def pool(self, steps: Tensor, last: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.recur(self.parts[1], self.parts[0](steps), lengths)[1]


FORMS: tuple[Callable[[], Form], ...] = (
    *(Additive, OfTanh, ByProduct, Heads, DenseBefore, DenseHead),
    *(ConvolutionBefore, Form, ByLastState, Mean, Maximum, NormAndThird),
)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("make", FORMS)
def test_an_exported_form_is_packed_and_answers_as_torch_does(make: Callable[[], Form]):
    module = make().eval()
    target = targets.read(module, TargetOptions(features=FEATURES))
    manifest, graph = target.describe(), target.build("model", 18).SerializeToString()
    packed = fusion.fused(graph, manifest.graph)
    assert packed is not None
    assert "Unpack" not in [node.op_type for node in onnx.load_from_string(packed.graph).graph.node]
    session = Session(graph, manifest)
    random = np.random.default_rng(0)
    sequences = [random.normal(0, 1, (length, FEATURES)).astype(np.float32) for length in LENGTHS]
    batch = pad(sequences, width=32)
    logits: NDArray[np.float32] = session.run(batch).logits
    with torch.no_grad():
        expected = module(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).numpy()
    np.testing.assert_allclose(logits, expected, atol=5e-6)
    for row, sequence in enumerate(sequences):
        np.testing.assert_array_equal(session.run(pad([sequence])).logits[0], logits[row])
