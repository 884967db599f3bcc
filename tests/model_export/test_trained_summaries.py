"""`train` with `kind = "summaries"`: its estimate, the graph in the file of its weights, and when `auto` takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

import lengthwise_export
from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.onnx import summaries as kernel
from lengthwise_export import LengthwiseClassifier, SequenceSummaries
from lengthwise_export.architecture import checkpoint, pipeline, trained
from lengthwise_export.errors import CheckpointError
from lengthwise_export.options import CheckOptions, ExportOptions
from lengthwise_export.summaries import trained_pipeline
from lengthwise_export.summaries.calibrated import log_probabilities
from lengthwise_export.summaries.definitions import GROUPS
from lengthwise_export.summaries.pipeline import described
from lengthwise_export.targets import targets
from lengthwise_export.training import recipe, summaries
from lengthwise_export.training.batches import make_examples
from lengthwise_export.training.options import TrainingOptions, TrainOptions
from lengthwise_export.training.scores import evaluate
from lengthwise_export.training.train import write
from tests.support.specs import parsed_spec, spec

SMALL = "kind = 'summaries'\nclassifier = 'extra-trees'\nsummaries = ['moments', 'missing']\ntrees = 50"
OPEN = "features = 2\nmissing = 'handled'"


def noisy(count: int = 120, seed: int = 0, *, several: bool = False) -> list[Record]:
    """Records of two features with missing values; the first has a larger deviation in each second one."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        steps = random.normal(size=(random.integers(3, 20), 2)).astype(np.float32)
        steps[:, 0] *= 1 + index % 2
        steps[random.random(steps.shape) < 0.1] = np.nan
        labels = [name for name, has in zip("ab", (index % 2, len(steps) > 10), strict=True) if has]
        records.append(Record(str(index), steps, tuple(labels) if several else "ab"[index % 2], f"made:{index}"))
    return records


@pytest.fixture(scope="module")
def fitted() -> summaries.FittedSummaries:
    return summaries.fit(spec(SMALL, step=OPEN), noisy(), TrainingOptions())


@pytest.fixture(scope="module")
def weights(fitted: summaries.FittedSummaries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, fitted.spec, fitted.result(), columns={"id": "pump"})
    return folder


def test_the_estimate_without_a_split_is_near_what_new_records_give(fitted: summaries.FittedSummaries) -> None:
    model = fitted.result().model
    new = evaluate(model, make_examples(noisy(400, seed=1), fitted.spec), fitted.spec)
    left_out = fitted.splits["left_out"]
    assert left_out.answers == 120
    assert fitted.splits["training"].accuracy == 1.0
    assert abs(left_out.loss - new.loss) < 0.1
    assert left_out.loss < fitted_without_calibration().splits["left_out"].loss


def fitted_without_calibration() -> summaries.FittedSummaries:
    return summaries.fit(spec(SMALL, step=OPEN), noisy(), TrainingOptions(calibration=False))


def test_the_summary_that_decides_is_the_first_of_the_report(fitted: summaries.FittedSummaries) -> None:
    details = fitted.result().details
    rises = dict(details["importance"])
    assert {*[*rises][:2]} == {"x0_std", "x0_rms"}
    assert rises["x0_std"] > 5 * abs(rises["x1_mean"])
    assert details["summaries"] == 10


def test_a_stored_graph_answers_as_the_pipeline(fitted: summaries.FittedSummaries, weights: Path) -> None:
    records = noisy(30, seed=2)
    expected = fitted.pipeline().predict_proba([record.steps for record in records])
    module, notices = trained.load(fitted.spec, weights / trained.WEIGHTS_FILE)
    scored = evaluate(module, make_examples(records, fitted.spec), fitted.spec)
    logits = np.stack([answer.logits.numpy() for answer in scored.of])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), expected, atol=1e-6)
    assert notices == []


