"""A version whose verification takes long keeps no good one waiting: at the start, and at a reload."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.application.app import Application
from lengthwise.errors import ModelError
from lengthwise.repository import scan, verifier
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verifier import Verification, VerificationTask
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.model_directories import measure_quickly, place
from tests.support.numpy_models import Service
from tests.support.waiting import until

PATIENCE_SECONDS = 180.0
SEQUENCES = [[[0.5] * 12] * 3]
STARTING = "the server is starting"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    measure_quickly(monkeypatch)
    monkeypatch.setattr(scan, "SLOW_SECONDS", 0.01)
    place(tmp_path / "models")
    return tmp_path / "models"


class SlowVerifier:
    """Verifies as ever, but of some versions only when it is told to, and then refuses them if it is told that."""

    def __init__(self, *slow: str) -> None:
        self.held = set(slow)
        self.begun: list[str] = []
        self.go_on = threading.Event()
        self.good = False

    def __call__(self, task: VerificationTask, stopping: Stopping) -> Verification:
        self.begun.append(task.manifest.key)
        if task.manifest.key in self.held:
            with stopping.ending(self.go_on.set):
                assert self.go_on.wait(PATIENCE_SECONDS)
            stopping.check()
            if not self.good:
                raise ModelError(f"{task.manifest.key}: it hangs")
        return verifier.verify(task, stopping)


@asynccontextmanager
async def starting(
    folder: Path, verifier: SlowVerifier, **options: Any
) -> AsyncIterator[tuple[Service, asyncio.Task[None]]]:
    """A service whose first look goes on; and its start."""
    made = Serving(Settings(**{"runners": 1, "models": folder, "admin_calls": True} | options))
    made.verify = verifier
    app = Application(made)
    start = asyncio.create_task(made.start())
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as client:
            yield Service(made, app, client), start
    finally:
        verifier.go_on.set()
        await start
        await made.stop()


def keys(service: Service) -> list[str]:
    return [served.manifest.key for served in service.serving.served]


async def predict(service: Service, **named: str) -> tuple[int, str]:
    """The status of an answer, and which version it is of or what is wrong."""
    answer = await service.predict({"sequences": SEQUENCES, **named})
    said = answer.json()
    if answer.status_code == 503:
        assert answer.headers["retry-after"] == "1"
    return answer.status_code, said.get("version") or said["detail"]


@pytest.mark.parametrize("name", ["aaa", "zzz"], ids=["verified first", "verified last"])
async def test_a_good_model_answers_while_another_is_verified(folder: Path, name: str) -> None:
    place(folder, name)
    verifier = SlowVerifier(f"{name}/1")
    async with starting(folder, verifier) as (service, start):
        await until(lambda: keys(service) == ["vowels/1"] and f"{name}/1" in verifier.begun)
        why = f"{STARTING}: 1 version not verified yet; /healthz says which"
        assert await predict(service, model="vowels") == (200, "1")
        assert await predict(service) == (503, why)
        assert await predict(service, model=name) == (503, why)
        assert await predict(service, model="vowels", version="2") == (503, why)
        for path in ("/v1/models/other", f"/v2/models/{name}", "/v2/models/vowels/versions/7"):
            answer = await service.client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (503, why)
        answer = await service.client.post("/v1/models/vowels:predict", json={"instances": SEQUENCES})
        assert answer.status_code == 200
        assert (await service.client.get("/v2/models/vowels")).status_code == 200
        ready = await service.client.get("/readyz")
        assert (ready.status_code, ready.json()["detail"]) == (503, why)
        assert (await service.client.get("/v2/health/ready")).status_code == 503
        assert (await service.client.get("/v2/models/vowels/ready")).status_code == 503
        health = await service.client.get("/healthz")
        assert (health.status_code, health.json()["reason"]) == (503, f"starting: not verified yet are {name}/1")
        assert not start.done()
        verifier.go_on.set()
        await start
        assert (await service.client.get("/readyz")).status_code == 200
        assert (await service.client.get("/healthz")).json()["reason"] is None
        assert await predict(service) == (200, "1")
        assert (await predict(service, model=name))[0] == 404


async def test_a_request_without_a_model_is_answered_if_the_folder_has_one_name(folder: Path) -> None:
    place(folder, version=2)
    verifier = SlowVerifier("vowels/1")
    async with starting(folder, verifier, versions="all") as (service, _):
        await until(lambda: keys(service) == ["vowels/2"] and "vowels/1" in verifier.begun)
        assert await predict(service) == (200, "2")
        assert await predict(service, version="2") == (200, "2")
        assert (await predict(service, version="1"))[0] == 503
        assert (await service.client.get("/readyz")).status_code == 503


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("versions", ["latest", "all"])
async def test_a_lower_version_waits_for_the_verification_of_the_higher(
    folder: Path, versions: str, good: bool
) -> None:
    place(folder, version=2)
    place(folder, "other")
    verifier = SlowVerifier("vowels/2")
    verifier.good = good
    async with starting(folder, verifier, versions=versions) as (service, start):
        await until(lambda: keys(service) == ["other/1"] and "vowels/2" in verifier.begun)
        assert (await predict(service, model="vowels"))[0] == 503
        assert "vowels/1" not in verifier.begun
        verifier.go_on.set()
        await start
        assert (await predict(service, model="vowels")) == (200, "2" if good else "1")


async def test_versions_that_hang_do_not_take_all_places(folder: Path) -> None:
    hanging = [f"a{number}" for number in range(scan.MOST_AT_ONCE - 1)]
    for name in hanging:
        place(folder, name)
    verifier = SlowVerifier(*(f"{name}/1" for name in hanging))
    async with starting(folder, verifier) as (service, _):
        await until(lambda: keys(service) == ["vowels/1"])
        assert await predict(service, model="vowels") == (200, "1")
        assert (await service.client.get("/readyz")).json()["detail"].startswith(f"{STARTING}: 3 versions not verified")


async def test_no_more_versions_are_verified_at_once_than_are_allowed(folder: Path) -> None:
    names = [f"a{number}" for number in range(scan.MOST_AT_ONCE + 2)]
    for name in names:
        place(folder, name)
    verifier = SlowVerifier(*(f"{name}/1" for name in names))
    async with starting(folder, verifier) as (service, start):
        await until(lambda: len(verifier.begun) == scan.MOST_AT_ONCE)
        verifier.go_on.set()
        await start
        assert len(verifier.begun) == len(names) + 1
        assert keys(service) == ["vowels/1"]


async def test_memory_that_a_version_may_take_which_is_verified_is_not_given_to_another(folder: Path) -> None:
    place(folder, "aaa")
    verifier = SlowVerifier("aaa/1")
    one = scan.graph_bytes(scan.directory_state(folder / "vowels" / "1"))
    async with starting(folder, verifier, max_model_bytes=one) as (service, start):
        await until(lambda: verifier.begun == ["aaa/1"])
        verifier.go_on.set()
        await start
        assert verifier.begun == ["aaa/1", "vowels/1"]  # refused, it made room
        assert keys(service) == ["vowels/1"]


@pytest.mark.long
async def test_a_reload_serves_what_is_new_and_good_while_another_is_verified(folder: Path) -> None:
    verifier = SlowVerifier("aaa/1")
    async with starting(folder, verifier) as (service, start):
        await start
        assert await predict(service) == (200, "1")
        place(folder, "aaa")
        place(folder, version=2)
        place(folder, "new")
        reload = asyncio.create_task(service.serving.registry.refresh())
        await until(lambda: keys(service) == ["new/1", "vowels/2"])
        assert await predict(service) == (200, "2")  # what is unnamed changes only when the look is over
        assert (await predict(service, model="none"))[0] == 404
        assert (await service.client.get("/readyz")).status_code == 200
        assert not reload.done()
        verifier.good = True
        verifier.go_on.set()
        await reload
        assert keys(service) == ["aaa/1", "new/1", "vowels/2"]
        assert await predict(service) == (404, "say which 'model': aaa, new, vowels")


@pytest.mark.long
async def test_what_has_gone_from_the_folder_is_served_until_the_look_is_over(folder: Path) -> None:
    verifier = SlowVerifier("zzz/1")
    async with starting(folder, verifier) as (service, start):
        await start
        (folder / "vowels").rename(folder.parent / "aside")
        place(folder, "new")
        place(folder, "zzz")
        reload = asyncio.create_task(service.serving.registry.refresh())
        await until(lambda: "new/1" in keys(service))
        answer = await service.predict({"sequences": SEQUENCES})
        assert (answer.status_code, answer.json()["model"]) == (200, "vowels")
        verifier.go_on.set()
        await reload
        answer = await service.predict({"sequences": SEQUENCES})
        assert (answer.status_code, answer.json()["model"]) == (200, "new")


@pytest.mark.long
async def test_a_look_that_nobody_waits_for_any_more_publishes_nothing(folder: Path) -> None:
    verifier = SlowVerifier("aaa/1")
    async with starting(folder, verifier) as (service, start):
        await start
        place(folder, "aaa")
        reload = asyncio.create_task(service.serving.registry.refresh())
        await until(lambda: "aaa/1" in verifier.begun)
        reload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reload
        verifier.good = True
        verifier.go_on.set()
        await until(lambda: not any(thread.name == "rescan" for thread in threading.enumerate()))
        await asyncio.sleep(0)
        assert keys(service) == ["vowels/1"]


async def test_a_look_that_fails_half_way_keeps_what_it_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = SlowVerifier()
    (folder / "vowels").rename(folder.parent / "aside")
    async with starting(folder, verifier) as (service, start):
        await start
        (folder.parent / "aside").rename(folder / "vowels")
        place(folder, "zzz")
        look = scan.directory_state

        def fails(directory: Path) -> Any:
            if directory.parent.name == "zzz":
                raise MemoryError
            return look(directory)

        monkeypatch.setattr(scan, "directory_state", fails)
        monkeypatch.setattr(scan, "SLOW_SECONDS", PATIENCE_SECONDS)
        with pytest.raises(Exception, match="could not be scanned"):
            await service.serving.registry.refresh()
        assert (await service.client.get("/readyz")).status_code == 200
        assert await predict(service) == (200, "1")
