"""The static values beside a sequence, as inputs of the head: numbers normalised, categories as one input for each.

A number is normalised by the mean and the standard deviation of the training split; a missing one (NaN) counts as the
mean, where the model takes one. A category is 1 at the input of its value; it is never missing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lengthwise.exporter_api.contract import StaticInput

_SMALLEST_SPREAD = 1e-6  # a value with a smaller deviation is constant


class StaticValues(nn.Module):
    """Makes the features `[rows, out_features]` of static values `[rows, count]`."""

    mean: Tensor  # `[numbers]`
    std: Tensor  # `[numbers]`

    def __init__(self, static: StaticInput) -> None:
        super().__init__()
        self.takes_missing = static.missing
        self.sizes = [len(static.categories.get(name, ())) for name in static.value_names]  # 0 of a number
        self.numbers = [index for index, size in enumerate(self.sizes) if not size]
        self.out_features = len(self.numbers) + sum(self.sizes)
        self.register_buffer("mean", torch.zeros(len(self.numbers)))
        self.register_buffer("std", torch.ones(len(self.numbers)))

    def fit(self, values: Tensor) -> None:
        """Computes the statistics of the training split, from values `[sequences, count]`."""
        numbers = values[:, self.numbers].double()
        present = ~numbers.isnan()
        count = present.sum(0).clamp(min=1)
        mean = torch.where(present, numbers, 0.0).sum(0) / count
        spread = (torch.where(present, numbers - mean, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(spread > _SMALLEST_SPREAD, spread, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """`[rows, out_features]`: the numbers, and then the inputs of each category."""
        # Nothing is chosen where none is a category, nor replaced where none may be missing: that would be operators of
        # the graph, which take time in each run
        numbers = values[:, self.numbers] if any(self.sizes) else values
        numbers = (numbers - self.mean) / self.std
        features = [torch.where(numbers.isnan(), 0.0, numbers) if self.takes_missing else numbers]
        for index, size in enumerate(self.sizes):
            if size:
                features.append((values[:, index : index + 1] == torch.arange(size)).to(values.dtype))
        return torch.cat(features, dim=1)
