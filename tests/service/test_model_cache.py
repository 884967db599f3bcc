"""The cache of models by address: whole, checked, shared, and what is said where a fetch fails."""

import errno
import io
import itertools
import json
import logging
import lzma
import os
import ssl
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from lengthwise import files
from lengthwise.errors import ConfigurationError, ModelError, StoreUnreachable, VerificationError
from tests.support import model_directories
from tests.support.stores import Answer, StandIn, Web, archive_of, running, versions_in

pytest.importorskip("obstore")
from lengthwise.stores import archives, cache


@pytest.fixture
def web() -> Iterator[Web]:
    answers = Web()
    with running(StandIn(answers)) as server:
        answers.server = server
        yield answers


def url(web: Web, name: str = "models.tar") -> str:
    return f"{web.server.url}/{name}"


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_an_archive_is_fetched_whole_and_once(web: Web, models: Path, tmp_path: Path, kind: str) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar", kind)
    copy = cache.fetch(url(web), tmp_path / "cache")
    assert versions_in(copy) == {"vowels/1", "vowels/2"}
    assert (copy / "vowels" / "aliases.json").read_text() == '{"champion": 1}\n'
    for version in ("1", "2"):
        original = models / "vowels" / version
        assert {path.name: path.read_bytes() for path in (copy / "vowels" / version).iterdir()} == {
            path.name: path.read_bytes() for path in original.iterdir()
        }
    assert cache.fetch(url(web), tmp_path / "cache") == copy


