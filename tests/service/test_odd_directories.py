"""One odd directory costs no other its place: whatever stands where a file should is the refusal of that version."""

import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise import files
from lengthwise.repository import loading, stored_measurements, verifier
from lengthwise.repository.contents import Repository
from lengthwise.repository.scan import Scan
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, VERIFICATION_FILE, Manifest
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from lengthwise.verification import golden, promises
from lengthwise.versions import Policy
from tests.support.model_directories import LIMITS, measure_quickly, place, sign
from tests.support.odd_directories import encrypted, header, patched, rewritten, text_for_lengths, trillions_of_steps

VOUCHED = (GRAPH_FILE, GOLDEN_FILE, VERIFICATION_FILE)
UNVOUCHED = (stored_measurements.COSTS_FILE, promises.FILE)
MOST_BYTES = 2**30
BUNDLED = bundled_models() / "japanese-vowels" / "1"
SMALL: dict[str, Any] = {
    "max_length": 64,
    "made": {promises.KERNELS: Session.load(BUNDLED, Manifest.read(BUNDLED)).kernels},
}
"""Of a model that is quickly verified: its promise was proved in the kernels that run it here."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a good model, `good/1`."""
    measure_quickly(monkeypatch)
    place(tmp_path / "models", "good", **SMALL)
    return tmp_path / "models"


@pytest.fixture
def bad(folder: Path) -> Path:
    """A version beside it, to be spoilt."""
    return place(folder, "bad", **SMALL)


def look(folder: Path, before: Repository | None = None) -> Repository:
    """Scans, with the model that was good before served on."""
    return Scan(folder, LIMITS, policy=Policy.parse("all"), before=before or Repository(), most_bytes=MOST_BYTES).run()


def served(found: Repository) -> list[str]:
    return [str(model.key) for model in found]


def reasons(found: Repository) -> dict[str, str]:
    return {str(refusal.key): refusal.reason for refusal in found.refused}


# What stands in the place of a file


def open_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def own_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("only root may make devices")


def outside(path: Path) -> None:
    other = path.parents[3] / "outside"
    other.write_bytes(b"{}")
    path.symlink_to(other)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inner").write_text("inner")


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": open_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a device of its own": own_device,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to outside": outside,
    "a folder": directory,
    "a huge file": lambda path: (path.touch(), os.truncate(path, 2**42)),
    "an empty file": Path.touch,
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "deep JSON": lambda path: path.write_text("[" * 200_000),
    "nothing": lambda path: None,
}


@pytest.mark.sampled(15)
@pytest.mark.parametrize("odd", ODD)
def test_whatever_stands_in_the_place_of_a_file_is_the_refusal_of_its_version(folder: Path, odd: str) -> None:
    for version, name in enumerate((MANIFEST_FILE, *VOUCHED), 1):
        bad = place(folder, "bad", version, **SMALL)
        (bad / name).unlink()
        ODD[odd](bad / name)
        if name != MANIFEST_FILE and odd in ("an empty file", "noise", "deep JSON"):  # their digests can be right
            made = json.loads((bad / MANIFEST_FILE).read_text())
            made["digests"][name] = files.digest(bad / name)
            (bad / MANIFEST_FILE).write_text(json.dumps(made))
    found = look(folder)
    assert served(found) == ["good/1"]
    assert set(reasons(found)) == {f"bad/{version}" for version in range(1, 5)}
    assert all(reasons(found).values())
    again = look(folder, found)  # nor a later look
    assert served(again) == ["good/1"]
    assert reasons(again) == reasons(found)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("odd", ODD)
def test_whatever_stands_in_the_place_of_a_kept_file_is_passed_over(folder: Path, odd: str) -> None:
    for version, name in enumerate(UNVOUCHED, 1):
        path = place(folder, "bad", version, **SMALL) / name
        path.unlink(missing_ok=True)
        ODD[odd](path)
    found = look(folder)
    assert served(found) == ["bad/1", "bad/2", "good/1"]
    assert found.refused == ()


def matching(**table: Any) -> Callable[[Path], str]:
    """A cost table under the right conditions."""

    def written(directory: Path) -> str:
        model = loading.load(directory, LIMITS, budget_seconds=0.01)
        under = stored_measurements.cost_conditions(
            model.manifest, model.session, LIMITS.at_most(model.manifest.max_batch_rows)
        )
        return json.dumps({"conditions": under, "table": {"rows": [1], "widths": [4], "seconds": [[1.0]]} | table})

    return written


