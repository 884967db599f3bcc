#!/usr/bin/env bash
# MNE 1.13.2 and edfio 0.4.18 read a discontinuous recording (EDF+D) as if its parts had no gap between them.
#
# Each data record of EDF+ says when it begins, and the header `EDF+D` that these times may leap: an electrode was off for
# a minute. Both readers give ten seconds of signal for ten seconds that span seventy, with the records one behind the
# other, and say nothing of a gap. A note after it keeps its time: edfio has it a minute behind the end of the signal, MNE
# drops it as outside the data, which is the only warning. pyEDFlib 0.1.42 refuses such a file with a clear message.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.3.5 edfio==0.4.18 mne==1.13.2 pyedflib==0.1.42
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import edfio
import mne
import numpy as np
import pyedflib

folder = Path(sys.argv[1])
signal = edfio.EdfSignal(np.arange(1000) / 10, 100, label="HR", physical_range=(0, 100))  # ten records of a second
whole, parts = folder / "whole.edf", folder / "parts.edf"
notes = [edfio.EdfAnnotation(2.5, None, "before the gap"), edfio.EdfAnnotation(7.5, None, "after")]
edfio.Edf([signal], annotations=notes).write(whole)
content = whole.read_bytes()
assert content[192:197] == b"EDF+C"
content = content[:192] + b"EDF+D" + content[197:]
for second in range(5, 10):  # the later half begins a minute later
    time, later = f"+{second}\x14\x14\0\0\0", f"+{second + 60}\x14\x14\0\0"
    if second == 7:
        time, later = "+7\x14\x14\0+7.5\x14after\x14\0\0\0", "+67\x14\x14\0+67.5\x14after\x14\0"
    assert content.count(time.encode()) == 1 and len(time) == len(later)
    content = content.replace(time.encode(), later.encode())
parts.write_bytes(content)

for file in (whole, parts):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        raw, edf = mne.io.read_raw_edf(file, verbose="WARNING"), edfio.read_edf(file)
    messages, onsets = [str(each.message) for each in warned], [note.onset for note in edf.annotations]
    print(file.name, "MNE:", raw.n_times, "samples, notes at", raw.annotations.onset, messages)
    print(file.name, "edfio:", edf.duration, "s, notes at", onsets)
    assert raw.n_times == len(edf.signals[0].data) == 1000 and edf.duration == 10
    assert np.allclose(np.diff(raw.get_data()[0]), 0.1, atol=0.01)  # also between the seconds 5 and 65
    assert onsets == [2.5, 7.5 if file is whole else 67.5]
    assert messages == ([] if file is whole else ["Omitted 1 annotation(s) that were outside data range."])
try:
    pyedflib.EdfReader(str(parts))
except OSError as error:
    print("pyEDFlib:", error)
    assert "discontinuous" in str(error)
else:
    raise SystemExit("pyEDFlib reads it, too")
PYTHON
