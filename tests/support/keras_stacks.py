"""Keras models that nobody chose: stacks of layers drawn from a seed, and what Keras itself says of their padding."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES, VOCABULARY, CLASSES = 4, 30, 3
LENGTHS = (7, 2, 11, 4, 9, 3)
WIDTHS = (11, 12, 29)


@dataclass(frozen=True, slots=True)
class Stack:
    """A model and how it came to be."""

    model: Any
    layers: tuple[str, ...]
    tokens: bool


@dataclass(frozen=True, slots=True)
class Truth:
    """What Keras answers."""

    sequences: list[NDArray[Any]]
    alone: list[NDArray[np.float32]]
    difference: float


def draw(seed: int) -> Stack:
    """A model of up to three layers between a mask and a head."""
    import keras

    chosen = random.Random(seed)
    keras.utils.set_random_seed(seed)
    tokens = chosen.random() < 0.3
    masked = chosen.random() < 0.9
    layers = keras.layers
    if tokens:
        inputs = keras.Input((None,), dtype="int32")
        x = layers.Embedding(VOCABULARY, 6, mask_zero=masked)(inputs)
    else:
        inputs = keras.Input((None, FEATURES))
        x = layers.Masking(0.0)(inputs) if masked else inputs
    names = ["Embedding" if tokens else "Masking" if masked else "no mask"]
    for _ in range(chosen.randint(0, 3)):
        name, apply = chosen.choice(_between(keras, chosen))
        x = apply(x)
        names.append(name)
    head: Any = chosen.choice(_heads(layers, chosen))
    if head is not None:
        x = head(x)
        names.append(type(head).__name__)
    outputs = layers.Dense(CLASSES, activation=chosen.choice([None, "softmax"]))(x)
    model = keras.Model(inputs, outputs)
    _train(model, seed)
    return Stack(model, tuple(names), tokens)


def _between(keras: Any, chosen: random.Random) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    """Layers from steps to steps, by name."""
    layers, units = keras.layers, chosen.choice([4, 6])
    backwards, kernel = chosen.random() < 0.15, chosen.choice([1, 2, 3])
    activation = chosen.choice(["relu", "tanh", "gelu", "softplus", "hard_sigmoid", "mish"])
    steps = {"return_sequences": True}
    made: list[Any] = [
        layers.Dense(units, activation=activation),
        layers.LSTM(units, go_backwards=backwards, activation=chosen.choice(["tanh", "relu", "softsign"]), **steps),
        layers.GRU(units, go_backwards=backwards, reset_after=chosen.random() < 0.5, **steps),
        layers.SimpleRNN(units, use_bias=chosen.random() < 0.5, **steps),
        layers.Bidirectional(layers.LSTM(units, **steps), merge_mode=chosen.choice(["concat", "sum", "ave", "mul"])),
        layers.RNN([layers.LSTMCell(units), layers.SimpleRNNCell(units)], **steps),
        layers.TimeDistributed(layers.Dense(units)),
        *(layers.SpatialDropout1D(0.2), layers.GaussianNoise(0.2), layers.ActivityRegularization(0.1)),
        *(layers.Activation(activation), layers.LeakyReLU(), layers.PReLU(shared_axes=[1]), layers.Identity()),
        *(layers.BatchNormalization(), layers.LayerNormalization(), layers.RMSNormalization()),
        *(layers.UnitNormalization(), layers.GroupNormalization(1)),
        layers.Conv1D(units, kernel, padding=chosen.choice(["same", "causal"]), dilation_rate=chosen.choice([1, 2])),
        *(layers.SeparableConv1D(units, kernel, padding="same"), layers.DepthwiseConv1D(kernel, padding="same")),
        *(layers.MaxPooling1D(2, strides=1, padding="same"), layers.AveragePooling1D(2, strides=1, padding="same")),
        *(layers.Masking(0.0), layers.Rescaling(0.5, offset=chosen.choice([0.0, 0.1]))),
    ]
    named: list[tuple[str, Callable[[Any], Any]]] = [(type(layer).__name__, layer) for layer in made]
    return [
        *named,
        ("attention between heads", lambda x: layers.MultiHeadAttention(2, 3)(x, x)),
        ("Attention", lambda x: layers.Attention(use_scale=True)([x, x])),
        ("AdditiveAttention", lambda x: layers.AdditiveAttention()([x, x])),
        ("a residual LSTM", lambda x: layers.Add()([x, layers.LSTM(x.shape[-1], **steps)(x)])),
        ("Concatenate", lambda x: layers.Concatenate()([x, layers.Dense(4)(x)])),
    ]


def _heads(layers: Any, chosen: random.Random) -> Sequence[Any]:
    merge = chosen.choice(["concat", "sum", "mul", "ave"])
    return (
        layers.LSTM(4),
        layers.GRU(4, go_backwards=True),
        layers.SimpleRNN(4),
        layers.Bidirectional(layers.LSTM(3), merge_mode=merge),
        layers.GlobalAveragePooling1D(),
        layers.GlobalMaxPooling1D(),
        None,
    )


def _train(model: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype.startswith("float"):
            moved = np.asarray(variable.value.detach()) + 0.2 * generator.standard_normal(variable.shape)
            variable.assign(np.abs(moved) + 0.1 if "variance" in variable.name else moved)


def truth(stack: Stack, seed: int) -> Truth:
    """Asks Keras."""
    generator = np.random.default_rng(seed)
    sequences: list[NDArray[Any]] = [
        generator.integers(1, VOCABULARY, length).astype(np.int32)
        if stack.tokens
        else generator.standard_normal((length, FEATURES)).astype(np.float32)
        for length in LENGTHS
    ]
    alone, worst = _answers(stack, sequences)
    if not stack.tokens:  # the padded steps' zeros are the largest only beside values below them
        worst = max(worst, _answers(stack, [steps - 1000 for steps in sequences])[1])
    return Truth(sequences, alone, worst)


def _answers(stack: Stack, sequences: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], float]:
    """Those to each sequence alone, and how far those to padded batches are from them."""
    alone = [np.asarray(stack.model.predict_on_batch(steps[None]))[0] for steps in sequences]
    worst = 0.0
    for width in WIDTHS:
        batch = np.zeros((len(sequences), width, *sequences[0].shape[1:]), sequences[0].dtype)
        for row, steps in zip(batch, sequences, strict=True):
            row[: len(steps)] = steps
        answers = stack.model.predict_on_batch(batch)
        worst = max(worst, *(apart(answer, right) for answer, right in zip(answers, alone, strict=True)))
    return alone, worst


def apart(answer: NDArray[Any], right: NDArray[Any]) -> float:
    """How far an answer is from the right one, at its valid steps, in units of max(1, largest value)."""
    valid = answer[: len(right)] if right.ndim == 2 else answer
    return float(np.abs(valid - right).max() / max(1.0, np.abs(right).max()))
