"""An answer is right when its sequences' probabilities are those they got alone, to the bit."""

import numpy as np
import orjson
import pytest

from lengthwise.bench.expected import Expected, scores, whole
from lengthwise.errors import ConfigurationError


def body(*probabilities: list[float], **fields: str) -> bytes:
    return orjson.dumps({**fields, "predictions": [{"probabilities": each} for each in probabilities]})


def test_the_same_probabilities_in_other_bytes_are_right():
    expected = Expected([body([0.25, 0.75])])
    assert expected.is_right(0, body([0.25, 0.75], version="2"))
    assert expected.is_right(0, body([0.25, 0.75], version="2"))


def test_the_last_bit_of_a_float32_counts():
    alone = np.float32(0.3)
    neighbour = np.nextafter(alone, np.float32(1))
    expected = Expected([body([float(alone)])])
    assert not expected.is_right(0, body([float(neighbour)]))


def test_another_requests_answer_is_wrong():
    expected = Expected([body([0.1]), body([0.2])])
    assert not expected.is_right(0, body([0.2]))
    assert expected.is_right(1, body([0.2]))


def test_a_wrong_answer_stays_wrong_when_it_comes_again():
    expected = Expected([body([0.1])])
    assert [expected.is_right(0, body([0.2])) for _ in range(2)] == [False, False]


def test_a_request_of_several_sequences_is_held_against_each_alone():
    expected = Expected([body([0.1]), body([0.2]), body([0.3]), body([0.4])], per_request=2)
    assert expected.is_right(0, body([0.1], [0.2]))
    assert expected.is_right(1, body([0.3], [0.4]))
    assert not expected.is_right(1, body([0.4], [0.3]))
    assert not expected.is_right(1, body([0.3]))


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"predictions": [3]}'])
def test_what_is_no_answer_is_wrong_under_load_and_refused_before_it(answer: bytes):
    assert not Expected([body([0.1])]).is_right(0, answer)
    with pytest.raises(ConfigurationError):
        scores(answer)


def test_a_binary_answer_is_right_when_no_byte_differs():
    expected = Expected([b"\x00\x01", b"\x00\x02"], read=whole)
    assert [expected.is_right(1, answer) for answer in (b"\x00\x02", b"\x00\x02", b"\x00\x01")] == [True, True, False]
