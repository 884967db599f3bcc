"""Models come, go and change while requests come in: each is answered once, by the model that it was read for."""

import asyncio
import json
import logging
import random
import shutil
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.application.app import Application
from lengthwise.application.gate import NO_LIFESPAN
from lengthwise.decoding import json_body
from lengthwise.errors import ConfigurationError, NotVerified
from lengthwise.repository import folder as repository_folder
from lengthwise.repository import loading, registry, verifier
from lengthwise.repository.contents import Repository
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise.telemetry import metrics
from tests.support import server_process
from tests.support.model_directories import measure_quickly, place, sign, tamper_with_golden
from tests.support.numpy_models import Service, held_batch, idle, manifest, model, started

PATIENCE_SECONDS = 180.0
RUN_SECONDS = 0.002
"""Of a batch of a flooded model: long enough for the flood to wait in."""
STEPS = [[0.5] * 12] * 3
BODY = {"sequences": [STEPS]}
SUMS = {"sequences": [[[1, 2]]], "model": "sums"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    measure_quickly(monkeypatch)
    place(tmp_path / "models")
    return tmp_path / "models"


def served_from(folder: Path, **options: Any) -> Any:
    """A service of a repository on disk."""
    return started(
        Serving(Settings(**{"runners": 1, "models": folder, "admin_calls": True} | options), verify=verifier.verify)
    )


async def call(service: Service, name: str, change: str, body: Any = None) -> httpx2.Response:
    """Has a model loaded or unloaded."""
    return await service.client.post(f"/v2/repository/models/{name}/{change}", json=body)


async def version(service: Service, body: Any = BODY) -> str:
    """Which version answers."""
    answer = await service.predict(body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


async def index(service: Service) -> dict[str, tuple[str, str]]:
    """The repository's index: state and reason."""
    entries = (await service.client.post("/v2/repository/index")).json()
    return {f"{entry['name']}/{entry['version']}": (entry["state"], entry["reason"]) for entry in entries}


class Next:
    """A repository whose next content is said by the test."""

    def __init__(self, *models: LoadedModel) -> None:
        self.models = models
        self.before: Callable[[], None] = lambda: None
        self.scans = 0

    def __call__(self, *_: object) -> Repository:
        self.scans += 1
        self.before()
        return Repository.of(self.models)


# Load and unload, by call


async def test_a_new_version_answers_once_it_is_loaded(folder: Path) -> None:
    async with served_from(folder) as service:
        place(folder, version=2)
        assert await version(service) == "1"
        answer = await call(service, "vowels", "load")
        assert (answer.status_code, answer.json()) == (200, {})
        assert await version(service) == "2"
        assert (await service.predict(BODY | {"version": "1"})).status_code == 404
        figures = await service.figures()
    assert figures['lengthwise_ready{model="vowels",version="2"}'] == 1
    assert 'lengthwise_ready{model="vowels",version="1"}' not in figures
    assert [name for name in figures if name.startswith("lengthwise_model_info") and 'version="1"' in name] == []
    assert figures['lengthwise_requests_total{code="200",key="-",model="vowels",version="1"}'] == 1


async def test_an_unloaded_model_is_not_found_until_it_is_loaded_again(folder: Path) -> None:
    place(folder, "consonants")
    async with served_from(folder) as service:
        named = BODY | {"model": "vowels"}
        parameters = {"parameters": {"unload_dependents": False}}
        for _ in range(2):
            assert (await call(service, "vowels", "unload", parameters)).status_code == 200
        assert (await service.predict(named)).status_code == 404
        await service.serving.registry.refresh()
        assert (await service.predict(named)).status_code == 404
        assert await index(service) == {"consonants/1": ("READY", ""), "vowels/": ("UNAVAILABLE", "unloaded")}
        assert (await service.client.get("/readyz")).status_code == 200
        await call(service, "consonants", "unload")
        why = "unloaded, until a client loads them again, are consonants, vowels"
        for answer in (await service.client.get("/readyz"), await service.predict(BODY)):
            assert (answer.status_code, answer.json()["detail"]) == (503, f"no model is ready: {why}")
        assert (await service.client.get("/healthz")).json()["reason"] == why
        await call(service, "consonants", "load")
        assert (await service.client.get("/readyz")).status_code == 200
        assert (await call(service, "vowels", "load", {})).status_code == 200
        assert await version(service, named) == "1"
        assert await index(service) == {"consonants/1": ("READY", ""), "vowels/1": ("READY", "")}


@pytest.mark.long
async def test_a_second_name_is_warned_of_as_calls_that_name_none_are_then_not_found(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_from(folder) as service:
        assert (await service.predict(BODY)).status_code == 200
        assert "404" not in caplog.text
        place(folder, "others")
        await call(service, "others", "load")
        assert (await service.predict(BODY)).status_code == 404
    (warned,) = [record for record in caplog.records if record.levelname == "WARNING" and "404" in record.message]
    assert "others, vowels" in warned.message or "vowels, others" in warned.message


@pytest.mark.long
async def test_a_name_in_the_place_of_another_is_not_taken_for_a_second_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_from(folder) as service:
        shutil.rmtree(folder / "vowels")
        place(folder, "others")
        await service.serving.registry.refresh()
        assert (await service.predict(BODY)).json()["model"] == "others"
    assert "several models" not in caplog.text


async def test_a_version_that_fails_its_proof_is_refused_and_the_old_one_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_from(folder) as service:
        tamper_with_golden(place(folder, version=2))
        for _ in range(2):  # asked for by name, it is verified again
            answer = await call(service, "vowels", "load")
            assert answer.status_code == 400
            assert "vowels/2 is not served: " in answer.json()["error"]
            assert "differs from its stored logits" in answer.json()["error"]
            assert str(folder) not in answer.text
        assert await version(service) == "1"
        state, reason = (await index(service))["vowels/2"]
        assert state == "UNAVAILABLE"
        assert "differs from its stored logits" in reason
        (refused,) = (await service.client.get("/healthz")).json()["refused"]
        assert refused["model"] == "vowels/2"
        assert (await service.figures())["lengthwise_refused_models"] == 1
    assert "vowels/2 is not served" in caplog.text


async def test_the_index_says_what_became_of_a_version_that_was_replaced_by_a_bad_one(folder: Path) -> None:
    async with served_from(folder) as service:
        (folder / "vowels" / "1" / GRAPH_FILE).write_bytes(b"")
        assert (await call(service, "vowels", "load")).status_code == 400
        assert await version(service) == "1"
        state, reason = (await index(service))["vowels/1"]
    assert state == "READY"
    assert reason.startswith("the files that replaced it are not served: vowels/1: model.onnx is not the file")


async def test_a_change_that_cannot_be_made_is_refused_and_changes_nothing(folder: Path) -> None:
    async with served_from(folder) as service:
        for name, change, body, status, said in (
            ("none", "load", None, 404, "no version of such a model"),
            ("none", "unload", None, 404, "no such model"),
            ("..%2Fvowels", "load", None, 404, ""),
            ("vowels", "load", {"parameters": {"config": "{}"}}, 400, "/parameters/config: is not accepted"),
            ("vowels", "load", {"parameters": {"unload_dependents": True}}, 400, "is not accepted"),
            ("vowels", "unload", {"parameters": {"file:1/model.onnx": "AAAA"}}, 400, "is not accepted"),
            ("vowels", "load", {"parameters": 1}, 400, "the body must be empty, or"),
            ("vowels", "unload", [], 400, "the body must be empty, or"),
        ):
            answer = await call(service, name, change, body)
            assert answer.status_code == status
            assert said in answer.json()["error"]
            assert await version(service) == "1"


async def test_changes_are_refused_before_the_start_and_in_a_drain(folder: Path) -> None:
    serving = Serving(Settings(runners=1, models=folder, admin_calls=True), verify=verifier.verify)
    transport = httpx2.ASGITransport(Application(serving))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.post("/v2/repository/models/vowels/load")
        assert (answer.status_code, answer.json()) == (503, {"error": NO_LIFESPAN})
    async with started(serving) as service:
        serving.batcher.begin_draining()
        answer = await call(service, "vowels", "unload")
        assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})


async def test_memory_of_a_version_that_is_gone_is_given_back_by_the_next_scan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(registry, "return_free_memory", lambda: given_back.append(threading.current_thread().name))
    async with served_from(folder) as service:
        place(folder, version=2)
        await call(service, "vowels", "load")
        assert given_back == []  # no version is gone yet, or its last requests may still run
        await call(service, "vowels", "load")
        await call(service, "vowels", "load")
        assert given_back == ["rescan"]


# Without a call


def changed(service: Service) -> asyncio.Event:
    """Set at the next change."""
    event = asyncio.Event()

    async def listen() -> None:
        event.set()

    service.serving.registry.listeners.append(listen)
    return event


@pytest.mark.long
async def test_the_folder_is_looked_at_once_in_a_period(folder: Path) -> None:
    async with served_from(folder, reload_seconds=0.01) as service:
        place(folder, version=2)
        while await version(service) == "1":
            await asyncio.wait_for(changed(service).wait(), PATIENCE_SECONDS)
        shutil.rmtree(folder / "vowels" / "2")
        while await version(service) == "2":
            await asyncio.wait_for(changed(service).wait(), PATIENCE_SECONDS)
        assert idle(await service.figures())


async def test_what_could_not_be_verified_is_tried_again_when_somebody_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, read, scans, tries = loading.load, repository_folder.read, asyncio.Semaphore(0), asyncio.Semaphore(0)

    def lacking_memory(directory: Path, *arguments: Any, **options: Any) -> LoadedModel:
        if directory.name == "1":
            return load(directory, *arguments, **options)
        loop.call_soon_threadsafe(tries.release)
        raise NotVerified("vowels/2: CUDA failure 2: out of memory")

    def counted(path: Path) -> Any:
        loop.call_soon_threadsafe(scans.release)
        return read(path)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loading, "load", lacking_memory)
    monkeypatch.setattr(repository_folder, "read", counted)
    async with asyncio.timeout(PATIENCE_SECONDS), served_from(folder, reload_seconds=0.01) as service:
        place(folder.parent / "made", version=2).rename(folder / "vowels/2")  # at once: each change would be a try
        for _ in range(2):
            await tries.acquire()
            for _ in range(20):
                await scans.acquire()
            assert tries.locked(), "in the period"
            service.serving.registry.scan_soon()
        await tries.acquire()
        assert await version(service) == "1"


