import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest
from lengthwise_export.architecture import checkpoint, trained
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import CheckpointError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.support import users_models
from tests.support.specs import from_spec, json_lines, parsed_spec, separable, spec

SPEC = """
[input]
features = 3
missing = "zero"
[model]
hidden = 8
layers = 1
pooling = "mean"
[output]
labels = ["a", "b"]
"""
made = parsed_spec


def kept(described: Spec, path: Path, **state: object) -> Path:
    """A checkpoint of a spec, as training leaves it, with a key of its state changed or taken away."""
    accuracy, answers = {"training": 0.99, "validation": 0.98}, {"training": 450, "validation": 50}
    held = trained.record_of(described, accuracy=accuracy, answers=answers) | state
    tensors = SequenceClassifier(described).state_dict()
    checkpoint.write(path, tensors, {name: value for name, value in held.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ('labels = ["a", "b"]', 'labels = ["b", "a"]', "output.labels"),
        ('labels = ["a", "b"]', 'labels = ["a", "b"]\ntask = "multi-label"', "output.task"),
        ('"mean"', '"last"', "model.pooling"),
        ('"zero"', '"refuse"', "input.missing"),
        ("features = 3", 'features = 3\nfeature_names = ["x", "y", "z"]', None),
        ("layers = 1", "layers = 1\nself_attention_heads = 0", ""),
        ("[output]", "[[model.conv]]\nchannels = 4\n[output]", "model.conv"),
        ("features = 3", "features = 3\nmax_length = 7", None),
        ("features = 3", 'features = 3\nlong = "window"', None),
        ("layers = 1", "layers = 1\ndropout = 0.5", None),
    ],
)
def test_a_spec_that_has_the_same_weights_is_held_against_that_of_the_training(
    before: str, after: str, key: str | None, tmp_path: Path
) -> None:
    path = kept(made(SPEC), tmp_path / "m.safetensors")
    said = made(SPEC.replace(before, after))
    if key:
        with pytest.raises(CheckpointError, match=key):
            from_spec(said, path)
    else:
        _, notices = trained.load(said, path)
        assert len(notices) == (key is None)


def test_every_key_that_differs_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = kept(made(SPEC), tmp_path / "m.safetensors")
    said = made(SPEC.replace('"mean"', '"last"').replace('"a", "b"', '"b", "a"'))
    with pytest.raises(CheckpointError, match=rf"model\.pooling: .*output\.labels: .*lengthwise export {path} --out"):
        from_spec(said, path)
    named = SPEC.replace("features = 3", 'features = 3\nfeature_names = ["x", "y", "z"]')
    with pytest.raises(CheckpointError):
        from_spec(made(named.replace('"x", "y"', '"y", "x"')), kept(made(named), path))


def test_every_key_of_a_spec_is_compared() -> None:
    # A key that is added later is refused where it differs, unless somebody decides otherwise
    described = made(SPEC)
    others = (spec('kind = "rocket"'), spec('kind = "summaries"\nclassifier = "extra-trees"'))
    keys = {
        f"{table}.{key}" for each in (described, *others) for table, held in each.resolved().items() for key in held
    }
    tables = {"input": described.input, "model": described.model, "output": described.output}
    said = {f"{name}.{key}" for name, table in tables.items() for key in type(table).model_fields}
    # A preset is recorded as the keys that it stands for
    assert said - keys == {
        "input.feature_names",
        "input.static",
        "input.static_names",
        "input.static_categories",
        "input.vocabulary",
        "input.padding",
        "input.padding_id",
        "model.preset",
        "output.stop_probability",
    }
    may_differ = {"input.min_length", "input.max_length", "input.long", "model.dropout", "model.input_dropout"} & keys
    may_differ |= {"input.padding", "output.stop_probability", "output.stop_steps"}
    assert {*trained.MAY_DIFFER} == may_differ


@pytest.mark.parametrize(
    "described",
    [
        made(SPEC),
        spec(step="vocabulary = 9\npadding_id = 0", labels='["x"]', task="multi-label"),
        spec('rnn = "none"', task="per-step"),
        spec("conv = [{channels = 4, norm = 'none'}]", step='features = 3\nfeature_names = ["x", "y", "z"]'),
    ],
)
def test_the_spec_in_a_checkpoint_is_the_spec(described: Spec, tmp_path: Path) -> None:
    found = trained.read_record(kept(described, tmp_path / "m.safetensors"))
    assert found.spec is not None
    assert found.spec.resolved() == described.resolved()
    assert list(trained.differences(found.spec, described)) == []
    assert (found.expected, found.expected_answers) == (0.98, 50)
    alone = trained.read_record(kept(described, tmp_path / "n.safetensors", accuracy={"training": 0.9}))
    assert (alone.expected, alone.expected_answers) == (0.9, 450)


def test_a_profile_of_the_data_in_an_older_checkpoint_is_left_out(tmp_path: Path) -> None:
    plain = trained.read_record(kept(made(SPEC), tmp_path / "m.safetensors"))
    assert trained.read_record(kept(made(SPEC), tmp_path / "n.safetensors", profile={"sequences": 3})) == plain


