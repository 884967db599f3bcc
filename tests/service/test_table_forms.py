"""What tables mean: keys and indexes, rows of one moment, lists in cells, a row for each sequence."""

import contextlib
import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet
import pytest

import lengthwise
from lengthwise.datasets import dataset
from lengthwise.datasets.column_roles import ColumnNames
from lengthwise.datasets.input_sequences import sequences_of
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.scoring.engine_batches import cells_of

STEPS = [[[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]], [[3.0, 13.0], [4.0, 14.0], [5.0, 15.0]]]


def indexed(*names: str | None, sequences: int = 2) -> pandas.DataFrame:
    """A row for each step, with an index of the sequence and the time, in the wrong order of times."""
    index = pandas.MultiIndex.from_product([range(sequences), range(3)], names=names)
    values = np.arange(3.0 * sequences)
    return pandas.DataFrame({"x": values, "y": values + 10}, index=index).iloc[::-1].sort_index(level=0, kind="stable")


def steps_of(given: Any, **names: Any) -> list[Any]:
    return [one.steps.tolist() for one in lengthwise.sequences(given, **names)]


INDEXES = [("instances", "timepoints"), (None, None), ("run", "second"), ("case_id", "reading_id")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("names", INDEXES)
@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        lambda table: table.sample(frac=1, random_state=1),
        lambda table: table.groupby(level=0),
        lambda table: table.groupby(level=[0]),
        lambda table: [rows for _, rows in table.groupby(level=0)],
        lambda table: [*table.groupby(level=0)],
        lambda table: dict([*table.groupby(level=0)]),
        pa.Table.from_pandas,
    ],
    ids=["whole", "shuffled", "level", "levels", "list", "pairs", "mapping", "arrow"],
)
def test_levels_of_an_index_are_id_and_time_and_no_features(
    names: tuple[str | None, str | None], form: Callable[[pandas.DataFrame], Any]
) -> None:
    found = lengthwise.sequences(form(indexed(*names)))
    assert sorted(one.steps.tolist() for one in found) == STEPS
    assert "features 'x', 'y'" in found.taken
    assert "time '" in found.taken


@pytest.mark.parametrize("names", [("instances", "timepoints"), ("case_id", "reading_id"), ("id", "timepoint")])
def test_the_same_levels_as_columns_are_id_and_time(names: tuple[str, str]) -> None:
    table = indexed(*names).reset_index()
    for form in (
        *(table, table.groupby(names[0]), polars.from_pandas(table), pa.Table.from_pandas(table)),
        *(polars.from_pandas(table).group_by(names[0], maintain_order=True), table.reset_index()),
        *(table.reset_index().groupby(names[0]), polars.from_pandas(table).with_row_index()),
        *(polars.from_pandas(table).with_row_index().group_by(names[0], maintain_order=True),),
    ):
        assert steps_of(form) == STEPS


def test_groups_by_the_name_of_a_level_have_no_key_among_the_features() -> None:
    assert steps_of(indexed("run", "second").groupby("run")) == STEPS
    assert steps_of(indexed("run", "second").groupby(level="run")) == STEPS
    single = indexed("run", "second").reset_index("second").set_index("second", append=True).reset_index("second")
    assert steps_of(single.rename(columns={"second": "t"}).groupby(level=0)) == STEPS


def test_a_column_with_another_whole_number_in_each_table_of_a_list_is_a_key() -> None:
    table = indexed("run", "t", sequences=6).reset_index()
    for form in ([rows for _, rows in table.groupby("run")], polars.from_pandas(table).partition_by("run")):
        assert {len(step) for steps in steps_of(form) for step in steps} == {2}
    few = [rows for _, rows in table.groupby("run")][:2]
    assert {len(step) for steps in steps_of(few) for step in steps} == {3}
    weights = [rows.assign(weight=60.5 + place) for place, (_, rows) in enumerate(table.groupby("run"))]
    assert {len(step) for steps in steps_of(weights) for step in steps} == {3}


def test_noise_has_no_labels_order_in_its_features() -> None:
    random = np.random.default_rng(0)
    index = pandas.MultiIndex.from_product([range(6), range(4)], names=["instances", "timepoints"])
    noise = pandas.DataFrame({"dim_0": random.normal(size=24)}, index=index)
    assert all(one.steps.ndim == 1 for one in lengthwise.sequences(noise.groupby(level=0)))


