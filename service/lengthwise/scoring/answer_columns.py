"""The columns that a table gets for answers: names and values of fields of `POST /predict`, by the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest

ColumnKind = Literal["text", "texts", "number", "numbers", "numbers of steps", "count", "windows"]
"""A string, several, float32, several, several a step, int32, the windows of a sequence."""


Rows = Sequence[Mapping[str, Any]]  # One prediction a row, in the form of `POST /predict`, or its error under `error`


class AnswerColumn(NamedTuple):
    """A column of answers, and the field of a prediction that it holds."""

    name: str
    field: str
    kind: ColumnKind


def answer_columns(manifest: Manifest, *, attention: bool, errors: bool, prefix: str = "") -> list[AnswerColumn]:
    """The columns, in the order in which they follow the table's own; `errors`: one for the error of a row."""
    fields: dict[str, ColumnKind]
    if manifest.task == "single-label":
        fields = {"label": "text", "score": "number", "probabilities": "numbers"}
    elif manifest.task == "multi-label":
        fields = {"assigned": "texts", "probabilities": "numbers"}
    else:
        fields = {"step_labels": "texts", "step_scores": "numbers", "probabilities": "numbers of steps"}
    fields["length"] = "count"
    if attention:
        fields["attention"] = "numbers"
    if manifest.long == "window":
        fields["windows"] = "windows"
    if errors:
        fields["error"] = "text"
    return [AnswerColumn(prefix + field, field, kind) for field, kind in fields.items()]


def check_names(own: Sequence[str], columns: Sequence[AnswerColumn]) -> None:
    """Checks that a table does not have a column of an answer's name already, such as the right `label`."""
    twice = [column.name for column in columns if column.name in own]
    if twice:
        raise ConfigurationError(
            f"the batch has a column {', '.join(map(repr, twice))}, and so have the answers; "
            "Scorer(..., prefix='predicted_') puts a prefix before the names of the answers"
        )
