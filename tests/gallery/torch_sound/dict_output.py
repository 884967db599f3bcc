import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence


class MultiTask(nn.Module):
    def __init__(self, n_in: int = 6, hidden: int = 12):
        super().__init__()
        self.encoder = nn.GRU(n_in, hidden, batch_first=True, bidirectional=True)
        self.heads = nn.ModuleDict({"mortality": nn.Linear(2 * hidden, 2), "los": nn.Linear(2 * hidden, 1)})

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, h = self.encoder(packed)
        z = h.transpose(0, 1).flatten(1)
        return {"embedding": z} | {name: head(z) for name, head in self.heads.items()}


def make():
    torch.manual_seed(120)
    return MultiTask()
