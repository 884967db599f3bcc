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
from lengthwise.errors import ConfigurationError, LengthwiseError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.errors import ExportError
from lengthwise_export.keras_models.keras_targets import of_model
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import Target
from tests.support.keras_models import (
    CLASSES,
    FEATURES,
    alone,
    built,
    functional,
    keras,
    sequential,
    two_lstms,
    weights_of,
)

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


def in_a_row(inner: Inner) -> Callable[[], Any]:
    """A model of these layers alone."""
    return lambda: keras().Sequential(inner(layers()))


def of_masked(body: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    """A functional model whose input is masked first, with a Dense behind it."""
    return lambda: functional(lambda x: layers().Dense(CLASSES)(body(layers(), layers().Masking(0.0)(x))))


def merged(k: Any, x: Any) -> Any:
    kinds = (k.Add, k.Multiply, k.Average, k.Maximum, k.Subtract)
    return k.GRU(4)(k.Concatenate()([kind()([k.Dense(4)(x), k.Dense(4)(x)]) for kind in kinds]))


def counting() -> Any:
    """A layer that counts its calls in a weight, and passes its input on."""

    class Counting(layers().Layer):  # type: ignore[misc]  # Keras is imported when a test runs
        def build(self, shape: Any) -> None:
            self.supports_masking = True
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs: Any, mask: Any = None) -> Any:
            self.calls.assign_add(1.0)
            return inputs

    return Counting()


SOUND: dict[str, Callable[[], Any]] = {
    "a layer that counts its calls": masked(lambda k: [counting(), k.LSTM(5)]),
    **{
        f"LSTM {name}": masked(lambda k, name=name: [k.LSTM(5, activation=name)])
        for name in ("tanh", "relu", "linear", "hard_sigmoid", "elu", "softsign", "softplus", "leaky_relu")
    },
    "GRU without bias": masked(lambda k: [k.GRU(5, reset_after=False, use_bias=False)]),
    "GRU backwards sigmoid": masked(lambda k: [k.GRU(5, go_backwards=True, activation="sigmoid")]),
    "LSTM gives zeros": masked(
        lambda k: [k.LSTM(5, return_sequences=True, zero_output_for_mask=True), k.GlobalAveragePooling1D()]
    ),
    "Bidirectional in two": of_masked(lambda k, x: k.Concatenate()(k.Bidirectional(k.LSTM(4), merge_mode=None)(x))),
    "Bidirectional of two kinds": of_masked(
        lambda k, x: k.Bidirectional(k.LSTM(4), backward_layer=k.GRU(4, go_backwards=True))(x)
    ),
    "Bidirectional with states": of_masked(
        lambda k, x: k.Concatenate()(list(k.Bidirectional(k.LSTM(4, return_state=True))(x)))
    ),
    "RNN over cells backwards": masked(lambda k: [k.RNN([k.LSTMCell(5), k.GRUCell(4)], go_backwards=True)]),
    "TimeDistributed model": masked(
        lambda k: [
            k.TimeDistributed(keras().Sequential([k.Input((FEATURES,)), k.Dense(4), k.BatchNormalization()])),
            k.GRU(4),
        ]
    ),
    "a mean of features, padded as much in front as behind": masked(
        lambda k: [
            k.TimeDistributed(k.Reshape((FEATURES, 1))),
            k.TimeDistributed(k.AveragePooling1D(3, strides=FEATURES - 1, padding="same")),
            k.TimeDistributed(k.Flatten()),
            k.GRU(4),
        ]
    ),
    "dropout": masked(lambda k: [k.GaussianDropout(0.1), k.AlphaDropout(0.1), k.LSTM(5, recurrent_dropout=0.2)]),
    "activations": masked(lambda k: [k.Dense(5), k.ReLU(), k.ELU(), k.LSTM(5)]),
    "GroupQueryAttention": of_masked(lambda k, x: k.GlobalAveragePooling1D()(k.GroupQueryAttention(4, 4, 2)(x, x))),
    "Conv1D of one step": masked(lambda k: [k.Conv1D(5, 1)]),
    "merges": of_masked(merged),
    "masks joined along the steps": of_masked(lambda k, x: k.LSTM(4)(k.Concatenate(axis=1)([x, x]))),
    "a nested model": plain(
        lambda k: [
            keras().Sequential([k.Input((None, FEATURES)), k.Masking(0.0), k.LSTM(5, return_sequences=True)]),
            k.LSTM(4),
        ]
    ),
}
"""Models that do not leak, beside those of the gallery."""

