"""A model that fails its own proof is not served, and does not keep the others from it."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import onnx
import onnx.parser
import pytest

from lengthwise.errors import ConfigurationError, ModelNotFound, NotReady
from lengthwise.files import digest
from lengthwise.repository.contents import Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.scan import Scan
from lengthwise.runtime.manifest import (
    EXAMPLES_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    StepInput,
)
from lengthwise.versions import Policy
from tests.support.model_directories import LIMITS, measure_quickly, place, sign, tamper_with_golden


@pytest.fixture(autouse=True)
def _measured_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


def opened_at(folder: Path) -> Repository:
    return Scan(folder, LIMITS, policy=Policy.parse("all")).run()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("recordings", "lengths"),
    [
        ('{"steps": [[1], [2], [3]]}\n{"steps": [7]}\n', [1, 3]),
        ("", []),
        ("not JSON", []),
        ('{"steps": 3}', []),
        ('["steps"]', []),
        ("[" * 100_000, []),
    ],
    ids=["two recordings", "none", "no JSON", "no steps", "no objects", "nested"],
)
def test_a_model_has_the_lengths_of_its_recordings_as_usual_ones(recordings: str, lengths: list[int], tmp_path: Path):
    directory = place(tmp_path)
    (directory / EXAMPLES_FILE).write_text(recordings)
    manifest = Manifest.read(directory)
    digests = manifest.digests | {EXAMPLES_FILE: digest(directory / EXAMPLES_FILE)}
    (directory / MANIFEST_FILE).write_text(manifest.model_copy(update={"digests": digests}).to_json())
    assert opened_at(tmp_path).find("vowels", None).usual_lengths == lengths


# What is refused


def wrong_digest(directory: Path) -> None:
    with (directory / GRAPH_FILE).open("ab") as file:
        file.write(b"\0")


def missing_proof(directory: Path) -> None:
    (directory / VERIFICATION_FILE).unlink()
    sign(directory)


def failing_case(directory: Path) -> None:
    proof = json.loads((directory / VERIFICATION_FILE).read_text())
    proof["cases"][1]["holds"] = False
    (directory / VERIFICATION_FILE).write_text(json.dumps(proof))
    sign(directory)


def written(name: str, text: str) -> Callable[[Path], None]:
    """Something else in the place of a file, under digests that hold."""

    def write(directory: Path) -> None:
        (directory / name).write_text(text)
        sign(directory)

    return write


def proof(text: str) -> Callable[[Path], None]:
    return written(VERIFICATION_FILE, text)


def changed(field: str, **values: object) -> Callable[[Path], None]:
    """Other values in a field of the manifest."""
    return lambda directory: sign(
        directory, **{field: json.loads((directory / MANIFEST_FILE).read_text())[field] | values}
    )


def fails_when_run(directory: Path) -> None:
    """A graph that loads, with the right inputs, and that no batch can go through."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        graph (float[rows,width,12] values, int32[rows] lengths) => (float[a,b] logits) <int64[2] shape = {7919, 9}> {
            logits = Reshape (values, shape)
            unused = Identity (lengths)
        }"""
    )
    onnx.save(model, directory / GRAPH_FILE)
    changed("graph", attention=None)(directory)


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_digest, "model.onnx is not the file that was published"),
        (lambda directory: (directory / GRAPH_FILE).unlink(), "model.onnx is missing"),
        (missing_proof, "no digest of verification.json"),
        (lambda directory: (directory / MANIFEST_FILE).unlink(), "manifest.json cannot be read"),
        (
            lambda directory: (directory / MANIFEST_FILE).write_text('{"contract": 1, "name": "vowels"}'),
            "is not a manifest of contract version 1",
        ),
        (tamper_with_golden, "differs from its stored logits"),
        (written(GOLDEN_FILE, "not an archive"), "cannot be read as golden sequences"),
        (failing_case, "its cases failed: mixed lengths"),
        (proof('{"cases": []}'), "it has no case"),
        (proof("{}"), "verification.json cannot be read"),
        (proof("not JSON"), "verification.json cannot be read"),
        (proof('{"cases": {"name": true}}'), "verification.json cannot be read"),
        (proof('{"cases": [{"name": "a"}]}'), "verification.json cannot be read"),
        (proof('{"cases": [{"name": "a", "holds": 1}]}'), "its cases failed: a"),
        (proof('{"cases": ' + "[" * 100_000), "verification.json cannot be read"),
        (
            lambda directory: sign(directory, name="consonants"),
            "the manifest is of consonants/2, the folder says vowels/2: give the folder its name back",
        ),
        (lambda directory: sign(directory, version=3), "the manifest is of vowels/3, the folder says vowels/2"),
        (written(GRAPH_FILE, "not a graph"), "onnxruntime cannot load the graph"),
        (changed("graph", lengths="sizes"), "the graph's inputs are"),
        (changed("input", features=13, mean=None, std=None), "wants 12 features a step, the manifest says 13"),
        (fails_when_run, "the graph cannot be run here"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_directory_that_fails_its_proof_is_left_out_with_the_reason(
    spoil: Callable[[Path], None], said: str, tmp_path: Path
):
    folder = tmp_path / "models"
    place(folder)
    spoil(place(folder, version=2))
    opened = opened_at(folder)
    (refusal,) = opened.refused
    assert str(refusal.key) == "vowels/2"
    assert said in refusal.reason
    assert opened.find("vowels", None).manifest.version == 1


def test_what_is_no_version_is_passed_over(tmp_path: Path):
    place(tmp_path)
    for name in ("0", "01", "-1", "latest", "1.5", "\u0662", ".2", "1234567890"):
        (tmp_path / "vowels" / name).mkdir()
    (tmp_path / "vowels" / "2").write_text("a file")
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "README").write_text("a file")
    opened = opened_at(tmp_path)
    assert [model.manifest.key for model in opened] == ["vowels/1"]
    assert opened.refused == ()


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_a_folder_that_cannot_be_read_is_a_wrong_option(folder: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        opened_at(tmp_path / folder)


def test_an_empty_folder_has_no_model_and_is_no_error(tmp_path: Path):
    opened = opened_at(tmp_path)
    assert list(opened) == []
    with pytest.raises(NotReady) as not_ready:
        opened.find(None, None)
    assert not_ready.value.retry_after_seconds


# Which model a request means


def of(*keys: tuple[str, int]) -> Repository:
    manifests = [Manifest(name=n, version=v, input=StepInput(features=1), labels=("x",)) for n, v in keys]
    return Repository.of(LoadedModel(one, None, None) for one in manifests)  # type: ignore[arg-type]  # they are not run


@pytest.mark.parametrize(
    ("served", "name", "version", "found"),
    [
        ([("m", 9), ("m", 10), ("m", 2)], "m", None, "m/10"),  # by number
        ([("m", 9), ("m", 10)], "m", "9", "m/9"),
        ([("m", 1)], None, "1", "m/1"),  # the only name
        *(([("b", 1), ("a", 1)], name, None, None) for name in (None, "c")),
        *(([("m", 1)], *one, None) for one in [("x", None), ("m", "2"), (None, "2"), ("m", "9" * 5000)]),
    ],
)
def test_which_model_a_request_means(
    served: list[tuple[str, int]], name: str | None, version: str | None, found: str | None
):
    with pytest.raises(ModelNotFound) if found is None else nullcontext():
        assert of(*served).find(name, version).manifest.key == found


def test_all_models_come_by_name_and_ascending_version():
    assert [model.manifest.key for model in of(("b", 10), ("b", 9), ("a", 1))] == ["a/1", "b/9", "b/10"]


# What it answers
