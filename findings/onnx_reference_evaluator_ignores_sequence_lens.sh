#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator ignores `sequence_lens` of LSTM, GRU and RNN, without a word.
#
# The specification gives these operators an input with the length of each row; `Y_h` is the state after that many steps.
# `onnx.reference.ReferenceEvaluator`, which people hold their exports against, runs every row to the width: rows of full
# length agree with onnxruntime 1.32.0, shorter ones have the state after their padding. A comparison with sequences of
# one length sees nothing. (Tract 0.23.9 refuses lengths that are an input, and says so.)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

random = np.random.default_rng(0)
steps, lengths = random.normal(size=(6, 2, 3)).astype(np.float32), np.array([3, 6], np.int32)
for operator, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    weights = [random.normal(size=(1, gates * 4, width)).astype(np.float32) for width in (3, 4)]
    options = {"linear_before_reset": 1} if operator == "GRU" else {}
    node = helper.make_node(operator, ["x", "w", "r", "", "n"], ["", "last"], hidden_size=4, **options)
    graph = helper.make_graph(
        [node],
        "one_layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "rows", 3]),
            helper.make_tensor_value_info("n", TensorProto.INT32, ["rows"]),
        ],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, "rows", 4])],
        [numpy_helper.from_array(value, name) for value, name in zip(weights, "wr", strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    right = session.run(None, {"x": steps, "n": lengths})[0]
    alone = session.run(None, {"x": steps[:3, :1], "n": lengths[:1]})[0]
    reference = ReferenceEvaluator(model).run(None, {"x": steps, "n": lengths})[0]
    off = np.abs(reference - right).max(axis=(0, 2))
    print(operator, "reference beside onnxruntime: row of 3 of 6 steps", off[0], "row of 6 steps", off[1])
    assert np.allclose(right[:, :1], alone, atol=1e-6) and off[0] > 0.01 and off[1] < 1e-5
PYTHON
