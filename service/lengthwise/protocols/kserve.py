"""What KServe's two protocols share: how a path names a model, and refusals as `{"error": "..."}`.

Statuses are those of `POST /predict`, but 400 instead of 422.
"""

from __future__ import annotations

import orjson
from starlette.responses import Response

from lengthwise.errors import InvalidRequest, Problem, RequestError
from lengthwise.protocols import problems
from lengthwise.protocols.endpoint import JSON, Headers
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving
from lengthwise.versions import is_alias, is_written_as_version


def is_path(path: str) -> bool:
    """Whether a path belongs to one of KServe's two protocols."""
    return path in ("/v1", "/v2") or path.startswith(("/v1/", "/v2/"))


def find(serving: Serving, name: str | None, version: str | None) -> ServedModel:
    """The model that a path or a message names; None for the default.

    Raises:
        InvalidRequest: The version has another form. That there is no such model, or none is ready, is a RequestError.
    """
    if version is not None and not is_written_as_version(version) and not is_alias(version):
        raise InvalidRequest([Problem("", "a version is ASCII digits that do not start with 0")])
    return serving.find(name, version)


def status_of(error: RequestError) -> int:
    """The status of a refusal."""
    return 400 if error.status == InvalidRequest.status else error.status


def refusal(error: RequestError) -> tuple[int, bytes, Headers]:
    """Status, body and headers of a refusal."""
    headers = [JSON, *(header for header in problems.headers(error) if header[0] != JSON[0])]
    return status_of(error), orjson.dumps({"error": sentence(error)}), headers


def response(error: RequestError, path: str) -> Response:
    """A refusal as a response, in the form of the protocol of a path; problem+json for a path outside KServe's."""
    status, body, headers = refusal(error) if is_path(path) else problems.refusal(error)
    return Response(body, status, headers={name.decode(): value.decode() for name, value in headers})


def sentence(error: RequestError) -> str:
    """A refusal as one line: its detail, or the problems of a bad body with their places."""
    if not isinstance(error, InvalidRequest):
        return error.detail
    listed = "; ".join(f"{problem.pointer}: {problem.detail}".removeprefix(": ") for problem in error.problems)
    more = error.total - len(error.problems)
    text = f"{listed}; and {more} more" if more else listed
    return text.encode("utf-8", "replace").decode()
