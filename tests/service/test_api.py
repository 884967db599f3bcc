"""`lengthwise.load` and `Model.predict`: models are proved as the service does, and answer the same bits."""

import doctest
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import lengthwise
from lengthwise import api
from lengthwise.batching.limits import BatchLimits
from lengthwise.datasets import arrays, dataset
from lengthwise.decoding import json_body
from lengthwise.errors import ConfigurationError, InferenceFailed, InvalidRequest, InvalidSequences, ModelError
from lengthwise.padding import PaddedBatch
from lengthwise.repository import loading
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.scoring.opened import OpenModel
from tests.support import model_directories, numpy_models
from tests.support.model_directories import BUNDLED
from tests.support.numpy_models import OneModel

LIMITS = BatchLimits(rows=8)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.measure_quickly(monkeypatch)


@pytest.fixture(scope="module")
def bundled() -> Iterator[lengthwise.Model]:
    with pytest.MonkeyPatch.context() as patch:
        model_directories.measure_quickly(patch)
        yield lengthwise.load(BUNDLED, threads=2)


@pytest.fixture(scope="module")
def recordings() -> list[Any]:
    found = dataset.read(dataset.locate("aeon:JapaneseVowels_TEST"))
    return [record.steps for _, record in zip(range(60), found, strict=False)]


def small(
    manifest: Manifest,
    before: Callable[[PaddedBatch], None] = lambda _: None,
    *,
    threads: int = 2,
    seconds: float = 1.0,
) -> lengthwise.Model:
    """A model of NumPy; what it is said to take decides whether a call starts threads."""
    return lengthwise.Model(OpenModel(numpy_models.model(manifest, before, seconds=seconds), LIMITS, threads))


def random(*lengths: int, features: int = 2) -> list[Any]:
    drawn = np.random.default_rng(0)
    return [drawn.random((length, features), dtype=np.float32) for length in lengths]


def fields(prediction: lengthwise.Prediction) -> list[Any]:
    """A prediction's fields, bytes in the place of arrays."""
    values = (getattr(prediction, name) for name in lengthwise.Prediction.__dataclass_fields__)
    return [value.tobytes() if isinstance(value, np.ndarray) else value for value in values]


def test_the_model_that_comes_along_is_loaded_without_a_path() -> None:
    model = lengthwise.load(provider="cpu")
    assert (model.name, model.version, model.task) == ("japanese-vowels", 1, "single-label")
    assert (model.features, model.vocabulary, model.max_length) == (12, None, 1024)
    assert (model.labels, model.has_attention) == (tuple("123456789"), True)
    assert (model.long, model.missing) == ("reject", Manifest.read(BUNDLED).missing)
    assert model.provider == "CPUExecutionProvider"
    assert repr(model) == "<lengthwise.Model japanese-vowels/1: 9 labels, 12 features a step, at most 1024 steps>"


@pytest.mark.long
def test_of_a_model_the_highest_version_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (2, 10, 9):
        model_directories.place(tmp_path, version=version)
    (tmp_path / "vowels" / "notes").mkdir()
    monkeypatch.chdir(tmp_path / "vowels")
    for path, version in ((tmp_path / "vowels", 10), (str(tmp_path / "vowels" / "9"), 9), (".", 10), ("2", 2)):
        assert lengthwise.load(path).version == version


@pytest.mark.long
def test_links_are_followed_as_the_service_does(tmp_path: Path) -> None:
    place = model_directories.place(tmp_path, "vowels", 3)
    (tmp_path / "now").symlink_to(place)
    assert lengthwise.load(tmp_path / "now").version == 3
    place.rename(tmp_path / "abc")
    place.symlink_to(tmp_path / "abc")
    for path in (tmp_path / "vowels", place):
        assert lengthwise.load(path).version == 3


