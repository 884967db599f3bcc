"""The live view: what a frame has, what it never has, how many may look, and that nobody who looks costs anybody."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from lengthwise.console import live as live_view
from lengthwise.console.live import MOST_BATCHES, MOST_LENGTHS, MOST_VIEWERS, LiveView, Viewer
from lengthwise.padding import PaddedBatch
from tests.support.http_lines import Line, Net, rest_of
from tests.support.numpy_models import Service, held_batch, manifest, model, serving
from tests.support.server_process import PATIENCE_SECONDS, started
from tests.support.waiting import until

DOCUMENT = Path(__file__).parents[2] / "docs" / "console.md"
SECRET = "a-name-that-no-viewer-may-see"


@asynccontextmanager
async def viewed(before: Any = None, **options: Any) -> AsyncIterator[tuple[Service, Viewer]]:
    """A service, and one who looks at it."""
    async with serving(model(manifest(), before) if before else model(manifest()), **options) as service:
        live = LiveView(service.serving.batcher)
        viewer = live.join()
        yield service, viewer
        live.leave(viewer)


async def frame_with(viewer: Viewer, what: str = "batches") -> dict[str, Any]:
    """The next frame that has some of that."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            data = await viewer.get()
            assert data is not None
            assert SECRET.encode() not in data
            assert b"0.123456" not in data
            frame: dict[str, Any] = orjson.loads(data)
            if frame[what]:
                return frame


def body(*lengths: int) -> dict[str, Any]:
    return {"sequences": [{"id": SECRET, "steps": [[0.123456, 3]] * length} for length in lengths]}


@pytest.mark.parametrize(("padding_cost", "computed"), [(0.0, 15), (1.0, 24)])
async def test_a_batch_is_shown_by_its_figures_and_nothing_of_a_caller(padding_cost: float, computed: int) -> None:
    async with viewed() as (service, viewer):
        service.serving.served[0].model.cost.padding_cost = padding_cost
        answer = await service.predict(body(3, 7, 5), x_request_id=SECRET, authorization=SECRET)
        assert answer.status_code == 200
        frame = await frame_with(viewer)
    (batch,) = frame["batches"]
    assert all(batch.pop(name) >= 0 for name in ("start", "predicted_seconds", "measured_seconds"))
    assert 0 < batch["seconds"] == pytest.approx(frame["busy_seconds"]["runner-0"])
    assert batch.pop("longest_wait_seconds") >= 0
    shape = {"rows": 3, "width": 8, "valid_steps": 15, "computed_steps": computed, "lengths": [7, 5, 3]}
    assert batch == {"model": "sums/1", "runner": "runner-0", "seconds": batch["seconds"], **shape}
    totals = {"batches": 1, "failed": 0, "rows": 3, "padded_steps": 24, "valid_steps": 15, "computed_steps": computed}
    assert {name: frame["totals"][name] for name in totals} == totals
    assert 0 < frame["latency_seconds"]["p50"] <= frame["latency_seconds"]["p99"]
    assert (frame["runners"], frame["viewers"]) == (1, 1)


async def test_the_document_describes_what_a_frame_has() -> None:
    text = DOCUMENT.read_text()
    async with viewed() as (service, viewer):
        await service.predict(body(3, 7))
        frame = await frame_with(viewer)
    named = set(re.findall(r"`(\w+)`", text[text.index("| field of a frame") : text.index("While nobody looks")]))
    assert {*frame, *frame["batches"][0]} - {"time", "seconds", "viewers", "start"} <= named
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (DOCUMENT.parent / picture).is_file()


async def test_a_failed_batch_is_shown_as_one() -> None:
    def fail(_: PaddedBatch) -> None:
        raise RuntimeError("as asked")

    async with viewed(fail) as (service, viewer):
        assert (await service.predict(body(3))).status_code == 500
        frame = await frame_with(viewer)
    assert frame["totals"]["failed"] == 1
    assert frame["batches"][0]["lengths"] is None


async def test_the_lengths_that_wait_are_shown_while_a_batch_runs() -> None:
    release, running, wait = held_batch()
    async with viewed(wait) as (service, viewer):
        first = asyncio.create_task(service.predict(body(2)))
        await running.wait()
        second = asyncio.create_task(service.predict(body(9, 4)))
        frame = await frame_with(viewer, "queue")
        release.set()
        assert [(await first).status_code, (await second).status_code] == [200, 200]
    assert frame["queue"] == [{"model": "sums/1", "sequences": 2, "lengths": [9, 4]}]
    (running_now,) = frame["running"]
    assert (running_now["runner"], running_now["rows"], running_now["width"]) == ("runner-0", 1, 2)