LEAKING: dict[str, tuple[Callable[[], Any], str, str]] = {
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
    "MaxPooling1D": (
        plain(lambda k: [k.MaxPooling1D(2, name="pool"), k.GlobalMaxPooling1D()]),
        "pool (MaxPooling1D)|global_max_pooling1d (GlobalMaxPooling1D)",
        "",
    ),
    "steps in reverse order": (
        masked(lambda k: [k.LSTM(5, go_backwards=True, return_sequences=True, name="rnn"), k.LSTM(4)]),
        "rnn (LSTM)",
        "reverse order",
    ),
}
"""Models that leak, beside those of the gallery, each with the first layer that does, and words of its cause."""


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Keras', about masks that layers drop


def target_of(make: Callable[[], Any]) -> tuple[Any, Target]:
    model = built(make)
    return model, of_model("the model", model, TargetOptions())


def sequences() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.standard_normal((length, FEATURES)).astype(np.float32) for length in LENGTHS]


def junk_padded(given: list[np.ndarray]) -> Any:
    """A batch whose padding is anything but 0."""
    batch = pad(given, width=WIDTH)
    batch.steps[np.arange(WIDTH) >= batch.lengths[:, None]] = 5.5
    return batch


def difference(target: Target, model: Any, subject: Any = None) -> float:
    """The largest difference of the answers in a padded batch, of the target or a graph, from those of Keras, alone."""
    logits = (subject or target.subject).answer(junk_padded(sequences())).logits
    pairs = zip(logits, (alone(model, sequence) for sequence in sequences()), strict=True)
    return max(float(np.abs((own[: len(right)] if right.ndim == 2 else own) - right).max()) for own, right in pairs)


@pytest.mark.sampled(26)
@pytest.mark.parametrize("name", SOUND)
def test_each_model_is_sound_and_answers_as_keras_alone_itself_and_as_a_graph(name: str) -> None:
    model, target = target_of(SOUND[name])
    assert difference(target, model) < 1e-5
    assert check_subject(target.subject, max_length=30).verdict == "sound"
    graph = target.build("model", 18)
    external = ExternalGraph(graph, target.steps, target.names, len(target.labels), per_step=target.per_step)
    assert difference(target, model, OnnxSubject(external)) < 1e-5


@pytest.mark.long
def test_a_graph_of_two_lstms_has_no_node_for_the_mask() -> None:
    graph = of_model("the model", two_lstms(), TargetOptions()).build("model", 18)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("LSTM") == 2
    assert not {"Where", "Loop", "Scan", "If", "Range"} & set(kinds)
    weights = sum(onnx.numpy_helper.to_array(tensor).size for tensor in graph.graph.initializer)
    own = sum(values.size for values in weights_of(two_lstms()))
    assert weights < own + 2 * 4 * 8 + 20, "the weights are in the graph once; ONNX has two biases for one"


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", LEAKING)
def test_the_check_names_the_layer_that_leaks(name: str) -> None:
    make, operator, why = LEAKING[name]
    _, target = target_of(make)
    report = check_subject(target.subject, max_length=20)
    assert report.verdict == "leak"
    leak = report.leaks[0]
    assert leak.operator in operator.split("|")
    assert leak.kind.startswith("keras.")
    assert leak.location is None
    assert " of " in leak.layer
    assert re.search(why, leak.cause.why), leak.cause.why
    assert "keras" in leak.cause.fix or "padding=" in leak.cause.fix or "mask" in leak.cause.fix


@pytest.mark.long
def test_a_published_model_answers_as_keras_alone(tmp_path: Path) -> None:
    published = lengthwise_export.export(
        two_lstms(), tmp_path / "models" / "lstm", labels=["a", "b", "c"], max_length=24
    )
    assert published.manifest.scores == "probabilities"
    assert published.manifest.made["framework"] == f"keras {keras().__version__}"
    assert "such a step is data" in str(published.manifest.made["notices"])
    given = sequences()
    answers = lengthwise.load(published.directory).predict([each.tolist() for each in given])
    for answer, sequence in zip(answers, given, strict=True):
        expected = alone(two_lstms(), sequence)
        assert answer.label == "abc"[int(expected.argmax())]
        assert np.abs(answer.probabilities - expected).max() < 1e-6


