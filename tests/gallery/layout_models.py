"""What the galleries of left-padded and packed models share: how a model is written, and what is told of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

MARKER = "# leak"

Layers = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class LayoutExhibit:
    """One model, the layout that it is for, and what a right report says about it."""

    name: str
    make: Callable[[], Any]  # A torch module, or a graph
    layout: str  # `left`, `both`, or what packs it
    verdict: Literal["leak", "sound"]
    rule: tuple[str, ...] = ()  # One of these is right
    operator: str = ""  # Of a graph: the node where the leak begins
    line: int | None = None  # Of a torch module: where the leak begins
    features: int | None = 5
    vocabulary: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    shortest: int = 1

    @property
    def is_packed(self) -> bool:
        return self.layout not in ("left", "both")

    def __str__(self) -> str:
        return f"{self.layout}-{self.name}"


EXHIBITS: list[LayoutExhibit] = []


def model(layout: str, layers: Layers, *, rule: str = "", seed: int = 0, **more: Any) -> Callable[..., Any]:
    """Adds a torch module to the gallery: its `forward`, and the attributes of the module. With a rule, it leaks."""

    def add(forward: Callable[..., Any]) -> Callable[..., Any]:
        kind = type(forward.__name__, (nn.Module,), {"forward": forward, "__module__": forward.__module__})

        def make() -> nn.Module:
            torch.manual_seed(seed)
            module = kind()
            for name, layer in layers().items():
                setattr(module, name, layer)
            return module

        lines, start = inspect.getsourcelines(forward)
        marked = [start + index for index, line in enumerate(lines) if line.rstrip().endswith(MARKER)]
        assert len(marked) == bool(rule), forward.__name__
        line = marked[0] if marked else None
        if "vocabulary" in more:
            more["features"] = None
        verdict: Any = "leak" if rule else "sound"
        EXHIBITS.append(LayoutExhibit(forward.__name__, make, layout, verdict, tuple(rule.split()), line=line, **more))
        return forward

    return add


def graph(layout: str, *, rule: str = "", operator: str = "", **more: Any) -> Callable[..., Any]:
    """Adds a function that makes a graph to the gallery."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        verdict: Any = "leak" if rule else "sound"
        EXHIBITS.append(LayoutExhibit(make.__name__, make, layout, verdict, tuple(rule.split()), operator, **more))
        return make

    return add


def segments_of(cu_seqlens: Tensor, steps: int) -> Tensor:
    """`[steps]`, from 0; the steps behind the last sequence have the number of sequences."""
    return torch.bucketize(torch.arange(steps), cu_seqlens[1:].long(), right=True)


def mean_of_each(hidden: Tensor, segments: Tensor, count: int) -> Tensor:
    """`[count, features]` of `[steps, features]`; what is of a later segment is left out."""
    total = torch.zeros(count + 1, hidden.shape[-1]).index_add(0, segments.clamp(max=count), hidden)
    return (total / torch.bincount(segments.clamp(max=count), minlength=count + 1).clamp(min=1)[:, None])[:count]
