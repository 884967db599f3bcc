"""The monitoring: what samples answered calls gets each of them once, and survives every error."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthwise.batching.batcher import Batcher
from lengthwise.datasets import dataset
from lengthwise.decoding.calls import Item
from lengthwise.errors import ConfigurationError, RecordError
from lengthwise.monitoring import monitoring, record_file, recorded
from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.monitoring.monitoring import ConsumerThread
from lengthwise.monitoring.record_file import PATTERN
from lengthwise.monitoring.recorder import FILE_SECONDS, Recorder
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Promise
from lengthwise.runtime.session import CPU_LABEL
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.used_metrics import page_of
from tests.support.waiting import until

PATIENCE_SECONDS = 180.0
BODY = {"sequences": [{"id": "a", "steps": [[1, 3], [2, 2]]}, [[1, 1]]]}


def number(service: Service, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    total = 0.0
    for line in page_of(service.serving.metrics).decode().splitlines():
        if line.startswith(f"lengthwise_{name}") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def answered(steps: Any = ((1.0, 2.0),), *, id: str | None = None, version: int = 1) -> AnsweredCall:
    array = np.array(steps, dtype=np.float32)
    served: Any = SimpleNamespace(manifest=manifest(version=version))
    answer = Answer(np.array([0.2, 0.5, 0.3], dtype=np.float32), 1)
    return AnsweredCall(served, (Item(array, len(array), id=id),), (answer,), "r1", 1e9, 0.001, 0.002, array.nbytes)


class Counting(Consumer):
    """A consumer that counts; it may fail, or wait for an event."""

    name = "counting"
    share = 1.0

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.seen = 0
        self.closed = False
        self._before = before

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        self._before()
        self.seen += len(calls)

    def close(self) -> None:
        self.closed = True


class TestBuffers:
    def test_a_full_buffer_drops_and_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitoring, "MOST_CALLS", 3)
        buffer = ConsumerThread(Counting())
        for _ in range(5):
            buffer.offer(answered())
        assert (len(buffer), buffer.dropped) == (3, 2)

    def test_its_bytes_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitoring, "MOST_BYTES", 100)
        buffer = ConsumerThread(Counting(), lambda: True)
        for _ in range(4):
            buffer.offer(answered([[1.0, 2.0]] * 5))  # 40 bytes each
        assert (len(buffer), buffer.dropped) == (2, 2)
        assert buffer.consume()
        buffer.offer(answered([[1.0, 2.0]] * 5))
        assert (len(buffer), buffer.dropped) == (2, 2)

    def test_a_share_is_sampled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitoring, "MOST_CALLS", 10_000)
        consumer = Counting()
        consumer.share = 0.25
        buffer = ConsumerThread(consumer)
        for _ in range(8000):
            buffer.offer(answered())
        assert 1600 < len(buffer) < 2400  # 10 deviations from the mean on either side

    def test_an_error_of_a_consumer_is_logged_and_its_thread_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        fails = threading.Event()
        fails.set()

        def before() -> None:
            if fails.is_set():
                fails.clear()
                raise RuntimeError("broken")

        consumer = Counting(before)
        thread = ConsumerThread(consumer)
        thread.offer(answered())
        thread.consume()
        thread.start()
        for _ in range(2):
            thread.offer(answered())
        thread.stop(PATIENCE_SECONDS)
        assert (consumer.seen, thread.dropped, consumer.closed) == (2, 1, True)
        assert "could not be used for counting" in caplog.text

    def test_a_thread_without_calls_sleeps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitoring, "PERIOD_SECONDS", 0.001)
        looked, thread = threading.Event(), ConsumerThread(Counting())
        monkeypatch.setattr(thread, "consume", looked.set)
        thread.start()
        assert not looked.wait(0.1)
        thread.offer(answered())
        assert looked.wait(PATIENCE_SECONDS)
        thread.stop(PATIENCE_SECONDS)


class FullDisk:
    """Lets the recorder's files have no room while it is full."""

    def __init__(self) -> None:
        self.is_full = False

    def write(self, descriptor: int, data: bytes) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[: 1 + len(data) // 2])  # a part of it, as a disk that gets full may


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk()
    monkeypatch.setattr(record_file, "write", disk.write)
    return disk


class TestRecorder:
    def test_what_is_recorded_can_be_read_as_data(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        recorder.consume([answered([[1.0, np.nan], [3.0, 4.0]], id="x"), answered()])
        assert not list(tmp_path.glob("record-*"))  # half a file is never seen
        recorder.close()
        (path,) = tmp_path.glob("record-*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert [row["id"] for row in rows] == ["x", "r1/0"]
        assert rows[0]["answer"] == ["b"]
        assert rows[0]["arrived"].timestamp() == 1e9
        assert rows[0]["length"] == 2
        first, second = dataset.read(path)
        assert np.array_equal(first.steps, np.array([[1, np.nan], [3, 4]], dtype=np.float32), equal_nan=True)
        assert second.steps.tolist() == [[1, 2]]

    def test_files_are_rotated_and_the_oldest_removed(self, tmp_path: Path) -> None:
        now = [0.0]
        recorder = Recorder(tmp_path, 1.0, 2**20, clock=lambda: now[0])
        random = np.random.default_rng(0)
        for _ in range(6):
            recorder.consume([answered(random.normal(size=(30_000, 2))) for _ in range(2)])  # some 450 KB compressed
            now[0] += 1000
            recorder.consume([])
        files = sorted(tmp_path.glob("record-*.parquet"))
        assert 1 <= len(files) < 6
        assert sum(path.stat().st_size for path in files) <= 2**20
        assert recorder_figure(recorder, "recorded_sequences") == 12

    def test_the_metrics_do_not_look_into_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**20)
        recorder.consume([answered()])
        recorder.close()
        (path,) = tmp_path.glob("record-*.parquet")
        size = path.stat().st_size
        again = Recorder(tmp_path, 1.0, 2**20)
        monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("many files would keep the event loop busy"))
        assert recorder_figure(recorder, "record_bytes") == recorder_figure(again, "record_bytes") == size

    def test_a_folder_that_cannot_be_written_any_more_loses_records_only(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = [0.0]
        folder = tmp_path / "records"
        recorder = Recorder(folder, 1.0, 2**30, clock=lambda: now[0])
        folder.rmdir()
        folder.write_text("")  # as hard to write into for root as for anyone
        recorder.consume([answered()])
        recorder.consume([answered()])  # while it pauses
        assert recorder_figure(recorder, "record_lost_sequences") == 2
        assert "cannot be written" in caplog.text
        folder.unlink()
        folder.mkdir()
        now[0] += 60
        recorder.consume([answered()])
        recorder.close()
        assert recorder_figure(recorder, "recorded_sequences") == 1

    @pytest.mark.parametrize("is_open", [False, True])
    def test_a_folder_that_was_removed_is_made_again(self, tmp_path: Path, is_open: bool) -> None:
        now = [0.0]
        folder = tmp_path / "all" / "records"
        recorder = Recorder(folder, 1.0, 2**30, clock=lambda: now[0])
        if is_open:
            recorder.consume([answered()])
        shutil.rmtree(tmp_path / "all")
        for _ in range(2):
            now[0] += FILE_SECONDS
            recorder.consume([answered()])
        now[0] += FILE_SECONDS
        recorder.consume([answered(id="later")])
        recorder.close()
        assert "later" in [row["id"] for path in folder.glob(PATTERN) for row in pq.read_table(path).to_pylist()]

    def test_no_file_is_larger_than_the_limit_not_the_newest_either(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**20)
        random = np.random.default_rng(0)
        recorder.consume([answered(random.normal(size=(2**19, 2)))])  # 4 MiB in one call
        recorder.consume([answered(random.normal(size=(2**15, 2)))])
        recorder.close()
        assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20
        assert recorder_figure(recorder, "record_lost_sequences") == 1
        assert recorder_figure(recorder, "recorded_sequences") == 1
        (tmp_path / "record-20990101T000000-1-000001-sums.parquet").write_bytes(bytes(2**21))
        Recorder(tmp_path, 1.0, 2**20)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20

    def test_what_has_no_room_on_the_disk_waits_for_it(self, tmp_path: Path, full_disk: FullDisk) -> None:
        now = [0.0]
        recorder = Recorder(tmp_path, 1.0, 2**30, clock=lambda: now[0])
        recorder.consume([answered(id="before")])
        full_disk.is_full = True
        recorder.consume([answered(np.zeros((20, 2)), id=str(number)) for number in range(600)])  # a row group
        now[0] += FILE_SECONDS
        recorder.consume([answered(id="old")])  # the file is old enough, and cannot be completed
        recorder.consume([answered(id="other")])  # in another file
        assert not list(tmp_path.glob("record-*"))
        full_disk.is_full = False
        recorder.consume([])
        (first,) = tmp_path.glob("record-*.parquet")
        recorder.close()
        assert pq.read_table(first).column("id").to_pylist() == ["before", *map(str, range(600)), "old"]
        assert recorder_figure(recorder, "record_lost_sequences") == 0
        assert recorder_figure(recorder, "recorded_sequences") == 603

    def test_what_waits_for_the_disk_is_bounded_and_the_rest_counted(
        self, tmp_path: Path, full_disk: FullDisk, caplog: pytest.LogCaptureFixture
    ) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        random = np.random.default_rng(0)
        full_disk.is_full = True
        for _ in range(4):
            recorder.consume([answered(random.normal(size=(2**17, 2))) for _ in range(8)])  # 8 MiB, hardly compressed
        assert 8 <= recorder_figure(recorder, "record_lost_sequences") <= 32
        assert "No space left" in caplog.text
        recorder.close()  # what waited is lost
        assert recorder_figure(recorder, "record_lost_sequences") == 32
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("process", [4194305, 1])  # above every id; and one that a container gives to each of its
    def test_incomplete_files_of_a_killed_process_are_removed(self, tmp_path: Path, process: int) -> None:
        abandoned = tmp_path / f".record-20260101T000000-{process}-000001-vowels.parquet.part"
        abandoned.touch()
        Recorder(tmp_path, 1.0, 2**30)
        assert not abandoned.exists()

    def test_the_open_file_of_another_process_stays(self, tmp_path: Path) -> None:
        first = Recorder(tmp_path, 1.0, 2**30)
        first.consume([answered()])
        (part,) = tmp_path.glob(".record-*.part")
        other = part.rename(part.with_name(part.name.replace(f"-{os.getpid()}-", "-4194305-")))  # as in a container
        Recorder(tmp_path, 1.0, 2**30)
        assert other.exists()
        other.rename(part)
        first.close()
        assert recorder_figure(first, "recorded_sequences") == 1

    def test_two_processes_with_one_id_do_not_write_into_one_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.strftime", lambda *_: "20260101T000000")
        first, second = Recorder(tmp_path, 1.0, 2**30), Recorder(tmp_path, 1.0, 2**30)
        first.consume([answered()])
        (part,) = tmp_path.glob(".record-*.part")
        number = int(part.name.split("-")[3])
        taken = part.with_name(part.name.replace(f"-{number:06d}-", f"-{number + 1:06d}-"))
        taken.write_text("another's")  # of a container where processes have the same ids
        second.consume([answered()])
        first.close()
        second.close()
        assert taken.read_text() == "another's"
        assert [pq.read_metadata(path).num_rows for path in tmp_path.glob("record-*.parquet")] == [1, 1]

    def test_an_id_that_is_half_a_character_is_recorded_as_it_was_written(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        recorder.consume([answered(id="\ud800"), answered(id="x")])
        recorder.close()
        (path,) = tmp_path.glob("record-*.parquet")
        assert pq.read_table(path).column("id").to_pylist() == ["\\ud800", "x"]

    def test_values_and_tokens_of_one_name_are_recorded_apart(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        tokens = manifest(vocabulary=9, version=2)
        call = answered()._replace(
            model=SimpleNamespace(manifest=tokens), items=(Item(np.array([1, 2], dtype=np.int64), 2),)
        )
        recorder.consume([answered(), call])
        recorder.close()
        assert recorder_figure(recorder, "recorded_sequences") == 2

    def test_records_of_a_model_with_names_are_read_by_them_with_joined_labels(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        named = answered([[1.0, 2.0]], id="x")._replace(model=SimpleNamespace(manifest=manifest(inputs=("ax", "ay"))))
        recorder.consume([named])
        recorder.close()
        (path,) = tmp_path.glob("record-*.parquet")
        recorded.join(tmp_path, {"x": "up"}, labelled := tmp_path / "labelled.parquet")
        for file in (path, labelled):
            assert next(dataset.read(file)).names == ("ax", "ay")
            turned = dataset.Reading(dataset.ColumnNames(inputs=("ay", "ax")))
            assert next(dataset.read(file, reading=turned)).steps.tolist() == [[2, 1]]
            with pytest.raises(RecordError, match="is no name of a feature; did you mean a_y"):
                next(dataset.read(file, reading=dataset.Reading(dataset.ColumnNames(inputs=("ax", "a_y")))))
            nameless = dataset.Reading(dataset.ColumnNames(inputs=()))
            assert next(dataset.read(file, reading=nameless)).steps.tolist() == [[1, 2]]

    def test_records_of_models_with_other_names_are_not_joined(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        recorder.consume(
            answered(id=id)._replace(model=SimpleNamespace(manifest=manifest(inputs=inputs)))
            for id, inputs in (("x", ("ax", "ay")), ("y", ("ay", "ax")))
        )
        recorder.close()
        with pytest.raises(ConfigurationError, match="join those of one model"):
            recorded.join(tmp_path, {"x": "up", "y": "up"}, tmp_path / "labelled.parquet")

    @pytest.mark.parametrize("names", [b"5", b'["a"]', b'["a", "b", "c"]', b"{", b"null"])
    def test_names_in_a_file_that_do_not_fit_its_steps_are_none(self, tmp_path: Path, names: bytes) -> None:
        table = pa.table({"steps": [[[1.0, 2.0]]]}).replace_schema_metadata({b"lengthwise.names": names})
        pq.write_table(table, path := tmp_path / "a.parquet")
        if names == b"{":
            with pytest.raises(ConfigurationError, match="cannot be read as Parquet"):
                next(dataset.read(path))
        else:
            assert next(dataset.read(path)).names is None

    @pytest.mark.long
    def test_what_waits_in_memory_is_bounded_in_bytes(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path, 1.0, 2**30)
        steps = np.random.default_rng(0).normal(size=(2**20, 2))  # 8 MiB as float32
        recorder.consume([answered(steps)])
        (part,) = tmp_path.glob(".record-*.part")
        assert part.stat().st_size > 2**20
        recorder.close()

    def test_a_file_that_cannot_be_completed_is_counted_as_lost_and_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        recorder = Recorder(tmp_path, 1.0, 2**30, clock=lambda: now[0])
        recorder.consume([answered()] * 3)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
            now[0] += 1000
            recorder.consume([])
        assert recorder_figure(recorder, "record_lost_sequences") == 3
        now[0] += 1000
        recorder.consume([answered()])
        recorder.close()
        assert recorder_figure(recorder, "recorded_sequences") == 1

    def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError):
            Recorder(tmp_path / "file" / "records", 1.0, 2**30)


def recorder_figure(recorder: Recorder, name: str) -> float:
    return next(family.samples[0][1] for family in recorder.families() if family.name == name)


class TestInAService:
    async def test_a_service_records_what_it_answers(self, tmp_path: Path) -> None:
        async with serving(model(manifest()), record=tmp_path, record_share=1) as service:
            for _ in range(3):
                assert (await service.predict(BODY, x_request_id="q7")).status_code == 200
            assert (await service.predict({"sequences": [[["x"]]]})).status_code == 422
        (path,) = tmp_path.glob("record-*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert [row["id"] for row in rows] == ["a", "q7/1"] * 3
        assert {row["request"] for row in rows} == {"q7"}

    async def test_right_answers_are_verified_and_no_mismatch_is_counted(self) -> None:
        kept = manifest(promises=(Promise(provider=CPU_LABEL, bits=True, tolerance=0),))
        async with serving(bound(kept), verify_share=1) as service:
            for _ in range(5):
                await service.predict(BODY)
            await until(lambda: number(service, "verified_answers_total") == 5)
            assert number(service, "verify_mismatches_total") == 0

    async def test_nothing_is_rerun_while_callers_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks: list[int] = []
        monkeypatch.setattr(Batcher, "at_rest", property(lambda _: looks.append(1)))
        async with serving(bound(manifest()), verify_share=1) as service:
            await service.predict(BODY)
            await until(lambda: len(looks) > 3)
            assert number(service, "verified_answers_total") == 0
            monkeypatch.setattr(Batcher, "at_rest", True)
            await until(lambda: number(service, "verified_answers_total") == 1)

    async def test_an_answer_that_is_another_one_alone_is_counted_and_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        runs: list[int] = []

        def change(batch: Any) -> None:
            runs.append(1)
            if len(runs) > 1:
                batch.steps[...] += 1

        async with serving(bound(manifest(), change), verify_share=1) as service:
            await service.predict(BODY, x_request_id="wrong-1")
            await until(lambda: number(service, "verify_mismatches_total") == 1)
        assert "wrong-1" in caplog.text


def bound(its: Any, before: Callable[[Any], None] = lambda _: None, **costs: Any) -> Any:
    """A model whose session says that it runs on the CPU, so that it may be run beside the runners."""
    made = model(its, before, **costs)
    made.session.bound = False  # type: ignore[misc]
    return made
