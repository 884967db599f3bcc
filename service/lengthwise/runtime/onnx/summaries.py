"""Finds the summaries of sequences in a graph, and replaces their nodes by the operator of `kernels/_summaries.c`.

A graph of `lengthwise_export.summaries` says in its metadata which of its values is the table of summaries, and which
summaries these are. The nodes that compute it are not read: `runtime.opening` runs both graphs on `trial_sequences`,
and the operator is used only if all answers have the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.kernels import _kernels
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph, Node
from lengthwise.runtime.onnx.pattern import require

DOMAIN: Final = "lengthwise.summaries"
"""The domain of the operator Summaries, which occurs in no file; and the key of the description in the metadata."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS.get("summaries", ())
"""The instruction sets that this processor and the kernels support, best first; empty if the kernels were not built."""
_GROUPS: Final = (
    *("length", "ends", "moments", "extremes", "quantiles", "trend", "change", "autocorrelation", "missing"),
    *("correlations", "bands", "intervals"),
)
"""The groups that the operator computes, in the order of its `enum Group`."""


def fused(model: bytes, values: str, lengths: str) -> bytes:
    """Returns the graph with the operator in it; `NotFound` (`require`) if it has no summaries, or others.

    Args:
        model: The ONNX file.
        values: The name of its input with the steps, `[rows, width, features]`.
        lengths: The name of its input with the lengths, int32.
    """
    require(DOMAIN.encode() in model)
    graph = onnx_graph.read(model)
    described = json.loads(graph.metadata[DOMAIN])
    groups = described["groups"]
    require({*groups} <= {*_GROUPS})
    halves = np.array(described["quantiles"], "<f8").view("<i4").tolist()
    plan = [described["features"], sum(1 << _GROUPS.index(group) for group in groups), len(halves) // 2, *halves]
    table, columns = _table(graph, described["table"], described["columns"])
    for numbers in (described["lags"], described["intervals"], columns):
        plan += [len(numbers), *numbers]
    graph.add_tensor("lengthwise.plan", np.array(plan, np.int32))
    index = graph.nodes.index(graph.makers()[table])
    graph.nodes[index] = Node("Summaries", [values, lengths, "lengthwise.plan"], [table], domain=DOMAIN)
    graph.remove_unused()
    return graph.write({DOMAIN: 1})


def _table(graph: Graph, table: str, columns: list[int]) -> tuple[str, list[int]]:
    """The table of summaries that is used, and its columns: nodes that only take some columns are passed over."""
    users = graph.users()
    while table not in graph.used_elsewhere and [node.operator for node in users[table]] == ["Gather"]:
        gather = users[table][0]
        tensor = graph.tensors.get(gather.inputs[1])
        indices = tensor.numbers() if tensor else None
        if gather.attributes.get("axis") != 1 or indices is None or indices.ndim != 1:
            break
        table, columns = gather.outputs[0], np.array(columns)[indices].tolist()
    return table, columns


def trial_sequences(features: int, longest: int) -> Iterator[NDArray[np.float32]]:
    """Yields sequences of a trial, `[length, features]`: of several lengths and kinds, with missing values.

    None is longer than `longest`, the model's longest length.
    """
    random = np.random.default_rng(0)
    for index, length in enumerate((1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 100)):
        if length <= longest:
            steps = random.standard_normal((length, features)) * (1.0, 1e3, 1e-3, 1e30)[index % 4]
            steps = np.round(steps) if index % 3 == 1 else steps
            steps[random.random(steps.shape) < (index % 2) * 0.3] = np.nan
            yield steps.astype(np.float32)
