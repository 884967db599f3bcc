"""`train` as a command."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.training.report import page
from lengthwise_export.training.session import SPEC_FILE
from tests.support.specs import from_spec, json_lines, parsed_spec, separable

TINY = '[input]\nfeatures = 3\n[model]\nhidden = 8\nlayers = 1\n[output]\nlabels = ["a", "b"]\n'
OPEN = '[input]\nfeatures = 3\n[output]\nlabels = ["a", "b"]\n'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "open.toml").write_text(OPEN)
    for name, seed in (("train", 0), ("test", 1)):
        (tmp_path / f"{name}.jsonl").write_text(json_lines(separable(24, seed=seed)))
    return tmp_path


def trained(files: Path, name: str, *more: str, described: str = "tiny.toml") -> Result:
    call = ("train", files / described, files / "train.jsonl", "--test", files / "test.jsonl", "--out", files / name)
    return run(*call, "--epochs", "2", *more)


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_a_spec_that_says_nothing_is_trained_and_agrees_with_its_checkpoint(files: Path) -> None:
    words = ("train", files / "open.toml", files / "train.jsonl", "--out", files / "run")
    ended = run(*words, "--test", files / "test.jsonl", "--json")
    assert ended.exit_code == 0, ended.output
    assert "chosen: normalize" in ended.stderr
    assert json.loads(ended.stdout) == report(files / "run")
    assert (report(files / "run")["test"]["answers"], report(files / "run")["left_out"]["answers"]) == (24, 24)
    assert {path.name for path in (files / "run").iterdir()} == {"metrics.json", WEIGHTS_FILE, "report.html", SPEC_FILE}
    written = Spec.read(files / "run" / SPEC_FILE)
    assert written.resolved() == report(files / "run")["spec"]
    for described in (files / "open.toml", files / "run" / SPEC_FILE):
        assert from_spec(Spec.read(described), files / "run" / WEIGHTS_FILE).manifest.labels == ("a", "b")
    assert "holds a run" in run(*words).output
    shutil.rmtree(files / "run")
    assert "left out" in run(*words).output


def test_how_a_training_ended_stands_below_the_table_as_text(files: Path) -> None:
    ended = run("train", "rocket", files / "train.jsonl", "--out", files / "run")
    assert re.search(r"^\d+\.\d s, ridge penalty [0-9.e-]+, temperature [0-9.]+; left out: ", ended.stdout, re.M)
    assert '<div class="scrolls"><table>' in (files / "run" / "report.html").read_text()


def test_options_of_gradient_descent_are_refused_for_fixed_kernels(files: Path) -> None:
    (files / "rocket.toml").write_text(OPEN.replace("[output]", "[model]\nkind = 'rocket'\n[output]"))
    for option in (("--epochs", "3"), ("--resume",), ("--validation", "0.2")):
        ended = run("train", files / "rocket.toml", files / "train.jsonl", "--out", files / "run", *option)
        assert (ended.exit_code, (files / "run").exists()) == (2, False)
        assert f"{option[0]} has no meaning with kind = 'rocket'" in ended.output


def test_the_report_is_json_and_a_page_and_a_resumed_run_has_the_same(files: Path) -> None:
    ended = trained(files, "run", "--validation", "0.2")
    assert ended.exit_code == 0, ended.output
    content = report(files / "run")
    scores = content["test"]
    assert 0 <= scores["ece"] <= 1
    assert sum(one["answers"] for one in scores["reliability"]) == 24
    assert sum(one["sequences"] for one in scores["by_length"]) == 24
    drawn = (files / "run" / "report.html").read_text()
    for said in ("Calibration (test)", "Accuracy by steps (test)", "Confusion (test)", "Learning curves"):
        assert said in drawn
    assert "<script>" not in page(content | {"labels": ["<script>", "b"]}, "<b>")
    assert (files / "run" / "model.safetensors").is_file()
    again = trained(files, "run", "--validation", "0.2", "--resume")
    assert again.exit_code == 0, again.output
    assert report(files / "run")["test"] == scores


def test_a_spec_of_an_earlier_version_is_read_unless_it_asks_for_an_ensemble() -> None:
    assert parsed_spec(TINY.replace("layers = 1", "layers = 1\nmembers = 1")) == parsed_spec(TINY)
    with pytest.raises(ConfigurationError, match=r"model\.members: unknown key"):
        parsed_spec(TINY.replace("layers = 1", "layers = 1\nmembers = 2"))


def table(path: Path, *, label: str = "label", seed: int = 0) -> Path:
    """A CSV file with a row for each step of `separable` records."""
    rows = [f"id,t,x,y,z,{label}"]
    for record in separable(24, seed=seed):
        values = (",".join(map(str, step)) for step in record.steps.tolist())
        rows += [f"s{record.id},{t},{step},{record.label}" for t, step in enumerate(values)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", [(), ("auto",), ("rocket",)], ids=["no spec", "auto", "rocket"])
def test_data_without_a_spec_is_trained_and_the_spec_of_the_run_trains_the_same(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    data = table(tmp_path / "data.csv")
    first = run("train", *words, data, "--out", tmp_path / "run")
    assert first.exit_code == 0, first.output
    assert "[input]\nfeatures = 3\n" in first.stderr
    assert 'labels = ["a", "b"]' in first.stderr
    assert ('kind = "rocket"' in first.stderr.partition("\nchosen: ")[0]) == (words == ("rocket",))
    again = run("train", tmp_path / "run" / SPEC_FILE, data, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert "[input]" not in again.stderr
    assert Spec.read(tmp_path / "again" / SPEC_FILE).resolved() == Spec.read(tmp_path / "run" / SPEC_FILE).resolved()
    weights = [load_file(tmp_path / name / WEIGHTS_FILE) for name in ("run", "again")]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


def test_a_spec_file_may_leave_open_what_the_data_says(tmp_path: Path) -> None:
    data = table(tmp_path / "data.csv")
    (tmp_path / "s.toml").write_text('[model]\npreset = "rocket"\n')
    ended = run("train", tmp_path / "s.toml", data, "--test", data, "--out", tmp_path / "run", "--json")
    assert ended.exit_code == 0, ended.output
    content = json.loads(ended.stdout)
    assert (content["spec"]["model"]["kind"], content["spec"]["input"]["features"]) == ("rocket", 3)
    assert content["test"]["answers"] == 24


def test_several_files_are_trained_on_as_one(tmp_path: Path) -> None:
    files = [table(tmp_path / f"{seed}.csv", seed=seed) for seed in (0, 1)]
    assert run("train", "rocket", *files, "--out", tmp_path / "run").exit_code == 0
    assert report(tmp_path / "run")["made"]["records"] == 48
    assert report(tmp_path / "run")["made"]["data"] == "0.csv, 1.csv"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rokcet", "DATA"], "rokcet: there is no such file or preset; did you mean rocket?"),
        (["rocket", "auto", "DATA"], "rocket auto DATA.csv: give one SPEC at most"),
        (["rocket"], "rocket: give one SPEC at most, and the files of the DATA"),
        (["nothing.csv"], "nothing.csv: there is no such file"),
        (["nothing.toml", "DATA"], "nothing.toml cannot be read"),
        (["wrong.toml", "DATA"], "wrong.toml: model.presett: unknown key; did you mean preset?"),
        (["DATA", "--column", "label=state"], "there is no column 'state'"),
        (
            ["one.csv"],
            "one.csv:2: every label is 'a', so there is nothing to tell apart: add sequences of another class\n",
        ),
        (["no.csv"], "no.csv:2: no record has a label, so there is nothing to tell apart"),
    ],
)
def test_words_that_are_no_spec_and_no_data_are_told_apart(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "DATA.csv")
    (tmp_path / "one.csv").write_text("id,x,label\na,1,a\na,2,a\nb,3,a\n")
    (tmp_path / "no.csv").write_text("id,x\na,1\na,2\nb,3\n")
    (tmp_path / "wrong.toml").write_text('[model]\npresett = "auto"\n')
    ended = run("train", *("DATA.csv" if word == "DATA" else word for word in words), "--out", "run")
    assert (ended.exit_code, (tmp_path / "run").exists()) == (2, False)
    assert said in ended.stderr


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("labels", "task", "said"),
    [
        (["10", "9"], "single-label", 'labels = ["9", "10"]'),
        ([["a", "b"], []], "multi-label", 'labels = ["a", "b"]'),
        ([["a", "b", "b"], ["b", "a", "a"]], "per-step", 'labels = ["a", "b"]'),
    ],
)
def test_the_task_is_read_off_the_labels_of_a_file(labels: list[Any], task: str, said: str, tmp_path: Path) -> None:
    records = [{"steps": [[n], [-n], [0.5]], "label": labels[n % 2]} for n in range(24)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    ended = run("train", tmp_path / "d.jsonl", "--epochs", "1", "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert report(tmp_path / "run")["task"] == task
    assert said in ended.stderr


def test_whole_numbers_that_may_be_token_ids_are_asked_about(tmp_path: Path) -> None:
    records = [{"steps": [n, 3, 5], "label": "ab"[n % 2]} for n in range(24)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    ended = run("train", "rocket", tmp_path / "d.jsonl", "--out", tmp_path / "run")
    assert "if they are token ids, say so with vocabulary = N in [input]" in ended.stderr
    (tmp_path / "s.toml").write_text("[input]\nvocabulary = 24\n")
    ended = run("train", tmp_path / "s.toml", tmp_path / "d.jsonl", "--epochs", "1", "--out", tmp_path / "tokens")
    assert ended.exit_code == 0, ended.output
    assert "token ids, say so" not in ended.stderr
