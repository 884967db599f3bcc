import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lengthwise
import lengthwise_export
from lengthwise.batching.limits import BatchLimits
from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError, InvalidSequences, VerificationError
from lengthwise.padding import pad
from lengthwise.repository import loading
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import score
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, Manifest
from lengthwise.runtime.session import Session
from lengthwise.scoring.opened import OpenModel
from lengthwise.verification.golden import Golden
from lengthwise_export.errors import UncheckableError
from lengthwise_export.exporting.candidate import Candidate, from_target, with_threshold
from lengthwise_export.exporting.flow import PublishedModel, publish
from lengthwise_export.options import ExportOptions
from lengthwise_export.targets import targets
from tests.support.fake_device import ONE
from tests.support.specs import candidate, from_spec, spec


@functools.cache
def module(name: str, **options: Any) -> Candidate:
    """A module of `users_models`, checked once."""
    said = ExportOptions(**({"features": 3, "max_length": 64} | options))
    return from_target(targets.read(f"tests.support.users_models:{name}", said), said)


def of_graph(model: PublishedModel, max_length: int = 64) -> Candidate:
    """The graph of a published model, as one that was made elsewhere."""
    graph = targets.read(str(model.directory / GRAPH_FILE), ExportOptions())
    return from_target(graph, ExportOptions(max_length=max_length))


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    return publish(module("mean", labels=("no", "yes")), tmp_path_factory.mktemp("models") / "mean")


def test_a_users_module_is_published_with_a_promise_and_answers_as_torch(mean: PublishedModel) -> None:
    assert mean.manifest.labels == ("no", "yes")
    session = Session.load(mean.directory, mean.manifest)
    batch = pad([np.random.default_rng(0).random((length, 3), dtype=np.float32) for length in (2, 5, 9)])
    reference = module("mean", labels=("no", "yes")).reference
    assert reference is not None
    np.testing.assert_allclose(session.run(batch).logits, reference(batch), atol=1e-6)
    (promise,) = mean.manifest.promises  # what was measured
    assert promise.tolerance < 1e-3  # raw values have logits near 1,000, whose own rounding is 6e-5
    assert promise.amplified == 0
    assert promise.bits == (promise.tolerance == 0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("refused", "error", "named"),
    [
        (lambda: module("leaking"), VerificationError, ":leaking"),
        (lambda: module("mean", features=5), UncheckableError, "and runs with --features 3"),
        (lambda: module("one"), ConfigurationError, "--multi-label"),
        (lambda: module("sigmoid", multi_label=True), ConfigurationError, "--scores logits"),
        (lambda: module("tagger", multi_label=True), ConfigurationError, "--multi-label"),
        (lambda: from_spec(spec(), None, ExportOptions(multi_label=True)), ConfigurationError, "output.task"),
        (lambda: from_spec(spec(), None, ExportOptions(max_length=9)), ConfigurationError, "input.max_length"),
        (lambda: with_threshold(module("mean"), 0.3), ConfigurationError, "--threshold"),
    ],
)
def test_what_leaks_cannot_be_checked_or_contradicts_itself_is_refused(
    refused: Callable[[], Candidate], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as caught:
        refused()
    assert named in str(caught.value)


def test_what_is_not_said_is_found_out() -> None:
    assert (module("tagger").manifest.task, module("tagger").manifest.classes) == ("per-step", 4)
    assert module("mean").manifest.scores == "logits"
    assert module("probabilities").manifest.scores == "probabilities"
    assert module("probabilities", scores="logits").manifest.scores == "logits"
    assert module("one", multi_label=True, scores="logits").manifest.classes == 1
    assert from_spec(spec(), None, ExportOptions(max_length=1024)).manifest.max_length == 1024


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "scores"), [("mean", None), ("sigmoid", "probabilities")])
def test_a_users_multi_label_model_assigns_each_class_by_itself(name: str, scores: str | None, tmp_path: Path) -> None:
    source = with_threshold(module(name, multi_label=True, scores=scores, labels=("calm", "cold")), 0.3)
    published = publish(source, tmp_path / name)
    manifest = Manifest.read(published.directory)
    assert (manifest.task, manifest.threshold, manifest.scores) == ("multi-label", 0.3, scores or "logits")
    batch = pad([np.random.default_rng(0).random((length, 3), dtype=np.float32) for length in (2, 5, 9)])
    session = Session.load(published.directory, manifest)
    answers = score(session.run(batch), batch.lengths, manifest)
    assert source.reference is not None
    said = torch.from_numpy(source.reference(batch))
    expected = said if scores else torch.sigmoid(said)
    np.testing.assert_allclose([answer.probabilities for answer in answers if answer], expected, atol=1e-6)


