"""What a request says in parameters, and what of it is refused rather than passed over."""

from typing import Any

import pytest

from lengthwise.decoding.calls import Problems
from lengthwise.protocols import request_parameters
from lengthwise.protocols.request_parameters import SHARED_MEMORY, STATEFUL, OutputRequest


def output(parameters: dict[str, Any]) -> tuple[OutputRequest, list[str]]:
    """An output that is asked for so, and where something is wrong with that."""
    problems = Problems()
    found = request_parameters.output("label", parameters, "/outputs/2/parameters", problems)
    return found, [problem.pointer for problem in problems.first]


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, OutputRequest("label")),
        ({"binary_data": True}, OutputRequest("label", binary=True)),
        ({"binary_data": False, "classification": 3}, OutputRequest("label", binary=False, classes=3)),
        ({"mine": [], "content_type": "np"}, OutputRequest("label")),
    ],
)
def test_an_output_is_wanted_as_its_parameters_say(parameters: dict[str, Any], wanted: OutputRequest) -> None:
    assert output(parameters) == (wanted, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("classification", count) for count in (0, -1, True, False, 1.0, "3", None, [3], {})],
        *[("binary_data", value) for value in (0, 1, "true", None, [])],
        *[(name, 1) for name in SHARED_MEMORY],
    ],
)
def test_a_parameter_of_an_output_that_is_wrong_is_refused_at_its_place(name: str, value: Any) -> None:
    assert output({name: value}) == (OutputRequest("label"), [f"/outputs/2/parameters/{name}"])


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        *[(name, value, False) for name in STATEFUL for value in (None, 0, "", False)],
        *(("sequence_id", 1, True), ("sequence_id", "a", True), ("sequence_start", True, True)),
        *(("sequence_end", [], True), ("classification", 3, True), ("shared_memory_region", 1, True)),
    ],
)
def test_what_asks_for_something_that_is_not_done_is_refused(name: str, value: Any, refused: bool) -> None:
    problems = Problems()
    request_parameters.check({name: value, "mine": 1}, "/parameters", problems)
    assert [problem.pointer for problem in problems.first] == [f"/parameters/{name}"] * refused
