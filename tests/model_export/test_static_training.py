"""Static values beside a sequence in the built-in architecture: the spec, the features, training, and the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lengthwise.datasets import dataset
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.record_fields import Record
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.padding import Sample
from lengthwise.runtime.manifest import StaticInput
from lengthwise.verification.random_sequences import draw
from lengthwise_export import LengthwiseClassifier, TrainedModel, export, train
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec, as_toml
from lengthwise_export.architecture.static_values import StaticValues
from lengthwise_export.errors import SpecError
from lengthwise_export.training.record_checks import static_values_of

STATIC = StaticInput(count=3, names=("age", "sex", "site"), categories={"sex": ("f", "m")})
TABLES: dict[str, Any] = {
    "input": {"static_names": ["age", "sex"], "static_categories": {"sex": ["f", "m"]}},
    "model": {"preset": "rocket", "kernels": 84},
}


def table(rows: int = 40, *, unknown: int | None = None) -> pd.DataFrame:
    """A table with a row for each step; the label is whether the age is above 50, whatever the steps are.

    Of each `unknown`-th sequence the age is not known.
    """
    random = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "t", "a", "sex", "age", "label")}
    for row in range(rows):
        age, sex = float(random.integers(20, 80)), "fm"[row % 2]
        known_age = float("nan") if unknown is not None and row % unknown == 0 else age
        for step in range(int(random.integers(3, 7))):
            cells = (row, step, float(random.standard_normal()), sex, known_age, "old" if age > 50 else "young")
            for column, cell in zip(columns.values(), cells, strict=True):
                column.append(cell)
    return pd.DataFrame(columns)


def test_numbers_are_normalised_and_a_category_is_one_number_a_value() -> None:
    layer = StaticValues(STATIC.model_copy(update={"missing": True}))
    layer.fit(torch.tensor([[10.0, 0.0, 5.0], [30.0, 1.0, 5.0]]))
    features = layer(torch.tensor([[30.0, 1.0, 7.0], [np.nan, np.nan, 5.0]]))
    assert layer.out_features == 4
    assert features.tolist() == [[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def test_where_none_may_be_missing_nothing_is_replaced() -> None:
    layer = StaticValues(STATIC)
    layer.fit(torch.tensor([[10.0, 0.0, 5.0], [30.0, 1.0, 5.0]]))
    assert layer(torch.tensor([[30.0, 1.0, 7.0]])).tolist() == [[1.0, 2.0, 0.0, 1.0]]
    assert layer(torch.tensor([[np.nan, 1.0, 7.0]])).isnan().tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        pytest.param({}, {}, id="fixed kernels"),
        pytest.param({"normalize": "training"}, {"epochs": 1}, id="layers", marks=pytest.mark.long),
    ],
)
def test_missing_values_beside_the_steps_alone_choose_the_policy(
    keys: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    tables = {"input": TABLES["input"] | keys, "model": {"preset": "auto"}}
    trained = train(tables, table(unknown=7), out=tmp_path / "run", progress=None, **options)
    assert trained.spec["input"]["missing"] in ("indicator", "mean")


@pytest.mark.parametrize(
    ("input_table", "words"),
    [
        ({"static": 3, "static_names": ["a"]}, "'static_names' has 1 names for 3 static values"),
        ({"static": 1, "static_categories": {"sex": ["f"]}}, "names a value that is not among"),
        ({"static_names": ["sex"], "static_categories": {"sex": ["f", "f"]}}, "has no value, or one twice"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(input_table: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Spec.from_table({"input": {"features": 2, **input_table}, "output": {"labels": ["a", "b"]}})


def test_a_category_may_have_a_name_with_a_blank(tmp_path: Path) -> None:
    names = {"static_names": ["home town"], "static_categories": {"home town": ["a", "b"]}}
    spec = Spec.from_table({"input": {"features": 2, **names}, "output": {"labels": ["a", "b"]}})
    (tmp_path / "spec.toml").write_text(as_toml(spec))
    assert Spec.read(tmp_path / "spec.toml") == spec
    assert spec.manifest(name="m", version=1).input.static == StaticInput(
        count=1, names=("home town",), categories={"home town": ("a", "b")}
    )


@pytest.mark.parametrize("missing", ["refuse", "mean"])
def test_missing_numbers_are_verified_where_the_spec_takes_them(missing: str) -> None:
    tables = {"input": {"features": 2, **TABLES["input"], "missing": missing}, "output": {"labels": ["a", "b"]}}
    manifest = Spec.from_table(tables).manifest(name="m", version=1)
    drawn = np.array([sample.beside["static"] for sample in draw(manifest, [2] * 99, 0) if isinstance(sample, Sample)])
    assert manifest.input.static is not None
    assert manifest.input.static.missing == (missing == "mean")
    assert np.isnan(drawn).any(axis=0).tolist() == [missing == "mean", False]  # a category is never missing


@pytest.mark.parametrize("task", ["single-label", "per-step"])
@pytest.mark.parametrize("rnn", ["gru", "none"])
def test_the_head_reads_the_static_values(task: str, rnn: str) -> None:
    model_table = {"rnn": rnn, "hidden": 4, "layers": 1} | ({} if rnn == "gru" else {"bidirectional": False})
    tables = {"input": {"features": 2, "static": 2}, "model": model_table}
    if rnn == "none":
        del model_table["bidirectional"]
    spec = Spec.from_table(tables | {"output": {"labels": ["a", "b"], "task": task}})
    torch.manual_seed(0)
    model = SequenceClassifier(spec).eval()
    steps, lengths = torch.randn(2, 5, 2), torch.tensor([5, 3])
    first, second = (model(steps, lengths, torch.full((2, 2), value)).logits for value in (0.0, 1.0))
    assert not torch.equal(first, second)
    assert task == "single-label" or not second[1, 3:].any()


@pytest.fixture(scope="module")
def rocket(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A rocket model of the table."""
    return train(TABLES, table(), progress=None, out=tmp_path_factory.mktemp("run") / "rocket")