@pytest.mark.long
def test_a_model_without_a_mask_is_mended(tmp_path: Path) -> None:
    model = built(LEAKING["Conv1D"][0])
    published = lengthwise_export.export(model, tmp_path / "models" / "conv", mend=True, max_length=24)
    assert published.mend is not None
    assert published.mend.mendable
    (promise,) = published.manifest.promises
    assert promise.bits


def strided(k: Any) -> list[Any]:
    """Layers that add as much around the steps as the number of these says: with strides, and `padding="same"`."""
    return [
        k.Conv1D(5, 7, strides=2, padding="same", activation="relu"),
        k.MaxPooling1D(3, strides=2, padding="same"),
        k.AveragePooling1D(2, padding="same"),
        k.GRU(4),
    ]


@pytest.mark.long
def test_a_mended_model_with_strides_answers_as_keras_alone_at_every_length(tmp_path: Path) -> None:
    model = built(plain(strided))
    published = lengthwise_export.export(model, tmp_path / "models" / "strides", mend=True, max_length=128)
    random = np.random.default_rng(5)
    given = [random.standard_normal((length, FEATURES)).astype(np.float32) for length in range(1, 101)]
    answers = lengthwise.load(published.directory).predict([each.tolist() for each in given])
    for answer, sequence in zip(answers, given, strict=True):
        logits = alone(model, sequence)
        powers = np.exp(logits - logits.max())
        assert np.abs(answer.probabilities - powers / powers.sum()).max() < 1e-6, len(sequence)


@pytest.mark.gallery
def test_a_mean_whose_padding_keras_counts_at_some_lengths_is_not_published(tmp_path: Path) -> None:
    model = built(plain(lambda k: [k.AveragePooling1D(3, padding="same"), k.GRU(4)]))
    with pytest.raises(LengthwiseError, match="does not hold"):
        lengthwise_export.export(model, tmp_path / "models" / "mean", mend=True, max_length=128)
    assert not (tmp_path / "models" / "mean").exists()


@pytest.mark.long
def test_a_step_of_zeros_is_data_and_a_notice_says_so() -> None:
    model, target = target_of(SOUND["LSTM tanh"])
    assert any("masking" in notice and "is data" in notice for notice in target.notices)
    (sequence, *_) = sequences()
    sequence[4] = 0.0
    ours = target.subject.answer(pad([sequence], width=WIDTH)).logits[0]
    assert np.abs(ours - alone(model, sequence)).max() > 1e-4
    without = keras().Sequential([layers().Input((None, FEATURES)), *model.layers[1:]])
    assert np.abs(ours - alone(without, sequence)).max() < 1e-5


@pytest.mark.long
def test_the_model_of_the_caller_is_left_as_it_was() -> None:
    model = two_lstms()
    before = weights_of(model)
    call = keras().layers.RNN.call
    lengthwise_export.check(model, max_length=12)
    assert keras().layers.RNN.call is call
    assert all(np.array_equal(mine, other) for mine, other in zip(before, weights_of(model), strict=True))


@pytest.mark.long
def test_a_model_for_one_width_takes_any() -> None:
    model, target = target_of(
        in_a_row(lambda k: [k.Input((15, FEATURES)), k.Masking(0.0), k.LSTM(4, unroll=True), k.Dense(CLASSES)])
    )
    assert any("exactly 15 steps" in notice for notice in target.notices)
    given = sequences()
    logits = target.subject.answer(junk_padded(given)).logits
    for own, sequence in zip(logits, given, strict=True):
        padded = np.zeros((15, FEATURES), dtype=np.float32)
        padded[: len(sequence)] = sequence
        assert np.abs(own - alone(model, padded)).max() < 1e-5


