"""Training and classifiers take every form of sequences, with the labels of a table, and ask about doubtful axes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from click.testing import CliRunner

import lengthwise
import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.datasets.dataset import Reading
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.arrays import from_files, from_sequences

LABELS = ["calm", "loud"] * 8


def cases(length: int = 20, features: int = 2) -> np.ndarray:
    """`[cases, channels, timepoints]`: every other case is louder."""
    random = np.random.default_rng(0)
    return np.stack([random.normal(scale=1 + 3 * (label == "loud"), size=(features, length)) for label in LABELS])


def long_table() -> pandas.DataFrame:
    parts = [
        pandas.DataFrame({"id": f"r{place:02}", "t": range(case.shape[1]), "u": case[0], "v": case[1], "label": label})
        for place, (case, label) in enumerate(zip(cases(), LABELS, strict=True))
    ]
    return pandas.concat(parts)


def trained(*given: Any, **options: Any) -> lengthwise_export.TrainedModel:
    return lengthwise_export.train("rocket", *given, progress=None, **options)


@pytest.mark.long
def test_every_form_trains_the_same_model() -> None:
    table, arrays = long_table(), [case.T for case in cases()]
    first = trained(arrays, LABELS)
    for name, given, options in (
        ("channels first", (cases(), LABELS), {"layout": "channels-first"}),
        ("mapping", ({f"r{place:02}": one for place, one in enumerate(arrays)}, LABELS), {}),
        ("pandas", (table,), {}),
        ("shuffled", (table.sample(frac=1, random_state=1).sort_values("id", kind="stable"),), {}),
        ("groups", (table.groupby("id"),), {}),
        ("polars", (polars.from_pandas(table),), {}),
        ("named", (lengthwise.sequences(table.rename(columns={"id": "run"}), id="run"),), {}),
    ):
        run = trained(*given, **options)
        assert without_names(run) == without_names(first), name


def test_another_number_of_features_than_the_spec_says_is_told(tmp_path: Path) -> None:
    spec, data = tmp_path / "two.toml", tmp_path / "d.csv"
    spec.write_text("[input]\nfeatures = 2\n")
    data.write_text("id,t,value,label\n" + "".join(f"{n},{t},0.5,{LABELS[n]}\n" for n in range(4) for t in range(3)))
    with pytest.raises(ConfigurationError) as told:
        from_files(str(spec), [str(data)], Reading())
    assert str(told.value) == f"{spec} says features = 2, the data has 1: value"


def without_names(run: lengthwise_export.TrainedModel) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of the weights, and what is recorded besides, but for the names that only a table has."""
    tensors, state = checkpoint.read(run.weights)
    state.pop("columns", None)
    state["spec"]["input"].pop("feature_names", None)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, state


@pytest.mark.long
def test_what_the_columns_were_taken_as_is_said_and_other_splits_may_be_tables() -> None:
    run = trained(long_table(), test=long_table())
    assert run.reasons[0] == "columns: id 'id', time 't', label 'label', features 'u', 'v'"
    assert run.report["test"]["accuracy"] == 1.0
    each_step = {"model": {"hidden": 4}, "output": {"task": "per-step"}}
    assert (
        lengthwise_export.train(each_step, long_table(), epochs=1, progress=None).report["training"]["answers"] == 320
    )
    with pytest.raises(lengthwise.errors.ConfigurationError):
        trained(long_table().drop(columns="label"))


@pytest.mark.long
def test_keys_of_groups_and_indexes_teach_nothing() -> None:
    random = np.random.default_rng(0)
    index = pandas.MultiIndex.from_product([range(60), range(8)], names=["instances", "timepoints"])
    noise = pandas.DataFrame({"dim_0": random.normal(size=480), "dim_1": random.normal(size=480)}, index=index)
    for form in (noise.groupby(level=0), noise, [rows for _, rows in noise.groupby(level=0)]):
        run = trained(form, ["a"] * 30 + ["b"] * 30)  # in the order of the ids
        assert run.spec["input"]["features"] == 2
        assert "features 'dim_0', 'dim_1'" in run.reasons[0]
        assert "time 'timepoints'" in run.reasons[0]


