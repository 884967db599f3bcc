#!/usr/bin/env bash
# Hugging Face datasets 5.2.0, format "numpy": a batch is one float32 array or an array of objects, by its lengths.
#
# Two sequences of equal lengths come as float32 [2, steps, features], two of different lengths as an object array [2] of
# arrays. So code that was tried on equal lengths (or on a batch of one) meets another type in production, where
# `batch.mean(axis=1)` raises or means something else. Nothing in `features` tells the two apart.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 numpy==2.4.6
HF_HUB_OFFLINE=1 HF_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
from datasets import Dataset

three = Dataset.from_dict({"steps": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]], [[9.0, 0.0]]]}).with_format("numpy")
equal, ragged, one = three[:2]["steps"], three[1:]["steps"], three[2:]["steps"]
for name, batch in (("equal lengths", equal), ("2 and 1 steps", ragged), ("a batch of one", one)):
    print(f"{name}: {batch.dtype} {batch.shape}")
assert (equal.dtype, equal.shape) == ("float32", (2, 2, 2))
assert (ragged.dtype, ragged.shape) == (object, (2,))
assert (one.dtype, one.shape) == ("float32", (1, 1, 2))
PYTHON
