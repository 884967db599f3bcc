"""The table of `SequenceSummaries` by the service's kernel: in a fraction of NumPy's time, and with the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lengthwise.exporter_api.contract import GraphNames, Steps, pad
from lengthwise.exporter_api.graphs import summaries as kernel
from lengthwise_export.architecture.summaries_session import opened

_ROWS: Final = 64
"""Sequences that are padded together; the kernel computes valid steps only."""


def table(description: Mapping[str, Any], sequences: Sequence[Steps]) -> NDArray[np.float32] | None:
    """The summaries of sequences `[length, features]` as a table `[sequences, summaries]`.

    Args:
        description: `SequenceSummaries.description`.
        sequences: With NaN for a missing value.

    Returns:
        None if the kernels were not built, or do not run on this processor.
    """
    if not kernel.INSTRUCTION_SETS:
        return None
    # The kernel takes the place of the node that makes `table`: here of one that makes something else
    inputs = [
        helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", description["features"]]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
    ]
    output = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", None])
    graph = helper.make_graph([helper.make_node("Identity", ["values"], ["table"])], "summaries", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key=kernel.DOMAIN, value=json.dumps({**description, "table": "table"}))
    session = opened(model.SerializeToString(), GraphNames(sequences="values"))
    batches = [pad(sequences[start : start + _ROWS]) for start in range(0, len(sequences), _ROWS)]
    feeds = [{"values": batch.steps, "lengths": batch.lengths} for batch in batches]
    parts: list[NDArray[np.float32]] = [session.run(["table"], feed)[0] for feed in feeds]
    return np.concatenate(parts)
