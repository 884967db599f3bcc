"""`lengthwise_export.train` and `compare`: what the command `train` does, of sequences in memory."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from click.testing import CliRunner

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise_export.errors import SpecError
from lengthwise_export.training import arrays, recipe
from lengthwise_export.training.arrays import as_label, sorted_labels
from tests.support.specs import ROCKET, TINY, in_memory, json_lines, separable

QUICK: dict[str, Any] = {"epochs": 2, "progress": None}


def test_a_run_is_that_of_the_command(tmp_path: Path) -> None:
    sequences, labels = in_memory()
    run = lengthwise_export.train(TINY, sequences, labels, out=tmp_path / "api", **QUICK)
    (tmp_path / "tiny.toml").write_text(
        '[input]\nfeatures = 3\nnormalize = "training"\n'
        '[model]\nhidden = 8\nlayers = 1\n[output]\nlabels = ["a", "b"]\n'
    )
    (tmp_path / "train.jsonl").write_text(json_lines(separable(24)))
    words = ("train", tmp_path / "tiny.toml", tmp_path / "train.jsonl", "--out", tmp_path / "cli", "--epochs", 2)
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert {path.name for path in run.directory.iterdir()} == {path.name for path in (tmp_path / "cli").iterdir()}
    assert run.weights.read_bytes() == (tmp_path / "cli" / "model.safetensors").read_bytes()
    assert run.report["training"] == json.loads((tmp_path / "cli" / "metrics.json").read_text())["training"]
    assert run.labels == ("a", "b")
    assert any("epochs" in reason or "validation" in reason for reason in run.reasons)


def test_a_run_is_shown_exported_and_loaded(tmp_path: Path) -> None:
    sequences, labels = in_memory()
    short = {**TINY, "input": {"normalize": "training", "max_length": 40}}
    run = lengthwise_export.train(short, sequences, labels, epochs=15, learning_rate=0.02, progress=None)
    assert "macro F1" in run._repr_html_()
    assert "accuracy" in str(run)
    assert repr(run).startswith("<lengthwise_export.TrainedModel of 2 labels: accuracy")
    published = run.export(tmp_path / "models" / "mine")
    predictions = lengthwise.load(published.directory).predict(sequences)
    assert sum(prediction.label == label for prediction, label in zip(predictions, labels, strict=True)) >= 20


@pytest.mark.long
def test_a_temporary_folder_goes_with_its_run() -> None:
    run = lengthwise_export.train(ROCKET, *in_memory(), progress=None)
    folder = run.directory
    assert (folder / "model.safetensors").is_file()
    del run
    gc.collect()
    assert not folder.exists()


def test_features_labels_and_the_longest_sequence_are_read_off_the_in_memory() -> None:
    random = np.random.default_rng(0)
    sequences = [random.normal(size=length) for length in (1500, 5, 7, 9, 8, 4)]
    run = lengthwise_export.train("rocket", sequences, np.arange(6) % 3 + 9, progress=None)
    assert (run.spec["input"]["features"], run.spec["input"]["max_length"]) == (1, 1500)
    assert any("max_length = 1500" in reason for reason in run.reasons)
    assert run.labels == ("9", "10", "11")  # sorted as numbers


def test_token_ids_need_a_vocabulary_and_numbers_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    sequences = [[1, 2, 3], [4, 5], [1, 1, 2], [5, 4]]
    with caplog.at_level(logging.WARNING, logger="lengthwise.train"):
        run = lengthwise_export.train(ROCKET, sequences, list("abab"), progress=None)
    assert any("vocabulary" in warning for warning in run.warnings)
    assert "vocabulary" in caplog.text
    tokens = {"input": {"vocabulary": 6}, "model": {"hidden": 8, "layers": 1}}
    assert lengthwise_export.train(tokens, sequences, list("abab"), **QUICK).spec["input"]["vocabulary"] == 6


def test_other_sequences_choose_the_epoch_and_others_are_scored(tmp_path: Path) -> None:
    run = lengthwise_export.train(
        TINY, *in_memory(), validation=in_memory(10, seed=1), test=in_memory(12, seed=2), **QUICK
    )
    assert [run.report[name]["answers"] for name in ("training", "validation", "test")] == [24, 10, 12]
    assert all(epoch["validation_loss"] is not None for epoch in run.report["epochs"])
    fixed = lengthwise_export.train(ROCKET, *in_memory(), validation=in_memory(10, seed=1), progress=None)
    assert fixed.report["validation"]["answers"] == 10


def test_the_task_is_read_off_the_labels_and_a_list_of_one_is_asked_about() -> None:
    sequences, labels = in_memory(8)
    several = [[label] for label in labels]
    with pytest.raises(ConfigurationError, match="a list of one"):
        lengthwise_export.train(TINY, sequences, several, **QUICK)
    some = [*([["a", "b"], []] * 4)]
    run = lengthwise_export.train(TINY, sequences, some, **QUICK)
    assert (run.report["task"], run.reasons[0]) == ("multi-label", 'task = "multi-label": by the labels')
    steps = [["a"] * (len(one) - 1) + ["b"] for one in sequences]
    assert lengthwise_export.train(TINY, sequences, steps, **QUICK).report["task"] == "per-step"
    rows = [(n, *step, "ab"[(n + (n == t == 0)) % 2]) for n, one in enumerate(sequences) for t, step in enumerate(one)]
    table = pandas.DataFrame(rows, columns=["id", "x", "y", "z", "label"])  # with one cell that is wrong
    with pytest.raises(InvalidSequences, match="sequence '0' has the label 'b', and 'a' in its other rows"):
        lengthwise_export.train({"model": {"hidden": 8, "layers": 1}}, table, **QUICK)
    task = {**TINY, "output": {"task": "multi-label"}}
    assert lengthwise_export.train(task, sequences, several, **QUICK).report["task"] == "multi-label"
    task = {**TINY, "output": {"task": "per-step"}}
    each = [[label] * len(steps) for steps, label in zip(sequences, labels, strict=True)]
    assert lengthwise_export.train(task, sequences, each, **QUICK).report["task"] == "per-step"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([np.zeros((3, 2)), np.zeros((0, 2))], "sequence 1: a sequence has at least one step"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], "sequence 1: 4 features a step, the sequences before have 2"),
        ([np.zeros((3, 2)), np.full((3, 2), np.inf)], "sequence 1: step 0 holds a number that is not finite"),
        ([np.zeros((3, 2)), [["a", "b"]]], "sequence 1: values must be numbers"),
        (
            [np.zeros((3, 2)), np.full((3, 2), np.nan)],
            r"sequence 1: a value is missing \(NaN\), and input.missing = 'refuse'",
        ),
        ([np.zeros((3, 2)), 7.0], "sequence 1: .*put a single sequence in a list too"),
        ("ab", "must be a list of arrays, got a str"),
    ],
)
def test_wrong_sequences_are_all_named(wrong: Any, said: str) -> None:
    with pytest.raises(InvalidSequences, match=said) as refused:
        lengthwise_export.train(TINY, wrong, ["a", "b"], **QUICK)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spec": "rokcet"}, "did you mean rocket"),
        ({"spec": 5}, "spec must be"),
        ({"spec": "absent.toml"}, "cannot be read"),
        ({"spec": {"model": "rocket"}}, "'model' must be"),
        ({"spec": {"model": {"hiden": 8}}}, "hidden"),
        ({"labels": ["a"]}, "4 sequences and 1 labels"),
        ({"labels": [0.5, 1.0, 0.5, 1.0]}, "label 0 is '0.5', a float"),
        ({"epochs": 0}, "epochs must be .* got 0"),
        ({"epochs": 2.5}, "epochs must be .* got 2.5"),
        ({"learning_rate": 0}, "learning_rate must be .* got 0"),
        ({"validation": 1.0}, "validation must be .* got 1.0"),
        ({"validation": [1, 2, 3]}, r"validation must be a pair .* or a share"),
        ({"calibration": 1}, "calibration must be true or false"),
        ({"threads": 0}, "threads must be"),
        ({"progress": "loud"}, "progress must be"),
        ({"spec": ROCKET, "epochs": 3}, "--epochs has no meaning with kind = 'rocket'"),
        ({"spec": ROCKET, "learning_rate": 0.1}, "^learning_rate has no meaning with kind = 'rocket'"),
    ],
)
def test_a_wrong_option_says_what_is_wanted(options: dict[str, Any], said: str) -> None:
    sequences, labels = in_memory(4)
    given = {"spec": TINY, "sequences": sequences, "labels": labels, "epochs": 1, "progress": None} | options
    if given["spec"] == ROCKET and "epochs" not in options:
        del given["epochs"]
    with pytest.raises((ConfigurationError, SpecError), match=said):
        lengthwise_export.train(**given)


def test_options_and_labels_may_be_numbers_of_numpy() -> None:
    given: dict[str, Any] = {"epochs": np.int64(2), "learning_rate": np.float32(0.01), "class_weights": np.bool_(True)}
    given |= {"validation": np.float32(0.25), "threads": np.int64(1), "progress": None}
    run = lengthwise_export.train(TINY, *in_memory(), **given)
    assert run.report["validation"]["answers"] == 6
    assert len(run.report["epochs"]) == 2


def test_labels_may_be_arrays_and_those_that_are_equal_as_numbers_keep_one_order() -> None:
    assert (as_label(np.array(3), 0), as_label(np.array([3, 1]), 0)) == ("3", ("3", "1"))
    labels = [f"{'0' * zeros}{number}" for number in (1, 2) for zeros in range(4)]
    assert sorted_labels(labels) == ["0001", "001", "01", "1", "0002", "002", "02", "2"]


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (([np.zeros((3, 3)), np.zeros((3, 2))], ["a", "b"]), "sequence 1: in {}: 2 features a step, the model takes 3"),
        (([np.zeros((3, 3))], ["a", "b"]), "{}: 1 sequences and 2 labels"),
        (([np.zeros((3, 3))], ["other"]), "sequence 0: in {}: .*other"),
        ([1, 2, 3], r"{} must be a pair"),
    ],
)
def test_what_is_wrong_in_another_split_is_said_before_anything_is_chosen(
    name: str, wrong: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "plan", None)  # it would fail otherwise
    sequences, labels = in_memory(6)
    with pytest.raises((ConfigurationError, InvalidSequences), match=said.format(name)):
        lengthwise_export.train({"output": {"labels": ["a", "b"]}}, sequences, labels, **{name: wrong}, progress=None)


def test_a_missing_value_in_another_split_is_held_against_the_policy_that_was_chosen() -> None:
    with pytest.raises(InvalidSequences, match="in test: "):
        lengthwise_export.train("auto", *in_memory(), test=([np.full((3, 3), np.nan)], ["a"]), progress=None)


def test_a_folder_that_holds_a_run_is_kept(tmp_path: Path) -> None:
    lengthwise_export.train(ROCKET, *in_memory(), out=tmp_path / "run", progress=None)
    with pytest.raises(ConfigurationError):
        lengthwise_export.train(ROCKET, *in_memory(), out=tmp_path / "run", progress=None)
    left = tmp_path / "run" / "state.safetensors"
    left.write_bytes(b"of a run before it")
    lengthwise_export.train(ROCKET, *in_memory(), out=tmp_path / "run", overwrite=True, progress=None)
    assert not left.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        lengthwise_export.train(ROCKET, *in_memory(), out=tmp_path / "file" / "run", progress=None)


def test_a_folder_that_another_training_writes_into_is_refused(tmp_path: Path) -> None:
    def train_too(_line: str) -> None:
        with pytest.raises(ConfigurationError, match="another training is writing"):
            lengthwise_export.train(TINY, *in_memory(), out=tmp_path / "run", overwrite=True, **QUICK)

    lengthwise_export.train(TINY, *in_memory(), out=tmp_path / "run", epochs=1, progress=train_too)


def test_a_run_that_was_written_while_the_data_was_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, from_sequences = tmp_path / "run", arrays.from_sequences
    weights: list[bytes] = []

    def slow(*arguments: Any) -> arrays.LabelledSequences:
        monkeypatch.undo()
        weights.append(
            lengthwise_export.train(ROCKET, *in_memory(), out=run, seed=1, progress=None).weights.read_bytes()
        )
        return from_sequences(*arguments)

    monkeypatch.setattr(arrays, "from_sequences", slow)
    with pytest.raises(ConfigurationError, match="another training wrote it meanwhile"):
        lengthwise_export.train(ROCKET, *in_memory(), out=run, seed=2, progress=None)
    assert weights == [(run / "model.safetensors").read_bytes()]


def test_progress_is_told_and_torch_is_left_as_it_was() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.get_num_threads()
    lines: list[str] = []
    lengthwise_export.train(TINY, *in_memory(), epochs=2, threads=1, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()