def test_one_wrong_label_of_a_table_is_named_and_no_labels_of_steps_are_taken() -> None:
    table = long_table().reset_index(drop=True)
    table.loc[25, "label"] = "calm"
    with pytest.raises(lengthwise.errors.InvalidSequences, match="'r01' has the label 'calm', and 'loud'") as told:
        trained(table)
    assert told.value.indices == (1,)


def test_a_classifier_takes_lists_in_cells_and_an_index_of_levels() -> None:
    nested = pandas.DataFrame({"u": [pandas.Series(case[0]) for case in cases()], "v": [*cases()[:, 1]]})
    fitted = lengthwise_export.LengthwiseClassifier("rocket").fit(nested, LABELS)
    levels = long_table().drop(columns="label").set_index(["id", "t"]).rename_axis(["instances", "timepoints"])
    assert fitted.predict(nested).tolist() == fitted.predict(levels).tolist() == LABELS


def test_many_labels_and_names_in_a_spec_take_time_in_proportion(tmp_path: Any) -> None:
    def seconds(size: int) -> float:
        names = ", ".join(f'"n{place}"' for place in range(size))
        path = tmp_path / "s.toml"
        path.write_text(f"[input]\nfeatures = {size}\nfeature_names = [{names}]\n[output]\nlabels = [{names}]\n")
        began = time.process_time()
        Spec.read(path)
        return time.process_time() - began

    seconds(100)
    assert any(seconds(16_000) < 24 * max(seconds(2_000), 1e-3) for _ in range(5))


def test_a_classifier_takes_tables_and_axes_that_are_said() -> None:
    fitted = lengthwise_export.LengthwiseClassifier("rocket").fit(long_table())
    channels = lengthwise_export.LengthwiseClassifier("rocket", layout="channels-first").fit(cases(), LABELS)
    assert fitted.predict(long_table()).tolist() == channels.predict(cases()).tolist() == LABELS


def test_axes_that_may_be_transposed_are_asked_about() -> None:
    assert any("transposed" in warning for warning in trained(cases(length=50), LABELS).warnings)
    assert not trained(cases(length=50), LABELS, layout="channels-first").warnings
    ragged = [case[:, : 10 + place] for place, case in enumerate(cases())]
    with pytest.raises(lengthwise.errors.InvalidSequences):
        trained(ragged, LABELS)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_the_command_trains_on_a_row_for_each_step(tmp_path: Any, name: str) -> None:
    table = long_table().rename(columns={"label": "state"})
    (tmp_path / "s.toml").write_text(
        '[input]\nfeatures = 2\n[model]\nkind = "rocket"\n[output]\nlabels = ["calm", "loud"]\n'
    )
    path = tmp_path / name
    table.to_csv(path, index=False) if name == "d.csv" else table.to_parquet(path, index=False)
    run = CliRunner().invoke(
        main, ["train", str(tmp_path / "s.toml"), str(path), "--out", str(tmp_path / "run"), "--column", "label=state"]
    )
    assert run.exit_code == 0, run.output
    assert f"{name}: id 'id', time 't', label 'state', features 'u', 'v'; 16 sequences" in run.output
    asked = CliRunner().invoke(main, ["train", str(tmp_path / "s.toml"), str(path), "--out", str(tmp_path / "other")])
    assert asked.exit_code == 2
    assert "'state'" in asked.output