@pytest.mark.long
def test_raw_samples_are_sequences_of_one_value() -> None:
    model, target = target_of(
        in_a_row(lambda k: [k.Input((None,)), k.Reshape((-1, 1)), k.Masking(0.0), k.LSTM(4), k.Dense(CLASSES)])
    )
    assert target.steps == StepInput(features=1)
    values = np.linspace(1, 2, 7, dtype=np.float32)
    logits = target.subject.answer(pad([values[:, None]], width=WIDTH)).logits
    assert np.abs(logits[0] - alone(model, values)).max() < 1e-5


@pytest.mark.long
def test_a_sigmoid_gives_probabilities() -> None:
    _, target = target_of(masked(lambda k: [k.LSTM(4), k.Dense(4, activation="sigmoid")], dense=False))
    assert target.scores == "probabilities"
    assert target_of(SOUND["LSTM tanh"])[1].scores is None


def refused(make: Callable[[], Any], **options: Any) -> str:
    with pytest.raises((ConfigurationError, ExportError)) as error:
        of_model("the model", built(make), TargetOptions(**options)).build("model", 18)
    return str(error.value)


@pytest.mark.long
def test_activations_and_options_that_no_graph_can_have_are_refused() -> None:
    unknown = masked(lambda k: [k.LSTM(4, activation="gelu", name="rnn")])
    assert "no activation 'gelu'" in refused(unknown)
    assert "--second does not apply" in refused(SOUND["LSTM tanh"], second="lengths")
    assert "--features 4 contradicts" in refused(SOUND["LSTM tanh"], features=4)


@pytest.mark.long
def test_one_of_several_outputs_is_named() -> None:
    def make() -> Any:
        symbol = keras().Input((None, FEATURES))
        state = layers().LSTM(4)(layers().Masking(0.0)(symbol))
        return keras().Model(symbol, {"kind": layers().Dense(3)(state), "size": layers().Dense(2)(state)})

    assert "has 2 outputs (kind, size): name one with --output" in refused(make)
    target = of_model("the model", built(make), TargetOptions(output="size"))
    assert len(target.labels) == 2


def dense(k: Any, symbol: Any) -> Any:
    return k.Dense(CLASSES)(symbol)


def of_tokens(mask_of: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    """A model of tokens whose LSTM gets a mask that is made of them by hand."""

    def make() -> Any:
        k, tokens = layers(), keras().Input((None,), dtype="int32")
        return keras().Model(
            tokens, dense(k, k.LSTM(5)(k.Embedding(20_000, 4)(tokens), mask=mask_of(keras().ops, tokens)))
        )

    return make


def of_values(mask_of: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    """A model of lists of numbers whose LSTM gets a mask that is made of them by hand."""
    return lambda: functional(lambda x: dense(layers(), layers().LSTM(5)(x, mask=mask_of(keras().ops, x))))


def nonzero(ops: Any, x: Any) -> Any:
    return ops.any(ops.not_equal(x, 0.0), axis=-1)


def flagged(number: float) -> Callable[[Any], Any]:
    """A body that is given the flag `any(x != number)` of each step as a feature, beside a mask for 0."""

    def body(x: Any) -> Any:
        ops, k = keras().ops, layers()
        flag = ops.cast(ops.any(ops.not_equal(x, number), axis=-1, keepdims=True), "float32")
        return dense(k, k.LSTM(5)(ops.concatenate([x, flag], axis=-1), mask=nonzero(ops, x)))

    return body


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "sequence"),
    [
        (of_tokens(lambda ops, t: ops.logical_and(ops.not_equal(t, 0), ops.not_equal(t, 1))), [1, 7, 1, 8, 9, 1]),
        (of_tokens(lambda ops, t: ops.not_equal(ops.where(t < 3, 0, t), 0)), [1, 7, 2, 8, 9]),
        (
            of_values(lambda ops, x: ops.logical_and(nonzero(ops, x), ops.max(ops.abs(x), axis=-1) < 8)),
            [[1.0] * FEATURES, [50.0] * FEATURES, [2.0] * FEATURES],
        ),
        (
            of_values(lambda ops, x: ops.logical_and(nonzero(ops, x), ops.cumsum(ops.ones_like(x[..., 0]), 1) < 40)),
            np.random.default_rng(0).standard_normal((60, FEATURES)),
        ),
    ],
    ids=["unknown words", "rare words", "outliers", "the first steps only"],
)
def test_a_mask_that_also_skips_valid_steps_skips_them(make: Callable[[], Any], sequence: Any) -> None:
    steps = np.asarray(sequence, dtype=np.int64 if isinstance(sequence[0], int) else np.float32)
    model, target = target_of(make)
    ours = target.subject.answer(pad([steps], width=len(steps))).logits[0]
    assert np.abs(ours - alone(model, steps)).max() < 1e-5


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [0.0, 1.0])
def test_a_comparison_that_is_a_feature_is_computed_and_padding_does_not_change_it(number: float) -> None:
    model, target = target_of(lambda: functional(flagged(number)))
    steps = np.array([[1.0] * FEATURES, [2.0] * FEATURES, [1.0] * FEATURES], dtype=np.float32)
    batch = pad([steps], width=WIDTH)
    batch.steps[0, len(steps) :] = 7
    assert np.abs(target.subject.answer(batch).logits[0] - alone(model, steps)).max() < 1e-5
    assert check_subject(target.subject, max_length=20).verdict == "sound"


