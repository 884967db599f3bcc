"""Asks a running service for its models and metrics, over HTTP."""

from __future__ import annotations

import http.client
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import orjson

from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.workload import Input, Sent, make_sequences, sent
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import SequenceInput, StaticInput

_SECONDS = 10.0  # within which the server must answer

Totals: TypeAlias = Mapping[tuple[str, str], float]
"""The samples of a page of metrics by name and label `kind`, summed over all other labels."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as its service describes it."""

    step: Input  # what one step of a sequence is
    max_length: int  # of a sequence, in steps
    min_length: int = 1
    names: tuple[str, ...] | None = None  # of the features, in their order; None if they have no names
    static: StaticInput | None = None  # the values beside a sequence; None if it takes none
    sequences: tuple[SequenceInput, ...] = ()  # all, if it takes several

    @property
    def has_more(self) -> bool:
        """Whether it takes more than the steps of one sequence."""
        return self.static is not None or bool(self.sequences)

    @property
    def static_names(self) -> tuple[str, ...]:
        """The names of the static values; none if it takes none, or they have no names."""
        return (None if self.static is None else self.static.names) or ()

    def sequence(self, steps: Steps, random: np.random.Generator) -> Sent:
        """A sequence as it is sent, with random static values, and further sequences of about its length."""
        static = None
        if self.static is not None:
            categories = [self.static.categories.get(name) for name in self.static.value_names]
            static = [
                round(random.standard_normal(), 4) if texts is None else random.choice(texts) for texts in categories
            ]
        inputs: dict[str, Any] = {}
        for one in self.sequences:
            step = Input(one.step.kind, one.step.vocabulary or one.step.features or 1)
            length = np.clip([random.poisson(len(steps))], 1, one.max_length)
            inputs[one.name] = make_sequences(length, step, random)[0] if inputs else steps
        return sent(steps, static, inputs or None)


def get(
    target: ServerAddress, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, bytes]:
    """Status and body of the answer to a GET, or to another method without a body.

    Raises:
        ConfigurationError: The server cannot be reached.
    """
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_SECONDS)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(target.why_unreachable(error)) from error
    finally:
        connection.close()


def refusals(target: ServerAddress) -> str | None:
    """Why a running service serves no model: it refused its models, or has none.

    None if it serves one, is still starting, or does not answer as a service of Lengthwise.
    """
    try:
        health = orjson.loads(get(target, "/healthz")[1])
        if health.get("starting"):
            return None
        reasons = "; ".join(str(refusal["reason"]) for refusal in health["refused"]) or health["reason"]
    except (ConfigurationError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return f"serves no model: {reasons}" if reasons and not health["models"] else None


def metrics(target: ServerAddress, headers: dict[str, str] | None = None) -> Totals | None:
    """The metrics of a service by name and label `kind`, summed over all other labels.

    None if the service has no metrics at this port, or what it answers cannot be read.
    """
    from prometheus_client.parser import text_string_to_metric_families

    status, body = get(target, "/metrics", headers)
    if status != 200:  # such as 404: metrics are on the admin port
        return None
    totals: dict[tuple[str, str], float] = defaultdict(float)
    try:
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                totals[sample.name, sample.labels.get("kind", "")] += sample.value
    except ValueError:
        return None
    return dict(totals)


def model(target: ServerAddress, name: str | None = None, headers: dict[str, str] | None = None) -> RemoteModel:
    """Asks a service for the model under load: the highest ready version of the named model, or of the only one.

    `name` is None for the only model.

    Raises:
        ConfigurationError: There is no such model, several where none is named, no key, or no list of models.
    """
    status, body = get(target, "/v2/repository/index", headers, "POST")
    if status == 401:
        raise ConfigurationError(f"{target.url} wants a key: --header 'authorization=Bearer KEY'")
    # The names and versions that are ready, and the description of the model among them
    try:
        ready = [(entry["name"], int(entry["version"])) for entry in orjson.loads(body) if entry["state"] == "READY"]
        names = sorted({model_name for model_name, _ in ready})
        if name in names or (name is None and len(names) == 1):
            name, version = max(entry for entry in ready if name in (None, entry[0]))
            config = orjson.loads(get(target, f"/v2/models/{name}/versions/{version}/config", headers)[1])
            parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
            step = Input("values", int(config["input"][0]["dims"][-1]))  # the last axis is that of the features
            if "vocabulary" in parameters:
                step = Input("tokens", int(parameters["vocabulary"]))
            feature_names = tuple(map(str, orjson.loads(parameters["names"]))) if "names" in parameters else None
            return RemoteModel(
                step,
                int(parameters["max_length"]),
                int(parameters["min_length"]),
                feature_names,
                StaticInput.model_validate_json(parameters["static"]) if "static" in parameters else None,
                tuple(map(SequenceInput.model_validate, orjson.loads(parameters.get("sequences", "[]")))),
            )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{target.url}/v2/repository/index (status {status}) does not list models: is it a Lengthwise server?"
        ) from error
    problem = "choose the model for the load with --model" if name is None else f"--model {name} is not served there"
    raise ConfigurationError(f"{problem}; served are: {', '.join(names) or 'none'}")
