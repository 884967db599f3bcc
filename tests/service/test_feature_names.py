"""Names of a model's features: a table that has them is read by them, in any order; one with others is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
from click.testing import CliRunner

import lengthwise
from lengthwise.commands.cli import main
from lengthwise.datasets import arrays, dataset, input_sequences
from lengthwise.datasets.column_roles import ColumnNames, assign_roles
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.runtime.feature_names import are_names, missing_columns_problem, values_by_name
from lengthwise.runtime.manifest import Manifest
from tests.support import model_directories
from tests.support.numpy_models import manifest

NAMES = tuple(f"c{number}" for number in range(12))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose twelve features have names."""
    step = Manifest.read(model_directories.BUNDLED).input.model_copy(update={"names": NAMES})
    folder = tmp_path_factory.mktemp("models")
    return model_directories.place(folder, input=step.model_dump(mode="json"))


@pytest.fixture(scope="module")
def model(named: Path, quick_costs: None) -> lengthwise.Model:
    return lengthwise.load(named)


def steps() -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.normal(size=(length, 12)).astype(np.float32) for length in (7, 12, 9)]


def table(order: tuple[str, ...] = NAMES, **more: Any) -> pandas.DataFrame:
    """A row for each step, its features in an order; `more` are columns besides."""
    parts = [pandas.DataFrame(one, columns=NAMES)[list(order)] for one in steps()]
    parts = [part.assign(id=f"s{place}", t=range(len(part)), **more) for place, part in enumerate(parts)]
    return pandas.concat(parts, ignore_index=True)


REVERSED = table(NAMES[::-1])


def grouped() -> Any:
    return REVERSED.drop(columns="t").groupby("id")


FORMS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: REVERSED,
    "polars": lambda: polars.from_pandas(REVERSED),
    "arrow": lambda: pyarrow.Table.from_pandas(REVERSED),
    "with other columns": lambda: table(NAMES[::-1], note="a text", z=1.0),
    "groups": grouped,
    "a mapping": lambda: {name: part.drop(columns="id") for name, part in REVERSED.groupby("id")},
    "a list": lambda: [part.drop(columns="id") for _, part in REVERSED.groupby("id")],
    "objects": lambda: [{"id": name, "steps": part.drop(columns="id")} for name, part in REVERSED.groupby("id")],
    "read before": lambda: lengthwise.sequences(REVERSED.rename(columns={"id": "run"}), id="run"),
    "read before, with a column more": lambda: lengthwise.sequences(table(NAMES[::-1], z=1.0)),
}


def bits(predictions: Any) -> list[bytes]:
    return [one.probabilities.tobytes() for one in predictions]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", FORMS)
def test_a_table_with_the_names_in_another_order_gets_the_same_answers(form: str, model: lengthwise.Model):
    assert bits(model.predict(FORMS[form]())) == bits(model.predict(steps()))


@pytest.mark.parametrize("form", FORMS)
def test_a_table_with_another_name_is_refused_and_the_name_is_suggested(
    form: str, model: lengthwise.Model, monkeypatch: pytest.MonkeyPatch
):
    renamed = REVERSED.rename(columns={"c3": "c_3"})
    monkeypatch.setitem(globals(), "REVERSED", renamed)
    monkeypatch.setitem(globals(), "table", lambda *_, **more: renamed.assign(**more))
    with pytest.raises((ConfigurationError, InvalidSequences), match=r"missing: c3; did you mean c_3\?"):
        model.predict(FORMS[form]())


def test_a_table_with_other_names_is_not_taken_by_position_and_an_array_is(model: lengthwise.Model):
    others = REVERSED.rename(columns={name: f"x{name}y" for name in NAMES})
    with pytest.raises(ConfigurationError, match=r"the model takes c0, c1.*Rename the columns, or give arrays"):
        model.predict(others)
    numbered = [pandas.DataFrame(one) for one in steps()]
    with pytest.raises(InvalidSequences, match="missing: c0"):
        model.predict(numbered)
    assert bits(model.predict([one.to_numpy() for one in numbered])) == bits(model.predict(steps()))