def test_missing_values_are_refused_unless_the_caller_says_that_they_are_handled() -> None:
    for name, is_told in (("filling", True), ("mean", False)):
        assert module(name).manifest.missing == "refuse"
        assert any("--missing handled" in notice for notice in module(name).notices) is is_told
    assert module("filling", missing="handled").manifest.missing == "handled"


def test_numbers_in_the_place_of_labels_are_said() -> None:
    for labels, is_told in ((None, True), (("no", "yes"), False)):
        assert any("--labels" in notice for notice in module("mean", labels=labels).notices) is is_told


def answers_to_length(published: PublishedModel, length: int) -> tuple[int, int, tuple[int, ...]]:
    """The longest length and the multiple of widths of a model, and the shape of its answer to one sequence."""
    manifest = published.manifest
    batch = pad([np.ones((length, 3), np.float32)], multiple=1)
    shape = Session.load(published.directory, manifest).run(batch).logits.shape
    return manifest.max_length, manifest.width_multiple, shape


@pytest.mark.long
def test_a_module_is_not_padded_past_a_width_at_which_it_raises(tmp_path: Path) -> None:
    assert answers_to_length(publish(module("positions"), tmp_path / "positions"), 45) == (45, 1, (1, 2))
    published = publish(module("ten_positions", max_length=10), tmp_path / "ten")
    again = publish(of_graph(published, 10), tmp_path / "again")
    assert answers_to_length(published, 10) == answers_to_length(again, 10) == (10, 1, (1, 2))


def test_a_model_that_goes_on_past_its_max_length_is_padded_to_round_widths() -> None:
    assert module("mean", max_length=10).manifest.width_multiple == 4
    assert module("ten_positions", max_length=8).manifest.width_multiple == 4


@pytest.mark.long
def test_attention_is_offered_where_a_module_names_it_and_it_sums_to_one(tmp_path: Path) -> None:
    published = publish(module("attending"), tmp_path / "attending")
    assert published.manifest.graph.attention == "attention"
    assert "attention" in {case.varied for case in published.cases}
    assert module("attending_wrongly").manifest.graph.attention is None
    assert of_graph(published).manifest.graph.attention is None


def test_a_token_module_is_published(tmp_path: Path) -> None:
    manifest = publish(module("tokens", features=None, vocabulary=9), tmp_path / "tokens").manifest
    assert (manifest.input.vocabulary, manifest.missing) == (9, "refuse")


def test_a_graph_made_elsewhere_is_published_as_it_came(mean: PublishedModel, tmp_path: Path) -> None:
    again = publish(of_graph(mean), tmp_path / "again")
    assert (again.directory / GRAPH_FILE).read_bytes() == (mean.directory / GRAPH_FILE).read_bytes()
    assert "reference" not in {case.varied for case in again.cases}


@pytest.mark.long
def test_a_graph_tells_nothing_of_the_machine_that_made_it(mean: PublishedModel) -> None:
    built = candidate()
    for graph in ((mean.directory / GRAPH_FILE).read_bytes(), built.build(built.manifest).SerializeToString()):
        assert not re.search(rb"\.py\b", graph)
        assert onnx.load_from_string(graph).metadata_props


