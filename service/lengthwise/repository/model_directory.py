"""Which model directory a path names: a version (`models/vowels/1`), or a model for its highest version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import MANIFEST_FILE
from lengthwise.versions import highest_version, is_version

_MOST_LISTED: Final = 5  # models that a message lists


def model_directory(path: Path) -> Path:
    """The model directory for a path: the path itself, or the highest version in it."""
    absolute = Path(os.path.abspath(path))  # by the names that the caller sees, as the service does
    if (path / MANIFEST_FILE).is_file():
        return absolute if is_version(absolute.name) else absolute.resolve()
    try:
        highest = highest_version(absolute)
        models = sorted({str(file.parent.parent) for file in path.glob(f"*/*/{MANIFEST_FILE}")})
    except OSError as error:
        raise ConfigurationError(f"the model directory {path} cannot be read: {error.strerror}") from error
    if highest is not None:
        return highest
    instead = f"; it holds models, so name one of {', '.join(models[:_MOST_LISTED])}" if models else ""
    raise ConfigurationError(
        f"{path} is not a model directory: it has neither {MANIFEST_FILE} nor versions (1, 2, ...){instead}"
    )
