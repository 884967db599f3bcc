"""What a scan keeps, takes in, refuses and lets go, of a folder that changes under it."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from lengthwise.errors import ConfigurationError, ModelError, NotVerified
from lengthwise.repository import folder as repository_folder
from lengthwise.repository import loading, scan, stored_measurements, verifier
from lengthwise.repository.contents import Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import Verification, VerificationTask
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, VERIFICATION_FILE
from lengthwise.runtime.session import Session
from lengthwise.versions import Key, Policy
from tests.support.model_directories import BUNDLED, LIMITS, measure_quickly, place, tamper_with_golden

GRAPH_BYTES = (BUNDLED / GRAPH_FILE).stat().st_size


class Folder:
    """A folder and what the last scan found in it."""

    def __init__(self, path: Path, verified: list[str]) -> None:
        self.path = path
        self.found = Repository()
        self._verified = verified

    def scan(self, versions: str = "latest", again: str | None = None, most: int | None = None) -> list[str]:
        """Scans again: what is served now."""
        self._verified.clear()
        self.found = scan.Scan(
            self.path, LIMITS, policy=Policy.parse(versions), max_model_bytes=most, before=self.found, retry_name=again
        ).run()
        return [str(model.key) for model in self.found]

    @property
    def verified(self) -> list[str]:
        """What was loaded and proved at the last scan, in order."""
        return list(self._verified)

    @property
    def refused(self) -> dict[str, str]:
        return {str(refusal.key): refusal.reason for refusal in self.found.refused}

    def model(self, name: str = "vowels", version: int = 1) -> LoadedModel:
        return self.found.models[name][version]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    measure_quickly(monkeypatch)
    load, verified = loading.load, []

    def watched(directory: Path, limits: Any, **options: float) -> LoadedModel:
        verified.append(f"{directory.parent.name}/{directory.name}")
        return load(directory, limits, **options)

    monkeypatch.setattr(loading, "load", watched)
    models = tmp_path / "models"
    models.mkdir()
    return Folder(models, verified)


def test_what_has_not_changed_goes_on_untouched(folder: Folder) -> None:
    place(folder.path)
    tamper_with_golden(place(folder.path, "consonants"))
    assert folder.scan() == ["vowels/1"]
    assert folder.verified == ["consonants/1", "vowels/1"]
    model, refused = folder.model(), folder.refused
    assert folder.scan() == ["vowels/1"]
    assert folder.verified == []
    assert folder.model() is model
    assert folder.refused == refused


def test_of_a_folder_without_a_version_is_said_once_what_it_should_hold(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    assert folder.scan() == folder.scan() == []
    assert folder.found.reason == repository_folder.NOTHING
    assert caplog.messages == [f"nothing is served of {folder.path}: {folder.found.reason}"]
    place(folder.path)
    assert folder.scan() == ["vowels/1"]
    assert folder.found.reason is None


@pytest.mark.parametrize(("named", "command"), [("models", "."), ("models/1", ". --versions models/1")])
def test_a_model_given_as_a_repository_is_refused_with_the_right_command(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, named: str, command: str
) -> None:
    monkeypatch.chdir(place(folder.path.parent, folder.path.name).parents[1])
    with pytest.raises(ConfigurationError, match=f": lengthwise serve {command}$"):
        repository_folder.check_readable(Path(named))
    repository_folder.check_readable(Path())


def test_all_good_versions_are_served_where_that_is_wanted(folder: Folder) -> None:
    place(folder.path)
    tamper_with_golden(place(folder.path, version=2))
    place(folder.path, version=10)
    assert folder.scan("all") == ["vowels/1", "vowels/10"]
    assert list(folder.refused) == ["vowels/2"]


def test_named_versions_are_served_and_no_others(folder: Folder) -> None:
    place(folder.path)
    place(folder.path, version=2)
    place(folder.path, "consonants")
    assert folder.scan("vowels/1,vowels/3") == ["vowels/1"]
    assert folder.verified == ["vowels/1"]
    assert folder.refused == {"vowels/3": scan.NAMED_AND_ABSENT}


def test_where_the_latest_is_bad_the_one_before_is_served(folder: Folder) -> None:
    place(folder.path)
    place(folder.path, version=2)
    tamper_with_golden(place(folder.path, version=3))
    assert folder.scan() == ["vowels/2"]
    assert folder.verified == ["vowels/3", "vowels/2"]
    assert "differs from its stored logits" in folder.refused["vowels/3"]


def test_a_refused_version_is_verified_again_when_its_name_is_asked_for(folder: Folder) -> None:
    for name in ("vowels", "consonants"):
        tamper_with_golden(place(folder.path, name))
    folder.scan()
    folder.scan(again="vowels")
    assert folder.verified == ["vowels/1"]
    assert set(folder.refused) == {"vowels/1", "consonants/1"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("last", [MANIFEST_FILE, GRAPH_FILE, GOLDEN_FILE, VERIFICATION_FILE])
def test_a_directory_that_is_being_copied_becomes_good_when_it_is_whole(last: str, folder: Folder) -> None:
    place(folder.path)
    folder.scan()
    whole = place(folder.path.parent / "elsewhere", version=2)
    copy = folder.path / "vowels" / "2"
    copy.mkdir()
    assert folder.scan() == ["vowels/1"]
    for file in whole.iterdir():
        if file.name != last:
            shutil.copy2(file, copy)
    (copy / last).write_bytes((whole / last).read_bytes()[:100])
    assert folder.scan() == ["vowels/1"]
    assert list(folder.refused) == ["vowels/2"]
    shutil.copy2(whole / last, copy)
    assert folder.scan() == ["vowels/2"]
    assert folder.refused == {}


def test_what_ran_goes_on_when_something_bad_takes_its_place(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    directory = place(folder.path)
    folder.scan()
    model = folder.model()
    with (directory / GRAPH_FILE).open("ab") as file:
        file.write(b"\0")
    for _ in range(2):
        assert folder.scan() == ["vowels/1"]
        assert folder.model() is model
        assert "its digest differs" in folder.refused["vowels/1"]
    assert [record.message for record in caplog.records if "stays in service" in record.message] == [
        f"vowels/1 is not served: {folder.refused['vowels/1']}; the model that was served before stays in service"
    ]
    place(folder.path)
    assert folder.scan() == ["vowels/1"]
    assert folder.model() is model
    assert folder.verified == []
    assert folder.refused == {}


def test_a_version_that_vanishes_is_gone_and_the_one_before_comes_back(folder: Folder) -> None:
    place(folder.path)
    latest = place(folder.path, version=2)
    assert folder.scan() == ["vowels/2"]
    shutil.rmtree(latest)
    assert folder.scan() == ["vowels/1"]
    tamper_with_golden(place(folder.path))
    folder.scan()
    shutil.rmtree(folder.path / "vowels")
    assert folder.scan() == []
    assert (folder.refused, folder.found.states) == ({}, {})


def test_a_name_that_vanishes_while_the_folder_is_listed_has_no_version(folder: Folder) -> None:
    assert repository_folder.paths_in(folder.path / "gone") == []


def test_a_link_that_leads_elsewhere_is_a_change(folder: Folder) -> None:
    for version, note in ((1, "old"), (2, "new")):
        place(folder.path.parent / note, version=1, made={"note": note, "number": version})
    (folder.path / "vowels").mkdir()
    (folder.path / "vowels" / "1").symlink_to(folder.path.parent / "old" / "vowels" / "1")
    assert folder.scan() == ["vowels/1"]
    aside = folder.path / ".aside"
    aside.symlink_to(folder.path.parent / "new" / "vowels" / "1")
    aside.rename(folder.path / "vowels" / "1")
    folder.scan()
    assert folder.model().manifest.made["note"] == "new"


def test_a_folder_that_cannot_be_read_is_an_error_and_no_empty_folder(folder: Folder) -> None:
    place(folder.path)
    folder.scan()
    shutil.rmtree(folder.path)
    with pytest.raises(ConfigurationError):
        folder.scan()
    assert [str(model.key) for model in folder.found] == ["vowels/1"]


def test_an_unloaded_model_stays_away_until_it_is_allowed(folder: Folder) -> None:
    place(folder.path)
    tamper_with_golden(place(folder.path, version=2))
    place(folder.path, "consonants")
    folder.scan()
    folder.found = folder.found.without("vowels")
    assert folder.scan() == ["consonants/1"]
    assert folder.refused == {}
    place(folder.path, version=3)
    assert folder.scan() == ["consonants/1"]
    folder.found = replace(folder.found, unloaded=frozenset())
    assert folder.scan() == ["consonants/1", "vowels/3"]


# Memory


def test_what_does_not_fit_is_refused_with_the_figures_and_the_others_go_on(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        place(folder.path, name)
    most = 2 * GRAPH_BYTES
    for _ in range(2):
        assert folder.scan(most=most) == ["a/1", "b/1"]
    reason = f"its graph has {GRAPH_BYTES} bytes, and {most} of the {most} that --max-model-bytes allows are taken"
    assert folder.refused == {"c/1": reason}
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"c/1 is not served: {reason}"
    ]
    shutil.rmtree(folder.path / "a")
    assert folder.scan(most=most) == ["b/1", "c/1"]


def test_what_memory_is_not_left_for_is_not_read_and_tried_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place(folder.path, "a")
    for _ in range(2):  # the first one stores measurements beside the model
        folder.scan()
    place(folder.path, "b")
    said = f"b/1: 'model.onnx' cannot be read: it has {GRAPH_BYTES} bytes, and there is not enough memory for it"
    with monkeypatch.context() as patch:
        for left in (GRAPH_BYTES - 1, GRAPH_BYTES - 2):
            patch.setattr(scan, "share_of_memory", lambda most, left=left: left)
            assert folder.scan() == ["a/1"]
            assert folder.refused == {"b/1": said}
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"b/1 is not served: {said}"
    ]
    assert folder.scan() == ["a/1", "b/1"]


def test_what_could_not_be_verified_rests_unless_it_changes_or_is_called_for(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may never fit on its GPU, and each try takes memory and time from the models that serve there."""
    place(folder.path)
    now, tries, said = [100.0], [0], "vowels/1: CUDA failure 2: out of memory"

    def lacking_memory(*_: Any, **__: Any) -> LoadedModel:
        tries[0] += 1
        raise NotVerified(said)

    def tries_after(pause: float, again: str | None = None) -> int:
        now[0] += pause
        assert folder.scan(again=again) == []
        assert folder.refused == {"vowels/1": said}
        return tries[0]

    monkeypatch.setattr(scan, "monotonic", lambda: now[0])
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", lacking_memory)
        assert tries_after(0) == tries_after(30) == tries_after(29) == 1
        assert tries_after(1) == tries_after(59) == 2
        assert tries_after(0, again="vowels") == 3
        os.utime(folder.path / "vowels/1" / MANIFEST_FILE, (1, 1))
        assert tries_after(0) == tries_after(59) == 4
    now[0] += 1
    assert folder.scan() == ["vowels/1"]