def test_the_report_says_what_static_values_add(rocket: TrainedModel) -> None:
    assert rocket.report["left_out"]["accuracy"] > 0.8
    assert rocket.report["accuracy_without_static"] < 0.7
    assert "fitted without them" in str(rocket)


@pytest.mark.long
def test_an_export_of_a_training_has_the_static_values(rocket: TrainedModel, tmp_path: Path) -> None:
    published = rocket.export(tmp_path / "m")
    assert published.manifest.input.static == StaticInput(count=2, names=("age", "sex"), categories={"sex": ("f", "m")})
    assert published.manifest.promises[0].bits


@pytest.mark.long
def test_layers_are_trained_and_exported_with_static_values(tmp_path: Path) -> None:
    tables = TABLES | {"model": {"rnn": "gru", "hidden": 8, "layers": 1}}
    trained = train(tables, table(), progress=None, out=tmp_path / "run", epochs=2)
    assert 0 <= trained.report["accuracy_without_static"] <= 1
    cases = export(tmp_path / "run", tmp_path / "m", max_length=1024).cases
    assert max(case.relative for case in cases if case.varied == "reference") < 2e-6


def test_a_sequence_without_its_static_values_is_refused() -> None:
    with pytest.raises(InvalidSequences, match="'static' is missing"):
        train(TABLES, [np.zeros((3, 1), np.float32)] * 2, ["old", "young"], progress=None)


def test_categories_that_are_numbers_are_trained_by_their_texts(tmp_path: Path) -> None:
    tables = {"input": {"features": 1, "static_names": ["kind"], "static_categories": {"kind": ["1", "2", "3"]}}}
    spec = Spec.from_table(tables | {"output": {"labels": ["a", "b"]}})
    (tmp_path / "d.csv").write_text("id,x,kind,label\na,0.5,1,a\nb,0.5,2,b\nc,0.5,3,a\n")
    reading = dataset.Reading(ColumnNames("id", None, "label", ("x",), static=("kind",)))
    records = [record for record in dataset.entries(tmp_path / "d.csv", reading=reading) if isinstance(record, Record)]
    assert [np.asarray(static_values_of(record, spec)).tolist() for record in records] == [[0], [1], [2]]


def test_columns_of_the_spec_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigurationError, match="sex"):
        train(TABLES, table(4).drop(columns="sex"), progress=None)


def test_a_classifier_takes_static_values_of_tables_and_of_sequences() -> None:
    frame = table(20)
    classifier = LengthwiseClassifier(TABLES).fit(frame)
    assert classifier.score(frame) > 0.9  # by the age alone, see `table`
    assert classifier.n_features_in_ == 1
    rows = [
        {
            "steps": steps[["a"]].to_numpy(np.float32),
            "static": {"sex": steps["sex"].iloc[0], "age": steps["age"].iloc[0]},
        }
        for _, steps in frame.groupby("id")
    ]
    answers = classifier.predict_proba(frame.drop(columns="label"))
    np.testing.assert_array_equal(classifier.predict_proba(rows), answers)
    with pytest.raises(InvalidSequences, match="'static' is missing"):
        classifier.predict([rows[0]["steps"]])
