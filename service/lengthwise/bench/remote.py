"""Reads a running service's models and metrics."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Any

import orjson

from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.exposition import Samples
from lengthwise.bench.workload import Input
from lengthwise.errors import ConfigurationError

_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as its service describes it."""

    name: str
    version: str
    step: Input
    max_length: int
    min_length: int = 1


def get(
    target: ServerAddress, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, bytes]:
    """Status and body of one GET, or of a POST without a body."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_SECONDS)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise target.unreachable(error) from error
    finally:
        connection.close()


def refusals(target: ServerAddress) -> str | None:
    """Why a running service has nothing to serve: it rejected its models, or has none. None if it serves a model."""
    try:
        described = orjson.loads(get(target, "/healthz")[1])
        if described.get("starting"):
            return None
        reasons = "; ".join(str(refusal["reason"]) for refusal in described["refused"]) or described["reason"]
    except (ConfigurationError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return f"serves no model: {reasons}" if reasons and not described["models"] else None


def metrics(target: ServerAddress, headers: dict[str, str] | None = None) -> Samples | None:
    """The service's metrics, or None where this port has none."""
    status, body = get(target, "/metrics", headers)
    try:
        return Samples.parse(body.decode()) if status == 200 else None
    except ValueError:
        return None


def model(target: ServerAddress, name: str | None = None, headers: dict[str, str] | None = None) -> RemoteModel:
    """The model for requests: the named one, or the only one."""
    status, body = get(target, "/healthz", headers)
    if status == 401:
        raise ConfigurationError(f"{target.url} wants a key: --header 'authorization=Bearer KEY'")
    try:
        listed = _public_models(target, headers) if status == 404 else orjson.loads(body)["models"]
        described = [_described(entry) for entry in listed]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{target.url}/healthz (status {status}) does not list the served models: is it a Lengthwise server?"
        ) from error
    names = sorted({entry.name for entry in described})
    found = [entry for entry in described if name in (None, entry.name)]
    served = ", ".join(names) or "none"
    if name is not None and not found:
        raise ConfigurationError(f"--model {name} is not served there; served are: {served}")
    if name is None and len(names) != 1:
        raise ConfigurationError(f"choose the model for the load with --model; served are: {served}")
    return max(found, key=lambda entry: int(entry.version))


def _public_models(target: ServerAddress, headers: dict[str, str] | None) -> list[dict[str, Any]]:
    """The models as `/healthz` lists them, from what a port serves whose `/healthz` is on an admin port."""
    listed: list[dict[str, Any]] = []
    for entry in orjson.loads(get(target, "/v2/repository/index", headers, "POST")[1]):
        if entry["state"] != "READY":
            continue
        path = f"/v2/models/{entry['name']}/versions/{entry['version']}/config"
        config = orjson.loads(get(target, path, headers)[1])
        stated = {name: value["string_value"] for name, value in config["parameters"].items()}
        features = config["input"][0]["dims"][-1]
        kind = "tokens" if "vocabulary" in stated else "values"
        listed.append(
            {**stated, "model": entry["name"], "version": entry["version"], "input": kind, "features": features}
        )
    return listed


def _described(entry: dict[str, Any]) -> RemoteModel:
    values = entry["input"] == "values"
    step = Input("values", int(entry["features"])) if values else Input("tokens", int(entry["vocabulary"]))
    least = int(entry.get("min_length", 1))  # a service of an earlier version does not report it
    return RemoteModel(str(entry["model"]), str(entry["version"]), step, int(entry["max_length"]), least)