@pytest.mark.parametrize("left", [2**40, 2**28])
def test_a_large_file_beside_the_graph_is_refused_before_it_is_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(scan, "share_of_memory", lambda most: min(most, left))
    with (place(folder.path) / GOLDEN_FILE).open("r+b") as golden:
        golden.truncate(2**26 + 1)
    assert folder.scan() == []
    said = f"'golden.npz' cannot be read: it has {2**26 + 1} bytes, and at most {2**26} are read"
    assert folder.refused == {"vowels/1": f"vowels/1: {said}"}
    folder.scan()
    assert folder.verified == [], "until its directory changes"


def test_a_version_that_other_kernels_would_serve_is_verified_again(folder: Folder) -> None:
    """As where there was no memory for those that were verified."""

    def verify(task: VerificationTask, stopping: Stopping) -> Verification:
        return verifier.verify(task, stopping).model_copy(update={"kernels": "avx1024"})

    with pytest.raises(NotVerified, match=r"recurrent kernels of avx1024, and those of .* would serve it"):
        loading.load(place(folder.path), LIMITS, verify=verify)


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        ("std::bad_alloc", NotVerified),
        ("Failed to allocate memory for requested buffer", NotVerified),
        ("CUDA failure 2: out of memory ; GPU=0", NotVerified),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", NotVerified),
        ("CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", NotVerified),
        ("no such operator", ModelError),
    ],
)
def test_a_graph_is_loaded_again_only_where_memory_was_short(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, why: str, kind: type[Exception]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(why)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ModelError, match=f"onnxruntime cannot load the graph: {why}") as raised:
        loading.load(place(folder.path), LIMITS)
    assert type(raised.value) is kind