def test_what_was_trained_is_described_to_the_export_by_its_spec(
    fitted: summaries.FittedSummaries, weights: Path
) -> None:
    graph, options = targets.described(str(weights), ExportOptions())
    assert (options.labels, options.missing, options.scores) == (("a", "b"), "handled", "logits")
    assert options.max_length == 1024
    target = targets.read(graph, options)
    assert target.training.columns == {"id": "pump"}
    assert target.training.expected_answers == 120
    assert target.origin()["temperature"] == target.training.temperature
    assert targets.described(str(weights), CheckOptions())[1].max_length == 1024
    shorter = targets.described(weights / trained.WEIGHTS_FILE, ExportOptions(max_length=9, min_length=2))[1]
    assert (shorter.max_length, shorter.min_length) == (9, 2)
    with pytest.raises(ConfigurationError, match=r"max_length: the spec has input\.max_length = 1024"):
        targets.described(str(weights), ExportOptions(max_length=1025))
    spec = fitted.spec.with_keys(input={"max_length": 50_000})
    with pytest.raises(ConfigurationError, match=r"input\.max_length = 50000: these summaries take 4096 steps"):
        trained_pipeline.described(spec, weights / trained.WEIGHTS_FILE, ExportOptions())


def test_a_spec_beside_the_checkpoint_must_be_that_of_the_training(weights: Path, tmp_path: Path) -> None:
    text = f"[input]\n{OPEN}\n[model]\n{SMALL}\n[output]\nlabels = ['a', 'b']\n"
    (tmp_path / "same.toml").write_text(text)
    (tmp_path / "other.toml").write_text(text.replace("'a', 'b'", "'b', 'a'"))
    assert targets.described(str(tmp_path / "same.toml"), ExportOptions(checkpoint=weights))[1].checkpoint is None
    with pytest.raises(CheckpointError, match=r"output\.labels"):
        targets.described(str(tmp_path / "other.toml"), ExportOptions(checkpoint=weights))
    with pytest.raises(ConfigurationError, match="has no model without data"):
        targets.read(str(tmp_path / "same.toml"), ExportOptions())


def test_a_checkpoint_without_a_whole_graph_is_refused(weights: Path, tmp_path: Path) -> None:
    tensors, state = checkpoint.read(weights / trained.WEIGHTS_FILE)
    path = tmp_path / trained.WEIGHTS_FILE
    checkpoint.write(path, {"graph": tensors["graph"][:-7]}, state)
    with pytest.raises(CheckpointError, match="its graph is damaged"):
        targets.described(str(path), ExportOptions())
    checkpoint.write(path, {"head": tensors["graph"]}, state)
    with pytest.raises(CheckpointError, match="holds no graph of summaries"):
        pipeline.load(path)


def test_several_labels_are_trained_with_an_answer_for_each() -> None:
    several = spec(SMALL, step=OPEN, task="multi-label")
    result = summaries.fit(several, noisy(several=True), TrainingOptions()).result()
    assert result.splits["left_out"].answers == 240
    assert result.splits["left_out"].accuracy > 0.6
    scored = evaluate(result.model, make_examples(noisy(several=True), several), several)
    assert scored.accuracy == result.splits["training"].accuracy == 1.0


def test_boosted_trees_hold_records_out() -> None:
    boosted = spec(SMALL.replace("extra", "boosted"), step=OPEN)
    result = summaries.fit(boosted, noisy(), TrainingOptions(class_weights=True)).result()
    assert {name: scores.answers for name, scores in result.splits.items()} == {"training": 102, "left_out": 18}
    assert result.splits["left_out"].accuracy > 0.7
    assert result.details["importance"][0][0] in ("x0_std", "x0_rms")


LOGISTIC = "kind = 'summaries'\nclassifier = 'logistic'\nsummaries = ['moments', 'missing']"


def test_logistic_regression_is_estimated_without_a_split() -> None:
    fitted = summaries.fit(spec(LOGISTIC, step=OPEN), noisy(), TrainingOptions(class_weights=True))
    result, left_out = fitted.result(), fitted.splits["left_out"]
    new = evaluate(result.model, make_examples(noisy(400, seed=1), fitted.spec), fitted.spec)
    assert (left_out.answers, fitted.splits["training"].answers) == (120, 120)
    assert abs(left_out.loss - new.loss) < 0.1
    assert left_out.loss > fitted.splits["training"].loss
    assert result.details["importance"][0][0] in ("x0_std", "x0_rms")
    expected = fitted.pipeline().predict_proba([record.steps for record in noisy(30, seed=2)])
    scored = evaluate(result.model, make_examples(noisy(30, seed=2), fitted.spec), fitted.spec)
    logits = np.stack([answer.logits.numpy() for answer in scored.of])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), expected, atol=1e-6)


