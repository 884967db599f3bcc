#!/usr/bin/env bash
# tslearn 0.10.0 pads with NaN, and so cuts the missing steps at the end of a recording that it is given.
#
# Four steps of which the last is missing are three for `to_time_series_dataset` and `ts_size`; one in the middle stays.
# DTW of [1, 2, 3] and [1, 2, 3, missing] is 0. A recording of which all steps are missing has no steps left. The true
# lengths have to be kept beside the array.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scikit-learn==1.9.1 tslearn==0.10.0
"$folder/venv/bin/python" - <<'PYTHON'
from math import nan

from tslearn.metrics import dtw
from tslearn.utils import to_time_series_dataset, ts_size

dataset = to_time_series_dataset([[1, 2, 3, nan], [1, nan, 3, 4], [nan, nan]])
sizes = [ts_size(series) for series in dataset]
distance = dtw([1, 2, 3], [1, 2, 3, nan])
print("shape:", dataset.shape, " sizes of 4, 4 and 2 steps:", sizes, " distance:", distance)
assert sizes == [3, 4, 0] and distance == 0
assert to_time_series_dataset([[1, 2, 3, nan], [1, 2]]).shape == (2, 3, 1)
PYTHON
