import torch
from torch import nn


class GatedAttention(nn.Module):
    """Ilse et al. style gate, without the softmax: every step decides for itself."""

    def __init__(self, n_in=9, d=16, classes=2):
        super().__init__()
        self.V = nn.Linear(n_in, d)
        self.U = nn.Linear(n_in, d)
        self.w = nn.Linear(d, 1)
        self.fc = nn.Linear(n_in, classes)

    def forward(self, bag, lengths):
        gate = torch.sigmoid(self.w(torch.tanh(self.V(bag)) * torch.sigmoid(self.U(bag)))).squeeze(-1)
        pooled = torch.einsum("bt,btf->bf", gate, bag)  # leak
        return self.fc(pooled / lengths[:, None])


def make():
    torch.manual_seed(40)
    return GatedAttention()
