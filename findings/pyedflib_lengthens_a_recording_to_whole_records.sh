#!/usr/bin/env bash
# pyEDFlib 0.1.42 lengthens a recording to whole data records, with values that look like data.
#
# An EDF file is made of data records of (by default) one second. 250 samples at 100 Hz come back as 300: the last half
# second is filled with the digital value 0, clipped to the physical range. In millivolts around 0 that reads as 7.6e-05,
# in degrees from 30 to 42 as 30.0: neither 0 nor NaN, so it cannot be told from data, and the header does not hold the
# true length. Who classifies such files must keep the number of samples elsewhere (in an annotation, say).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pyEDFlib==0.1.42
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np
import pyedflib


def stored(samples, unit, low, high):
    """The samples after they were written to a file and read again."""
    path = f"{sys.argv[1]}/{unit}.edf"
    header = pyedflib.highlevel.make_signal_header(
        "a", dimension=unit, sample_frequency=100, physical_min=low, physical_max=high
    )
    pyedflib.highlevel.write_edf(path, [samples], [header])
    with pyedflib.EdfReader(path) as file:
        return file.readSignal(0)


millivolts = stored(np.linspace(1, 2, 250), "mV", -5.0, 5.0)
degrees = stored(np.linspace(36, 37, 250), "degC", 30.0, 42.0)
print("250 samples written,", len(millivolts), "and", len(degrees), "read")
print("samples 248 to 252:", millivolts[248:253].round(6), degrees[248:253].round(3))
assert len(millivolts) == len(degrees) == 300
assert np.allclose(millivolts[:250], np.linspace(1, 2, 250), atol=2e-4)
assert np.allclose(millivolts[250:], 7.63e-05, atol=1e-6)
assert np.allclose(degrees[250:], 30.0)
PYTHON
