import fcntl
import os
from pathlib import Path

import pytest

from model_export import package
from model_export.errors import PublishError


def publish(out: Path, content: str = "x") -> package.Place:
    place = package.place(out)
    with package.staged(place) as stage:
        (stage / "model.onnx").write_text(content)
    return place


def test_a_version_is_published_whole(tmp_path: Path) -> None:
    place = publish(tmp_path / "vowels" / "3")
    assert (place.name, place.version) == ("vowels", 3)
    assert (tmp_path / "vowels" / "3" / "model.onnx").read_text() == "x"
    assert [entry.name for entry in (tmp_path / "vowels").iterdir()] == ["3"]


def test_a_model_without_a_version_gets_the_next_one(tmp_path: Path) -> None:
    assert [publish(tmp_path / "vowels").version for _ in range(3)] == [1, 2, 3]
    publish(tmp_path / "vowels" / "10")
    assert publish(tmp_path / "vowels").version == 11


def test_what_is_no_version_does_not_count_as_one(tmp_path: Path) -> None:
    for name in ("007", "notes", "-1"):
        (tmp_path / "vowels" / name).mkdir(parents=True)
    assert package.versions(tmp_path / "vowels") == []


def test_a_published_version_is_never_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "vowels" / "1", "first")
    with pytest.raises(PublishError, match="publish 2"):
        package.place(tmp_path / "vowels" / "1")
    assert (tmp_path / "vowels" / "1" / "model.onnx").read_text() == "first"


@pytest.mark.parametrize("filled", [False, True])
def test_a_version_that_appears_meanwhile_is_not_replaced(tmp_path: Path, filled: bool) -> None:
    place = package.place(tmp_path / "vowels" / "1")

    def overtaken() -> None:
        with package.staged(place):
            place.directory.mkdir()
            if filled:
                (place.directory / "model.onnx").write_text("theirs")

    with pytest.raises(PublishError, match="meanwhile"):
        overtaken()
    assert [entry.name for entry in place.directory.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["-m", "a b", ".hidden", "x" * 129])
def test_a_name_that_is_no_model_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishError, match="no model name"):
        package.place(tmp_path / name / "1")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def broken_off() -> None:
        with package.staged(package.place(tmp_path / "models" / "vowels" / "1")) as stage:
            (stage / "model.onnx").write_text("half")
            raise error

    with pytest.raises(error):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_other_versions_alone(tmp_path: Path) -> None:
    publish(tmp_path / "vowels" / "1")
    with pytest.raises(ValueError, match="broken"), package.staged(package.place(tmp_path / "vowels" / "2")):
        raise ValueError("broken")
    assert [entry.name for entry in (tmp_path / "vowels").iterdir()] == ["1"]


def test_the_stage_of_a_killed_export_is_removed_by_the_next(tmp_path: Path) -> None:
    abandoned = tmp_path / "vowels" / ".stage-dead"
    abandoned.mkdir(parents=True)
    (abandoned / "model.onnx").write_text("half")
    publish(tmp_path / "vowels" / "1")
    assert not abandoned.exists()


def test_the_stage_of_a_running_export_is_left_alone(tmp_path: Path) -> None:
    running = tmp_path / "vowels" / ".stage-live"
    running.mkdir(parents=True)
    handle = os.open(running, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        publish(tmp_path / "vowels" / "1")
        assert running.exists()
    finally:
        os.close(handle)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "vowels").write_text("a file in the way")
    with (
        pytest.raises(PublishError, match="cannot be written"),
        package.staged(package.place(tmp_path / "vowels" / "1")),
    ):
        pass


def test_a_rename_that_fails_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PublishError, match="No space left"):
        publish(tmp_path / "vowels" / "1")
    assert list(tmp_path.iterdir()) == []


def test_published_files_can_be_read_by_the_service(tmp_path: Path) -> None:
    place = publish(tmp_path / "vowels" / "1")
    assert place.directory.stat().st_mode & 0o777 == 0o755
