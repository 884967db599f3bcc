import torch
from torch import nn


class PatchTSTClassifier(nn.Module):
    """Each variable by itself: cut into patches that overlap, encoded, averaged; then all variables together."""

    def __init__(self, n_vars=3, patch=8, stride=4, d_model=16, classes=4, max_patches=128):
        super().__init__()
        self.n_vars = n_vars
        self.embed = nn.Conv1d(1, d_model, patch, stride=stride)
        self.position = nn.Parameter(torch.randn(max_patches, d_model) * 0.1)
        layer = nn.TransformerEncoderLayer(d_model, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(n_vars * d_model, classes)

    def forward(self, x):
        b = x.size(0)
        x = x.transpose(1, 2).reshape(b * self.n_vars, 1, -1)
        x = self.embed(x).transpose(1, 2)
        x = self.encoder(x + self.position[: x.size(1)])
        return self.head(x.mean(dim=1).reshape(b, -1))


def make():
    torch.manual_seed(324)
    return PatchTSTClassifier()
