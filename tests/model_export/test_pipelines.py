"""Pipelines of scikit-learn on summaries as one graph: the same answers, at thresholds too, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import lengthwise
import lengthwise_export
from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.runtime.manifest import Manifest
from lengthwise_export import SequenceSummaries
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import MADE, NodeWriter, metadata_of
from lengthwise_export.options import ExportOptions
from lengthwise_export.summaries import classifiers, pipeline, trees
from lengthwise_export.summaries.series_graph import GraphNumbers

GROUPS = ["length", "moments", "quantiles", "change", "missing"]


def recordings(*, missing: bool) -> tuple[list[NDArray[np.float32]], NDArray[np.str_], NDArray[np.int_]]:
    """Sequences of 1 to 39 steps of two features with a label of three, and with three labels each."""
    random = np.random.default_rng(0)
    sequences, labels, several = [], [], []
    for index in range(120):
        steps = random.normal(size=(random.integers(1, 40), 2)) * (1 + index % 3)
        if missing:
            steps[random.random(steps.shape) < 0.1] = np.nan
        sequences.append(steps.astype(np.float32))
        labels.append("abc"[index % 3])
        several.append([index % 3 == 0, index % 3 > 0, len(steps) > 20])
    return sequences, np.array(labels), np.array(several, int)


def boosted(**options: Any) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=8, random_state=0, **options)


SINGLE = {
    "extra trees": [ExtraTreesClassifier(20, random_state=0)],
    "forest, unlimited": [RandomForestClassifier(20, random_state=0)],
    "one tree, selected": [VarianceThreshold(), SelectKBest(k=6), DecisionTreeClassifier(random_state=0)],
    "boosted": [boosted()],
    "logistic, scaled": [StandardScaler(), LogisticRegression()],
    "logistic, scaled twice": [RobustScaler(), MinMaxScaler(), MaxAbsScaler(), LogisticRegression()],
}
SEVERAL = {
    "extra trees": [ExtraTreesClassifier(20, random_state=0)],
    "boosted, one for each label": [MultiOutputClassifier(boosted())],
    "logistic, one for each label": [StandardScaler(), OneVsRestClassifier(LogisticRegression())],
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing values"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_graph_answers_a_thousand_sequences_as_its_pipeline(name: str, missing: bool) -> None:
    X, y, _ = recordings(missing=missing)
    model, options = pipeline.described(
        make_pipeline(SequenceSummaries(GROUPS), *SINGLE[name]).fit(X, y), ExportOptions()
    )
    assert metadata_of(model, MADE)["float32_labels_moved"] == 0  # else it raises
    assert (options.missing, options.multi_label, options.threshold) == ("handled", False, None)


OPTIONS = {
    "without the mean": [StandardScaler(with_mean=False), LogisticRegression()],
    "without the scale": [StandardScaler(with_std=False), LogisticRegression()],
    "neither": [StandardScaler(with_mean=False, with_std=False), LogisticRegression()],
    "clipped": [MinMaxScaler((-0.1, 0.3), clip=True), LogisticRegression()],
    "absolute, clipped": [MaxAbsScaler(clip=True), LogisticRegression()],
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_a_scaler_is_obeyed(name: str) -> None:
    X, y, _ = recordings(missing=False)
    fitted = make_pipeline(SequenceSummaries(["moments"]), *OPTIONS[name]).fit(X, y)
    pipeline.described(fitted, ExportOptions())  # compares the answers


def test_one_against_the_rest_is_exported_for_two_classes_only() -> None:
    X, y, _ = recordings(missing=False)
    several = make_pipeline(SequenceSummaries(["moments"]), OneVsRestClassifier(LogisticRegression())).fit(X, y)
    with pytest.raises(ConfigurationError, match="OneVsRestClassifier of 3 classes cannot be exported"):
        pipeline.described(several, ExportOptions())
    model, _ = pipeline.described(several.fit(X, y == "a"), ExportOptions())
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing values"])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels_are_assigned_as_by_the_pipeline(name: str, missing: bool) -> None:
    X, _, y = recordings(missing=missing)
    _, options = pipeline.described(make_pipeline(SequenceSummaries(GROUPS), *SEVERAL[name]).fit(X, y), ExportOptions())
    assert options.multi_label
    assert 0.5 < (options.threshold or 0) < 0.5000001


CONSTANT = {
    "forest": ExtraTreesClassifier(5, random_state=0),
    "one for each label": MultiOutputClassifier(boosted()),
    "one against the rest": OneVsRestClassifier(LogisticRegression()),
}


@pytest.mark.filterwarnings("ignore:Label")
@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_never_changes_is_refused_by_its_column(name: str, value: int) -> None:
    X, _, y = recordings(missing=False)
    y[:, 1] = value
    with pytest.raises(ConfigurationError, match="column 1 of y: to be exported, each label needs both 0 and 1"):
        pipeline.described(make_pipeline(SequenceSummaries(["std"]), CONSTANT[name]).fit(X, y), ExportOptions())


def test_two_classes_have_two_answers() -> None:
    X, y, _ = recordings(missing=False)
    for classifier in (boosted(), LogisticRegression(), ExtraTreesClassifier(9)):
        model, _ = pipeline.described(
            make_pipeline(SequenceSummaries(["std"]), classifier).fit(X, y == "a"), ExportOptions()
        )
        assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2


def scores_of_table(classifier: Any, columns: int) -> Any:
    """A function that computes a classifier's scores of a table by its part of the graph alone."""
    writer = NodeWriter({"table", "scores"}, "")
    scores = classifiers.scores(classifier, GraphNumbers(writer, "table")).numbers
    nodes = [*writer.nodes, helper.make_node("Identity", [scores.name], ["scores"])]
    table = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", columns])
    output = helper.make_tensor_value_info("scores", TensorProto.DOUBLE, ["rows", None])
    graph = helper.make_graph(nodes, "classifier", [table], [output], writer.constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(trees.ML_DOMAIN, 3)]
    session = open_session(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return lambda rows: session.run(None, {"table": rows})[0]


@pytest.mark.parametrize("kind", ["forest", "boosted"])
def test_values_on_and_beside_each_threshold_go_to_the_right_side(kind: str) -> None:
    random = np.random.default_rng(1)
    table = random.normal(size=(300, 3)).astype(np.float32)
    table[::7, 1] = np.nan
    y = (np.nan_to_num(table).sum(axis=1) > 0).astype(int) + (table[:, 0] > 1)
    if kind == "forest":
        classifier: Any = RandomForestClassifier(10, random_state=0).fit(table, y)
        thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in classifier.estimators_])
        expected_of = classifier.predict_proba
    else:
        classifier = boosted().fit(table, y)
        nodes = np.concatenate([tree.nodes for group in vars(classifier)["_predictors"] for tree in group])
        thresholds = nodes["num_threshold"][nodes["is_leaf"] == 0]
        expected_of = classifier.decision_function
    thresholds = thresholds[np.isfinite(thresholds)]  # a split by missing or not has an infinite one
    near = thresholds.astype(np.float32)
    beside = [near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9)), np.full_like(near, np.nan)]
    rows = np.concatenate([np.stack([values] * 3, axis=1) for values in beside])
    rows = np.concatenate([rows, random.permuted(rows, axis=0), table])
    assert (near.astype(np.float64) != thresholds).any()
    scores_of = scores_of_table(classifier, 3)
    np.testing.assert_allclose(scores_of(rows), expected_of(rows), atol=1e-8)
    alone = np.concatenate([scores_of(rows[index : index + 1]) for index in range(0, len(rows), 50)])
    assert alone.tobytes() == scores_of(rows)[::50].tobytes()


