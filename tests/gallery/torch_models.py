"""What the rooms of torch modules share: factories that seed themselves, normalisations as training leaves them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)
Factory = Callable[[], nn.Module]


def seeded(seed: int, make: Callable[[], Net], then: Callable[[Net], Net] | None = None, **said: Any) -> Factory:
    """A factory of one and the same module, which `then` may change; `index` reads what is `said` of it."""

    def factory() -> Net:
        torch.manual_seed(seed)
        return make() if then is None else then(make())

    return factory


def network(
    seed: int, layers: Callable[[], dict[str, Any]], then: Callable[[Net], Net] | None = None, **said: Any
) -> Callable[[Callable[..., Any]], Factory]:
    """The same, of a `forward` and the attributes of its module."""

    def factory_of(forward: Callable[..., Any]) -> Factory:
        kind = type(forward.__name__, (nn.Module,), {"forward": forward, "__module__": forward.__module__})

        def make() -> nn.Module:
            net = kind()
            for name, layer in layers().items():
                setattr(net, name, layer)
            return net

        return seeded(seed, make, then)

    return factory_of


def exhibit(**said: Any) -> Callable[[Factory], Factory]:
    """Says of a factory what `index` reads."""
    return lambda factory: factory


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
