"""The median and the k-th value of a torch module in ONNX."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets


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


@pytest.mark.parametrize("keep", [False, True])
def test_they_are_those_of_torch_at_every_width(keep: bool) -> None:
    module = OrderStatistics(keep=keep).eval()
    target = targets.read(module, TargetOptions(features=3), blind=True)
    graph = target.build("model", 18)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for width in (2, 3, 8, 31):
        values = np.random.default_rng(width).normal(size=(4, width, 3)).astype(np.float32)
        (answer,) = session.run(None, {"values": values})
        np.testing.assert_allclose(answer, module(torch.from_numpy(values)).numpy(), rtol=1e-6)
