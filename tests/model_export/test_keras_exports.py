"""Exports of Keras to ONNX as targets: what is mended and said, and what is refused with the cure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import lengthwise
from lengthwise.commands.cli import main
from tests.gallery.onnx_models import Weights, integers, model
from tests.support.keras_loops import FEATURES, VOCABULARY, KerasLoop


def saved(graph: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(graph, path)
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--max-length", "40"])


def test_a_masked_lstm_is_published_with_lengths_in_the_place_of_its_mask(tmp_path: Path) -> None:
    graph = KerasLoop(masked=0.0).model()
    done = command("export", saved(graph, tmp_path), "--mend", "--out", tmp_path / "models" / "keras", "--json")
    assert done.exit_code == 0, done.output
    assert "notice: " in done.stderr
    value = json.loads(done.stdout)
    assert "takes such a step for data" in value["mend"]["notice"]
    recorded = json.loads((Path(value["directory"]) / "verification.json").read_text())
    assert recorded["mend"]["proof"]["holds"] is True
    served = onnx.load(Path(value["directory"]) / "model.onnx")
    assert [node.op_type for node in served.graph.node if node.op_type in ("LSTM", "Loop")] == ["LSTM"]
    steps = np.random.default_rng(0).normal(size=(9, FEATURES)).astype(np.float32)
    hidden = steps.copy()
    hidden[-1] = 0.0
    one, other, shorter = lengthwise.load(value["directory"]).predict([steps, hidden, steps[:-1]])
    assert not np.allclose(one.probabilities, other.probabilities)
    assert not np.allclose(other.probabilities, shorter.probabilities)


@pytest.mark.long
def test_token_ids_that_a_mask_hides_are_said(tmp_path: Path) -> None:
    path = saved(KerasLoop("gru", masked=0.0, tokens=True).model(), tmp_path)
    done = command("check", path, "--suggest", "--vocabulary", VOCABULARY, "--json")
    fix = json.loads(done.stdout)["fix"]
    assert fix["mendable"], fix["reason"]
    assert "all values are 0" in fix["notice"]
    assert fix["verdict"] == "sound"


def test_a_loop_that_cannot_be_mended_is_refused_with_the_cure(tmp_path: Path) -> None:
    text = onnx.printer.to_text(KerasLoop(limit=False).model())
    lines = "taken = Gather (time_first, place)\nnumber = Cast <to: int = 1> (place)\nc0step = Add (taken, number)"
    other = text.replace("c0step = Gather (time_first, place)", lines)
    graph = onnx.parser.parse_model(other)
    graph.producer_name = "tf2onnx"
    done = command("export", saved(graph, tmp_path), "--mend", "--out", tmp_path / "models" / "none")
    assert done.exit_code == 2
    assert "computes with the number of its turn" in done.stderr
    assert "give the .keras file" in done.stderr


def test_an_answer_of_the_first_step_alone_is_refused(tmp_path: Path) -> None:
    w = Weights(1)
    graph = model(
        f"main (float[batch,width,{FEATURES}] keras_tensor_3) => (float[batch,2] y)",
        "first = Slice (keras_tensor_3, zero, one, one)\nstep = Squeeze (first, one)\ny = MatMul (step, V)",
        {"zero": integers(0), "one": integers(1), "V": w.normal(FEATURES, 2)},
        producer="pytorch",
    )
    done = command("check", saved(graph, tmp_path), "--suggest", "--json")
    fix = json.loads(done.stdout)["fix"]
    assert not fix["mendable"]
    assert "depends on the first step alone" in fix["reason"]
    assert "give the .keras file" in fix["reason"]
