#!/usr/bin/env bash
# torch 2.13.0, Keras 3.15.1 on torch: a layer that counts its calls is exported, and then cannot be decomposed.
#
# Monitors of drift and layers that warm up keep a counter in a weight, which they raise with `assign_add` in each call.
# `torch.export.export` takes such a model and its program answers as the model does. `run_decompositions`, without
# which no program becomes ONNX, ends with an AssertionError about a compiled function, which names neither the layer
# nor the weight. A plain module that does the same with a buffer is decomposed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 keras==3.15.1 numpy==2.4.6
KERAS_BACKEND=torch KERAS_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import keras
import torch


class Counting(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


class Buffered(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1.0
        return inputs * 2


steps = torch.zeros(2, 5, 3)
symbolic = keras.Input((None, 3))
model = keras.Model(symbolic, keras.layers.Dense(2)(Counting()(symbolic))).eval()
said = {}
for name, module in (("Keras", model), ("buffer", Buffered().eval())):
    with torch.no_grad():
        program = torch.export.export(module, (steps,), strict=False)
        try:
            program.run_decompositions()
            said[name] = "decomposed"
        except AssertionError as error:
            said[name] = str(error)
    print(f"{name}: exported, then {said[name]}")
assert said["Keras"].startswith("expected compiled_fn to be GraphModule"), said
assert said["buffer"] == "decomposed", said
PYTHON