@pytest.mark.parametrize("why", ["CUDA failure 2: out of memory", "Failed to allocate memory", "std::bad_alloc"])
def test_a_graph_that_had_too_little_memory_to_run_is_verified_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(why)

    monkeypatch.setattr(Session, "run", refuse)
    with pytest.raises(NotVerified, match=f"the graph cannot be run here: {why}"):
        loading.load(place(folder.path), LIMITS)


def test_what_runs_keeps_its_place(folder: Folder) -> None:
    place(folder.path, "b")
    folder.scan(most=GRAPH_BYTES)
    place(folder.path, "a")
    assert folder.scan(most=GRAPH_BYTES) == ["b/1"]
    assert list(folder.refused) == ["a/1"]


def test_a_higher_version_fits_in_the_place_of_the_one_before(folder: Folder) -> None:
    place(folder.path)
    folder.scan(most=GRAPH_BYTES)
    place(folder.path, version=2)
    assert folder.scan(most=GRAPH_BYTES) == ["vowels/2"]
    place(folder.path, version=2, made={"note": "again"})
    assert folder.scan(most=GRAPH_BYTES) == ["vowels/2"]
    assert folder.model(version=2).manifest.made == {"note": "again"}


def test_a_version_that_grew_in_place_past_the_bound_is_refused_and_what_ran_goes_on(folder: Folder) -> None:
    directory = place(folder.path)
    folder.scan(most=GRAPH_BYTES)
    (directory / "more").write_bytes(b"0")
    assert folder.scan(most=GRAPH_BYTES) == ["vowels/1"]
    assert "--max-model-bytes" in folder.refused["vowels/1"]


