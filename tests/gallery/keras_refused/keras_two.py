"""A file of Keras 2 with an operation of TensorFlow between its layers, which Keras 3 does not read."""

import json
from pathlib import Path

import h5py
import numpy as np

SUFFIX = ".h5"


def layer(class_name: str, name: str, inbound: list[list[object]], **config: object) -> dict[str, object]:
    nodes = [[[source, 0, 0, {}] for source in node] for node in inbound]
    return {"class_name": class_name, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def save(path: Path) -> None:
    layers = [
        layer("InputLayer", "input_1", [], batch_input_shape=[None, None, 4], dtype="float32", sparse=False),
        layer("TFOpLambda", "tf.math.reduce_mean", [["input_1"]], function="math.reduce_mean"),
        layer("Dense", "dense", [["tf.math.reduce_mean"]], units=3, activation="softmax"),
    ]
    config = {
        "name": "model",
        "layers": layers,
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["dense", 0, 0]],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.11.0"
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = np.array([b"dense"])
        weights.create_group("dense").attrs["weight_names"] = np.array([], dtype="S1")
