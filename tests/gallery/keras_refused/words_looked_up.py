"""A model that hashes its words, as TensorFlow saves it: Keras has this layer for TensorFlow alone."""

import json
import zipfile
from pathlib import Path

import keras
from keras import layers

HASHING = {
    "module": "keras.layers",
    "class_name": "Hashing",
    "config": {"name": "hashing", "trainable": True, "dtype": "int64", "num_bins": 40, "mask_value": 0},
    "registered_name": None,
}


def save(path: Path) -> None:
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input(shape=(None,), dtype="int64"),
            layers.Embedding(40, 8, mask_zero=True),
            layers.GRU(8),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"].insert(1, HASHING)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