def test_an_index_of_dates_is_the_time() -> None:
    table = indexed("id", "t").reset_index().drop(columns="t")
    days = pandas.date_range("2024-01-06", periods=6, freq="-1D")
    for index in (days, days.tz_localize("UTC"), days.rename("when"), days - days[-1]):
        timed = table.set_axis(index)
        expected = [steps[::-1] for steps in steps_of(table)]
        for form in (timed, timed.groupby("id"), [rows for _, rows in timed.groupby("id")]):
            assert steps_of(form) == expected
            assert "time '" in lengthwise.sequences(form).taken


def test_an_index_that_is_no_time_is_ignored_and_said() -> None:
    table = indexed("id", "t").reset_index()
    for index in (table.index.rename("sample"), pandas.period_range("2024", periods=6, freq="D")):
        found = lengthwise.sequences(table.set_axis(index))
        assert [one.steps.tolist() for one in found] == STEPS
        assert "ignored: '" in found.taken
    named = table.set_index("id", drop=False)
    assert steps_of(named) == STEPS


def test_frames_under_keys_are_sequences() -> None:
    parts = {"a": pandas.DataFrame({"x": [1.0, 2.0]}), "b": pandas.DataFrame({"x": [3.0]})}
    found = lengthwise.sequences(pandas.concat(parts))
    assert [(one.id, one.steps.tolist()) for one in found] == [("a", [1.0, 2.0]), ("b", [3.0])]


def test_a_column_named_as_an_id_or_a_time_is_no_feature_where_another_one_is_named() -> None:
    table = pandas.DataFrame({"trip": [1, 1], "user_id": [7, 7], "when": [0, 1], "timestamp": [5, 6], "x": [0.5, 0.25]})
    found = lengthwise.sequences(table, id="trip", time="when")
    assert found[0].steps.tolist() == [0.5, 0.25]
    assert "ignored: 'user_id', 'timestamp'" in found.taken
    assert lengthwise.sequences(table, id="trip", time="when", values=["timestamp", "x"])[0].steps.shape == (2, 2)


# Rows of one moment.


def melted(**renamed: str) -> pandas.DataFrame:
    table = indexed("id", "t").reset_index().melt(id_vars=["id", "t"], var_name="kind", value_name="value")
    return table.assign(number=table["kind"].map({"x": 0, "y": 1})).rename(columns=renamed)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("order", [["id", "t"], ["kind"]], ids=["sorted by time", "by kind"])
@pytest.mark.parametrize("values", [None, "value"])
@pytest.mark.parametrize(
    "column", ["kind", "dim", "channel", "variable", "sensor", "dim_id", "name", "category", "feature", "zzz"]
)
@pytest.mark.parametrize("as_number", [False, True], ids=["text", "number"])
def test_a_row_for_each_value_is_asked_about_with_the_pivot(
    order: list[str], values: str | None, column: str, as_number: bool
) -> None:
    table = melted().sort_values(order, kind="stable")
    table = table.drop(columns="kind" if as_number else "number")
    table = table.rename(columns={"number" if as_number else "kind": column}).assign(label="up")
    if column == "category":
        table = table.drop(columns="label")
    for form in (table, polars.from_pandas(table), pa.Table.from_pandas(table), table.groupby("id")):
        with pytest.raises((ConfigurationError, InvalidSequences)) as told:
            lengthwise.sequences(form, values=values)
        assert f"columns=['{column}'], values='value')" in str(told.value)
    with pytest.raises(ConfigurationError) as whole:
        lengthwise.sequences(table, values=values)
    call = str(whole.value).partition("table = ")[2].partition(".reset_index()")[0]
    assert steps_of(eval(call, {"table": table}).reset_index()) == STEPS


def test_the_form_of_sktime_is_asked_about() -> None:
    table = melted(id="case_id", t="reading_id", number="dim_id")[["case_id", "dim_id", "reading_id", "value"]]
    for rows in (table, table.sort_values(["case_id", "reading_id"])):
        with pytest.raises(ConfigurationError, match=r"index=\['case_id', 'reading_id'\], columns=\['dim_id'\]"):
            lengthwise.sequences(rows)


def test_several_columns_may_tell_the_values_apart_together() -> None:
    table = melted().drop(columns="number")
    table = pandas.concat([table.assign(place=place) for place in ("hand", "foot")])
    with pytest.raises(ConfigurationError, match=r"columns=\['kind', 'place'\]"):
        lengthwise.sequences(table)


