"""Data that was padded: training warns of it, and trains without the padding where it is told."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.training.session import SPEC_FILE
from tests.support.specs import ROCKET, TINY

SAID = "every sequence has 20 steps, and 36 of 40 end in "
WIDTH = 20
random = np.random.default_rng(0)
LABELS = ["calm", "loud"] * 20
LENGTHS = [WIDTH] * 4 + random.integers(5, WIDTH - 1, 36).tolist()
SEQUENCES = [
    random.normal(scale=1 + 3 * (label == "loud"), size=(length, 2)).astype(np.float32)
    for length, label in zip(LENGTHS, LABELS, strict=True)
]


def padded(fill: float = 0.0, sequences: Any = SEQUENCES) -> np.ndarray:
    """`[n, width, features]`, as tslearn's `to_time_series_dataset` makes it of NaN, and `np.pad` of zeros."""
    whole = np.full((len(sequences), WIDTH, sequences[0].shape[1]), fill, np.float32)
    for array, one in zip(whole, sequences, strict=True):
        array[: len(one)] = one
    return whole


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def csv(path: Path, sequences: Any) -> Path:
    rows = [
        f"s{n:02},{t},{x},{y},{LABELS[n]}".replace("nan", "")
        for n, one in enumerate(sequences)
        for t, (x, y) in enumerate(one.tolist())
    ]
    path.write_text("\n".join(["id,t,x,y,label", *rows]))
    return path


@pytest.mark.parametrize(("padding", "fill"), [("zeros", 0.0), ("nan", np.nan)])
def test_python_warns_and_trains_without_the_padding(padding: Any, fill: float) -> None:
    plain = lengthwise_export.train(ROCKET, SEQUENCES, LABELS, progress=None)
    assert not plain.warnings
    said = {**ROCKET, "input": {"normalize": "training", "missing": "zero"}}
    warned = lengthwise_export.train(said, padded(fill), LABELS, progress=None)
    assert sum(SAID in one for one in warned.warnings) == 1
    for how in ({"padding": padding}, {"spec": {**ROCKET, "input": {"normalize": "training", "padding": padding}}}):
        arguments = {"spec": ROCKET, "validation": (padded(fill), LABELS)} | how
        cut = lengthwise_export.train(
            sequences=padded(fill), labels=LABELS, progress=None, test=(padded(fill), LABELS), **arguments
        )
        assert not cut.warnings
        assert cut.spec["input"]["padding"] == padding
        for name, tensor in load_file(plain.weights).items():
            assert load_file(cut.weights)[name].equal(tensor)


def test_missing_values_behind_sequences_are_said_to_be_padding() -> None:
    with pytest.raises(InvalidSequences, match=r"from step \d+ on there is none: .*padding='nan'"):
        lengthwise_export.train("rocket", padded(np.nan), LABELS, progress=None)
    warned = lengthwise_export.train("auto", padded(np.nan), LABELS, progress=None)  # chooses a policy for them
    assert any(f"{SAID}missing values" in one for one in warned.warnings)
    gap = [np.where(np.arange(len(one))[:, None] == 2, np.nan, one) for one in SEQUENCES]
    with pytest.raises(InvalidSequences, match="set it to 'zero', 'mean' or 'indicator'") as told:
        lengthwise_export.train("rocket", gap, LABELS, progress=None)
    assert "padding" not in str(told.value)


def test_labels_of_steps_are_cut_with_the_steps() -> None:
    each = {**TINY, "output": {"task": "per-step"}}
    short = [["calm"] * (len(one) - 1) + ["loud"] for one in SEQUENCES]
    whole = [labels + ["loud"] * (WIDTH - len(labels)) for labels in short]
    for labels in (whole, short):
        found = lengthwise_export.train(each, padded(), labels, padding="zeros", epochs=1, progress=None)
        assert found.report["training"]["answers"] == sum(LENGTHS)
    several = {**TINY, "output": {"task": "multi-label"}}
    sets = [["calm", "loud"][: 1 + n % 2] for n in range(40)]
    lengthwise_export.train(several, padded(), sets, padding="zeros", epochs=1, progress=None)


