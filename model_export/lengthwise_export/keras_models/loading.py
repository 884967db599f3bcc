"""Loads a `.keras` or `.h5` file without running anything that is in it.

file --archive--> configuration and weights, examined --config--> known layers only --Keras--> model

The file is copied first, so what is examined is what is loaded. Keras builds the model once without memory for its
weights, to compare their number with that in the file: a small file cannot ask for a large model.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import ConfigurationError
from lengthwise_export.keras_models import archive
from lengthwise_export.keras_models.backend import first_line, import_keras, quiet
from lengthwise_export.keras_models.config import FACTORY, examined

_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_SAVE_AGAIN: Final = "load it where it was made and save it again, with model.save('model.keras')"


def load(path: Path) -> Any:
    """The Keras model in a file, or an error that says what to do."""
    text = str(path)
    with path.open("rb") as file:
        begin = file.read(8)
    try:
        with tempfile.TemporaryDirectory(prefix="lengthwise-keras-") as folder:
            if begin.startswith(_ZIP):
                return _load_archive(text, path, Path(folder))
            if begin == _HDF5:
                return _load_hdf5(text, path, Path(folder))
    except ConfigurationError as error:
        raise ConfigurationError(_printable(str(error))) from error
    raise ConfigurationError(f"{text} is neither a .keras file nor an HDF5 file")


def _printable(told: str) -> str:
    """A message without what a terminal would obey: names in it come from the file."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in told)


def _load_archive(text: str, path: Path, folder: Path) -> Any:
    weights = folder / archive.WEIGHTS
    config, metadata = archive.read_archive(text, path, weights)
    keras = import_keras()
    stored = archive.require_plain(text, weights)
    safe = examined(config, text, registered=keras.saving.get_registered_object)
    if not isinstance(safe, dict) or "class_name" not in safe or "config" not in safe:
        raise ConfigurationError(f"{text}: {archive.CONFIG} describes no model")
    by = metadata.get("keras_version")
    said = f" (it was written by Keras {by}, this is {keras.__version__})" if isinstance(by, str) else ""
    with quiet(), keras.device("meta"):
        wanted = _weights_of(text, _built(keras, safe, text, said), keras)
    if wanted > stored:
        raise ConfigurationError(f"{text}: the model has {wanted} weights, and the file holds {stored}")
    with quiet(), keras.device("cpu"):
        model = _built(keras, safe, text, said)
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises many kinds
            raise ConfigurationError(f"{text}: the weights do not fit the model{said}: {first_line(error)}") from error
    return model


def _load_hdf5(text: str, path: Path, folder: Path) -> Any:
    if path.stat().st_size > archive.MOST_BYTES:
        raise ConfigurationError(f"{text} has more than {archive.MOST_BYTES} bytes")
    copied = folder / "model.h5"
    shutil.copyfile(path, copied)
    keras = import_keras()
    stored = archive.require_plain(text, copied)
    import h5py

    with h5py.File(copied, "r+") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ConfigurationError(
                f"{text} holds weights only, or no model: save the model, with model.save('model.keras')"
            )
        if not isinstance(config, str | bytes) or len(config) > archive.MOST_CONFIG:
            raise ConfigurationError(f"{text}: its configuration is no text, or too long")
        safe = examined(archive.parsed(f"{text}: model_config", config), text)
        file.attrs["model_config"] = json.dumps(safe)
    with quiet(), keras.device("meta"):
        wanted = _weights_of(text, _loaded_hdf5(keras, copied, text), keras)
    if wanted > stored:
        raise ConfigurationError(f"{text}: the model has {wanted} weights, and the file holds {stored}")
    with quiet(), keras.device("cpu"):
        return _loaded_hdf5(keras, copied, text)


def _loaded_hdf5(keras: Any, path: Path, text: str) -> Any:
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} cannot be read by Keras {keras.__version__}: {first_line(error)}. If it is of Keras 2, "
            f"{_SAVE_AGAIN}"
        ) from error


def _weights_of(text: str, model: Any, keras: Any) -> int:
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"{text} holds a {type(model).__name__}, which is no model")
    return sum(math.prod(map(int, variable.shape)) for variable in model.weights)


def _built(keras: Any, config: dict[str, Any], text: str, said: str) -> Any:
    try:
        return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)  # Keras empties it
    except Exception as error:  # Keras raises many kinds
        raise ConfigurationError(
            f"{text} cannot be read by Keras {keras.__version__}{said}: {first_line(error)}. If an older Keras wrote "
            f"it, {_SAVE_AGAIN}; if a layer is your own, {FACTORY}"
        ) from error
