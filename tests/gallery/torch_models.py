"""What the rooms of torch modules share: factories that seed themselves, normalisations as training leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def seeded(seed: int, make: Callable[[], Net], then: Callable[[Net], Net] | None = None) -> Callable[[], Net]:
    """A factory of one and the same module, which `then` may change."""

    def factory() -> Net:
        torch.manual_seed(seed)
        return make() if then is None else then(make())

    return factory


def with_statistics(net: Net) -> Net:
    """Gives every BatchNorm statistics and a bias of its own: as new, one leaves zeros zeros, and a leak unseen."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(std=0.3)
    return net
