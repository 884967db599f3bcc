import gc
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.decoding import calls, json_text, validation
from lengthwise.decoding.calls import Call
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import OneModel, manifest


def read(body: Any, to: Manifest | None = None, *, max_sequences: int = 100) -> Call:
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    return validation.read(text, OneModel(to or manifest()).find, max_sequences=max_sequences)


def problems(body: Any, to: Manifest | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(body, to)
    return caught.value


def test_everything_that_is_wrong_is_named_at_once() -> None:
    error = problems(
        {
            "sequences": [[[1, 2]], [[1]], {"id": 1, "steps": [[1, "x"], [None, 2]], "steps_mask": []}, []],
            "priority": 11,
            "more": True,
        }
    )
    pointers = [problem.pointer for problem in error.problems]
    assert pointers == [
        *("/more", "/priority", "/sequences/1/0", "/sequences/2/steps_mask", "/sequences/2/id"),
        *("/sequences/2/steps/0/1", "/sequences/2/steps/1/0", "/sequences/3"),
    ]
    assert error.detail == "8 things are wrong with the body"


def test_a_flat_sequence_is_one_problem_with_the_way_out() -> None:
    detail = "a step must be an array of 2 numbers, and none here is an array: the first is a number; "
    assert problems({"sequences": [[1, 2, 3], [[1, 2]]]}).problems == (
        Problem("/sequences/0/0", f"{detail}a level of brackets may be missing"),
    )


ONE = manifest(features=1, missing="zero")
TOKENS = manifest(vocabulary=10)
MASKED = {"steps": [[1, 2], 3, 4], "step_mask": [False, True, True]}


@pytest.mark.parametrize(
    ("to", "body", "pointers"),
    [
        (None, {"sequences": [MASKED]}, ["/sequences/0/steps/1"]),  # masked steps do not make it less flat
        (None, {"sequences": [[[1]]], "version": "0"}, ["/version"]),  # without a version no rules
        (None, {"sequences": [[[1, 2]]], "model": "other", "priority": 10}, ["/priority"]),  # before the model
        (
            None,
            # 2**128 - 2**103, as a double and as a whole number, is the first that float32 cannot have
            b'{"sequences": [[[3.4028235677973365e38, 340282356779733650000000000000000000000], [%d, 1], [%d, 1], '
            b"[-3.4028235677973362e38, %d]]]}" % (2**128 - 2**103, 2**128 - 2**103 - 1, 2**128 - 2**104),
            ["/sequences/0/0/0", "/sequences/0/1/0", "/sequences/0/2/0"],
        ),
        (manifest(attention=False), {"sequences": [[[1, 2]]], "outputs": ["attention"]}, ["/outputs/0"]),
        (manifest(max_length=2), {"sequences": [[[1, 2]] * 2, [[1, 2]] * 3]}, ["/sequences/1"]),
        (TOKENS, {"sequences": [{"steps": [1], "feature_mask": [True]}]}, ["/sequences/0/feature_mask"]),
        (ONE, {"sequences": [["x", ["y"], [1, 2], []]]}, [f"/sequences/0/{place}" for place in ("0", "1/0", "2", "3")]),
    ],
)
def test_the_rules_of_a_model_are_named_by_pointers(to: Manifest | None, body: Any, pointers: list[str]) -> None:
    assert [problem.pointer for problem in problems(body, to).problems] == pointers


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (
            b'{"sequences": [[[NaN, 2]]]}',
            "NaN is not JSON, at line 1, column 18; a missing value is null, where the model takes any",
        ),
        (b'{"sequences":\n[[[1, 2],\n [3, -Infinity]]]}', "-Infinity is not JSON, at line 3, column 6"),
        (b'{"model": "NaN \\" NaN",\n "timeout_ms": Infinity}', "Infinity is not JSON, at line 2, column 16"),
    ],
    ids=["first line", "third line", "after strings that have it"],
)
def test_a_literal_that_is_not_json_is_named_with_its_place(body: bytes, place: str) -> None:
    assert problems(body).problems == (Problem("", place),)