async def test_the_folder_is_looked_at_when_somebody_asks_and_not_before() -> None:
    found = Next(model(manifest()))
    serving = Serving(Settings(runners=1), found)
    serving.registry.scan_soon()  # before the start it does nothing
    async with started(serving) as service:
        assert found.scans == 1
        found.models = (model(manifest(version=2)),)
        change = changed(service)
        service.serving.registry.scan_soon()
        await asyncio.wait_for(change.wait(), PATIENCE_SECONDS)
        assert await version(service, SUMS) == "2"
        assert found.scans == 2
    service.serving.registry.scan_soon()  # the end has come: nothing happens


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigurationError("the folder cannot be read"), "the folder cannot be read"),
        (MemoryError(), "could not be scanned"),
    ],
)
async def test_a_look_that_fails_is_not_the_last(error: Exception, said: str, caplog: pytest.LogCaptureFixture) -> None:
    found = Next(model(manifest()))

    def fail() -> None:
        found.before = lambda: None
        raise error

    async with started(Serving(Settings(runners=1, reload_seconds=0.01), found)) as service:
        found.before = fail
        while found.before is fail:
            await asyncio.wait_for(changed(service).wait(), PATIENCE_SECONDS)
        found.models = (model(manifest(version=2)),)
        while await version(service, SUMS) == "1":
            await asyncio.wait_for(changed(service).wait(), PATIENCE_SECONDS)
    assert f"{said}" in caplog.text
    assert "the served models stay" in caplog.text


