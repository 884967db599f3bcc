"""What a request says in parameters, and what of it is refused rather than passed over."""

from typing import Any

import pytest

from lengthwise.decoding.calls import Problems
from lengthwise.protocols import request_parameters
from lengthwise.protocols.request_parameters import SHARED_MEMORY, STATEFUL, RequestedOutput


@pytest.mark.parametrize(
    ("parameters", "output"),
    [
        ({}, RequestedOutput("label")),
        ({"binary_data": True}, RequestedOutput("label", binary=True)),
        ({"binary_data": False, "classification": 3}, RequestedOutput("label", binary=False, classes=3)),
        ({"mine": [], "content_type": "np"}, RequestedOutput("label")),
    ],
)
def test_an_output_is_wanted_as_its_parameters_say(parameters: dict[str, Any], output: RequestedOutput) -> None:
    problems = Problems()
    assert request_parameters.output("label", parameters, "/outputs/0/parameters", problems) == output
    assert not problems.total


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("classification", count) for count in (0, -1, True, False, 1.0, "3", None, [3], {})],
        *[("binary_data", value) for value in (0, 1, "true", None, [])],
        *[(name, 1) for name in SHARED_MEMORY],
    ],
)
def test_a_parameter_of_an_output_that_is_wrong_is_refused_at_its_place(name: str, value: Any) -> None:
    problems = Problems()
    found = request_parameters.output("label", {name: value}, "/outputs/2/parameters", problems)
    assert [problem.pointer for problem in problems.first] == [f"/outputs/2/parameters/{name}"]
    assert found == RequestedOutput("label")


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("value", [None, 0, "", False])
def test_what_clients_send_that_mean_no_sequence_of_requests_is_taken(name: str, value: Any) -> None:
    problems = Problems()
    request_parameters.check({name: value, "mine": 1}, "/parameters", problems)
    assert not problems.total


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sequence_id", 1), ("sequence_id", "a"), ("sequence_start", True), ("sequence_end", [])),
        *(("classification", 3), ("shared_memory_region", 1)),
    ],
)
def test_what_asks_for_something_that_is_not_done_is_refused(name: str, value: Any) -> None:
    problems = Problems()
    request_parameters.check({name: value}, "/parameters", problems)
    assert [problem.pointer for problem in problems.first] == [f"/parameters/{name}"]