@pytest.mark.parametrize("path", ["nothing", "vowels/1/manifest.json", ".", "empty"])
def test_what_is_no_model_directory_is_said(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.place(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):
        lengthwise.load(path)


def test_a_file_of_a_model_is_told_the_folder_that_it_stands_in(tmp_path: Path) -> None:
    file = model_directories.place(tmp_path) / "model.onnx"
    with pytest.raises(
        ConfigurationError, match=re.escape(f"{file} is a file: name the model directory, such as {file.parent}")
    ):
        lengthwise.load(file)


def test_a_model_that_fails_its_proof_is_not_loaded(tmp_path: Path) -> None:
    directory = model_directories.place(tmp_path)
    model_directories.tamper_with_golden(directory)
    with pytest.raises(ModelError):
        lengthwise.load(directory)


@pytest.mark.parametrize(
    "options", [{"provider": "gpu"}, {"threads": 0}, {"threads": True}, {"max_batch_rows": 0.5}, {"threads": "2"}]
)
def test_options_out_of_bounds_are_said_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        lengthwise.load(BUNDLED, **options)


@pytest.mark.long
def test_options_decide_what_one_batch_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, str]] = []
    run = Session.run

    def note(session: Session, batch: PaddedBatch, *rest: Any) -> Any:
        batches.append((batch.rows, session.kernels))
        return run(session, batch, *rest)

    monkeypatch.setattr(Session, "run", note)
    sizes = []
    for options in ({}, {"max_batch_rows": 1}, {"max_batch_cost_steps": 24}):
        model = lengthwise.load(BUNDLED, threads=1, recurrent_kernels=False, **options)
        batches.clear()
        model.predict(random(8, 8, 8, 8, features=12))
        sizes.append(max(rows for rows, _ in batches))
        assert {kernels for _, kernels in batches} == {"onnxruntime"}
    assert (sizes[0] > 1, sizes[1], sizes[2] <= 3) == (True, 1, True)


async def test_answers_are_those_of_the_service_to_the_bit(recordings: list[Any]) -> None:
    inner = loading.load(BUNDLED, LIMITS)
    asked = [{"steps": steps.tolist()} for steps in recordings]
    async with numpy_models.serving(inner) as service:
        answer = await service.predict({"sequences": asked, "outputs": ["attention"]})
    served = answer.json()["predictions"]
    given = lengthwise.Model(OpenModel(inner, LIMITS, threads=2)).predict(recordings, attention=True)
    for prediction, expected in zip(given, served, strict=True):
        assert (prediction.label, prediction.length) == (expected["label"], expected["length"])
        assert np.float32(prediction.score) == np.float32(expected["score"])
        for name in ("probabilities", "attention"):
            np.testing.assert_array_equal(getattr(prediction, name), np.array(expected[name], dtype=np.float32))


def test_batched_and_unbatched_answers_are_the_same_bits(bundled: lengthwise.Model, recordings: list[Any]) -> None:
    batched = [fields(one) for one in bundled.predict(recordings, attention=True)]
    assert batched == [fields(bundled.predict([steps], attention=True)[0]) for steps in recordings]
    assert batched[::-1] == [fields(one) for one in bundled.predict(recordings[::-1], attention=True)]


def test_many_threads_may_ask_one_model(bundled: lengthwise.Model, recordings: list[Any]) -> None:
    expected = [fields(one) for one in bundled.predict(recordings)]
    shares = [recordings[start : start + 7] for start in range(0, len(recordings), 7)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = [one for share in pool.map(bundled.predict, shares) for one in share]
            assert [fields(one) for one in found] == expected


@pytest.mark.parametrize("nothing", [[], iter(()), np.empty((0, 3, 12))], ids=["list", "iterator", "array"])
def test_nothing_asked_is_nothing_answered(bundled: lengthwise.Model, nothing: Any) -> None:
    assert bundled.predict(nothing) == []


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8, np.uint64, np.longdouble, ">f4"])
def test_any_type_of_numbers_will_do(kind: Any) -> None:
    model = small(numpy_models.manifest())
    steps = np.arange(6).reshape(3, 2)
    ((expected,), (given,), (listed,)) = (
        model.predict([one]) for one in (steps.astype("f4"), steps.astype(kind), steps.tolist())
    )
    assert fields(given) == fields(expected) == fields(listed)


def test_large_integers_are_rounded_as_those_of_a_body_are() -> None:
    manifest = numpy_models.manifest()
    number = 2**60 + 2**36 + 1  # rounded to double first, it becomes a tie between two floats
    steps = [[number, 2], [-number, 3]]
    call = json_body.decode(json.dumps({"sequences": [steps]}).encode(), OneModel(manifest).find, max_sequences=1)
    for given in (steps, np.array(steps), np.array(steps, dtype=object)):
        (item,) = arrays.items([given], manifest)
        assert item.steps.tobytes() == call.items[0].steps.tobytes()


