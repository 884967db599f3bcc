"""Keras models that take static values or further sequences beside the first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lengthwise.runtime.manifest import SequenceInput, StaticInput
from lengthwise_export import check, export
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target

keras = pytest.importorskip("keras")
layers = keras.layers


def joined(inputs: Any, *parts: Any) -> Any:
    """A model whose head reads these parts."""
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(list(parts))))


def with_static() -> Any:
    x, static = keras.Input((None, 4)), keras.Input((3,), name="static")
    return joined([x, static], layers.LSTM(8)(layers.Masking()(x)), static)


def with_codes() -> Any:
    age, ids = keras.Input((1,), name="age"), keras.Input((None,), dtype="int32", name="ids")
    sex = keras.Input((1,), dtype="int32", name="sex")
    hidden = layers.GRU(8)(layers.Embedding(30, 6, mask_zero=True)(ids))
    return joined([age, ids, sex], hidden, layers.Flatten()(layers.Embedding(3, 2)(sex)), age)


def by_name() -> Any:
    x, static = keras.Input((None, 4), name="z"), keras.Input((2,), name="a")
    return joined({"z": x, "a": static}, layers.LSTM(8)(layers.Masking()(x)), static)


def of_one_width() -> Any:
    x, static = keras.Input((50, 4)), keras.Input((2,), name="static")
    return joined([x, static], layers.LSTM(8)(layers.Masking()(x)), static)


def pooled_over_padding() -> Any:
    x, static = keras.Input((None, 4)), keras.Input((2,), name="static")
    return joined([x, static], layers.GlobalAveragePooling1D()(layers.Dense(8)(x)), static)


def pair() -> Any:
    first, second = keras.Input((None, 4), name="first"), keras.Input((None, 4), name="second")
    masking, encoder = layers.Masking(), layers.LSTM(8)
    return joined([first, second], encoder(masking(first)), encoder(masking(second)))


def texts() -> Any:
    title, body = (keras.Input((None,), dtype="int32", name=name) for name in ("title", "body"))
    encoded = layers.LSTM(8)(layers.Embedding(20, 5, mask_zero=True)(title))
    return joined([title, body], encoded, layers.GRU(8)(layers.Embedding(40, 6, mask_zero=True)(body)))


def second_without_mask() -> Any:
    first, second = keras.Input((None, 4), name="first"), keras.Input((None, 4), name="second")
    pooled = layers.GlobalMaxPooling1D()(layers.Dense(8)(second))
    return joined([first, second], layers.LSTM(8)(layers.Masking()(first)), pooled)


def read(make: Callable[[], Any]) -> Target:
    """The target of a model."""
    keras.utils.set_random_seed(0)
    return targets.read(make(), TargetOptions())


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "static"),
    [
        (with_static, StaticInput(count=3)),
        (with_codes, StaticInput(count=2, names=("age", "sex"), categories={"sex": ("0", "1", "2")})),
        (by_name, StaticInput(count=2)),
        (of_one_width, StaticInput(count=2)),
    ],
)
def test_an_input_without_steps_holds_static_values(make: Callable[[], Any], static: StaticInput) -> None:
    assert read(make).steps.static == static


@pytest.mark.long
def test_each_input_with_steps_is_a_sequence() -> None:
    assert read(pair).steps.sequences == (
        SequenceInput(name="first", features=4),
        SequenceInput(name="second", features=4),
    )
    assert [one.vocabulary for one in read(texts).steps.sequences] == [20, 40]


@pytest.mark.parametrize(
    "make", [with_codes, *(pytest.param(one, marks=pytest.mark.long) for one in (with_static, pair, texts))]
)
def test_a_model_with_masks_is_sound(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    assert check(make(), max_length=24).verdict == "sound"


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "operator"), [(pooled_over_padding, "GlobalAveragePooling1D"), (second_without_mask, "GlobalMaxPooling1D")]
)
def test_a_layer_that_reads_padding_is_named(make: Callable[[], Any], operator: str) -> None:
    keras.utils.set_random_seed(0)
    report = check(make(), max_length=24)
    assert report.verdict == "leak"
    assert operator in report.leaks[0].operator


@pytest.mark.long
@pytest.mark.parametrize("make", [with_codes, pair])
def test_an_export_answers_as_keras_does(make: Callable[[], Any], tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    published = export(make(), tmp_path / "m", max_length=24)
    assert max(case.difference for case in published.cases if case.varied == "reference") < 2e-6
    assert published.manifest.promises[0].bits
