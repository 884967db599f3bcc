#!/usr/bin/env bash
# flax 0.12.8: RNN answers a row of length 0 with the state after all of its padding.
#
# One would expect the initial state: the row has no steps. `seq_lengths` picks the carry at `length - 1`, which for 0 is
# -1, the last position of the rectangle. So in linen and in nnx the carry of an empty row is that of a row as wide as the
# batch, whose steps are the padding; it changes with the padding's values and with the width that other rows need. Rows
# of one step and more are right. Empty rows are ordinary where a stream sends nothing new, or a window has no events.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 jax==0.10.2 flax==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

WIDTH = 5
steps = jax.random.normal(jax.random.PRNGKey(0), (2, WIDTH, 3))
layer = linen.RNN(linen.GRUCell(features=4), return_carry=True)
weights = layer.init(jax.random.PRNGKey(1), steps)
layer_of_nnx = nnx.RNN(nnx.GRUCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0)), return_carry=True)
RUNS = {
    "linen": lambda values, lengths: layer.apply(weights, values, seq_lengths=jnp.array(lengths))[0],
    "nnx": lambda values, lengths: layer_of_nnx(values, seq_lengths=jnp.array(lengths))[0],
}
for (name, carries), length in itertools.product(RUNS.items(), (0, 1, 3)):
    values = [steps.at[0, length:].set(padding) for padding in (0.5, 2.0)]
    answers = [np.asarray(carries(each, [length, WIDTH])[0]) for each in values]
    moved = float(np.abs(answers[0] - answers[1]).max())
    print(f"{name}: the carry of a row of length {length} moves by {moved:.2g} with its padding")
    assert moved > 0.1 if length == 0 else moved == 0
    as_wide = np.asarray(carries(values[0], [WIDTH, WIDTH])[0])
    assert np.array_equal(answers[0], as_wide) == (length == 0)
PYTHON
