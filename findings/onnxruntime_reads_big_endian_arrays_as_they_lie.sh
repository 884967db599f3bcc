#!/usr/bin/env bash
# onnxruntime 1.32.0 and xgboost 3.2.0 read a NumPy array of the other byte order as it lies in memory.
#
# Recordings from netCDF classic, FITS or older instruments are big-endian ('>f4'), and NumPy computes with such arrays as
# with any other. `InferenceSession.run`, `OrtValue.ortvalue_from_numpy` and `xgboost.DMatrix` take them as float32, too,
# without an error, and read the bytes in the wrong order: 1.0 becomes 4.6e-41. (pyarrow refuses such an array, safetensors
# and polars convert it.) What helps: `array.astype("<f4")`, which `np.asarray(array, np.float32)` also does.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 xgboost==3.2.0 scipy==1.17.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np
import onnx.parser
import onnxruntime
import xgboost
from scipy.io import netcdf_file

path = f"{sys.argv[1]}/recording.nc"
with netcdf_file(path, "w") as file:
    file.createDimension("step", 3)
    file.createVariable("flow", "f4", ("step",))[:] = [1.0, 2.0, 3.0]
with netcdf_file(path, mmap=False) as file:
    steps = file.variables["flow"][:].copy().reshape(1, 3)
print("the recording:", steps, "of type", steps.dtype.str)
assert steps.dtype.str == ">f4" and steps.tolist() == [[1.0, 2.0, 3.0]]

model = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 18]> copy (float[rows, steps] x) => (float[rows, steps] y) { y = Identity (x) }'
)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
(copied,) = session.run(None, {"x": steps})
value = onnxruntime.OrtValue.ortvalue_from_numpy(steps).numpy()
matrix = xgboost.DMatrix(steps).get_data().toarray()
wrong = steps.view("<f4")
print("onnxruntime's Identity of it:", copied, " OrtValue:", value, " xgboost:", matrix)
assert np.array_equal(copied, wrong) and np.array_equal(value, wrong) and np.array_equal(matrix, wrong)
assert np.array_equal(session.run(None, {"x": steps.astype("<f4")})[0], steps)
PYTHON
