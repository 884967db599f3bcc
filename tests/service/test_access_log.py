"""The access log: one line a call, for the share that is wanted, with ids and lengths and never a payload."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.commands.serve import configure_logging
from lengthwise.settings import Settings
from lengthwise.telemetry.call_record import MOST_LENGTHS, AccessLog
from tests.support.numpy_models import manifest, model, serving

GOOD = {"sequences": [{"id": "secret", "steps": [[1, 3], [2, 4]]}, [[77, 78]]]}


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lengthwise.access")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lengthwise.access"]


async def test_a_call_gets_one_line_with_ids_outcome_and_lengths(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest()), access_log=1) as service:
        await service.predict(GOOD, x_request_id="mine")
        await service.client.get("/healthz")
    (line,) = lines(caplog)
    head, duration, tail = line.partition(" duration_ms=")
    assert head == 'request_id=mine call="POST /predict" status=200'
    assert duration
    assert tail.partition(" ")[2] == "model=sums version=1 sequences=2 lengths=2,1"


async def test_nothing_of_a_payload_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest()), access_log=1) as service:
        await service.predict(GOOD)
        await service.predict({"sequences": [], "secret": "secret"})
        await service.predict({"sequences": [[[1, 3]]], "model": "secret"})
        await service.client.post("/v1/models/secret:predict?secret=1", json={"instances": [[[77.25, 78.75]]]})
    assert len(lines(caplog)) == 4
    assert "secret" not in caplog.text
    assert "7.25" not in "".join(line.partition("duration_ms=")[0] for line in lines(caplog))


async def test_a_refusal_says_its_status_and_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest()), access_log=1) as service:
        service.serving.batcher.begin_draining()
        await service.client.post("/v1/models/sums:predict", json={"instances": [[[1, 3]]]})
    (line,) = lines(caplog)
    assert 'call="POST /v1/models/MODEL:predict" status=503' in line
    assert line.endswith("model=sums version=1 sequences=1 lengths=1 reason=draining")


async def test_a_call_for_nothing_that_is_served_names_no_model(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest()), access_log=1) as service:
        await service.predict({"sequences": [[[1, 3]]], "model": "none"})
    (line,) = lines(caplog)
    assert "status=404" in line
    assert "model=" not in line


async def test_a_line_has_the_name_of_the_key_and_never_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("team-a: the-key-of-the-first-team\nthe-key-of-nobody\n")
    async with serving(model(manifest()), access_log=1, api_keys_file=keys) as service:
        for key in ("the-key-of-the-first-team", "the-key-of-nobody", "a-key-that-is-not-known"):
            await service.predict(GOOD, authorization=f"Bearer {key}")
    first, second, unknown = lines(caplog)
    assert " key=team-a model=sums" in first
    assert " key=- model=sums" in second
    assert unknown.endswith(" key=-")
    assert "status=401" in unknown
    named = next(record for record in caplog.records if record.name == "lengthwise.access")
    assert vars(named)["fields"]["key"] == "team-a"
    assert "the-key-of" not in caplog.text


async def test_by_default_no_call_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(model(manifest())) as service:
        await service.predict(GOOD)
    assert lines(caplog) == []


def test_a_share_of_the_calls_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    draws = iter([0.0, 0.24, 0.25, 0.99])
    access = AccessLog(0.25, lambda: next(draws))
    for i in range(4):
        access.note(str(i), "POST /predict", 200, 0.001, ["m", "1"], lengths=[1])
    assert [line.partition(" ")[0] for line in lines(caplog)] == ["request_id=0", "request_id=1"]


def test_a_call_of_many_sequences_shows_the_first_lengths_and_their_number(caplog: pytest.LogCaptureFixture) -> None:
    AccessLog(1).note("a", "POST /predict", 200, 0.001, ["m", "1"], lengths=[7] * 1000)
    (line,) = lines(caplog)
    assert "sequences=1000" in line
    assert line.count("7") == MOST_LENGTHS


@pytest.fixture
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    names = ("lengthwise", "lengthwise.access", "uvicorn")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("_logging")
def test_in_a_json_log_the_parts_are_fields_however_little_else_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json", log_level="error"))
    AccessLog(1).note("a", "POST /predict", 429, 0.5, ["m", "1"], lengths=[3, 4], reason="queue_full", trace_id="12")
    for handler in logging.getLogger().handlers:
        handler.flush()
    made = json.loads(capfd.readouterr().err)
    assert (
        made.items()
        >= {
            "level": "info",
            "logger": "lengthwise.access",
            "request_id": "a",
            "call": "POST /predict",
            "status": 429,
            "duration_ms": 500.0,
            "model": "m",
            "version": "1",
            "sequences": 2,
            "reason": "queue_full",
            "trace_id": "12",
        }.items()
    )
    assert made["lengths"] == [3, 4]