@pytest.mark.sampled(21)
@pytest.mark.parametrize(
    "written",
    [
        *(matching(rows=[10**30]), matching(widths=[10**30]), matching(rows=[1e400]), matching(rows=[[1]])),
        *(matching(rows=["1"]), matching(rows=None), matching(seconds=[[float("nan")]])),
        *(matching(seconds=[[10**400]]), matching(seconds=[["x"]]), matching(seconds=[[[1.0]]])),
        *(matching(seconds={}), lambda _: '{"conditions": ' + "9" * 5000 + "}", lambda _: "1", lambda _: "null"),
        *(lambda _: '"text"', lambda _: '{"promises": [{"conditions": [], "promise": 1}]}'),
        lambda _: '{"promises": [{"conditions": {}, "promise": {"provider": "x", "bits": true, "tolerance": 1e400}}]}',
        *(lambda _: '{"promises": {"a": 1}}', lambda _: '{"promises": [[]]}', lambda _: '{"promises": [null]}'),
    ],
)
def test_a_kept_file_of_any_content_is_passed_over(folder: Path, written: Callable[[Path], str]) -> None:
    for version, name in enumerate(UNVOUCHED, 1):
        directory = place(folder, "bad", version, **SMALL)
        (directory / name).write_text(written(directory))
    found = look(folder)
    assert served(found) == ["bad/1", "bad/2", "good/1"]
    assert found.refused == ()


# Golden sequences


def with_steps(content: bytes, **how: Any) -> Callable[[Path], None]:
    return lambda directory: rewritten(directory, lambda members: members | {"steps.npy": content}, **how)


