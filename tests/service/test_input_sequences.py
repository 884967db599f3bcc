"""The forms of sequences: the same data in every form are the same arrays, and get the same answers everywhere."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.score import ScoringRun
from lengthwise.datasets import arrays, dataset
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.scoring.opened import OpenModel
from lengthwise.scoring.prediction_file import PredictionFile
from tests.support import numpy_models
from tests.support.numpy_models import manifest, model, serving

Data = dict[str, tuple[np.ndarray, str]]
"""The steps and the label of each id."""

NESTED = polars.List(polars.List(polars.Float64))
numbers = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.integers(-9, 9).map(float))


@st.composite
def data(draw: st.DrawFn) -> tuple[Data, list[int]]:
    """Labelled sequences of one number of features, and an order of the rows of their table."""
    features = draw(st.integers(1, 3))
    names = draw(st.lists(st.sampled_from(["a", "b", "07", "7", "x y", "é"]), min_size=2, max_size=4, unique=True))
    found: Data = {}
    for name in names:
        steps = draw(st.lists(st.lists(numbers, min_size=features, max_size=features), min_size=2, max_size=5))
        found[name] = (np.array(steps, dtype=np.float64).astype(np.float32), draw(st.sampled_from(["up", "down"])))
    rows = sum(len(steps) for steps, _ in found.values())
    return found, draw(st.permutations(range(rows)))


@pytest.mark.parametrize(
    "steps",
    [
        [[1, 2], [3, 4], [5, 6, 7]],
        [(1, 2), (3, 4), np.zeros(3)],
        np.array([np.zeros(2), np.zeros(2), np.zeros(3)], dtype=object),
    ],
)
def test_steps_of_different_sizes_are_named_with_their_sizes(steps: Any) -> None:
    with pytest.raises(InvalidSequences) as told:
        arrays.items([steps], manifest())
    reason = "its steps have different numbers of features: step 2 has 3, step 0 has 2"
    assert str(told.value) == f"sequence 0: {reason}"


def long_table(found: Data) -> pandas.DataFrame:
    """A row for each step, in order."""
    parts = []
    for name, (steps, label) in found.items():
        part = pandas.DataFrame(steps, columns=[f"f{place}" for place in range(steps.shape[1])])
        part.insert(0, "id", name)
        part.insert(1, "t", range(len(steps)))
        parts.append(part.assign(label=label))
    return pandas.concat(parts, ignore_index=True)


def in_memory(found: Data) -> dict[str, Any]:
    """The data in every form that Python functions take, with the ids in their order."""
    whole = [steps for steps, _ in found.values()]
    ragged = np.empty(len(whole), dtype=object)
    ragged[:] = whole
    table = long_table(found)
    lists = [[[None if np.isnan(value) else float(value) for value in step] for step in steps] for steps in whole]
    fields = ["id", "t", "label", *(name for name in table if name.startswith("f"))]
    frame = polars.from_pandas(table)
    column = pa.array(lists, pa.list_(pa.list_(pa.float32())))
    features = len(whole[0][0])
    return {
        "list": whole,
        "double": [steps.astype(np.float64) for steps in whole],
        "generator": (steps for steps in whole),
        "ragged": ragged,
        "series": pandas.Series(whole),
        "lists": lists,
        "mapping": {name: steps for name, (steps, _) in found.items()},
        "objects": [{"id": name, "steps": steps, "label": label} for name, (steps, label) in found.items()],
        "pandas": table,
        "columns in another order": table[fields],
        "index": table.set_index(["id", "t"]),
        "frames": [rows.drop(columns="id") for _, rows in table.groupby("id", sort=False)],
        "groups": table.groupby("id", sort=False),
        "groups of some columns": table.groupby("id", sort=False)[[name for name in table if name.startswith("f")]],
        "groups of groups": table.groupby(["id"], sort=False),
        "polars": frame,
        "polars groups": frame.group_by("id", maintain_order=True),
        "polars parts": frame.partition_by("id", as_dict=True),
        "polars lists": polars.DataFrame({"id": [*found], "steps": polars.Series(lists, dtype=NESTED)}),
        "arrow": pa.Table.from_pandas(table),
        "arrow lists": pa.table({"id": [*found], "steps": column}),
        "list column": column.cast(pa.large_list(pa.list_(pa.float64()))),
        "list column of fixed steps": column.cast(pa.list_(pa.list_(pa.float32(), features))),
        "chunks": pa.chunked_array([column[:1], column[1:]]),
        "slice": pa.concat_arrays([column, column])[len(whole) :],
        "batch": pa.RecordBatch.from_arrays([column], names=["steps"]),
    }


def bits(steps: np.ndarray) -> tuple[Any, ...]:
    whole = steps[:, None] if steps.ndim == 1 else steps
    return whole.shape, np.where(np.isnan(whole), np.float32(np.nan), whole.astype(np.float32)).tobytes()


@given(data())
def test_every_form_of_the_same_data_is_the_same_arrays(drawn: tuple[Data, list[int]]) -> None:
    found, order = drawn
    expected = [bits(steps) for steps, _ in found.values()]
    for name, form in in_memory(found).items():
        read = lengthwise.sequences(form)
        assert [bits(one.steps) for one in read] == expected, name
        if read[0].id is not None:
            assert [one.id for one in read] == [*found], name
    table = long_table(found).iloc[order]
    for form in (table, polars.from_pandas(table), pa.Table.from_pandas(table), table.sample(frac=1, random_state=0)):
        check(lengthwise.sequences(form), found)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data())
def test_every_file_of_the_same_data_is_the_same_records(tmp_path: Path, drawn: tuple[Data, list[int]]) -> None:
    found, order = drawn
    table = long_table(found).iloc[order]
    for separator in ",;\t":
        table.to_csv(tmp_path / "a.csv", sep=separator, index=False)
        check(dataset.read(tmp_path / "a.csv"), found)
    table.to_csv(tmp_path / "b.csv.gz", index=True)
    check(dataset.read(tmp_path / "b.csv.gz"), found)
    table.to_parquet(tmp_path / "c.parquet")
    check(dataset.read(tmp_path / "c.parquet"), found)
    renamed = table.rename(columns={"id": "run", "t": "when", "label": "state"})
    renamed.to_csv(tmp_path / "d.csv", index=False)
    columns = dataset.ColumnNames("run", "when", "state", tuple(name for name in table if name.startswith("f")))
    check(dataset.read(tmp_path / "d.csv", reading=dataset.Reading(columns)), found)


@pytest.mark.parametrize("time", ["x", "2024-01-01", "", None])
def test_a_time_that_is_none_or_a_file_without_ids_is_told_by_itself(tmp_path: Path, time: str | None) -> None:
    path = tmp_path / "d.csv"
    path.write_text("t,v\n0,1\n" if time is None else f"id,t,v\na,0,1\na,{time},1\na,2,1\n")
    told = "or give a single sequence a column id with one value" if time is None else repr(time)
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        list(dataset.read(path))


def check(read: Iterable[Any], found: Data) -> None:
    assert {one.id: (bits(one.steps), one.label) for one in read} == {
        name: (bits(steps), label) for name, (steps, label) in found.items()
    }


async def test_every_form_gets_the_same_answers_from_a_model_a_server_and_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found: Data = {
        name: (random.normal(size=(length, 2)).astype(np.float32), "b")
        for name, length in zip("pqr", (3, 7, 2), strict=True)
    }
    described = manifest()
    here = lengthwise.Model(OpenModel(model(described), BatchLimits(), 1))
    expected = [one.probabilities.tobytes() for one in here.predict([steps for steps, _ in found.values()])]
    async with serving(model(described)) as service:
        transport = httpx2.ASGITransport(service.app)
        async with lengthwise.AsyncClient("http://service", transport=transport) as client:
            for (name, form), again in zip(in_memory(found).items(), in_memory(found).values(), strict=True):
                answered, served = here.predict(form), await client.predict(again)
                assert [one.probabilities.tobytes() for one in answered] == expected, name
                assert [one.probabilities.tobytes() for one in served] == expected, name
                assert [one.id for one in answered] == [one.id for one in served], name
            channels = np.stack([steps[:2].T for steps, _ in found.values()])
            for one in (
                here.predict(channels, layout="channels-first"),
                await client.predict(channels, layout="channels-first"),
            ):
                assert [each.length for each in one] == [2, 2, 2]
    long_table(found).to_csv(tmp_path / "d.csv", index=False)
    run = ScoringRun(OpenModel(numpy_models.model(described), BatchLimits(), 1), attention=False, stop=True)
    with PredictionFile(tmp_path / "out.jsonl", resume=False, exact=True) as scored:
        run.score(tmp_path / "d.csv", scored, Console(quiet=True), resume=False)
    lines = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [line["id"] for line in lines] == [*found]
    assert [np.float32(line["probabilities"]).tobytes() for line in lines] == expected


def test_tokens_are_lists_arrays_columns_and_groups_of_whole_numbers() -> None:
    frame = pandas.DataFrame({"of": [1, 1, 2], "token": [1, 9, 0]})
    for form in (
        *([[1, 9], [0]], [np.int8([1, 9]), np.int8([0])], [np.uint64([1, 9]), np.uint64([0])], pa.array([[1, 9], [0]])),
        *(frame.groupby("of"), frame.astype({"token": np.uint64}).groupby("of")),
    ):
        items = arrays.items(form, manifest(vocabulary=10))
        assert [(item.steps.dtype, item.steps.tolist()) for item in items] == [(np.int64, [1, 9]), (np.int64, [0])]


# What is doubtful is asked.


@pytest.mark.parametrize(
    "doubtful",
    [
        *(np.ones((10, 1), dtype=int), np.zeros((10, 1)), np.zeros((10, 1)).tolist(), [*np.zeros((10, 1))]),
        *(np.zeros(10), [0.1, 0.2], np.float32(1)),
    ],
    ids=["whole numbers", "array", "lists", "arrays of one", "flat", "numbers", "number"],
)
def test_numbers_that_may_be_one_sequence_or_many_are_asked_about(doubtful: Any) -> None:
    one_feature = lengthwise.Model(OpenModel(model(manifest(features=1)), BatchLimits(), 1))
    with pytest.raises(InvalidSequences):
        one_feature.predict(doubtful)
    with pytest.raises(InvalidSequences):
        lengthwise.sequences(doubtful)


def test_both_readings_of_such_numbers_can_be_said() -> None:
    one_feature = lengthwise.Model(OpenModel(model(manifest(features=1)), BatchLimits(), 1))
    given = np.arange(10.0)[:, None]
    assert [one.length for one in one_feature.predict([given])] == [10]
    assert [one.length for one in one_feature.predict(given.reshape(-1, 1, 1))] == [1] * 10
    assert [one.length for one in one_feature.predict(given.reshape(2, 5))] == [5, 5]
    assert [one.length for one in one_feature.predict(np.ones((1, 1)))] == [1]


def test_transposed_input_is_named_where_the_other_axis_fits() -> None:
    two_features = lengthwise.Model(OpenModel(model(manifest()), BatchLimits(), 1))
    for features, turned in ((2, True), (3, False)):
        with pytest.raises(InvalidSequences) as told:
            two_features.predict([np.zeros((features, 19))])
        assert ("transposed? (in Python: layout" in str(told.value)) == turned
    assert two_features.predict([np.zeros((2, 19))], layout="channels-first")[0].length == 19


TABLE = pandas.DataFrame({"id": ["a", "a", "b"], "t": [1, 0, 0], "v": [0.1, 0.2, 0.3], "label": ["x", "x", "y"]})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda table: table.drop(columns="id"), ["'t'", "'v'"]),
        (lambda table: table.assign(case=1), ["'id'", "'case'"]),
        (lambda table: table.assign(time=1), ["'t'", "'time'"]),
        (lambda table: table.assign(id=[1, 2, 3]), ["'id'"]),
        (lambda table: table.assign(id=["a", None, "b"]), ["row 1", "'id'"]),
        (lambda table: table.assign(v=["a", "b", "c"]), ["'v'"]),
        (lambda table: table.assign(v=pandas.to_datetime(["2024-01-01"] * 3)), ["'v'"]),
        (lambda table: table.drop(columns="v"), ["'id'"]),
        (lambda table: table.assign(t=[1, 1, 0], id="a"), ["'t'"]),
        (lambda table: table.assign(t=["noon", "later", "x"]), ["'t'"]),
        (lambda table: table.assign(label=[0.5, 0.5, 1.5]), ["'label'"]),
        (lambda table: table.iloc[:0], []),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_asked_about(
    change: Callable[[pandas.DataFrame], pandas.DataFrame], names: list[str]
) -> None:
    for form in (change(TABLE), polars.from_pandas(change(TABLE)), pa.Table.from_pandas(change(TABLE))):
        with pytest.raises(ConfigurationError) as told:
            lengthwise.sequences(form)
        assert all(name in str(told.value) for name in names)


def test_columns_are_found_or_named_and_said() -> None:
    found = lengthwise.sequences(TABLE.rename(columns={"id": "Recording", "t": "Timestamp"}))
    assert found.taken == "id 'Recording', time 'Timestamp', label 'label', feature 'v'"
    assert found.labels == ["x", "y"]
    named = lengthwise.sequences(TABLE.assign(w=1.0, note="n"), id="label", time="t", values=["w", "v"])
    assert [one.id for one in named] == ["x", "y"]
    assert named[0].steps.tolist() == np.float32([[1, 0.2], [1, 0.1]]).tolist()
    assert "ignored: 'id', 'note'" in named.taken
    dates = TABLE.assign(t=["2024-01-02", "2024-01-01T05:00", "2024-01-01"])
    assert lengthwise.sequences(dates)[0].steps.tolist() == np.float32([0.2, 0.1]).tolist()
    durations = TABLE.assign(t=pandas.to_timedelta(TABLE["t"], unit="h"))
    for timed in (durations, polars.from_pandas(durations), pa.Table.from_pandas(durations)):
        assert lengthwise.sequences(timed)[0].steps.tolist() == np.float32([0.2, 0.1]).tolist()
    assert lengthwise.sequences(TABLE.assign(label=["x", None, "y"])).labels == ["x", "y"]
    written = TABLE.reset_index(names="Unnamed: 0")
    assert "'Unnamed: 0'" in lengthwise.sequences(written).taken.partition("ignored")[2]
    steps = TABLE.assign(label=["x", "y", "y"])
    assert lengthwise.sequences(steps).labels == [["y", "x"], ["y"]]


def test_the_columns_of_the_groups_are_no_features() -> None:
    table = pandas.DataFrame({"run": [1, 1, 2], "v": [1, 1, 7], "w": [5, 6, 7]})
    frame = polars.from_pandas(table)
    expected = [[[1, 5], [1, 6]], [[7, 7]]]
    for form in (
        table.groupby("run"),
        frame.group_by("run", maintain_order=True),
        frame.group_by(polars.col("run"), maintain_order=True),
        frame.partition_by("run", as_dict=True),
        {1: table[:2], 2: table[2:]},
    ):
        assert [one.steps.tolist() for one in lengthwise.sequences(form)] == expected


def test_a_table_of_sequences_in_lists_is_read_by_rows() -> None:
    frame = pandas.DataFrame({"id": ["p", "q"], "steps": [[[1.0, 2.0]], np.ones((3, 2))], "note": "n", "label": [0, 1]})
    found = lengthwise.sequences(frame)
    assert [(one.id, one.steps.shape, one.label) for one in found] == [("p", (1, 2), 0), ("q", (3, 2), 1)]


@pytest.mark.parametrize(
    "given",
    [
        *("text", 5, {"steps": [[1, 2]]}, pandas.DataFrame({"a": [1]}), polars.DataFrame({"a": [1]}).lazy()),
        *(pa.array([1, 2]), pa.scalar(1), pa.scalar([1.0]), pa.table({"other": [1]})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_sequences_is_said(given: Any) -> None:
    with pytest.raises((ConfigurationError, InvalidSequences)):
        lengthwise.sequences(given)


@pytest.mark.parametrize(
    "one",
    [
        *(None, "text", [["a", "b"]], [[1, 2], [3]], np.zeros((1, 2, 3)), np.array([[1.0, np.inf]]), {"steps": None}),
        *(np.array([[1.0, 1.0], [1e39, 1.0]]), {"id": 5.0, "steps": [[1, 2]]}, {"id": "\ud800", "steps": [[1, 2]]}),
        *({"step": [[1, 2]]}, {"id": "a"}, {"steps": [[1, 2]], "step_mask": [1]}),
        pandas.DataFrame({"a": ["x"], "b": [1]}),
    ],
    ids=str,
)
def test_a_sequence_without_numbers_is_named(one: Any) -> None:
    with pytest.raises(InvalidSequences) as error:
        lengthwise.sequences([[[1, 2]], one])
    assert error.value.indices == (1,)
    with pytest.raises(InvalidSequences) as error:
        lengthwise.sequences(pa.array([[[1.0, 2.0]], None]))
    assert error.value.indices == (1,)


@pytest.mark.long
@pytest.mark.process
def test_no_package_of_tables_is_imported() -> None:
    code = (
        "import lengthwise, sys; lengthwise.sequences([[[1.0]]]); lengthwise.sequences({'a': [1.0]});"
        "assert not {'pandas', 'polars', 'pyarrow'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