def test_an_index_is_made_columns_before_the_pivot() -> None:
    with pytest.raises(ConfigurationError, match=r"table\.reset_index\(\)\.pivot"):
        lengthwise.sequences(melted().drop(columns="number").set_index(["id", "t"]))


def test_steps_of_one_time_that_no_column_tells_apart_stay_in_their_order() -> None:
    table = pandas.DataFrame({"id": [*"aaabb"], "t": [0, 0, 1, 0, 1], "x": [1.0, 2, 3, 4, 5], "on": [0, 1, 0, 0, 0]})
    assert steps_of(table)[0] == [[1, 0], [2, 1], [3, 0]]
    notes = table.assign(note=[*"pqrst"])
    assert steps_of(notes, values=["x"])[0] == [1, 2, 3]
    with pytest.raises(ConfigurationError, match="which comes first"):
        lengthwise.sequences(table.iloc[::-1])
    equal = table.assign(x=[1.0, 1, 3, 4, 5], on=0)
    assert steps_of(equal.iloc[::-1])[1] == [[1, 0], [1, 0], [3, 0]]


# Lists in cells.

LISTS = pandas.DataFrame(
    {"id": ["p", "q"], "a": [[1.0, 2.0], [3.0]], "b": [[5.0, 6.0], [7.0]], "label": ["up", "down"], "age": [40, 50]}
)
FORMS: list[Callable[[pandas.DataFrame], Any]] = [lambda table: table, polars.from_pandas, pa.Table.from_pandas]


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_a_column_of_lists_is_a_feature_and_a_row_a_sequence(form: Callable[[pandas.DataFrame], Any]) -> None:
    found = lengthwise.sequences(form(LISTS))
    assert [(one.id, one.steps.tolist(), one.label) for one in found] == [
        ("p", [[1, 5], [2, 6]], "up"),
        ("q", [[3, 7]], "down"),
    ]
    assert found.taken == "a row is a sequence: id 'id', label 'label', features 'a', 'b'; ignored: 'age'"
    assert found[0].names == ("a", "b")


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_one_column_of_lists_of_any_name_has_the_steps(form: Callable[[pandas.DataFrame], Any]) -> None:
    table = pandas.DataFrame({"rec": ["p", "q"], "signal": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], "who": ["u", "v"]})
    found = lengthwise.sequences(form(table), id="rec", label="who")
    assert [(one.id, one.steps.tolist(), one.label) for one in found] == [
        ("p", [[1, 2]], "u"),
        ("q", [[3, 4], [5, 6]], "v"),
    ]
    assert found[0].names is None
    assert [one.id for one in lengthwise.sequences(form(table))] == [None, None]
    flat = pandas.DataFrame({"signal": [[1.0, 2.0], [3.0]]})
    assert steps_of(form(flat)) == [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_a_list_of_times_orders_the_steps(form: Callable[[pandas.DataFrame], Any]) -> None:
    assert steps_of(form(LISTS.assign(t=[[1, 0], [0]])))[0] == [[2, 6], [1, 5]]
    dates = LISTS.assign(t=[["2024-01-02", "2024-01-01"], ["2024-01-01"]])
    assert steps_of(form(dates))[0] == [[2, 6], [1, 5]]
    assert lengthwise.sequences(form(LISTS.assign(time=[1, 2])))[0].steps.shape == (2, 2)


def test_nested_frames_of_sktime_are_sequences() -> None:
    cells = {"dim_0": [pandas.Series([1.0, 2.0]), pandas.Series([3.0])], "dim_1": [pandas.Series([4.0, 5.0]), [6.0]]}
    assert steps_of(pandas.DataFrame(cells)) == [[[1, 4], [2, 5]], [[3, 6]]]
    arrays = pandas.DataFrame({"x": [np.array([1.0, 2.0]), np.array([3.0])]})
    assert steps_of(arrays) == [[1, 2], [3]]


def test_labels_of_steps_may_be_lists_too() -> None:
    assert lengthwise.sequences(LISTS.assign(label=[["u", "v"], ["v"]])).labels == [["u", "v"], ["v"]]


def test_a_list_of_times_orders_the_labels_of_steps_too() -> None:
    lists = pandas.DataFrame({"t": [[1, 0], [0, 1]], "label": [["u", "v"], ["v", "v"]], "x": [[1.5, 0.5], [2.0, 3.0]]})
    found = lengthwise.sequences(lists)
    assert [one.steps.tolist() for one in found] == [[0.5, 1.5], [2.0, 3.0]]
    assert found.labels == [["v", "u"], ["v", "v"]]


@pytest.mark.parametrize("form", [pandas.DataFrame, polars.DataFrame, pa.table])
def test_lists_of_one_label_each_are_its_label(form: Callable[[Any], Any]) -> None:
    lists = {"id": ["a", "b"], "x": [[0.5, 1.5], [2.0]], "label": [["u", "u"], ["v"]]}
    assert lengthwise.sequences(form(lists)).labels == ["u", "v"]
    assert lengthwise.sequences(form(lists | {"label": [["u", "v"], ["v"]]})).labels == [["u", "v"], ["v"]]


@pytest.mark.parametrize("form", [pandas.DataFrame, polars.DataFrame, pa.table])
def test_a_column_with_lists_of_words_may_be_the_label(form: Callable[[Any], Any]) -> None:
    lists = form({"id": ["a", "b"], "x": [[0.5, 1.5], [2.0]], "way": [["u", "u"], ["v"]]})
    with pytest.raises(ConfigurationError, match=r"the column 'way' holds 'u', .* say label='way'"):
        lengthwise.sequences(lists)
    assert lengthwise.sequences(lists, label="way").labels == ["u", "v"]


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_lists_of_different_lengths_name_their_row(form: Callable[[pandas.DataFrame], Any]) -> None:
    with pytest.raises(InvalidSequences, match="sequence 1: 'b' has 2 values in its list, and 'a' 1") as told:
        lengthwise.sequences(form(LISTS.assign(b=[[5.0, 6.0], [7.0, 8.0]])))
    assert told.value.indices == (1,)


ODD = [
    *(None, "x", {"a": 1}, [], ["a"], [None], [[1], [1, 2]], 5, float("nan"), pandas.NaT, pandas.NA, np.array("a")),
    *(b"x", [{"a": 1}], [True], True, decimal.Decimal(1), datetime.time(9), (1, 2), {1}, object, 1 << 70, [1 << 70]),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("column", ["id", "t", "x", "label", "a"])
def test_no_cell_is_a_bug(odd: Any, column: str) -> None:
    table = pandas.DataFrame({"id": [*"ppq"], "t": [0, 1, 2], "x": [1.0, 2.0, 3.0], "label": [*"uuv"]}, dtype=object)
    lists = pandas.DataFrame({"id": [*"pqr"], "a": [[1.0], [2.0], [3.0]], "label": [*"uuv"]}, dtype=object)
    for given in (table, lists):
        if column in given:
            cells = pandas.Series([given[column][0], None, given[column][2]], dtype=object)
            cells.iat[1] = odd
            with contextlib.suppress(ConfigurationError, InvalidSequences):  # any other exception is a bug
                lengthwise.sequences(given.assign(**{column: cells}))


# A row for each sequence.

WIDE = pandas.DataFrame(
    {"who": [*"pq"], "kind": ["u", "v"], "x0": [1.0, 4.0], "x1": [2.0, np.nan], "x2": [3.0, np.nan]}
)


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_a_column_for_each_step_is_said_or_named_as_times(form: Callable[[pandas.DataFrame], Any]) -> None:
    found = lengthwise.sequences(form(WIDE), id="who", label="kind", row="sequence")
    assert [(one.id, one.steps.tolist(), one.label) for one in found] == [("p", [1, 2, 3], "u"), ("q", [4], "v")]
    assert "a row is a sequence" in found.taken
    timed = WIDE.rename(columns={"who": "id", "kind": "label", "x0": "t0", "x1": "t1", "x2": "t2"})
    assert steps_of(form(timed)) == [[1, 2, 3], [4]]
    assert steps_of(form(timed.drop(columns="id"))) == [[1, 2, 3], [4]]
    other = WIDE.rename(columns={"who": "id", "kind": "label", "x0": "0", "x1": "1", "x2": "2"})
    assert steps_of(form(other)) == [[1, 2, 3], [4]]
    assert lengthwise.sequences(form(other))[0].names is None
    inside = timed.assign(t1=[np.nan, 5.0])
    assert np.isnan(steps_of(form(inside))[0][1])
    assert steps_of(form(inside))[1] == [4, 5]


def test_a_table_that_may_have_a_row_for_each_sequence_is_asked_about() -> None:
    with pytest.raises(ConfigurationError, match="row=sequence"):
        lengthwise.sequences(WIDE)
    counted = WIDE.rename(columns={"who": "id", "kind": "label"}).assign(id=[1, 2])
    with pytest.raises(ConfigurationError, match="row=sequence"):
        lengthwise.sequences(counted)
    with pytest.raises(ConfigurationError, match="row=sequence"):
        lengthwise.sequences(WIDE.rename(columns={"who": "id"}).drop(columns="kind"))
    steps = pandas.DataFrame({"id": [*"ppq"], "t0": [1.0, 2, 3], "t1": [1.0, 2, 3], "t2": [1.0, 2, 3]})
    assert lengthwise.sequences(steps, row="step")[0].steps.shape == (2, 3)


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "polars", "arrow"])
def test_features_that_are_named_as_numbered_times_are_features_of_steps(
    form: Callable[[pandas.DataFrame], Any],
) -> None:
    sensors = pandas.DataFrame({"id": [*"aab"], "t1": [1.0, 2, 3], "t2": [4.0, 5, 6], "t3": [7.0, 8, 9]})
    assert steps_of(form(sensors)) == [[[1, 4, 7], [2, 5, 8]], [[3, 6, 9]]]
    timed = sensors.assign(id=[*"abc"], time=0, label="u")
    assert steps_of(form(timed), id="id") == [[[1, 4, 7]], [[2, 5, 8]], [[3, 6, 9]]]
    with pytest.raises(ConfigurationError, match="no column names the sequence"):
        lengthwise.sequences(form(sensors.drop(columns="id")))


