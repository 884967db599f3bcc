#!/usr/bin/env bash
# aeon 1.6.0: the Euclidean distance of two series of different lengths is that of their common beginning.
#
# A short stay and a long one that begins like it have distance 0, whatever happens later; so have `manhattan`, `minkowski`
# and `squared`. A classifier by nearest neighbours with one of them says that it can take unequal lengths, and nothing is
# raised or warned of; it finds the long series nearer than a short one that differs a little. Elastic distances (`dtw`,
# `msm`, `erp`, `twe`) count the rest. (dtaidistance 2.5.1 compares the rest with the last value of the shorter series.)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.3.5 numba==0.63.1 scikit-learn==1.9.1 aeon==1.6.0
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier
from aeon.distances import distance

warnings.filterwarnings("ignore", message="unsafe cast from uint64")  # of Numba, for indices
short, longer = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 50.0, 60.0, 70.0])
STEP_BY_STEP, ELASTIC = ("euclidean", "manhattan", "minkowski", "squared"), ("dtw", "msm", "erp", "twe")
found = {method: float(distance(short, longer, method=method)) for method in STEP_BY_STEP}
elastic = {method: float(distance(short, longer, method=method)) for method in ELASTIC}
print("to a series that goes on from 3 with 50, 60, 70:", found, elastic)
assert not any(found.values()) and min(elastic.values()) > 10

train, labels = [np.array([[1.0, 2.0, 4.0]]), longer[None]], np.array(["short", "long"])
for method, nearest in (("euclidean", "long"), ("dtw", "short")):
    classifier = KNeighborsTimeSeriesClassifier(distance=method).fit(train, labels)
    answer = classifier.predict([short[None]])[0]
    print(f"1, 2, 3 beside 1, 2, 4 and that series, by {method}: {answer}")
    assert answer == nearest and classifier.get_tag("capability:unequal_length")
PYTHON
