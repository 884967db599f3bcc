"""The manifest: what is read, what is refused, and the files it vouches for."""

import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from pydantic import ValidationError

from lengthwise.errors import ManifestError, VerificationError
from lengthwise.runtime.manifest import GraphNames, Manifest, Promise, StepInput, digest
from lengthwise.wrong_values import all_wrong

LEAST: dict[str, Any] = {"name": "m", "version": 1, "input": {"kind": "values", "features": 2}, "labels": ["a", "b"]}
PAIR: dict[str, Any] = {
    "input": {**LEAST["input"], "sequences": [{"name": "a", "features": 2}, {"name": "b", "features": 1}]}
}


def test_what_is_written_is_read_again():
    manifest = Manifest(
        name="m-1.x_y",
        version=3,
        input=StepInput(features=2, names=("x", "y"), mean=(0.0, 1.0), std=(1.0, 2.0)),
        labels=("a", "b"),
        graph=GraphNames(lengths=None, mask="mask", mask_type="float32", attention="weights"),
        promises=(Promise(provider="CPUExecutionProvider", bits=True, tolerance=0),),
        digests={"model.onnx": "sha256:" + "0" * 64},
        made={"torch": "2", "seed": 0},
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("old", "names"), [(["x", "y"], ("x", "y")), (None, None), (["x", "x"], None), (["x", ""], None), ("xy", None)]
)
def test_names_of_older_exporters_are_read_and_invalid_ones_dropped(old, names):
    manifest = Manifest.from_json(json.dumps(LEAST | {"input": {"features": 2, "feature_names": old}}))
    assert manifest.input.names == names


def test_what_it_says_of_itself_cannot_be_changed():
    manifest = Manifest(**LEAST, promises=(Promise(provider="CPU", bits=False, tolerance=0.5),))
    assert (manifest.classes, manifest.key) == (2, "m/1")
    assert manifest.promise("CPU") is manifest.promises[0]
    assert manifest.promise("GPU") is None
    with pytest.raises(ValidationError):
        manifest.version = 2  # type: ignore[misc]  # what is tried


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({"contract": 2}, "contract"), ({"name": "../m"}, "name"), ({"name": ""}, "name")),
        *(({"version": 0, "labels": []}, "version: "), ({"version": 0, "labels": []}, "; labels: ")),
        *(({"labels": ["a", "a"]}, "every label may stand there once"), ({"threshold": 1.0}, "threshold")),
        *(({"max_length": 0}, "max_length"), ({"task": "regression"}, "task"), ({"surprise": 1}, "surprise")),
        ({"digests": {"model.onnx": "md5:0"}}, "digests.model.onnx"),
        ({"input": {"kind": "values"}}, "'values' wants 'features' alone"),
        ({"input": {"kind": "values", "features": 2, "vocabulary": 3}}, "'tokens' wants 'vocabulary' alone"),
        ({"input": {"kind": "tokens", "features": 2}}, "'tokens' wants 'vocabulary' alone"),
        ({"input": {"kind": "values", "features": 2, "mean": [1.0]}}, "input.mean has 1 entries for 2 features"),
        ({"input": {"kind": "values", "features": 1, "std": [float("inf")]}}, "input.std"),
        ({"input": {"kind": "values", "features": 2, "names": ["x"]}}, "input.names has 1 entries for 2 features"),
        ({"input": {"kind": "values", "features": 2, "names": ["x", "x"]}}, "input.names: each must be unique"),
        ({"input": {"kind": "values", "features": 2, "names": ["x", " "]}}, "input.names: each must be unique"),
        ({"input": {"kind": "values", "features": 1, "names": ["x" * 257]}}, "at most 256 characters"),
        ({"input": {"kind": "tokens", "vocabulary": 2, "names": ["x"]}}, "input.names has 1 entries"),
        ({"graph": {"lengths": None}}, "one of 'lengths' and 'mask' must be named"),
        ({"promises": [{"provider": "CPU", "bits": True, "tolerance": -1}]}, "promises.0.tolerance"),
        (PAIR | {"long": "window"}, "long: several sequences, and chunks of a stream, are refused"),
        (PAIR | {"max_length": 7}, "input.sequences: max_length of the first is that of the model"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_field(changed: dict[str, Any], said: str):
    with pytest.raises(ManifestError) as refused:
        Manifest.from_json(json.dumps(LEAST | changed))
    assert said in str(refused.value)


@pytest.mark.parametrize("profile", [None, {}, {"sequences": 3, "lengths": {"edges": [2, 9]}}, "x"])
def test_a_profile_that_an_older_exporter_wrote_is_left_out(profile: object):
    assert Manifest.from_json(json.dumps(LEAST | {"training": profile})) == Manifest(**LEAST)
    assert "training" not in json.loads(Manifest(**LEAST).to_json())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 10_000])
