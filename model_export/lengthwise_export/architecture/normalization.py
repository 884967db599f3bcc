"""Normalisation of values in the graph: with statistics of the training split, of the sequence itself, or of both.

The statistics of a sequence come from its valid and present values only. They do not depend on the scale of the
values: a sequence is first brought to -1..1 by its own minimum and maximum, which are exact in any batch, and then to
mean 0 and standard deviation 1. So nothing overflows, and a constant sequence becomes exactly 0, as does a sequence of
one step. Or a sequence is only divided by its own scale, which keeps signs; then come those of the training split.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from lengthwise_export.architecture.layers import answer_in_batches, masked
from lengthwise_export.masks import step_mask

_BY_SCALE: Final = ("sequence-scale", "feature-scale")
LARGEST: Final = torch.finfo(torch.float32).max
SMALLEST: Final = 1e-30  # a feature that varies by less counts as constant
# So does one that varies by less than this share of its size: rounding of float32 is not enlarged to a deviation of 1
CONSTANT: Final = 1e-6


class SequenceStatistics(NamedTuple):
    """Values normalised by their own sequence, and what was taken away."""

    normal: Tensor  # `[rows, width, features]`, mean 0 and standard deviation 1 over valid, present steps; 0 elsewhere
    level: Tensor  # `[rows, 1, features]`, the mean; 0 if no value is present
    scale: Tensor  # `[rows, 1, features]`, the standard deviation; 0 for a constant feature


def by_sequence(values: Tensor, mask: Tensor) -> SequenceStatistics:
    """Normalises each feature of each sequence with its own mean and standard deviation; NaN is a missing value.

    First the values are brought to -1..1 (`unit`), then to mean 0 and standard deviation 1 (`normal`). A feature that
    does not vary, and one without a present value, become 0.
    """
    present = mask.unsqueeze(2) & ~values.isnan()
    low = torch.where(present, values, LARGEST).amin(dim=1, keepdim=True)  # (rows, 1, features)
    high = torch.where(present, values, -LARGEST).amax(dim=1, keepdim=True)
    middle, half = high / 2 + low / 2, high / 2 - low / 2
    # Where no value is present, low is above high: then `half` is negative, and the level 0 below
    varies = half > (CONSTANT * torch.maximum(high.abs(), low.abs())).clamp(min=SMALLEST)
    unit = torch.where(present & varies, (values - middle) / torch.where(varies, half, 1.0), 0.0)
    # In float64, so that the result is the same float32 whatever the order of summation: a layer after it may compare
    # values with a constant. A product with a row of ones is a sum whose order does not depend on the batch.
    unit = unit.double()
    ones = mask.double().unsqueeze(1)  # (rows, 1, width)
    count = (ones @ present.double()).clamp(min=1.0)
    mean = (ones @ unit) / count
    deviations = torch.where(present, unit - mean, 0.0)
    std = ((ones @ (deviations * deviations)) / count).sqrt()
    # The values of -1..1 reach both ends where they vary: the deviation is then far from 0
    normal = (deviations / torch.where(varies, std, 1.0)).float()
    level = torch.where(half >= 0, middle + half * mean.float(), 0.0)
    return SequenceStatistics(normal, level, torch.where(varies, half * std.float(), 0.0))


def by_scale(values: Tensor, mask: Tensor, *, shared: bool) -> Tensor:
    """Divides each sequence by its own root mean square, so that signs, zeros and NaN stay, `[rows, width, features]`.

    Padding may hold any numbers, and is divided, too. With `shared`, all features of a sequence are divided by one
    scale, which keeps their relation; otherwise each feature by its own.
    """
    present = mask.unsqueeze(2) & ~values.isnan()
    largest = torch.where(present, values.abs(), 0.0).amax(dim=(1, 2) if shared else (1,), keepdim=True)
    largest = torch.where(largest > SMALLEST, largest, 1.0)
    # As in `by_sequence`: from -1 to 1 first, then sums in float64 by products with ones
    unit = torch.where(present, values / largest, 0.0).double()
    ones = mask.double().unsqueeze(1)  # (rows, 1, width)
    squares, count = ones @ (unit * unit), ones @ present.double()  # (rows, 1, features)
    if shared:
        ones_of_features = torch.ones(values.shape[2], 1, dtype=torch.float64, device=values.device)
        squares, count = squares @ ones_of_features, count @ ones_of_features
    root = (squares / count.clamp(min=1.0)).sqrt().float()
    return values / largest / torch.where(root > 0, root, 1.0)


class Normalize(nn.Module):
    """Fills missing values, and scales each feature to mean 0 and standard deviation 1, as `InputSpec` says.

    `mean` and `std` are those of the training split, or 0 and 1 where a spec does not normalise with them; `fill` takes
    the place of missing values even then. By its own sequence, a missing value becomes 0, the mean of the sequence.
    """

    mean: Tensor
    std: Tensor
    fill: Tensor

    def __init__(self, features: int, missing: str = "refuse", normalize: str = "training") -> None:
        super().__init__()
        self.missing, self.normalize = missing, normalize
        # The values themselves, with "indicator" whether each is missing, with "both" a second normalisation
        self.out_features = features * (1 + (missing == "indicator") + (normalize == "both"))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("fill", torch.zeros(features))

    def fit(self, sequences: list[Tensor]) -> None:
        """Computes mean and std over the present values of sequences without padding, each `[length, features]`.

        A constant feature keeps std 1, so it becomes 0. A feature that is always missing also keeps mean 0.
        """
        steps = torch.cat(self.each_rescaled(sequences)).double()  # (all steps, features)
        present = ~steps.isnan()
        count = present.sum(dim=0).clamp(min=1)
        mean = torch.where(present, steps, 0.0).sum(dim=0) / count
        std = (torch.where(present, (steps - mean) ** 2, 0.0).sum(dim=0) / count).sqrt()
        if self.normalize not in ("sequence", "none"):
            self.mean.copy_(mean)
            self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0))
        if self.missing in ("mean", "indicator"):
            self.fill.copy_(mean)

    def each_rescaled(self, sequences: list[Tensor]) -> list[Tensor]:
        """Applies `rescaled` to each sequence, `[length, features]` without padding; returns them in the same form."""
        if self.normalize not in _BY_SCALE:
            return sequences
        return answer_in_batches(
            lambda steps, lengths: self.rescaled(steps, step_mask(lengths, steps.shape[1])), sequences
        )

    def each_normalised(self, sequences: list[Tensor]) -> list[Tensor]:
        """Applies `forward` to each sequence, `[length, features]` without padding; gives `[length, out_features]`."""
        return answer_in_batches(lambda steps, lengths: self(steps, step_mask(lengths, steps.shape[1])), sequences)

    def rescaled(self, values: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`: the values, divided by the sequence's own scale with a "-scale" normalisation."""
        if self.normalize in _BY_SCALE:
            return by_scale(values, mask, shared=self.normalize == "sequence-scale")
        return values

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, out_features]`: normalised values; with "indicator", also which are missing. 0 at padding."""
        if self.normalize not in ("sequence", "both"):
            return self._by_training(self.rescaled(values, mask), mask)
        normal = by_sequence(values, mask).normal
        if self.normalize == "both":
            return torch.cat([self._by_training(values, mask), normal], dim=2)
        if self.missing == "indicator":
            return torch.cat([normal, masked(values.isnan().to(values.dtype), mask)], dim=2)
        return normal

    def _by_training(self, values: Tensor, mask: Tensor) -> Tensor:
        """Standardises values by the statistics of the training split, and fills missing ones; zeros at padding.

        With "indicator", the features are followed by as many that are 1 where a value is missing.
        """
        if self.missing == "refuse":
            return masked((values - self.mean) / self.std, mask)
        absent = values.isnan()
        standard = (torch.where(absent, self.fill, values) - self.mean) / self.std
        if self.missing == "indicator":
            standard = torch.cat([standard, absent.to(standard.dtype)], dim=2)
        return masked(standard, mask)


class SequenceFeatures(nn.Module):
    """Numbers of a whole sequence for the head: its length, and each feature's level, scale and missing values.

    They are compressed, because lengths and scales differ by orders of magnitude, and standardised over the training
    split. Roots compress, and not logarithms: every kernel rounds a square root in the same way.
    """

    mean: Tensor
    std: Tensor
    level_mean: Tensor
    level_std: Tensor

    def __init__(self, kinds: tuple[str, ...], features: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.out_features = sum({"length": 1, "missing": 2 * features}.get(kind, features) for kind in kinds)
        self.register_buffer("mean", torch.zeros(self.out_features))
        self.register_buffer("std", torch.ones(self.out_features))
        self.register_buffer("level_mean", torch.zeros(features))
        self.register_buffer("level_std", torch.ones(features))

    def fit(self, sequences: list[Tensor]) -> None:
        """Computes the statistics over the training split, each sequence `[length, features]` or `[length]`."""
        if self.level_mean.numel():
            everything = Normalize(self.level_mean.numel())
            everything.fit(sequences)
            self.level_mean.copy_(everything.mean)
            self.level_std.copy_(everything.std)
        table = torch.stack(answer_in_batches(self.compressed, sequences)).double()  # (sequences, out_features)
        std = table.std(dim=0, unbiased=False)
        self.mean.copy_(table.mean(dim=0))
        self.std.copy_(torch.where(std > CONSTANT, std, 1.0))

    def compressed(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, out_features]`: the numbers of each sequence, before standardisation.

        In this order, as far as they are among `kinds`: its length; the level of each feature; the scale of each; of
        each feature the share of steps that lack it, and then of each the number of gaps in a step.
        """
        parts = []
        if "length" in self.kinds:
            parts.append(lengths.to(torch.float32).sqrt().sqrt().unsqueeze(1))
        if "level" in self.kinds or "scale" in self.kinds:
            statistics = by_sequence(steps, step_mask(lengths, steps.shape[1]))
            if "level" in self.kinds:
                distance = ((statistics.level - self.level_mean) / self.level_std).squeeze(1)
                root = (1 + distance.abs()).sqrt().sqrt().sqrt()
                parts.append(distance / (1 + distance.abs()) * root)  # linear near 0, like the eighth root far from it
            if "scale" in self.kinds:
                parts.append((statistics.scale / self.level_std).squeeze(1).sqrt().sqrt().sqrt().sqrt())
        if "missing" in self.kinds:
            # A gap begins at a step that lacks a feature, if the step before does not. The counts are exact
            mask = step_mask(lengths, steps.shape[1])
            absent = mask.unsqueeze(2) & steps.isnan()
            before_step = nn.functional.pad(absent, (0, 0, 1, 0))[:, :-1]  # (rows, width, features)
            ones, ends = mask.float().unsqueeze(1), lengths.view(-1, 1).float()
            parts += [((ones @ is_marked.float()).squeeze(1) / ends) for is_marked in (absent, absent & ~before_step)]
        return torch.cat(parts, dim=1)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, out_features]`: the standardised numbers of each sequence of a padded batch."""
        return (self.compressed(steps, lengths) - self.mean) / self.std
