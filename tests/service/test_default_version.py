"""Which version answers a call without one where the champion is not served or breaks, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lengthwise.repository import aliases, verifier
from lengthwise.repository.contents import Refusal
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise.versions import Key
from tests.support.grpc_calls import listening, request
from tests.support.model_directories import measure_quickly, place, sign
from tests.support.numpy_models import manifest, model, serving

GOOD = {"sequences": [[[1, 3]]]}
REFUSED = (Refusal(Key("sums", 1), "its manifest has another name"),)
POINTED = {"sums": {"champion": 1, "candidate": 2}}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the registry has said of calls without a version."""
    return [record.message for record in caplog.records if "without a version" in record.message]


async def test_where_the_champion_is_refused_the_highest_version_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    second, third = model(manifest(version=2)), model(manifest(version=3))
    async with serving(second, third, refused=REFUSED, aliases=POINTED) as service:
        assert (await service.predict(GOOD)).json()["version"] == "3"
        assert (await service.predict(GOOD | {"model": "sums"})).json()["version"] == "3"
        assert (await service.predict(GOOD | {"version": "candidate"})).json()["version"] == "2"
        assert (await service.client.get("/readyz")).status_code == 200
        models = (await service.client.get("/healthz")).json()["models"]
        figures = await service.figures()
    assert [(each["version"], each["default"]) for each in models] == [("2", False), ("3", True)]
    assert figures['lengthwise_default_version{model="sums",version="2"}'] == 0
    assert warnings(caplog) == ["calls of sums without a version are answered by 3, as the champion, 1, is not served"]


async def test_where_every_version_breaks_while_it_serves_nothing_is_ready() -> None:
    versions = [model(manifest(version=version)) for version in (1, 2)]
    async with serving(*versions, aliases={"sums": {"champion": 2}}) as service:
        for broken, status in ((2, 200), (1, 503)):
            served = next(one for one in service.serving.served if one.manifest.version == broken)
            served.queue.breaker.probed(RuntimeError("the device is gone"), 0.0, 60.0)
            answer = await service.predict(GOOD)
            assert answer.status_code == status
            assert (await service.client.get("/readyz")).status_code == status
        assert "no model works: sums/1, sums/2" in (await service.client.get("/readyz")).json()["detail"]


async def test_over_grpc_the_highest_version_answers_for_a_champion_that_is_not_served() -> None:
    second, third = model(manifest(version=2)), model(manifest(version=3))
    async with listening(second, third, aliases=POINTED) as caller:
        assert (await caller.call("ModelInfer", request())).model_version == "3"


class TestInARepository:
    @pytest.fixture(autouse=True)
    def _quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        measure_quickly(monkeypatch)

    def service(self, folder: Path, **options: str) -> Serving:
        return Serving(Settings(models=folder, **options), verify=verifier.verify)

    @pytest.mark.long
    async def test_each_change_of_what_answers_is_said_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "lengthwise.registry")
        for version in (1, 2, 3):
            place(tmp_path, "vowels", version)
        aliases.set_alias(tmp_path / "vowels", "champion", 1)
        service = self.service(tmp_path, versions="all")
        await service.start()
        assert warnings(caplog) == []
        changes = [
            lambda: (tmp_path / "vowels" / "1").rename(tmp_path / "aside-1"),
            lambda: None,
            lambda: place(tmp_path, "vowels", 1),
            lambda: aliases.set_alias(tmp_path / "vowels", "champion", 2),
            lambda: aliases.set_alias(tmp_path / "vowels", "champion", None),
        ]
        for change in changes:
            change()
            await service.registry.refresh()
        await service.registry.unload("vowels")
        await service.stop()
        of = "calls of vowels without a version are "
        assert warnings(caplog) == [
            f"{of}answered by 3, as the champion, 1, is not served",
            f"{of}answered by 1",
            f"{of}answered by 2",
            f"{of}answered by 3",
        ]

    @pytest.mark.long
    async def test_a_champion_that_was_replaced_by_bad_files_stays_in_service(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for version in (1, 2, 3):
            place(tmp_path, "vowels", version)
        aliases.set_alias(tmp_path / "vowels", "champion", 1)
        service = self.service(tmp_path, versions="all")
        await service.start()
        sign(tmp_path / "vowels" / "1", name="other")
        await service.registry.refresh()
        assert service.find(None, None).manifest.version == 1
        assert warnings(caplog) == []
        await service.stop()
