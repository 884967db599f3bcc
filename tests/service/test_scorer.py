"""`lengthwise.Scorer`: a table in, the same table with answers out, with the bits of the service."""

import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lengthwise
from lengthwise import errors
from lengthwise.batching.limits import BatchLimits
from lengthwise.datasets import arrays
from lengthwise.decoding import json_body
from lengthwise.errors import ConfigurationError, InferenceFailed, InvalidRequest, InvalidSequences, Problem
from lengthwise.padding import PaddedBatch, pad
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring import engine_batches, opened, scorer
from lengthwise.scoring.engine_batches import cells_of, names_of
from lengthwise.scoring.offline import ScoringResult
from lengthwise.scoring.opened import ModelOptions, OpenModel
from lengthwise.scoring.scorer import Scorer
from lengthwise.settings import bundled_models
from tests.support import model_directories, numpy_models, sample_models

BUNDLED = bundled_models() / "japanese-vowels" / "1"
Opens = Callable[[LoadedModel], None]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Makes every scorer open a model of a few lines."""

    def give(model: LoadedModel) -> None:
        monkeypatch.setattr(scorer, "opened", lambda _: OpenModel(model, BatchLimits(), threads=1))

    return give


def sequences(manifest: Manifest, *lengths: int, seed: int = 0) -> list[Any]:
    """Nested lists that the model takes, of whole numbers, so that every form of them has the same bits."""
    random = np.random.default_rng(seed)
    features = manifest.input.features
    return [random.integers(0, 9, length if features is None else (length, features)).tolist() for length in lengths]


FORMS: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "pandas": pandas.DataFrame,
    "pandas of arrays": lambda columns: pandas.DataFrame(
        columns | {"steps": [np.array(steps) for steps in columns["steps"]]}
    ),
    "pandas from Arrow": lambda columns: pa.table(columns).to_pandas(),
    "table": pa.table,
    "record batch": lambda columns: pa.table(columns).combine_chunks().to_batches()[0],
    "table of chunks": lambda columns: pa.concat_tables([pa.table(columns).slice(0, 2), pa.table(columns).slice(2)]),
    "dict": lambda columns: (
        {name: np.array(values, dtype=object) for name, values in columns.items() if name != "steps"}
        | {"steps": [np.array(steps) for steps in columns["steps"]]}
    ),
}


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch of any form, with lists in the place of arrays and None for what is missing."""
    if isinstance(batch, pa.Table | pa.RecordBatch):
        return batch.to_pylist()
    frame = batch if isinstance(batch, pandas.DataFrame) else pandas.DataFrame({k: list(v) for k, v in batch.items()})
    return [{name: plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if value is None or value is pandas.NA or value != value:
        return None
    return value.item() if isinstance(value, np.generic) else value


def present(value: Any) -> Any:
    """Without the keys that have no value."""
    if isinstance(value, dict):
        return {name: present(one) for name, one in value.items() if one is not None}
    return [present(one) for one in value] if isinstance(value, list) else value


TASKS: list[dict[str, Any]] = [
    *({}, {"task": "multi-label"}, {"task": "per-step"}, {"vocabulary": 10}, {"features": 1}),
    *({"long": "window", "max_length": 3}, {"long": "tail", "max_length": 3, "task": "per-step"}),
    {"long": "window", "max_length": 3, "task": "per-step"},
]


def answer_of(result: ScoringResult) -> Answer:
    """The answer of a sequence that was not refused."""
    assert isinstance(result, Answer)
    return result


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fields", TASKS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_any_form_gets_what_predict_answers(opens: Opens, form: str, fields: dict[str, Any]) -> None:
    model = numpy_models.model(numpy_models.manifest(**fields))
    opens(model)
    given = sequences(model.manifest, 1, 8, 3, 5, 4)
    batch = FORMS[form]({"id": [*"abcde"], "steps": given, "site": [3, 1, 4, 1, 5]})
    answered = Scorer(attention=True)(batch)
    assert type(answered) is type(batch)
    found = rows_of(answered)
    items = arrays.items(given, model.manifest)
    results = OpenModel(model, BatchLimits(), 1).answers(items, attention=True)
    for name, site, row, item, result in zip("abcde", (3, 1, 4, 1, 5), found, items, results, strict=True):
        expected = json_body.prediction(model.manifest, item, answer_of(result), attention=True)
        expected = {"id": name, "site": site} | {key: plain(value) for key, value in expected.items()}
        assert present(row) == present(expected)
        assert list(row)[:3] == ["id", "site", next(key for key in expected if key not in ("id", "site"))]


def test_the_bits_are_those_of_predict_whatever_is_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.measure_quickly(monkeypatch)
    random = np.random.default_rng(0)
    given = [random.normal(size=(length, 12)).astype(np.float32) for length in random.integers(1, 40, 100)]
    answer = lengthwise.Scorer(BUNDLED, recurrent_kernels=True)
    model = answer.open()
    expected = lengthwise.Model(OpenModel(model.loaded, model.limits, 1)).predict(given)
    whole = answer(pa.table({"steps": [steps.tolist() for steps in given]})).to_pylist()
    parts = [
        row
        for start in range(0, 100, 30)
        for row in rows_of(answer(pandas.DataFrame({"steps": given[start : start + 30]})))
    ]
    for one, row, part in zip(expected, whole, parts, strict=True):
        assert np.float32(row["probabilities"]).tobytes() == one.probabilities.tobytes()
        assert row["label"] == one.label
        assert part == row


def test_sequences_are_sorted_and_packed_inside_a_batch(opens: Opens) -> None:
    ran: list[PaddedBatch] = []
    model = numpy_models.model(numpy_models.manifest(), ran.append)
    opens(model)
    lengths = np.random.default_rng(0).integers(1, 200, 3000).tolist()
    Scorer()(pandas.DataFrame({"steps": [np.zeros((length, 2)) for length in lengths]}))
    assert sum(batch.rows for batch in ran) == 3000
    padded, valid = (sum(getattr(batch, name) for batch in ran) for name in ("padded_steps", "valid_steps"))
    assert valid == sum(lengths)
    assert padded < 1.05 * valid  # in the order of arrival it is twice as much


def test_a_scorer_is_pickled_as_its_path_and_options_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.measure_quickly(monkeypatch)
    made = Scorer(BUNDLED, attention=True, recurrent_kernels=True)
    before = pickle.dumps(made)
    made.open()
    assert pickle.dumps(made) == before
    assert len(before) < 1000
    again = pickle.loads(before)
    assert again == made
    assert again.open() is made.open()


def test_a_path_is_absolute_and_names_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1", "2", "10"):
        shutil.copytree(BUNDLED, tmp_path / "vowels" / version)
    monkeypatch.chdir(tmp_path)
    assert Scorer("vowels").path == str(tmp_path / "vowels" / "10")
    assert Scorer("vowels/2").path == str(tmp_path / "vowels" / "2")
    assert Scorer("elsewhere/3").path == str(tmp_path / "elsewhere" / "3")  # the workers may have it
    for wrong in ("elsewhere/3", "elsewhere"):
        with pytest.raises(ConfigurationError, match=str(tmp_path / wrong)):
            Scorer(wrong).open()


def test_the_columns_follow_from_the_manifest_alone(tmp_path: Path) -> None:
    folder = tmp_path / "sums" / "1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(numpy_models.manifest(task="multi-label", attention=False).to_json())
    made = Scorer(folder, on_error="column", prefix="predicted_")
    assert [column.name for column in made.columns()] == [
        *("predicted_assigned", "predicted_probabilities", "predicted_length", "predicted_error")
    ]
    with pytest.raises(ConfigurationError):
        Scorer(folder, attention=True).columns()


BAD = {
    "none": None,
    "no steps": [],
    "few features": [[1.0], [2.0]],
    "ragged": [[1.0, 2.0], [3.0]],
    "infinite": [[1.0, float("inf")]],
    "missing": [[1.0, None]],
    "not finite": [[numpy_models.NOT_FINITE, numpy_models.NOT_FINITE]],
}


@pytest.mark.parametrize("form", ["pandas", "pandas from Arrow", "table", "record batch"])
def test_errors_of_rows_are_a_column_if_wanted(opens: Opens, form: str) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    good = [[1.0, 2.0]]
    batch = FORMS[form]({"id": [*BAD, "good"], "steps": [*BAD.values(), good]})
    rows = {row["id"]: row for row in rows_of(Scorer(on_error="column")(batch))}
    assert rows["good"]["error"] is None
    assert rows["good"]["label"] == "c"
    assert len({rows[name]["error"] for name in BAD}) == len(BAD)  # each has words of its own
    for name in BAD:
        assert {rows[name][column] for column in ("label", "score", "length")} == {None}
        assert rows[name]["probabilities"] is None


def test_an_error_names_every_row_by_its_place_and_its_id(opens: Opens) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    batch = pa.table({"id": ["a", "b", "c"], "steps": [[[1.0, 2.0]], [[1.0]], []]})
    not_finite = pa.table({"steps": [[[numpy_models.NOT_FINITE] * 2]]})
    for made, sent, indices in (
        (Scorer(), batch, (1, 2)),
        (Scorer(id=None), batch, (1, 2)),
        (Scorer(), not_finite, (0,)),
    ):
        with pytest.raises(InvalidSequences) as raised:
            made(sent)
        assert raised.value.indices == indices
        assert ("sequence 1: id 'b': " in str(raised.value)) == (made.id is not None and sent is batch)


def test_of_many_that_are_refused_the_ids_are_read_once(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    read, columns = engine_batches.cells_of, []
    monkeypatch.setattr(scorer, "cells_of", lambda batch, name: columns.append(name) or read(batch, name))
    with pytest.raises(InvalidSequences):
        Scorer()(pa.table({"id": ["a"] * 9, "steps": [[[1.0]]] * 9}))
    assert columns == ["steps", "id"]


def test_a_sequence_on_which_the_model_fails_fails_alone(opens: Opens) -> None:
    def refuse(batch: PaddedBatch) -> None:
        if (batch.lengths == 3).any():
            raise RuntimeError("out of memory")

    opens(numpy_models.model(numpy_models.manifest(), refuse))
    batch = pandas.DataFrame({"id": [7, 8, 9], "steps": [np.ones((length, 2)) for length in (1, 3, 5)]})
    rows = rows_of(Scorer(on_error="column")(batch))
    assert [row["error"] for row in rows] == [None, "the model could not be run on this sequence", None]
    with pytest.raises(InferenceFailed):
        Scorer()(batch)


@pytest.mark.parametrize("form", ["pandas", "table", "dict"])
def test_a_batch_that_lacks_its_column_is_told_so(opens: Opens, form: str) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    batch = {"id": ["a"], "step": [[[1.0, 2.0]]]}
    given = FORMS[form](batch) if form != "dict" else batch
    with pytest.raises(ConfigurationError):
        Scorer()(given)
    assert len(rows_of(Scorer(steps="step")(given))) == 1


def test_a_column_is_never_overwritten(opens: Opens) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    batch = pandas.DataFrame({"steps": [[[1.0, 2.0]]], "label": ["right"], "length": [9]})
    with pytest.raises(ConfigurationError, match=r"'label', 'length', .* prefix='predicted_'"):
        Scorer()(batch)
    answered = Scorer(prefix="predicted_", keep_steps=True)(batch)
    assert list(answered.columns)[:4] == ["steps", "label", "length", "predicted_label"]
    assert answered.loc[0, "label"] == "right"


@pytest.mark.parametrize(
    "batch", [[[[1.0]]], "steps", 3, pandas.Series([1]), pa.array([1])], ids=lambda one: type(one).__name__
)
def test_what_is_no_table_is_told_so(opens: Opens, batch: Any) -> None:
    opens(numpy_models.model(numpy_models.manifest()))
    with pytest.raises(ConfigurationError):
        Scorer()(batch)


@pytest.mark.parametrize(
    "wrong",
    [{"on_error": "skip"}, {"provider": "tpu"}, {"threads": 0}, {"threads": None}, {"max_batch_rows": True}],
    ids=str,
)
def test_a_wrong_option_is_told_before_any_batch(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"^{next(iter(wrong))} must be "):
        Scorer(**wrong)


@pytest.mark.parametrize("form", ["pandas", "table", "record batch"])
def test_an_empty_batch_has_the_columns_of_every_other(opens: Opens, form: str) -> None:
    opens(numpy_models.model(numpy_models.manifest(long="window")))
    batch = FORMS[form]({"id": ["a"], "steps": [[[1.0, 2.0]]]})
    full, empty = (Scorer(attention=True)(part) for part in (batch, batch[:0]))
    assert len(empty) == 0
    if form == "pandas":
        assert list(empty.columns) == list(full.columns)
    else:
        assert empty.schema == full.schema


numbers = st.one_of(st.none(), st.integers(-3, 3), st.just(float("inf")), st.just(1e300))
steps_of_two = st.lists(numbers, min_size=2, max_size=2)
regular = st.lists(steps_of_two, max_size=4)
odd = st.lists(st.one_of(st.none(), st.lists(numbers, max_size=3)), max_size=4)


@given(
    st.lists(st.one_of(st.none(), regular, regular, odd), max_size=8),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
def test_an_arrow_column_is_read_as_its_lists_are(rows: list[Any], cut: int, end: int, large: bool) -> None:
    outer = pa.large_list if large else pa.list_
    kind = outer(pa.list_(pa.float64()))
    for missing in ("refuse", "zero"):
        manifest = numpy_models.manifest(missing=missing)
        whole = pa.chunked_array([pa.array(rows[:3], kind), pa.array(rows[3:], kind)])
        column = whole.slice(cut, max(0, len(whole) - cut - end))
        assert_read(column, manifest)


@pytest.mark.parametrize(
    ("kind", "fields", "rows"),
    [
        (pa.list_(pa.list_(pa.float32(), 2)), {}, [[[1, 2], [3, 4]], None, [], [None], [[5, 6]]]),
        (pa.list_(pa.list_(pa.float32(), 2), 2), {}, [[[1, 2], [3, 4]], None, [[5, 6], [7, 8]], [[1, 1], None]]),
        (pa.list_(pa.list_(pa.int64())), {}, [[[1, 2]], [[3, 2**60]]]),
        (pa.list_(pa.list_(pa.float16())), {}, [[[1, 2]], [[3, 4]]]),
        (pa.list_(pa.list_(pa.bool_())), {}, [[[True, False]]]),
        (pa.list_(pa.list_(pa.string())), {}, [[["1", "2"]]]),
        (pa.list_(pa.float32()), {}, [[1, 2], [1, 2, 3]]),
        (pa.list_(pa.null()), {}, [[], None, [None]]),
        (pa.null(), {}, [None, None]),
        (pa.string(), {}, ["1,2", None]),
        (pa.list_(pa.float32()), {"features": 1, "missing": "zero"}, [[1, None, 3], [], None, [4]]),
        (pa.list_(pa.list_(pa.float32())), {"features": 1}, [[[1], [2]], [[3]]]),
        (pa.list_(pa.int32()), {"vocabulary": 10}, [[1, 9], [], None, [10], [-1], [3]]),
        (pa.list_(pa.uint64()), {"vocabulary": 10}, [[1, 9], [3]]),
        (pa.list_(pa.int64()), {"vocabulary": 10}, [[1, None], [3]]),
        (pa.list_(pa.float64()), {"vocabulary": 10}, [[1.0]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("cut", [0, 1])
def test_a_column_of_every_type_is_read_as_its_lists_are(
    kind: Any, fields: dict[str, Any], rows: list[Any], cut: int
) -> None:
    manifest = numpy_models.manifest(**fields)
    column = pa.array(rows, kind).slice(cut)
    assert_read(column, manifest)


def assert_read(column: Any, manifest: Manifest) -> None:
    """Makes sure that a column is read as the lists in it are."""
    items = arrays.items_or_reasons(cells_of(pa.table({"steps": column}), "steps"), manifest, ask=False)
    for row, item in zip(column.to_pylist(), items, strict=True):
        other = "its steps are missing" if row is None else arrays.items_or_reasons([row], manifest)[0]
        if isinstance(other, str) or isinstance(item, str):
            assert item == other
        else:
            assert item.steps.dtype == other.steps.dtype
            assert item.steps.shape == other.steps.shape
            assert item.steps.tobytes() == other.steps.tobytes()
            assert item.sent_steps == other.sent_steps


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ModelOptions]:
    """What models are asked for by, none of which is opened; in a folder with the manifests of versions 1 to 9."""
    for version in range(1, 10):
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / "manifest.json").write_text("{}")
    asked: list[ModelOptions] = []

    def open_none(options: ModelOptions) -> OpenModel:
        asked.append(options)
        return OpenModel(numpy_models.model(numpy_models.manifest()), BatchLimits(), 1)

    monkeypatch.setattr(ModelOptions, "open", open_none)
    return asked


def test_a_process_opens_a_model_once(counting: list[ModelOptions], tmp_path: Path) -> None:
    made = Scorer(tmp_path / "7")
    threads = [threading.Thread(target=made.open) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pickle.loads(pickle.dumps(made)).open() is Scorer(tmp_path / "7", on_error="column").open()
    assert len(counting) == 1
    Scorer(tmp_path / "7", max_batch_rows=8).open()
    assert len(counting) == 2


def test_a_process_keeps_the_models_that_were_used_last(counting: list[ModelOptions], tmp_path: Path) -> None:
    made = [Scorer(tmp_path / str(version)) for version in range(1, opened.MOST_OPEN + 2)]
    for one in made[:-1]:
        one.open()
    made[0].open()
    made[-1].open()  # drops the second
    made[0].open()
    assert len(counting) == len(made)
    made[1].open()
    assert len(counting) == len(made) + 1


def test_a_version_that_is_published_anew_is_opened_anew(counting: list[ModelOptions], tmp_path: Path) -> None:
    made = Scorer(tmp_path / "7")
    before = made.open()
    assert made.open() is before
    shutil.rmtree(tmp_path / "7")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "manifest.json").write_text("{ }")
    assert made.open() is not before


# In a fork of the process with the tests, a lock that another thread held then would be held for ever.
FORKING = """
import multiprocessing, sys
from lengthwise.scoring import opened
opened.ModelOptions.open = lambda options: object()
options = opened.ModelOptions(sys.argv[1])
mine = opened.opened(options)
process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(opened.opened(options) is mine))
with opened._lock:  # as if another thread opened one
    process.start()
process.join(60)
ended = process.exitcode == 0
process.kill()
sys.exit(not ended)
"""


@pytest.mark.long
@pytest.mark.process
def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert subprocess.run([sys.executable, "-c", FORKING, tmp_path], timeout=180, check=False).returncode == 0


def test_every_error_can_be_sent_to_another_process() -> None:
    problems = [Problem("/sequences/1", "is odd"), Problem("/sequences/3", "too")]
    for error in (
        InvalidRequest(problems, total=7, more=True),
        InvalidSequences(problems),
        errors.QueueFull("full", retry_after_seconds=2.0),
        ConfigurationError("no such model"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
    with pytest.raises(TypeError, match="problems must be"):  # Beam then keeps the text of the error
        InvalidSequences("sequence 1: is odd [while running a step]")  # type: ignore[arg-type]  # what is tested


def test_predictions_are_those_of_the_http_answer(opens: Opens) -> None:
    model = numpy_models.model(numpy_models.manifest())
    opens(model)
    first, second = Scorer(on_error="column").predictions([[[1.0, 2.0]], None])
    assert list(json.loads(json.dumps(plain(first)))) == ["label", "score", "probabilities", "length"]
    assert (first["label"], first["length"]) == ("c", 1)
    assert second == {"error": "its steps are missing"}


BESIDE: dict[str, Any] = {
    "steps": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]],
    "age": [0.5, 0.25],
    "sex": [1, 0],
    "type": ["fan", "pump"],
}


@pytest.mark.parametrize("form", [pandas.DataFrame, pa.table, dict], ids=["pandas", "Arrow", "dict"])
@pytest.mark.parametrize("named", [False, True], ids=["by the model's names", "by other names"])
def test_static_values_are_columns_of_the_batch(opens: Opens, form: Callable[[Any], Any], named: bool) -> None:
    model = sample_models.loaded(sample_models.manifest(static=True))
    opens(model)
    columns = {"years" if named and name == "age" else name: values for name, values in BESIDE.items()}
    answered = Scorer(static=["years", "sex", "type"] if named else ())(form(columns))
    rows = [
        {"steps": steps, "static": values} for steps, *values in zip(*(BESIDE[name] for name in BESIDE), strict=True)
    ]
    expected = arrays.items(rows, model.manifest)
    alone = [model.answer(pad([item.steps]), False)[0] for item in expected]
    given = answered.column("probabilities").to_pylist() if form is pa.table else answered["probabilities"]
    assert [list(each) for each in given] == [answer.probabilities.tolist() for answer in alone if answer is not None]
    assert "sex" in names_of(answered)


@pytest.mark.parametrize("form", [pandas.DataFrame, pa.table, dict], ids=["pandas", "Arrow", "dict"])
def test_decimals_are_static_values(opens: Opens, form: Callable[[Any], Any]) -> None:
    opens(sample_models.loaded(sample_models.manifest(static=True)))
    decimals = BESIDE | {"age": [Decimal("0.50"), Decimal("0.25")], "sex": [Decimal(1), Decimal("0.0")]}
    answered = [Scorer()(form(columns)) for columns in (BESIDE, decimals)]
    expected, given = (
        batch.column("probabilities").to_pylist() if form is pa.table else [*map(list, batch["probabilities"])]
        for batch in answered
    )
    assert given == expected


def test_static_values_that_are_no_columns_are_refused_with_the_way_out(opens: Opens) -> None:
    opens(sample_models.loaded(sample_models.manifest(static=True)))
    batch = pandas.DataFrame(BESIDE)
    with pytest.raises(
        ConfigurationError, match=r"no column 'typ'; did you mean type\?.*static=\[\.\.\.\]\) names those"
    ):
        Scorer(static=["age", "sex", "typ"])(batch)
    with pytest.raises(
        InvalidSequences, match=r"'static' is missing: the model takes 3 static values \(age, sex, type"
    ):
        Scorer()(batch.drop(columns="age"))


def test_static_columns_with_the_models_names_are_matched_by_name(opens: Opens) -> None:
    opens(sample_models.loaded(sample_models.manifest(static=True)))
    in_order, mixed = (Scorer(static=names)(BESIDE) for names in (["age", "sex", "type"], ["type", "age", "sex"]))
    assert np.array_equal(np.stack(in_order["probabilities"]), np.stack(mixed["probabilities"]))


def test_static_columns_that_cannot_be_read_row_by_row_are_refused(opens: Opens) -> None:
    opens(sample_models.loaded(sample_models.manifest(static=True)))
    with pytest.raises(ConfigurationError, match="named twice in age, age, type"):
        Scorer(static=["age", "age", "type"])
    with pytest.raises(ConfigurationError, match="the column 'age' has 1 rows, and 'steps' 2"):
        Scorer()({**BESIDE, "age": [0.5]})
    twice = pandas.DataFrame([[*row, 1.0] for row in zip(*BESIDE.values(), strict=True)], columns=[*BESIDE, "age"])
    with pytest.raises(ConfigurationError, match="the batch has 2 columns 'age'"):
        Scorer()(twice)
    assert Scorer(static="age").static == ("age",)
