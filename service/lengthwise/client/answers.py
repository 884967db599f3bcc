"""The answers of a server: predictions of a body that was answered, and the error of one that was refused."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.api import Prediction, prediction_of
from lengthwise.client.bodies import ARROW, RequestBody
from lengthwise.errors import InvalidRequest, InvalidSequences, NotReady, Problem, Refused, RequestError
from lengthwise.reports import notebook

_BODY_IS_WRONG: Final = (400, 422)
_LONGEST_SHOWN: Final = 500
_OF_ARRAYS: Final = ("probabilities", "step_scores", "attention")


class Predictions(notebook.PredictionList):
    """The predictions for the sequences of one call, in their order: a list that a notebook shows as a table.

    It has the `model` and `version` that answered (of a split call the first; each prediction has its own), and the
    `labels` in the order of the probabilities.
    """

    def __init__(self, predictions: Sequence[Prediction], model: str, version: str, labels: tuple[str, ...]) -> None:
        super().__init__(predictions)
        self.model = model
        self.version = version
        self.labels = labels


def predictions_of(content: bytes, media_type: str) -> Predictions:
    """The predictions in the body of a 200.

    Raises:
        ValueError: The body has another form.
    """
    try:
        model, version, labels, entries = _of_arrow(content) if media_type == ARROW else _of_json(content)
        return Predictions([prediction_of(entry, labels, version) for entry in entries], model, version, labels)
    except (OSError, AttributeError, KeyError, TypeError) as error:  # cut off, or another stream
        raise ValueError(f"the answer is not that of POST /predict: {error!r}") from error


_Told = tuple[str, str, tuple[str, ...], Iterable[Mapping[str, Any]]]  # model, version, labels, and each prediction


def _of_json(content: bytes) -> _Told:
    document = orjson.loads(content)
    return document["model"], document["version"], tuple(document["labels"]), document["predictions"]


def _of_arrow(content: bytes) -> _Told:
    import pyarrow as pa

    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    metadata = table.schema.metadata
    values = {name: _arrays(column) if name in _OF_ARRAYS else column.to_pylist() for name, column in columns.items()}
    rows = ({name: column[row] for name, column in values.items()} for row in range(table.num_rows))
    return metadata[b"model"].decode(), metadata[b"version"].decode(), tuple(orjson.loads(metadata[b"labels"])), rows


def _arrays(column: Any) -> list[NDArray[np.float32]]:
    """For each row of a list column its numbers, `[entries]` or `[entries, classes]`, with NaN for null."""
    import pyarrow as pa

    whole = _floats(column.values)
    if pa.types.is_fixed_size_list(column.type):
        return list(whole.reshape(len(column), -1))
    offsets: list[int] = column.offsets.to_pylist()
    return [whole[start:end] for start, end in itertools.pairwise(offsets)]


def _floats(values: Any) -> NDArray[np.float32]:
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(values.type):
        numbers: NDArray[np.float32] = values.to_numpy(zero_copy_only=False)
        return numbers
    rows: NDArray[np.float32] = values.values.to_numpy(zero_copy_only=False).reshape(len(values), -1)
    if values.null_count:
        rows = np.where(values.is_valid().to_numpy(zero_copy_only=False)[:, None], rows, np.float32(np.nan))
    return rows


def error_of(
    status: int, content: bytes, retry_after: str | None, body: RequestBody | None = None, via: str = ""
) -> RequestError:
    """The error of a refusal, with pointers to the caller's sequences; `via`: the proxy, if it may be the proxy's."""
    document = _document(content)
    said = document.get("detail", document.get("error"))
    detail = said if isinstance(said, str) else content[:_LONGEST_SHOWN].decode("utf-8", "replace") + via
    if status in _BODY_IS_WRONG:
        return _wrong_body(document, detail, body)
    kinds = [kind for base in (RequestError, Refused) for kind in base.__subclasses__() if kind.status == status]
    of_status = NotReady if status == NotReady.status else kinds[0] if kinds else RequestError
    kind = next((one for one in kinds if one.title == document.get("title")), of_status)
    if kind is RequestError:
        detail = f"the server answered {status}: {detail}"
    return kind(detail, retry_after_seconds=seconds_of(retry_after))


def _wrong_body(document: Mapping[str, Any], detail: str, body: RequestBody | None) -> RequestError:
    listed = document.get("errors")
    problems = [
        _problem(entry["pointer"], entry["detail"], body)
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, Mapping) and all(isinstance(entry.get(name), str) for name in ("pointer", "detail"))
    ] or [Problem("", detail)]
    total = document.get("errors_total")
    if not isinstance(total, int) or total < len(problems):
        total = len(problems)
    kind = InvalidRequest if body is None else InvalidSequences
    return kind(problems, total=total, more=detail.startswith("at least "))


def _problem(pointer: str, detail: str, body: RequestBody | None) -> Problem:
    """What is wrong with a body, with a pointer into all sequences of the caller."""
    found = Problem(pointer, detail)
    if body is None or found.sequence is None:
        return found
    return Problem("/".join(["", "sequences", str(body.first + found.sequence), *pointer.split("/")[3:]]), detail)


def _document(content: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, Mapping) else {}


def seconds_of(retry_after: str | None) -> float | None:
    """The seconds of a header `Retry-After`, a number or a date; None where it has neither."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
