"""Load tests of one server: the same requests in closed or open loops, with answers compared as they arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import orjson

from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.figures import Figures, figures
from lengthwise.bench.load import Check, Load, Requests, Schedule, Tick, ask_each
from lengthwise.bench.workload import Sent, arrival_moments, json_body
from lengthwise.errors import ConfigurationError

# A load may take so many times its seconds, and so many seconds more: a server that is slower than the rate needs them.
_OVERTIME = 1.5
_OVERTIME_SECONDS = 5.0

Probabilities = list[Any]  # of one sequence: numbers, or lists of them if per-step


def groups_of(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cuts the items into groups of one size; the last group may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def json_requests(
    target: ServerAddress,
    groups: Iterable[Sequence[Sent]],
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[bytes]:
    """The bytes of a `POST /predict` for each group of sequences; `fields` are added to each body."""
    headers = {"content-type": "application/json", **(headers or {})}
    return [target.request("/predict", json_body(group, **(fields or {})), headers) for group in groups]


def scores(body: bytes) -> list[Probabilities]:
    """The probabilities of each sequence in the body of an answer: `[classes]`, or `[length, classes]` if per-step.

    Raises:
        ConfigurationError: The body is not an answer of `POST /predict`.
    """
    try:
        return [prediction["probabilities"] for prediction in orjson.loads(body)["predictions"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"an answer of the server holds no predictions: {body[:80]!r}") from error


class Answers(Protocol):
    """Says which answers are right."""

    def is_right(self, index: int, body: bytes) -> bool:
        """Whether the body of the answer to the request of this index is right."""


class Expected:
    """The expected answers to the requests: the unbatched answers of their sequences, `per_request` for each request.

    A sequence's probabilities must have the same bits batched and unbatched: JSON has enough digits to tell a float32
    from the next one. A body that equals the last right one, byte by byte, is right; any other is parsed and compared.
    """

    def __init__(self, unbatched: Sequence[bytes], per_request: int = 1) -> None:
        # For each request, the probabilities of its sequences
        self._unbatched = groups_of([scores(body)[0] for body in unbatched], per_request)
        self._accepted: list[bytes | None] = [None] * len(self._unbatched)  # the last right body for each request

    def is_right(self, index: int, body: bytes) -> bool:
        """Whether the body of the answer to the request of this index has the unbatched answers of its sequences."""
        if body == self._accepted[index]:
            return True
        try:
            is_equal = scores(body) == self._unbatched[index]
        except ConfigurationError:
            return False
        if is_equal:
            self._accepted[index] = body
        return is_equal


@dataclass(frozen=True)
class LoadSpec:
    """The size and the timing of one load."""

    concurrency: int = 64  # requests in flight; in an open loop, at most
    rate: float | None = None  # requests due per second, in an open loop; None: a closed loop
    seconds: float = 10.0  # how long requests are due
    warmup_seconds: float = 1.0  # of load before it, which is not measured
    count: int | None = None  # the largest number of requests
    seed: int = 0  # of the moments

    @property
    def name(self) -> str:
        """The load in words: `64 connections`, or `100 requests/s`."""
        if self.rate is None:
            return f"{self.concurrency} connection{'s' if self.concurrency > 1 else ''}"
        return f"{self.rate:,.0f} requests/s"

    def schedule(self) -> Schedule:
        """When the requests of the load are due."""
        if self.rate is None:
            return Schedule(seconds=self.seconds, count=math.inf if self.count is None else self.count)
        moments = arrival_moments(self.rate, self.seconds, np.random.default_rng(self.seed))
        return Schedule(moments[: self.count].tolist())


@dataclass(frozen=True, slots=True)
class LoadTest:
    """The requests for one server, with the expected answers."""

    target: ServerAddress
    requests: Requests  # sent in this order, and again from the start
    expected: Answers | None = None  # None where answers are not checked
    sequences_per_request: int = 1
    headers: dict[str, str] = field(default_factory=dict)  # of requests for metrics, such as a key

    def run(self, load: LoadSpec, *, tick: Tick | None = None) -> Figures:
        """Runs one load, after its warm-up, and returns its figures."""
        check = self.expected.is_right if self.expected else None
        if load.warmup_seconds:
            warmup = replace(load, seconds=load.warmup_seconds, count=None, seed=load.seed + 1)
            self._load(warmup, check=check).run(load.concurrency)
        metrics_before = remote.metrics(self.target, self.headers)
        measurement = self._load(load, check=check, tick=tick).run(load.concurrency)
        metrics_after = remote.metrics(self.target, self.headers)
        growth = (
            {key: value - metrics_before.get(key, 0.0) for key, value in metrics_after.items()}
            if metrics_before and metrics_after
            else None
        )
        return figures(
            measurement,
            growth,
            load=load.name,
            seconds=load.seconds,
            offered_rate=load.rate,
            sequences_per_request=self.sequences_per_request,
            checked=self.expected is not None,
        )

    def _load(self, spec: LoadSpec, *, check: Check | None = None, tick: Tick | None = None) -> Load:
        """The client that sends this load."""
        limit = _OVERTIME * spec.seconds + _OVERTIME_SECONDS
        return Load(self.target, self.requests, spec.schedule(), check=check, tick=tick, limit_seconds=limit)


def prepare(
    target: ServerAddress,
    sequences: Sequence[Sent],
    *,
    per_request: int = 1,
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    check: bool = True,
    tick: Tick | None = None,
) -> LoadTest:
    """Builds the requests of a load test, each with `per_request` sequences.

    Unless `check` is False, also sends each sequence by itself: the answers are the expected ones. `fields` are added
    to each body. Sequences that do not fill the last request are left out.
    """
    fields, headers = dict(fields or {}), dict(headers or {})
    sequences = sequences[: max(len(sequences) // per_request, 1) * per_request]
    requests = json_requests(target, groups_of(sequences, per_request), fields, headers)
    expected = None
    if check:
        singles = requests if per_request == 1 else json_requests(target, groups_of(sequences, 1), fields, headers)
        expected = Expected(ask_each(target, singles, tick=tick), per_request)
    return LoadTest(target, requests, expected, per_request, headers)
