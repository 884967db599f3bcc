"""A shadow never answers in the place of another version: which version a call without one gets, and what is said."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
import pytest

from lengthwise.repository import aliases, verifier
from lengthwise.repository.contents import Refusal
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.grpc_calls import listening, request
from tests.support.model_directories import measure_quickly, place, sign
from tests.support.numpy_models import manifest, model, serving

GOOD = {"sequences": [[[1, 3]]]}
REFUSED = (Refusal("sums/1", "its manifest has another name"),)
POINTED = {"sums": {"champion": 1, "candidate": 2}}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the registry has said of calls without a version."""
    return [record.message for record in caplog.records if "without a version" in record.message]


async def test_where_the_champion_is_refused_another_version_answers_and_not_the_shadow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    second, third = model(manifest(version=2)), model(manifest(version=3))
    async with serving(second, third, refused=REFUSED, aliases=POINTED, shadow="sums/3") as service:
        assert (await service.predict(GOOD)).json()["version"] == "2"
        assert (await service.predict(GOOD | {"model": "sums"})).json()["version"] == "2"
        assert (await service.predict(GOOD | {"version": "3"})).json()["version"] == "3"  # who names it gets it
        assert (await service.client.get("/readyz")).status_code == 200
        models = (await service.client.get("/healthz")).json()["models"]
        figures = await service.figures()
    assert [(each["version"], each["default"], each["shadow"]) for each in models] == [
        ("2", True, False),
        ("3", False, True),
    ]
    assert figures['lengthwise_default_version{model="sums",version="3"}'] == 0
    assert warnings(caplog) == ["calls of sums without a version are answered by 2, as the champion, 1, is not served"]


async def test_without_a_champion_the_highest_version_that_is_no_shadow_answers() -> None:
    versions = [model(manifest(version=version)) for version in (1, 2, 3)]
    async with serving(*versions, shadow="sums/3") as service:
        assert (await service.predict(GOOD)).json()["version"] == "2"
        v1 = await service.client.post("/v1/models/sums:predict", json={"instances": GOOD["sequences"]})
        assert v1.status_code == 200
        assert (await service.client.get("/v2/models/sums/stats")).status_code == 200


async def test_a_shadow_that_is_made_the_champion_answers() -> None:
    versions = [model(manifest(version=version)) for version in (1, 2)]
    async with serving(*versions, shadow="sums/2", aliases={"sums": {"champion": 2}}) as service:
        assert (await service.predict(GOOD)).json()["version"] == "2"
        assert (await service.client.get("/readyz")).status_code == 200


async def test_where_only_the_shadow_works_nothing_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(
        model(manifest(version=3)), refused=REFUSED, aliases={"sums": {"champion": 1}}, shadow="sums/3"
    ) as service:
        for answer in (
            await service.predict(GOOD),
            await service.predict(GOOD | {"model": "sums"}),
            await service.client.post("/v1/models/sums:predict", json={"instances": GOOD["sequences"]}),
            await service.client.get("/v1/models/sums"),
            await service.client.get("/v2/models/sums"),
            await service.client.get("/v2/models/sums/ready"),
            await service.client.get("/v2/health/ready"),
            await service.client.get("/readyz"),
            await service.client.get("/healthz"),
        ):
            assert answer.status_code == 503, answer.text
            assert "retry-after" in answer.headers or answer.request.url.path in ("/healthz", "/v2/health/ready")
        assert "only the shadow works" in (await service.predict(GOOD)).json()["detail"]
        (entry, refused) = (await service.client.post("/v2/repository/index")).json()
        assert (entry["version"], entry["state"], refused["version"]) == ("3", "UNAVAILABLE", "1")
    assert warnings(caplog) == [
        "calls of sums without a version are refused with 503: only the shadow works, as the champion, 1, is not served"
    ]
    assert "no model is ready" in caplog.text


async def test_a_version_that_breaks_while_it_serves_leaves_no_call_to_the_shadow() -> None:
    versions = [model(manifest(version=version)) for version in (1, 2, 3)]
    async with serving(*versions, shadow="sums/3", aliases={"sums": {"champion": 2}}) as service:
        for broken, status in ((2, 200), (1, 503)):
            served = next(one for one in service.serving.served if one.manifest.version == broken)
            served.queue.breaker.probed(RuntimeError("the device is gone"), 0.0, 60.0)
            answer = await service.predict(GOOD)
            assert answer.status_code == status
            assert (await service.client.get("/readyz")).status_code == status
        assert "no model works: sums/1, sums/2" in (await service.client.get("/readyz")).json()["detail"]


async def test_over_grpc_the_shadow_answers_those_that_name_it_only() -> None:
    second, third = model(manifest(version=2)), model(manifest(version=3))
    async with listening(second, third, aliases=POINTED, shadow="sums/3") as caller:
        assert (await caller.call("ModelInfer", request())).model_version == "2"
    async with listening(third, aliases=POINTED, shadow="sums/3") as caller:
        assert (await caller.refused("ModelInfer", request())).code() is grpc.StatusCode.UNAVAILABLE


class TestInARepository:
    @pytest.fixture(autouse=True)
    def _quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        measure_quickly(monkeypatch)

    def service(self, folder: Path, **options: str) -> Serving:
        return Serving(Settings(models=folder, shadow="vowels/3", **options), verify=verifier.verify)

    async def test_the_highest_version_below_the_shadow_is_served_too(self, tmp_path: Path) -> None:
        for version in (1, 2, 3):
            place(tmp_path, "vowels", version)
        service = self.service(tmp_path)
        await service.start()
        assert [served.manifest.version for served in service.served] == [2, 3]
        assert service.find(None, None).manifest.version == 2
        await service.stop()

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
            lambda: (tmp_path / "vowels" / "2").rename(tmp_path / "aside-2"),
            lambda: place(tmp_path, "vowels", 1),
            lambda: aliases.set_alias(tmp_path / "vowels", "champion", 3),
            lambda: aliases.set_alias(tmp_path / "vowels", "champion", None),
        ]
        for change in changes:
            change()
            await service.registry.refresh()
        await service.registry.unload("vowels")
        await service.stop()
        of = "calls of vowels without a version are "
        assert warnings(caplog) == [
            f"{of}answered by 2, as the champion, 1, is not served",
            f"{of}refused with 503: only the shadow works, as the champion, 1, is not served",
            f"{of}answered by 1",
            f"{of}answered by 3",
            f"{of}answered by 1",
        ]

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
