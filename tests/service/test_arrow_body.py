"""Arrow streams as bodies of `POST /predict`: the rules of JSON, without a Python object for any number."""

import json
import random
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import MOST_PROBLEMS, Call
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import InvalidRequest, TooLarge
from lengthwise.runtime.manifest import Manifest
from tests.fuzz import arrow_streams
from tests.support.arrow_streams import Form, batches, items, outcome, read, stream, with_buffer, written
from tests.support.numpy_models import MANIFESTS, OneModel, manifest

TWO = MANIFESTS["refuses missing"]


def refused(body: bytes, to: Manifest = TWO) -> list[tuple[str, str]]:
    """The pointers and the details of what is wrong with a stream."""
    with pytest.raises(InvalidRequest) as error:
        read(body, to)
    return [(one.pointer, one.detail) for one in error.value.problems]


def called(body: bytes, to: Manifest = TWO, **options: Any) -> Call:
    call = read(body, to, **options)
    assert call is not None
    return call


# Every rule of a body, over every encoding.


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_body_has_one_outcome_in_every_encoding(name: str) -> None:
    catalog: Any = OneModel(MANIFESTS[name])
    seen: set[bool] = set()

    @settings(max_examples=4 * settings.default.max_examples)
    @given(st.integers(0, 2**32))
    def holds(seed: int) -> None:
        sequences, form = arrow_streams.sequences(random.Random(seed), MANIFESTS[name], wide=True)
        text = json.dumps({"sequences": sequences}).encode()
        expected = outcome(lambda: validation.read(text, catalog.find, max_sequences=1000))
        in_c = fast_json.read(text, catalog.find, max_sequences=1000, layout=PREDICT)
        body = stream(sequences, form)
        assert outcome(lambda: read(body, MANIFESTS[name])) == expected
        quick = outcome(lambda: read(body, MANIFESTS[name], quick=True))
        assert quick in (None, expected)
        assert in_c is None or items(in_c) == expected
        seen.add(isinstance(expected, list))

    holds()
    assert seen == {True, False}


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.int8(), pa.uint16(), pa.int64(), pa.uint64()])
def test_numbers_of_every_type_become_the_float32_of_their_text_in_json(number: Any) -> None:
    rows = [[1, 2], [100, 0]]
    if number == pa.int64():
        rows.append([9007199254740993, -16777217])
    for form in (Form(number), Form(number, "fixed"), Form(number, large=True)):
        call = called(stream([{"steps": rows}], form))
        text = json.dumps({"sequences": [{"steps": rows}]}).encode()
        catalog: Any = OneModel(TWO)
        assert items(call) == items(validation.read(text, catalog.find, max_sequences=9))


@pytest.mark.parametrize("steps", [[None], [[0.5], None], [None, [1.0], [None]]])
@pytest.mark.parametrize("mask", [{}, {"feature_mask": [True]}, {"feature_mask": [False]}])
def test_a_step_that_is_null_is_a_missing_value_of_one_feature(steps: list[Any], mask: dict[str, Any]) -> None:
    manifest, sequences = MANIFESTS["one feature"], [{"steps": steps, **mask}]
    catalog: Any = OneModel(manifest)
    text = json.dumps({"sequences": sequences}).encode()
    expected = outcome(lambda: validation.read(text, catalog.find, max_sequences=9))
    assert isinstance(expected, list)
    assert outcome(lambda: read(stream(sequences, Form(pa.float64())), manifest)) == expected


@pytest.mark.parametrize("number", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.uint64()])
def test_tokens_may_have_every_type_of_whole_numbers(number: Any) -> None:
    (item,) = called(stream([{"steps": [1, 9, 0]}], Form(number, "bare")), MANIFESTS["tokens"]).items
    assert (item.steps.dtype, item.steps.tolist()) == (np.int64, [1, 9, 0])


@pytest.mark.parametrize("number", [pa.int16(), pa.float16(), pa.float32(), pa.float64()])
def test_null_and_nan_are_missing_values(number: Any) -> None:
    body = stream([{"steps": [[1, None], [None, 4]]}], Form(number))
    (item,) = called(body, MANIFESTS["takes missing"]).items
    assert np.array_equal(item.steps, np.float32([[1, np.nan], [np.nan, 4]]), equal_nan=True)
    assert [pointer for pointer, _ in refused(body)] == ["/sequences/0/steps/0/1", "/sequences/0/steps/1/0"]


LEVEL = "a step must be an array of 2 numbers, and none here is an array: the first is null; "