def bomb(directory: Path) -> None:
    size = golden.MOST_BYTES + 12 * 4
    with_steps(header((size // 48, 12)) + bytes(size), compression=zipfile.ZIP_DEFLATED)(directory)


def twice(directory: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(directory / GOLDEN_FILE, "a") as archive:
        archive.writestr("steps.npy", b"hello")
    sign(directory)


def cut_in_half(directory: Path) -> None:
    path = directory / GOLDEN_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sign(directory)


GOLDEN: dict[str, Callable[[Path], None]] = {
    "text for lengths": text_for_lengths,
    "trillions of steps": trillions_of_steps,
    "negative steps": with_steps(header((-1, -12)) + bytes(48)),
    "a header of a call": with_steps(b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(31) + b"\n"),
    "a header that is deep": with_steps(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
    "a bomb": bomb,
    "objects": with_steps(header((1, 12), "|O") + b"\x80\x04N."),
    "twice": twice,
    "encrypted": encrypted,
    "an unknown compression": lambda directory: patched(directory, 8, 10, b"\x63\x00"),
    "false sizes": lambda directory: patched(directory, 22, 24, b"\xff\xff\xff\x7f"),
    "cut in half": cut_in_half,
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("spoilt", GOLDEN)
def test_golden_sequences_that_are_none_are_the_refusal_of_their_version(folder: Path, bad: Path, spoilt: str) -> None:
    GOLDEN[spoilt](bad)
    found = look(folder)
    assert served(found) == ["good/1"]
    assert "golden.npz" in reasons(found)["bad/1"]


# What the manifest says


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    "fields",
    [
        *({"max_length": 2**40}, {"max_length": 10**30}, {"width_multiple": 2**62}),
        *({"labels": [f"label {number}" for number in range(100_000)]}, {"made": {"number": 10**100}}),
        *({"made": {"text": "\ud800"}}, {"host_nodes": ["a\nb"]}),
        {"promises": [{"provider": "CPUExecutionProvider", "bits": True, "tolerance": 0, "golden": 1e308}]},
        *({"graph": {"sequences": "", "lengths": ""}}, {"input": {"kind": "values", "features": 10**15}}),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_manifest_that_asks_for_the_absurd_costs_no_other_its_place(
    folder: Path, bad: Path, fields: dict[str, Any]
) -> None:
    sign(bad, **fields)
    found = look(folder)
    assert "good/1" in served(found)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("raised", [RecursionError("deep"), MemoryError(), RuntimeError("odd"), KeyError("x")])
def test_whatever_verification_raises_is_the_refusal_of_one_version(
    folder: Path, bad: Path, raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def verify(task: verifier.VerificationTask, stopping: Any) -> verifier.Verification:
        if task.manifest.name == "bad":
            raise raised
        return verifier.verify(task, stopping)

    found = Scan(folder, LIMITS, policy=Policy(), verify=verify).run()
    assert served(found) == ["good/1"]
    assert reasons(found)["bad/1"].startswith("bad/1: ")
    if not isinstance(raised, MemoryError):
        assert type(raised).__name__ in caplog.text
        assert "Traceback" in caplog.text


def test_a_model_that_runs_is_not_replaced_by_one_too_large_to_be_read(folder: Path, bad: Path) -> None:
    before = look(folder)
    os.truncate(bad / GRAPH_FILE, 2 * MOST_BYTES)
    found = look(folder, before)
    assert served(found) == ["bad/1", "good/1"]
    assert "at most" in reasons(found)["bad/1"]


# Folders


def test_names_that_no_model_can_have_are_passed_over_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (b"\xff", b"a b", "m\u00e4rz".encode(), b"line\nbreak", b"a" * 200, b"lost+found"):
        os.makedirs(os.path.join(os.fsencode(folder), name, b"1" if name != b"lost+found" else b"other"))
    found = look(folder)
    assert served(found) == ["good/1"]
    assert found.refused == ()
    passed = [line for line in caplog.messages if "of the model repository is ignored" in line]
    assert len(passed) == 5
    assert any("'line\\nbreak'" in line for line in passed)
    caplog.clear()
    look(folder, found)
    assert not [line for line in caplog.messages if "of the model repository is ignored" in line]


def test_an_unreadable_folder_keeps_its_running_version_and_the_other_models(
    folder: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(folder)
    assert served(before) == ["bad/1", "good/1"]
    iterdir = Path.iterdir

    def refused(self: Path) -> Any:
        if self.name == "bad":
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert served(look(folder)) == ["good/1"]
    assert served(look(folder, before)) == ["bad/1", "good/1"]


def test_a_version_of_many_folders_in_each_other_is_looked_into_so_far_only(folder: Path, bad: Path) -> None:
    inner = bad
    for _ in range(3 * loading.MOST_NESTED):
        inner = inner / "d"
        inner.mkdir()
        (inner / "file").touch()
    deepest = max(name.count("/") for name, *_ in loading.directory_state(bad))
    assert deepest == loading.MOST_NESTED
    assert served(look(folder)) == ["bad/1", "good/1"]


def test_a_link_to_nowhere_or_to_itself_in_the_place_of_a_folder_is_no_version(folder: Path) -> None:
    (folder / "a").symlink_to("nowhere")
    (folder / "b").symlink_to("b")
    (folder / "good" / "2").symlink_to("2")
    (folder / "good" / "3").symlink_to("nowhere")
    os.mkfifo(folder / "good" / "4")
    found = look(folder)
    assert served(found) == ["good/1"]
    assert found.refused == ()


# Weights


def test_weights_beside_the_graph_are_read_once_with_their_digest(folder: Path, bad: Path) -> None:
    import onnx
    from onnx import external_data_helper

    graph = onnx.load(bad / GRAPH_FILE)
    expected = loading.load(bad, LIMITS)
    blob = b""
    for tensor in graph.graph.initializer:
        if len(tensor.raw_data) > 100:
            external_data_helper.set_external_data(tensor, "w/a.bin", offset=len(blob), length=len(tensor.raw_data))
            blob += tensor.raw_data
            tensor.ClearField("raw_data")
    (bad / "w").mkdir()
    (bad / "w" / "a.bin").write_bytes(blob)
    (bad / GRAPH_FILE).write_bytes(graph.SerializeToString())
    sign(bad)
    made = json.loads((bad / MANIFEST_FILE).read_text())
    assert "takes weights from 'w/a.bin'" in reasons(look(folder))["bad/1"]
    made["digests"]["w/a.bin"] = files.digest(bad / "w" / "a.bin")
    (bad / MANIFEST_FILE).write_text(json.dumps(made))
    found = look(folder)
    assert served(found) == ["bad/1", "good/1"]
    (bad / "w" / "a.bin").unlink()  # it was read, and is not read again
    batch = verifier.pad([verifier.constant_sequence(expected.manifest, 0.25, 7)])
    ran = found.find("bad", None).session.run(batch).logits
    assert ran.tobytes() == expected.session.run(batch).logits.tobytes()


def test_a_link_beside_a_file_that_is_replaced_leads_nowhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(elsewhere)
    files.replace(tmp_path / "a.json", b"new")
    assert (elsewhere.read_text(), (tmp_path / "a.json").read_text()) == ("kept", "new")
    assert not (tmp_path / "a.json").is_symlink()
