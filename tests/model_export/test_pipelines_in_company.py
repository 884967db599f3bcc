"""Twelve pipelines, with and without missing values: scikit-learn's answers, with the same bits in every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from lengthwise.padding import pad
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.verification.random_sequences import KINDS, raw
from lengthwise_export import SequenceSummaries
from lengthwise_export.architecture.summaries_session import opened
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries import pipeline
from lengthwise_export.summaries.calibrated import CalibratedClassifier

FEATURES, TRIED = 2, 1000
NAMES = GraphNames(sequences="values")


def boosted() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=10, random_state=0)


CLASSIFIERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "extra trees": (lambda: ExtraTreesClassifier(20, random_state=0), lambda: ExtraTreesClassifier(20, random_state=0)),
    "forest": (lambda: RandomForestClassifier(20, random_state=0), lambda: RandomForestClassifier(20, random_state=0)),
    "tree": (lambda: DecisionTreeClassifier(random_state=0), lambda: DecisionTreeClassifier(random_state=0)),
    "boosted": (boosted, lambda: MultiOutputClassifier(boosted())),
    "logistic": (LogisticRegression, lambda: OneVsRestClassifier(LogisticRegression())),
    "calibrated": (lambda: ExtraTreesClassifier(9, random_state=0), lambda: ExtraTreesClassifier(9, random_state=0)),
}
"""Each classifier, for one label and for several."""


def recordings(count: int, seed: int, *, missing: bool) -> list[NDArray[np.float32]]:
    """Sequences of raw values, ties and constants; some have one step."""
    random = np.random.default_rng(seed)
    sequences = []
    for index in range(count):
        shape = (1 if index % 20 == 0 else int(random.integers(2, 50)), FEATURES)
        steps = raw([*KINDS][index % len(KINDS)], shape, random) if index % 3 else random.normal(size=shape)
        steps = np.round(steps) if index % 5 == 0 else steps
        if missing:
            steps = np.where(random.random(shape) < 0.1, np.nan, steps)
        sequences.append(np.asarray(steps, np.float32))
    return sequences


def fitted(name: str, *, several: bool, missing: bool) -> Any:
    """A pipeline of all groups of summaries that need no spectrum."""
    X = recordings(150, 1, missing=missing)
    levels = np.array([np.nan_to_num(steps).mean() for steps in X])
    y = np.stack([levels > np.median(levels), [len(steps) > 20 for steps in X]], axis=1).astype(int)
    classifier = CLASSIFIERS[name][several]()
    steps = [SequenceSummaries(), *([StandardScaler()] if name == "logistic" else [])]
    made = make_pipeline(*steps, classifier).fit(X, y if several else np.array(["low", "mid", "high"])[y.sum(axis=1)])
    if name != "calibrated":
        return made
    if not several:
        classifier.fit(made[0].transform(X), y.sum(axis=1))
    return make_pipeline(made[0], CalibratedClassifier(classifier, 0.4, ("low", "mid", "high")))


def logits(session: Any, sequences: Sequence[NDArray[np.float32]], rows: int, width: int, padding: float) -> Any:
    """The answers to sequences in batches of so many rows, wider by so many steps, with a number in the padding."""
    parts = []
    for start in range(0, len(sequences), rows):
        of_batch = sequences[start : start + rows]
        batch = pad(of_batch, width=max(map(len, of_batch)) + width)
        for row, length in zip(batch.steps, batch.lengths, strict=True):
            row[length:] = padding
        parts.append(session.run(["logits"], {"values": batch.steps, "lengths": batch.lengths})[0])
    return np.concatenate(parts)


def cases() -> list[Any]:
    """Each pipeline with and without missing values; two of them by day."""
    by_day = [("tree", False, True), ("calibrated", True, False)]
    every = [(name, several, missing) for name in CLASSIFIERS for several in (False, True) for missing in (False, True)]
    return [pytest.param(*case, marks=() if case in by_day else pytest.mark.long) for case in every]


@pytest.mark.parametrize(("name", "several", "missing"), cases())
def test_a_pipeline_answers_the_same_alone_in_company_and_padded(name: str, several: bool, missing: bool) -> None:
    made = fitted(name, several=several, missing=missing)
    model, options = pipeline.described(made, ExportOptions())
    tried = TRIED if (name, several) not in (("tree", False), ("calibrated", True)) else 200
    sequences = recordings(tried, 2, missing=missing)
    session, compiled = open_session(model), opened(model.SerializeToString(), NAMES)
    found = logits(session, sequences, 50, 0, 0.0)
    # The same bits alone, in company, with any padding, and with the kernel
    order = np.random.default_rng(3).permutation(tried)
    shuffled = [sequences[index] for index in order]
    some = slice(None, None, max(tried // 100, 1))
    assert logits(session, sequences[some], 1, 0, 0.0).tobytes() == found[some].tobytes()
    for rows, width, padding in ((7, 3, np.nan), (64, 9, np.inf), (200, 0, -1e30)):
        assert logits(session, shuffled, rows, width, padding).tobytes() == found[order].tobytes()
    assert logits(compiled, shuffled, 33, 5, 1e30).tobytes() == found[order].tobytes()
    # Scikit-learn's labels and probabilities
    labels = tuple(map(str, made[-1].classes_)) if not several else ("0", "1")
    task = "multi-label" if several else "single-label"
    fields: dict[str, Any] = {"task": task, "scores": options.scores, "labels": labels}
    manifest = Manifest(name="m", version=1, input=StepInput(features=FEATURES), **fields)
    served = answers.probabilities(found, manifest)
    expected = made[-1].predict_proba(made[:-1].transform(sequences).astype(np.float64))
    if isinstance(expected, list):
        expected = np.stack([part[:, 1] for part in expected], axis=1)
    assert np.abs(served - expected).max() <= 1e-5
    if several:
        other = ((served >= options.threshold) != (made.predict(sequences) > 0)) & (np.abs(expected - 0.5) > 1e-5)
    else:
        chosen = served.argmax(axis=1)
        is_tie = expected.max(axis=1) - expected[np.arange(tried), chosen] <= 1e-5
        other = (np.array(labels)[chosen] != made.predict(sequences).astype(str)) & ~is_tie
    assert int(other.sum()) == 0
