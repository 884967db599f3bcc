#!/usr/bin/env bash
# pydicom 3.0.2: `waveform_array` turns the samples that a DICOM waveform marks as padding into microvolts of a signal.
#
# An ECG or a pressure in DICOM names a Waveform Padding Value (5400,100A) for samples that are none: a lead came off, a
# channel began later. `Dataset.waveform_array` multiplies them with the sensitivity like all others: -32768 at 1.25 uV is
# -41 mV, neither NaN nor masked, fifty times the ECG that pydicom ships and tests with. Nothing in its answer tells them
# from data. What helps: compare the raw samples with the padding value, before the scaling.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pydicom==3.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file

recording = dcmread(get_testdata_file("waveform_ecg.dcm"))
group = recording.WaveformSequence[0]
samples = np.frombuffer(group.WaveformData, "<i2").reshape(-1, group.NumberOfWaveformChannels).copy()
before = recording.waveform_array(0)
group.add_new((0x5400, 0x100A), "OW", np.array(-32768, "<i2").tobytes())  # Waveform Padding Value
samples[1000:1500, 0] = -32768  # the first lead is off for half a second
group.WaveformData = samples.tobytes()
after = recording.waveform_array(0)

lead = after[1000:1500, 0]
unit = group.ChannelDefinitionSequence[0].ChannelSensitivityUnitsSequence[0].CodeValue
print(f"the lead without samples: {np.unique(lead)} {unit}; before: {before[:, 0].min():.1f} to {before[:, 0].max():.1f}")
assert group["WaveformPaddingValue"].value
assert not np.ma.isMaskedArray(after) and np.isfinite(after).all()
assert (np.unique(lead).size, np.abs(lead).min() > 20 * np.abs(before).max()) == (1, True)
PYTHON
