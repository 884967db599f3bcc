"""Names of features from the data to the manifest, and the columns that a run remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.runtime.manifest import Manifest
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import read_record

SMALL_ROCKET = {"model": {"kind": "rocket", "kernels": 84}}
COLUMNS = ["trip", "timestamp", "ax", "ay", "activity"]
NAMES = ("ax", "ay")


def table() -> pandas.DataFrame:
    """Twenty-four trips; only the second feature says which activity it is."""
    random, parts = np.random.default_rng(0), []
    for place in range(24):
        length = int(random.integers(5, 12))
        values = {"ax": random.normal(size=length), "ay": random.normal(scale=0.3, size=length) + (-1) ** place}
        activity = "walk" if place % 2 else "rest"
        part = pandas.DataFrame({"trip": f"t{place}", "timestamp": range(length), **values, "activity": activity})
        parts.append(part)
    return pandas.concat(parts, ignore_index=True)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def rocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec of few kernels: an export takes a tenth of the time."""
    path = tmp_path_factory.mktemp("spec") / "rocket.toml"
    path.write_text('[model]\nkind = "rocket"\nkernels = 84\n')
    return path


def sequences(frame: pandas.DataFrame) -> Any:
    return lengthwise.sequences(frame, id="trip", label="activity")


@pytest.fixture(scope="module")
def folder(rocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command on a table, its model directory, and other tables."""
    made, frame = tmp_path_factory.mktemp("named"), table()
    frame.to_csv(made / "trips.csv", index=False)
    frame[COLUMNS[::-1]].assign(note="text").to_csv(made / "reversed.csv", index=False)
    frame.rename(columns={"ax": "a_x"}).to_csv(made / "renamed.csv", index=False)
    with (made / "objects.jsonl").open("w") as file:
        for name, part in frame.groupby("trip", sort=False):
            steps = part[["ay", "ax"]].to_dict("records")
            file.write(json.dumps({"id": name, "steps": steps, "label": part["activity"].iloc[0]}) + "\n")
    named = ("--column", "id=trip", "--column", "label=activity")
    ended = run("train", rocket, made / "trips.csv", "--out", made / "run", *named, "--test", made / "reversed.csv")
    assert ended.exit_code == 0, ended.output
    published = run("export", made / "run", "--out", made / "models" / "trips" / "1", "--data", made / "trips.csv")
    assert published.exit_code == 0, published.output
    return made


@pytest.mark.long
def test_a_run_on_a_table_keeps_the_names_in_its_spec_and_the_manifest(folder: Path) -> None:
    assert Spec.read(folder / "run" / "spec.toml").input.feature_names == NAMES
    manifest = Manifest.read(folder / "models" / "trips" / "1")
    assert (manifest.input.names, manifest.made["data_accuracy"]) == (NAMES, 1.0)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] == 1.0  # the test file has its columns in another order


@pytest.mark.long
def test_an_export_reads_other_tables_with_the_columns_of_the_run_in_any_order(folder: Path) -> None:
    record = read_record(folder / "run" / "model.safetensors")
    assert record.columns == {"id": "trip", "time": "timestamp", "label": "activity"}
    ended = run("export", folder / "run", "--out", folder / "reversed", "--data", folder / "reversed.csv")
    assert ended.exit_code == 0, ended.output
    assert "accuracy 1.0000" in ended.output
    assert "ignored: 'note'" in ended.stderr


def test_an_export_says_which_name_is_missing_in_the_data(folder: Path) -> None:
    ended = run("export", folder / "run", "--out", folder / "renamed", "--data", folder / "renamed.csv")
    assert (ended.exit_code, (folder / "renamed" / "1").exists()) == (2, False)
    assert "the model takes ax, ay; missing: ax; did you mean a_x?" in ended.stderr


@pytest.mark.long
def test_a_column_that_the_user_names_counts_before_that_of_the_run(folder: Path, tmp_path: Path) -> None:
    frame = table().rename(columns={"activity": "class"}).assign(activity="walk")
    frame.to_csv(tmp_path / "other.csv", index=False)
    call = ("export", folder / "run", "--out", tmp_path / "models", "--data", tmp_path / "other.csv")
    assert "accuracy 0.5000" in run(*call).output
    assert "accuracy 1.0000" in run(*call, "--column", "label=class").output
    refused = run(*call, "--column", "label=clas")
    assert refused.exit_code == 2
    assert "there is no column 'clas'; did you mean class?" in refused.stderr
    assert "must name a column that is one of id, time" in run(*call, "--column", "ident=trip").stderr


@pytest.mark.long
def test_columns_of_the_run_that_a_table_lacks_are_found_by_their_names(folder: Path, tmp_path: Path) -> None:
    table().rename(columns={"trip": "id", "activity": "label"}).to_csv(tmp_path / "other.csv", index=False)
    ended = run("export", folder / "run", "--out", tmp_path / "models", "--data", tmp_path / "other.csv")
    assert "accuracy 1.0000" in ended.output


def test_records_of_objects_are_scored_and_trained_on_by_their_names(
    rocket: Path, folder: Path, tmp_path: Path
) -> None:
    model = folder / "models" / "trips"
    for name, more in (("objects.jsonl", ()), ("trips.csv", ("--column", "id=trip", "--column", "label=activity"))):
        assert run("score", folder / name, tmp_path / f"{name}.out", "--model", model, *more).exit_code == 0
    assert (tmp_path / "objects.jsonl.out").read_bytes() == (tmp_path / "trips.csv.out").read_bytes()
    ended = run("train", rocket, folder / "objects.jsonl", "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert Spec.read(tmp_path / "run" / "spec.toml").input.feature_names == ("ay", "ax")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"steps": [{"ax": 1, "a_y": 2}], "label": "rest"}\n')
    refused = run("score", bad, tmp_path / "out", "--model", model)
    assert "'a_y' is no name of a feature; did you mean ay?" in refused.stderr


def test_objects_behind_arrays_are_refused_as_their_order_is_not_known(
    rocket: Path, folder: Path, tmp_path: Path
) -> None:
    array = json.dumps({"steps": [[1, 2], [3, 4]], "label": "rest"})
    (tmp_path / "mixed.jsonl").write_text(f"{array}\n{(folder / 'objects.jsonl').read_text()}")
    ended = run("train", rocket, tmp_path / "mixed.jsonl", "--out", tmp_path / "run")
    assert ended.exit_code == 2
    assert "its features have no names, and those of other sequences have" in ended.stderr


@pytest.mark.long
def test_python_trains_and_answers_by_names(tmp_path: Path) -> None:
    frame = table()
    trained = lengthwise_export.train(
        SMALL_ROCKET, sequences(frame), progress=None, test=sequences(frame[COLUMNS[::-1]])
    )
    assert trained.spec["input"]["feature_names"] == list(NAMES)
    assert trained.report["test"]["accuracy"] == 1.0
    frame[COLUMNS[::-1]].to_csv(tmp_path / "reversed.csv", index=False)
    published = trained.export(tmp_path / "models", data=tmp_path / "reversed.csv")
    assert published.sample is not None
    assert published.sample.accuracy == 1.0
    renamed = frame.rename(columns={"ay": "by"})
    with pytest.raises(InvalidSequences, match=r"missing: ay; did you mean by\?"):
        lengthwise_export.train(SMALL_ROCKET, sequences(frame), progress=None, test=sequences(renamed))


def test_a_classifier_reads_tables_in_the_order_of_those_it_was_fitted_on() -> None:
    frame = table().rename(columns={"trip": "id", "activity": "label"})
    fitted = lengthwise_export.LengthwiseClassifier(SMALL_ROCKET).fit(frame)
    wanted = fitted.predict_proba(frame)
    turned = frame[frame.columns[::-1]].assign(note="text")
    assert fitted.predict_proba(turned).tobytes() == wanted.tobytes()
    with pytest.raises(ConfigurationError, match="missing: ax"):
        fitted.predict(frame.rename(columns={"ax": "foo"}))


@pytest.mark.long
def test_names_of_the_spec_are_found_in_a_table_in_their_order(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"input": {"feature_names": ["ay", "ax"]}, **SMALL_ROCKET}
    trained = lengthwise_export.train(spec, sequences(table()), progress=None)
    assert trained.export(tmp_path / "models").manifest.input.names == ("ay", "ax")
    other = {**spec, "input": {"feature_names": ["ay", "bx"]}}
    with pytest.raises((ConfigurationError, InvalidSequences), match=r"missing: bx; did you mean ax\?"):
        lengthwise_export.train(other, sequences(table()), progress=None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("ax,ax", "each must be unique"),
        ("ax,", "each must be unique, not blank"),
        ("ax,ay,az", "--feature-names ax, ay, az contradicts {target}, which has 2 features"),
    ],
)
def test_names_that_do_not_fit_a_target_are_refused(names: str, said: str, tmp_path: Path) -> None:
    target = f"{__file__}:summing"
    ended = run("export", target, "--out", tmp_path / "m", "--features", "2", "--feature-names", names)
    assert ended.exit_code == 2
    assert said.format(target=target) in ended.stderr


def test_names_of_another_spec_and_of_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    ended = run("export", folder / "run", "--out", tmp_path / "m", "--feature-names", "ay,ax")
    assert "--feature-names ay, ax contradicts" in ended.stderr
    (tmp_path / "ids.toml").write_text('[input]\nvocabulary = 5\n[output]\nlabels = ["a", "b"]\n')
    ended = run("export", tmp_path / "ids.toml", "--out", tmp_path / "m", "--feature-names", "a")
    assert (ended.exit_code, "which has token ids" in ended.stderr) == (2, True)


class Summing(nn.Module):
    """Sums the valid steps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        valid = torch.arange(values.shape[1])[None, :] < lengths[:, None]
        return self.head((values * valid[:, :, None]).sum(dim=1))


def summing() -> nn.Module:
    torch.manual_seed(0)
    return Summing()


@pytest.mark.long
def test_every_kind_of_target_takes_names(tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": 2, "max_length": 20, "feature_names": ["ax", "ay"]}
    of_module = lengthwise_export.export(summing(), tmp_path / "module", **options)
    graph = onnx.load(of_module.directory / "model.onnx")
    of_graph = lengthwise_export.export(graph, tmp_path / "graph", max_length=20, feature_names=("ax", "ay"))
    spec = tmp_path / "open.toml"
    spec.write_text('[input]\nfeatures = 2\n[output]\nlabels = ["a", "b"]\n')
    of_spec = lengthwise_export.export(spec, tmp_path / "spec", feature_names=["ax", "ay"])
    assert {one.manifest.input.names for one in (of_module, of_graph, of_spec)} == {NAMES}
    model = lengthwise.load(of_module.directory)
    frame = table().rename(columns={"trip": "id"})
    wanted = [one.probabilities.tobytes() for one in model.predict(frame)]
    assert [one.probabilities.tobytes() for one in model.predict(frame[frame.columns[::-1]])] == wanted


@pytest.mark.long
def test_a_spec_without_names_takes_those_of_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    text = (folder / "run" / "spec.toml").read_text()
    (tmp_path / "bare.toml").write_text("\n".join(x for x in text.splitlines() if not x.startswith("feature_names")))
    call = ("export", tmp_path / "bare.toml", "--checkpoint", folder / "run", "--out", tmp_path / "models")
    assert run(*call).exit_code == 0
    assert Manifest.read(tmp_path / "models" / "1").input.names == NAMES


def test_a_resumed_run_remembers_its_columns(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("[model]\nhidden = 4\nlayers = 1\n")
    named = ("--column", "id=trip", "--column", "label=activity", "--epochs", "1")
    ended = run("train", tmp_path / "tiny.toml", folder / "trips.csv", "--out", tmp_path / "run", *named)
    assert ended.exit_code == 0, ended.output
    assert read_record(tmp_path / "run" / "model.safetensors").columns["id"] == "trip"
    resumed = run("train", tmp_path / "tiny.toml", folder / "trips.csv", "--out", tmp_path / "run", *named, "--resume")
    assert resumed.exit_code == 0, resumed.output


@pytest.mark.long
def test_a_table_with_a_column_for_each_step_has_no_names_and_is_remembered_as_one(
    rocket: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"label": str(place % 2), **{f"s{step}": random.normal(4 * (place % 2)) for step in range(9)}}
        for place in range(20)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "wide.csv", index=False)
    ended = run("train", rocket, tmp_path / "wide.csv", "--out", tmp_path / "run", "--column", "row=sequence")
    assert ended.exit_code == 0, ended.output
    published = run("export", tmp_path / "run", "--out", tmp_path / "models" / "wide", "--data", tmp_path / "wide.csv")
    assert published.exit_code == 0, published.output
    assert Manifest.read(tmp_path / "models" / "wide" / "1").input.names is None


@pytest.mark.long
def test_lists_in_cells_of_several_columns_have_names_of_one_column_none(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cells = [random.normal(3 * (place % 2), size=(6, 2)) for place in range(20)]
    labels = [str(place % 2) for place in range(20)]
    one = pandas.DataFrame({"id": range(20), "signal": [cell.tolist() for cell in cells], "label": labels})
    assert "feature_names" not in lengthwise_export.train(SMALL_ROCKET, one, progress=None).spec["input"]
    two = {"id": range(20), "b": [cell[:, 0] for cell in cells], "a": [cell[:, 1] for cell in cells], "label": labels}
    frame = pandas.DataFrame(two)
    trained = lengthwise_export.train(SMALL_ROCKET, frame, progress=None)
    assert trained.spec["input"]["feature_names"] == ["b", "a"]
    model = lengthwise.load(trained.export(tmp_path / "models").directory)
    wanted = [answer.probabilities.tobytes() for answer in model.predict(frame)]
    assert [answer.probabilities.tobytes() for answer in model.predict(frame[["a", "id", "b"]])] == wanted
    with pytest.raises(ConfigurationError, match="missing: b"):
        model.predict(frame.rename(columns={"b": "c"}))