def test_views_and_whole_arrays_will_do() -> None:
    model = small(numpy_models.manifest())
    block = np.random.default_rng(0).random((5, 7, 2), dtype=np.float32)
    expected = [fields(one) for one in model.predict([block[row].copy() for row in range(5)])]
    for given in (block, np.asfortranarray(block), tuple(block)):
        assert [fields(one) for one in model.predict(given)] == expected


def test_a_missing_value_is_nan_none_or_masked() -> None:
    model = small(numpy_models.manifest(missing="zero"))
    (expected,) = model.predict([np.array([[1, np.nan], [2, 3]])])
    assert expected.probabilities[2] > 0.5
    mask = [[False, True], [False, False]]
    masked = [np.ma.array([[1, 9], [2, 3]], mask=mask, dtype=kind) for kind in (np.float32, np.float64, np.int8)]
    for steps in ([[1, None], [2, 3]], *masked):
        assert fields(model.predict([steps])[0]) == fields(expected)
    whole = np.ma.array([1, 2], mask=[False, False])
    tokens = small(numpy_models.manifest(vocabulary=10))
    assert tokens.predict([whole])[0].length == 2
    with pytest.raises(InvalidSequences):
        tokens.predict([np.ma.array([1, 2], mask=[False, True])])


def test_one_feature_needs_no_axis_of_its_own() -> None:
    model = small(numpy_models.manifest(features=1))
    flat, deep = model.predict([[0.5, 1, 2], [[0.5], [1], [2]]])
    assert fields(flat) == fields(deep)


def test_tokens_are_whole_numbers() -> None:
    model = small(numpy_models.manifest(vocabulary=10))
    assert (model.vocabulary, model.features, "10 token ids" in repr(model)) == (10, None, True)
    for ids in ([3, 1, 2], *(np.array([3, 1, 2], dtype=kind) for kind in (np.int64, np.int32, np.uint8))):
        (prediction,) = model.predict([ids])
        assert prediction.length == 3


def test_predict_names_the_columns_of_a_table() -> None:
    table = pandas.DataFrame(
        {"run": [*"aab"], "when": [1, 0, 0], "x": [1.0, 2, 3], "y": [4.0, 5, 6], "note": [7, 8, 9]}
    )
    model = small(numpy_models.manifest())
    found = model.predict(table, id="run", time="when", values=["x", "y"])
    wanted = model.predict([[[2, 5], [1, 4]], [[3, 6]]])
    assert [one.probabilities.tolist() for one in found] == [one.probabilities.tolist() for one in wanted]
    with pytest.raises(TypeError, match="unexpected keyword argument 'ids'"):
        model.predict(table, ids="run")


WRONG: dict[str, list[Any]] = {
    "refuses missing": [
        *([], np.empty((0, 2)), np.ones((3, 3)), np.ones(4), np.ones(2), np.ones((1, 2, 2)), 5, [[1, 2], [3]]),
        *([[1, 2], [np.inf, 0]], [[1e39, 2]], [[10**400, 2]], [[1, 2], [1, np.nan]], [[1, None]]),
        *([["1", "2"]], [[1, "2", None]], np.array([[1, "2"]], dtype=object), np.array([[1, True]], dtype=object)),
        *(np.ones((2, 2), dtype=bool), np.ones((2, 2), dtype=complex), np.ones((1025, 2))),
    ],
    "tokens": [[], [1.0, 2.0], [[1, 2]], [1, 10], [-1], np.array([1, 2**64 - 1], dtype=np.uint64), [True], [None]],
}