@pytest.mark.parametrize("names", [("t2", "t10", "t1"), ("x_9", "x_11", "x_1"), ("0.5", "1.5", "0")])
def test_columns_for_steps_are_in_the_order_of_their_numbers(names: tuple[str, ...]) -> None:
    cells = {"id": [*"ab"], names[0]: [2.0, 5], names[1]: [3.0, 6], names[2]: [1.0, 4], "label": [*"uv"]}
    table = pandas.DataFrame(cells)
    assert steps_of(table) == steps_of(table, row="sequence") == [[1, 2, 3], [4, 5, 6]]
    assert steps_of(table, row="sequence", values=names) == [[2, 3, 1], [5, 6, 4]]


@pytest.mark.parametrize("row", [None, "sequence"], ids=["found", "said"])
def test_a_column_that_is_no_time_is_no_step_where_others_are(row: Any) -> None:
    cells = {"id": [*"ab"], "t0": [1.0, 4], "t1": [2.0, 5], "t2": [3.0, 6], "age": [40, 50], "site": [*"no"]}
    found = lengthwise.sequences(pandas.DataFrame(cells), row=row)
    assert [one.steps.tolist() for one in found] == [[1, 2, 3], [4, 5, 6]]
    assert found.taken.endswith("ignored: 'age', 'site'")