BOOSTED: dict[str, Any] = json.loads(Path(__file__).with_name("boosted_trees.json").read_text())["models"]
"""Models of XGBoost and LightGBM, which are not installed: what their JSON has, rows at thresholds, probabilities."""


class XGBClassifier:
    """A fitted classifier of XGBoost, as far as an export reads it."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.model = model

    def get_booster(self) -> XGBClassifier:
        return self

    def save_raw(self, form: str) -> str:
        return json.dumps(self.model)


class LGBMClassifier:
    """A fitted classifier of LightGBM, as far as an export reads it."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.booster_ = self
        self.dump_model = lambda: model


@pytest.mark.parametrize("name", BOOSTED)
def test_trees_of_other_libraries_answer_as_these_do(name: str) -> None:
    stored = BOOSTED[name]
    kind = XGBClassifier if name.startswith("XGB") else LGBMClassifier
    rows = np.array(stored["rows"], np.float32)
    scores = scores_of_table(kind(stored["model"]), rows.shape[1])(rows)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = np.array(stored["probabilities"])
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([PCA(2), LogisticRegression()], "PCA cannot be exported: between summaries and classifier may be"),
        ([SGDClassifier()], "SGDClassifier cannot be exported: the last step must be one of"),
        ([], "ends with a classifier"),
    ],
)
def test_a_step_that_cannot_be_exported_is_refused_by_name(steps: list[Any], message: str) -> None:
    X, y, _ = recordings(missing=False)
    with pytest.raises(ConfigurationError, match=message):
        pipeline.described(make_pipeline(SequenceSummaries(["moments"]), *steps).fit(X, y), ExportOptions())


