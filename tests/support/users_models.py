"""Torch modules as users bring them, to be exported."""

from functools import partial

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Answers each step; says nothing of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 4)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return self.out(values) + 0.0 * lengths[:, None, None]


class Mean(nn.Module):
    """Masked mean, in the ways that the tests vary."""

    def __init__(
        self, *, classes: int = 2, softmax: bool = False, fills_gaps: bool = False, leaks: bool = False
    ) -> None:
        super().__init__()
        self.out = nn.Linear(3, classes)
        self.softmax, self.fills_gaps, self.leaks = softmax, fills_gaps, leaks

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        if self.fills_gaps:
            values = torch.nan_to_num(values)
        if self.leaks:
            return self.out(values.mean(dim=1)) + 0.0 * lengths[:, None]
        kept = torch.where(valid[:, :, None], values, 0.0)
        logits = self.out(kept.sum(dim=1) / lengths[:, None])
        return logits.softmax(dim=1) if self.softmax else logits


class Each(nn.Module):
    """A probability of each class, by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return torch.sigmoid(self.model(values, lengths))


class Positions(nn.Module):
    """Adds a learned position, of which it has so many."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(count, 3))
        self.mean = Mean()

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(values.shape[1], device=values.device)
        return self.mean(values + self.positions[steps], lengths)


class Attending(nn.Module):
    """Gives its attention weights by name; wrong ones where `scaled`."""

    def __init__(self, *, scaled: bool = False) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(3, 1), nn.Linear(3, 2)
        self.factor = 2.0 if scaled else 1.0

    def forward(self, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        valid = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        kept = torch.where(valid[:, :, None], values, 0.0)
        scores = self.score(kept).squeeze(2).masked_fill(~valid, torch.finfo(torch.float32).min)
        weights = scores.softmax(dim=1)
        pooled = (weights[:, None] @ kept).squeeze(1)
        return {"logits": self.out(pooled), "attention": self.factor * weights}


class Tokens(nn.Module):
    """The last valid token's vector, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        last = tokens.gather(1, lengths[:, None] - 1).squeeze(1)
        return self.out(self.table(last))


class Unpadded(nn.Module):
    """A convolution of five steps without padding: alone it raises below five, in company it reads padding there."""

    def __init__(self, kernel: int = 5, *, fills_gaps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.fills_gaps = kernel, fills_gaps
        self.conv, self.out = nn.Conv1d(3, 6, kernel), nn.Linear(6, 2)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        if self.fills_gaps:
            values = torch.nan_to_num(values)
        steps = torch.tanh(self.conv(values.transpose(1, 2)))
        own = (lengths - self.kernel + 1).clamp(min=1)
        valid = torch.arange(steps.shape[2], device=values.device) < own[:, None]
        return self.out(torch.where(valid[:, None], steps, 0.0).sum(dim=2) / own[:, None])


class UnpaddedThenRecurrent(nn.Module):
    """A GRU over what a convolution of five steps without padding gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rnn, self.out = nn.Conv1d(3, 6, 5), nn.GRU(6, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        steps = self.conv(values.transpose(1, 2)).transpose(1, 2)
        own = (lengths - 4).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(steps, own, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(packed)[1][-1])


def sigmoid() -> nn.Module:
    return Each(Mean())


tagger, mean, attending, tokens = Tagger, Mean, Attending, Tokens
probabilities, one = partial(Mean, softmax=True), partial(Mean, classes=1)
filling, leaking = partial(Mean, fills_gaps=True), partial(Mean, leaks=True)
positions, ten_positions = partial(Positions, 45), partial(Positions, 10)
attending_wrongly = partial(Attending, scaled=True)
unpadded, unpadded_filling, unpadded_recurrent = Unpadded, partial(Unpadded, fills_gaps=True), UnpaddedThenRecurrent