def test_columns_for_steps_of_several_features_are_not_taken_as_one() -> None:
    cells = {"ax_0": [1.0, 2], "ax_1": [3.0, 4], "ay_0": [5.0, 6], "ay_1": [7.0, 8]}
    table = pandas.DataFrame({"id": [*"ab"], **cells, "label": [*"uv"]})
    with pytest.raises(ConfigurationError, match="several names: 'ax', 'ay'") as error:
        lengthwise.sequences(table)
    advice = str(error.value).split("In pandas, ")[1].split(" makes")[0]
    assert steps_of(eval(advice, {"pandas": pandas, "table": table})) == [[[1, 5], [3, 7]], [[2, 6], [4, 8]]]


def test_a_row_without_its_list_of_times_is_named() -> None:
    table = pandas.DataFrame({"id": [*"ab"], "time": [None, [1, 0]], "x": [[1.0, 2.0], [3.0, 4.0]]})
    with pytest.raises(InvalidSequences, match="'time' holds 'None', and lists in other rows"):
        lengthwise.sequences(table)


def test_a_feature_of_a_model_is_no_key_of_a_list() -> None:
    names = ColumnNames(inputs=("age", "x"))
    frames = [pandas.DataFrame({"age": [40 + place] * 2, "x": [0.5, 1.5]}) for place in range(6)]
    assert [one.steps.shape for one in sequences_of(frames, columns=names)] == [(2, 2)] * 6
    assert [one.steps.shape for one in sequences_of(frames)] == [(2,)] * 6