@pytest.mark.parametrize("error", [ConfigurationError("cannot be read"), RuntimeError("odd"), MemoryError()])
async def test_a_load_whose_look_fails_is_refused_in_the_protocols_form(error: Exception) -> None:
    found = Next(model(manifest()))

    def fail() -> None:
        raise error

    async with started(Serving(Settings(runners=1, admin_calls=True), found)) as service:
        found.before = fail
        answer = await call(service, "sums", "load")
        assert (answer.status_code, answer.json()) == (503, {"error": "the model repository cannot be read"})
        assert await version(service, SUMS) == "1"


@pytest.mark.parametrize(
    ("error", "said"),
    [(ConfigurationError("m.tar is still being fetched"), "m.tar is still"), (MemoryError(), "could not be scanned")],
)
async def test_health_says_why_the_last_look_failed_until_one_does_not(error: Exception, said: str) -> None:
    found = Next(model(manifest()))

    def fail() -> None:
        raise error

    async with started(Serving(Settings(runners=1, admin_calls=True), found)) as service:

        async def problem() -> str | None:
            text: str | None = (await service.client.get("/healthz")).json()["scan_problem"]
            return text

        assert await problem() is None
        found.before = fail
        await call(service, "sums", "load")
        assert said in str(await problem())
        found.before = lambda: None
        await call(service, "sums", "load")
        assert await problem() is None