def test_a_body_that_is_cut_anywhere_is_said_to_end_there() -> None:
    whole = r"""{"model": "é \\n\"\u00e9\ud83d\ude00",
 "outputs": [true, false, null, -1.5e+10, 2E-3, 0.25, {}, [], ""] }""".encode()
    for length in range(1, len(whole)):
        said = f"the body ends in the middle of the JSON text, at byte {length}"
        assert problems(whole[:length]).problems == (Problem("", said),), whole[:length]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b" \r\n\t", "the body is empty, but for white space"),
        *((b"{} t", "Extra data"), (b'{"a": tru}', "Expecting value"), (b'{"a": 1.}', "Expecting")),
        *((b'{"a": "\\u12"}', "Invalid"), (b'{"a": "\\x', "Invalid")),
        *((b'{"a": "\n"}', "Invalid control character"), (b"[1, 2}", "Expecting")),
    ],
)
def test_what_is_wrong_before_the_end_is_not_taken_for_the_end(body: bytes, said: str) -> None:
    (problem,) = problems(body).problems
    assert said in problem.detail
    assert "middle" not in problem.detail


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        *(("5", 5.0), ("0.25", 0.25), ("1e-300", 1e-300), ("86400000", 86_400_000.0), ("86400001", 86_400_000.0)),
        *(("1e308", 86_400_000.0), ("9" * 400, 86_400_000.0)),
    ],
)
def test_a_timeout_is_clipped_at_a_day(text: str, milliseconds: float) -> None:
    assert read(b'{"sequences": [[[1, 2]]], "timeout_ms": %s}' % text.encode()).timeout_ms == milliseconds


def test_options_are_read() -> None:
    call = read({"sequences": [[[1, 2]]], "model": "sums", "version": "1", "outputs": ["attention"], "priority": 9})
    assert (call.attention, call.timeout_ms, call.priority) == (True, None, 9)
    call = read({"sequences": [[[1, 2]]]})
    assert (call.attention, call.timeout_ms, call.priority) == (False, None, 0)


@pytest.mark.parametrize("token", ["-1", "10", "1.0", "1e0", "true", '"1"', "null", "[1]", "9" * 5000])
def test_what_is_no_token_id_is_named(token: str) -> None:
    error = problems(b'{"sequences": [[0, 9], [3, %s]]}' % token.encode(), TOKENS)
    assert [problem.pointer for problem in error.problems] == ["/sequences/1/1"]


NAN = float("nan")
LONG = {"steps": [[i, i] for i in range(1, 6)], "step_mask": [True, True, True, False, True]}


@pytest.mark.parametrize(
    ("to", "sequence", "steps", "places"),
    [
        (manifest(), [[0, 0], [0, 0]], [[0, 0], [0, 0]], None),  # zeros are data
        (manifest(), [[3.4028235677973362e38, -1]], [[float(np.finfo(np.float32).max), -1]], None),
        (manifest(missing="mean"), [[None, 2]], [[NAN, 2]], None),
        (ONE, [1, [2], None, 3.5], [[1], [2], [NAN], [3.5]], None),
        (TOKENS, [0, 9, 0], [0, 9, 0], None),
        # a masked step was never sent, and does not count
        (manifest(), {"steps": [[1, 2], ["x"], [5, 6]], "step_mask": [True, False, True]}, [[1, 2], [5, 6]], [0, 2]),
        (manifest(), {"steps": [[1, 2]], "step_mask": [True]}, [[1, 2]], None),
        (manifest(), {"steps": [[1, 2]], "feature_mask": [True, True]}, [[1, 2]], None),
        (ONE, {"steps": [[1], [3]], "feature_mask": [False]}, [[NAN], [NAN]], None),
        (manifest(max_length=4), LONG, [[1, 1], [2, 2], [3, 3], [5, 5]], [0, 1, 2, 4]),
        (manifest(max_length=2, long="head"), LONG, [[1, 1], [2, 2]], [0, 1]),
        (manifest(max_length=2, long="tail"), LONG, [[3, 3], [5, 5]], [2, 4]),
        (manifest(max_length=2, long="window"), [[1, 2]] * 7, [[1, 2]] * 7, None),
    ],
)
def test_a_sequence_is_read(to: Manifest, sequence: Any, steps: Any, places: Any) -> None:
    (item,) = read({"sequences": [sequence]}, to).items
    assert np.array_equal(item.steps, np.array(steps, dtype=item.steps.dtype), equal_nan=item.steps.dtype == np.float32)
    assert item.steps.dtype == (np.int64 if to is TOKENS else np.float32)
    assert (None if item.step_indices is None else item.step_indices.tolist()) == places
    assert item.sent_steps == len(sequence["steps"] if isinstance(sequence, dict) else sequence)