@pytest.mark.long
def test_logistic_regression_answers_each_of_several_labels() -> None:
    several = spec(LOGISTIC, step=OPEN, task="multi-label")
    fitted = summaries.fit(several, noisy(several=True), TrainingOptions())
    result = fitted.result()
    assert result.splits["left_out"].answers == 240
    assert result.splits["left_out"].accuracy > 0.7
    records = noisy(30, seed=2, several=True)
    scored = evaluate(result.model, make_examples(records, several), several)
    logits = np.stack([answer.logits.numpy() for answer in scored.of])
    expected = fitted.pipeline().predict_proba([record.steps for record in records])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-6)


def test_each_regression_knows_a_label_that_one_record_has() -> None:
    records = [*noisy(40), replace(noisy(1)[0], id="c", label="c")]
    three = summaries.fit(spec(LOGISTIC, step=OPEN, labels='["a", "b", "c"]'), records, TrainingOptions())
    assert three.fitted.left_out(three.table, np.arange(41)).shape == (41, 3)
    with pytest.raises(ConfigurationError, match="has the label d: logistic regression cannot learn it"):
        summaries.fit(spec(LOGISTIC, step=OPEN, labels='["a", "b", "c", "d"]'), records, TrainingOptions())


def test_what_trees_cannot_learn_is_refused() -> None:
    three = spec(SMALL, step=OPEN, labels='["a", "b", "c"]')
    with pytest.raises(ConfigurationError, match="no record or every record has the label c: trees cannot learn it"):
        summaries.fit(three, noisy(), TrainingOptions())
    long = spec(SMALL.replace("'moments'", "'bands'"), step=f"{OPEN}\nmax_length = 5000")
    with pytest.raises(ConfigurationError, match=r"input\.max_length = 5000: these summaries take 4096 steps"):
        summaries.fit(long, noisy(), TrainingOptions())


def test_the_number_of_records_chooses_the_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    left = spec(SMALL.replace("classifier = 'extra-trees'\n", ""), step=OPEN)
    plan = recipe.plan(left, noisy(), TrainOptions(seed=3))
    assert (plan.spec.model.classifier, plan.options.seed) == ("extra-trees", 3)
    monkeypatch.setattr(recipe, "LARGE_TABLE", 100)
    plan = recipe.plan(left, noisy(), TrainOptions())
    assert plan.spec.model.classifier == "boosted-trees"
    assert plan.reasons == ('classifier = "boosted-trees": 120 records',)
    with pytest.raises(ConfigurationError, match="--epochs has no meaning with kind = 'summaries'"):
        recipe.plan(left, noisy(), TrainOptions(epochs=3))
    with pytest.raises(ConfigurationError, match=r"model\.kind = 'summaries' is by the whole sequence"):
        recipe.plan(left, noisy(), TrainOptions(streaming=True))


def told_by_the_end(count: int) -> list[Record]:
    """Records whose last value tells the label; some of the others are missing."""
    random = np.random.default_rng(0)
    records = []
    for index in range(count):
        steps = random.normal(size=(30, 1)).astype(np.float32)
        steps[-1] = abs(steps[-1]) * (1.5 if index % 2 else -1.5)
        steps[:-1][random.random((29, 1)) < 0.02] = np.nan
        records.append(Record(str(index), steps, "ab"[index % 2], f"made:{index}"))
    return records


