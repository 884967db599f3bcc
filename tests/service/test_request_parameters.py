"""What a request says in parameters, and what of it is refused rather than passed over."""

from typing import Any

import pytest

from lengthwise.decoding.calls import Problems
from lengthwise.protocols import request_parameters
from lengthwise.protocols.request_parameters import RequestedOutput


def noted(problems: Problems) -> list[str]:
    return [f"{problem.pointer}: {problem.detail}" for problem in problems.first]


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


@pytest.mark.parametrize("count", [0, -1, True, False, 1.0, "3", None, [3], {}])
def test_a_count_of_classes_is_a_whole_number_from_1(count: Any) -> None:
    problems = Problems()
    assert (
        request_parameters.output("label", {"classification": count}, "/outputs/2/parameters", problems).classes is None
    )
    assert noted(problems) == [
        "/outputs/2/parameters/classification: must be the number of classes wanted, a whole number from 1"
    ]


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"])
def test_an_output_in_shared_memory_is_refused(name: str) -> None:
    problems = Problems()
    request_parameters.output("label", {name: 1}, "/at", problems)
    assert noted(problems) == [
        f"/at/{name}: no memory is shared with clients: elements travel in the request and answer"
    ]


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
@pytest.mark.parametrize("value", [None, 0, "", False])
def test_what_clients_send_that_mean_no_sequence_of_requests_is_taken(name: str, value: Any) -> None:
    problems = Problems()
    request_parameters.check({name: value, "mine": 1}, "/parameters", problems)
    assert not problems.total


@pytest.mark.parametrize(
    ("name", "value"), [("sequence_id", 1), ("sequence_id", "a"), ("sequence_start", True), ("sequence_end", [])]
)
def test_a_sequence_of_requests_is_refused(name: str, value: Any) -> None:
    problems = Problems()
    request_parameters.check({name: value}, "/parameters", problems)
    assert noted(problems) == [
        f"/parameters/{name}: nothing is kept from one request to the next: send whole sequences"
    ]


def test_a_classification_of_no_output_is_refused() -> None:
    problems = Problems()
    request_parameters.check({"classification": 3}, "/parameters", problems)
    assert noted(problems) == ["/parameters/classification: belongs in the parameters of an output"]