@pytest.mark.parametrize(
    ("to", "sequences", "form", "problem"),
    [
        (
            "tokens",
            [[1, 2**63 + 1]],
            Form(pa.uint64(), "bare"),
            ("0/steps/1", "is not a token id: the vocabulary has 0 to 9"),
        ),
        ("refuses missing", [[None, None]], Form(pa.float64()), ("0/steps/0", LEVEL)),
        ("takes missing", [[None, None]], Form(pa.float64()), ("0/steps/0", LEVEL)),
        ("refuses missing", [[[1.0, 2.0]], None], Form(), ("1/steps", "must be an array of steps, got null")),
        (
            "refuses missing",
            [[[1.0, 2.0], [float("inf"), 1.0]]],
            Form(pa.float32()),
            ("0/steps/1/0", "is beyond the range of float32"),
        ),
    ],
)
def test_what_only_arrow_can_have_is_named_too(to: str, sequences: Any, form: Form, problem: tuple[str, str]) -> None:
    body = stream([{"steps": steps} for steps in sequences], form)
    ((pointer, detail),) = refused(body, MANIFESTS[to])
    assert pointer == f"/sequences/{problem[0]}"
    assert detail.startswith(problem[1])


# Without a copy, and the memory that is counted.


def large(rows: int, length: int, number: Any = np.float32) -> Any:
    values = pa.array(np.arange(rows * length * 2, dtype=number))
    offsets = np.arange(rows + 1, dtype=np.int32) * length
    steps = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, 2))
    return pa.RecordBatch.from_arrays([steps], names=["steps"])


def test_float32_without_null_is_a_view_of_the_body() -> None:
    body = written([large(20, 50)])
    call = called(body, quick=True)
    whole = np.frombuffer(body, np.uint8)
    assert all(np.shares_memory(item.steps, whole) for item in call.items)
    assert call.held_bytes == len(body)
    assert call.items[1].steps[0].tolist() == [100, 101]


@pytest.mark.parametrize(
    ("found", "to", "held"),
    [
        ([large(20, 50, np.float64)], TWO, 20 * 50 * 2 * 4),
        ([large(2, 500)], manifest(long="head", max_length=3), 2 * 3 * (2 * 4 + 8)),
        ([large(5, 10)] * 3, TWO, 15 * 10 * 2 * 4),
    ],
    ids=["converted", "a few steps", "several batches"],
)
def test_what_is_copied_does_not_hold_the_body(found: list[Any], to: Manifest, held: int) -> None:
    body = written(found)
    call = called(body, to)
    assert not any(np.shares_memory(item.steps, np.frombuffer(body, np.uint8)) for item in call.items)
    assert (len(call.items), call.held_bytes) == (sum(batch.num_rows for batch in found), held)


# What an enemy, or a broken client, would send.


def table(**columns: Any) -> bytes:
    found = pa.table(columns)
    return written(found.to_batches() or [pa.RecordBatch.from_pylist([], found.schema)])


