import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise_export.training import recipe
from lengthwise_export.training.train import Epoch, TrainingRun
from tests.support.specs import json_lines, separable

SPEC = '[input]\nfeatures = 3\n[model]\nhidden = 8\nlayers = 1\n[output]\nlabels = ["a", "b"]\n'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SPEC)
    for name, seed in (("train", 0), ("test", 1)):
        lines = [
            json.dumps({"id": record.id, "steps": record.steps.tolist(), "label": record.label})
            for record in separable(24, seed=seed)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def trained(files: Path, *more: str) -> Result:
    return run("train", files / "tiny.toml", files / "train.jsonl", "--out", files / "run", "--epochs", "2", *more)


def test_training_reports_metrics_of_every_split(files: Path) -> None:
    result = trained(files, "--test", str(files / "test.jsonl"))
    assert result.exit_code == 0, result.output
    assert "test" in result.stdout
    metrics = json.loads((files / "run" / "metrics.json").read_text())
    assert metrics["test"]["answers"] == 24
    assert len(metrics["epochs"]) == 2
    assert metrics["options"]["epochs"] == 2


def test_all_mistakes_of_a_file_are_told_in_one_go_and_in_its_order(files: Path) -> None:
    lines = (files / "train.jsonl").read_text().splitlines()
    wrong = {
        3: ('{"id": 1', "the line ends in the middle of the JSON text"),
        5: ('{"steps": [[1, 2]], "label": "a"}', "2 features a step, the records before have 3"),
        8: ('{"steps": [[1, 2, 3]], "label": "c"}', "label 'c' is none of output.labels"),
        9: ('{"steps": [[1, 2, 3]]}', "there is no label to train on"),
        11: ('{"step": [[1, 2, 3]], "label": "a"}', "unknown field 'step'"),
        24: ('{"steps": [], "label": "a"}', "steps must be a list of at least one step"),
    }
    for number, (line, _) in wrong.items():
        lines[number - 1] = line
    (files / "train.jsonl").write_text("\n".join(lines))
    result = trained(files)
    assert result.exit_code == 2
    told = result.stderr.removeprefix("error: ").splitlines()
    assert len(told) == len(wrong)
    for said, (number, (_, why)) in zip(told, wrong.items(), strict=True):
        assert said.startswith(f"{files / 'train.jsonl'}:{number}: {why}")
    assert not (files / "run").exists()


def test_many_mistakes_with_one_cause_are_told_in_one_line(files: Path) -> None:
    with (files / "train.jsonl").open("a") as file:
        file.write("\n" + '{"steps": [[1, 2, 3]], "label": "d"}\n' * 50)
    (told,) = trained(files).stderr.splitlines()
    assert "train.jsonl:25: label 'd' is none of output.labels" in told
    assert "49 more like it: 26, 27, 28" in told


@pytest.mark.parametrize("out", ["run", "new/deep/run"])
def test_a_training_that_fails_leaves_no_empty_folder(files: Path, out: str) -> None:
    lines = (files / "train.jsonl").read_text().splitlines()
    (files / "train.jsonl").write_text(lines[0])  # too few to keep some aside
    assert run("train", files / "tiny.toml", files / "train.jsonl", "--out", files / out).exit_code == 2
    assert not (files / out.partition("/")[0]).exists()


def test_a_training_that_fails_leaves_a_folder_that_was_there(files: Path) -> None:
    (files / "run").mkdir()
    assert trained(files, "--resume").exit_code == 2
    assert (files / "run").is_dir()


@pytest.mark.long
def test_a_run_that_is_there_is_not_overwritten_unasked(files: Path) -> None:
    trained(files)
    weights = files / "run" / "model.safetensors"
    before = weights.read_bytes()
    refused = trained(files, "--seed", "1")
    assert refused.exit_code == 2
    assert "or delete the folder first" in refused.stderr
    assert weights.read_bytes() == before
    assert trained(files, "--resume").exit_code == 0
    assert weights.read_bytes() == before
    shutil.rmtree(files / "run")
    assert trained(files, "--seed", "1").exit_code == 0
    assert weights.read_bytes() != before


def test_an_interrupted_run_is_not_overwritten_unasked_either(files: Path) -> None:
    trained(files)
    (files / "run" / "model.safetensors").unlink()
    assert "--resume" in trained(files).stderr


@pytest.mark.long
def test_training_says_when_it_stopped_and_which_epoch_was_best(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "all 2 epochs, best epoch" in trained(files, "--validation", "0.2").stdout
    # Labels that tell nothing: the loss of validation rises. The patience is chosen: a quarter of the epochs.
    monkeypatch.setattr(recipe, "PATIENCE_STEPS", 1)
    records = [replace(record, label="ab"[index % 3 % 2]) for index, record in enumerate(separable(24))]
    (files / "train.jsonl").write_text(json_lines(records))
    shutil.rmtree(files / "run")
    early = trained(files, "--validation", "0.2", "--epochs", "80").stdout
    assert re.search(r"stopped early at epoch \d+ of 80, best epoch \d+", early)


def test_training_says_that_without_validation_the_last_epoch_counts(files: Path) -> None:
    assert "all 2 epochs, the last one used" in trained(files, "--validation", "0").stdout


@pytest.mark.process
@pytest.mark.long
def test_without_a_terminal_each_epoch_is_a_line_and_a_stop_has_a_cure(files: Path) -> None:
    call = ["train", files / "tiny.toml", files / "train.jsonl", "--out", files / "run"]
    started = subprocess.Popen(
        [sys.executable, "-m", "lengthwise", *map(str, call), "--epochs", "100000", "--validation", "0.2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stderr is not None
    lines = [line for line in (started.stderr.readline() for _ in range(12)) if line.startswith("epoch")]
    assert re.fullmatch(r"epoch 1 of 100000: loss [\d.]+, validation accuracy [\d.]+\n", lines[0])
    assert lines[1].startswith("epoch 2 of 100000: ")
    started.send_signal(signal.SIGINT)
    said = started.stderr.read()
    started.stderr.close()
    assert started.wait(60) == 130
    assert re.search(rf"{files / 'run'} keeps \d+ epochs?: the same command with --resume continues", said)
    assert said.endswith("error: interrupted\n")


def test_an_interruption_before_the_first_epoch_promises_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "epoch", interrupted)
    refused = trained(files)
    assert (refused.exit_code, "no epoch was finished" in refused.stderr) == (130, True)
    assert not (files / "run" / "state.safetensors").exists()


def test_a_run_that_is_overwritten_and_interrupted_leaves_no_older_weights(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(files).exit_code == 0
    epoch, done = TrainingRun.epoch, []

    def interrupted(run: TrainingRun) -> Epoch:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return epoch(run)

    monkeypatch.setattr(TrainingRun, "epoch", interrupted)
    records = separable(24)
    steps, labels = [record.steps for record in records], [str(record.label) for record in records]
    options: dict[str, Any] = {"out": files / "run", "epochs": 2, "seed": 1, "overwrite": True, "progress": None}
    with pytest.raises(KeyboardInterrupt):
        lengthwise_export.train(files / "tiny.toml", steps, labels, **options)
    assert not (files / "run" / "model.safetensors").exists()
    exported = run("export", files / "run", "--out", files / "models" / "m")
    assert (exported.exit_code, "an unfinished training run" in exported.stderr) == (2, True)


def test_training_speaks_json(files: Path) -> None:
    result = trained(files, "--json", "--validation", "0")
    metrics = json.loads(result.stdout)
    assert "validation" not in metrics
    assert metrics["training"]["answers"] == 24


def test_a_multi_label_run_is_drawn_too(files: Path) -> None:
    (files / "tiny.toml").write_text(SPEC + 'task = "multi-label"\n')
    lines = [json.dumps({"steps": record.steps.tolist(), "label": [record.label]}) for record in separable(24)]
    (files / "train.jsonl").write_text("\n".join(lines))
    assert trained(files).exit_code == 0


@pytest.mark.long
def test_an_export_without_weights_is_warned_about_and_speaks_json(files: Path) -> None:
    result = run("export", files / "tiny.toml", "--out", files / "models" / "tiny", "--json")
    told = "no --checkpoint: the weights are untrained; pass --checkpoint FILE if trained ones are in a file"
    assert told in result.stderr.replace("\n", " ")
    answer = json.loads(result.stdout)
    assert answer["promises"][0]["bits"] is True
    assert len(answer["cases"]) > 20


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("target", "weights"), [("tiny.toml", "untrained"), ("tests.support.users_models:mean", "the factory's own")]
)
def test_an_export_without_weights_says_so_in_its_last_line_and_in_the_manifest(
    files: Path, target: str, weights: str
) -> None:
    named = files / target if target.endswith(".toml") else target
    result = run("export", named, "--out", files / "models" / "m", *([] if named != target else ["--max-length", "64"]))
    assert f"the weights are {weights}, because no --checkpoint is given" in result.stdout.replace("\n", " ")
    assert json.loads((files / "models" / "m" / "1" / "manifest.json").read_text())["made"]["weights"] == weights


def test_a_users_module_that_leaks_is_exit_1(files: Path) -> None:
    result = run("export", "tests.support.users_models:leaking", "--out", files / "models" / "mine")
    assert result.exit_code == 1
    assert "It begins at" in result.stderr
    assert "--mend rewrites what can be mended" in result.stderr
    assert not (files / "models").exists()


def test_a_published_directory_is_nothing_to_export(files: Path) -> None:
    result = run("export", "service/lengthwise/models/japanese-vowels/1", "--out", files / "models" / "mine")
    assert result.exit_code == 2
    assert "is published already" in result.stderr


def test_a_check_of_a_directory_tells_its_promise_and_as_json_every_trial() -> None:
    short = " ".join(run("check", "service/lengthwise/models/japanese-vowels/1").stdout.split())
    assert "the manifest promises the same bits" in short
    assert "unbatched, 1 step" not in short
    assert len(json.loads(run("check", "service/lengthwise/models/japanese-vowels/1", "--json").stdout)["trials"]) > 30


@pytest.mark.long
def test_in_a_pipe_each_sentence_of_a_report_is_one_line_without_blanks_at_its_end() -> None:
    lines = run("check", "examples/masking.py:attention_after_lstm", "--max-length", "64").stdout.splitlines()
    assert any(line.startswith("ran: ") and line.endswith(" steps") for line in lines)
    (why,) = (line for line in lines if line.startswith("  why   "))
    assert len(why) > 100
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.long
def test_a_reason_that_is_cut_short_says_how_many_more_there_are() -> None:
    told = json.loads(run("check", "examples/masking.py:attention_after_lstm", "--json").stdout)
    moved = sum(not trial["passed"] for trial in told["trials"])
    assert told["reason"].endswith(f"; and {moved - 5} more")


def test_help_shows_an_example() -> None:
    for name in ("train", "export"):
        told = " ".join(run(name, "--help").stdout.split())
        assert "Example:" in told
        assert name == "export" or ("docs/spec.md" in told and "the graph normalises" in told)


@pytest.mark.sampled(27)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "tiny.toml", "empty.jsonl", "--out", "o"), "empty.jsonl: there is no record in it"),
        (
            ("train", "tiny.toml", "train.jsonl", "--test", "empty.jsonl", "--out", "o"),
            "empty.jsonl: there is no record",
        ),
        (("train", "tiny.toml", "folder", "--out", "o"), "folder: a folder must have a file for each"),
        (("train", "tiny.toml", "train.jsonl", "--out", "file/o"), "--out file/o cannot be written: Not a directory"),
        (
            ("train", "tiny.toml", "train.jsonl", "--out", "o", "--resume"),
            "no state to resume from; leave --resume out",
        ),
        (("train", "tiny.toml", "train.jsonl", "--out", "o", "--overwrite"), "is gone; delete the folder of the run"),
        (("export", "folder", "--out", "m"), "folder is a folder with neither manifest.json"),
        (("export", "models", "--out", "m"), "; there is models/a/1"),
        (("check", "folder"), "folder is a folder with neither manifest.json"),
        (("check", "tiny.toml", "--html", "file/page.html"), "file/page.html: Not a directory"),
        (("export", "file", "--out", "m"), "file is not a target"),
        (("export", "file.pt", "--out", "m"), "also name the function that returns the module"),
        (("export", "file.onnx", "--out", "m"), "file.onnx cannot be read as ONNX"),
        (("export", "empty.onnx", "--out", "m"), "empty.onnx holds no graph"),
        (("export", "absent.safetensors", "--out", "m"), "there is no file absent.safetensors"),
        (("export", "file.safetensors", "--out", "m"), "file.safetensors cannot be read as safetensors"),
        (("export", "tiny.toml", "--checkpoint", "file.pt", "--out", "m"), "file.pt is not a checkpoint: neither"),
        (("export", "tiny.toml", "--checkpoint", "empty.pt", "--out", "m"), "empty.pt is not a checkpoint: neither"),
        (("export", "tiny.toml", "--checkpoint", "folder", "--out", "m"), "a folder without a model.safetensors"),
        (("export", "tiny.toml", "--data", "absent.jsonl", "--out", "m"), "absent.jsonl: there is no such file"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_a_wrong_path_is_told_in_one_line(
    words: tuple[str, ...], said: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    for name in ("empty.jsonl", "empty.onnx", "empty.pt"):
        Path(name).touch()
    for name in ("file", "file.pt", "file.onnx", "file.safetensors"):
        Path(name).write_text("hello\n")
    Path("folder").mkdir()
    Path("models/a/1").mkdir(parents=True)
    Path("models/a/1/manifest.json").write_text("{}")
    refused = run(*words)
    assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr
    assert "Traceback" not in refused.stderr
    assert "defect" not in refused.stderr


@pytest.mark.parametrize(("said", "meant"), [(["exprt"], "'export'"), (["export", "--lables", "a"], "--labels")])
def test_a_mistyped_command_or_option_names_what_is_spelled_alike(said: list[str], meant: str) -> None:
    result = CliRunner().invoke(main, said)
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
    assert meant in result.stderr