@pytest.mark.parametrize(("name", "given"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_what_is_wrong_with_a_sequence_is_said_with_its_place(name: str, given: Any) -> None:
    manifest = numpy_models.MANIFESTS[name]
    good = [1] if name == "tokens" else [[1, 2]]
    with pytest.raises(InvalidSequences) as caught:
        small(manifest).predict([good, given, good])
    (problem,) = caught.value.problems
    assert problem.pointer == "/sequences/1"
    assert str(caught.value) == f"sequence 1: {problem.detail}"


def test_all_that_is_wrong_is_one_error() -> None:
    good, bad = np.ones((3, 2)), np.ones((3, 5))
    with pytest.raises(InvalidSequences) as caught:
        small(numpy_models.manifest()).predict([good, bad, good, bad])
    assert caught.value.indices == (1, 3)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InvalidRequest)
    with pytest.raises(InvalidSequences) as caught:
        small(numpy_models.manifest()).predict([bad] * 30)
    assert caught.value.total == 30


@pytest.mark.parametrize("given", ["text", b"", 5, None])
def test_what_is_no_list_is_said(given: Any) -> None:
    with pytest.raises(InvalidSequences):
        small(numpy_models.manifest()).predict(given)


def test_attention_is_given_where_it_is_asked_for(bundled: lengthwise.Model) -> None:
    steps = random(9, features=12)
    (without,), (with_it,) = bundled.predict(steps), bundled.predict(steps, attention=True)
    assert without.attention is None
    assert with_it.attention is not None
    assert (with_it.attention.shape, with_it.attention.sum()) == ((9,), pytest.approx(1))
    with pytest.raises(ConfigurationError):
        small(numpy_models.manifest(attention=False)).predict([], attention=True)


@pytest.mark.parametrize(("long", "part"), [("head", slice(4)), ("tail", slice(-4, None))])
def test_a_long_sequence_is_cut_as_its_model_says(long: str, part: slice) -> None:
    model = small(numpy_models.manifest(long=long, max_length=4))
    (whole,) = steps = random(11)
    (cut,), (expected,) = model.predict(steps, attention=True), model.predict([whole[part]], attention=True)
    assert (cut.length, cut.label) == (4, expected.label)
    np.testing.assert_array_equal(cut.probabilities, expected.probabilities)
    assert cut.attention is not None
    np.testing.assert_array_equal(cut.attention[part], expected.attention)
    assert (cut.attention.shape, np.count_nonzero(cut.attention)) == ((11,), 4)


def test_a_multi_label_model_assigns_labels() -> None:
    model = small(numpy_models.manifest(task="multi-label", threshold=0.7))
    (prediction,) = model.predict([[[1, 1]]])
    assert prediction.assigned == ("b", "c")
    assert (prediction.label, prediction.score, prediction.step_labels) == (None, None, None)


def test_a_per_step_model_labels_each_step() -> None:
    model = small(numpy_models.manifest(task="per-step", long="tail", max_length=2))
    (prediction,) = model.predict([[[1, 1], [-3, -3], [5, 5]]])
    assert prediction.step_labels == (None, "a", "c")
    assert prediction.step_scores is not None
    assert np.isnan(prediction.step_scores).tolist() == [True, False, False]
    assert prediction.probabilities.shape == (3, 3)
    assert np.isnan(prediction.probabilities[0]).all()
    (whole,) = model.predict([[[-3, -3], [5, 5]]])
    assert whole.step_labels == ("a", "c")
    np.testing.assert_array_equal(prediction.probabilities[1:], whole.probabilities)
    assert whole.step_scores is not None
    assert (whole.step_scores > 0.9).all()


@pytest.mark.parametrize("seconds", [1e-6, 1.0], ids=["in the caller's thread", "in threads"])
def test_an_answer_that_is_not_finite_or_a_run_that_fails_is_an_error(seconds: float) -> None:
    def before(batch: PaddedBatch) -> None:
        if (batch.steps == 7).any():
            raise RuntimeError("no 7")

    model = small(numpy_models.manifest(), before, seconds=seconds)
    bad = np.full((2, 2), numpy_models.NOT_FINITE)
    with pytest.raises(InvalidSequences) as raised:
        model.predict([np.ones((2, 2)), bad, bad])
    assert raised.value.indices == (1, 2)
    with pytest.raises(InferenceFailed):
        model.predict([np.ones((2, 2)), np.ones((3, 2)), np.full((2, 2), 7)])


@pytest.mark.long
def test_more_sequences_than_the_planner_looks_at_are_answered_in_their_order() -> None:
    lengths = [1 + place % 5 for place in range(5000)]
    given = [np.full((length, 2), place % 7, dtype=np.float32) for place, length in enumerate(lengths)]
    model = small(numpy_models.manifest())
    expected = {number: model.predict([np.full((1, 2), number)])[0].probabilities for number in range(7)}
    found = model.predict(given)
    assert [one.length for one in found] == lengths
    assert all((one.probabilities == expected[place % 7]).all() for place, one in enumerate(found))


def test_the_examples_in_the_docstrings_run() -> None:
    found = doctest.DocTestFinder(recurse=True).find(api, globs={"lengthwise": lengthwise, "np": np})
    assert [doctest.DocTestRunner().run(test).failed for test in found if test.examples] == [0, 0]
