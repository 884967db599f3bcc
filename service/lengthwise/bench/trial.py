"""Load tests of one server: the same requests in closed or open loops, with answers checked as they arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.figures import Figures, figures
from lengthwise.bench.load import Check, Load, Schedule, Tick, ask_each
from lengthwise.bench.workload import arrival_moments, json_body
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps

# A server that cannot keep up with a rate would need longer by the same factor.
_OVERTIME = 1.5
_OVERTIME_SECONDS = 5.0

Probabilities = list[Any]  # of one sequence: numbers, or lists of them if per-step


def groups_of(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in groups of one size; the last one may hold fewer."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def json_requests(
    target: ServerAddress,
    groups: Iterable[Sequence[Steps]],
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[bytes]:
    """A request for each group of sequences, as JSON."""
    headers = {"content-type": "application/json", **(headers or {})}
    return [target.request("/predict", json_body(group, **(fields or {})), headers) for group in groups]


def scores(body: bytes) -> list[Probabilities]:
    """The probabilities in the body of an answer, `[classes]` or `[length, classes]` for each sequence.

    Raises:
        ConfigurationError: The body is not an answer of `POST /predict`.
    """
    try:
        return [prediction["probabilities"] for prediction in orjson.loads(body)["predictions"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"an answer of the server holds no predictions: {body[:80]!r}") from error


class Expected:
    """The expected answer to each request: `per_request` unbatched answers, in order.

    A sequence's probabilities must have the same bits batched and unbatched: JSON has enough digits to tell a float32
    from the next one. An answer is compared as bytes with the last accepted one, and by numbers where it differs.
    """

    def __init__(self, unbatched: Sequence[bytes], per_request: int = 1) -> None:
        self._unbatched = groups_of([scores(body)[0] for body in unbatched], per_request)
        self._accepted: list[bytes | None] = [None] * len(self._unbatched)

    def is_right(self, index: int, body: bytes) -> bool:
        """Whether the answer to request number `index` equals the unbatched answers of its sequences."""
        if body == self._accepted[index]:
            return True
        try:
            right = scores(body) == self._unbatched[index]
        except ConfigurationError:
            return False
        if right:
            self._accepted[index] = body
        return right


@dataclass(frozen=True)
class LoadSpec:
    """The size and the timing of one load."""

    concurrency: int = 64  # requests in flight; with a rate, the most
    rate: float | None = None  # due per second, of an open loop
    seconds: float = 10.0  # how long requests are due
    warmup_seconds: float = 1.0  # before, not measured
    count: int | None = None  # most requests
    seed: int = 0

    @property
    def name(self) -> str:
        """A description of the load."""
        if self.rate is None:
            return f"{self.concurrency} connection{'s' if self.concurrency > 1 else ''}"
        return f"{self.rate:,.0f} requests/s"

    def schedule(self) -> Schedule:
        """When its requests are due."""
        if self.rate is None:
            return Schedule(seconds=self.seconds, count=math.inf if self.count is None else self.count)
        moments = arrival_moments(self.rate, self.seconds, np.random.default_rng(self.seed))
        return Schedule(moments[: self.count].tolist())


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One server and the requests for it."""

    target: ServerAddress
    requests: Sequence[bytes]  # sent in this order, and again from the start
    expected: Expected | None = None  # None where answers are not checked
    sequences_per_request: int = 1
    headers: dict[str, str] = field(default_factory=dict)  # of requests for metrics, such as a key

    def run(self, load: LoadSpec, *, tick: Tick | None = None) -> Figures:
        """Runs one load: the warm-up, then the measurement."""
        if load.warmup_seconds:
            warmup = replace(load, seconds=load.warmup_seconds, count=None, seed=load.seed + 1)
            self._load(warmup).run(load.concurrency)
        before = remote.metrics(self.target, self.headers)
        check = self.expected.is_right if self.expected else None
        measurement = self._load(load, check=check, tick=tick).run(load.concurrency)
        after = remote.metrics(self.target, self.headers)
        return figures(
            measurement,
            {key: value - before.get(key, 0.0) for key, value in after.items()} if before and after else None,
            load=load.name,
            seconds=load.seconds,
            offered_rate=load.rate,
            sequences_per_request=self.sequences_per_request,
            checked=self.expected is not None,
        )

    def _load(self, spec: LoadSpec, *, check: Check | None = None, tick: Tick | None = None) -> Load:
        limit = _OVERTIME * spec.seconds + _OVERTIME_SECONDS
        return Load(self.target, self.requests, spec.schedule(), check=check, tick=tick, limit_seconds=limit)


def prepare(
    target: ServerAddress,
    sequences: Sequence[Steps],
    *,
    per_request: int = 1,
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    check: bool = True,
    tick: Tick | None = None,
) -> LoadTest:
    """Builds the requests, and sends each sequence by itself for its unbatched answer."""
    fields, headers = dict(fields or {}), dict(headers or {})
    sequences = sequences[: max(len(sequences) // per_request, 1) * per_request]
    requests = json_requests(target, groups_of(sequences, per_request), fields, headers)
    expected = None
    if check:
        singles = requests if per_request == 1 else json_requests(target, groups_of(sequences, 1), fields, headers)
        expected = Expected(ask_each(target, singles, tick=tick), per_request)
    return LoadTest(target, requests, expected, per_request, headers)
