#!/usr/bin/env bash
# TensorFlow.js 4.22.0: `globalAveragePooling1d` means over masked steps, where Keras leaves them out, without a warning.
#
# The same model, Masking, LSTM with all steps, mean, is sound in Keras 3.15.1: two steps of padding change nothing. In
# TensorFlow.js, which reads models of Keras to run them in a browser, LSTM, GRU and Bidirectional keep to the mask; the
# mean drops it and divides by the width, so the answer moves with the padding.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 keras==3.15.1
KERAS_BACKEND=torch KERAS_HOME="$folder" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys

import keras
import numpy as np

recurrent = keras.layers.LSTM(1, return_sequences=True, kernel_initializer=keras.initializers.Constant(-0.1),
                              recurrent_initializer=keras.initializers.Constant(0.1))  # fmt: skip
inputs = keras.Input((None, 2))
model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(recurrent(keras.layers.Masking()(inputs))))
steps = np.array([[[1, 2], [3, 1], [2, 5]]], np.float32)
answers = [model(np.pad(steps, ((0, 0), (0, padding), (0, 0)))).detach().numpy().item() for padding in (0, 2)]
assert answers[0] == answers[1]
json.dump(answers[0], open(sys.argv[1] + "/keras.json", "w"))
PYTHON
cd "$folder"
npm install --silent --no-fund --no-audit @tensorflow/tfjs@4.22.0 >/dev/null
node - <<'JAVASCRIPT' 2>/dev/null
const assert = require("assert");
const tf = require("@tensorflow/tfjs");
const constant = (value) => tf.initializers.constant({ value });

(async () => {
  await tf.setBackend("cpu");
  const inputs = tf.input({ shape: [null, 2] });
  const recurrent = tf.layers.lstm({
    units: 1,
    returnSequences: true,
    kernelInitializer: constant(-0.1),
    recurrentInitializer: constant(0.1),
    recurrentActivation: "sigmoid",
    unitForgetBias: true,
  });
  const states = recurrent.apply(tf.layers.masking({}).apply(inputs));
  const model = tf.model({ inputs, outputs: tf.layers.globalAveragePooling1d({}).apply(states) });
  const steps = [[1, 2], [3, 1], [2, 5]];
  const answer = (sequence) => model.predict(tf.tensor([sequence])).dataSync()[0];
  const [keras, alone, padded] = [require("./keras.json"), answer(steps), answer([...steps, [0, 0], [0, 0]])];
  console.log("Keras, alone and padded", keras, "TensorFlow.js, alone", alone, "padded", padded);
  assert(Math.abs(alone - keras) < 1e-6 && Math.abs(padded - keras) > 0.001);
})().catch((error) => { console.error(error); process.exit(1); });
JAVASCRIPT