GOOD = pa.array([[[1.0, 2.0]]])
NESTED = pa.list_(pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty, and not an Arrow stream"),
        (b"ARROW1\0\0", "the body is an Arrow file; send the stream format"),
        (b"{}", "the body is not an Arrow stream that can be read"),
        (table(steps=GOOD, label=pa.array(["a"])), "unknown column 'label'; known are feature_mask, id, step_mask"),
        (table(id=pa.array(["a"])), "the column 'steps' is missing"),
        (table(steps=pa.array([1.0])), "the column 'steps' must be a list column, its type is double"),
        (table(steps=pa.array([["a"]])), "the column 'steps' must have numbers in its lists"),
        (table(steps=pa.array([[True]])), "the column 'steps' must have numbers in its lists"),
        (table(steps=pa.array([[None]])), "the column 'steps' must have numbers in its lists"),
        (table(steps=pa.array([[[[1.0]]]])), "the column 'steps' must have numbers in its lists"),
        (table(steps=GOOD, id=pa.array([1])), "the column 'id' must have strings, its type is int64"),
        (table(steps=GOOD, step_mask=pa.array([[1]])), "the column 'step_mask' must have lists of booleans"),
        (table(steps=GOOD, step_mask=pa.array([True])), "the column 'step_mask' must be a list column"),
        (
            written([pa.RecordBatch.from_arrays([GOOD, GOOD], names=["steps", "steps"])]),
            "the column 'steps' is there twice",
        ),
        (table(steps=GOOD, id=pa.array(["a"]).dictionary_encode()), "the column 'id' must have strings"),
        (table(steps=pa.array([[[], []]], pa.list_(pa.list_(pa.float32(), 0)))), "has steps without a feature"),
        (stream([{"steps": [[1.0, 2.0]]}])[:-8] + b"more", "the body is not an Arrow stream that can be read"),
        (stream([{"steps": [[1.0, 2.0]]}]) + b"more", "bytes follow the end of the Arrow stream"),
        (stream([{"steps": [[1.0, 2.0]]}])[:-60], "the body is not an Arrow stream that can be read"),
        (stream([{"steps": [[1.0, 2.0]] * 99}], compression="zstd"), "the buffers of the stream are compressed"),
        (stream([{"steps": [[1.0, 2.0]] * 99}], compression="lz4"), "the buffers of the stream are compressed"),
        (
            stream([{"steps": [[1.0, 2.0]]}], metadata_version=pa.ipc.MetadataVersion.V4),
            "the stream has an old version of the format",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_stream_that_cannot_be_used_is_said_in_a_sentence(body: bytes, said: str) -> None:
    (pointer, detail), *_ = refused(body)
    assert pointer == ""
    assert said in detail


def test_a_body_without_rows_has_no_sequence() -> None:
    assert refused(table(steps=pa.array([], NESTED))) == [("/sequences", "must have at least one sequence")]


def empty(schema: Any, batches: int = 1) -> bytes:
    return written([pa.RecordBatch.from_pylist([], schema)] * batches)


def test_more_than_the_limits_is_refused_before_it_is_made() -> None:
    deep = pa.float32()
    for _ in range(30):
        deep = pa.list_(deep)
    for body in (
        stream([{"steps": [[1.0, 2.0]]}] * 4),
        empty(pa.schema({"steps": NESTED}), 4),
        empty(pa.schema({f"column {number}": pa.int8() for number in range(20)})),
        empty(pa.schema({"steps": deep})),
        empty(pa.schema({"steps": NESTED}, metadata={"note": "x" * 20_000})),
    ):
        with pytest.raises(TooLarge):
            read(body, TWO, max_sequences=3)


def test_the_notes_of_pandas_are_no_hindrance() -> None:
    found = pa.RecordBatch.from_pandas(pandas.DataFrame({"steps": [[[1.0, 2.0]]], "id": ["a"]}))
    assert b"pandas" in found.schema.metadata
    assert called(written([found])).items[0].id == "a"


@pytest.mark.parametrize(
    ("buffer", "values"),
    [
        *((0, [0, 2**31 - 1]), (0, [-4, 3]), (0, [3, 0]), (0, [0, -1]), (1, [0, 2, 1, 6]), (1, [0, 2, 4, 2**30])),
        (1, [-2, 2, 4, 6]),
    ],
)
def test_offsets_that_lie_are_refused(buffer: int, values: list[int]) -> None:
    (batch,) = batches([{"steps": [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]}], Form())
    assert read(with_buffer(batch, buffer, [0, 3] if buffer == 0 else [0, 2, 4, 6]), TWO) is not None
    assert refused(with_buffer(batch, buffer, values))


def test_offsets_that_leave_numbers_out_are_read_as_they_are() -> None:
    (batch,) = batches([{"steps": [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]}], Form())
    assert called(with_buffer(batch, 0, [1, 2])).items[0].steps.tolist() == [[3.5, 4.5]]


def test_text_that_is_not_utf_8_is_refused() -> None:
    (batch,) = batches([{"id": "abcd", "steps": [[1.0, 2.0]]}], Form())
    assert refused(written([batch]).replace(b"abcd", b"ab\xff\xff"))


def test_a_list_of_no_bytes_is_not_made() -> None:
    body = table(steps=pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1)))
    assert len(body) < 1000
    assert refused(body)


def test_millions_of_empty_steps_are_counted_up_to_the_limit() -> None:
    count = 2**20 + 1
    inner = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.float32()))
    steps = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), inner)
    with pytest.raises(InvalidRequest) as error:
        read(written([pa.RecordBatch.from_arrays([steps], names=["steps"])]), manifest(max_length=2**21))
    assert (error.value.total, error.value.more, len(error.value.problems)) == (MOST_PROBLEMS, True, 20)


def test_one_missing_number_among_millions_is_named() -> None:
    rows, features = 2**16 + 1, 64
    values = np.zeros(rows * features, dtype=np.float16)
    values[-1] = np.nan
    inner = pa.FixedSizeListArray.from_arrays(pa.array(values), features)
    steps = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), inner)
    body = table(steps=steps)
    assert [at for at, _ in refused(body, manifest(features=64, max_length=2**21))] == [
        f"/sequences/0/steps/{rows - 1}/63"
    ]


def test_a_long_mask_is_refused_by_its_length() -> None:
    body = stream([{"steps": [[1.0, 2.0]], "step_mask": [True] * 5000}])
    assert refused(body) == [("/sequences/0/step_mask", "must have one entry for each of the 1 steps, it has 5000")]


def test_the_pointers_of_a_later_batch_count_all_rows() -> None:
    sequences: list[dict[str, Any]] = [{"steps": [[1.0, 2.0]]} for _ in range(5)]
    sequences[3]["steps"] = [[1.0, 2.0], [None, 1.0]]
    assert [at for at, _ in refused(stream(sequences, Form(batch_rows=2)))] == ["/sequences/3/steps/1/0"]