def test_what_is_no_manifest_at_all_is_refused(text: bytes, tmp_path: Path):
    with pytest.raises(ManifestError):
        Manifest.from_json(text)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


# Digests


def vouching(directory: Path, *names: str, **digests: str) -> Manifest:
    return Manifest(**LEAST, digests={name: digest(directory / name) for name in names} | digests)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "m" / "1"
    made.mkdir(parents=True)
    (made / "model.onnx").write_bytes(b"graph")
    (made / "golden.npz").write_bytes(b"golden")
    return made


def test_files_as_published_pass_and_a_changed_or_missing_one_is_named(directory: Path):
    expected = "sha256:eef93e1d14482804"  # printf graph | sha256sum
    assert digest(directory / "model.onnx").startswith(expected)
    manifest = vouching(directory, "model.onnx", "golden.npz")
    manifest.read_files(directory)
    (directory / "golden.npz").write_bytes(b"g0lden")
    for change in (lambda: None, (directory / "golden.npz").unlink):
        change()
        with pytest.raises(VerificationError, match=r"golden\.npz"):
            manifest.read_files(directory)


def test_a_graph_nobody_vouches_for_is_refused(directory: Path):
    with pytest.raises(VerificationError):
        vouching(directory, "golden.npz").read_files(directory)


@pytest.mark.parametrize("how", ["by name", "by link"])
def test_a_file_outside_the_directory_is_refused(directory: Path, how: str):
    outside = directory.parent / "secret"
    outside.write_bytes(b"secret")
    name = "../secret" if how == "by name" else "inner"
    if how == "by link":
        (directory / name).symlink_to(outside)
    with pytest.raises(VerificationError, match="lies outside"):
        vouching(directory, "model.onnx", **{name: digest(outside)}).read_files(directory)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop"], ids=["a null", "too long", "a link to itself"])
def test_a_name_that_no_file_can_have_is_refused(directory: Path, name: str):
    os.symlink("loop", directory / "loop")
    with pytest.raises(VerificationError, match="cannot be read"):
        vouching(directory, "model.onnx", **{name: "sha256:" + "0" * 64}).read_files(directory)


@pytest.mark.parametrize("size", [1, 127, 128, 300])
def test_weights_in_a_file_beside_the_graph_want_its_digest(directory: Path, size: int):
    name = "w" * size if size < 256 else f"{'d' * (size - 101)}/{'w' * 100}"
    graph = onnx.helper.make_graph([], "g", [], [])
    tensor = graph.initializer.add(name="t", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    tensor.external_data.add(key="length", value="4")
    (directory / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(VerificationError, match=name):
        vouching(directory, "model.onnx").read_files(directory)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"1234")
    vouching(directory, "model.onnx", **{name: digest(directory / name)}).read_files(directory)


def test_many_wrong_entries_are_not_compared_with_each_other():
    """A manifest may have a million wrong labels: comparisons of all pairs would take hours."""

    class Location(tuple[int | str, ...]):
        compared = 0

        def __getitem__(self, part: Any) -> Any:
            Location.compared += 1
            return super().__getitem__(part)

    errors: list[Any] = [
        {"type": "string_type", "loc": Location(("labels", index)), "msg": "Input should be a string", "input": index}
        for index in range(50)
    ]
    assert all_wrong(errors, lambda _: (), document="the whole").endswith("and 40 more")
    assert Location.compared == 0
