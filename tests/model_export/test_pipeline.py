import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import helper

from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.cli import main
from lengthwise.datasets import dataset
from lengthwise.errors import ModelError, VerificationError
from lengthwise.padding import pad
from lengthwise.repository import loading
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import (
    EXAMPLES_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    StepInput,
)
from lengthwise.runtime.session import Session
from lengthwise.verification import golden, measurement, promises
from lengthwise.verification.golden import Golden
from lengthwise.verification.random_sequences import draw
from lengthwise_export.architecture import checkpoint
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import PublishError
from lengthwise_export.exporting import model_files
from lengthwise_export.exporting.candidate import Candidate
from lengthwise_export.exporting.flow import PublishedModel, publish
from lengthwise_export.tracing import graph
from tests.support import covering, hostile_models
from tests.support.cuda_kernels import strangers
from tests.support.long import long_but
from tests.support.specs import candidate, from_spec, separable, spec

BUNDLED = Path("service/lengthwise/models/japanese-vowels/1")


def assert_batch_invariant(source: Candidate, data: bytes) -> None:
    cases = measurement.measure_cases(
        lambda threads: Session(data, source.manifest, threads=threads), source.manifest, source.reference
    )
    assert promises.failures(cases) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "choice",
    long_but(covering.covering_set(), lambda choice: choice == covering.covering_set()[0]),
    ids=lambda choice: "-".join(str(value).replace(" ", "_") for value in choice.values()),
)
def test_every_pair_of_choices_exports_and_verifies(choice: covering.Choice) -> None:
    source = from_spec(covering.build(choice), None)
    made = source.build(source.manifest)
    assert_batch_invariant(source, made.SerializeToString())
    assert strangers(made, "lengths") == [], "on a GPU these nodes would run on the CPU"


@pytest.mark.long
def test_layers_that_kernels_sum_in_blocks_give_the_same_bits_too() -> None:
    # 128 summands are one block of the CPU's matrix kernel; these layers have more
    wide = spec(
        "hidden = 96\nself_attention_heads = 2\nconv = [{channels = 80, kernel = 5}]",
        step="features = 40\nmax_length = 300",
    )
    source = from_spec(wide, None)
    assert_batch_invariant(source, source.build(source.manifest).SerializeToString())


def test_the_covering_set_holds_every_value_and_stays_small() -> None:
    chosen = covering.covering_set()
    for key, values in covering.CHOICES.items():
        assert {choice[key] for choice in chosen} == set(values)
    assert len(chosen) < 40


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    return publish(candidate(), tmp_path_factory.mktemp("models") / "tiny")


def test_a_model_directory_holds_its_files_and_the_manifest_their_digests(published: PublishedModel) -> None:
    manifest = Manifest.read(published.directory)
    written = {path.name for path in published.directory.iterdir()}
    assert written == {*manifest.digests, MANIFEST_FILE} == {GRAPH_FILE, MANIFEST_FILE, VERIFICATION_FILE, GOLDEN_FILE}
    assert manifest.key == "tiny/1"
    manifest.read_files(published.directory)
    assert [promise.bits for promise in manifest.promises] == [True]
    assert manifest.made["torch"] == torch.__version__
    assert manifest.made["recurrent_kernels"] == Session.load(published.directory, manifest).kernels


@pytest.mark.long
def test_a_few_recordings_of_the_data_are_kept_and_may_be_removed(tmp_path: Path) -> None:
    records = separable(40)
    published = publish(candidate(), tmp_path / "tiny", data=records)
    path = published.directory / EXAMPLES_FILE
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert {line["label"] for line in lines} == {"a", "b"}
    assert np.float32(lines[0]["steps"]).tobytes() == records[0].steps.tobytes()
    assert len(lines) == model_files.MOST_RECORDINGS
    assert published.manifest.made["data_answers"] == 40
    assert str(published.manifest.made["exported"]).count("-") == 2
    assert any(EXAMPLES_FILE in notice for notice in published.notices)
    limits = BatchLimits(rows=4, padded_steps=64)
    assert loading.load(published.directory, limits, budget_seconds=0.05).examples == path.read_bytes()
    path.write_bytes(b"changed")
    with pytest.raises(VerificationError):
        loading.load(published.directory, limits, budget_seconds=0.05)
    path.unlink()
    assert loading.load(published.directory, limits, budget_seconds=0.05).examples is None


def test_verification_lists_every_case_and_the_graph_its_contract_name_and_labels(published: PublishedModel) -> None:
    model = onnx.load(published.directory / GRAPH_FILE)
    held = {entry.key: entry.value for entry in model.metadata_props}
    assert (held["lengthwise.contract"], held["lengthwise.name"]) == ("1", "tiny")
    assert json.loads(held["lengthwise.labels"]) == ["a", "b"]
    proof = json.loads((published.directory / VERIFICATION_FILE).read_text())
    assert len(proof["cases"]) == len(published.cases)
    figures = {"difference", "relative", "bits"}
    for case in proof["cases"]:  # what an ill-conditioned model amplifies is told where it is one
        assert set(case) - {"amplified"} == {"name", "varied", "provider", "extreme", "holds"} | figures


def test_a_second_export_becomes_the_next_version(published: PublishedModel) -> None:
    again = publish(candidate(), published.directory.parent)
    assert again.manifest.version == 2
    with pytest.raises(PublishError):
        publish(candidate(), published.directory)