@pytest.mark.long
def test_a_mask_by_hand_has_a_notice_and_may_be_for_another_value_than_0() -> None:
    model, target = target_of(of_values(lambda ops, x: ops.any(ops.not_equal(x, -1.0), axis=-1)))
    (notice,) = target.notices
    assert "a mask made by hand" in notice
    assert "every value is -1" in notice
    assert difference(target, model) < 1e-5
    kinds = {node.op_type for node in target.build("model", 18).graph.node}
    assert "LSTM" in kinds
    assert "GatherElements" not in kinds, "the mask is that of the lengths"


VOCABULARY = 50


def own_masking(mask_of: Callable[[Any, Any], Any], *, tokens: bool, by_hand: bool = False) -> Callable[[Any], Any]:
    """A layer of the user's own that begins a mask: in `compute_mask`, or by hand as an attribute of its output."""

    class OwnMasking(layers().Layer):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.supports_masking = True
            self.inner = layers().Embedding(VOCABULARY, 8) if tokens else layers().Dense(8)

        def call(self, x: Any) -> Any:
            values = self.inner(x)
            if by_hand:
                values._keras_mask = mask_of(keras().ops, x)  # noqa: SLF001 - as users set it
            return values

        def compute_mask(self, x: Any, mask: Any = None) -> Any:
            return mask if by_hand else mask_of(keras().ops, x)

    return OwnMasking()  # type: ignore[no-any-return]


BEGINNINGS: dict[str, tuple[bool, float, Callable[[Any], Any]]] = {
    "Masking": (False, 0.0, lambda x: layers().Dense(8)(layers().Masking()(x))),
    "Embedding": (True, 0, lambda x: layers().Embedding(VOCABULARY, 8, mask_zero=True)(x)),
    "ids": (True, 0, lambda x: own_masking(lambda ops, ids: ops.not_equal(ids, 0), tokens=True)(x)),
    "ids above 0": (True, 0, lambda x: own_masking(lambda _, ids: ids > 0, tokens=True)(x)),
    "ids but 1": (True, 1, lambda x: own_masking(lambda ops, ids: ops.not_equal(ids, 1), tokens=True)(x)),
    "values": (False, 0.0, lambda x: own_masking(nonzero, tokens=False)(x)),
    "values in all": (
        False,
        0.0,
        lambda x: own_masking(lambda ops, y: ops.sum(ops.abs(y), axis=-1) > 0, tokens=False)(x),
    ),
    "first values but -1": (False, -1.0, lambda x: own_masking(lambda _, y: y[..., 0] != -1, tokens=False)(x)),
    "an attribute": (True, 0, lambda x: own_masking(lambda ops, ids: ids != 0, tokens=True, by_hand=True)(x)),
    "an attribute of values": (False, 0.0, lambda x: own_masking(nonzero, tokens=False, by_hand=True)(x)),
}
"""How a mask begins: whether steps are tokens, the value of padding for Keras, and the layers."""


def mean(x: Any) -> Any:
    return layers().GlobalAveragePooling1D()(x)


