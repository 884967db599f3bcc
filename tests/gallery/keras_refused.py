"""Keras models that cannot be judged, and files that are none."""

import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers, ops

from tests.gallery.keras_models import exhibit, network, sequential


class Swish(layers.Layer):
    """Never registered: a file of it cannot be read without this class."""

    def call(self, x):
        return x * ops.sigmoid(x)


@network(3, 3, reason="swish", features=4, custom=True)
def class_not_at_hand():
    return [layers.Masking(), layers.LSTM(8), Swish()]


@exhibit(8, reason=("radar", "convlstm", "axes", "dimension"), features=8)
def conv_lstm():
    return sequential(
        keras.Input(shape=(None, 8, 2)),
        layers.ConvLSTM1D(4, 3, padding="same", name="radar"),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    )


@keras.saving.register_keras_serializable(package="bayes")
class MCDropout(layers.Dropout):
    """Monte Carlo dropout: never off."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=True)


@network(10, 3, reason=("twice", "same answer", "random"), features=4, custom=True)
def dropout_always_on():
    return [layers.Masking(), layers.LSTM(8), MCDropout(0.5)]


@exhibit(4, reason=("width", "length", "20"), features=4, longest=20)
def flattened():
    return sequential(
        keras.Input(shape=(20, 4)),
        layers.Masking(),
        layers.LSTM(8, return_sequences=True),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    )


@exhibit(11, reason=("rows", "batch"), features=4)
def frozen_rows():
    inputs = keras.Input(batch_shape=(16, None, 4))
    x = layers.GRU(8)(layers.Masking()(inputs))
    x = layers.Reshape((2, 4))(x)
    x = keras.ops.reshape(x, (16, 8))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@exhibit(12, reason=("conv2d", "axes", "dimension", "shape"), features=8)
def images():
    """A video: each step is a picture."""
    return sequential(
        keras.Input(shape=(None, 8, 8, 1)),
        layers.TimeDistributed(layers.Conv2D(4, 3, activation="relu")),
        layers.TimeDistributed(layers.Flatten()),
        layers.LSTM(8),
        layers.Dense(3, activation="softmax"),
    )


def layer(class_name: str, name: str, inbound: list[list[object]], **config: object) -> dict[str, object]:
    nodes = [[[source, 0, 0, {}] for source in node] for node in inbound]
    return {"class_name": class_name, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


@exhibit(None, reason="keras 2", features=4, suffix=".h5")
def save_keras_two(path: Path) -> None:
    """A file of Keras 2 with an operation of TensorFlow between its layers, which Keras 3 does not read."""
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


@network(1, 3, reason="lambda", features=4)
def lambda_layer():
    return [
        layers.Masking(),
        layers.LSTM(8, return_sequences=True),
        layers.Lambda(lambda x: keras.ops.mean(x, axis=1), name="average"),
    ]


@exhibit(6, reason="float16", features=4)
def mixed_precision():
    half = keras.DTypePolicy("mixed_float16")
    return sequential(
        4,
        layers.Masking(dtype=half),
        layers.LSTM(8, dtype=half),
        layers.Dense(3, activation="softmax", dtype="float32"),
    )


@exhibit(2, reason="stateful", features=4)
def stateful():
    return sequential(
        keras.Input(batch_shape=(1, None, 4)),
        layers.Masking(),
        layers.LSTM(8, stateful=True, name="memory"),
        layers.Dense(3, activation="softmax"),
    )


@exhibit(9, reason=("outputs", "--output"), features=4)
def states_returned():
    """An encoder for a decoder elsewhere: three outputs, of which none is a score."""
    inputs = keras.Input(shape=(None, 4))
    output, hidden, cell = layers.LSTM(8, return_state=True)(layers.Masking()(inputs))
    return keras.Model(inputs, [output, hidden, cell])


@exhibit(5, reason=("scan", "inputs"), features=4)
def two_inputs():
    """A picture beside the series; values beside it, one row of numbers, are served."""
    series = keras.Input(shape=(None, 4), name="series")
    scan = keras.Input(shape=(6, 6, 1), name="scan")
    x = layers.LSTM(8)(layers.Masking()(series))
    x = layers.concatenate([x, layers.Flatten()(layers.Conv2D(2, 3, activation="relu")(scan))])
    return keras.Model([series, scan], layers.Dense(2, activation="softmax")(x))


HASHING = {
    "module": "keras.layers",
    "class_name": "Hashing",
    "config": {"name": "hashing", "trainable": True, "dtype": "int64", "num_bins": 40, "mask_value": 0},
    "registered_name": None,
}


@exhibit(7, reason="hashing", vocabulary=40)
def save_words_looked_up(path: Path) -> None:
    """A model that hashes its words, as TensorFlow saves it: Keras has this layer for TensorFlow alone."""
    model = sequential(
        keras.Input(shape=(None,), dtype="int64"),
        layers.Embedding(40, 8, mask_zero=True),
        layers.GRU(8),
        layers.Dense(3, activation="softmax"),
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
