"""Runs a Keras model of the gallery alone and padded with what it masks, and measures how far the answers lie apart."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.gallery.keras_index import KerasExhibit
from tests.gallery.trials import LENGTHS, Array, Model, alone, difference, padded

NOISE = (
    "__array__ implementation doesn't accept a copy keyword",  # Keras hands torch tensors to NumPy
    "You are using a softmax over axis",  # a sequence of one step
    "Layer .* was passed an input with a mask attached",  # what many leaking models are about
    ".*cannot be converted to a TensorFlow",
    "You are saving your model as an HDF5 file",
    ".*non-writable",
)
"""What Keras warns of on the way."""


@contextmanager
def calm() -> Iterator[None]:
    """Keras without its warnings."""
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


def keras_model(model: Any) -> Model:
    """How to run a Keras model: `predict_on_batch`, which computes what `predict` computes, without its loop."""

    def run(batch: Array, _: Array) -> Array:
        with calm():
            return np.asarray(model.predict_on_batch(batch))

    return run


def made(exhibit: KerasExhibit) -> Any:
    """The model as its factory makes it."""
    with calm():
        return exhibit.make()


def saved(exhibit: KerasExhibit, folder: Path) -> Path:
    """The file that its user has."""
    with calm():
        return exhibit.save(folder)


def loaded(path: Path) -> Any:
    """What Keras reads from a file."""
    import keras

    with calm():
        return keras.models.load_model(path, compile=False)


def mask_padding(exhibit: KerasExhibit) -> Any:
    """Padding that the model masks."""
    return lambda shape: np.full(shape, exhibit.mask_value)


def sequences(exhibit: KerasExhibit, lengths: tuple[int, ...] = LENGTHS, seed: int = 3) -> list[Array]:
    """Sequences without a step that the model masks: to Keras such a step is none."""
    rng = np.random.default_rng(seed)
    lengths = tuple(max(length, exhibit.shortest) for length in lengths)
    if exhibit.vocabulary is not None:
        return [rng.integers(1, exhibit.vocabulary, size=length).astype(np.int32) for length in lengths]
    return [rng.normal(size=(length, exhibit.features)).astype(np.float32) for length in lengths]


def ragged(exhibit: KerasExhibit, count: int, *, longest: int = 64, seed: int = 17) -> list[Array]:
    """As many sequences of lengths up to `longest`; the shortest and the longest are among them."""
    lengths = np.random.default_rng(seed).integers(exhibit.shortest, longest + 1, size=count)
    lengths[:2] = exhibit.shortest, longest
    return sequences(exhibit, tuple(int(length) for length in lengths), seed)


def worst_difference(
    exhibit: KerasExhibit, rows: list[Array], expected: list[Array], run: Callable[[list[Array], int], Array]
) -> float:
    """The largest one between the right answers and those to batches of 16; `run` also gets the place of the first."""
    worst = 0.0
    for start in range(0, len(rows), 16):
        members = rows[start : start + 16]
        for answer, right, steps in zip(run(members, start), expected[start : start + 16], members, strict=True):
            own = answer[: len(steps)] if exhibit.per_step else answer
            assert own.shape == right.shape
            worst = max(worst, float(np.abs(own - right).max()))
    return worst


def mask_differences(exhibit: KerasExhibit, model: Model) -> dict[str, float]:
    """The largest difference to what each sequence is answered alone, for several ways to pad with the mask's value."""
    rows = sequences(exhibit)
    expected = alone(model, rows)
    longest = max(len(steps) for steps in rows)
    padding = mask_padding(exhibit)
    found = {
        name: difference(exhibit, expected, model(*padded(rows, longest + more, padding)))
        for name, more in {"company": 0, "one wider": 1, "much wider": 18}.items()
    }
    pair = [rows[0], rows[2][::-1].copy()]
    found["other neighbour"] = difference(exhibit, expected[:1], model(*padded(pair, longest + 3, padding))[:1])
    found["alone, wider"] = max(
        difference(exhibit, [answer], model(*padded([steps], len(steps) + 4, padding)))
        for steps, answer in zip(rows, expected, strict=True)
    )
    return found