async def test_the_batcher_is_watched_only_while_somebody_looks(service: Service) -> None:
    execution = service.serving.batcher.execution
    live = LiveView(service.serving.batcher)
    assert execution.watch is None
    one, other = live.join(), live.join()
    assert execution.watch is not None
    live.leave(one)
    live.leave(one)
    assert execution.watch is not None
    live.leave(other)
    assert execution.watch is None
    assert live.viewers == 0
    assert await one.get() is None
    tasks = {task for task in asyncio.all_tasks() if "_make_frames" in repr(task.get_coro())}
    await asyncio.wait(tasks)
    again = live.join()
    await service.predict(body(2))
    assert (await frame_with(again))["totals"]["batches"] == 1
    live.leave(again)


async def test_a_slow_viewer_misses_frames_and_learns_how_many() -> None:
    viewer = Viewer(2)
    for frame in (b"1", b"2", b"3", b"4"):
        viewer.offer(frame)
    assert viewer.missed == 2
    assert [await viewer.get(), await viewer.get()] == [b"3", b"4"]


async def test_a_frame_is_bounded_however_much_runs() -> None:
    count = batches = 3 * MOST_BATCHES
    async with viewed(max_batch_rows=1) as (service, viewer):
        await service.predict(body(*[2] * count))
        while batches > 0:
            frame = await frame_with(viewer)
            assert len(frame["batches"]) <= MOST_BATCHES
            batches -= frame["totals"]["batches"]
    assert batches == 0


async def test_a_long_batch_shows_its_longest_rows() -> None:
    async with viewed(max_batch_rows=512) as (service, viewer):
        await service.predict(body(*range(1, MOST_LENGTHS + 41)))
        lengths = max((batch["rows"], batch["lengths"]) for batch in (await frame_with(viewer))["batches"])[1]
    assert len(lengths) <= MOST_LENGTHS
    assert lengths == sorted(lengths, reverse=True)


async def test_an_answer_has_the_same_bits_with_without_and_with_a_broken_view(service: Service) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("as asked")

    live = LiveView(service.serving.batcher)
    answers = [await service.predict(body(3, 7, 5))]
    viewer = live.join()
    answers.append(await service.predict(body(3, 7, 5)))
    live.leave(viewer)
    service.serving.batcher.execution.watch = broken
    answers.append(await service.predict(body(3, 7, 5)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    figures = await service.figures()
    assert figures['lengthwise_batch_rows_count{model="sums",version="1"}'] == 3


GET = b"GET /console/live HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_over_http_each_frame_is_an_event(service: Service, made: Net, line: Line) -> None:
    line.writer.write(GET)
    head = (await line.reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200")
    assert "content-type: text/event-stream\r\n" in head
    assert "cache-control: no-store\r\n" in head
    assert b": one event a frame\n\n" in await line.reader.readuntil(b"\n\n")
    event = (await line.reader.readuntil(b"\n\n")).decode().partition("\r\n")[2].partition("\r\n")[2]
    assert event.startswith("event: frame\ndata: {")
    assert event.endswith("}\n\n")
    line.writer.close()
    await until(lambda: service.serving.batcher.execution.watch is None)


async def test_a_question_for_the_head_of_the_view_has_an_end(service: Service) -> None:
    answer = await service.client.head("/console/live")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert service.serving.batcher.execution.watch is None


@pytest.mark.long
async def test_viewers_that_do_not_read_lose_their_slots_to_others(
    service: Service, made: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system of a viewer may take megabytes, so nothing tells that it does not read, but that it does not ask."""
    monkeypatch.setattr(live_view, "VIEW_SECONDS", 3)
    deaf = [await made.line() for _ in range(MOST_VIEWERS)]
    for line in deaf:
        line.writer.write(GET)
    name = "lengthwise_live_viewers"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await service.figures())[name] < MOST_VIEWERS:
            await asyncio.sleep(0)
        refused = await service.client.get("/console/live")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["content-type"] == "application/problem+json"
        assert (await service.predict(body(3))).status_code == 200
        while (await service.figures())[name]:
            await asyncio.sleep(0.01)
    last = await rest_of(deaf[0])
    assert last.endswith(b"event: end\ndata: renew\n\n\r\n0\r\n\r\n")


async def test_a_drain_ends_every_view(service: Service, made: Net, line: Line) -> None:
    line.writer.write(GET)
    await line.reader.readuntil(b"\r\n\r\n")
    service.serving.batcher.begin_draining()
    late = await made.line()
    late.writer.write(GET)
    for viewer in (line, late):
        assert b"event: end" in await rest_of(viewer)
    assert service.serving.batcher.execution.watch is None


@pytest.mark.long
@pytest.mark.process
def test_a_view_that_is_open_does_not_hold_the_end_of_the_process() -> None:
    with started("--runners", "1") as server, server.client.stream("GET", "/console/live") as stream:
        events = stream.iter_lines()
        assert any(line.startswith("data: {") for line in events)
        server.terminate()
        assert "event: end" in list(events)
        assert server.end() == 0
        assert "not answered within" not in server.text
