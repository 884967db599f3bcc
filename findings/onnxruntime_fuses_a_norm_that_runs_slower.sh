#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: the optimizer joins a sum and a LayerNormalization to one operator that is slower than both.
#
# Each block of an encoder ends so, and at the default level `Add` and `LayerNormalization` become
# `SkipLayerNormalization`. Seen on one core of an AMD EPYC (family 25 model 17), 16 rows of 64 steps of 256 values: the
# joined operator took 6 times as long as the two. Leaving out the one rewrite that joins them keeps all others.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

shape = [16, 64, 256]
graph = helper.make_graph(
    [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["out"], axis=-1, epsilon=1e-5),
    ],
    "norm",
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")],
    [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    [helper.make_tensor(name, TensorProto.FLOAT, [256], np.full(256, value)) for name, value in (("scale", 1), ("bias", 0))],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
random = np.random.default_rng(0)
feed = {name: random.standard_normal(shape).astype(np.float32) for name in ("x", "y")}


def opened(**options):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"], **options)


sessions = {"as it is optimized": opened(), "without SkipLayerNormFusion": opened(disabled_optimizers=["SkipLayerNormFusion"])}
best = dict.fromkeys(sessions, float("inf"))
for _ in range(20):
    for name, session in sessions.items():
        start = time.process_time()
        for _ in range(10):
            session.run(None, feed)
        best[name] = min(best[name], (time.process_time() - start) / 10)
for name, seconds in best.items():
    print(f"{name}: {1e6 * seconds:.0f} us")
joined, apart = best.values()
assert joined > 2 * apart, "the joined operator is no longer slower"
PYTHON
