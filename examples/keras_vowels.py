"""A Keras model with a Masking layer, from training to answers over HTTP: does it lose anything on the way?

python examples/keras_vowels.py train runs/vowels.keras
lengthwise check runs/vowels.keras
lengthwise export runs/vowels.keras --labels 1,2,3,4,5,6,7,8,9 --out runs/keras/vowels
lengthwise serve runs/keras
python examples/keras_vowels.py compare runs/vowels.keras http://localhost:8000

JapaneseVowels (in the package aeon): 270 recordings for training and 370 for the test, 7 to 29 steps of 12 numbers.
Needs `pip install '.[keras,demo]'`. Keras runs on torch here; what it saves is the same on every backend.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import click
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
from keras import layers

from lengthwise.datasets import dataset

LABELS = [str(number) for number in range(1, 10)]
FEATURES = 12
EVERY = click.option("--every", default=1, type=click.IntRange(1), help="Take one of so many recordings, for a try.")


def recordings(split: str, every: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    """The sequences of a split, each `[length, 12]`, and the places of their labels."""
    records = list(dataset.read(dataset.locate(f"aeon:JapaneseVowels_{split}")))[::every]
    return [record.steps for record in records], np.array([LABELS.index(str(record.label)) for record in records])


def padded(sequences: list[np.ndarray]) -> np.ndarray:
    """One array `[rows, width, 12]`: zeros behind the end of each sequence, which the Masking layer finds."""
    return keras.utils.pad_sequences(sequences, dtype="float32", padding="post", value=0.0)


def build(hidden: int) -> keras.Model:
    """The model that many begin with."""
    return keras.Sequential(
        [
            keras.Input(shape=(None, FEATURES)),
            layers.Masking(mask_value=0.0),
            layers.LSTM(hidden, return_sequences=True),
            layers.LSTM(hidden),
            layers.Dense(len(LABELS), activation="softmax"),
        ]
    )


def alone(model: keras.Model, sequences: list[np.ndarray]) -> np.ndarray:
    """`[sequences, classes]`: the probabilities of each sequence, predicted without any padding."""
    return np.concatenate([model.predict_on_batch(steps[None]) for steps in sequences])


def served(url: str, sequences: list[np.ndarray], model: str | None = None, rows: int = 50) -> np.ndarray:
    """The same from a service, `rows` sequences of different lengths a request."""
    probabilities: list[list[float]] = []
    for start in range(0, len(sequences), rows):
        body: dict[str, Any] = {"sequences": [steps.tolist() for steps in sequences[start : start + rows]]}
        if model is not None:
            body["model"] = model
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{url}/predict", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = json.load(response)
        assert answers["labels"] == LABELS
        probabilities += [prediction["probabilities"] for prediction in answers["predictions"]]
    return np.array(probabilities)


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of right answers."""
    return float((probabilities.argmax(axis=1) == labels).mean())


@click.group()
def main() -> None:
    """Trains a Keras model on JapaneseVowels, and compares its answers with those of a service."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(1))
@click.option("--hidden", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@EVERY
def train(file: Path, epochs: int, hidden: int, seed: int, every: int) -> None:
    """Trains a model and saves it as FILE, which ends with .keras."""
    keras.utils.set_random_seed(seed)
    sequences, labels = recordings("TRAIN", every)
    model = build(hidden)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(padded(sequences), labels, batch_size=32, epochs=epochs, verbose=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    model.save(file)
    sequences, labels = recordings("TEST", every)
    in_one = model.predict(padded(sequences), verbose=0)
    click.echo(f"accuracy in Keras, one batch:   {accuracy(in_one, labels):.4f}")
    click.echo(f"accuracy in Keras, unbatched:   {accuracy(alone(model, sequences), labels):.4f}")


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("url")
@click.option("--model", help="The model's name in the service; default: the service's own default.")
@EVERY
def compare(file: Path, url: str, model: str | None, every: int) -> None:
    """Answers the test recordings with FILE in Keras, and with the service at URL."""
    sequences, labels = recordings("TEST", every)
    in_keras = alone(keras.models.load_model(file), sequences)
    over_http = served(url.rstrip("/"), sequences, model)
    same = int((in_keras.argmax(axis=1) == over_http.argmax(axis=1)).sum())
    click.echo(f"accuracy in Keras:   {accuracy(in_keras, labels):.4f}")
    click.echo(f"accuracy over HTTP:  {accuracy(over_http, labels):.4f}")
    click.echo(f"the same label:      {same} of {len(labels)}")
    click.echo(f"largest difference of a probability: {np.abs(in_keras - over_http).max():.2g}")


if __name__ == "__main__":
    main()
