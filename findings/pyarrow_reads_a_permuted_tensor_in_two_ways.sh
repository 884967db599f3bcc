#!/usr/bin/env bash
# pyarrow 26.0.1 reads a tensor with a permutation in two ways: by its array, and by its scalar.
#
# `arrow.fixed_shape_tensor` may store its axes in another order and say so by `permutation`, as columns do whose features
# stand before the steps. `FixedShapeTensorArray.to_numpy_ndarray` and `FixedShapeTensorScalar.to_numpy` of the same cell
# then differ in their values, and nothing is raised. Without a permutation they agree.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import pyarrow as pa


def both(permutation):
    """The one cell of a column of 2 x 3 tensors, read by the array and by the scalar."""
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=permutation)
    column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.float32()), 6))
    return column.to_numpy_ndarray()[0].tolist(), column[0].to_numpy().tolist()


plain, permuted = both(None), both([1, 0])
print("without a permutation:", plain)
print("permutation [1, 0]: by the array", permuted[0], " by the scalar", permuted[1])
assert plain[0] == plain[1] == np.arange(6).reshape(2, 3).tolist()
assert permuted[0] == [[0, 3], [1, 4], [2, 5]]
assert permuted[1] == [[0, 2], [1, 3], [2, 4]] != permuted[0]
PYTHON