def test_labels_beside_weights_are_held_against_those_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"state_dict": SequenceClassifier(made(SPEC)).state_dict(), "labels": ["b", "a"], "epoch": 3}, path)
    with pytest.raises(CheckpointError):
        from_spec(made(SPEC), path)
    from_spec(made(SPEC.replace('"a", "b"', '"b", "a"')), path)
    torch.save({"state_dict": users_models.mean().state_dict(), "labels": ["b", "a"]}, path)
    target = "tests.support.users_models:mean"
    assert targets.read(target, TargetOptions(checkpoint=path, features=3)).labels == ("b", "a")
    with pytest.raises(ConfigurationError):
        targets.read(target, TargetOptions(checkpoint=path, features=3, labels=("a", "b")))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_a_checkpoint_that_says_nothing_is_noticed(name: str, tmp_path: Path) -> None:
    (torch.save if name == "m.pt" else save_file)(SequenceClassifier(made(SPEC)).state_dict(), tmp_path / name)
    _, (notice,) = trained.load(made(SPEC), tmp_path / name)
    assert "does not record its spec" in notice


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"format": 2}, "a later version"),
        ({"spec": {"input": {"features": 3, "colour": 1}, "output": {"labels": ["a", "b"]}}}, r"input\.colour"),
        ({"spec": "nonsense"}, "the spec in it"),
        ({"spec": None, "labels": "ab"}, "malformed: labels"),
        ({"answers": {"validation": "many"}}, r"malformed: answers\.validation"),
        ({"temperature": -1.0}, "malformed: temperature"),
        ({"run": "key"}, "the state of a training run, not its result"),
    ],
)
def test_what_a_checkpoint_says_wrongly_is_refused(state: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        trained.read_record(kept(made(SPEC), tmp_path / "m.safetensors", **state))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, labelled data, and a run that learnt it."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "s.toml").write_text(SPEC)
    (folder / "swapped.toml").write_text(SPEC.replace('"a", "b"', '"b", "a"'))
    records = separable(80)
    steps, labels = [record.steps for record in records], [str(record.label) for record in records]
    lengthwise_export.train(
        folder / "s.toml", steps, labels, progress=None, out=folder / "run", epochs=3, learning_rate=0.02
    )
    return folder


def test_wrong_labels_are_not_published(files: Path, tmp_path: Path) -> None:
    weights = files / "run" / "model.safetensors"
    for command in (("export", "--out", tmp_path / "m"), ("check",)):
        result = run(command[0], files / "swapped.toml", "--checkpoint", weights, *command[1:])
        assert result.exit_code == 2, result.output
        assert "output.labels: the checkpoint was trained with" in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "words", [("run",), ("run/model.safetensors",), ("--checkpoint", "run"), ("--checkpoint", "run/model.safetensors")]
)
def test_a_checkpoint_or_its_run_is_exported_without_a_spec(
    words: tuple[str, ...], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    result = run("export", *words, "--out", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    manifest = Manifest.read(tmp_path / "m" / "1")
    assert (manifest.labels, manifest.missing, manifest.made["architecture"]) == (("a", "b"), "zero", "built-in")
    assert str(manifest.made["checkpoint"]).startswith("sha256:")


@pytest.mark.long
def test_a_runs_folder_is_a_checkpoint_beside_a_spec_whose_policy_may_differ(files: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SPEC.replace("features = 3", 'features = 3\nmax_length = 40\nlong = "tail"'))
    result = run("export", tmp_path / "s.toml", "--checkpoint", files / "run", "--out", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "warning: input.max_length: the checkpoint was trained with 1024, the spec says 40" in result.stderr
    manifest = Manifest.read(tmp_path / "m" / "1")
    assert (manifest.max_length, manifest.long) == (40, "tail")
    assert run("check", files / "run", "--max-length", "16").exit_code == 0


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    for said in (r"a folder with neither manifest\.json", f"an unfinished training run.* --out {tmp_path} --resume"):
        with pytest.raises(ConfigurationError, match=said):
            targets.read(str(tmp_path), TargetOptions())
        with pytest.raises(CheckpointError):
            trained.checkpoint_file(tmp_path)
        checkpoint.write(tmp_path / "state.safetensors", {"x": torch.zeros(1)}, {"run": "x"})


def test_a_checkpoint_of_nobody_knows_which_spec_or_none_at_all_asks_for_it(tmp_path: Path) -> None:
    path = kept(made(SPEC), tmp_path / "m.safetensors", spec=None)
    for words, said in (((path,), "give that too"), ((), "Missing argument 'TARGET'")):
        result = run("export", *words, "--out", tmp_path / "m")
        assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.long
def test_the_accuracy_of_labelled_data_is_kept_and_a_low_one_is_a_warning(files: Path, tmp_path: Path) -> None:
    records = [replace(record, steps=record.steps * 0.0) for record in separable(40)]
    (tmp_path / "zeros.jsonl").write_text(json_lines(records))
    result = run("export", files / "run", "--out", tmp_path / "m", "--data", tmp_path / "zeros.jsonl")
    assert result.exit_code == 0, result.output
    assert "warning: the accuracy is 0.5000 here and was " in result.stderr
    assert "accuracy 0.5000: " in result.stdout.replace("\n", " ")
    made = Manifest.read(tmp_path / "m" / "1").made
    assert (made["data"], made["data_answers"], made["data_accuracy"]) == ("zeros.jsonl", 40, 0.5)
    sample = json.loads((tmp_path / "m" / "1" / "verification.json").read_text())["sample"]
    assert (sample["accuracy"], [entry["in_data"] for entry in sample["classes"]]) == (0.5, [20, 20])
