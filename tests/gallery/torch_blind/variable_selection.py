import torch
from torch import nn


class VariableSelection(nn.Module):
    """Variables weighted against each other, an LSTM, and causal attention whose last step answers."""

    def __init__(self, n_in=4, hidden=16, n_out=3):
        super().__init__()
        self.embeds = nn.ModuleList(nn.Linear(1, hidden) for _ in range(n_in))
        self.select = nn.Linear(hidden * n_in, n_in)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.attention = nn.MultiheadAttention(hidden, 4, batch_first=True)
        self.gate = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GLU())
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        each = torch.stack([embed(x[..., i : i + 1]) for i, embed in enumerate(self.embeds)], 2)
        shares = torch.softmax(self.select(each.flatten(2)), -1)
        chosen = (shares.unsqueeze(-1) * each).sum(2)
        out, _ = self.lstm(chosen)
        h = self.norm(out + chosen)
        steps = x.size(1)
        later = torch.triu(torch.ones(steps, steps, dtype=torch.bool), 1)
        attended, _ = self.attention(h, h, h, attn_mask=later, need_weights=False)
        return self.head(self.gate(h + attended)[:, -1])


def make():
    torch.manual_seed(513)
    return VariableSelection()