class MeanOverWidth(torch.nn.Module):
    """Leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.head(values.mean(dim=1)) + 0 * lengths[:, None]


def leaking() -> Candidate:
    def build(named: Manifest) -> onnx.ModelProto:
        return graph.build(MeanOverWidth().eval(), named.input, name=named.name, labels=named.labels)

    return Candidate(candidate('pooling = "mean"').manifest, build, None)


def off_from_its_source() -> Candidate:
    source = candidate()
    reference = source.reference
    assert reference is not None
    return replace(source, reference=lambda batch: reference(batch) + np.float32(1e-3))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", [leaking, off_from_its_source, candidate], ids=["leaking", "off", "reads otherwise"])
def test_a_graph_with_a_failed_proof_or_another_manifest_is_not_published(
    make: Callable[[], Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is candidate:
        monkeypatch.setattr(Manifest, "read", classmethod(lambda cls, directory: candidate().manifest))
    with pytest.raises(VerificationError):
        publish(make(), tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_source_with_a_tolerance_is_published_with_what_was_measured(tmp_path: Path) -> None:
    published = publish(replace(candidate(), tolerance=1e-3), tmp_path / "tiny")
    assert published.manifest.promises[0].tolerance == 0.0


def test_weights_come_from_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = SequenceClassifier(spec()).eval()
    checkpoint.write(tmp_path / "m.safetensors", trained.state_dict(), {})
    source = from_spec(spec(), tmp_path / "m.safetensors")
    batch = pad(draw(source.manifest, [3, 5], 0))
    assert source.reference is not None
    with torch.inference_mode():
        expected = trained(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits.numpy()
    np.testing.assert_array_equal(source.reference(batch), expected)
    assert str(source.manifest.made["checkpoint"]).startswith("sha256:")


def test_statistics_stand_in_the_manifest_where_the_model_normalises() -> None:
    assert candidate().manifest.input.mean == (0.0, 0.0, 0.0)
    assert candidate(step='features = 3\nnormalize = "none"').manifest.input.mean is None
    assert candidate(step="vocabulary = 5").manifest.input.mean is None


def test_the_bundled_model_is_small_of_an_old_opset_and_passes_its_own_proof() -> None:
    model = onnx.load(BUNDLED / GRAPH_FILE)
    assert len(model.graph.node) < 60
    assert next(entry.version for entry in model.opset_import if entry.domain == "") <= 20
    manifest = Manifest.read(BUNDLED)
    manifest.read_files(BUNDLED)
    golden.check(Session.load(BUNDLED, manifest), Golden.read(BUNDLED / GOLDEN_FILE, manifest), manifest)
    cases = measurement.measure_cases(lambda threads: Session.load(BUNDLED, manifest, threads=threads), manifest, None)
    assert promises.failures(cases) == []


def test_the_bundled_model_is_what_the_shipped_spec_describes() -> None:
    shipped = Spec.read(Path("model_export/lengthwise_export/specs/japanese-vowels.toml"))
    manifest = Manifest.read(BUNDLED)
    expected = shipped.manifest(name="japanese-vowels", version=1, mean=manifest.input.mean, std=manifest.input.std)
    assert manifest.model_copy(update={"host_nodes": (), "promises": (), "digests": {}, "made": {}}) == expected


def test_the_bundled_model_knows_nine_speakers() -> None:
    manifest = Manifest.read(BUNDLED)
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    logits = Session.load(BUNDLED, manifest).run(pad([record.steps for record in records])).logits
    answered = np.array(manifest.labels)[logits.argmax(axis=1)]
    assert (answered == [record.label for record in records]).mean() >= 0.97


@pytest.mark.parametrize("command", ["check", "export"])
def test_a_graph_whose_rows_the_values_choose_is_refused_before_it_ends_the_process(
    tmp_path: Path, command: str
) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(hostile_models.model(hostile_models.rows_chosen_by_values))
    place = ["--out", str(tmp_path / "models" / "rows")] if command == "export" else []
    result = CliRunner().invoke(main, [command, str(graph), *place])
    assert result.exit_code == 2
    assert "what a caller sends decides how many rows its LSTM gets" in " ".join(result.output.split())
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("in_own_kernels", "limit"), [(False, 1e6), (True, 100.0), (True, 1e6)])
def test_a_graph_is_published_if_a_service_here_takes_it(tmp_path: Path, in_own_kernels: bool, limit: float) -> None:
    proto = onnx.load_from_string(hostile_models.model(hostile_models.rows_chosen_by_values))
    (lstm,) = (node for node in proto.graph.node if node.op_type == "LSTM")
    if in_own_kernels:  # without `clip` the kernels of this project run it, where an installation has them
        lstm.attribute.remove(next(each for each in lstm.attribute if each.name == "clip"))
        (chosen,) = (node for node in proto.graph.node if node.op_type == "Cast")
        chosen.CopyFrom(helper.make_node("Less", ["firsts", "limit"], ["kept"]))  # of zeros all rows are kept
        proto.graph.initializer.append(hostile_models.constant("limit", [limit], np.float32))
    manifest = Manifest(name="rows", version=1, input=StepInput(features=1), labels=("a", "b"), max_length=64)
    source = Candidate(manifest, lambda named: proto, reference=None, tolerance=0.0)
    if not in_own_kernels or not recurrent_kernels.COMPILED:
        with pytest.raises(ModelError):
            publish(source, tmp_path / "rows")
        assert not (tmp_path / "rows" / "1").exists()
    else:  # where the limit is passed no row is left, which such kernels take
        (notice,) = publish(source, tmp_path / "rows").notices
        assert notice.startswith("a service without the recurrent kernels of this project will refuse it")
