#!/usr/bin/env bash
# torch_geometric 2.8.1: `LSTMAggregation` and `GRUAggregation` answer a set with the state after its padding.
#
# An aggregation gives one row for each group of elements. These two put the groups side by side, with zeros behind the
# shorter ones, run the layer to the width, and take the last step of all: a group of three beside one of six gets the
# state after three more zeros. So what a graph (or a sequence of events) gets follows from the largest one of its batch;
# alone, which is how one tests a layer, it is right. Their pages warn of the order of the elements, and of nothing else.
# The attention of `SetTransformerAggregation` and all sums and maxima have the same numbers in any company.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 torch_geometric==2.8.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch_geometric.nn import aggr

torch.manual_seed(0)
elements, groups = torch.randn(9, 4), torch.tensor([0] * 3 + [1] * 6)


def of_first(aggregation, count):
    """What the group of the first three elements gets, among as many elements."""
    with torch.no_grad():
        return aggregation.eval()(elements[:count], groups[:count])[0]


for name, layer in (("LSTMAggregation", "lstm"), ("GRUAggregation", "gru")):
    aggregation = getattr(aggr, name)(4, 4)
    alone, beside = of_first(aggregation, 3), of_first(aggregation, 9)
    with torch.no_grad():
        padded = getattr(aggregation, layer)(torch.cat([elements[:3], torch.zeros(3, 4)])[None])[0][0]
    print(name, "alone", alone.tolist(), "beside a group of six", beside.tolist())
    assert torch.allclose(alone, padded[2], atol=1e-6) and torch.allclose(beside, padded[5], atol=1e-6)
    assert (alone - beside).abs().max() > 0.05

for aggregation in (aggr.SetTransformerAggregation(4), aggr.SumAggregation(), aggr.MaxAggregation()):
    assert torch.allclose(of_first(aggregation, 3), of_first(aggregation, 9), atol=1e-6)
PYTHON
