"""What two builds wrote is compared part by part, so that a difference has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from benchmarks.daily_hour import _parts, differing


def written(folder: Path, step: str, weight: float, stop: int) -> dict[str, object]:
    """The parts of a graph and of a checkpoint, and of a page, which counts for nothing."""
    folder.mkdir()
    graph = f"m (float[rows] x) => (float[rows] y) <float[{step}] h> {{ h = Neg (x) y = Neg (h) }}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {graph}'), folder / "m.onnx")
    state = f'{{"spec": {{"stop": {stop}}}, "trained": "{step}"}}'
    save_file({"w": np.float32([weight])}, folder / "m.safetensors", {"state": state})
    (folder / "page.html").write_text(step)
    return {name: value for path in sorted(folder.iterdir()) for name, value in _parts(path).items()}


def test_each_part_that_differs_is_named_and_no_other(tmp_path: Path) -> None:
    first = written(tmp_path / "first", "rows", 0.0, 1)
    assert differing([first, written(tmp_path / "described", "s41", 0.0, 1)]) == ["m.onnx value_info"]
    expected = ["m.safetensors w", "m.safetensors metadata state spec stop"]
    assert differing([first, first, written(tmp_path / "other", "rows", -0.0, 2)]) == expected
    assert differing([first, {}]) == [*first]