class InnerEmbedding:
    """An Embedding that gets ids behind a mask, and hands this on."""

    def __call__(self, x: Any) -> Any:
        ids = keras().ops.cast(keras().ops.argmax(layers().Dense(5)(x), axis=-1), "int32")
        return layers().LSTM(4)(layers().Add()([layers().Embedding(5, 8)(ids), x]))


TAKERS: dict[str, Callable[[Any], Any]] = {
    "LSTM": lambda x: layers().LSTM(4)(x),
    "GRU": lambda x: mean(layers().GRU(4, return_sequences=True)(x)),
    "SimpleRNN": lambda x: layers().SimpleRNN(4)(x),
    "Bidirectional": lambda x: mean(layers().Bidirectional(layers().LSTM(4, return_sequences=True))(x)),
    "TimeDistributed": lambda x: layers().LSTM(4)(layers().TimeDistributed(layers().Dense(5))(x)),
    "MultiHeadAttention": lambda x: mean(layers().MultiHeadAttention(2, 4)(x, x)),
    "Attention": lambda x: mean(layers().Attention()([x, x])),
    "AdditiveAttention": lambda x: mean(layers().AdditiveAttention()([x, x])),
    "GroupQueryAttention": lambda x: mean(layers().GroupQueryAttention(4, 4, 2)(x, x)),
    "GlobalAveragePooling1D": mean,
    "merges": lambda x: merged(layers(), x),
    "norms": lambda x: mean(layers().BatchNormalization()(layers().LayerNormalization()(x))),
    "an inner Embedding": InnerEmbedding(),
    "GlobalMaxPooling1D": lambda x: layers().GlobalMaxPooling1D()(x),
    "a maximum of attention": lambda x: layers().GlobalMaxPooling1D()(layers().MultiHeadAttention(2, 4)(x, x)),
    "Conv1D": lambda x: layers().GRU(4)(layers().Conv1D(4, 3, padding="causal")(x)),
    "a sum without a layer": lambda x: layers().GRU(4)(x + x),
    "Concatenate without a mask": lambda x: layers().GRU(4)(
        layers().Concatenate()([x, layers().RMSNormalization()(x)])
    ),
}
"""Layers that get a mask, and some that drop it."""


def moved_by_padding(model: Any, rows: list[np.ndarray], padding: float) -> float:
    """How far Keras's own answers to rows that are padded with a value are from those to each row alone."""
    worst = 0.0
    for width in (max(map(len, rows)), WIDTH):
        batch = np.full((len(rows), width, *rows[0].shape[1:]), padding, rows[0].dtype)
        for row, steps in zip(batch, rows, strict=True):
            row[: len(steps)] = steps
        answers = [alone(model, steps) for steps in rows]
        worst = max(
            worst, float(np.abs(alone(lambda x, **options: model(x[0], **options)[None], batch) - answers).max())
        )
    return worst


@pytest.mark.long
@pytest.mark.sampled(203)
@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_check_and_keras_agree_whether_padding_moves_an_answer(beginning: str, taker: str) -> None:
    tokens, padding, begin = BEGINNINGS[beginning]

    def make() -> Any:
        symbol = keras().Input((None,), dtype="int32") if tokens else keras().Input((None, FEATURES))
        return keras().Model(symbol, layers().Dense(CLASSES)(TAKERS[taker](begin(symbol))))

    model, random = built(make), np.random.default_rng(3)
    rows = [random.integers(2, VOCABULARY, length).astype(np.int32) for length in LENGTHS] if tokens else sequences()
    target = of_model("the model", model, TargetOptions())
    leaks = check_subject(target.subject, max_length=16).verdict == "leak"
    assert leaks == (moved_by_padding(model, rows, padding) > 1e-4)


@pytest.mark.long
def test_a_mask_of_the_users_own_layer_has_a_notice_and_a_step_of_its_value_is_data() -> None:
    model, target = target_of(lambda: functional(lambda x: dense(layers(), TAKERS["Attention"](of_own_values(x)))))
    (notice,) = target.notices
    assert "a mask made by hand" in notice
    (sequence, *_) = sequences()
    sequence[4] = 0.0
    ours = [target.subject.answer(pad([sequence], width=width)).logits[0] for width in (len(sequence), WIDTH)]
    assert np.abs(ours[0] - ours[1]).max() < 1e-5
    assert np.abs(ours[0] - alone(model, sequence)).max() > 1e-4