def test_a_question_about_columns_names_the_function_that_names_them() -> None:
    with pytest.raises(ConfigurationError, match=r'lengthwise\.sequences\(table, id="trip"'):
        lengthwise.sequences(pandas.DataFrame({"trip": [1, 1], "x": [0.5, 1.5]}))


@pytest.mark.parametrize("path", ["data.csv", Path("data.csv")], ids=["text", "path"])
def test_the_path_of_a_file_is_told_how_to_read_it(path: Any) -> None:
    with pytest.raises(InvalidSequences, match=r"pandas\.read_csv\(FILE\), or use lengthwise train"):
        lengthwise.sequences(path)


def test_times_with_and_without_a_zone_are_not_compared() -> None:
    table = pandas.DataFrame({"id": [*"aa"], "t": ["2024-01-01T00:00Z", "2024-01-01T01:00"], "x": [1.0, 2.0]})
    with pytest.raises(ConfigurationError, match=r"'2024-01-01T01:00' in the column 't' \(row 1\) has no time zone"):
        lengthwise.sequences(table)


def test_words_are_told_to_need_a_tokenizer() -> None:
    with pytest.raises(InvalidSequences, match="a tokenizer"):
        lengthwise.sequences([["the", "cat"], ["a"]])


def test_a_row_for_each_value_without_a_time_is_asked_about() -> None:
    rows = [(s, moment, dim, moment + dim / 10) for s in "ab" for moment in range(4 + (s == "b")) for dim in range(3)]
    table = pandas.DataFrame(rows, columns=["id", "elapsed", "dim", "value"])
    for melted in (table, table.drop(columns="elapsed")):
        with pytest.raises(ConfigurationError, match="'dim' has each of its values equally often in every sequence"):
            lengthwise.sequences(melted)
    with pytest.raises(ConfigurationError, match="pivot"):
        lengthwise.sequences(table, time="elapsed")
    assert len(lengthwise.sequences(table, values=["dim", "value"])) == 2
    table["dim"] = (table.index % 5 == 0) * 1  # a feature, which is not regular
    assert len(lengthwise.sequences(table)) == 2


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        polars.from_pandas,
        pa.Table.from_pandas,
        lambda table: table.astype({"id": object}),
        lambda table: pandas.DataFrame({"id": [1.0, 2.0], "steps": [[[5.0], [6.0]], [[7.0]]]}),
        lambda table: table.groupby("id"),
        lambda table: {1.0: [[5.0], [6.0]], 2.0: [[7.0]]},
    ],
    ids=["pandas", "polars", "arrow", "objects", "lists in cells", "groups", "mapping"],
)
def test_ids_that_pandas_made_floats_are_whole_numbers(form: Callable[[Any], Any]) -> None:
    table = pandas.DataFrame({"id": [1.0, 1.0, 2.0], "x": [5.0, 6.0, 7.0]})
    assert [one.id for one in lengthwise.sequences(form(table))] == ["1", "2"]


