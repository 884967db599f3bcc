"""Keras models as targets: each layer against Keras itself, with every sequence alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lengthwise
import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.check import check
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.errors import ExportError
from lengthwise_export.keras_models.keras_targets import of_model
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import Target
from tests.support.keras_models import (
    CLASSES,
    FEATURES,
    TOKENS,
    alone,
    built,
    functional,
    keras,
    sequential,
    two_lstms,
    weights_of,
)
from tests.support.long import long_but

LENGTHS = (9, 6, 3, 1)
WIDTH = 12


def layers() -> Any:
    return keras().layers


Inner = Callable[..., list[Any]]
"""The layers of a model, made of `keras.layers`."""


def masked(inner: Inner, **options: Any) -> Callable[[], Any]:
    """A model of Masking and these layers."""
    return lambda: sequential(layers().Masking(0.0), *inner(layers()), **options)


def plain(inner: Inner) -> Callable[[], Any]:
    return lambda: sequential(*inner(layers()))


def of_masked(body: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    """A functional model whose input is masked first, with a Dense behind it."""
    return lambda: functional(lambda x: layers().Dense(CLASSES)(body(layers(), layers().Masking(0.0)(x))))


def embedded(inner: Inner) -> Callable[[], Any]:
    return lambda: sequential(layers().Embedding(TOKENS, 5, mask_zero=True), *inner(layers()), tokens=True)


def merged(k: Any, x: Any) -> Any:
    kinds = (k.Add, k.Multiply, k.Average, k.Maximum, k.Subtract)
    return k.GRU(4)(k.Concatenate()([kind()([k.Dense(4)(x), k.Dense(4)(x)]) for kind in kinds]))


def pooled_attention(layer: Callable[[Any], Any]) -> Callable[[], Any]:
    return of_masked(lambda k, x: k.GlobalAveragePooling1D()(layer(k)([x, x])))


SOUND: dict[str, Callable[[], Any]] = {
    **{
        f"LSTM {name}": masked(lambda k, name=name: [k.LSTM(5, activation=name)])
        for name in ("tanh", "relu", "linear", "hard_sigmoid", "elu", "softsign", "softplus", "leaky_relu")
    },
    "GRU hard_sigmoid": masked(lambda k: [k.GRU(5, recurrent_activation="hard_sigmoid")]),
    "GRU reset before": masked(lambda k: [k.GRU(5, reset_after=False)]),
    "GRU without bias": masked(lambda k: [k.GRU(5, reset_after=False, use_bias=False)]),
    "SimpleRNN relu": masked(lambda k: [k.SimpleRNN(5, activation="relu")]),
    "LSTM backwards": masked(lambda k: [k.LSTM(5, go_backwards=True)]),
    "GRU backwards sigmoid": masked(lambda k: [k.GRU(5, go_backwards=True, activation="sigmoid")]),
    "LSTM repeats its last output": masked(lambda k: [k.LSTM(5, return_sequences=True), k.GlobalMaxPooling1D()]),
    "LSTM gives zeros": masked(
        lambda k: [k.LSTM(5, return_sequences=True, zero_output_for_mask=True), k.GlobalAveragePooling1D()]
    ),
    **{
        f"Bidirectional {mode}": masked(
            lambda k, mode=mode: [
                k.Bidirectional(k.GRU(5, return_sequences=True, activation="relu"), merge_mode=mode),
                k.Bidirectional(k.LSTM(4), merge_mode=mode),
            ]
        )
        for mode in ("concat", "sum", "mul", "ave")
    },
    "Bidirectional in two": of_masked(lambda k, x: k.Concatenate()(k.Bidirectional(k.LSTM(4), merge_mode=None)(x))),
    "Bidirectional of two kinds": of_masked(
        lambda k, x: k.Bidirectional(k.LSTM(4), backward_layer=k.GRU(4, go_backwards=True))(x)
    ),
    "Bidirectional with states": of_masked(
        lambda k, x: k.Concatenate()(list(k.Bidirectional(k.LSTM(4, return_state=True))(x)))
    ),
    "RNN over cells": masked(lambda k: [k.RNN([k.LSTMCell(5), k.GRUCell(4), k.SimpleRNNCell(3)])]),
    "RNN over cells backwards": masked(lambda k: [k.RNN([k.LSTMCell(5), k.GRUCell(4)], go_backwards=True)]),
    "TimeDistributed": masked(lambda k: [k.LSTM(5, return_sequences=True), k.TimeDistributed(k.Dense(3))], dense=False),
    "TimeDistributed model": masked(
        lambda k: [
            k.TimeDistributed(keras().Sequential([k.Input((FEATURES,)), k.Dense(4), k.BatchNormalization()])),
            k.GRU(4),
        ]
    ),
    "dropout and noise": masked(
        lambda k: [
            k.Dropout(0.3),
            k.GaussianNoise(0.1),
            k.GaussianDropout(0.1),
            k.SpatialDropout1D(0.1),
            k.AlphaDropout(0.1),
            k.LSTM(5, dropout=0.2, recurrent_dropout=0.2),
        ]
    ),
    "activations": masked(
        lambda k: [
            k.Dense(5),
            k.ReLU(),
            k.LeakyReLU(),
            k.PReLU(shared_axes=[1]),
            k.ELU(),
            k.Activation("gelu"),
            k.LSTM(5),
        ]
    ),
    "normalizations": masked(
        lambda k: [k.BatchNormalization(), k.LayerNormalization(), k.UnitNormalization(), k.LSTM(5)]
    ),
    "MultiHeadAttention": of_masked(
        lambda k, x: k.GlobalAveragePooling1D()(k.LayerNormalization()(k.MultiHeadAttention(2, 3)(x, x)))
    ),
    "MultiHeadAttention causal": of_masked(
        lambda k, x: k.GlobalAveragePooling1D()(k.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True))
    ),
    "GroupQueryAttention": of_masked(lambda k, x: k.GlobalAveragePooling1D()(k.GroupQueryAttention(4, 4, 2)(x, x))),
    "Attention": pooled_attention(lambda k: k.Attention(use_scale=True)),
    "AdditiveAttention": pooled_attention(lambda k: k.AdditiveAttention()),
    "Conv1D causal": plain(lambda k: [k.Conv1D(5, 3, padding="causal", dilation_rate=2)]),
    "Conv1D of one step": masked(lambda k: [k.Conv1D(5, 1)]),
    "merges": of_masked(merged),
    "masks joined along the steps": of_masked(lambda k, x: k.LSTM(4)(k.Concatenate(axis=1)([x, x]))),
    "a shared layer": of_masked(lambda k, x: (lambda shared: k.Add()([shared(x), shared(x)]))(k.GRU(4))),
    "RepeatVector": masked(lambda k: [k.LSTM(5), k.RepeatVector(4), k.GRU(3)]),
    "a nested model": plain(
        lambda k: [
            keras().Sequential([k.Input((None, FEATURES)), k.Masking(0.0), k.LSTM(5, return_sequences=True)]),
            k.LSTM(4),
        ]
    ),
    "a mask value of -1": plain(lambda k: [k.Masking(-1.0), k.LSTM(4)]),
    "a mask made by hand": lambda: functional(
        lambda x: layers().Dense(CLASSES)(
            layers().LSTM(4)(x, mask=keras().ops.any(keras().ops.not_equal(x, 0.0), axis=-1))
        )
    ),
    "Embedding": embedded(lambda k: [k.Bidirectional(k.LSTM(4, return_sequences=True)), k.GlobalAveragePooling1D()]),
}
"""Models that do not leak."""

LEAKING: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no mask": (plain(lambda k: [k.LSTM(5, name="rnn")]), "rnn (LSTM)", "It gets no mask: it runs through"),
    "a convolution drops the mask": (
        masked(lambda k: [k.Conv1D(5, 3, padding="causal", name="conv"), k.GRU(4, name="rnn")]),
        "rnn (GRU)",
        r"It gets no mask \(it ends at conv \(Conv1D\)\)",
    ),
    "Conv1D": (
        plain(lambda k: [k.Conv1D(5, 3, padding="same", name="conv"), k.GlobalMaxPooling1D()]),
        "conv (Conv1D)",
        "takes no mask",
    ),
    "GlobalMaxPooling1D": (
        masked(lambda k: [k.Dense(5), k.GlobalMaxPooling1D(name="most")]),
        "most (GlobalMaxPooling1D)",
        "padded steps compete",
    ),
    "GlobalAveragePooling1D without a mask": (
        plain(lambda k: [k.GlobalAveragePooling1D(name="mean")]),
        "mean (GlobalAveragePooling1D)",
        "divides by the width",
    ),
    "MaxPooling1D": (
        plain(lambda k: [k.MaxPooling1D(2, name="pool"), k.GlobalMaxPooling1D()]),
        "pool (MaxPooling1D)|global_max_pooling1d (GlobalMaxPooling1D)",
        "",
    ),
    "Attention without a mask": (
        lambda: functional(
            lambda x: layers().Dense(CLASSES)(layers().GlobalMaxPooling1D()(layers().Attention(name="att")([x, x])))
        ),
        "att (Attention)",
        "softmax runs over padded steps",
    ),
    "Masking behind a layer": (
        plain(lambda k: [k.Dense(5), k.Masking(0.0), k.LSTM(4, name="rnn")]),
        "rnn (LSTM)",
        "not that of the sequence's end",
    ),
    "steps in reverse order": (
        masked(lambda k: [k.LSTM(5, go_backwards=True, return_sequences=True, name="rnn"), k.LSTM(4)]),
        "rnn (LSTM)",
        "reverse order",
    ),
    "a mask joined with none": (
        lambda: functional(
            lambda x: layers().Dense(CLASSES)(
                layers().LSTM(4, name="rnn")(
                    layers().Concatenate()([layers().Masking(0.0)(x), layers().Conv1D(3, 3, padding="causal")(x)])
                )
            )
        ),
        "rnn (LSTM)",
        "Concatenate has joined",
    ),
    "LayerNormalization over the steps": (
        plain(lambda k: [k.GroupNormalization(2, name="norm"), k.GlobalMaxPooling1D()]),
        "norm (GroupNormalization)",
        "over the steps too",
    ),
}
"""Models that leak, each with the first layer that does, and words of its cause."""


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Keras', about masks that layers drop


def target_of(make: Callable[[], Any]) -> tuple[Any, Target]:
    model = built(make)
    return model, of_model("the model", model, TargetOptions())


def sequences(steps: StepInput, seed: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    if steps.kind == "tokens":
        return [random.integers(1, TOKENS, length) for length in LENGTHS]
    return [random.standard_normal((length, FEATURES)).astype(np.float32) for length in LENGTHS]


def junk_padded(given: list[np.ndarray], steps: StepInput) -> Any:
    """A batch whose padding is anything but 0."""
    batch = pad(given, width=WIDTH)
    for row, length in enumerate(batch.lengths):
        batch.steps[row, length:] = 7 if steps.kind == "tokens" else 5.5
    return batch


def difference(target: Target, model: Any, subject: Any = None) -> float:
    """The largest difference of the answers in a padded batch, of the target or a graph, from those of Keras, alone."""
    given = sequences(target.steps)
    logits = (subject or target.subject).answer(junk_padded(given, target.steps)).logits
    expected = [alone(model, sequence) for sequence in given]
    return max(
        float(np.abs(own[: len(right)] - right).max() if right.ndim == 2 else np.abs(own - right).max())
        for own, right in zip(logits, expected, strict=True)
    )


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", SOUND)
def test_a_sequence_in_a_batch_gets_the_answer_of_keras_alone(name: str) -> None:
    model, target = target_of(SOUND[name])
    assert difference(target, model) < 1e-5


@pytest.mark.parametrize(
    "name", long_but(SOUND, {"Bidirectional sum", "GRU backwards sigmoid"}.__contains__, long=lambda _: False)
)
def test_each_model_is_sound_and_its_graph_answers_as_keras_alone(name: str) -> None:
    model, target = target_of(SOUND[name])
    assert check(target.subject, max_length=30).verdict == "sound"
    graph = target.build("model", 18)
    external = ExternalGraph(graph, target.steps, target.names, len(target.labels), per_step=target.per_step)
    assert difference(target, model, OnnxSubject(external)) < 1e-5


def test_a_graph_of_two_lstms_has_no_node_for_the_mask() -> None:
    graph = of_model("the model", two_lstms(), TargetOptions()).build("model", 18)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("LSTM") == 2
    assert not {"Where", "Loop", "Scan", "If", "Range"} & set(kinds)
    weights = sum(onnx.numpy_helper.to_array(tensor).size for tensor in graph.graph.initializer)
    own = sum(values.size for values in weights_of(two_lstms()))
    assert weights < own + 2 * 4 * 8 + 20, "the weights are in the graph once; ONNX has two biases for one"


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", LEAKING)
def test_the_check_names_the_layer_that_leaks(name: str) -> None:
    make, operator, why = LEAKING[name]
    _, target = target_of(make)
    report = check(target.subject, max_length=20)
    assert report.verdict == "leak"
    leak = report.leaks[0]
    assert leak.operator in operator.split("|")
    assert leak.kind.startswith("keras.")
    assert leak.location is None
    assert " of " in leak.place
    assert re.search(why, leak.cause.why), leak.cause.why
    assert "keras" in leak.cause.fix or "padding=" in leak.cause.fix or "mask" in leak.cause.fix


def test_a_published_model_answers_as_keras_alone(tmp_path: Path) -> None:
    published = lengthwise_export.export(
        two_lstms(), tmp_path / "models" / "lstm", labels=["a", "b", "c"], max_length=24
    )
    assert published.manifest.scores == "probabilities"
    assert published.manifest.made["framework"] == f"keras {keras().__version__}"
    assert "such a step is data" in str(published.manifest.made["notices"])
    given = sequences(published.manifest.input)
    answers = lengthwise.load(published.directory).predict([each.tolist() for each in given])
    for answer, sequence in zip(answers, given, strict=True):
        expected = alone(two_lstms(), sequence)
        assert answer.label == "abc"[int(expected.argmax())]
        assert np.abs(answer.probabilities - expected).max() < 1e-6


def test_a_model_without_a_mask_is_mended(tmp_path: Path) -> None:
    model = built(LEAKING["Conv1D"][0])
    published = lengthwise_export.export(model, tmp_path / "models" / "conv", mend=True, max_length=24)
    assert published.mend is not None
    assert published.mend.mendable
    (promise,) = published.manifest.promises
    assert promise.bits


def test_a_step_of_zeros_is_data_and_a_notice_says_so() -> None:
    model, target = target_of(SOUND["LSTM tanh"])
    assert any("masking" in notice and "is data" in notice for notice in target.notices)
    (sequence, *_) = sequences(target.steps)
    sequence[4] = 0.0
    ours = target.subject.answer(pad([sequence], width=WIDTH)).logits[0]
    assert np.abs(ours - alone(model, sequence)).max() > 1e-4
    without = keras().Sequential([layers().Input((None, FEATURES)), *model.layers[1:]])
    assert np.abs(ours - alone(without, sequence)).max() < 1e-5


def test_the_model_of_the_caller_is_left_as_it_was() -> None:
    model = two_lstms()
    before = weights_of(model)
    call = keras().layers.RNN.call
    lengthwise_export.check(model, max_length=12)
    assert keras().layers.RNN.call is call
    assert all(np.array_equal(mine, other) for mine, other in zip(before, weights_of(model), strict=True))


def test_a_model_for_one_width_takes_any() -> None:
    def make() -> Any:
        made = layers()
        return keras().Sequential(
            [made.Input((15, FEATURES)), made.Masking(0.0), made.LSTM(4, unroll=True), made.Dense(CLASSES)]
        )

    model, target = target_of(make)
    assert any("exactly 15 steps" in notice for notice in target.notices)
    given = sequences(target.steps)
    logits = target.subject.answer(junk_padded(given, target.steps)).logits
    for own, sequence in zip(logits, given, strict=True):
        padded = np.zeros((15, FEATURES), dtype=np.float32)
        padded[: len(sequence)] = sequence
        assert np.abs(own - alone(model, padded)).max() < 1e-5


def test_raw_samples_are_sequences_of_one_value() -> None:
    def make() -> Any:
        made = layers()
        return keras().Sequential(
            [made.Input((None,)), made.Reshape((-1, 1)), made.Masking(0.0), made.LSTM(4), made.Dense(CLASSES)]
        )

    model, target = target_of(make)
    assert target.steps == StepInput(features=1)
    values = np.linspace(1, 2, 7, dtype=np.float32)
    logits = target.subject.answer(pad([values[:, None]], width=WIDTH)).logits
    assert np.abs(logits[0] - alone(model, values)).max() < 1e-5


def test_a_sigmoid_gives_probabilities() -> None:
    _, target = target_of(masked(lambda k: [k.LSTM(4), k.Dense(4, activation="sigmoid")], dense=False))
    assert target.scores == "probabilities"
    assert target_of(SOUND["LSTM tanh"])[1].scores is None


def refused(make: Callable[[], Any], **options: Any) -> str:
    with pytest.raises((ConfigurationError, ExportError)) as error:
        of_model("the model", built(make), TargetOptions(**options)).build("model", 18)
    return str(error.value)


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "Flatten": lambda k, x: keras().Model(x, k.Dense(3)(k.Flatten()(k.Masking(0.0)(x)))),
    "has 2 inputs": lambda k, x: keras().Model([x, y := keras().Input((15, 3))], k.GRU(3)(k.Concatenate()([x, y]))),
    "no activation 'gelu'": lambda k, _: sequential(k.Masking(0.0), k.LSTM(4, activation="gelu", name="rnn")),
    "is stateful": lambda k, _: keras().Sequential(
        [k.Input(batch_shape=(1, None, 6)), k.LSTM(4, stateful=True), k.Dense(3)]
    ),
    "computes in float16": lambda k, _: sequential(k.Masking(0.0), k.LSTM(4), k.Dense(4, dtype="mixed_float16")),
    "takes [any, any, 4, 4]": lambda k, _: keras().Sequential(
        [k.Input((None, 4, 4)), k.TimeDistributed(k.Flatten()), k.LSTM(3)]
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(said: str) -> None:
    assert said in refused(lambda: REFUSED[said](layers(), keras().Input((15, FEATURES))))


def test_options_that_contradict_a_model_are_refused() -> None:
    assert "--second does not apply" in refused(SOUND["LSTM tanh"], second="lengths")
    assert "--features 4 contradicts" in refused(SOUND["LSTM tanh"], features=4)


def test_one_of_several_outputs_is_named() -> None:
    def make() -> Any:
        symbol = keras().Input((None, FEATURES))
        state = layers().LSTM(4)(layers().Masking(0.0)(symbol))
        return keras().Model(symbol, {"kind": layers().Dense(3)(state), "size": layers().Dense(2)(state)})

    assert "has 2 outputs (kind, size): name one with --output" in refused(make)
    target = of_model("the model", built(make), TargetOptions(output="size"))
    assert len(target.labels) == 2