def of_own_values(x: Any) -> Any:
    return BEGINNINGS["values"][2](x)


@pytest.mark.long
def test_a_subclass_that_hands_its_mask_to_each_layer_is_sound() -> None:
    class Hands(keras().Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.table, self.gru = layers().Embedding(VOCABULARY, 8), layers().GRU(4, return_sequences=True)
            self.attention, self.head = layers().MultiHeadAttention(2, 4), layers().Dense(CLASSES)

        def call(self, ids: Any) -> Any:
            ops, mask = keras().ops, keras().ops.not_equal(ids, 0)
            x = self.gru(self.table(ids), mask=mask)
            x = self.attention(x, x, attention_mask=mask[:, None, :])
            weights = ops.cast(mask, "float32")[..., None]
            return self.head(ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1))

    model = Hands()
    model(np.ones((1, 3), np.int32))
    target = of_model("the model", model, TargetOptions(vocabulary=VOCABULARY))
    assert "a mask made by hand" in target.notices[0]
    assert check_subject(target.subject, max_length=16).verdict in ("sound", "warning")


MASKS_OF_IDS: dict[str, Callable[[Any, Any], Any]] = {
    "not equal": lambda ops, ids: ops.not_equal(ids, 0),
    "greater": lambda ops, ids: ops.greater(ids, 0),
    "no unknown word": lambda ops, ids: ops.greater(ids, 1),
    "not padding": lambda ops, ids: ops.logical_not(ops.equal(ids, 0)),
}


