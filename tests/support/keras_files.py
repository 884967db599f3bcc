"""Keras files as they should not be, made from one that is right."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def save(path: Path, *layers: Any, features: int = 3) -> Path:
    """Saves `Masking`, some layers and a `Dense`; without layers, with an LSTM between."""
    import keras

    keras.utils.set_random_seed(0)
    between = layers or (keras.layers.LSTM(4),)
    model = keras.Sequential(
        [keras.Input((None, features)), keras.layers.Masking(), *between, keras.layers.Dense(2, activation="softmax")]
    )
    model.save(path)
    return path


def members(path: Path) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Writes an archive."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def with_config(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with its configuration changed in place, or replaced by what the change returns."""
    content = members(path)
    config = json.loads(content[CONFIG])
    changed = change(config)
    content[CONFIG] = json.dumps(config if changed is None else changed).encode()
    return write(path, content)


def with_layer(path: Path, layer: dict[str, Any]) -> Path:
    """The file with one more layer behind the Masking."""
    return with_config(path, lambda config: config["config"]["layers"].insert(2, layer))


def with_weights(path: Path, change: Callable[[Any], object]) -> Path:
    """The file with its HDF5 file of weights changed."""
    import h5py

    content = members(path)
    buffer = io.BytesIO(content[WEIGHTS])
    with h5py.File(buffer, "r+") as file:
        change(file)
    content[WEIGHTS] = buffer.getvalue()
    return write(path, content)


def datasets(file: Any) -> list[Any]:
    """All datasets of an HDF5 file that hold numbers."""
    import h5py

    found: list[Any] = []
    file.visititems(lambda _, each: found.append(each) if isinstance(each, h5py.Dataset) else None)
    return [each for each in found if np.issubdtype(each.dtype, np.number)]
