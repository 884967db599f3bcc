#!/usr/bin/env bash
# wfdb 4.3.1 averages the faster signals of a record down to the slowest, unless it is told not to.
#
# Records of intensive care hold signals of several rates, so many samples of each in a frame. `rdrecord` gives one array
# of one rate by default: four samples 0, 10, 20, 30 in a frame are one sample of 15, without a word. A model that was
# trained on 40 Hz then gets steps at 10 Hz, a quarter as long. `rdrecord(..., smooth_frames=False)` gives all samples, as
# a list of arrays of different lengths in `e_p_signal`.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 wfdb==4.3.1
cd "$folder"
printf 'ward 2 10 2\nward.dat 16x4 1/mV 16 0 0 0 0 fast\nward.dat 16 1/mV 16 0 100 0 0 slow\n' > ward.hea
venv/bin/python - <<'PYTHON'
import warnings

import numpy as np
import wfdb

np.array([0, 10, 20, 30, 100, 4, 8, 12, 16, 200], "<i2").tofile("ward.dat")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    record = wfdb.rdrecord("ward")
every = wfdb.rdrecord("ward", smooth_frames=False).e_p_signal
print("by default:", record.p_signal.tolist(), "at", record.fs, "Hz")
print("all samples:", [signal.tolist() for signal in every])
assert record.p_signal.tolist() == [[15.0, 100.0], [10.0, 200.0]] and record.fs == 10
assert [signal.tolist() for signal in every] == [[0, 10, 20, 30, 4, 8, 12, 16], [100, 200]]
PYTHON
