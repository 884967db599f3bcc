"""API keys: who may pass, and what happens to the file."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lengthwise.connections.api_keys import OTHER, Keys
from lengthwise.errors import ConfigurationError, Unauthorized

FIRST, SECOND = b"a-key-of-some-length", b"another-key-of-some-length"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_bytes(b"# the first team's\n" + FIRST + b"\n\n  " + SECOND + b"  \n")
    return file


def rewrite(path: Path, content: bytes) -> None:
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(stamp + 1, stamp + 1))


@pytest.mark.parametrize("authorization", [b"Bearer " + FIRST, b"bearer " + SECOND, b"  BEARER   " + FIRST + b" "])
def test_each_key_of_the_file_passes_however_the_header_is_written(path: Path, authorization: bytes) -> None:
    Keys(path).check(authorization)


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, b"", b"Bearer", b"Bearer ", FIRST, b"Basic " + FIRST, b"Bearer " + FIRST[:-1]),
        *(b"Bearer " + FIRST + b"x", b"Bearer # the first team's", b"Bearer " + FIRST.upper()),
        *(b"Bearer " + FIRST + b" " + SECOND, b"Bearer \xff\x00"),
    ],
)
def test_nothing_else_passes(path: Path, authorization: bytes | None) -> None:
    with pytest.raises(Unauthorized):
        Keys(path).check(authorization)


NAMED = (
    b"team-a: " + FIRST + b"\r\n# a comment: with a colon\r\n\r\n" + SECOND + b"\r\nteam.B_2 :\t" + b"k" * 16 + b"\r\n"
)


@pytest.mark.parametrize(("key", "name"), [(FIRST, ("team-a",) * 2), (SECOND, None), (b"k" * 16, ("team.B_2",) * 2)])
def test_a_key_may_have_a_name_and_others_none_in_one_file(
    path: Path, key: bytes, name: tuple[str, str] | None
) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + NAMED)
    assert Keys(path).check(b"Bearer " + key) == name


def test_two_keys_may_have_one_name_so_that_one_can_be_replaced(path: Path) -> None:
    path.write_bytes(b"team-a: " + FIRST + b"\nteam-a: " + SECOND)
    keys = Keys(path)
    assert keys.check(b"Bearer " + FIRST) == keys.check(b"Bearer " + SECOND) == ("team-a", "team-a")


def test_a_colon_without_a_space_is_part_of_the_key_which_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"team-a:" + FIRST)
    assert Keys(path).check(b"Bearer team-a:" + FIRST) is None
    assert f"{path}:1: the key has a ':'" in caplog.text
    assert FIRST.decode() not in caplog.text


def test_names_past_the_first_hundred_are_counted_together_and_logged(path: Path) -> None:
    path.write_bytes(b"".join(b"team-%d: key-of-team-number-%d\n" % (number, number) for number in range(101)))
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    assert keys.check(b"Bearer key-of-team-number-99") == ("team-99", "team-99")
    assert keys.check(b"Bearer key-of-team-number-100") == ("team-100", OTHER)
    rewrite(path, b"newcomer: " + FIRST + b"\nteam-7: key-of-team-number-7\nteam-100: key-of-team-number-100")
    now[0] = 1.0
    assert keys.check(b"Bearer key-of-team-number-7") == ("team-7", "team-7")
    assert keys.check(b"Bearer " + FIRST) == ("newcomer", OTHER)  # a name keeps its series as long as the process lives


def test_a_key_gets_another_name_when_the_file_says_so(path: Path) -> None:
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    assert keys.check(b"Bearer " + FIRST) is None
    rewrite(path, b"team-a: " + FIRST)
    now[0] = 1.0
    assert keys.check(b"Bearer " + FIRST) == ("team-a", "team-a")


def test_a_changed_file_is_read_again_within_a_second(path: Path) -> None:
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    rewrite(path, SECOND)
    keys.check(b"Bearer " + FIRST)
    now[0] = 1.0
    with pytest.raises(Unauthorized):
        keys.check(b"Bearer " + FIRST)
    keys.check(b"Bearer " + SECOND)


@pytest.mark.parametrize("way", ["another file", "in place"])
def test_a_file_of_equal_size_and_time_is_read_when_it_is_another(path: Path, way: str) -> None:
    now, other = [0.0], path.with_name("other")
    keys, stamp = Keys(path, lambda: now[0], patience_seconds=60), path.stat().st_mtime_ns
    changed = path.read_bytes().replace(FIRST, FIRST.upper())
    if way == "in place":
        before = path.stat().st_ctime_ns
        for _ in range(100_000):  # some kernels give the same time to all changes of some milliseconds
            path.write_bytes(changed)
            if path.stat().st_ctime_ns != before:
                break
    else:
        other.write_bytes(changed)
        other.replace(path)
    os.utime(path, ns=(stamp, stamp))
    now[0] = 1.0
    keys.check(b"Bearer " + FIRST.upper())
    with pytest.raises(Unauthorized):
        keys.check(b"Bearer " + FIRST)


def test_a_file_whose_stamp_never_changes_is_read_once_a_minute(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lengthwise.connections.api_keys._stamp", lambda _: (0,))
    caplog.set_level("INFO")
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    now[0] = 61.0
    keys.check(b"Bearer " + FIRST)
    assert "read again" not in caplog.text
    path.write_bytes(SECOND)
    now[0] = 100.0
    keys.check(b"Bearer " + FIRST)
    now[0] = 122.0
    with pytest.raises(Unauthorized):
        keys.check(b"Bearer " + FIRST)
    assert "read again: there are 1" in caplog.text


def test_a_check_takes_the_same_number_of_calls_for_one_key_and_for_thousands(path: Path) -> None:
    def calls_of_a_check(count: int) -> int:
        path.write_bytes(b"".join(b"key-of-number-%06d\n" % number for number in range(count)))
        keys, calls = Keys(path, lambda: 0.0), 0

        def count_one(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_one)
        try:
            keys.check(b"Bearer key-of-number-000000")
        finally:
            sys.setprofile(None)
        return calls

    assert calls_of_a_check(5000) == calls_of_a_check(1)


@pytest.mark.parametrize("content", [b"", b"# nobody\n", b"short\n", None])
def test_a_spoilt_or_missing_file_changes_nothing_and_no_key_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    if content is None:
        path.unlink()
    else:
        rewrite(path, content)
    now[0] = 1.0
    keys.check(b"Bearer " + FIRST)
    assert "could not be read again, the old keys stay valid" in caplog.text
    assert "short" not in caplog.text.replace("shortest", "")


def test_a_pipe_in_the_place_of_the_file_holds_no_later_change_up(path: Path) -> None:
    now = [0.0]
    keys = Keys(path, lambda: now[0], patience_seconds=60)
    path.unlink()
    os.mkfifo(path)
    now[0] = 1.0
    keys.check(b"Bearer " + FIRST)
    path.unlink()
    path.write_bytes(b"the-key-that-came-afterwards")
    now[0] = 2.0
    keys.check(b"Bearer the-key-that-came-afterwards")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no key"),
        (b"short", ":1: a key has at least 16"),
        (b"a key with spaces in it", ":1:"),
        (b"team-a: short", ":1: a key has at least 16"),
        (b"a-name-of-sixteen:", ":1: a key has at least 16"),
        (b"team-a: " + FIRST + b": " + SECOND, ":1: a key has .* and no space"),
        (b"my team: " + FIRST, ":1: a key has .* 'name: KEY'"),
        (b"-: " + FIRST, ":1: a key has .* where a name has"),
        (b": " + FIRST, ":1: a key has .* where a name has"),
        (b"other: " + FIRST, ":1: a key has .* where a name has"),
        (b'te"am: ' + FIRST, ":1: a key has .* where a name has"),
        (b"n" * 65 + b": " + FIRST, ":1: a key has .* a name has up to 64"),
        ("équipe: ".encode() + FIRST, ":1: a key has .* where a name has"),
        (b"a: " + FIRST + b"\nb: " + FIRST, ":2: the same key stands above with another name"),
        (FIRST + b"\n\nb: " + FIRST, ":3: the same key stands above with another name, or without"),
    ],
)
def test_a_file_without_good_keys_is_refused_at_the_start_by_line(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        Keys(path)
    path.unlink()
    with pytest.raises(ConfigurationError):
        Keys(path)


def test_a_file_that_does_not_answer_keeps_nobody_waiting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    keys, stat = Keys(path, lambda: now[0], patience_seconds=0.01), Path.stat
    looked, answers = [], threading.Event()

    def hangs(file: Path, **options: Any) -> Any:
        if file == path:
            looked.append(file)
            answers.wait(60)
        return stat(file, **options)

    monkeypatch.setattr(Path, "stat", hangs)
    threads = threading.active_count()
    for _ in range(50):
        now[0] += 2
        keys.check(b"Bearer " + FIRST)
    assert len(looked) == 1
    assert threading.active_count() == threads + 1
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "api-keys":
            thread.join(60)
    monkeypatch.undo()
    assert not [thread for thread in threading.enumerate() if thread.name == "api-keys"]