@pytest.mark.long
def test_auto_takes_summaries_where_their_held_out_loss_is_lower() -> None:
    auto = parsed_spec("[input]\nfeatures = 1\n[model]\npreset = 'auto'\n[output]\nlabels = ['a', 'b']\n")
    plan = recipe.plan(auto, told_by_the_end(120), TrainOptions())
    assert plan.fitted is not None
    assert plan.spec.resolved()["model"]["kind"] == "summaries"
    assert plan.spec.input.missing == "handled"
    assert plan.reasons[0].startswith('missing = "handled": ')
    assert plan.reasons[1].startswith('kind = "summaries": held-out log loss 0.')
    assert "of MiniRocket 0." in plan.reasons[1]
    few = recipe.plan(auto, told_by_the_end(60), TrainOptions())
    assert few.spec.model.kind == "rocket"
    asked = auto.with_keys(input={"missing": "mean"})
    assert recipe.plan(asked, told_by_the_end(120), TrainOptions()).spec.model.kind == "rocket"


def test_the_classifier_of_scikit_learn_trains_summaries_too() -> None:
    records = noisy(60)
    X, y = [record.steps for record in records], [record.label for record in records]
    model = {"kind": "summaries", "summaries": ["moments"], "trees": 50}
    classifier = LengthwiseClassifier({"input": {"missing": "handled"}, "model": model}).fit(X, y)
    assert classifier.spec_["model"]["classifier"] == "extra-trees"
    assert classifier.score(X, y) == 1.0


@pytest.mark.long
def test_the_run_of_a_few_records_says_that_it_is_not_calibrated(caplog: pytest.LogCaptureFixture) -> None:
    records = noisy(4)
    X, y = [record.steps for record in records], [str(record.label) for record in records]
    tables: dict[str, Any] = {"input": {"missing": "handled"}, "model": {"kind": "summaries", "summaries": ["moments"]}}
    run = lengthwise_export.train(tables, X, y, progress=None)
    assert "temperature" not in str(run)
    assert "not calibrated: fewer than 5 answers were held out, which say too little" in caplog.text


@pytest.mark.long
def test_a_run_is_trained_published_and_checked_by_its_folder(tmp_path: Path) -> None:
    records = noisy()
    X, y = [record.steps for record in records], [str(record.label) for record in records]
    tables: dict[str, Any] = {"input": {"missing": "handled", "max_length": 60}, "model": {"preset": "summaries"}}
    run = lengthwise_export.train(tables, X, y, test=(X, y), progress=None, out=tmp_path / "run")
    assert "summaries, temperature" in str(run)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["importance"]
    assert "Which summaries decide" in (tmp_path / "run" / "report.html").read_text()
    published = run.export(tmp_path / "models" / "pumps")
    assert published.manifest.promises[0].bits
    assert published.manifest.made["float32_labels_moved"] == 0
    assert (published.manifest.missing, published.manifest.max_length) == ("handled", 60)
    assert lengthwise_export.check(str(tmp_path / "run")).verdict == "sound"


def test_tangents_are_near_the_logarithm_and_rise_with_it() -> None:
    shares = np.concatenate([[0.0], np.geomspace(1e-4, 1, 5000)])
    logits = log_probabilities(shares)
    assert (np.diff(logits) > 0).all()
    assert np.abs(logits[1:] - np.log(shares[1:])).max() < 0.003
    assert logits[0] == pytest.approx(np.log(1e-4) - 1)


def test_a_table_has_the_same_bits_with_the_kernel_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [record.steps for record in noisy(70)]
    transformer = SequenceSummaries([*GROUPS]).fit(sequences)
    table = transformer.transform(sequences)
    monkeypatch.setattr(kernel, "INSTRUCTION_SETS", ())
    assert transformer.transform(sequences).tobytes() == table.tobytes()


def test_a_calibrated_pipeline_has_the_labels_in_the_order_of_the_spec() -> None:
    records = [replace(record, label="ba"["ab".index(str(record.label))]) for record in noisy()]
    turned = summaries.fit(spec(SMALL, step=OPEN, labels='["b", "a"]'), records, TrainingOptions())
    model, options = described(make_pipeline(*turned.pipeline()), ExportOptions(labels=("b", "a")))
    assert options.labels == ("b", "a")
    assert model.graph.output[0].name == "logits"
