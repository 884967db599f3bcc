import pytest

from lengthwise.decoding import options
from lengthwise.errors import InvalidRequest
from lengthwise.protocols.binary_bodies import PARAMETERS, read_query


def test_a_query_that_comes_again_has_the_same_options_and_problems_of_its_own() -> None:
    query = b"model=vowels&version=3&priority=2&timeout_ms=1e3"
    first, again = (read_query(query, PARAMETERS) for _ in range(2))
    assert first == again
    assert first[0] == options.CallOptions(model="vowels", version="3", priority=2, timeout_ms=1000.0)
    first[2].add("", "no such alias")
    assert read_query(query, PARAMETERS)[2].total == 0


def test_a_wrong_query_is_wrong_each_time() -> None:
    for _ in range(3):
        asked, _, problems = read_query(b"priority=11&colour=red", PARAMETERS)
        assert asked == options.CallOptions()
        assert problems.total == 2
        assert [problem.detail.split(":")[0] for problem in problems.first] == [
            "query parameter colour",
            "query parameter priority",
        ]
        problems.add("", "another")


def test_the_same_query_may_be_right_for_one_body_and_wrong_for_another() -> None:
    assert read_query(b"id=a", PARAMETERS)[1] == "a"
    assert read_query(b"id=b", PARAMETERS)[1] == "b"
    assert read_query(b"id=a", options.FIELDS)[2].total == 1
    assert read_query(b"id=a", PARAMETERS)[2].total == 0


@pytest.mark.parametrize("query", [b"model=" + b"x" * 4096, b"model=%ff", b"\xff"])
def test_what_is_no_query_is_refused_each_time(query: bytes) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            read_query(query, PARAMETERS)