def test_other_pipelines_are_refused_with_what_to_use() -> None:
    X, y, _ = recordings(missing=False)
    unfitted = make_pipeline(SequenceSummaries(["std"]), LogisticRegression())
    with pytest.raises(ConfigurationError, match="not fitted"):
        pipeline.described(unfitted, ExportOptions())
    with pytest.raises(ConfigurationError, match="begins with StandardScaler"):
        pipeline.described(Pipeline([("a", StandardScaler()), ("b", LogisticRegression())]), ExportOptions())
    spectrum = make_pipeline(SequenceSummaries(["bands"]), LogisticRegression()).fit(X, y)
    with pytest.raises(ConfigurationError, match="at most 4096 steps"):
        pipeline.described(spectrum, ExportOptions(max_length=5000))


def test_a_graph_with_other_answers_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = recordings(missing=False)
    monkeypatch.setattr(trees, "largest_float32", lambda thresholds: (thresholds + 0.1).astype(np.float32))
    with pytest.raises(VerificationError, match="of 1000 random sequences another label"):
        pipeline.described(make_pipeline(SequenceSummaries(["std"]), boosted()).fit(X, y), ExportOptions())


def test_labels_that_tie_may_be_told_apart_in_another_way() -> None:
    """Scikit-learn rounds the sum of its trees' shares; equal ones differ by 1e-16 there, and not at all here."""
    X, _, _ = recordings(missing=False)
    random = np.random.default_rng(1)
    forest = RandomForestClassifier(6, min_samples_leaf=3, random_state=1)
    model, _ = pipeline.described(
        make_pipeline(SequenceSummaries(["moments", "ends"]), forest).fit(X, random.integers(0, 3, len(X))),
        ExportOptions(),
    )
    made = metadata_of(model, MADE)
    assert made["float32_labels_moved"] == 0
    assert 0 < made["float32_labels_tied"] < 100


@pytest.mark.long
def test_a_pipeline_is_published_checked_and_served(tmp_path: Path) -> None:
    X, y, _ = recordings(missing=True)
    fitted = make_pipeline(SequenceSummaries(["moments", "ends"]), ExtraTreesClassifier(20, random_state=0)).fit(X, y)
    published = lengthwise.export(fitted, tmp_path / "models" / "pumps", max_length=60)
    manifest: Manifest = published.manifest
    assert manifest.promises[0].bits
    assert manifest.labels == ("a", "b", "c")
    assert manifest.made["summaries"] == ",".join(fitted[0].get_feature_names_out())
    assert (manifest.made["float32_labels_moved"], manifest.made["float32_labels_tried"]) == (0, 1000)
    assert manifest.made["float32_labels_tied"] == 0
    predictions = lengthwise.load(published.directory).predict(X)
    assert [prediction.label for prediction in predictions] == fitted.predict(X).tolist()
    served = np.stack([prediction.probabilities for prediction in predictions])
    np.testing.assert_allclose(served, fitted.predict_proba(X), atol=1e-6)
    assert lengthwise_export.check(fitted, max_length=60).verdict == "sound"
    assert onnx.load(published.directory / "model.onnx").graph.name == "ExtraTreesClassifier"


def test_the_columns_of_several_labels_get_names() -> None:
    X, _, y = recordings(missing=False)
    fitted = make_pipeline(SequenceSummaries(["moments"]), ExtraTreesClassifier(3)).fit(X, y)
    named = [f"label {column}" for column in range(y.shape[1])]
    assert pipeline.described(fitted, ExportOptions(labels=named))[1].labels == tuple(named)


def test_labels_in_another_order_than_the_sequences_are_refused() -> None:
    table = pandas.DataFrame({"id": ["a", "a", "b", "c"], "x": [1.0, 2.0, 3.0, 4.0]})
    labels = pandas.Series([0, 1, 1], index=["a", "b", "c"])
    for given in (labels, labels.reset_index(drop=True), labels.to_numpy(), [0, 1, 1], None):
        assert SequenceSummaries(["moments"]).fit(table, given).n_features_in_ == 1
    for wrong in (labels[::-1], labels.rename({"c": "d"})):
        with pytest.raises(ConfigurationError, match="by position"):
            SequenceSummaries(["moments"]).fit(table, wrong)
