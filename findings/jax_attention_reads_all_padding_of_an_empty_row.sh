#!/usr/bin/env bash
# jax 0.10.2 on the CPU: `dot_product_attention` answers a row of length 0 with the mean of its padding.
#
# `jax.nn.dot_product_attention(..., key_value_seq_lengths=...)` keeps padded keys from a row that has at least one valid
# step. With length 0 all keys get the same finite score, and the answer is the mean over whatever stands in the padding:
# torch's `scaled_dot_product_attention` gives zeros there. And padded *values* are multiplied by a weight of 0, so one NaN
# in the padding, which numbers of a sensor often are, makes the answer of a valid row NaN.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 jax==0.10.2 torch==2.13.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np
import torch

steps = np.random.default_rng(0).normal(size=(2, 7, 1, 8)).astype(np.float32)  # [rows, steps, heads, features]
lengths = np.array([5, 0])


def attention(values):
    return np.asarray(jax.nn.dot_product_attention(steps, steps, values, key_value_seq_lengths=lengths))


valid = torch.arange(7) < torch.tensor(lengths)[:, None]
query = torch.tensor(steps).transpose(1, 2)
of_torch = torch.nn.functional.scaled_dot_product_attention(query, query, query, valid[:, None, None, :])
answer, other = attention(steps), steps.copy()
other[:, 5:] = 100
missing = steps.copy()
missing[0, 6] = np.nan
print("length 0: jax", answer[1, 0, 0, :2], "torch", of_torch[1, 0, 0, :2], "mean of padding", steps[1].mean(0)[0, :2])
assert np.array_equal(attention(other)[0], answer[0])  # finite padding never reaches a row that has a step
assert np.allclose(answer[1, 0], steps[1].mean(0), atol=1e-6) and not of_torch[1].any()
assert np.isnan(attention(missing)[0]).all()
PYTHON
