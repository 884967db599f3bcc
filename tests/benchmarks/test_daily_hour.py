"""What two builds wrote is compared part by part, so that a difference has a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from benchmarks.daily_hour import differing, parts


def written(
    folder: Path, step: str, weight: float, answer: float, opset: int = 18, type: type[Any] = np.float32
) -> dict[str, Any]:
    """The parts of a graph and of a checkpoint, and of a page, which counts for nothing."""
    folder.mkdir()
    graph = f"m (float[rows] x) => (float[rows] y) <float[{step}] h> {{ h = Neg (x) y = Neg (h) }}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {graph}'), folder / "m.onnx")
    save_file({"w": np.float32([weight])}, folder / "m.safetensors", {"trained": step})
    np.savez(folder / "golden.npz", answer=type([answer]))
    (folder / "page.html").write_text(step)
    return parts(folder)


def test_each_part_that_differs_is_named_and_no_other(tmp_path: Path) -> None:
    first = written(tmp_path / "first", "rows", 0.0, 1)
    assert differing([first, written(tmp_path / "described", "s41", 0.0, 1)]) == ["m.onnx value_info"]
    expected = ["golden.npz answer", "m.safetensors w"]
    assert differing([first, first, written(tmp_path / "other", "rows", -0.0, 2)]) == expected
    assert differing([first, written(tmp_path / "newer", "rows", 0.0, 1, opset=21)]) == ["m.onnx model opset_import"]
    as_integer = written(tmp_path / "integer", "rows", 0.0, 0, type=np.int32)
    assert differing([as_integer, written(tmp_path / "zero", "rows", 0.0, 0)]) == ["golden.npz answer"]
    assert differing([first, {}]) == sorted(first)
