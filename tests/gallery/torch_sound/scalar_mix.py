import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class BiLM(nn.Module):
    """ELMo-like: the layers run apart and a learned scalar mix joins them."""

    def __init__(self, dim: int = 6, hidden: int = 8, layers: int = 3, classes: int = 4) -> None:
        super().__init__()
        sizes = [dim] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(s, hidden, bidirectional=True, batch_first=True) for s in sizes)
        self.gamma = nn.Parameter(torch.ones(()))
        self.mix = nn.Parameter(torch.randn(layers))
        self.out = nn.Linear(2 * hidden, classes)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        state: PackedSequence = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs = []
        for layer in self.layers:
            state, _ = layer(state)
            outputs.append(pad_packed_sequence(state, batch_first=True)[0])
        weights = torch.softmax(self.mix, dim=0)
        mixed = self.gamma * sum(w * o for w, o in zip(weights, outputs, strict=True))
        return self.out(mixed.sum(dim=1) / lengths[:, None])


def make() -> nn.Module:
    torch.manual_seed(117)
    return BiLM()
