"""The kernels do not depend on how onnxruntime words its errors: its library is given other words, and run."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import lengthwise
from lengthwise.runtime import recurrent_kernels

PACKAGE = Path(onnxruntime.__file__).parent
ABSENT, OTHERWISE = b"No attribute with name:", b"Not there, attribute:  "
GRAPH = Path(lengthwise.__file__).parent / "models" / "japanese-vowels" / "1" / "model.onnx"
OPENED = """
import sys
import onnxruntime
from lengthwise.runtime import recurrent_kernels

options = onnxruntime.SessionOptions()
recurrent_kernels.register(options)
try:
    onnxruntime.InferenceSession(sys.argv[1], options)
except Exception as error:
    print(error)
"""

pytestmark = pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="no kernels of Lengthwise run here")


def _reworded(folder: Path) -> Path:
    """A copy of the package, links but for its library, in which an error has another text of the same length."""
    (library,) = (PACKAGE / "capi").glob("onnxruntime_pybind11_state*.so")
    content = library.read_bytes()
    if ABSENT not in content:
        pytest.skip(f"this onnxruntime does not say {ABSENT.decode()!r}")
    for source, target in ((PACKAGE, folder / "onnxruntime"), (PACKAGE / "capi", folder / "onnxruntime" / "capi")):
        target.mkdir()
        for entry in source.iterdir():
            if entry.name not in ("capi", "__pycache__", library.name):
                (target / entry.name).symlink_to(entry)
    (folder / "onnxruntime" / "capi" / library.name).write_bytes(content.replace(ABSENT, OTHERWISE))
    return folder


def _refusal(path: Path) -> str:
    """Why the kernels refuse the bundled model's layers with the onnxruntime of a folder; empty if they run them."""
    paths = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OPENED, str(GRAPH)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
def test_other_words_for_an_absent_attribute_change_nothing(tmp_path: Path) -> None:
    assert len(ABSENT) == len(OTHERWISE)
    assert _refusal(_reworded(tmp_path)) == ""