def test_a_table_without_one_of_the_names_is_refused(model: lengthwise.Model):
    with pytest.raises(ConfigurationError, match="missing: c5"):
        model.predict(REVERSED.drop(columns="c5"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_score_reads_columns_by_their_names_and_refuses_others(suffix: str, named: Path, tmp_path: Path):
    def scored(frame: pandas.DataFrame, name: str) -> tuple[int, str, list[Any]]:
        source, out = tmp_path / f"{name}.{suffix}", tmp_path / f"{name}.out.jsonl"
        frame.to_csv(source, index=False) if suffix == "csv" else frame.to_parquet(source)
        done = CliRunner().invoke(main, ["score", str(source), str(out), "--model", str(named)])
        lines = out.read_text().splitlines() if out.exists() else []
        return done.exit_code, done.stderr, [json.loads(line) for line in lines]

    code, said, first = scored(table(), "first")
    assert code == 0, said
    code, said, second = scored(table(NAMES[::-1], note="n"), "reversed")
    assert (code, second) == (0, first)
    assert "ignored: 'note'" in said
    code, said, _ = scored(REVERSED.rename(columns={"c3": "c_3"}), "renamed")
    assert code == 2
    assert "missing: c3; did you mean c_3?" in said


def test_a_file_without_a_header_needs_the_columns_said(named: Path, tmp_path: Path):
    source, out = tmp_path / "bare.csv", tmp_path / "out.jsonl"
    (order := table()[["t", *NAMES]].assign(t=0)).to_csv(source, index=False, header=False)
    call = ["score", str(source), str(out), "--model", str(named), "--column", "id=column 1"]
    refused = CliRunner().invoke(main, call)
    assert refused.exit_code == 2
    assert "The first line names no columns" in refused.stderr
    values = ",".join(f"column {place}" for place in range(2, 14))
    assert CliRunner().invoke(main, [*call, "--column", f"values={values}"]).exit_code == 0
    assert json.loads(out.read_text())["length"] == len(order)


NAMED = ColumnNames(inputs=("time", "label", "ax"))


def test_names_of_the_model_win_over_names_of_roles_by_default():
    assert assign_roles(["id", "ax", "label", "time"], NAMED).values == ("time", "label", "ax")
    assert assign_roles(["id", "ax", "label", "time"], NAMED).label is None
    said = assign_roles(
        ["id", "ax", "label", "time", "t", "activity"], ColumnNames(label="activity", inputs=NAMED.inputs)
    )
    assert (said.time, said.label, said.values) == ("t", "activity", ("time", "label", "ax"))
    with pytest.raises(ConfigurationError, match="missing: time"):
        assign_roles(["id", "ax", "label", "time"], ColumnNames(time="time", inputs=NAMED.inputs))


def test_values_that_the_caller_names_are_put_into_the_order_of_the_model():
    inputs = ("ax", "ay")
    said = ColumnNames(values=("ay", "ax"), inputs=inputs)
    assert assign_roles(["id", "ax", "ay", "z"], said).values == inputs
    with pytest.raises(ConfigurationError, match=r"missing: ax; did you mean z\?"):
        assign_roles(["id", "ax", "ay", "z"], ColumnNames(values=("z", "ay"), inputs=inputs))


def test_defaults_are_roles_where_the_table_has_these_columns():
    defaults = {"id": "trip", "label": "activity"}
    found = assign_roles(["trip", "x", "label"], ColumnNames(defaults=defaults))
    assert (found.id, found.label) == ("trip", "label")


@pytest.mark.parametrize(
    ("names", "good"),
    [
        (("a", "b", "a"), False),
        (("a", "\t"), False),
        (("a", ""), False),
        (("a", "b" * 257), False),
        (("a", "ü", "b" * 256, "a b", "1", "A"), True),
    ],
)
def test_what_may_be_names(names: tuple[str, ...], good: bool):
    assert are_names(names) is good


def test_a_missing_name_is_told_with_a_similar_one_or_what_is_there_instead():
    assert missing_columns_problem(("b", "a"), ("a", "b")) is None
    assert missing_columns_problem(("foo", "b"), ("a", "b")) == "the model takes a, b; missing: a; did you mean foo?"
    assert (
        missing_columns_problem(("x", "y", "b"), ("a", "b")) == "the model takes a, b; missing: a; there are also x, y"
    )
    many = tuple(f"n{place}" for place in range(10_000))
    assert len(missing_columns_problem((), many) or "") < 200
    assert len(missing_columns_problem(many[1:], many) or "") < 200


def test_names_are_matched_in_the_items_of_a_model_without_names_too():
    found = arrays.items(REVERSED, manifest(features=12))
    assert found[0].steps.tobytes() == np.ascontiguousarray(steps()[0][:, ::-1]).tobytes()


def test_tables_of_one_list_are_read_in_the_order_of_the_first():
    ax_ay = pandas.DataFrame({"ax": [1.0], "ay": [2.0]})
    found = lengthwise.sequences([ax_ay, ax_ay[["ay", "ax"]]])
    assert [one.steps.tolist() for one in found] == [[[1.0, 2.0]], [[1.0, 2.0]]]
    with pytest.raises(InvalidSequences, match="the model takes ax, ay; missing: ax"):
        lengthwise.sequences([ax_ay, ax_ay.rename(columns={"ax": "foo"})])


def test_numbers_of_pandas_as_names_of_columns_are_names_as_texts():
    frames = [pandas.DataFrame([[1.0, 2.0]]), pandas.DataFrame([[1.0, 2.0]])[[1, 0]]]
    found = lengthwise.sequences(frames)
    assert found[0].names == ("0", "1")
    assert found[0].steps.tolist() == found[1].steps.tolist()


@pytest.mark.parametrize(
    ("steps", "names", "said"),
    [
        ([{"a": 1, "b": 2}], (), "have no names: give arrays"),
        ([{"a": 1}, [1]], ("a",), "some of its steps are objects, and others are none"),
        ([{"a": 1}, {"c": 1}], ("a", "cc"), "'c' is no name of a feature; did you mean cc?; the model takes a, cc"),
    ],
)
def test_objects_that_do_not_fit_the_names_are_refused(steps: list[Any], names: tuple[str, ...], said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        values_by_name(steps, names)


def test_objects_without_known_names_have_those_that_they_use_in_their_order():
    rows, names = values_by_name([{"b": 1}, None, {"a": 2, "b": 3}], None)
    assert (rows, names) == ([[1, None], [None, None], [3, 2]], ("b", "a"))


def test_a_scorer_of_batches_takes_objects_in_the_column_of_steps(named: Path, model: lengthwise.Model):
    batch = pandas.DataFrame({"steps": [pandas.DataFrame(one, columns=NAMES).to_dict("records") for one in steps()]})
    answered = lengthwise.Scorer(named)(batch)
    wanted = [one.label for one in model.predict(steps())]
    assert answered["label"].tolist() == wanted


@pytest.mark.parametrize("said", [ColumnNames(inputs=("x", "steps")), ColumnNames(values=("x", "steps"))])
def test_a_feature_may_be_called_steps(said: ColumnNames, tmp_path: Path):
    counted = pandas.DataFrame({"id": ["a", "a"], "steps": [10, 12], "x": [1.0, 2.0]})
    counted.to_parquet(tmp_path / "counted.parquet")
    found = input_sequences.sequences_of(counted, columns=said)
    assert [one.steps.tolist() for one in found] == [[[1, 10], [2, 12]]]
    (record,) = dataset.read(tmp_path / "counted.parquet", reading=dataset.Reading(said))
    assert record.steps.tolist() == [[1, 10], [2, 12]]