@pytest.mark.parametrize("leaves", [False, True])
async def test_the_end_of_the_service_ends_a_look_and_waits_for_none(leaves: bool) -> None:
    looking, ended = threading.Event(), threading.Event()
    found = Next(model(manifest()))
    serving = Serving(Settings(runners=1, admin_calls=True), found)

    def look() -> None:
        looking.set()
        with serving.registry.stopping.ending(ended.set):
            assert ended.wait(PATIENCE_SECONDS)
        if not leaves:
            serving.registry.stopping.check()

    async with started(serving) as service:
        found.before, found.models = look, (model(manifest(version=2)),)
        loading = asyncio.create_task(call(service, "sums", "load"))
        assert await asyncio.to_thread(looking.wait, PATIENCE_SECONDS)
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "rescan"] == [True]
        if leaves:
            loading.cancel()
        await serving.stop()
        if not leaves:
            answer = await loading
            assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
        for _ in range(20):
            await asyncio.sleep(0.01)
        # A scan that is over after the end adds nothing to a service that is stopping.
        assert [served.manifest.version for served in serving.served] == [1]


# What is under way


class OneLook:
    """Waits in each scan until it may go on, and notes how many run at the same time."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.running = self.most = self.ended = 0

    def __call__(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.release()
        assert self.go_on.acquire(timeout=PATIENCE_SECONDS)
        self.running -= 1
        self.ended += 1

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("next_change", ["load", "refresh"])
async def test_a_load_whose_client_leaves_goes_on_alone_and_the_next_one_waits_for_it(next_change: str) -> None:
    look, found = OneLook(), Next(model(manifest()))
    async with started(Serving(Settings(runners=1), found)) as service:
        registry = service.serving.registry
        found.before, found.models = look, (model(manifest(version=2)),)
        left = asyncio.create_task(registry.load("sums"))
        await look.reached()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        following = asyncio.create_task(registry.load("sums") if next_change == "load" else registry.refresh())
        waiting = asyncio.create_task(registry.load("sums"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (look.running, look.most) == (1, 1)
        waiting.cancel()  # it had not begun: it asks for no scan of its own
        look.go_on.release()
        await look.reached()
        assert await version(service, SUMS) == "2"  # what the client that left had asked for
        look.go_on.release()
        await following
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (look.most, look.ended) == (1, 2)
        found.before = lambda: None
        assert await registry.load("sums") is None


async def test_requests_in_flight_finish_on_the_old_version_while_the_new_one_answers() -> None:
    release, entered, wait = held_batch()
    found = Next(model(manifest(), wait))
    async with started(Serving(Settings(runners=3), found)) as service:
        first = asyncio.create_task(version(service, SUMS))
        await entered.wait()
        second = asyncio.create_task(version(service, SUMS))
        running = 'lengthwise_inflight_batches{model="sums",version="1"}'
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await service.figures())[running] < 2:
                await asyncio.sleep(0)  # a request within the process gives nobody else a turn
        found.models = (model(manifest(version=2)),)
        await service.serving.registry.refresh()
        assert await version(service, SUMS) == "2"
        gauges = await service.figures()
        assert gauges['lengthwise_ready{model="sums",version="1"}'] == 0
        assert gauges[running] == 2
        release.set()
        assert await asyncio.gather(first, second) == ["1", "1"]
        assert await version(service, SUMS) == "2"
        figures = await service.figures()
        assert len(service.serving.batcher.queues) == 1
    assert idle(figures)
    assert 'lengthwise_ready{model="sums",version="1"}' not in figures


async def test_a_call_that_was_read_before_a_change_gets_the_model_before_it() -> None:
    found = Next(model(manifest()))
    async with started(Serving(Settings(runners=1), found)) as service:
        read = json_body.decode(b'{"sequences": [[[1, 2]]]}', service.serving.find, max_sequences=10)
        found.models = (model(manifest(version=2)),)
        await service.serving.registry.refresh()
        pending = service.serving.submit(
            read, [item.steps for item in read.items], lambda results, _: read.model.manifest.key, arrived=float("inf")
        )
        assert await pending.future == "sums/1"
        assert len(service.serving.batcher.queues) == 1


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", ["replaced", "unloaded", "vanished"])
async def test_the_memory_of_a_model_is_freed_with_its_last_request(folder: Path, change: str) -> None:
    async with served_from(folder, runners=2) as service:
        await asyncio.gather(*(version(service) for _ in range(20)))
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        (one,) = service.serving.repository
        watch = weakref.ref(one.session, lambda _: loop.call_soon_threadsafe(gone.set))
        del one
        if change == "replaced":
            place(folder, made={"note": "again"})
        elif change == "vanished":
            shutil.rmtree(folder / "vowels")
        if change == "unloaded":
            await call(service, "vowels", "unload")
        else:
            await service.serving.registry.refresh()
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)
        assert watch() is None


@pytest.mark.long
async def test_the_figures_of_a_version_that_is_replaced_in_place_go_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lengthwise")
    async with served_from(folder) as service:
        assert await version(service) == "1"
        place(folder, made={"note": "again"})
        await service.serving.registry.refresh()
        assert await version(service) == "1"
        figures = await service.figures()
    assert figures['lengthwise_requests_total{code="200",key="-",model="vowels",version="1"}'] == 2
    assert [value for name, value in figures.items() if name.startswith("lengthwise_model_info")] == [1]
    assert "vowels/1 is no longer served" in caplog.text


# Everything at once


@dataclass
class Tally:
    """What came of the requests of a chaos run."""

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def scaled(directory: Path, factor: int) -> None:
    """Gives a version labels of its own, so that an answer says which version made it."""
    labels = json.loads((directory / MANIFEST_FILE).read_text())["labels"]
    sign(directory, labels=[f"{label} of {factor}" for label in labels])


async def ask_until(service: Service, end: asyncio.Event, tally: Tally, body: dict[str, Any]) -> None:
    """One caller: asks again and again, and checks each answer against the version that it names."""
    while not end.is_set():
        await asyncio.sleep(0)  # a request within the process that is refused gives nobody else a turn
        tally.sent += 1
        answer = await service.predict(body)
        if answer.status_code != 200:
            tally.answered[str(answer.status_code)] += 1
            continue
        found = answer.json()
        tally.answered[found["version"]] += 1
        label = found["predictions"][0]["label"]
        if not label.endswith(f" of {found['version']}") or label not in found["labels"]:
            tally.wrong.append(f"{label} from version {found['version']}")


@pytest.mark.long
async def test_nothing_is_lost_while_versions_come_break_change_and_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "KEPT_GONE", 100)  # every call is counted somewhere, and here to the end
    random_ = random.Random(7)
    scaled(folder / "vowels" / "1", 1)
    scaled(place(folder, "steady"), 1)
    large = {
        "sequences": [[[0.123456789] * 12] * 3] * 200
    }  # decoded in a thread: versions change between its reading and its turn
    async with served_from(folder, runners=2, max_sequences=1000) as service:
        end, tally, steady = asyncio.Event(), Tally(), Tally()
        callers = [
            *(ask_until(service, end, tally, BODY | {"model": "vowels"}) for _ in range(4)),
            ask_until(service, end, tally, large | {"model": "vowels"}),
            ask_until(service, end, steady, BODY | {"model": "steady"}),
        ]
        tasks = [asyncio.create_task(caller) for caller in callers]
        present = [1]
        for number in range(2, 32):
            kind = random_.choice(["good", "good", "broken", "half", "vanish", "replace", "unload"])
            if kind in ("good", "broken", "half"):
                directory = await asyncio.to_thread(place, folder, "vowels", number)
                scaled(directory, number)
                if kind == "good":
                    present.append(number)
                elif kind == "broken":
                    tamper_with_golden(directory)
                else:
                    (directory / GRAPH_FILE).write_bytes(b"half")
            elif kind == "vanish" and len(present) > 1:
                shutil.rmtree(folder / "vowels" / str(present.pop()))
            elif kind == "replace":
                aside = folder / "vowels" / ".new"
                shutil.copytree(folder / "vowels" / str(present[-1]), aside)
                sign(aside, made={"number": number})
                shutil.rmtree(folder / "vowels" / str(present[-1]))
                aside.rename(folder / "vowels" / str(present[-1]))
            elif kind == "unload":
                assert (await call(service, "vowels", "unload")).status_code == 200
                loaded = await call(service, "vowels", "load")
                assert loaded.status_code in (200, 400), loaded.text  # 400 where the highest version is a broken one
            await service.serving.registry.refresh()
            found = service.serving.repository
            assert present[-1] in found.models.get("vowels", {}), (kind, present, sorted(found.states), found)
        end.set()
        await asyncio.gather(*tasks)
        figures = await service.figures()
        assert [queue.name for queue in service.serving.batcher.queues] == ["steady/1", f"vowels/{present[-1]}"]
    assert tally.wrong == steady.wrong == []
    assert tally.sent == tally.answered.total()
    assert set(tally.answered) - {"404"} > {"1"}, "the versions did change under load"
    assert all(int(code) < 100 or code == "404" for code in tally.answered)  # 404 only while it was unloaded by a call
    assert set(steady.answered) == {"1"}
    assert steady.sent == steady.answered["1"]
    requests = {name: value for name, value in figures.items() if name.startswith("lengthwise_requests_total")}
    assert sum(requests.values()) == tally.sent + steady.sent
    assert idle(figures)


@pytest.mark.long
async def test_sighup_has_the_folder_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    place(folder, timed=True)
    with server_process.started(str(folder), "--workers", "1") as server:
        place(folder, version=2, timed=True)
        server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(server.wait_for, "vowels/1 is no longer served")
        assert server.predict(BODY).json()["version"] == "2"
        assert server.process.poll() is None