def test_ids_that_were_floats_are_said_and_fractions_stay(caplog: pytest.LogCaptureFixture) -> None:
    table = pandas.DataFrame({"id": [1.0, 1.0, 2.5], "x": [5.0, 6.0, 7.0]})
    found = lengthwise.sequences(table)
    assert [one.id for one in found] == ["1", "2.5"]
    assert found.taken == "id 'id', feature 'x'; ids such as 1.0 are read as 1"
    assert caplog.messages == ["the ids in the column 'id' are whole numbers that became floats: 1.0 is read as 1"]
    assert [one.id for one in lengthwise.sequences(table.astype({"id": str}))] == ["1.0", "2.5"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("names", [{}, {"values": "value"}], ids=["open", "named"])
@pytest.mark.parametrize("column", ["kind", "variable", "parameter", "channel_id", "sensor_name"])
@pytest.mark.parametrize("order", [["id", "t"], ["kind", "t"]], ids=["by step", "by channel"])
@pytest.mark.parametrize("form", [lambda table: table, polars.from_pandas], ids=["pandas", "polars"])
def test_names_and_values_without_times_are_asked_about_with_the_pivot(
    form: Callable[[pandas.DataFrame], Any], order: list[str], column: str, names: dict[str, str]
) -> None:
    table = melted().sort_values(order, kind="stable").drop(columns=["t", "number"]).assign(label="up")
    table = table.rename(columns={"kind": column})
    with pytest.raises(ConfigurationError) as told:
        lengthwise.sequences(form(table), **names)
    call = str(told.value).partition("table = ")[2].partition(".reset_index()")[0]
    assert steps_of(eval(call, {"table": table}).reset_index()) == STEPS
    coded = table.assign(**{column: (table[column] == "y") * 1})
    if column != "kind" and not names:
        with pytest.raises(ConfigurationError, match=r"cumcount\(\)\)\.pivot"):
            lengthwise.sequences(form(coded))


@pytest.mark.parametrize(
    "time", [{}, {"hour": ["00:10", "00:10", "24:05", "30:00", "00:10", "31:00"]}], ids=["", "times"]
)
@pytest.mark.parametrize("column", ["Parameter", "what"])
def test_names_that_are_there_unequally_often_are_asked_about(column: str, time: dict[str, list[str]]) -> None:
    cells = {"id": [*"aaaabb"], column: ["HR", "Temp", "HR", "HR", "HR", "Temp"], "Value": [80, 36, 77, 60, 80, 37]}
    table = pandas.DataFrame({**cells, **time}).rename(columns={"hour": "time"})
    with pytest.raises(ConfigurationError, match=rf"columns=\['{column}'\], values='Value'\)"):
        lengthwise.sequences(table)


def test_a_device_of_a_whole_sequence_names_no_channel() -> None:
    table = pandas.DataFrame({"id": [*"aabb"], "t": [0, 1, 0, 1], "sensor": [*"ppqq"], "x": [1.0, 2, 3, 4]})
    assert [one.steps.tolist() for one in lengthwise.sequences(table, values="x")] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("column", ["kind", "signal", "sensor", "note"])
@pytest.mark.parametrize("times", [True, False], ids=["times", "no times"])
def test_beside_several_named_features_a_text_column_is_left_out(column: str, *, times: bool) -> None:
    table = pandas.DataFrame(
        {"id": [*"aabb"], "t": [0, 1, 0, 1], "x": [1.0, 2, 3, 4], "y": [5.0, 6, 7, 8], column: ["walk", "run"] * 2}
    )
    table = table if times else table.drop(columns="t")
    assert steps_of(table, values=["x", "y"]) == [[[1, 5], [2, 6]], [[3, 7], [4, 8]]]
    published = sequences_of(table, columns=ColumnNames(inputs=("y", "x")))
    assert published[0].steps.tolist() == [[5, 1], [6, 2]]
    doubled = pandas.concat([table.assign(t=0), table.assign(t=0)])
    with pytest.raises(ConfigurationError, match="is a row one value of a step"):
        lengthwise.sequences(table.assign(t=0), values=["x", "y"])
    assert len(lengthwise.sequences(doubled, values=["x", "y"])) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("label_0", "label_1"),
        ("target_a", "target_b"),
        ("label", "label_2"),
        ("label1", "label2"),
        ("label", "fine_label"),
    ],
)
def test_several_columns_of_labels_are_no_features(names: tuple[str, str], tmp_path: Path) -> None:
    table = pandas.DataFrame(
        {"id": [*"aab"], "t": [0, 1, 0], "x": [0.5, 1, 2], names[0]: [0, 0, 1], names[1]: [1, 1, 0]}
    )
    for form in (table, polars.from_pandas(table), pa.Table.from_pandas(table), table.groupby("id")):
        with pytest.raises((ConfigurationError, InvalidSequences), match=rf"'{names[1]}'.*task = \"multi-label\""):
            lengthwise.sequences(form)
    columns = ["x", names[1]]
    assert lengthwise.sequences(table, values=columns, label=names[0])[0].steps.tolist() == [[0.5, 1], [1, 1]]
    assert sequences_of(table, columns=ColumnNames(inputs=("x", names[1])))[0].names == ("x", names[1])


@pytest.mark.parametrize("name", ["target_temp", "class_size", "category_count", "target1", "high_label"])
def test_measured_values_are_features_whatever_their_name(name: str) -> None:
    table = pandas.DataFrame({"id": [*"aab"], "t": [0, 1, 0], "v": [0.5, 1, 2], name: [20.5, 21, 22.25]})
    for form in (table, polars.from_pandas(table), pa.Table.from_pandas(table)):
        assert steps_of(form) == [[[0.5, 20.5], [1, 21]], [[2, 22.25]]]
    for cells in (["hot", "hot", "cold"], [1, 1, 0]):
        with pytest.raises(ConfigurationError, match=f"{name}.* may be labels"):
            lengthwise.sequences(table.assign(**{name: cells}))


