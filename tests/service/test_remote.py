"""What a running service says of itself."""

import pytest

from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.workload import Input
from lengthwise.errors import ConfigurationError
from tests.support.small_server import SmallServer, serving


def entry(name: str, version: str, **more: int) -> dict[str, object]:
    kind = "values" if "features" in more else "tokens"
    return {"model": name, "version": version, "input": kind, "max_length": 99, **more}


def test_the_only_model_is_the_one_that_is_meant():
    with serving(SmallServer()) as target:
        assert remote.model(target) == remote.RemoteModel(Input("values", 2), 64)


def test_the_highest_version_counts_as_a_number():
    with serving(SmallServer(models=[entry("m", "9", features=1), entry("m", "10", vocabulary=50)])) as target:
        assert remote.model(target, "m") == remote.RemoteModel(Input("tokens", 50), 99)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "choose the model for the load with --model; served are: a, b"),
        ("c", "--model c is not served there; served are: a, b"),
    ],
)
def test_several_models_must_be_told_apart(name: str | None, said: str):
    models = [entry("a", "1", features=1), entry("b", "1", features=7)]
    with serving(SmallServer(models=models)) as target:
        assert remote.model(target, "b").step == Input("values", 7)
        with pytest.raises(ConfigurationError, match=said):
            remote.model(target, name)


def test_a_service_that_wants_a_key_is_told_apart_from_one_that_does_not_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "get", lambda *_: (401, b"{}"))
    with pytest.raises(ConfigurationError, match="--header 'authorization=Bearer KEY'"):
        remote.model(ServerAddress.parse("http://localhost:8000"))


def test_a_service_that_does_not_say_its_models_is_described_by_flags():
    with serving(SmallServer(models=[{"model": "a"}])) as target, pytest.raises(ConfigurationError):
        remote.model(target)


def test_metrics_are_read_where_there_are_any():
    server = SmallServer()
    with serving(server) as target:
        page = remote.metrics(target)
        assert page is not None
        assert page["lengthwise_steps_total", "valid"] == 0
        server.metrics = lambda: b"<html>"
        assert remote.metrics(target) is None


def test_a_service_that_refused_every_model_says_why():
    refused = [{"model": "a/1", "reason": "a/1: model.onnx is missing"}]
    with serving(SmallServer(models=[], refused=refused)) as target:
        assert remote.refusals(target) == "serves no model: a/1: model.onnx is missing"
    with serving(SmallServer(models=[], reason="holds no NAME/VERSION folder")) as target:
        assert remote.refusals(target) == "serves no model: holds no NAME/VERSION folder"
    with serving(SmallServer(refused=refused)) as target:
        assert remote.refusals(target) is None
    assert remote.refusals(target) is None
