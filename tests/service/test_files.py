"""Files that are written: what an error says."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from lengthwise import files

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("write", [files.write, lambda path, text: files.write(path, text.encode())])
def test_a_full_disk_is_told_with_its_file(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path = tmp_path / "metrics.json"
    path.symlink_to(FULL)
    with pytest.raises(OSError, match="No space left") as told:
        write(path, "{}")
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(path))


def test_other_errors_keep_their_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, files.naming(tmp_path / "a"):
        (tmp_path / "b" / "c").write_text("")
    assert told.value.filename == str(tmp_path / "b" / "c")


def test_a_try_to_write_makes_no_folder_and_leaves_no_file(tmp_path: Path) -> None:
    files.try_to_write(tmp_path / "models" / "vowels")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.try_to_write(tmp_path / "file" / "vowels")
