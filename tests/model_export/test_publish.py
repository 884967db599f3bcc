import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lengthwise.repository import folder
from lengthwise.versions import Key
from lengthwise_export.errors import PublishError
from lengthwise_export.exporting import staging


def published(out: Path, content: str = "x") -> staging.Destination:
    with staging.staging_folder(out) as (place, stage):
        (stage / "model.onnx").write_text(content)
        assert not place.directory.exists()  # it is never half there
    return place


def test_a_version_is_published_whole(tmp_path: Path) -> None:
    place = published(tmp_path / "vowels" / "3")
    assert (place.name, place.version) == ("vowels", 3)
    assert (tmp_path / "vowels" / "3" / "model.onnx").read_text() == "x"
    assert [entry.name for entry in (tmp_path / "vowels").iterdir()] == ["3"]


def test_a_model_without_a_version_gets_the_next_one(tmp_path: Path) -> None:
    assert [published(tmp_path / "vowels").version for _ in range(3)] == [1, 2, 3]
    published(tmp_path / "vowels" / "10")
    assert published(tmp_path / "vowels").version == 11


def test_a_model_is_not_published_as_a_version_of_its_repository(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "vowels" / "2").mkdir(parents=True)
    assert staging.destination(models).version == 1
    (models / "vowels" / "2" / "manifest.json").touch()
    with pytest.raises(PublishError, match="vowels/2"):
        staging.destination(models)
    assert staging.destination(models / "gestures").version == 1


def test_what_is_no_version_does_not_count_as_one(tmp_path: Path) -> None:
    for name in ("007", "notes", "-1"):
        (tmp_path / "vowels" / name).mkdir(parents=True)
    assert staging.versions(tmp_path / "vowels") == []


@pytest.mark.parametrize("name", ["7", "007", "0", "999999999", "1000000000", "12345678901", "\u0661", "-1", "1 "])
def test_the_exporter_and_the_service_agree_on_what_a_version_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "vowels" / name).mkdir(parents=True)
    assert staging.versions(tmp_path / "vowels") == [key.version for key in folder.read(tmp_path).directories]


def test_a_version_that_no_service_reads_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(PublishError):
        published(tmp_path / "vowels" / "1000000000")
    published(tmp_path / "vowels" / "999999999")
    assert Key("vowels", 999999999) in folder.read(tmp_path).directories
    with pytest.raises(PublishError):
        published(tmp_path / "vowels")


def test_a_published_version_is_never_replaced(tmp_path: Path) -> None:
    published(tmp_path / "vowels" / "1", "first")
    with pytest.raises(PublishError):
        staging.destination(tmp_path / "vowels" / "1")
    assert (tmp_path / "vowels" / "1" / "model.onnx").read_text() == "first"


def test_an_address_is_no_folder_to_export_into() -> None:
    with pytest.raises(PublishError, match="then `lengthwise push`"):
        staging.destination(Path("s3://bucket/models/vowels"))


@pytest.mark.parametrize("filled", [False, True])
def test_a_version_that_appears_meanwhile_is_not_replaced(tmp_path: Path, filled: bool) -> None:
    place = staging.destination(tmp_path / "vowels" / "1")

    def overtaken() -> None:
        with staging.staging_folder(place.directory):
            place.directory.mkdir()
            if filled:
                (place.directory / "model.onnx").write_text("theirs")

    with pytest.raises(PublishError):
        overtaken()
    assert [entry.name for entry in place.directory.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["-m", "a b", ".hidden", "x" * 129])
def test_a_name_that_is_no_model_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishError):
        staging.destination(tmp_path / name / "1")


@pytest.mark.parametrize("version", ["v1", "V2", "0", "01", "1.0", "v1.2.3"])
def test_what_looks_like_a_version_and_is_none_names_no_model(tmp_path: Path, version: str) -> None:
    with pytest.raises(PublishError):
        staging.destination(tmp_path / "vowels" / version)
    assert staging.destination(tmp_path / version / "1").name == version


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def broken_off() -> None:
        with staging.staging_folder(tmp_path / "models" / "vowels" / "1") as (_, stage):
            (stage / "model.onnx").write_text("half")
            raise error

    with pytest.raises(error):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_other_versions_alone(tmp_path: Path) -> None:
    published(tmp_path / "vowels" / "1")
    with pytest.raises(LookupError), staging.staging_folder(tmp_path / "vowels" / "2"):
        raise LookupError
    assert [entry.name for entry in (tmp_path / "vowels").iterdir()] == ["1"]


def test_the_stage_of_a_killed_export_is_removed_by_the_next(tmp_path: Path) -> None:
    abandoned = tmp_path / "vowels" / ".stage-dead"
    abandoned.mkdir(parents=True)
    (abandoned / "model.onnx").write_text("half")
    published(tmp_path / "vowels" / "1")
    assert not abandoned.exists()


def test_the_stage_of_a_running_export_is_left_alone(tmp_path: Path) -> None:
    running = tmp_path / "vowels" / ".stage-live"
    running.mkdir(parents=True)
    handle = os.open(running, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        published(tmp_path / "vowels" / "1")
        assert running.exists()
    finally:
        os.close(handle)


def test_two_exports_at_once_get_two_versions(tmp_path: Path) -> None:
    published(tmp_path / "vowels" / "4")
    with (
        staging.staging_folder(tmp_path / "vowels") as (first, _),
        staging.staging_folder(tmp_path / "vowels") as (second, _),
    ):
        assert (first.version, second.version) == (5, 6)
    assert staging.versions(tmp_path / "vowels") == [4, 5, 6]


def test_a_version_is_chosen_when_no_other_export_chooses_one(tmp_path: Path) -> None:
    (tmp_path / "vowels").mkdir()
    chooses = os.open(tmp_path / "vowels", os.O_RDONLY)
    fcntl.flock(chooses, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(published, tmp_path / "vowels")
        (tmp_path / "vowels" / "1").mkdir()  # what the other one has chosen meanwhile
        os.close(chooses)
        assert waiting.result().version == 2


def test_a_version_that_appears_while_the_next_one_is_looked_for_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = staging.versions

    def late(model: Path) -> list[int]:
        seen = found(model)
        (model / str(len(seen) + 1)).mkdir(parents=True, exist_ok=True)
        monkeypatch.undo()
        return seen

    monkeypatch.setattr(staging, "versions", late)
    assert published(tmp_path / "vowels").version == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EWOULDBLOCK])
def test_a_place_without_locks_is_named_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(PublishError):
        published(tmp_path / "vowels" / "1")
    if number == errno.ENOLCK:
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "vowels").write_text("a file in the way")
    with pytest.raises(PublishError), staging.staging_folder(tmp_path / "vowels" / "1"):
        pass


def test_a_rename_that_fails_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PublishError):
        published(tmp_path / "vowels" / "1")
    assert list(tmp_path.iterdir()) == []


def test_published_files_can_be_read_by_the_service(tmp_path: Path) -> None:
    place = published(tmp_path / "vowels" / "1")
    assert place.directory.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PublishError, match="vowels cannot be written: Not a directory"):
        staging.require_writable(tmp_path / "file" / "models" / "vowels")
    staging.require_writable(tmp_path / "models" / "vowels" / "1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
