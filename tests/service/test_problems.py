import orjson
import pytest

from lengthwise import errors
from lengthwise.errors import InvalidRequest, Problem, QueueFull, RequestError, TooLarge, Unauthorized
from lengthwise.protocols import problems

REFUSALS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError) and kind not in (RequestError, errors.Refused)
]
"""Every class of refusal that has a status of its own."""


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_says_its_status_twice_and_its_detail_once(kind: type[RequestError]) -> None:
    error = kind([Problem("", "why")]) if issubclass(kind, InvalidRequest) else kind("why")
    made = orjson.loads(problems.encode(error))
    assert (made["type"], made["title"], made["status"], made["detail"]) == (
        "about:blank",
        kind.title,
        kind.status,
        "why",
    )
    assert dict(problems.headers(error))[b"content-type"] == b"application/problem+json"


def test_a_bad_body_is_told_with_pointers_and_their_number() -> None:
    made = problems.document(InvalidRequest([Problem("/a", "x"), Problem("/b", "y")], total=30))
    assert made["errors"] == [{"pointer": "/a", "detail": "x"}, {"pointer": "/b", "detail": "y"}]
    assert made["errors_total"] == 30


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, None), (0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (59.5, b"60")]
)
def test_a_wait_that_is_known_is_told_in_whole_seconds_and_never_as_none(
    seconds: float | None, text: bytes | None
) -> None:
    headers = problems.headers(QueueFull("full", retry_after_seconds=seconds))
    assert dict(headers).get(b"retry-after") == text
    assert problems.CLOSE not in headers


def test_a_refused_key_names_the_scheme_and_an_unread_body_closes() -> None:
    assert dict(problems.headers(Unauthorized("no key")))[b"www-authenticate"] == b"Bearer"
    assert problems.CLOSE in problems.headers(TooLarge("too large"))


def test_text_that_is_no_unicode_is_still_told() -> None:
    made = orjson.loads(problems.encode(InvalidRequest([Problem("/\ud800", "\udfff é")])))
    assert made["errors"] == [{"pointer": "/?", "detail": "? é"}]
    assert made["status"] == 422
