"""The median, the k-th value and sorts of a torch module in ONNX, with equal values among them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
from lengthwise.errors import VerificationError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.tracing.graph import ties_in
from tests.support.integer_graphs import opened


class OrderStatistics(nn.Module):
    """Values and places in order along the steps and along the features."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        middle, place = x.median(dim=1, keepdim=self.keep)
        second, _ = x.kthvalue(2, dim=1, keepdim=self.keep)
        widest = x.median(dim=-1).values.amax(dim=1, keepdim=True)
        pooled = middle + second + place.float()
        return (pooled[:, 0] if self.keep else pooled) + widest


@pytest.mark.long
@pytest.mark.parametrize("keep", [False, True])
def test_they_are_those_of_torch_at_every_width(keep: bool) -> None:
    module = OrderStatistics(keep=keep).eval()
    target = targets.read(module, TargetOptions(features=3), blind=True)
    graph = target.build("model", 18)
    session = opened(graph)
    for width in (2, 3, 8, 31):
        values = np.random.default_rng(width).normal(size=(4, width, 3)).astype(np.float32)
        (answer,) = session.run(None, {"values": values})
        np.testing.assert_allclose(answer, module(torch.from_numpy(values)).numpy(), rtol=1e-6)


class Reordered(nn.Module):
    """The steps in the order of their first feature, weighted by place."""

    def __init__(self, order: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.order = order
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = self.order(x[..., 0])
        ordered = x.gather(1, places.unsqueeze(-1).expand(-1, -1, 3))
        return self.head((ordered * torch.linspace(1, 2, ordered.shape[1])[:, None]).mean(1))


STABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "argsort": lambda keys: keys.argsort(dim=1, stable=True),
    "argsort, descending": lambda keys: torch.argsort(keys, dim=-1, descending=True, stable=True),
    "sort of integers": lambda keys: torch.sort(keys.long(), dim=1, stable=True).indices,
}
OPEN: dict[str, Callable[[Tensor], Tensor]] = {
    "argsort": lambda keys: keys.argsort(1),
    "sort, descending": lambda keys: keys.sort(dim=1, descending=True).indices,
    "topk": lambda keys: keys.topk(2, dim=1).indices,
}


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", STABLE)
def test_a_stable_sort_has_equal_values_in_the_order_of_torch(name: str) -> None:
    module = Reordered(STABLE[name]).eval()
    graph = targets.read(module, TargetOptions(features=3), blind=True).build("model", 18)
    assert ties_in(graph) is None
    session = opened(graph)
    for width in (2, 16, 17, 100, 1025):
        values = np.random.default_rng(width).integers(0, 3, size=(4, width, 3)).astype(np.float32)
        (answer,) = session.run(None, {"values": values})
        np.testing.assert_allclose(answer, module(torch.from_numpy(values)).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", OPEN)
def test_a_sort_with_an_open_order_of_equal_values_is_noted_with_its_line(name: str) -> None:
    graph = targets.read(Reordered(OPEN[name]).eval(), TargetOptions(features=3), blind=True).build("model", 18)
    assert re.search(r"test_order_statistics\.py:\d+: `.*`: .*stable=True", ties_in(graph) or "")


def test_a_sort_of_which_only_the_values_are_used_has_no_ties() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values.mean(1)

    assert ties_in(targets.read(Sorted(), TargetOptions(features=3), blind=True).build("model", 18)) is None


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["topk", "argsort"])
def test_who_mends_or_exports_is_told_of_ties_once(name: str, tmp_path: Path) -> None:
    try:
        told = lengthwise_export.export(
            Reordered(OPEN[name]), tmp_path / "sorted", features=3, mend=True, max_length=40
        ).notices
    except VerificationError as error:  # seen with values that are equal
        told = [str(error)]
    assert [line.count("stable=True") for line in told if "stable=True" in line] == [1]
    assert not list(tmp_path.rglob("*.onnx")) or b"stable" not in next(tmp_path.rglob("*.onnx")).read_bytes()
