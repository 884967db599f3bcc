"""The options of a request, in whatever protocol: its model and version, further outputs, timeout and priority."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding.calls import MAX_TIMEOUT_MS, Find, Problems
from lengthwise.decoding.json_text import kind
from lengthwise.errors import NoSuchAlias, RequestError
from lengthwise.versions import MOST_DIGITS, is_alias, is_written_as_version

if TYPE_CHECKING:
    from lengthwise.repository.registry import ServedModel

FIELDS: Final = frozenset({"model", "version", "outputs", "timeout_ms", "priority"})
OUTPUTS: Final = ("attention", "state")
"""What an answer may have besides what it always has."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The options of one request; an option that was wrong has its default value."""

    model: str | None = None  # None: the only model
    version: str | None = None  # digits or an alias; None: the default version
    names_are_valid: bool = True  # model and version are valid texts, so that the model can be looked up
    outputs: tuple[str, ...] = ()  # of `OUTPUTS`
    timeout_ms: float | None = None  # None: the server's default
    priority: int = 0  # higher first


def read(document: Mapping[str, Any], problems: Problems, at: str = "", known: Sequence[str] = OUTPUTS) -> CallOptions:
    """Reads the options among the fields of a JSON object at the pointer `at`; adds what is wrong to `problems`.

    `known` are the outputs that this form of a call may ask for.
    """
    problems_before = problems.total
    model, version = _string(document, "model", problems, at), _version(document, problems, at)
    names_are_valid = problems.total == problems_before
    _string(document, "signature_name", problems, at)  # clients of TensorFlow Serving send it: only checked
    outputs = document.get("outputs", [])
    if not isinstance(outputs, list):
        problems.add(f"{at}/outputs", f"must be an array of output names, got {kind(outputs)}")
        outputs = []
    for i, name in enumerate(outputs):
        if name not in known:
            problems.add(f"{at}/outputs/{i}", partial(_output_message, name, known))
    timeout_ms = _timeout_ms(document, problems, at)
    priority = document.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        problems.add(f"{at}/priority", f"must be a whole number from 0 to {MAX_PRIORITY}")
        priority = 0
    return CallOptions(model, version, names_are_valid, tuple(outputs), timeout_ms, priority)


def find_model(call_options: CallOptions, find: Find, problems: Problems, *, in_query: bool = False) -> ServedModel:
    """The model that a request asks for; None as name or version means the only model, or its default version.

    `problems` are those of the request so far. With `in_query` the version was in the URL, and not in a JSON body.

    Raises:
        InvalidRequest: There are problems; or the alias that is asked for as version does not exist.
        RequestError: The model is not known or not ready, and there are no problems.
    """  # noqa: DOC502 - `error` makes the first
    if not call_options.names_are_valid:  # without the model the sequences cannot be checked
        raise problems.error()
    try:
        return find(call_options.model, call_options.version)
    except NoSuchAlias as error:
        pointer, prefix = ("", "query parameter version: ") if in_query else ("/version", "")
        problems.add(pointer, prefix + error.problems[0].detail)
        raise problems.error() from None
    except RequestError:
        problems.require_none()
        raise


def _output_message(name: Any, known: Sequence[str]) -> str:
    """The message for a name of an output that is not known."""
    return f"must be {' or '.join(map(repr, known))}, got {repr(name[:40]) if isinstance(name, str) else kind(name)}"


def _string(document: Mapping[str, Any], name: str, problems: Problems, at: str) -> str | None:
    """The text in a field; None if it is absent, or no text, which is added to `problems`."""
    value = document.get(name)
    if name not in document or isinstance(value, str):
        return value
    problems.add(f"{at}/{name}", f"must be a string, got {kind(value)}")
    return None


def _version(document: Mapping[str, Any], problems: Problems, at: str) -> str | None:
    """The version: digits or an alias; None if it is absent, or wrong, which is added to `problems`."""
    value = document.get("version")
    if type(value) is int and 0 < value < 10**MOST_DIGITS:
        problems.add(f"{at}/version", f'must be a string, got a number: write "version": "{value}"')
        return None
    version = _string(document, "version", problems, at)
    if version is None or is_written_as_version(version) or is_alias(version):
        return version
    problems.add(f"{at}/version", 'must be ASCII digits that do not start with 0, like "1"')
    return None


def _timeout_ms(document: Mapping[str, Any], problems: Problems, at: str) -> float | None:
    """The timeout in milliseconds, at most `MAX_TIMEOUT_MS`; None if it is absent, or wrong, which adds a problem."""
    value = document.get("timeout_ms")
    if "timeout_ms" not in document:
        return None
    if type(value) is not float and type(value) is not int:
        problems.add(f"{at}/timeout_ms", f"must be a number of milliseconds, got {kind(value)}")
    elif not value > 0 or value == math.inf:
        problems.add(f"{at}/timeout_ms", "must be finite and above 0")
    else:
        return float(min(value, MAX_TIMEOUT_MS))
    return None
