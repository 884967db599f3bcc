#!/usr/bin/env bash
# Keras 3.15.1 drops the mask, without a warning, where a masked and an unmasked branch meet in a merge.
#
# Layers that cannot pass a mask on warn that they "destroy" it. `Add`, `Average`, `Maximum`, `Multiply` and `Subtract`
# do not: one input without a mask, and the sum has none. With `Concatenate` of features each step is valid that is valid
# in any branch, so an unmasked branch makes all padding valid. A residual connection around the masking layer is enough:
# the mean behind it runs over padding. (With Masking on both branches the mask stays.)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 keras==3.15.1
KERAS_BACKEND=torch KERAS_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import keras
import numpy as np

warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)


def answers(merge, both):
    """The pooled answer to the steps 1 and 2, alone and with a step of padding."""
    steps = keras.Input((None, 1))
    masked = keras.layers.Masking()(steps)
    other = keras.layers.Masking()(steps) if both else steps
    model = keras.Model(steps, keras.layers.GlobalAveragePooling1D()(merge([masked, other])))
    return [float(model(np.array(one, np.float32)).detach().numpy().ravel()[0]) for one in ([[[1], [2]]], [[[1], [2], [0]]])]


for merge in (keras.layers.Add(), keras.layers.Concatenate()):
    kept, dropped = answers(merge, both=True), answers(merge, both=False)
    print(f"{type(merge).__name__}: alone and padded, both branches masked {kept}, one masked {dropped}")
    assert kept[0] == kept[1] == dropped[0]
    assert abs(dropped[1] / dropped[0] - 2 / 3) < 1e-6
PYTHON