@pytest.mark.parametrize("padding", ["zeros", "nan"])
def test_a_classifier_cuts_in_fit_and_predict(padding: Any, caplog: pytest.LogCaptureFixture) -> None:
    fill = 0.0 if padding == "zeros" else np.nan
    plain = lengthwise_export.LengthwiseClassifier(ROCKET).fit(SEQUENCES, LABELS)
    caplog.clear()
    cut = lengthwise_export.LengthwiseClassifier(ROCKET, padding=padding).fit(padded(fill), LABELS)
    assert "padding" not in caplog.text
    assert cut.predict_proba(padded(fill)).tobytes() == plain.predict_proba(SEQUENCES).tobytes()
    with pytest.raises(InvalidSequences, match="padding='nan'") if padding == "nan" else caplog.at_level(logging.INFO):
        lengthwise_export.LengthwiseClassifier(ROCKET).fit(padded(fill), LABELS)
    if padding == "nan":
        with pytest.raises(InvalidSequences, match="padding='nan'"):
            plain.predict(padded(fill))
    else:
        assert caplog.text.count(SAID) == 1


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("fill", [0.0, np.nan], ids=["zeros", "nan"])
def test_the_command_warns_and_trains_without_the_padding(fill: float, tmp_path: Path) -> None:
    padding = "nan" if np.isnan(fill) else "zeros"
    data = csv(tmp_path / "padded.csv", padded(fill))
    warned = run("train", "auto", data, "--out", tmp_path / "warned")
    assert warned.exit_code == 0, warned.output
    assert warned.stderr.count(f"warning: {SAID}") == 1
    assert f"--padding {padding}" in warned.stderr
    plain = run("train", "rocket", csv(tmp_path / "plain.csv", SEQUENCES), "--out", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    cut = run("train", "rocket", data, "--test", data, "--padding", padding, "--out", tmp_path / "cut")
    assert cut.exit_code == 0, cut.output
    assert "is this padding" not in cut.stderr + plain.stderr
    assert Spec.read(tmp_path / "cut" / SPEC_FILE).input.padding == padding
    again = run("train", tmp_path / "cut" / SPEC_FILE, data, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    weights = load_file(tmp_path / "plain" / WEIGHTS_FILE)
    for name in ("cut", "again"):
        found = load_file(tmp_path / name / WEIGHTS_FILE)
        assert all(found[key].equal(tensor) for key, tensor in weights.items())
    if padding == "nan":
        refused = run("train", "rocket", data, "--out", tmp_path / "refused")
        assert refused.exit_code == 2
        assert "--padding nan" in refused.stderr


@pytest.mark.long
def test_an_export_cuts_its_data_as_the_training_did(tmp_path: Path) -> None:
    data, small = csv(tmp_path / "padded.csv", padded()), tmp_path / "small.toml"
    small.write_text('[model]\nkind = "rocket"\nkernels = 84\n')
    assert run("train", small, data, "--padding", "zeros", "--out", tmp_path / "run").exit_code == 0
    call = ("export", tmp_path / "run", "--data", data)
    first = run(*call, "--out", tmp_path / "m/1", "--json")
    assert first.exit_code == 0, first.output
    assert "is this padding" not in first.output
    examples = (tmp_path / "m/1/examples.jsonl").read_text().splitlines()
    assert min(len(json.loads(one)["steps"]) for one in examples) < WIDTH
    assert run("train", small, data, "--out", tmp_path / "other").exit_code == 0
    warned = run("export", tmp_path / "other", "--data", data, "--out", tmp_path / "m/2")
    assert f"warning: {data}: {SAID}zeros" in warned.stderr, warned.output
    cut = ("--padding", "zeros", "--out", tmp_path / "m/3")
    assert "is this padding" not in run("export", tmp_path / "other", "--data", data, *cut).output
    model = lengthwise.load(tmp_path / "m/1")
    assert [one.length for one in model.predict(padded(), padding="zeros")] == LENGTHS


@pytest.mark.long
def test_rows_without_a_time_are_cut_in_training_and_export(tmp_path: Path) -> None:
    data, spec = csv(tmp_path / "d.csv", SEQUENCES), tmp_path / "small.toml"
    spec.write_text('[model]\nkind = "rocket"\nkernels = 84\n')
    with data.open("a") as file:
        file.writelines(f"\ns{n:02},,,,{LABELS[n]}" for n in range(4))
    for command in (("train", spec, data), ("train", data)):
        refused = run(*command, "--out", tmp_path / "run")
        assert "has no time in the column 't'" in refused.stderr
    assert run("train", spec, data, "--padding", "nan", "--out", tmp_path / "run").exit_code == 0
    exported = run("export", tmp_path / "run", "--data", data, "--out", tmp_path / "m/1")
    assert exported.exit_code == 0, exported.output


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("labels", [LABELS, None], ids=["beside", "inside"])
def test_null_steps_behind_sequences_are_cut_in_training(labels: list[str] | None) -> None:
    steps = [[*one.tolist(), None, None] for one in SEQUENCES]
    given: Any = steps if labels else [dict(steps=one, label=label) for one, label in zip(steps, LABELS, strict=True)]
    said = {**ROCKET, "input": {"missing": "zero"}}
    with pytest.raises(InvalidSequences, match="a step must be an array of 2 numbers, got null"):
        lengthwise_export.train(said, given, labels, progress=None)
    plain = lengthwise_export.train(said, SEQUENCES, LABELS, progress=None)
    found = lengthwise_export.train(said, given, labels, padding="nan", progress=None)
    for name, tensor in load_file(plain.weights).items():
        assert load_file(found.weights)[name].equal(tensor)


def test_token_ids_may_be_padded_with_zeros() -> None:
    ids = [random.integers(1, 9, length) for length in LENGTHS]
    whole = [np.pad(one, (0, WIDTH - len(one))) for one in ids]
    said = {**TINY, "input": {"vocabulary": 9}}
    warned = lengthwise_export.train(said, whole, LABELS, epochs=1, progress=None)
    assert any(f"{SAID}zeros" in one for one in warned.warnings)
    cut = lengthwise_export.train(said, whole, LABELS, padding="zeros", epochs=1, progress=None)
    assert not any("padding" in one for one in cut.warnings)
    with pytest.raises(ConfigurationError, match="padding"):
        lengthwise_export.train(said, whole, LABELS, padding="ones", epochs=1, progress=None)  # type: ignore[arg-type]
