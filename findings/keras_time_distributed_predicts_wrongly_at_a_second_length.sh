#!/usr/bin/env bash
# keras 3.15.1 on tensorflow-cpu 2.21.0: from the second length on, `predict` with TimeDistributed answers another sequence.
#
# One would expect `model.predict(x)` to be what `model(x)` is, at any length. The first length is traced, and is right. A
# second one makes TensorFlow trace for lengths that are not known, and from then on TimeDistributed gives other numbers:
# no error, the right shape, probabilities that add up to one. The same layer without TimeDistributed, which for Dense is
# the same function, is right at every length, and so is `model(x)`. Whoever compares a served model with `predict` at
# several lengths, or pads by hand to a few widths, compares with wrong numbers.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 tensorflow-cpu==2.21.0
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np
from keras import layers

LENGTHS = (4, 17, 9)
random = np.random.default_rng(0)
sequences = [random.standard_normal((1, length, 3)).astype("float32") for length in LENGTHS]
for wrapped in (False, True):
    keras.utils.set_random_seed(0)
    steps = keras.Input((None, 3))
    head = layers.Dense(2, activation="softmax")
    model = keras.Model(steps, layers.TimeDistributed(head)(steps) if wrapped else head(steps))
    off = []
    for sequence in sequences:
        logits = sequence @ np.asarray(head.kernel) + np.asarray(head.bias)
        right = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        assert np.abs(np.asarray(model(sequence)) - right).max() < 1e-6
        off.append(float(np.abs(model.predict(sequence, verbose=0) - right).max()))
    name = "TimeDistributed(Dense)" if wrapped else "Dense"
    print(f"{name}: predict is off by", ", ".join(f"{each:.2g} at {n} steps" for each, n in zip(off, LENGTHS)))
    assert off[0] < 1e-6
    assert [each > 0.05 for each in off[1:]] == [wrapped, wrapped]
PYTHON