IDS = [f"r{place}" for place in range(12)]
TRUTH = {name: "calm" if place % 3 else "loud" for place, name in enumerate(IDS)}
BY_ID = pandas.Series(TRUTH)
IN_ORDER = [*TRUTH.values()]
FRAME = pandas.DataFrame(
    [(name, t, float(place)) for place, name in enumerate(IDS) for t in range(3)], columns=["id", "t", "u"]
)  # each value is the number of its sequence
BACKWARDS = FRAME.iloc[::-1]
NUMBERED = FRAME.assign(id=FRAME["u"].astype(int))
BY_NUMBER = pandas.Series(IN_ORDER, index=range(12))
LEVELS = FRAME.set_index(["id", "t"])
ARRAYS = [rows[["u"]].to_numpy() for _, rows in FRAME.groupby("id", sort=False)]
FRAMES = [rows for _, rows in FRAME.groupby("id", sort=False)]
STEPS = pandas.DataFrame({"id": IDS[::-1], "steps": ARRAYS[::-1]})
WAYS: dict[str, tuple[Any, Any]] = {
    "list": (FRAME, IN_ORDER),
    "list, backwards": (BACKWARDS, IN_ORDER[::-1]),
    "array": (FRAME, np.array(IN_ORDER)),
    "position": (BACKWARDS, pandas.Series(IN_ORDER[::-1])),
    "index": (BACKWARDS, BY_ID),
    "index, shuffled": (FRAME, BY_ID.sample(frac=1, random_state=1)),
    "table of one column": (BACKWARDS, BY_ID.to_frame("label")),
    "dict": (BACKWARDS, TRUTH),
    "table with ids": (BACKWARDS, pandas.DataFrame({"id": IDS, "label": IN_ORDER})),
    "MultiIndex": (LEVELS.iloc[::-1], BY_ID),
    "numbers, backwards": (NUMBERED.iloc[::-1], BY_NUMBER),
    "float ids": (NUMBERED.assign(id=NUMBERED["u"]).iloc[::-1], BY_NUMBER),
    "labels with float ids": (NUMBERED.iloc[::-1], BY_NUMBER.set_axis(np.arange(12.0))),
    "polars": (polars.from_pandas(BACKWARDS), polars.DataFrame({"id": IDS, "label": IN_ORDER})),
    "polars, position": (polars.from_pandas(FRAME), polars.Series(IN_ORDER)),
    "groups": (BACKWARDS.groupby("id"), BY_ID),
    "mapping": ({name: rows[["u"]] for name, rows in BACKWARDS.groupby("id")}, BY_ID),
    "sequences": (lengthwise.sequences(BACKWARDS), BY_ID),
    "frames": ([rows for _, rows in BACKWARDS.groupby("id", sort=False)], BY_ID),
    "frames of levels": ([rows for _, rows in LEVELS[::-1].groupby("id", sort=False)], BY_ID),
    "frames of an index": ([rows for _, rows in BACKWARDS.set_index("id").groupby("id", sort=False)], BY_ID),
    "polars frames": (polars.from_pandas(BACKWARDS).partition_by("id"), BY_ID),
    "two frames": (FRAMES[1::-1], pandas.DataFrame({"id": IDS[:2], "label": IN_ORDER[:2]})),
    "tuple of frames": (tuple(FRAMES[::-1]), BY_ID),
    "frames of subjects": ([rows.rename(columns={"id": "subject"}) for rows in FRAMES[::-1]], BY_ID),
    "frames, a shuffled index": (FRAMES, BY_ID.set_axis(range(20, 8, -1))),
    "Series of frames": (pandas.Series(FRAMES, index=range(20, 8, -1)), BY_ID.set_axis(range(20, 8, -1))),
    "lists in cells": (STEPS, BY_ID),
    "index of lists in cells": (STEPS.set_index("id").rename_axis(None), BY_ID),
    "arrays, a shuffled index": (ARRAYS, BY_ID.set_axis(range(20, 8, -1))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_label_goes_to_its_sequence_in_whichever_way(way: str) -> None:
    records = from_sequences("rnn", *WAYS[way]).records
    assert [record.label for record in records] == [IN_ORDER[int(record.steps[0, 0])] for record in records]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "missing": (FRAME, BY_ID.drop("r4"), "without a label: 'r4'"),
    "missing in a dict": (FRAME, dict([*TRUTH.items()][1:]), "without a label: 'r0'"),
    "double": (FRAME, pandas.concat([BY_ID, BY_ID[:1]]), "several labels: 'r0'"),
    "too many": (FRAME[FRAME["id"] != "r2"], BY_ID, "labels without a sequence: 'r2'"),
    "others": (FRAME, BY_ID.rename("x{}".format), "without a label: 'r0', .*without a sequence: 'xr0'"),
    "other numbers": (FRAME, BY_ID.set_axis(range(5, 17)), "without a label: 'r0', .*without a sequence: '5'"),
    "several columns": (FRAME, pandas.DataFrame({"a": BY_ID, "b": BY_ID}), "columns 'a', 'b'"),
    "rows": (LEVELS, pandas.Series("calm", index=LEVELS.index), "several labels: 'r0'"),
    "no ids": (ARRAYS, TRUTH, "without a label: None; labels without a sequence: 'r0'"),
    "no ids, table": (ARRAYS, pandas.DataFrame({"id": IDS, "label": IN_ORDER}), "without a label: None"),
    "entries": ([{"id": "b", "steps": [1.0]}, {"id": "a", "steps": [2.0]}], BY_ID[:2], "a label: 'b', 'a'"),
    "frames, numbers": (
        [rows for _, rows in NUMBERED[::-1].groupby("id", sort=False)],
        BY_NUMBER,
        "are ids and numbers of rows",
    ),
    "numbers that are ids or rows": (STEPS.assign(id=range(11, -1, -1)), BY_NUMBER, "are ids and numbers of rows"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_labels_of_other_ids_are_refused_with_both_sides(way: str) -> None:
    given, labels, said = REFUSED[way]
    with pytest.raises(lengthwise.errors.InvalidSequences, match=said):
        from_sequences("rnn", given, labels)


def test_an_order_that_is_not_that_of_the_ids_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from_sequences("rnn", FRAME, IN_ORDER[:2] + IN_ORDER[10:] + IN_ORDER[2:10])  # r0, r1, r2: not sorted as texts
    assert caplog.messages == [
        "the labels are taken in the order in which the ids first stand in the table: r0, r1, r2, r3, r4 and 7 more"
    ]
    caplog.clear()
    from_sequences("rnn", BACKWARDS.groupby("id", sort=False), IN_ORDER)
    assert "in the order in which the ids first stand in the table: r11, r10" in caplog.messages[0]
    caplog.clear()
    from_sequences("rnn", NUMBERED, IN_ORDER)
    from_sequences("rnn", FRAMES[::-1], IN_ORDER)
    from_sequences("rnn", FRAME, BY_ID)
    assert not caplog.messages


def test_a_classifier_is_fitted_and_scored_by_ids() -> None:
    table = long_table().drop(columns="label")
    labels = pandas.Series(LABELS, index=table["id"].unique())
    fitted = lengthwise_export.LengthwiseClassifier("rocket").fit(table.iloc[::-1], labels)
    assert fitted.predict(table).tolist() == LABELS
    shuffled = labels.sample(frac=1, random_state=3)
    assert fitted.score(table, shuffled) == fitted.score(table.assign(label=table["id"].map(labels))) == 1.0
    weights = pandas.Series(1.0, index=shuffled.index)
    weights["r00"] = 0.0
    wrong = labels.where(labels.index != "r00", "loud")  # which has no weight
    assert fitted.score(table, wrong, weights) == 1.0
    with pytest.raises(ValueError, match="without a label: 'r00'"):
        fitted.score(table, shuffled.drop("r00"))


def test_steps_without_a_label_count_nowhere() -> None:
    labels = [[0 if step % 2 else 1 for step in range(20)] for _ in LABELS]
    open_steps = [[None if step % 3 else label for step, label in enumerate(each)] for each in labels]
    open_steps[0] = [None] * 20
    ignored = [[-100 if label is None else label for label in each] for each in open_steps]
    steps = [case.T for case in cases()]
    spec = {"model": {"preset": "rnn", "hidden": 4}}
    runs = [lengthwise_export.train(spec, steps, each, epochs=1, progress=None) for each in (open_steps, ignored)]
    for run in runs:
        assert run.labels == ("0", "1")
        assert run.report["training"]["answers"] == 15 * 7
        assert run.report["training"]["by_length"][0]["answers"] == 15 * 7
    assert checkpoint.read(runs[0].weights)[0].keys() == checkpoint.read(runs[1].weights)[0].keys()
    assert runs[0].report["training"]["loss"] == runs[1].report["training"]["loss"]
    assert any("-100 among the labels" in warning for warning in runs[1].warnings)
    assert not any("-100" in warning for warning in runs[0].warnings)


def test_labels_of_several_levels_go_by_the_level_of_the_ids() -> None:
    table = pandas.DataFrame({"id": ["1", "1", "2", "2"], "x": [0.1, 0.2, 5.0, 6.0]})
    keys = [("1", "2"), ("2", "1")]
    for names in (["fold", "id"], ["fold", "trip_id"]):
        labels = pandas.Series(["of 2", "of 1"], index=pandas.MultiIndex.from_tuples(keys, names=names))
        assert [record.label for record in from_sequences("rocket", table, labels).records] == ["of 1", "of 2"]
    doubtful = pandas.Series(["a", "b"], index=pandas.MultiIndex.from_tuples(keys))
    with pytest.raises(InvalidSequences, match="sequences without a label: '1', '2'"):
        from_sequences("rocket", table, doubtful)
    assert [record.label for record in from_sequences("rocket", [[1.0], [2.0]], doubtful).records] == ["a", "b"]


def test_labels_of_steps_are_sorted_by_time_with_their_steps() -> None:
    rows = [("a", 2, 0.3, "c"), ("b", 0, 0.4, "b"), ("a", 0, 0.1, "a"), ("a", 1, 0.2, "b"), ("b", 1, 0.5, "a")]
    table = pandas.DataFrame(rows, columns=["id", "t", "x", "label"])
    own = [record.label for record in from_sequences("rnn", table, None).records]
    assert own == [("a", "b", "c"), ("b", "a")]
    given, lists = table.drop(columns="label"), {"a": ["c", "a", "b"], "b": ["b", "a"]}
    cells = given.groupby("id").agg(list).reset_index()
    frames = [rows.drop(columns="id") for _, rows in given.groupby("id")]
    read = lengthwise.sequences(given)
    for data, labels in ((given, lists), (given, [*lists.values()]), (cells, lists), (read, lists)):
        assert [record.label for record in from_sequences("rnn", data, labels).records] == own
    arrays = [np.array(label) for label in lists.values()]
    assert [record.label for record in from_sequences("rnn", frames, arrays).records] == own


def test_a_label_that_is_missing_is_told_with_its_sequence_and_column(tmp_path: Any) -> None:
    (tmp_path / "s.toml").write_text('[model]\npreset = "rocket"\n')
    path = tmp_path / "e.csv"
    command = ["train", str(tmp_path / "s.toml"), str(path), "--out", str(tmp_path / "run"), "--column"]
    rows = [(f"s{place}", place, "" if place < 7 else "ab"[place % 2]) for place in range(12)]
    pandas.DataFrame(rows, columns=["trial", "x", "way"]).loc[np.repeat(range(12), 2)].to_csv(path, index=False)
    told = CliRunner().invoke(main, [*command, "label=way"]).stderr
    assert "e.csv:2: there is no label to train on: sequence 's0' has none; give one" in told
    assert "(and on other lines 6 more like it: 4, 6, " in told
    pandas.DataFrame(rows[:7], columns=["trial", "x", "way"]).loc[np.repeat(range(7), 2)].to_csv(path, index=False)
    told = CliRunner().invoke(main, [*command, "label=way"]).stderr
    assert "the column 'way' of the labels is empty" in told
    assert "--column label=NAME" not in told