@pytest.fixture(scope="module")
def unpadded(tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    """A model that needs five steps, published."""
    return publish(module("unpadded"), tmp_path_factory.mktemp("models") / "unpadded")


@pytest.mark.long
def test_the_shortest_sequence_that_a_module_takes_goes_into_its_manifest(unpadded: PublishedModel) -> None:
    source = module("unpadded")
    assert source.manifest.min_length == unpadded.manifest.min_length == Manifest.read(unpadded.directory).min_length
    assert unpadded.manifest.min_length == 5
    assert "sequences of fewer than 5 steps will be refused" in source.notices[0]
    assert {"length 5, against the model itself", "64 steps batched"} <= {case.name for case in unpadded.cases}
    golden = Golden.read(unpadded.directory / GOLDEN_FILE, unpadded.manifest)
    assert [len(steps) for steps in golden.sequences] == [5, 6, 7, 9, 12, 17, 25, 38]
    assert module("mean").manifest.min_length == 1


def needing_steps() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.random((length, 3), dtype=np.float32) for length in (5, 64, 6, 7, 5)]


@pytest.mark.long
def test_what_needs_some_steps_is_verified_and_served_without_shorter_ones(unpadded: PublishedModel) -> None:
    model = lengthwise.load(unpadded.directory, provider="cpu")
    assert (model.min_length, model.max_length) == (5, 64)
    sequences = needing_steps()
    for steps, together in zip(sequences, model.predict(sequences), strict=True):
        (alone,) = model.predict([steps])
        np.testing.assert_allclose(alone.probabilities, together.probabilities, atol=1e-6)
    with pytest.raises(InvalidSequences):
        model.predict([sequences[0], sequences[0][:4]])


def test_a_published_model_is_checked_from_its_own_shortest_sequence_on(unpadded: PublishedModel) -> None:
    report = lengthwise_export.check(str(unpadded.directory), max_length=64)
    assert (report.verdict, report.min_length, report.to_dict()["min_length"]) == ("sound", 5, 5)


def test_a_graph_that_needs_some_steps_is_found_to_do_so(unpadded: PublishedModel, tmp_path: Path) -> None:
    again = publish(of_graph(unpadded), tmp_path / "again")
    assert again.manifest.min_length == 5
    assert min(map(len, Golden.read(again.directory / GOLDEN_FILE, again.manifest).sequences)) == 5


@pytest.mark.long
def test_missing_values_are_verified_in_sequences_that_are_long_enough(tmp_path: Path) -> None:
    published = publish(module("unpadded_filling", missing="handled"), tmp_path / "filling")
    assert (published.manifest.min_length, published.manifest.missing) == (5, "handled")
    assert "missing" in {case.varied for case in published.cases}


@pytest.mark.long
def test_another_precision_keeps_the_shortest_sequence(tmp_path: Path) -> None:
    steps = [np.random.default_rng(n).random((n, 3), dtype=np.float32) for n in (3, 5, 8)]
    records = [Record(str(n), each, None, f"f:{n}") for n, each in enumerate(steps)]
    published = publish(module("unpadded"), tmp_path / "half", ExportOptions(precision="fp16"), records)
    assert published.labels is not None
    assert (published.manifest.min_length, published.labels.sequences) == (5, 2)


@pytest.mark.long
def test_a_recurrent_layer_behind_what_needs_some_steps_gets_own_kernels(tmp_path: Path) -> None:
    published = publish(module("unpadded_recurrent"), tmp_path / "recurrent")
    assert published.manifest.min_length == 5
    session = Session.load(published.directory, published.manifest)
    assert (session.kernels != recurrent_kernels.ONNXRUNTIME) == bool(recurrent_kernels.INSTRUCTION_SETS)


def test_on_a_device_no_batch_is_narrower_than_the_model_needs(unpadded: PublishedModel) -> None:
    limits = BatchLimits(rows=8, padded_steps=512)
    on_device = loading.load(unpadded.directory, limits, budget_seconds=0.05, devices=ONE)
    assert on_device.buckets is not None
    assert (on_device.buckets.widths[0], on_device.buckets.min_length) == (8, 5)
    sequences = needing_steps()
    here = lengthwise.load(unpadded.directory, provider="cpu").predict(sequences)
    for one, other in zip(lengthwise.Model(OpenModel(on_device, limits, 1)).predict(sequences), here, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