@pytest.mark.parametrize("inside", ["vowels", "vowels/2", "."])
def test_a_repository_a_model_and_a_version_alone_become_a_repository(
    web: Web, models: Path, tmp_path: Path, inside: str
) -> None:
    web.files["models.tar"] = archive_of(models / inside, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    assert versions_in(copy) == ({"vowels/2"} if inside == "vowels/2" else {"vowels/1", "vowels/2"})


def test_a_version_that_stays_as_it_was_keeps_its_folder_and_what_was_measured_in_it(
    web: Web, models: Path, tmp_path: Path
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    before = cache.fetch(url(web), tmp_path / "cache")
    (before / "vowels" / "1" / "costs.json").write_text("measured")
    model_directories.place(models, version=3)
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    after = cache.fetch(url(web), tmp_path / "cache")
    assert versions_in(after) == {"vowels/1", "vowels/2", "vowels/3"}
    assert versions_in(before) == {"vowels/1", "vowels/2"}
    assert (after / "vowels" / "1" / "costs.json").read_text() == "measured"
    assert (after / "vowels" / "1").resolve() == (before / "vowels" / "1").resolve()


def test_a_digest_in_the_address_is_that_of_the_archive_and_needs_no_second_request(
    web: Web, models: Path, tmp_path: Path
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    digest = files.digest(tmp_path / "models.tar").removeprefix("sha256:")
    copy = cache.fetch(f"{url(web)}#sha256={digest}", tmp_path / "cache")
    web.server.calls.clear()
    assert cache.fetch(f"{url(web)}#sha256={digest}", tmp_path / "cache") == copy
    assert web.server.calls == []
    with pytest.raises(VerificationError, match=f"has the digest sha256:{digest}"):
        cache.fetch(f"{url(web)}#sha256={'0' * 64}", tmp_path / "cache")


def test_offline_the_cache_is_used_and_nothing_is_asked(web: Web, models: Path, tmp_path: Path) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    with pytest.raises(ConfigurationError, match=r"not in the cache .*, and offline"):
        cache.fetch(url(web), tmp_path / "cache", offline=True)
    assert web.server.calls == []
    copy = cache.fetch(url(web), tmp_path / "cache")
    web.server.calls.clear()
    assert cache.fetch(url(web), tmp_path / "cache", offline=True) == copy
    assert web.server.calls == []


def test_without_an_answer_of_the_store_the_last_copy_is_used_with_a_warning(
    web: Web, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    web.faults["models.tar"] = Answer(503)
    assert cache.fetch(url(web), tmp_path / "cache") == copy
    assert "503 Service Unavailable; the copy of" in caplog.text


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Answer(404), "the store answers 404"),
        (Answer(403), "the store answers 403"),
        (Answer(503), "the store answers 503"),
        (Answer(body=b"x" * 5000, cut=1000), "no answer of the store"),
        (Answer(body=b"no archive at all"), "cannot be read as a tar archive"),
        (Answer(302, headers={"location": "/other.tar"}), "the store answers 404"),
    ],
)
def test_a_fault_of_the_store_is_said_and_what_was_fetched_before_stays(
    web: Web, models: Path, tmp_path: Path, fault: Answer, says: str
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    web.faults["broken.tar"] = fault
    with pytest.raises(ConfigurationError, match=says) as refused:
        cache.fetch(f"{url(web, 'broken.tar')}?X-Amz-Signature=secret", tmp_path / "cache")
    assert "secret" not in str(refused.value)
    assert versions_in(copy) == {"vowels/1", "vowels/2"}
    assert [*(tmp_path / "cache").rglob("stage-*")] == []


def test_an_archive_that_is_cut_off_within_a_file_is_refused(web: Web, models: Path, tmp_path: Path) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")[:100_000]
    web.files["models.tgz"] = archive_of(models, tmp_path / "models.tgz", "w:gz")[:100_000]
    for name in ("models.tar", "models.tgz"):
        with pytest.raises(ConfigurationError, match="cannot be read as a tar archive"):
            cache.fetch(url(web, name), tmp_path / "cache")


def test_bytes_that_differ_from_the_manifest_are_refused(web: Web, models: Path, tmp_path: Path) -> None:
    graph = models / "vowels" / "2" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    with pytest.raises(ModelError, match=r"vowels/2: model\.onnx"):
        cache.fetch(url(web), tmp_path / "cache")
    assert [*(tmp_path / "cache").rglob("manifest.json")] == []


def test_a_copy_that_was_changed_in_the_cache_is_fetched_again_and_not_used_offline(
    web: Web, models: Path, tmp_path: Path
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    good = (copy / "vowels" / "1" / "model.onnx").read_bytes()
    (copy / "vowels" / "1" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ConfigurationError, match="not in the cache"):
        cache.fetch(url(web), tmp_path / "cache", offline=True)
    assert (cache.fetch(url(web), tmp_path / "cache") / "vowels" / "1" / "model.onnx").read_bytes() == good


@pytest.mark.sampled(5)
@pytest.mark.parametrize("content", [b"", b"[]", b'{"versions": 1}', b"\xff", b'{"address": "x"}'])
def test_a_record_in_the_cache_that_is_no_record_is_fetched_again(
    web: Web, models: Path, tmp_path: Path, content: bytes
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    (record,) = (tmp_path / "cache").rglob("copy.json")
    record.write_bytes(content)
    assert cache.fetch(url(web), tmp_path / "cache") == copy


@pytest.mark.sampled(2)
@pytest.mark.parametrize("key", ["address", "state", "digest", "day"])
def test_a_record_in_the_cache_that_was_edited_is_not_used(web: Web, models: Path, tmp_path: Path, key: str) -> None:
    for name in ("models", "other"):
        web.files[f"{name}.tar"] = archive_of(models / "vowels" / "1", tmp_path / f"{name}.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    model_directories.sign(models / "vowels" / "1", labels=[*"abcdefghi"])
    web.files["other.tar"] = archive_of(models / "vowels" / "1", tmp_path / "other.tar")
    other = cache.fetch(url(web, "other.tar"), tmp_path / "cache")
    records = {path: path.read_text() for path in (tmp_path / "cache").rglob("copy.json")}
    (path,) = (path for path, text in records.items() if copy.name in text)
    values = {"address": url(web, "other.tar"), "state": "e", "digest": other.name, "day": "2020-01-01"}
    before = json.loads(json.loads(records[path])[0])[key]
    path.write_text(records[path].replace(str(before), values[key]))
    with pytest.raises(ConfigurationError, match="not in the cache"):
        cache.fetch(url(web), tmp_path / "cache", offline=True)
    assert cache.fetch(url(web), tmp_path / "cache") == copy


def test_the_record_of_another_address_is_not_used(web: Web, models: Path, tmp_path: Path) -> None:
    for name, version in (("models", "1"), ("other", "2")):
        web.files[f"{name}.tar"] = archive_of(models / "vowels" / version, tmp_path / f"{name}.tar")
        cache.fetch(url(web, f"{name}.tar"), tmp_path / "cache")
    one, other = (tmp_path / "cache").rglob("copy.json")
    one.write_bytes(other.read_bytes())
    answered = list[set[str]]()
    for name in ("models", "other"):
        try:
            answered.append(versions_in(cache.fetch(url(web, f"{name}.tar"), tmp_path / "cache", offline=True)))
        except ConfigurationError:
            answered.append(set())
    assert sorted(answered, key=len) in ([set(), {"vowels/1"}], [set(), {"vowels/2"}])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("edit", ["aliases", "a version more", "a version less", "another version"])
def test_an_edited_repository_in_the_cache_is_fetched_again_or_not_used(
    web: Web, models: Path, tmp_path: Path, edit: str
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    one, two = copy / "vowels" / "1", copy / "vowels" / "2"
    if edit == "aliases":
        (copy / "vowels" / "aliases.json").write_text('{"champion": 2}\n')
    elif edit == "a version more":
        (copy / "vowels" / "3").symlink_to(two.readlink())
    else:
        two.unlink()
        if edit == "another version":
            two.symlink_to(one.readlink())
    with pytest.raises(ConfigurationError, match="not in the cache"):
        cache.fetch(url(web), tmp_path / "cache", offline=True)
    again = cache.fetch(url(web), tmp_path / "cache")
    assert versions_in(again) == {"vowels/1", "vowels/2"}
    assert (again / "vowels" / "aliases.json").read_text() == '{"champion": 1}\n'
    assert (again / "vowels" / "2").readlink() != (again / "vowels" / "1").readlink()


def test_a_web_server_that_sends_a_byte_now_and_then_is_one_without_an_answer(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.stores.SLOW_SECONDS", 0.3)
    web.faults["models.tar"] = Answer(body=bytes(2**24), drips=True)
    with pytest.raises(StoreUnreachable, match=r"models\.tar: too slow, \d+ bytes of the store in"):
        cache.fetch(url(web), tmp_path / "cache")


def member(name: str, content: bytes = b"x", **fields: object) -> bytes:
    """An archive of one member, whose header may say something else."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    for field, value in fields.items():
        setattr(about, field, value)
    return about.tobuf() + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (member("../evil"), "outside its folder"),
        (member("vowels/../../evil"), "outside its folder"),
        (member("/evil"), "outside its folder"),
        (member("vowels", b"", type=tarfile.SYMTYPE, linkname="/etc"), "link or device"),
        (member("vowels", b"", type=tarfile.LNKTYPE, linkname="../x"), "link or device"),
        (member("vowels", b"", type=tarfile.CHRTYPE), "link or device"),
        (member("vowels", b"", type=tarfile.FIFOTYPE), "link or device"),
        (member("vowels/1/model.onnx", b"x", size=2**40), "too much for models"),
        (member("README.md"), "holds no model"),
    ],
)
def test_an_archive_that_holds_more_than_models_leaves_nothing_behind(
    web: Web, tmp_path: Path, archive: bytes, says: str
) -> None:
    web.files["models.tar"] = archive
    with pytest.raises(ConfigurationError, match=says):
        cache.fetch(url(web), tmp_path / "cache")
    assert not (tmp_path / "evil").exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def sparse(content: bytes) -> bytes:
    """An archive of one sparse file, whose map is at the beginning of its content."""
    marks = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    return member("marks", marks, type=tarfile.XHDTYPE)[:-1024] + member("vowels/1/model.onnx", content)


@pytest.mark.parametrize(
    "archive",
    [
        sparse(b"no number\n".ljust(512)),
        lzma.compress(member("vowels/1/model.onnx", os.urandom(100_000)))[:50_000] + b"other bytes" * 10_000,
    ],
    ids=["sparse", "xz"],
)
def test_an_archive_that_is_damaged_in_any_way_is_refused_in_one_line(web: Web, tmp_path: Path, archive: bytes) -> None:
    web.files["models.tar"] = archive
    with pytest.raises(ConfigurationError, match=r"cannot be read as a tar archive: .+"):
        cache.fetch(url(web), tmp_path / "cache")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_archive_whose_names_would_fill_the_memory_is_refused(web: Web, tmp_path: Path, kind: bytes) -> None:
    web.files["models.tar"] = member("README.md")[:-1024] + member("marks", type=kind, size=2**30)
    with pytest.raises(ConfigurationError, match="one of its headers has 1073741824 bytes"):
        cache.fetch(url(web), tmp_path / "cache")


def test_many_headers_before_one_member_count_together(web: Web, tmp_path: Path) -> None:
    header = member("marks", b"300000 a=".ljust(299_999, b"x") + b"\n", type=tarfile.XGLTYPE)[:-1024]
    web.files["models.tar"] = member("README.md")[:-1024] + header * 5 + member("README.md")
    with pytest.raises(ConfigurationError, match="one of its headers has 300032 bytes"):
        cache.fetch(url(web), tmp_path / "cache")


def test_headers_of_a_whole_archive_are_not_kept_in_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "many.tar").open("wb") as archive:
        for number in range(60):
            marks = b"100000 a%04d=" % number
            archive.write(member("marks", marks.ljust(99_999, b"x") + b"\n", type=tarfile.XGLTYPE)[:-1024])
            archive.write(member("folder", b"", type=tarfile.DIRTYPE)[:512])
        archive.write(bytes(1024))
    tracemalloc.start()
    try:
        archives.extract(tmp_path / "many.tar", tmp_path, "here")
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("way", "says"), [("reads at the end", "one of its headers has 8192"), ("goes back", "size makes no sense")]
)
def test_a_reader_of_archives_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, says: str
) -> None:
    """The archive is a good one: a stand-in reads it as some releases of tarfile read others, a thousand times."""
    read_next, steps = tarfile.TarFile.next, list[None]()

    def endless(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        found = read_next(archive)
        for _ in range(1000 if way == "reads at the end" and steps else 0):
            archive.fileobj.read(8192)  # type: ignore[union-attr]
        steps.append(None)
        assert len(steps) < 1000
        if way == "goes back":
            archive.offset = 0
        return found

    monkeypatch.setattr(tarfile.TarFile, "next", endless)
    (tmp_path / "models.tar").write_bytes(member("README.md"))
    with pytest.raises(ConfigurationError, match=says):
        archives.extract(tmp_path / "models.tar", tmp_path, "here")


def test_every_member_of_an_archive_counts_even_if_it_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(
        member("etc", b"", type=tarfile.DIRTYPE)[:512] * 2 + member("etc/one")[:1024] + member("models/two")
    )
    monkeypatch.setattr(archives, "MOST_FILES", 1)  # those that are written
    monkeypatch.setattr(archives, "MOST_MEMBERS", 4)
    archives.extract(tmp_path / "a.tar", tmp_path, "here", inside="models")
    assert (tmp_path / "two").read_bytes() == b"x"
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(ConfigurationError, match="more than 3 members"):
        archives.extract(tmp_path / "a.tar", tmp_path, "here", inside="models")


def test_a_size_below_nothing_is_refused() -> None:
    limits = archives.FetchLimits("here")
    with pytest.raises(ConfigurationError, match="here has a file whose size makes no sense"):
        limits.allow(-1)


def test_an_archive_counts_while_it_comes(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 2**20)
    web.files["models.tar"] = b"no archive" * 2**18
    with pytest.raises(ConfigurationError, match="which is too much for models"):
        cache.fetch(url(web), tmp_path / "cache")


def test_a_fetch_has_a_limit_of_time(web: Web, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_SECONDS", -1.0)
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    with pytest.raises(ConfigurationError, match="is not fetched after -1 s"):
        cache.fetch(url(web), tmp_path / "cache")


@pytest.mark.parametrize("inside", ["", "models"])
def test_the_limit_of_time_holds_within_one_large_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    with tarfile.open(tmp_path / "large.tar.gz", "w:gz", compresslevel=1) as tar:
        large = tarfile.TarInfo("large")
        large.size = 2**25
        tar.addfile(large, io.BytesIO(bytes(large.size)))
    clock = itertools.count()  # each look takes a second
    monkeypatch.setattr(archives, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(archives, "MOST_SECONDS", 10.0)
    with pytest.raises(ConfigurationError, match="is not fetched after 10 s"):
        archives.extract(tmp_path / "large.tar.gz", tmp_path, "here", inside=inside)


def test_headers_count_as_bytes_of_a_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = member("marks", b"300000 a=".ljust(299_999, b"x") + b"\n", type=tarfile.XGLTYPE)[:-1024]
    (tmp_path / "a.tar").write_bytes(header + member("etc"))
    monkeypatch.setattr(archives, "MOST_BYTES", 200_000)
    with pytest.raises(ConfigurationError, match="which is too much for models"):
        archives.extract(tmp_path / "a.tar", tmp_path, "here", inside="models")


def test_the_digest_of_an_address_is_compared_before_the_archive_is_read(web: Web, tmp_path: Path) -> None:
    web.files["models.tar"] = b"no archive"
    with pytest.raises(VerificationError, match="which is not the expected one"):
        cache.fetch(f"{url(web)}#sha256={'0' * 64}", tmp_path / "cache")


@pytest.mark.parametrize("depth", [40, 1900])
def test_an_archive_of_very_deep_folders_is_refused(web: Web, tmp_path: Path, depth: int) -> None:
    with tarfile.open(tmp_path / "models.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a/" * depth + "manifest.json"))
    web.files["models.tar"] = (tmp_path / "models.tar").read_bytes()
    with pytest.raises(ConfigurationError, match="or too deep"):
        cache.fetch(url(web), tmp_path / "cache")
    assert [*(tmp_path / "cache").rglob("stage-*")] == []


@pytest.mark.long
def test_the_members_of_an_archive_are_not_kept_in_the_memory(tmp_path: Path) -> None:
    (tmp_path / "many.tar").write_bytes(member("folder", b"", type=tarfile.DIRTYPE)[:512] * 5000 + bytes(1024))
    (tmp_path / "folder").mkdir()
    tracemalloc.start()
    try:
        archives.extract(tmp_path / "many.tar", tmp_path / "folder", "here")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [408, 429])
def test_a_store_that_asks_to_come_back_later_is_one_without_an_answer(
    web: Web, models: Path, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    copy = cache.fetch(url(web), tmp_path / "cache")
    web.faults["models.tar"] = Answer(status)
    assert cache.fetch(url(web), tmp_path / "cache") == copy
    assert f"the store answers {status}" in caplog.text


def test_without_an_etag_and_a_date_an_archive_of_the_same_size_is_fetched_again(
    web: Web, models: Path, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        body = archive_of(models / "vowels" / version, tmp_path / "models.tar")
        web.faults["models.tar"] = Answer(body=body.ljust(2**22, b"\0"))
        assert versions_in(cache.fetch(url(web), tmp_path / "cache")) == {f"vowels/{version}"}


def test_an_archive_of_very_many_files_is_refused(
    web: Web, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    with pytest.raises(ConfigurationError, match="more than 3 files"):
        cache.fetch(url(web), tmp_path / "cache")


def test_a_full_disk_is_said_and_leaves_nothing_behind(
    web: Web, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", write)
    with pytest.raises(ConfigurationError, match=r"cannot be stored in the cache .*: No space left on device"):
        cache.fetch(url(web), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_said(web: Web, models: Path, tmp_path: Path) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be stored in the cache .*: Not a directory"):
        cache.fetch(url(web), tmp_path / "file")


def test_a_cache_may_be_a_link_to_another_disk(web: Web, models: Path, tmp_path: Path) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert versions_in(cache.fetch(url(web), tmp_path / "link")) == {"vowels/1", "vowels/2"}


@pytest.mark.long
@pytest.mark.process
def test_processes_that_share_a_cache_fetch_at_once_and_all_have_the_models(
    web: Web, models: Path, tmp_path: Path
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    web.files["other.tar"] = archive_of(models, tmp_path / "other.tar", "w:gz")  # the same versions at another address
    program = (
        "import sys; from pathlib import Path; from lengthwise.stores import cache; "
        "print(cache.fetch(sys.argv[1], Path(sys.argv[2])))"
    )

    def fetch(name: str) -> str:
        command = [sys.executable, "-c", program, url(web, name), str(tmp_path / "cache")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(4) as threads:
        copies = {*threads.map(fetch, ("models.tar", "other.tar") * 2)}
    assert len(copies) == 1
    assert versions_in(Path(copies.pop())) == {"vowels/1", "vowels/2"}


def test_the_log_has_what_was_fetched_and_no_signature(
    web: Web, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    caplog.set_level(logging.DEBUG)
    cache.fetch(f"{url(web)}?X-Amz-Signature=secret", tmp_path / "cache")
    assert f"fetched {url(web)} in" in caplog.text
    assert files.digest(tmp_path / "models.tar") in caplog.text
    assert "secret" not in caplog.text + "".join(path.read_text() for path in (tmp_path / "cache").rglob("copy.json"))


@pytest.mark.long
@pytest.mark.process
def test_a_redirect_from_https_to_http_is_not_followed(web: Web, models: Path, tmp_path: Path) -> None:
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    authority = trustme.CA()
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(certificate)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    secure = Web(**{"good.tar": web.files["models.tar"]})
    secure.faults["led.tar"] = Answer(302, headers={"location": url(web)})
    program = (
        "import sys; from pathlib import Path; from lengthwise.stores import cache; "
        "print(cache.fetch(sys.argv[1], Path(sys.argv[2])))"
    )
    with running(StandIn(secure, certificate)) as server:
        good, led = (
            subprocess.run(
                [sys.executable, "-c", program, f"{server.url}/{name}", str(tmp_path / "cache")],
                capture_output=True,
                text=True,
                env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
                check=False,
            )
            for name in ("good.tar", "led.tar")
        )
    assert good.returncode == 0, good.stderr
    assert led.returncode == 1
    assert "no answer of the store" in led.stderr
    assert web.server.calls == []
