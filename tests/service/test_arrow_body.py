"""Arrow streams as bodies of `POST /predict`: the rules of JSON, without a Python object for any number."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import MOST_PROBLEMS
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import InvalidRequest, TooLarge
from tests.support.arrow_streams import Form, batches, items, outcome, read, stream, with_buffer, written
from tests.support.numpy_models import MANIFESTS, OneModel, manifest

TWO = MANIFESTS["refuses missing"]


def shown(problem: pytest.ExceptionInfo[InvalidRequest]) -> list[tuple[str, str]]:
    return [(one.pointer, one.detail) for one in problem.value.problems]


# Every rule of a body, over every encoding.

NUMBERS = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.floats(-1e3, 1e3),
    st.integers(-(2**53), 2**53),
    st.sampled_from([0.0, -0.0, 1e-45, 3.4028235e38]),
)
TOO_LARGE = st.sampled_from([3.4028235677973366e38, -1e39, 1e300])
FORMS = st.builds(
    Form,
    st.just(pa.float64()),
    st.sampled_from(["list", "large_list", "fixed"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 1000]),
)


@st.composite
def bodies(draw: Any, name: str) -> tuple[list[dict[str, Any]], Form]:
    """Sequences for a model, half of them right in everything but their masks, and how to write them."""
    with_faults = draw(st.booleans())

    def rarely(wrong: st.SearchStrategy[Any], right: Any) -> Any:
        return draw(wrong) if with_faults and draw(st.integers(0, 19)) == 7 else right

    rules = MANIFESTS[name]
    features = rules.input.features
    form = draw(FORMS)
    number = st.integers(0, 9) if features is None else NUMBERS
    if features is None:
        form = Form(pa.int64(), "bare", form.large, False, form.batch_rows)
        wrong = st.sampled_from([-1, 10, 2**40, None])
    else:
        if features == 1 and draw(st.booleans()):
            form = Form(form.number, "bare", form.large, form.nan, form.batch_rows)
        wrong = TOO_LARGE if rules.missing != "refuse" else st.one_of(TOO_LARGE, st.none())
    kept = st.just(True) if draw(st.booleans()) else st.booleans()
    often_null = features is not None and rules.missing != "refuse"
    value = st.one_of(number, st.none()) if often_null else number
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        steps: list[Any] = []
        least = rules.min_length
        for _ in range(rarely(st.integers(0, 12), draw(st.integers(least, least + 1)))):
            if form.step == "bare":
                steps.append(rarely(wrong, draw(value)))
                continue
            size = features or 1
            size = size if form.step == "fixed" else rarely(st.integers(0, 3), size)
            steps.append([rarely(wrong, draw(value)) for _ in range(size)])
            if form.step != "fixed":
                steps[-1] = rarely(st.none(), steps[-1])
        one: dict[str, Any] = {"steps": steps}
        if draw(st.booleans()):
            one["id"] = rarely(st.just("x" * 257), draw(st.text(st.characters(codec="utf-8"), max_size=4)))
        for mask, count in (("step_mask", len(steps)), ("feature_mask", features or 1)):
            if draw(st.integers(0, 5)) == 0:
                count = rarely(st.integers(0, 4), count)
                one[mask] = [rarely(st.sampled_from([False, None]), draw(kept)) for _ in range(count)]
        found.append(one)
    if form.step == "fixed" and not any(step for one in found for step in one["steps"]):
        form = Form(form.number, "list", form.large, form.nan, form.batch_rows)
    return found, form


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_body_has_one_outcome_in_every_encoding(name: str) -> None:
    catalog: Any = OneModel(MANIFESTS[name])
    seen: set[bool] = set()

    @given(bodies(name))
    def holds(made: tuple[list[dict[str, Any]], Form]) -> None:
        sequences, form = made
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
        call = read(stream([{"steps": rows}], form), TWO)
        text = json.dumps({"sequences": [{"steps": rows}]}).encode()
        catalog: Any = OneModel(TWO)
        assert call is not None
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
    call = read(stream([{"steps": [1, 9, 0]}], Form(number, "bare")), MANIFESTS["tokens"])
    assert call is not None
    assert call.items[0].steps.tolist() == [1, 9, 0]
    assert call.items[0].steps.dtype == np.int64


def test_a_token_beyond_63_bits_is_none() -> None:
    with pytest.raises(InvalidRequest) as error:
        read(stream([{"steps": [1, 2**63 + 1]}], Form(pa.uint64(), "bare")), MANIFESTS["tokens"])
    assert shown(error) == [("/sequences/0/steps/1", "is not a token id: the vocabulary has 0 to 9")]


@pytest.mark.parametrize("number", [pa.int16(), pa.float16(), pa.float32(), pa.float64()])
def test_null_and_nan_are_missing_values(number: Any) -> None:
    rules = MANIFESTS["takes missing"]
    call = read(stream([{"steps": [[1, None], [None, 4]]}], Form(number)), rules)
    assert call is not None
    assert np.array_equal(call.items[0].steps, np.float32([[1, np.nan], [np.nan, 4]]), equal_nan=True)
    with pytest.raises(InvalidRequest) as error:
        read(stream([{"steps": [[1, None], [None, 4]]}], Form(number)), TWO)
    assert [pointer for pointer, _ in shown(error)] == ["/sequences/0/steps/0/1", "/sequences/0/steps/1/0"]


def test_steps_of_which_none_is_an_array_are_one_problem() -> None:
    for rules in (TWO, MANIFESTS["takes missing"]):
        with pytest.raises(InvalidRequest) as error:
            read(stream([{"steps": [None, None]}], Form(pa.float64())), rules)
        assert (error.value.total, [one.pointer for one in error.value.problems]) == (1, ["/sequences/0/steps/0"])


def test_a_null_row_is_no_sequence() -> None:
    with pytest.raises(InvalidRequest) as error:
        read(stream([{"steps": [[1.0, 2.0]]}, {"steps": None}]), TWO)
    assert shown(error) == [("/sequences/1/steps", "must be an array of steps, got null")]


def test_infinity_is_beyond_the_range() -> None:
    with pytest.raises(InvalidRequest) as error:
        read(stream([{"steps": [[1.0, 2.0], [float("inf"), 1.0]]}], Form(pa.float32())), TWO)
    assert shown(error) == [("/sequences/0/steps/1/0", "is beyond the range of float32")]


# Without a copy, and the memory that is counted.


def large(rows: int, length: int, number: Any = np.float32) -> Any:
    values = pa.array(np.arange(rows * length * 2, dtype=number))
    offsets = np.arange(rows + 1, dtype=np.int32) * length
    steps = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, 2))
    return pa.RecordBatch.from_arrays([steps], names=["steps"])


def test_float32_without_null_is_a_view_of_the_body() -> None:
    body = written([large(20, 50)])
    call = read(body, TWO, quick=True)
    assert call is not None
    whole = np.frombuffer(body, np.uint8)
    assert all(np.shares_memory(item.steps, whole) for item in call.items)
    assert call.held_bytes == len(body)
    assert call.items[1].steps[0].tolist() == [100, 101]


def test_what_is_converted_does_not_hold_the_body() -> None:
    body = written([large(20, 50, np.float64)])
    call = read(body, TWO)
    assert call is not None
    assert not any(np.shares_memory(item.steps, np.frombuffer(body, np.uint8)) for item in call.items)
    assert call.held_bytes == 20 * 50 * 2 * 4


def test_a_few_steps_of_a_large_body_do_not_hold_it() -> None:
    rules = manifest(long="head", max_length=3)
    call = read(written([large(2, 500)]), rules)
    assert call is not None
    assert call.held_bytes < 500


def test_several_record_batches_are_counted_once() -> None:
    call = read(written([large(5, 10), large(5, 10), large(5, 10)]), TWO)
    assert call is not None
    assert len(call.items) == 15
    assert call.held_bytes == 15 * 10 * 2 * 4


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
    with pytest.raises(InvalidRequest) as error:
        read(body, TWO)
    assert shown(error)[0][0] == ""
    assert said in shown(error)[0][1]


def test_a_body_without_rows_has_no_sequence() -> None:
    with pytest.raises(InvalidRequest) as error:
        read(table(steps=pa.array([], NESTED)), TWO)
    assert shown(error) == [("/sequences", "must have at least one sequence")]


def test_more_rows_or_batches_than_sequences_are_too_many() -> None:
    with pytest.raises(TooLarge):
        read(stream([{"steps": [[1.0, 2.0]]}] * 4), TWO, max_sequences=3)
    empty = pa.RecordBatch.from_pylist([], pa.schema({"steps": NESTED}))
    with pytest.raises(TooLarge):
        read(written([empty] * 4), TWO, max_sequences=3)


def test_a_large_schema_is_refused_before_it_is_made() -> None:
    wide = pa.schema({f"column {number}": pa.int8() for number in range(20)})
    with pytest.raises(TooLarge):
        read(written([pa.RecordBatch.from_pylist([], wide)]), TWO)
    deep = pa.float32()
    for _ in range(30):
        deep = pa.list_(deep)
    with pytest.raises(TooLarge):
        read(written([pa.RecordBatch.from_pylist([], pa.schema({"steps": deep}))]), TWO)
    noted = pa.schema({"steps": NESTED}, metadata={"note": "x" * 20_000})
    with pytest.raises(TooLarge):
        read(written([pa.RecordBatch.from_pylist([], noted)]), TWO)


def test_the_notes_of_pandas_are_no_hindrance() -> None:
    import pandas

    frame = pandas.DataFrame({"steps": [[[1.0, 2.0]]], "id": ["a"]})
    found = pa.RecordBatch.from_pandas(frame)
    assert b"pandas" in found.schema.metadata
    call = read(written([found]), TWO)
    assert call is not None
    assert call.items[0].id == "a"


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
    with pytest.raises(InvalidRequest):
        read(with_buffer(batch, buffer, values), TWO)


def test_offsets_that_leave_numbers_out_are_read_as_they_are() -> None:
    (batch,) = batches([{"steps": [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]}], Form())
    call = read(with_buffer(batch, 0, [1, 2]), TWO)
    assert call is not None
    assert call.items[0].steps.tolist() == [[3.5, 4.5]]


def test_text_that_is_not_utf_8_is_refused() -> None:
    (batch,) = batches([{"id": "abcd", "steps": [[1.0, 2.0]]}], Form())
    body = written([batch]).replace(b"abcd", b"ab\xff\xff")
    with pytest.raises(InvalidRequest):
        read(body, TWO)


def test_a_list_of_no_bytes_is_not_made() -> None:
    steps = pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1))
    body = written([pa.RecordBatch.from_arrays([steps], names=["steps"])])
    assert len(body) < 1000
    with pytest.raises(InvalidRequest):
        read(body, TWO)


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
    with pytest.raises(InvalidRequest) as error:
        read(written([pa.RecordBatch.from_arrays([steps], names=["steps"])]), manifest(features=64, max_length=2**21))
    assert [problem.pointer for problem in error.value.problems] == [f"/sequences/0/steps/{rows - 1}/63"]


def test_a_long_mask_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidRequest) as error:
        read(stream([{"steps": [[1.0, 2.0]], "step_mask": [True] * 5000}]), TWO)
    assert shown(error) == [("/sequences/0/step_mask", "must have one entry for each of the 1 steps, it has 5000")]


def test_the_pointers_of_a_later_batch_count_all_rows() -> None:
    sequences: list[dict[str, Any]] = [{"steps": [[1.0, 2.0]]} for _ in range(5)]
    sequences[3]["steps"] = [[1.0, 2.0], [None, 1.0]]
    with pytest.raises(InvalidRequest) as error:
        read(stream(sequences, Form(batch_rows=2)), TWO)
    assert [pointer for pointer, _ in shown(error)] == ["/sequences/3/steps/1/0"]
