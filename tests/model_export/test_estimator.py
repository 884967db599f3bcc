"""`LengthwiseClassifier`: what scikit-learn asks of an estimator, with lists of arrays of different lengths."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import lengthwise
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise_export import LengthwiseClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import SpecError
from tests.support.specs import ROCKET, TINY, in_memory

_SHORTER = "a row of an array is a sequence of one feature: fewer columns are shorter sequences, which are answered"
NOT_PASSED = {  # the checks of scikit-learn that make no sense here, each with the reason
    "check_n_features_in": "n_features_in_ is the number of values of a step, which is 1 for the rows of an array",
    "check_n_features_in_after_fitting": _SHORTER,
    "check_classifiers_train": _SHORTER,
    "check_dtype_object": "a text in the place of a number is a ValueError that names the sequence, not a TypeError",
    "check_estimators_empty_data_messages": "an array without columns is named as sequences without steps",
}


@pytest.mark.sampled(36)
@parametrize_with_checks(
    [LengthwiseClassifier(ROCKET)], expected_failed_checks=lambda _estimator: NOT_PASSED, xfail_strict=True
)
def test_a_check_of_scikit_learn_holds(estimator: Any, check: Any) -> None:
    check(estimator)


def test_sequences_of_different_lengths_are_learned_and_answered() -> None:
    X, y = in_memory()
    classifier = LengthwiseClassifier(ROCKET).fit(X, y)
    assert classifier.classes_.tolist() == ["a", "b"]
    assert classifier.n_features_in_ == 3
    probabilities = classifier.predict_proba(X)
    assert probabilities.shape == (24, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert classifier.score(X, y) > 0.9
    alone = np.concatenate([classifier.predict_proba([steps]) for steps in X])
    np.testing.assert_allclose(alone, probabilities, atol=1e-6)


def test_labels_keep_their_type_and_order() -> None:
    X, y = in_memory()
    numbers = np.where(np.array(y) == "a", 10, 9)
    classifier = LengthwiseClassifier(ROCKET).fit(X, numbers)
    assert classifier.classes_.tolist() == [9, 10]
    assert classifier.predict(X).dtype == numbers.dtype
    assert {*classifier.spec_["output"]["labels"]} == {"9", "10"}
    flags = classifier.fit(X, numbers == 9)  # nothing of the first fit is left
    assert (flags.predict(X[:1]).dtype, flags.score(X, numbers == 9) > 0.9) == (bool, True)


@pytest.mark.long
def test_it_is_validated_and_searched_as_any_other() -> None:
    X, y = in_memory()
    assert cross_val_score(LengthwiseClassifier(ROCKET), X, y, cv=2).mean() > 0.8
    assert cross_val_predict(LengthwiseClassifier(ROCKET), X, y, cv=2).shape == (24,)
    grid = {"spec": [ROCKET], "calibration": np.array([True, False]), "random_state": np.arange(2)}
    search = GridSearchCV(LengthwiseClassifier(ROCKET), grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    first, second, one, other = train_test_split(X, y, stratify=y, random_state=0)
    assert LengthwiseClassifier(ROCKET).fit(first, one).score(second, other) > 0.5
    twice = FunctionTransformer(lambda sequences: [2 * steps for steps in sequences])
    assert make_pipeline(twice, LengthwiseClassifier(ROCKET)).fit(X, y).predict(X).shape == (24,)


def test_it_is_cloned_pickled_and_set() -> None:
    X, y = in_memory()
    classifier = LengthwiseClassifier(ROCKET, random_state=3).fit(X, y)
    fresh = clone(classifier)
    assert fresh.get_params() == classifier.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    assert fresh.set_params(spec="rnn", epochs=2).spec == "rnn"
    assert pickle.loads(pickle.dumps(fresh)).epochs == 2


def test_a_seed_decides() -> None:
    X, y = in_memory()
    fit = [LengthwiseClassifier(ROCKET, random_state=seed).fit(X, y).predict_proba(X) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(fit[0], fit[1])
    assert not np.array_equal(fit[0], fit[2])
    assert LengthwiseClassifier(ROCKET, random_state=np.random.RandomState(1)).fit(X, y).score(X, y) > 0.5


def test_a_wrong_spec_is_refused_with_the_reason_wherever_it_is_asked_for_its_tags() -> None:
    X, y = in_memory()
    with pytest.raises(SpecError):
        cross_val_score(LengthwiseClassifier({"model": "rocket"}), X, y, cv=2, error_score="raise")
    takes_missing = Spec.from_table({"input": {"features": 3, "missing": "mean"}, "output": {"labels": ["a", "b"]}})
    for spec, allowed in ((takes_missing, True), (takes_missing.with_keys(input={"missing": "refuse"}), False)):
        assert LengthwiseClassifier(spec).__sklearn_tags__().input_tags.allow_nan == allowed


@pytest.mark.long
def test_a_fit_is_shown_exported_and_loaded(tmp_path: Path) -> None:
    X, y = in_memory()
    classifier = LengthwiseClassifier({**ROCKET, "input": {"normalize": "training", "max_length": 40}}).fit(X, y)
    assert "macro F1" in classifier.report_._repr_html_()
    published = classifier.export(tmp_path / "models" / "mine")
    predictions = lengthwise.load(published.directory).predict(X)
    served = np.stack([prediction.probabilities for prediction in predictions])
    np.testing.assert_allclose(served, classifier.predict_proba(X), atol=1e-5)


def test_missing_values_are_for_the_spec_to_decide() -> None:
    X, y = in_memory()
    X[3] = X[3].copy()
    X[3][0, 1] = np.nan
    with pytest.raises(ValueError, match=r"sequence 3: a value is missing \(NaN\)"):
        LengthwiseClassifier(ROCKET).fit(X, y)
    mean = LengthwiseClassifier({**ROCKET, "input": {"normalize": "training", "missing": "mean"}}).fit(X, y)
    assert mean.predict(X).shape == (24,)
    assert LengthwiseClassifier("auto").fit(X, y).spec_["input"]["missing"] == "indicator"
    refusing = LengthwiseClassifier(ROCKET).fit(*in_memory())
    with pytest.raises(InvalidSequences, match=r"sequence 3: step 0 lacks a value \(NaN\)"):
        refusing.predict(X)


def test_tokens_and_data_frames_are_sequences() -> None:
    tokens = LengthwiseClassifier({**TINY, "input": {"vocabulary": 6}}, epochs=1)
    assert tokens.fit([[1, 2, 3], [4, 5], [1, 1], [5, 4, 4]], list("abab")).predict([[1, 2]]).shape == (1,)
    assert not hasattr(tokens, "n_features_in_")
    frame = pandas.DataFrame(np.arange(12.0).reshape(4, 3))
    assert LengthwiseClassifier(ROCKET).fit(frame, list("abab")).predict(frame).shape == (4,)
    series = pandas.Series(in_memory()[0])
    assert LengthwiseClassifier(ROCKET).fit(series, in_memory()[1]).predict(series).shape == (24,)


@pytest.mark.parametrize(
    ("options", "X", "y", "said"),
    [
        ({}, in_memory(4)[0], list("aaaa"), "y holds 1 class"),
        ({}, in_memory(4)[0], list("ab"), "inconsistent numbers of samples"),
        ({}, in_memory(4)[0], [0.5, 1.5, 0.5, 1.5], "Unknown label type"),
        ({}, [np.zeros((2, 3)), np.zeros((2, 2))] * 2, list("abab"), "sequence 1: 2 features a step"),
        ({"spec": {"output": {"labels": ["x", "y"]}}}, in_memory(4)[0], list("abab"), "its labels are x, y"),
        ({"spec": {**TINY, "output": {"labels": 2}}}, in_memory(4)[0], list("abab"), "labels"),
        ({"spec": {"output": {"task": "multi-label"}}}, in_memory(4)[0], list("abab"), "one label"),
        ({"spec": {**TINY, "input": {"long": "window"}}}, in_memory(4)[0], list("abab"), "long = 'window'"),
        ({"epochs": -1}, in_memory(4)[0], list("abab"), "epochs must be"),
    ],
)
def test_what_cannot_be_fitted_says_why(options: dict[str, Any], X: Any, y: Any, said: str) -> None:
    with pytest.raises((ValueError, ConfigurationError), match=said):
        LengthwiseClassifier(**({"spec": TINY} | options)).fit(X, y)


def test_what_cannot_be_answered_says_why() -> None:
    classifier = LengthwiseClassifier(ROCKET).fit(*in_memory())
    for wrong, said in (
        ([np.zeros((2, 3)), np.zeros((2, 4))], "sequence 1: the model takes 3 features a step, this one has 4"),
        ([np.zeros((0, 3))], "sequence 0: a sequence has at least one step"),
        ([], "at least one sequence"),
        ([np.zeros((1025, 3))], "1025 steps"),
        *((no_list, "must be a list") for no_list in (None, 5, "abc", {"steps": [[1.0]]})),
    ):
        with pytest.raises(ValueError, match=said):
            classifier.predict(wrong)
        if said == "must be a list":
            with pytest.raises(InvalidSequences):
                classifier.fit(wrong, ["a", "b"])