# Tensors of Arrow.

TENSORS = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def tensors(array: np.ndarray = TENSORS) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def permuted() -> Any:
    """The same sequences, whose features stand before the steps in memory."""
    storage = pa.FixedSizeListArray.from_arrays(pa.array(TENSORS.transpose(0, 2, 1).ravel()), 6)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0]), storage)


def of_ray(kind: str, shape: str, cells: Any) -> Any:
    """A column as Parquet has it that Ray wrote, where Ray is not imported."""
    written = {"ARROW:extension:name": f"ray.data.{kind}", "ARROW:extension:metadata": shape}
    return pa.table([cells], schema=pa.schema([pa.field("steps", cells.type, metadata=written)]))


RAGGED = pa.struct([("data", pa.list_(pa.float32())), ("shape", pa.list_(pa.int64()))])


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"steps": tensors()}),
        pa.table({"steps": permuted()}),
        pa.table({"steps": pa.chunked_array([tensors(TENSORS[:1]), tensors(TENSORS[1:])])}),
        pa.table({"steps": tensors(np.concatenate([TENSORS[:1], TENSORS]))}).slice(1),
        pa.table({"steps": pa.ListArray.from_arrays([0, 3, 6], tensors(TENSORS.reshape(6, 2)))}),
        of_ray("arrow_tensor", "[3, 2]", pa.array(TENSORS.reshape(2, 6).tolist(), pa.list_(pa.float32()))),
        of_ray("arrow_tensor_v2", "[3, 2]", pa.array(TENSORS.reshape(2, 6).tolist(), pa.large_list(pa.float32()))),
    ],
    ids=["plain", "permuted", "chunks", "slice", "in lists", "ray", "ray 2"],
)
def test_tensors_of_arrow_keep_their_shape(table: Any, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table, path := tmp_path / "d.parquet")
    assert [one.steps.tolist() for one in dataset.read(path)] == TENSORS.tolist()
    for form in (table, polars.from_arrow(table)):
        assert steps_of(form) == TENSORS.tolist()
    assert [np.array(cell).tolist() for cell in cells_of(table, "steps")] == TENSORS.tolist()


def test_tensors_of_arrow_are_refused_as_arrays_of_their_shape(tmp_path: Path) -> None:
    for array in (np.ones((2, 3, 2, 2)), np.ones((2, 2, 3, 1))):
        with pytest.raises(InvalidSequences) as of_arrays:
            lengthwise.sequences([*array])
        with pytest.raises(InvalidSequences) as of_tensors:
            lengthwise.sequences(pa.table({"steps": tensors(array)}))
        assert str(of_tensors.value) == str(of_arrays.value)
        pyarrow.parquet.write_table(pa.table({"steps": tensors(array)}), path := tmp_path / "d.parquet")
        with pytest.raises(ConfigurationError, match=r"row 1: the shape must be \[length, features\] or \[length\]"):
            [*dataset.read(path)]


@pytest.mark.parametrize(
    "table",
    [
        of_ray("arrow_variable_shaped_tensor", "2", pa.array([{"data": [1.0, 2.0], "shape": [1, 2]}], RAGGED)),
        of_ray("arrow_tensor", "no JSON", pa.array([[1.0, 2.0]], pa.list_(pa.float32()))),
        of_ray("arrow_tensor", "[3, 2]", pa.array([[1.0, 2.0]], pa.list_(pa.float32()))),
    ],
    ids=["ragged", "pickled", "other"],
)
def test_tensors_without_a_known_shape_are_named(table: Any, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table, path := tmp_path / "d.parquet")
    for read in (lambda: [*dataset.read(path)], lambda: lengthwise.sequences(table), lambda: cells_of(table, "steps")):
        with pytest.raises(ConfigurationError, match=r"'steps' has Arrow's extension type ray\.data\.arrow_"):
            read()


def test_a_tensor_that_is_null_is_missing() -> None:
    storage = pa.array([[1.0, 2.0, 3.0, 4.0], None, [5.0, None, 7.0, 8.0]], pa.list_(pa.float32(), 4))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2, 2]), storage)
    first, second, third = cells_of(pa.table({"steps": column}), "steps")
    assert (first.tolist(), second) == ([[1, 2], [3, 4]], None)
    np.testing.assert_array_equal(third, [[5, np.nan], [7, 8]])
