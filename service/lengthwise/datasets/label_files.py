"""Reads a file of labels that came later than their sequences, for `lengthwise label`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import orjson

from lengthwise.datasets.record_fields import Label, label_of
from lengthwise.datasets.text_files import lines
from lengthwise.errors import ConfigurationError


def read_labels(path: Path) -> dict[str, Label]:
    """Reads labels from JSON Lines, each `{"id": ..., "label": ...}`; returns the labels by id, which is a text.

    Raises:
        ConfigurationError: The file cannot be read, a line has another form, or two lines give one id different labels.
    """
    labels: dict[str, Label] = {}
    for number, line in lines(path, lambda _share: None):
        identifier = label = None
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):
            fields = orjson.loads(line)
            identifier, label = fields["id"], label_of(fields["label"], f"{path}:{number}")
        if label is None or type(identifier) not in (str, int):
            raise ConfigurationError(f'{path}:{number}: the form of a line is {{"id": "a1", "label": "walk"}}')
        if labels.setdefault(str(identifier), label) != label:
            raise ConfigurationError(f"{path}:{number}: the id {identifier!r} has another label before")
    return labels
