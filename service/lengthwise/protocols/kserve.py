"""What KServe's two protocols share: how a path names a model, and refusals as `{"error": "..."}`.

Their statuses are those of `POST /predict`, but with 400 in place of 422.
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
    """The model that a path or a message names; its default version if `version` is None.

    Raises:
        InvalidRequest: The version is not written as one. A model that does not exist, or is not ready, is another
            RequestError.
    """
    if version is not None and not is_written_as_version(version) and not is_alias(version):
        raise InvalidRequest([Problem("", "a version is ASCII digits that do not start with 0")])
    return serving.find(name, version)


def status_of(error: RequestError) -> int:
    """The HTTP status of a refusal in these protocols."""
    return 400 if error.status == InvalidRequest.status else error.status


def refusal(error: RequestError) -> tuple[int, bytes, Headers]:
    """The status, the body and the headers of a refusal."""
    headers = [JSON, *(header for header in problems.headers(error) if header[0] != JSON[0])]
    return status_of(error), orjson.dumps({"error": sentence(error)}), headers


def response(error: RequestError, path: str) -> Response:
    """A refusal as a Starlette response, in the form of the path's protocol; problem+json for other paths."""
    status, body, headers = refusal(error) if is_path(path) else problems.refusal(error)
    return Response(body, status, headers={name.decode(): value.decode() for name, value in headers})


def sentence(error: RequestError) -> str:
    """A refusal as one line of text: its detail, or the problems of a wrong body with their JSON pointers."""
    if not isinstance(error, InvalidRequest):
        return error.detail
    listed = "; ".join(f"{problem.pointer}: {problem.detail}".removeprefix(": ") for problem in error.problems)
    unlisted = error.total - len(error.problems)
    return (f"{listed}; and {unlisted} more" if unlisted else listed).encode("utf-8", "replace").decode()