def test_no_name_goes_without_while_another_has_two(folder: Folder) -> None:
    for version in (1, 2):
        place(folder.path, "a", version)
    place(folder.path, "b")
    assert folder.scan("all", most=2 * GRAPH_BYTES) == ["a/2", "b/1"]
    assert list(folder.refused) == ["a/1"]


# What a directory looks like


def test_a_directory_looks_other_when_any_file_in_it_does(folder: Folder) -> None:
    directory = place(folder.path)
    before = loading.directory_state(directory)
    assert loading.directory_state(directory) == before
    golden = directory / GOLDEN_FILE
    status, content = golden.stat(), golden.read_bytes()
    golden.write_bytes(content[:-1] + b"x")
    os.utime(golden, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times does
    assert loading.directory_state(directory) != before
    assert loading.directory_state(directory / "absent") == ()


def test_the_size_of_a_model_is_that_of_its_graph(folder: Folder) -> None:
    (place(folder.path) / stored_measurements.COSTS_FILE).write_text("{}")
    folder.scan()
    assert folder.model().graph_bytes == GRAPH_BYTES
    assert folder.model().key == Key("vowels", 1)


def misplaced(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return [line for line in lines if "ignored, because the files of a version" in line]


def test_the_files_of_a_version_one_level_too_high_are_told_once_with_the_cure(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    place(folder.path)
    shutil.copytree(BUNDLED, folder.path / "gestures")
    shutil.copy(BUNDLED / GRAPH_FILE, folder.path)
    assert folder.scan() == ["vowels/1"]
    in_the_repository, in_a_folder = misplaced(caplog)
    assert "model.onnx in the model repository itself" in in_the_repository
    assert "NAME/VERSION" in in_the_repository
    assert "manifest.json and model.onnx in the folder 'gestures'" in in_a_folder
    assert "move them to 'gestures/1'" in in_a_folder
    folder.scan()
    assert misplaced(caplog) == []
    for before, now, said in (("gestures", "shapes", "'shapes'"), ("shapes", "3", "move them to 'NAME/3'")):
        (folder.path / before).rename(folder.path / now)
        folder.scan()
        (again,) = misplaced(caplog)
        assert said in again


def test_a_version_that_was_copied_beside_the_others_is_told(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    place(folder.path, version=7)
    shutil.copy(BUNDLED / MANIFEST_FILE, folder.path / "vowels")
    assert folder.scan() == ["vowels/7"]
    (line,) = misplaced(caplog)
    assert "manifest.json in the folder 'vowels'" in line
    assert "move them to 'vowels/8'" in line
    (folder.path / "vowels" / MANIFEST_FILE).unlink()
    folder.scan()
    (folder.path / "vowels" / MANIFEST_FILE).write_text("")
    folder.scan()
    assert len(misplaced(caplog)) == 1


def test_other_files_beside_the_models_need_no_word(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    place(folder.path)
    for path in (folder.path / "README.md", folder.path / "vowels" / "config.pbtxt", folder.path / ".hidden"):
        path.write_text("")
    assert folder.scan() == ["vowels/1"]
    assert misplaced(caplog) == []
