import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lengthwise.decoding.calls import Problems
from lengthwise.errors import InvalidRequest, TooLarge
from lengthwise.padding import Steps
from lengthwise.protocols import output_tensors, tensor_specs, tensors
from lengthwise.protocols.request_parameters import OutputRequest
from lengthwise.protocols.tensors import MOST_CLASSIFICATIONS, InputTensor, TensorCall
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import MANIFESTS, OneModel, manifest


def values(data: Any, shape: tuple[int, ...], *, datatype: str = "FP32", name: str = "values") -> InputTensor:
    return InputTensor(name, datatype, shape, data, "/inputs/0")


def lengths(*ends: Any, datatype: str = "INT32", shape: tuple[int, ...] | None = None) -> InputTensor:
    return InputTensor("lengths", datatype, (len(ends),) if shape is None else shape, list(ends), "/inputs/1")


def read(
    of: Manifest,
    *sent: InputTensor,
    wanted: tuple[str, ...] = (),
    parameters: dict[str, Any] | None = None,
    max_sequences: int = 8,
    classes: dict[str, int] | None = None,
) -> TensorCall:
    model: Any = OneModel(of)
    outputs = [OutputRequest(name, classes=(classes or {}).get(name)) for name in wanted]
    return tensors.read(model, sent, outputs, parameters or {}, Problems(), max_sequences=max_sequences)


