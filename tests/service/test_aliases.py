"""Aliases: requests name them in the place of a version under every protocol, and a switch is atomic."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError, ModelNotFound, NoSuchAlias, NotReady
from lengthwise.repository import aliases, verifier
from lengthwise.repository.contents import Repository
from lengthwise.repository.scan import ScanState, VersionResult
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise.versions import Key, Policy
from tests.support.model_directories import measure_quickly, place
from tests.support.numpy_models import manifest, model, serving


def repository(pointed: dict[str, int], *versions: int) -> Repository:
    served = Repository.of([model(manifest(version=version)) for version in versions])
    return Repository(served.models, aliases={"sums": pointed})


def found(repository: Repository, version: str | None) -> int:
    return repository.find("sums", version).manifest.version


@pytest.mark.parametrize(
    ("aliases", "served", "asked", "version"),
    [
        ({}, (1, 2, 3), None, 3),  # the highest version
        ({"champion": 2}, (1, 2, 3), None, 2),
        ({"champion": 3}, (1, 2, 4), None, 2),  # the champion is not served: the next lower version, else the highest
        ({"champion": 1}, (2, 4), None, 4),
        *(
            ({"champion": 2, "candidate": 3}, (1, 2, 3), asked, version)
            for asked, version in (("champion", 2), ("candidate", 3), ("1", 1))
        ),
        ({"champion": 2}, (2,), "latest", NoSuchAlias),
        ({}, (2,), "latest", NoSuchAlias),
        ({"candidate": 9}, (1,), "candidate", ModelNotFound),
    ],
)
def test_a_version_is_found(
    aliases: dict[str, int], served: tuple[int, ...], asked: str | None, version: int | type[Exception]
) -> None:
    with nullcontext() if isinstance(version, int) else pytest.raises(version):
        assert found(repository(aliases, *served), asked) == version


class TestWhileItScans:
    def test_no_version_stands_in_for_a_champion_that_is_still_being_verified(self) -> None:
        loaded = model(manifest(version=3))
        state = ScanState(
            Repository(starting=True),
            Policy(),
            [Key("sums", 3), Key("sums", 1)],
            frozenset({Key("sums", 1)}),
            {"sums": {"champion": 1}},
        )
        state.settle(Key("sums", 3), VersionResult(loaded), ())
        meanwhile = state.repository()
        assert meanwhile.find("sums", "3") is loaded
        for version in (None, "champion"):
            with pytest.raises(NotReady):
                meanwhile.find("sums", version)
        state.settle(Key("sums", 1), VersionResult(None, "broken"), ())
        assert state.repository().find("sums", None) is loaded  # now it is known that the champion cannot be served

    def test_the_champion_before_answers_until_the_new_one_is_verified(self) -> None:
        before = repository({"champion": 1}, 1, 3)
        state = ScanState(
            before,
            Policy(),
            [Key("sums", 3), Key("sums", 2), Key("sums", 1)],
            frozenset({Key("sums", 2)}),
            {"sums": {"champion": 2}},
        )
        state.settle(Key("sums", 3), VersionResult(before.find("sums", "3")), ())
        assert state.next(()) == Key("sums", 2)
        assert found(state.repository(), None) == found(state.repository(), "champion") == 1
        state.settle(Key("sums", 2), VersionResult(model(manifest(version=2))), ())
        assert found(state.repository(), None) == found(state.repository(), "champion") == 2


class TestTheFile:
    def test_it_is_written_and_read(self, tmp_path: Path) -> None:
        for version in ("3", "4"):
            (tmp_path / version).mkdir()
        assert aliases.set_alias(tmp_path, "champion", 3) == {"champion": 3}
        assert aliases.set_alias(tmp_path, "candidate", 4) == {"champion": 3, "candidate": 4}
        assert aliases.set_alias(tmp_path, "candidate", None) == {"champion": 3}
        assert aliases.read(tmp_path) == {"champion": 3}
        with pytest.raises(ConfigurationError, match="no version 5; it has 3, 4"):
            aliases.set_alias(tmp_path, "champion", 5)
        with pytest.raises(ConfigurationError):
            aliases.set_alias(tmp_path, "candidate", None)
        with pytest.raises(ConfigurationError):
            aliases.set_alias(tmp_path, "Best!", 3)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["aliases.json"]

    def test_of_two_changes_at_once_none_is_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for version in ("3", "4"):
            (tmp_path / version).mkdir()
        read = aliases.read
        both = threading.Barrier(2)

        def read_together(folder: Path) -> aliases.Aliases:
            found = read(folder)
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)
            return found

        monkeypatch.setattr(aliases, "read", read_together)
        other = threading.Thread(target=aliases.set_alias, args=(tmp_path, "candidate", 4))
        other.start()
        aliases.set_alias(tmp_path, "champion", 3)
        other.join()
        assert read(tmp_path) == {"champion": 3, "candidate": 4}

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[1]", "3", '{"champion": "3"}', '{"champion": 0}', '{"champion": true}', '{"3": 3}', '{"A b": 3}'),
            *("{", "[" * 60_000),
        ],
    )
    def test_what_is_no_alias_file_is_said(self, text: str, tmp_path: Path) -> None:
        (tmp_path / aliases.FILE).write_text(text)
        with pytest.raises(ConfigurationError, match=r"aliases\.json"):
            aliases.read(tmp_path)


def command(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["alias", *map(str, arguments)])
    return result.exit_code, result.stdout + result.stderr


def test_the_command_shows_switches_and_removes(tmp_path: Path) -> None:
    (tmp_path / "vowels" / "4").mkdir(parents=True)
    assert command(tmp_path / "vowels") == (0, "no aliases\n")
    assert command(tmp_path / "vowels", "champion", "4") == (0, "champion: 4\n")
    assert json.loads(command(tmp_path / "vowels", "--json")[1]) == {"champion": 4}
    assert command(tmp_path / "vowels", "champion")[0] == 2
    assert command(tmp_path / "vowels", "champion", "0")[0] == 2
    assert command(tmp_path / "nothing")[0] == 2
    assert command(tmp_path / "vowels", "--remove")[0] == 2  # which one?
    assert command(tmp_path)[0] == 2  # a repository
    assert command(tmp_path / "vowels", "champion", "--remove") == (0, "no aliases\n")


async def test_a_champion_that_does_not_work_any_more_leaves_the_next_lower_version() -> None:
    versions = [model(manifest(version=version)) for version in (1, 2, 3)]
    async with serving(*versions, aliases={"sums": {"champion": 2}}) as service:
        for broken, answers in ((2, "1"), (1, "3")):
            for served in service.serving.served:
                if served.manifest.version == broken:
                    served.queue.breaker.probed(RuntimeError("the device is gone"), 0.0, 60.0)
            answer = await service.predict({"sequences": [[[1, 2]]]})
            assert answer.json()["version"] == answers


async def test_what_is_in_force_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lengthwise.registry")
    made: dict[str, str | int | float | None] = {"data_accuracy": 0.98, "data_answers": 370, "trained": "2026-11-01"}
    versions = [model(manifest(version=version, made=made)) for version in (1, 2, 3)]
    pointed = {"sums": {"champion": 1, "candidate": 2, "blue": 2}}
    async with serving(*versions, aliases=pointed) as service:
        health = (await service.client.get("/healthz")).json()
        figures = await service.figures()
    assert [(each["aliases"], each["default"]) for each in health["models"]] == [
        (["champion"], True),
        (["blue", "candidate"], False),
        ([], False),
    ]
    (first, *_) = health["models"]
    assert (first["accuracy"], first["accuracy_answers"], first["trained"]) == (0.98, 370, "2026-11-01")
    labels = 'model="sums",version='
    assert figures[f'lengthwise_model_alias{{alias="candidate",{labels}"2"}}'] == 1
    assert [figures[f'lengthwise_default_version{{{labels}"{version}"}}'] for version in (1, 2, 3)] == [1, 0, 0]
    assert "aliases of sums: blue is version 2, candidate is version 2, champion is version 1" in caplog.messages


class TestInAService:
    @pytest.fixture
    async def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
        """Serves three versions, the first of which is the champion."""
        measure_quickly(monkeypatch)
        for version in (1, 2, 3):
            place(tmp_path, "vowels", version)
        aliases.set_alias(tmp_path / "vowels", "champion", 1)
        service = Serving(Settings(models=tmp_path), verify=verifier.verify)
        await service.start()
        yield service
        await service.stop()

    @pytest.mark.long
    async def test_versions_with_an_alias_are_served_beside_the_highest(self, service: Serving, tmp_path: Path) -> None:
        assert [served.manifest.version for served in service.served] == [1, 3]
        assert service.find("vowels", None).manifest.version == 1
        assert service.find("vowels", "champion").manifest.version == 1
        aliases.set_alias(tmp_path / "vowels", "champion", 2)
        aliases.set_alias(tmp_path / "vowels", "candidate", 3)
        await service.registry.refresh()
        assert [served.manifest.version for served in service.served] == [2, 3]
        assert service.find(None, None).manifest.version == 2
        assert service.find("vowels", "candidate").manifest.version == 3

    async def test_a_broken_file_changes_nothing(
        self, service: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "vowels" / aliases.FILE).write_text("{")
        await service.registry.refresh()
        assert service.find("vowels", None).manifest.version == 1
        assert "the aliases of vowels stay as they were" in caplog.text

    @pytest.mark.long
    async def test_a_broken_file_of_a_new_name_has_no_version_served_in_the_champions_place(
        self, service: Serving, tmp_path: Path
    ) -> None:
        for version in (1, 3):
            place(tmp_path, "others", version)
        (tmp_path / "others" / aliases.FILE).write_text('{"champion": 1')
        for _ in range(2):
            await service.registry.refresh()
            with pytest.raises(ModelNotFound):
                service.find("others", None)
            refused = {str(refusal.key): refusal.reason for refusal in service.registry.repository.refused}
            assert [*refused] == ["others/1", "others/3"]
            assert refused["others/3"].startswith("others/aliases.json cannot be read: ")
        (tmp_path / "others" / aliases.FILE).write_text('{"champion": 1}')
        await service.registry.refresh()
        assert service.find("others", None).manifest.version == 1

    async def test_every_request_during_a_switch_gets_one_of_both(self, service: Serving, tmp_path: Path) -> None:
        seen = set()
        for version in (3, 1, 3):
            aliases.set_alias(tmp_path / "vowels", "champion", version)
            switch = asyncio.create_task(service.registry.refresh())
            while not switch.done():
                seen.add(service.find("vowels", None).manifest.version)
                await asyncio.sleep(0)
            assert service.find("vowels", None).manifest.version == version
        assert seen <= {1, 3}
