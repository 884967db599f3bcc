"""The file that scoring writes, and how an interrupted one is gone on with."""

import resource
from pathlib import Path

import orjson
import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.scoring.prediction_file import PredictionFile


def line(name: str, **fields: object) -> bytes:
    return orjson.dumps({"id": name, **fields}) + b"\n"


LINES = [line("a", label="x"), line("b", label="y"), line("c", label="z")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out"


def go_on(path: Path, *, exact: bool = True, rest: list[bytes] | None = None) -> list[str]:
    """Resumes as scoring does; the ids of what was left for good."""
    with PredictionFile(path, resume=True, exact=exact) as scored:
        left = [prediction["id"] for prediction in scored.earlier_predictions()]
        scored.write(LINES[len(left) :] if rest is None else rest)
        scored.finish()
    return left


def test_a_file_that_is_not_there_is_begun_with_its_folder(tmp_path: Path):
    path = tmp_path / "absent" / "folder" / "out"
    assert go_on(path) == []
    assert path.read_bytes() == b"".join(LINES)


def test_no_folder_is_made_in_the_root_of_a_disk() -> None:
    with pytest.raises(ConfigurationError, match="there is no folder /of-no-disk/run; make it first"):
        PredictionFile(Path("/of-no-disk/run/out"))
    assert not Path("/of-no-disk").exists()


def test_a_file_with_something_in_it_is_not_written_over_unasked(path: Path):
    path.touch()
    with PredictionFile(path) as scored:
        scored.finish()
    path.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="--resume"):
        PredictionFile(path)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("last", "made", "exact", "is_taken"),
    [
        (line("c", label="w"), LINES[2], True, False),
        (b"nothing\n", LINES[2], True, False),
        (b"[]\n", LINES[2], False, False),
        (line("c", label="z", attention=[1]), LINES[2], False, False),
        (line("d", label="z"), LINES[2], False, False),
        (line("c", error="out:3: ..."), LINES[2], False, False),
        (line("c", label="z", score=0.5), line("c", label="z", score=0.50001), False, True),  # no bits were promised
        (line("c", error="data:3: bad"), line("c", error="./data:3: bad"), True, True),
    ],
)
def test_a_last_line_that_comes_out_otherwise_is_of_another_run(
    path: Path, last: bytes, made: bytes, exact: bool, is_taken: bool
):
    before = LINES[0] + LINES[1] + last
    path.write_bytes(before)
    if is_taken:
        assert len(go_on(path, exact=exact, rest=[made])) == 2
    else:
        with pytest.raises(ConfigurationError, match="out:3"):
            go_on(path, exact=exact, rest=[made])
    assert path.read_bytes() == (LINES[0] + LINES[1] + made if is_taken else before)


@pytest.mark.parametrize("rest", [b"{\n", b"[]\n", b'{"id": 3}\n', b"\0\0\n", LINES[1]])
def test_a_line_that_is_no_prediction_or_of_no_record_is_named(path: Path, rest: bytes):
    path.write_bytes(LINES[0] + rest + LINES[2])
    with pytest.raises(ConfigurationError, match=r"out:[23]"):
        go_on(path, rest=[])


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "folder" / "out", tmp_path):
        with pytest.raises(ConfigurationError):
            PredictionFile(path)


def test_a_full_disk_is_reported_and_its_lines_can_be_resumed(path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINES[0]) + 5, before[1]))
    try:
        with pytest.raises(ConfigurationError), PredictionFile(path) as scored:
            scored.write(LINES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    go_on(path)
    assert path.read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_that_another_run_writes_is_refused(path: Path, resume: bool):
    with PredictionFile(path) as scored:
        with pytest.raises(ConfigurationError, match="another run"):
            PredictionFile(path, resume=resume)
        scored.write(LINES[:1])
    assert path.read_bytes() == LINES[0]
    go_on(path)  # the lock ends with the run
