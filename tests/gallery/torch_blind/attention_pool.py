import torch
from torch import nn


class GatedMIL(nn.Module):
    """Gated attention over instances, by hand."""

    def __init__(self, n_in=7, d=12, att=8, n_out=3):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(n_in, d), nn.ReLU())
        self.V, self.U, self.w = nn.Linear(d, att), nn.Linear(d, att), nn.Linear(att, 1)
        self.classifier = nn.Linear(d, n_out)

    def forward(self, x):
        H = self.feature(x)
        A = self.w(torch.tanh(self.V(H)) * torch.sigmoid(self.U(H)))
        A = torch.softmax(A.transpose(1, 2), dim=-1)
        M = torch.bmm(A, H).squeeze(1)
        return self.classifier(M)


def make():
    torch.manual_seed(351)
    return GatedMIL()
