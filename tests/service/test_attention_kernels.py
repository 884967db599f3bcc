"""The kernels for attention of valid steps: what each instruction set computes, and what its bits depend on."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.kernels import _kernels
from lengthwise.runtime.onnx.valid_attention import INSTRUCTION_SETS

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="no kernels for this processor")

Floats = NDArray[np.float32]
LENGTHS = (33, 1, 129, 0, 16, 2, 300, 17, 0)
CLOSE = 2e-6


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions use one set after the other."""
    recurrent_kernels.choose(request.param, "attention")
    yield
    recurrent_kernels.choose(INSTRUCTION_SETS[0], "attention")
    recurrent_kernels.lend_cores(0)


def session(text: str) -> Any:
    """A session of a graph with the kernels."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18, "a": 1]> g {text}')
    for node in model.graph.node:
        node.domain = "lengthwise.attention"
    model.opset_import[1].domain = "lengthwise.attention"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    recurrent_kernels.register(options, "attention")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention(heads: int, scale: float = 0.5) -> Any:
    """Attention of three values."""
    return session(
        "(float[n, k] q, float[n, k] k, float[n, v] v, int32[rows] lengths) => (float[n, v] y) "
        f"{{ y = AttentionOfValidSteps <num_heads = {heads}, scale = {scale}> (q, k, v, lengths) }}"
    )


def steps(lengths: Sequence[int], size: int, value: int, *, rest: int = 3) -> dict[str, NDArray[Any]]:
    """Packed query, key and value of some features, and `rest` steps of NaN behind them."""
    random, valid = np.random.default_rng(len(lengths)), sum(lengths)
    given = {"lengths": np.array(lengths, np.int32)}
    for name, features in (("q", size), ("k", size), ("v", value)):
        numbers = random.standard_normal((valid + rest, features)).astype(np.float32)
        numbers[valid:] = np.nan
        given[name] = numbers
    return given


def expected(given: dict[str, NDArray[Any]], heads: int, scale: float = 0.5) -> Floats:
    """The definition, row by row and head by head; zeros behind the last row."""
    answer, begin = np.zeros(given["v"].shape), 0
    for length in given["lengths"]:
        row = slice(begin, begin + length)
        query, key, value = (np.split(given[name][row].astype(np.float64), heads, axis=1) for name in "qkv")
        for head in range(heads):
            scores = query[head] @ key[head].T * scale
            shares = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
            columns = slice(head * value[0].shape[1], (head + 1) * value[0].shape[1])
            answer[row, columns] = shares @ value[head] / shares.sum(axis=1, keepdims=True)
        begin += length
    return answer.astype(np.float32)


@pytest.mark.parametrize(("heads", "size", "value"), [(1, 1, 1), (2, 16, 16), (3, 5, 7), (1, 64, 33)])
def test_each_row_attends_to_its_own_steps(heads: int, size: int, value: int) -> None:
    given, scale = steps(LENGTHS, heads * size, heads * value), size**-0.5
    answer = attention(heads, scale).run(None, given)[0]
    np.testing.assert_allclose(answer, expected(given, heads, scale), rtol=1e-5, atol=CLOSE)


def test_one_value_may_have_all_three_side_by_side() -> None:
    given, lengths = steps(LENGTHS, 24, 24), np.array(LENGTHS, np.int32)
    of_one = session(
        "(float[n, t] q, int32[rows] lengths) => (float[n, v] y) "
        "{ y = AttentionOfValidSteps <num_heads = 3, scale = 0.5> (q, , , lengths) }"
    )
    joined = np.concatenate([given[name] for name in "qkv"], axis=1)
    answer = of_one.run(None, {"q": joined, "lengths": lengths})[0]
    assert np.array_equal(answer, attention(3).run(None, given)[0])


def test_a_row_may_have_fewer_queries_than_keys() -> None:
    given, counts, begins = steps(LENGTHS, 24, 24, rest=0), [1, 1, 20, 0, 0, 2, 1, 17, 0], [0, *np.cumsum(LENGTHS)[:-1]]
    some = session(
        "(float[m, k] q, float[n, k] k, float[n, v] v, int32[rows] lengths, int32[rows] counts) => (float[m, v] y) "
        "{ y = AttentionOfValidSteps <num_heads = 3, scale = 0.5> (q, k, v, lengths, counts) }"
    )
    asked = [step for begin, count in zip(begins, counts, strict=True) for step in range(begin, begin + count)]
    queries = np.append(given["q"][asked], np.full((2, 24), np.nan, np.float32), axis=0)
    answer = some.run(None, given | {"q": queries, "counts": np.array(counts, np.int32)})[0]
    assert np.array_equal(answer[:-2], attention(3).run(None, given)[0][asked])
    assert not answer[-2:].any()
    for wrong in ([1] * 8, [1] * 9, [-1, *counts[1:]], [50, *counts[1:]]):  # the fourth row has no keys
        with pytest.raises(Exception, match=r"do not fit|not between"):
            some.run(None, given | {"q": queries, "counts": np.array(wrong, np.int32)})


def test_a_row_has_the_same_bits_in_any_company_and_on_any_cores() -> None:
    given, runtime = steps(LENGTHS, 32, 32, rest=0), attention(2)
    together = runtime.run(None, given)[0]
    for lent in (1, 8):
        recurrent_kernels.lend_cores(lent, soon=True)
        assert np.array_equal(runtime.run(None, given)[0], together)
    ends = np.cumsum(LENGTHS)
    for length, end in zip(LENGTHS, ends, strict=True):
        alone = {name: given[name][end - length : end] for name in "qkv"} | {"lengths": np.array([length], np.int32)}
        assert np.array_equal(runtime.run(None, alone)[0], together[end - length : end])


def test_a_core_that_is_wanted_is_given_back_within_a_row() -> None:
    given, runtime = steps((3000, 3000), 32, 32, rest=0), attention(1)  # one row for each core
    expected_answer = runtime.run(None, given)[0]
    before = time.thread_time()
    runtime.run(None, given)
    row, parts = (time.thread_time() - before) / 2, list[float]()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        recurrent_kernels.lend_cores(1, soon=True)
        taking_back = threading.Timer(row / 4, recurrent_kernels.lend_cores, (0,))
        taking_back.start()
        helped = _kernels.helped()
        assert np.array_equal(runtime.run(None, given)[0], expected_answer)
        taking_back.join()
        parts.append((_kernels.helped() - helped) / row)
        if 0 < parts[-1] < 0.8:
            return
    pytest.fail(f"a helper did these parts of its row: {parts}")


def test_large_scores_and_far_smaller_ones_are_shares() -> None:
    given = steps((150,), 8, 8, rest=0)
    for name, factor in (("q", 30), ("k", 30), ("v", 1e30)):
        given[name] = given[name] * np.float32(factor)
    given["k"][140] *= 5  # in the second block of keys: what was summed before is made smaller
    np.testing.assert_allclose(attention(1).run(None, given)[0], expected(given, 1), rtol=1e-3, atol=1e26)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFFFFFFF])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_stays_in_its_row(bits: int, name: str) -> None:
    given, runtime = steps((5, 140, 3), 8, 8), attention(1)
    before = runtime.run(None, given)[0]
    given[name][144] = np.array(bits, np.uint32).view(np.float32)  # the last step of the second row
    answer = runtime.run(None, given)[0]
    assert np.isnan(answer[144:145] if name == "q" else answer[5:145]).all()
    others = [*range(5), *range(145, 148)]
    assert np.array_equal(answer[others], before[others])


@pytest.mark.parametrize(
    ("lengths", "query", "heads"), [((3, -1), 4, 2), ((3, 8), 4, 2), ((3, 1), 3, 2), ((3, 1), 6, 2), ((3, 1), 4, 0)]
)
def test_what_does_not_fit_is_an_error(lengths: tuple[int, int], query: int, heads: int) -> None:
    given = steps((3, 1), 4, 4) | {"lengths": np.array(lengths, np.int32), "q": np.zeros((7, query), np.float32)}
    with pytest.raises(Exception, match=r"do not fit|not between|without heads"):
        attention(heads).run(None, given)


HIDDEN = -np.inf


@pytest.mark.parametrize("middle", [(), (1,), (1, 1), (2, 4)])
def test_lengths_are_read_from_a_mask_that_hides_what_is_past_them(middle: tuple[int, ...]) -> None:
    mask = np.array([[0, 0, 0, -1e9], [-0.0, HIDDEN, HIDDEN, HIDDEN], [0, 0, 0, 0], [HIDDEN] * 4], np.float32)
    shape = [4, *middle, 4]
    of_all = np.broadcast_to(mask.reshape(4, *(1 for _ in middle), 4), shape).copy()
    axes = ", ".join("abcd"[: len(shape)])
    outputs = "(int32[a] lengths, int32[a] first) { lengths, first = LengthsOfMask (mask) }"
    lengths, first = session(f"(float[{axes}] mask) => {outputs}").run(None, {"mask": of_all})
    assert (lengths.tolist(), first.tolist()) == ([3, 1, 4, 0], [1, 1, 1, 0])


@pytest.mark.parametrize("row", [[0, HIDDEN, 0], [0, 0, 0.5], [np.nan, 0, 0], [0, 0, -100], [HIDDEN, 0, 0]])
def test_a_mask_of_something_else_is_an_error(row: list[float]) -> None:
    runtime = session("(float[a, b] mask) => (int32[a] lengths) { lengths = LengthsOfMask (mask) }")
    with pytest.raises(Exception, match="not of the steps past the end"):
        runtime.run(None, {"mask": np.array([[0, 0, 0], row], np.float32)})


def of_queries(axes: str) -> Any:
    """A session that reads lengths from masks of each query."""
    return session(f"(float[{axes}] mask) => (int32[a] lengths) {{ lengths = LengthsOfMask (mask) }}")


def test_queries_past_the_end_of_a_row_may_have_another_mask() -> None:
    mask = np.zeros((2, 3, 4, 4), np.float32)
    mask[1, :, :, 2:] = mask[1, :, 2:] = HIDDEN
    assert of_queries("a, b, c, d").run(None, {"mask": mask})[0].tolist() == [4, 2]
    assert of_queries("a, c, d").run(None, {"mask": mask[:, 0]})[0].tolist() == [4, 2]


@pytest.mark.parametrize("place", [(1, 0, 1, 0), (1, 2, 1, 1), (1, 2, 0, 2), (0, 1, 3, 3)])
@pytest.mark.parametrize("number", [HIDDEN, 0.0, 1e-6, np.nan])
def test_valid_queries_of_all_heads_have_one_mask(place: tuple[int, ...], number: float) -> None:
    mask = np.zeros((2, 3, 4, 4), np.float32)
    mask[1, :, :, 2:] = HIDDEN
    is_same = mask[place] == number
    mask[place] = number
    runtime = of_queries("a, b, c, d")
    if is_same:
        assert runtime.run(None, {"mask": mask})[0].tolist() == [4, 2]
    else:
        with pytest.raises(Exception, match="not of the steps past the end"):
            runtime.run(None, {"mask": mask})


def test_sets_are_chosen_by_name() -> None:
    assert _kernels.chosen("attention") in INSTRUCTION_SETS
    with pytest.raises(ValueError, match="no abacus"):
        recurrent_kernels.choose("abacus", "attention")
