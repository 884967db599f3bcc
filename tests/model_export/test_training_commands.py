"""`train` with seeds, ensembles and budgets, and `compare`, as commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.exporting.candidate import from_spec
from lengthwise_export.training import comparison
from lengthwise_export.training.report import page
from lengthwise_export.training.session import SPEC_FILE
from tests.support.specs import json_lines, separable

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
    assert "left out" in run(*words, "--overwrite").output


def test_options_of_gradient_descent_are_refused_for_fixed_kernels(files: Path) -> None:
    (files / "rocket.toml").write_text(OPEN.replace("[output]", "[model]\nkind = 'rocket'\n[output]"))
    for option in (("--epochs", "3"), ("--resume",), ("--validation", "0.2")):
        ended = run("train", files / "rocket.toml", files / "train.jsonl", "--out", files / "run", *option)
        assert (ended.exit_code, (files / "run").exists()) == (2, False)
        assert f"{option[0]} has no meaning with kind = 'rocket'" in ended.output


def test_seeds_give_a_spread_and_a_report_as_json_and_as_a_page(files: Path) -> None:
    several = ("--seeds", "2", "--validation", "0.2")
    ended = trained(files, "run", *several)
    assert ended.exit_code == 0, ended.output
    assert "over 2 seeds" in ended.stdout
    content = report(files / "run")
    assert [one["seed"] for one in content["runs"]] == [0, 1]
    accuracies = [one["test"] for one in content["runs"]]
    assert content["spread"]["test"]["mean"] == pytest.approx(sum(accuracies) / 2)
    scores = content["test"]
    assert 0 <= scores["ece"] <= 1
    assert sum(one["answers"] for one in scores["reliability"]) == 24
    assert sum(one["sequences"] for one in scores["by_length"]) == 24
    drawn = (files / "run" / "report.html").read_text()
    for said in ("Calibration (test)", "Accuracy by steps (test)", "Confusion (test)", "Learning curves", "by seed"):
        assert said in drawn
    assert "<script>" not in page(content | {"labels": ["<script>", "b"]}, "<b>")
    assert (files / "run" / "model.safetensors").is_file()
    again = trained(files, "run", *several, "--resume")
    assert again.exit_code == 0, again.output
    assert report(files / "run")["runs"][1]["test"] == accuracies[1]


def test_an_ensemble_is_one_checkpoint_that_checks_clean_and_exports(files: Path) -> None:
    ended = trained(files, "run", "--seeds", "2", "--ensemble")
    assert ended.exit_code == 0, ended.output
    assert Spec.read(files / "run" / SPEC_FILE).model.members == 2
    tensors = load_file(files / "run" / WEIGHTS_FILE)
    assert not tensors["members.0.head.weight"].equal(tensors["members.1.head.weight"])
    assert run("check", files / "run", "--max-length", "40").exit_code == 0
    exported = run("export", files / "run", "--data", files / "test.jsonl", "--out", files / "models" / "m")
    assert exported.exit_code == 0, exported.output


def written(folder: Path, accuracy: float, answers: int = 100, **more: Any) -> Path:
    folder.mkdir()
    content = {"labels": ["a", "b"], "task": "single-label", "test": {"accuracy": accuracy, "answers": answers}} | more
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("accuracies", "answers", "said"),
    [
        ((0.8, 0.84), 100, "no clear difference"),
        ((0.8, 0.84), 10_000, "two is better"),
        ((1.0, 0.5), 50, "one is better"),
    ],
)
def test_a_difference_that_may_be_chance_is_said_to_be(
    accuracies: tuple[float, float], answers: int, said: str, tmp_path: Path
) -> None:
    one, two = (
        written(tmp_path / f"{name}", share, answers) for name, share in zip(("one", "two"), accuracies, strict=True)
    )
    ended = run("compare", one, two, "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["split"], found["figures"]["accuracy"]) == ("test", list(accuracies))
    assert said in found["verdict"].replace(f"{tmp_path}/", "")
    assert "accuracy" in run("compare", one, two).stdout


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one", 0.9)
    with pytest.raises(ConfigurationError):
        comparison.compare(one, written(tmp_path / "two", 0.9, labels=["x", "y"]))
    with pytest.raises(ConfigurationError):
        comparison.compare(one, written(tmp_path / "three", 0.9, test=None))
    (tmp_path / "four").mkdir()
    with pytest.raises(ConfigurationError):
        comparison.compare(one, tmp_path / "four")
    for content in ("{", "[]", '{"test": {"accuracy": "x"}}', '{"test": {"accuracy": NaN, "answers": 3}}'):
        (tmp_path / "four" / "metrics.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"metrics\.json|different questions"):
            comparison.compare(one, tmp_path / "four")