def wrong(of: Manifest, *sent: InputTensor, **options: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as raised:
        read(of, *sent, **options)
    return [f"{problem.pointer}: {problem.detail}" for problem in raised.value.problems]


JUNK = [math.nan, math.inf, -math.inf, 3e38, 0.0]


@given(data=st.data())
def test_sequences_leave_a_padded_tensor_as_they_went_in_for_any_padding(data: st.DataObject) -> None:
    tokens = data.draw(st.booleans())
    of = MANIFESTS["tokens"] if tokens else MANIFESTS["takes missing"]
    count, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    ends = data.draw(st.lists(st.integers(1, width), min_size=count, max_size=count))
    shape = (count, width) if tokens else (count, width, 2)
    junk: Any = data.draw(st.sampled_from([-5, 10, 2**31 - 1] if tokens else JUNK))
    rectangle: Any = np.full(shape, junk, dtype=np.int64 if tokens else np.float32)
    for row, end in zip(rectangle, ends, strict=True):
        if tokens:
            row[:end] = data.draw(arrays.arrays(np.int64, end, elements=st.integers(0, 9)))
        else:
            numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.just(math.nan)
            row[:end] = data.draw(arrays.arrays(np.float32, (end, 2), elements=numbers))
    name, datatype = ("tokens", data.draw(st.sampled_from(["INT32", "INT64"]))) if tokens else ("values", "FP32")
    octets = rectangle.astype({"INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}[datatype]).tobytes()
    forms: list[Any] = [octets, memoryview(octets)]
    if tokens or not np.isinf(rectangle).any():
        flat = [None if number != number else number for number in rectangle.ravel().tolist()]
        forms += [flat, nested(flat, shape)]
    given_ends = [lengths(*ends), lengths(*ends, datatype="INT64"), lengths(*[[end] for end in ends], shape=(count, 1))]
    given_ends.append(InputTensor("lengths", "INT32", (count, 1), np.array(ends, "<i4").tobytes(), "/inputs/1"))
    sent_ends = [[one] for one in given_ends] + [[]] * (ends == [width])  # one row needs none
    for form in forms:
        asked = read(of, values(form, shape, name=name, datatype=datatype), *data.draw(st.sampled_from(sent_ends)))
        assert asked.call.width == width
        for item, row, end in zip(asked.call.items, rectangle, ends, strict=True):
            assert item.sent_steps == end
            assert np.array_equal(item.steps, row[:end], equal_nan=not tokens)
            assert item.steps.dtype == row.dtype


def nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The entries as lists of lists, as the shape says."""
    for size in shape[:0:-1]:
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat


@given(
    arrays.arrays(np.float64, (2, 3, 2), elements=st.floats(-(2.0**127), 2.0**127) | st.floats(-1e-300, 1e-300)),
    st.booleans(),
)
def test_float64_is_rounded_to_the_nearest_float32_in_every_form(numbers: Any, missing: bool) -> None:
    of = MANIFESTS["takes missing"]
    if missing:
        numbers[0, 0, 0] = np.nan
    with np.errstate(under="ignore"):
        expected = numbers.astype(np.float32)
    asked = lengths(3, 3)
    as_bytes = read(of, values(numbers.tobytes(), numbers.shape, datatype="FP64"), asked)
    flat = [None if number != number else number for number in numbers.ravel().tolist()]
    for made in (as_bytes, read(of, values(flat, numbers.shape, datatype="FP64"), asked)):
        found: Any = np.stack([item.steps for item in made.call.items])
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        ([], "/inputs"),
        ([values([1, 2], (1, 1, 2)), InputTensor("x", "FP32", (1,), [1], "/inputs/1")], "/inputs/1"),
        ([values([1, 2], (1, 1, 2)), values([1, 2], (1, 1, 2))], "/inputs/0"),
        ([values([1, 2], (1, 1, 2), datatype="FP16")], "/inputs/0/datatype"),
        ([values([1, 1e39], (1, 1, 2), datatype="FP64")], "/inputs/0"),
        ([values(np.array([1, -1e39]).tobytes(), (1, 1, 2), datatype="FP64")], "/inputs/0"),
        ([values(bytes(8), (1, 1, 2), datatype="FP64")], "/inputs/0"),
        *(([values([1, 2], (1, 2))], "/inputs/0/shape"), ([values([1, 2, 3], (1, 1, 3))], "/inputs/0/shape")),
        *(([values([], (1, 0, 2))], "/inputs/0/shape"), ([values([], (-1, 1, 2))], "/inputs/0/shape")),
        *(([values([1], (1, 1, 2))], "/inputs/0/data"), ([values([[1, 2]], (1, 1, 2))], "/inputs/0/data")),
        ([values([[[1, 2]], 3], (2, 1, 2))], "/inputs/0/data"),
        *(([values([[[1, [2]]]], (1, 1, 2))], "/inputs/0/data"), ([values([1, "2"], (1, 1, 2))], "/inputs/0/data")),
        ([values([1, True], (1, 1, 2))], "/inputs/0/data"),
        *(([values([1, 10**400], (1, 1, 2))], "/inputs/0/data"), ([values([1, 1e39], (1, 1, 2))], "/inputs/0")),
        *(([values([1, None], (1, 1, 2))], "/inputs/0"), ([values(bytes(7), (1, 1, 2))], "/inputs/0")),
        *(([values([1] * 4, (2, 1, 2))], "/inputs"), ([values([1, 2], (1, 1, 2)), lengths(1, 1)], "/inputs/1")),
        ([values([1, 2], (1, 1, 2)), lengths(0)], "/inputs/1"),
        ([values([1, 2], (1, 1, 2)), lengths(2)], "/inputs/1"),
        ([values([1, 2], (1, 1, 2)), lengths(1.0)], "/inputs/1/data"),
        ([values([1, 2], (1, 1, 2)), lengths(2**40)], "/inputs/1/data"),
        ([values([1, 2], (1, 1, 2)), lengths(1, 1, shape=(1, 2))], "/inputs/1/shape"),
        ([values([1, 2], (1, 1, 2)), lengths(1, shape=(1, 1, 1))], "/inputs/1/shape"),
        ([values([1, 2], (1, 1, 2)), lengths(1, 1, shape=(2, 1))], "/inputs/1"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said_with_its_place(sent: list[InputTensor], place: str) -> None:
    (said,) = wrong(manifest(), *sent)
    assert said.partition(": ")[0] == place


def test_everything_wrong_is_said_at_once() -> None:
    said = wrong(
        manifest(),
        values([1, 2], (1, 1, 2), datatype="FP16"),
        InputTensor("more", "FP32", (1,), [1], "/inputs/1"),
        wanted=("logits", "label", "label"),
        parameters={"timeout_ms": 0, "priority": 10, "timeout": "1"},
    )
    assert [line.partition(":")[0] for line in said] == [
        *("/parameters/timeout", "/parameters/timeout_ms", "/parameters/priority", "/outputs/0", "/outputs/2"),
        *("/inputs/1", "/inputs/0/datatype"),
    ]


def test_a_token_beyond_the_vocabulary_is_named_by_its_row_and_step() -> None:
    tokens = InputTensor("tokens", "INT64", (2, 2), [1, 99, 3, 10], "/inputs/0")
    said = wrong(MANIFESTS["tokens"], tokens, lengths(1, 2))
    assert said == ["/inputs/0: row 1: step 1 is not a token id: the vocabulary has 0 to 9"]


def test_more_rows_than_sequences_allowed_are_too_large_before_anything_is_read() -> None:
    with pytest.raises(TooLarge):
        read(manifest(), values([], (3, 1, 2)), max_sequences=2)


@pytest.mark.parametrize(
    ("parameters", "timeout_ms"),
    [({}, None), ({"timeout_ms": 7}, 7), ({"timeout": 7000}, 7), ({"timeout_ms": 5, "timeout": 7000}, 5)],
)
def test_a_timeout_is_read_in_milliseconds_or_as_tritons_clients_send_it(
    parameters: dict[str, Any], timeout_ms: float | None
) -> None:
    asked = read(
        manifest(), values([1, 2], (1, 1, 2)), parameters=parameters | {"priority": 3, "sequence_id": 0, "mine": 1}
    )
    assert (asked.call.timeout_ms, asked.call.priority) == (timeout_ms, 3)


@pytest.mark.parametrize(
    ("task", "attention", "names"),
    [
        ("single-label", True, ["label", "score", "probabilities", "attention"]),
        ("multi-label", False, ["assigned", "probabilities"]),
        ("per-step", False, ["step_labels", "step_scores", "probabilities"]),
    ],
)
def test_all_outputs_are_answered_unless_some_are_named(task: str, attention: bool, names: list[str]) -> None:
    of = manifest(task=task, attention=attention)
    assert [form.name for form in tensor_specs.outputs_of(of)] == names
    every = read(of, values([1, 2], (1, 1, 2)))
    assert ([output.name for output in every.outputs], every.call.attention) == (names, attention)
    one = read(of, values([1, 2], (1, 1, 2)), wanted=("probabilities",))
    assert ([output.name for output in one.outputs], one.call.attention) == (["probabilities"], False)


THIRDS = np.array([0.2, 0.7, 0.1], dtype=np.float32)


def answered(of: Manifest, asked: TensorCall, *answers: Answer) -> dict[str, tuple[str, list[Any]]]:
    made = output_tensors.answer(asked, answers)
    for tensor, output in zip(made, asked.outputs, strict=True):
        form = next(form for form in tensor_specs.outputs_of(of) if form.name == output.name)
        assert all(size in (-1, found) for size, found in zip(form.shape, tensor.values.shape, strict=True))
    return {tensor.name: (tensor.datatype, tensor.values.tolist()) for tensor in made}


def test_a_single_label_is_answered_with_its_score_and_attention_at_the_steps_sent() -> None:
    of = manifest(long="tail", max_length=1)
    asked = read(of, values([1] * 12, (2, 3, 2)), lengths(1, 2))
    weight = np.ones(1, dtype=np.float32)
    made = answered(of, asked, Answer(THIRDS, 1, weight), Answer(THIRDS[::-1], 1, weight))
    assert made["label"] == ("BYTES", [b"b", b"b"])
    assert made["score"] == ("FP32", [THIRDS[1], THIRDS[1]])
    assert made["probabilities"] == ("FP32", [THIRDS.tolist(), THIRDS[::-1].tolist()])
    assert made["attention"] == ("FP32", [[1, 0, 0], [0, 1, 0]])


def test_a_multi_label_is_answered_by_what_reaches_the_threshold() -> None:
    of = manifest(task="multi-label", attention=False, threshold=0.2)
    made = answered(of, read(of, values([1, 2], (1, 1, 2))), Answer(THIRDS))
    assert made["assigned"] == ("BOOL", [[True, True, False]])


def test_a_per_step_answer_is_blank_past_each_length() -> None:
    of = manifest(task="per-step", attention=False)
    asked = read(of, values([1] * 8, (2, 2, 2)), lengths(1, 2))
    made = answered(of, asked, Answer(THIRDS[None]), Answer(np.stack([THIRDS, THIRDS[::-1]])))
    assert made["step_labels"] == ("BYTES", [[b"b", b""], [b"b", b"b"]])
    assert made["step_scores"] == ("FP32", [[THIRDS[1], 0], [THIRDS[1], THIRDS[1]]])
    assert made["probabilities"][1] == [[THIRDS.tolist(), [0, 0, 0]], [THIRDS.tolist(), THIRDS[::-1].tolist()]]


NAMED = ["0.700000:1:b", "0.200000:0:a", "0.100000:2:c"]


@pytest.mark.parametrize(("count", "written"), [(1, 1), (2, 2), (3, 3), (4, 3), (2**62, 3)])
@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_the_best_classes_of_a_row_are_written_by_score_index_and_label(task: str, count: int, written: int) -> None:
    of = manifest(task=task, attention=False)
    asked = read(of, values([1, 2], (1, 1, 2)), wanted=("probabilities",), classes={"probabilities": count})
    (made,) = output_tensors.answer(asked, [Answer(THIRDS, 1)])
    assert (made.datatype, made.values.shape) == ("BYTES", (1, written))
    assert [text.decode() for text in made.values.flat] == NAMED[:written]


def test_a_label_keeps_a_zero_at_its_end() -> None:
    of = manifest(attention=False).model_copy(update={"labels": ("a", "b\0", "c")})
    asked = read(of, values([1, 2], (1, 1, 2)), wanted=("label",))
    (made,) = output_tensors.answer(asked, [Answer(THIRDS, 1)])
    assert made.values.tolist() == [b"b\0"]


def test_the_best_classes_of_each_step_stand_at_its_place_and_nothing_past_a_length() -> None:
    of = manifest(task="per-step", attention=False)
    asked = read(
        of,
        values([1] * 8, (2, 2, 2)),
        lengths(1, 2),
        wanted=("step_scores", "probabilities"),
        classes={"probabilities": 2},
    )
    _, made = output_tensors.answer(asked, [Answer(THIRDS[None]), Answer(np.stack([THIRDS, THIRDS[::-1]]))])
    best, other = [b"0.700000:1:b", b"0.200000:0:a"], [b"0.700000:1:b", b"0.200000:2:c"]
    assert made.values.tolist() == [[best, [b"", b""]], [best, other]]
    assert made.raw().count(b"0.700000:1:b") == 3


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    even = np.full(3, 1 / 3, dtype=np.float32)
    asked = read(manifest(), values([1, 2], (1, 1, 2)), wanted=("probabilities",), classes={"probabilities": 3})
    (made,) = output_tensors.answer(asked, [Answer(even, 0)])
    assert made.values.tolist() == [[b"0.333333:0:a", b"0.333333:1:b", b"0.333333:2:c"]]


@pytest.mark.parametrize("name", ["label", "score", "attention"])
def test_only_an_output_with_a_figure_of_each_class_has_best_classes(name: str) -> None:
    said = wrong(manifest(), values([1, 2], (1, 1, 2)), wanted=("probabilities", name), classes={name: 2})
    assert said == ["/outputs/1/parameters/classification: the output with a figure of each class is 'probabilities'"]


def test_more_classifications_than_are_written_are_too_large() -> None:
    of = manifest(task="per-step", attention=False, max_length=100_000)
    classes = {"probabilities": 3}
    width = MOST_CLASSIFICATIONS // 3
    asked = read(of, values(bytes(width * 8), (1, width, 2)), wanted=("probabilities",), classes=classes)
    assert [output.classes for output in asked.outputs] == [3]
    wide = values(bytes((width + 1) * 8), (1, width + 1, 2))
    with pytest.raises(TooLarge):
        read(of, wide, wanted=("probabilities",), classes=classes)


def test_texts_stand_behind_their_lengths_and_numbers_in_their_own_bytes() -> None:
    text = output_tensors.EncodedTensor("label", "BYTES", np.array([b"a", "ü".encode()], dtype=object), True)
    assert text.raw() == b"\x01\x00\x00\x00a\x02\x00\x00\x00\xc3\xbc"
    number = output_tensors.EncodedTensor("score", "FP32", np.array([[1.5, -2]], dtype=np.float32), True)
    assert np.frombuffer(number.raw(), "<f4").tolist() == [1.5, -2]
    assert output_tensors.EncodedTensor("assigned", "BOOL", np.array([True, False]), True).raw() == b"\x01\x00"


def test_nothing_is_copied_of_the_octets_of_a_tensor() -> None:
    octets = np.ones((1, 2, 2), dtype="<f4").tobytes()
    steps: Steps = read(manifest(), values(octets, (1, 2, 2))).call.items[0].steps
    assert np.shares_memory(steps, np.frombuffer(octets, "<f4"))


@pytest.mark.parametrize("end", [1, 40, 60, 100])
@pytest.mark.parametrize("rules", [manifest(), manifest(long="window", max_length=30), manifest(max_length=100)])
def test_what_is_cut_off_stays_in_memory_only_where_it_is_the_lesser_part(end: int, rules: Manifest) -> None:
    octets = np.ones((1, 100, 2), dtype="<f4").tobytes()
    call = read(rules, values(octets, (1, 100, 2)), lengths(end)).call
    steps: Steps = call.items[0].steps
    kept = np.shares_memory(steps, np.frombuffer(octets, "<f4"))
    assert kept == (end >= 50)
    assert call.memory_bytes == (len(octets) if kept else steps.nbytes)


@pytest.mark.parametrize("form", ["octets", "memoryview", "numbers"])
def test_a_part_of_a_larger_body_is_copied_where_the_body_is_more_than_twice_as_much(form: str) -> None:
    octets = b"x" * 5000 + np.ones((2, 10, 2), dtype="<f4").tobytes()
    data: Any = {"octets": octets[5000:], "memoryview": memoryview(octets)[5000:], "numbers": [1.0] * 40}[form]
    call = read(manifest(), values(data, (2, 10, 2)), lengths(10, 10)).call
    assert [item.steps.nbytes for item in call.items] == [80, 80]
    assert call.memory_bytes == 160


@pytest.mark.parametrize("policy", ["head", "tail"])
def test_what_a_policy_leaves_out_is_not_kept(policy: Any) -> None:
    octets = np.ones((1, 100, 2), dtype="<f4").tobytes()
    call = read(manifest(long=policy, max_length=70), values(octets, (1, 100, 2))).call
    assert call.items[0].steps.shape == (70, 2)
    assert not np.shares_memory(call.items[0].steps, np.frombuffer(octets, "<f4"))
    assert call.memory_bytes == 70 * 8 + 70 * 8  # and the places of the steps kept


def test_what_waits_beside_what_a_policy_cut_is_a_copy_too() -> None:
    octets = np.ones((2, 100, 2), dtype="<f4").tobytes()
    call = read(manifest(long="head", max_length=30), values(octets, (2, 100, 2)), lengths(100, 1)).call
    assert not any(np.shares_memory(item.steps, np.frombuffer(octets, "<f4")) for item in call.items)
    assert call.memory_bytes == 30 * 8 + 30 * 8 + 8


def test_a_width_that_no_sequence_of_the_model_may_have_is_too_large() -> None:
    octets = np.ones((2, 11, 2), dtype="<f4").tobytes()
    with pytest.raises(TooLarge):
        read(manifest(max_length=10), values(octets, (2, 11, 2)), lengths(10, 1))
    assert wrong(manifest(max_length=10), values(octets, (2, 11, 2)), lengths(11, 1)) == [
        "/inputs/0: row 0: 11 steps; the model sums/1 takes at most 10"
    ]
    assert read(manifest(max_length=10, long="tail"), values(octets, (2, 11, 2)), lengths(10, 1)).call.width == 11