def of_masked_mean(mask_of: Callable[[Any, Any], Any] | None, *, subclass: bool) -> Any:
    """A GRU and a mean by hand of its steps that a mask keeps; without `mask_of`, both of all steps.

    The GRU has the mask by hand, too, in a subclass; else that of its Embedding.
    """
    keras().utils.set_random_seed(5)
    table = layers().Embedding(VOCABULARY, 8, mask_zero=mask_of is not None and not subclass)
    gru, head = layers().GRU(4, return_sequences=True), layers().Dense(CLASSES)

    def body(ids: Any) -> Any:
        ops = keras().ops
        mask = ops.ones_like(ids) if mask_of is None else mask_of(ops, ids)
        x = gru(table(ids), mask=mask if mask_of is not None and subclass else None)
        weights = ops.cast(mask, "float32")[..., None]
        return head(ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1))

    class Whole(keras().Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.parts = [table, gru, head]

        def call(self, ids: Any) -> Any:
            return body(ids)

    if subclass:
        model = Whole()
        model(np.ones((1, 3), np.int32))
        return model
    symbol = keras().Input((None,), dtype="int32")
    return keras().Model(symbol, body(symbol))


@pytest.mark.long
@pytest.mark.sampled(8)
@pytest.mark.parametrize("subclass", [True, False], ids=["subclass", "Embedding"])
@pytest.mark.parametrize("kind", MASKS_OF_IDS)
def test_a_mask_that_is_also_arithmetic_is_data_in_both_or_keras_in_both(kind: str, subclass: bool) -> None:
    model, of_all_steps = (of_masked_mean(each, subclass=subclass) for each in (MASKS_OF_IDS[kind], None))
    for copy, weights in zip(of_all_steps.weights, model.weights, strict=True):
        copy.assign(weights.value)
    target = of_model("the model", model, TargetOptions(vocabulary=VOCABULARY))
    rows = [np.array([3, 4, 0, 0, 0, 5, 6, 7]), np.array([2, 0, 9])]
    ours = target.subject.answer(pad(rows, width=WIDTH)).logits
    expected = of_all_steps if any("such a step is data" in notice for notice in target.notices) else model
    other = model if expected is of_all_steps else of_all_steps
    for row, answer in zip(rows, ours, strict=True):
        assert np.abs(answer - alone(expected, row)).max() < 1e-5
        assert np.abs(answer - alone(other, row)).max() > 1e-4
    assert bool(target.notices) == (not subclass or kind == "not equal")
    assert check_subject(target.subject, max_length=16).verdict in ("sound", "warning")


def test_ids_without_a_known_vocabulary_are_told_which_option_to_pass() -> None:
    class Table(layers().Layer):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.rows = self.add_weight(shape=(VOCABULARY, 8), initializer="uniform")

        def call(self, ids: Any) -> Any:
            return keras().ops.take(self.rows, keras().ops.cast(ids, "int32") * 100 + 7_000, axis=0)

    def make() -> Any:
        symbol = keras().Input((None,))
        return keras().Model(symbol, dense(layers(), layers().LSTM(4)(Table()(symbol))))

    assert "pass --vocabulary N" in refused(make)


def clipped() -> Any:
    def relu(x: Any) -> Any:
        return keras().ops.minimum(keras().ops.relu(x), 6.0)

    return sequential(layers().Masking(), layers().SimpleRNN(4, activation=relu))


@pytest.mark.long
def test_a_function_of_the_user_is_not_one_of_keras_by_its_name() -> None:
    model, target = target_of(clipped)
    large = 30 * sequences()[0]
    ours = target.subject.answer(pad([large], width=len(large))).logits[0]
    assert np.abs(ours - alone(model, large)).max() < 1e-5
    assert "no activation 'relu (not of Keras)'" in refused(clipped)


def two_heads() -> Any:
    symbol = keras().Input((None, FEATURES))
    state = layers().LSTM(4)(layers().Masking(0.0)(symbol))
    heads = [layers().Dense(3, "softmax", name="kind"), layers().Dense(4, name="grade")]
    return keras().Model(symbol, [head(state) for head in heads])


def two_nested_heads() -> Any:
    """Of the nested model's outputs, logits and their softmax, the model takes the logits."""
    state = layers().Input((4,))
    head = keras().Model(state, [layers().Dense(3)(state), layers().Dense(3, "softmax")(state)])
    return functional(lambda x: head(layers().LSTM(4)(layers().Masking(0.0)(x)))[0])


def gated_head() -> Any:
    class Gated(keras().Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.head, self.gate = layers().Dense(3), layers().Dense(4, "sigmoid")

        def call(self, x: Any) -> Any:
            return self.head(x * self.gate(x))

    return functional(lambda x: Gated()(layers().LSTM(4)(layers().Masking(0.0)(x))))


def head_of_a_class() -> Any:
    """Two outputs of a class of the user, which has no graph that says what computes them."""

    class Heads(keras().Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.first, self.second = layers().GRU(5), layers().Dense(3), layers().Dense(4)

        def call(self, x: Any) -> Any:
            last = self.steps(x)
            return self.first(last), self.second(last)

    heads = Heads()
    heads(np.zeros((1, 3, 3), np.float32))
    return heads


def softmax_over_steps() -> Any:
    """A softmax whose axis is that of the steps: classes have no probabilities."""
    return functional(lambda x: layers().Softmax(axis=1)(layers().GRU(4, return_sequences=True)(x)))


@pytest.mark.long
@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("make", "output", "scores"),
    [
        (two_heads, "grade", None),
        (two_heads, "1", None),
        (two_heads, "kind", "probabilities"),
        (two_nested_heads, None, None),
        (gated_head, None, None),
        (softmax_over_steps, None, None),
        (head_of_a_class, "1", None),
        (head_of_a_class, "0", None),
    ],
)
def test_scores_are_probabilities_only_if_the_selected_output_is(
    make: Callable[[], Any], output: str | None, scores: str | None
) -> None:
    target = of_model("the model", built(make), TargetOptions(output=output))
    assert target.scores == scores


@pytest.mark.long
def test_a_model_is_read_in_inference_mode_too() -> None:
    import torch

    with torch.inference_mode():
        assert of_model("the model", built(gated_head), TargetOptions()).labels


def test_a_class_that_keras_cannot_copy_has_no_answer_in_float64() -> None:
    class Unregistered(keras().Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = layers().GRU(4), layers().Dense(3)

        def call(self, x: Any) -> Any:
            return self.head(self.gru(x))

    model = Unregistered()
    model(np.zeros((1, 3, FEATURES), dtype=np.float32))
    target = of_model("the model", model, TargetOptions(features=FEATURES))
    assert isinstance(target.subject, TorchSubject)
    assert target.subject.answer_in_float64(pad(sequences(), width=WIDTH)) is None
