#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU: one graph keeps the lengths of its LSTM, GRU and RNN or ignores them, by the sizes it declares.
#
# With rows and steps of fixed sizes `sequence_lens` counts, and the answers are those of onnxruntime 1.32.0. Once the rows
# or the steps are open, as in any graph that is to be served, each row runs to the width, and its last state is the one
# behind its padding; rows of full length agree. Reading, compiling and running say nothing, and constant lengths are
# ignored, too. What a test with `reshape` to fixed sizes shows does not hold for the graph before it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
steps, lengths = random.normal(size=(6, 3, 3)).astype(np.float32), np.array([3, 6, 1], np.int32)


def last_states(operator, gates):
    """How far each row's last state is from that of onnxruntime: with open sizes, and with fixed ones."""
    weights = [random.normal(size=(1, gates * 4, width)).astype(np.float32) for width in (3, 4)]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "r", "", "n"], ["", "last"], hidden_size=4)],
        "one_layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "rows", 3]),
            helper.make_tensor_value_info("n", TensorProto.INT32, ["rows"]),
        ],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, "rows", 4])],
        [numpy_helper.from_array(value, name) for value, name in zip(weights, "wr", strict=True)],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    given = {"x": steps, "n": lengths}
    right = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, given)[0]
    core, off = openvino.Core(), []
    for fixed in (False, True):
        model = core.read_model(file)
        if fixed:
            model.reshape({"x": [6, 3, 3], "n": [3]})
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else bfloat16, where it can
        off.append(np.abs(compiled(given)[0] - right).max(axis=(0, 2)))
    return off


for operator, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    opened, fixed = last_states(operator, gates)
    print(operator, "rows of 3, 6 and 1 of 6 steps: open sizes", opened, "fixed sizes", fixed)
    assert fixed.max() < 1e-5 and opened[1] < 1e-5 and min(opened[0], opened[2]) > 0.05
PYTHON