@pytest.mark.parametrize("character", ["\U0001f600", "é", "\\", '"', "\u2028"])
def test_an_id_is_any_text_of_256_characters(character: str) -> None:
    identifier = character * 256
    assert read({"sequences": [{"id": identifier, "steps": [[1, 2]]}]}).items[0].id == identifier


@pytest.mark.long
def test_the_collector_rests_while_a_document_lives_and_runs_again_afterwards() -> None:
    ran: list[str] = []
    body, rules = b'{"sequences":[[' + b",".join([b"[]"] * 20_000) + b"]]}", manifest(max_length=20_000)
    gc.collect()  # none is due for what was made before
    gc.callbacks.append(lambda phase, _: ran.append(phase))
    try:
        error = problems(body, rules)
        assert ran == []
    finally:
        gc.callbacks.pop()
    assert error.total == 20_000
    assert gc.isenabled()


def test_a_collector_that_was_at_rest_is_left_so() -> None:
    gc.disable()
    try:
        read({"sequences": [[[1, 2]]]})
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("number", [b"0.5", b"5"])
def test_other_threads_go_on_while_the_numbers_of_a_large_body_are_read(number: bytes) -> None:
    body = b"[" + b",".join([number] * 400_000) + b"]"
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        reader = threading.Thread(target=json_text.parse, args=(body,))
        reader.start()
        turns = 0
        while reader.is_alive():
            turns += 1
            time.sleep(0)  # lets the interpreter go, and asks for it again
    finally:
        sys.setswitchinterval(interval)
    assert turns > 20


@pytest.mark.parametrize(
    "body", [b'{"sequences": [[[1]]]}', b'{"sequences": [[[1, 2', b'{"sequences": [], "model": "x"}']
)
def test_a_refusal_does_not_hold_the_document(body: bytes) -> None:
    error = problems(body)
    assert error.__context__ is None
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert not {"_call", "parse"} & set(frames)


@pytest.mark.parametrize(
    ("steps", "pointer"),
    [
        ("[1]", "/sequences/0/0"),
        ("[[]]", "/sequences/0/0"),
        ('[1, "a"]', "/sequences/0/0/1"),
        ("[1, null]", "/sequences/0/0/1"),
        ("[1e999, 1]", "/sequences/0/0/0"),
        ("{}", "/sequences/0/1"),
    ],
)
def test_all_that_is_wrong_is_counted_and_only_the_first_is_listed(steps: str, pointer: str) -> None:
    first = "[1, 2]," if steps == "{}" else ""
    error = problems(b'{"sequences": [[%s%s]]}' % (first.encode(), b",".join([steps.encode()] * 900)), manifest())
    assert (error.total, len(error.problems)) == (900, 20)
    assert error.problems[0].pointer == pointer


def test_past_very_many_problems_no_more_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_PROBLEMS", 100)
    error = problems(b'{"sequences": [[' + b",".join([b"[1]"] * 900) + b"]]}", manifest())
    assert (error.total, error.detail) == (100, "at least 100 things are wrong with the body; the rest was not read")
