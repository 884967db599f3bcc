"""Exports a Keras file as TensorFlow's users do. Runs in an environment of its own, with tensorflow and tf2onnx.

python keras_tensorflow.py MODEL.keras FOLDER

Writes `keras.onnx` (`model.export(format="onnx")` on TensorFlow) and `tf2onnx.onnx` (`tf2onnx.convert.from_function`),
and prints as JSON what was written, why anything was not, and the versions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf
import tf2onnx


def main(file: str, folder: str) -> None:
    """Exports the model in both ways."""
    model = keras.models.load_model(file)
    features = model.inputs[0].shape[-1]
    model(tf.zeros((2, 20, features)))  # Keras exports only what was called
    signature = (tf.TensorSpec((None, None, features), tf.float32, name="values"),)
    function = tf.function(lambda values: model(values, training=False), input_signature=signature)
    exports: dict[str, Callable[[Path], object]] = {
        "keras": lambda path: model.export(path, format="onnx", verbose=False),
        "tf2onnx": lambda path: tf2onnx.convert.from_function(
            function, input_signature=signature, opset=17, output_path=str(path)
        ),
    }
    failed = {}
    for name, export in exports.items():
        try:
            export(Path(folder) / f"{name}.onnx")
        except Exception as error:  # whatever it is: the page says so
            failed[name] = f"{type(error).__name__}: {error}"
    packages = ("tensorflow-cpu", "tensorflow", "tf2onnx", "keras")
    print(json.dumps({"failed": failed, "versions": {name: _version(name) for name in packages}}))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    main(*sys.argv[1:])
