"""The answers of a server: the predictions in a body with status 200, and the error of a refusal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from lengthwise.api import Predictions, prediction_of
from lengthwise.client.bodies import RequestBody
from lengthwise.errors import InvalidRequest, InvalidSequences, NotReady, Problem, Refused, RequestError, StateConflict

_CONFLICT: Final = StateConflict.status
_BODY_IS_WRONG: Final = (400, 422, _CONFLICT)  # statuses of a body whose answer lists what is wrong
_LONGEST_SHOWN: Final = 500  # bytes of an answer that is no JSON, in the text of an error


def predictions_of(content: bytes) -> Predictions:
    """Reads the predictions in the body of an answer of `POST /predict`.

    Raises:
        ValueError: The body has another form.
    """
    try:
        document = orjson.loads(content)
        model, version, labels = document["model"], document["version"], tuple(document["labels"])
        entries = [prediction_of(entry, labels, version) for entry in document["predictions"]]
        return Predictions(entries, model, version, labels)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the answer is not that of POST /predict: {error!r}") from error


def error_of(
    status: int,
    content: bytes,
    retry_after: str | None,
    body: RequestBody | None = None,
    via: str = "",
    asked: str = "",
) -> RequestError:
    """Makes the error of an answer with a status of failure; its class is the one of `lengthwise.errors` for it.

    Args:
        status: The status of the answer. If several classes have it, the title in the answer chooses one.
        content: The body of the answer.
        retry_after: The header `Retry-After`; None without one.
        body: The body of the request, a part of the caller's sequences: problems in the answer are changed to point
            into all of them. None for a request without sequences.
        via: A text about the proxy that may have written the answer, or empty.
        asked: A text about the path that was asked, for an answer that nothing is there, or empty.
    """
    document = _document(content)
    text = document.get("detail", document.get("error"))
    detail = text if isinstance(text, str) else content[:_LONGEST_SHOWN].decode("utf-8", "replace") + via
    if status in _BODY_IS_WRONG:
        return _body_error(document, detail, body, status)
    # The classes of the status; of several, the one with the title of the answer
    kinds = [kind for base in (RequestError, Refused) for kind in base.__subclasses__() if kind.status == status]
    default_kind = NotReady if NotReady in kinds else next(iter(kinds), RequestError)  # several have 503
    kind = next((candidate for candidate in kinds if candidate.title == document.get("title")), default_kind)
    if kind is RequestError:
        detail = f"the server answered {status}: {detail}"
    if document.get("title") != kind.title and status == 404:  # the answer of no model
        detail += asked
    return kind(detail, retry_after_seconds=seconds_of(retry_after))


def _body_error(document: Mapping[str, Any], detail: str, body: RequestBody | None, status: int) -> RequestError:
    """Makes the error for a body that is wrong, with each problem that the answer lists, or `detail` if it lists none.

    `document` is the answer, `body` the body of the request; None if that had no sequences. `status` is that of the
    answer.
    """
    listed = document.get("errors")
    problems = [
        _problem(entry["pointer"], entry["detail"], body)
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, Mapping) and all(isinstance(entry.get(name), str) for name in ("pointer", "detail"))
    ] or [Problem("", detail)]
    # The total may be larger than the list, but not smaller.
    listed_total = document.get("errors_total")
    total = max(listed_total, len(problems)) if isinstance(listed_total, int) else len(problems)
    kind: type[InvalidRequest] = InvalidRequest if body is None else InvalidSequences
    kind = StateConflict if status == _CONFLICT else kind
    return kind(problems, total=total, more=detail.startswith("at least "))


def _problem(pointer: str, detail: str, body: RequestBody | None) -> Problem:
    """A problem of a body, with its pointer changed to one into all sequences of the caller.

    If `body` begins with sequence 100, `/sequences/3/steps` becomes `/sequences/103/steps`.
    """
    problem = Problem(pointer, detail)
    if body is None or problem.sequence is None:
        return problem
    return Problem("/".join(["", "sequences", str(body.first + problem.sequence), *pointer.split("/")[3:]]), detail)


def _document(content: bytes) -> Mapping[str, Any]:
    """Parses the JSON object of an answer; {} if the answer is something else."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, Mapping) else {}


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds that the header `Retry-After` asks to wait; it has seconds, or a date. None if it has neither."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
