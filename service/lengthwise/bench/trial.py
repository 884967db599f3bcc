"""Load tests of one server: the same requests in closed or open loops, with answers checked as they arrive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Literal

import numpy as np

from lengthwise.bench import remote, replay
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.expected import Expected, scores, whole
from lengthwise.bench.figures import Figures, figures
from lengthwise.bench.launch import ServiceUnderLoad
from lengthwise.bench.load import Closed, Open, Schedule, Tick, ask_each, drive
from lengthwise.bench.replay import RecordedLoad
from lengthwise.bench.workload import arrival_moments, draw_lengths, json_body, make_sequences
from lengthwise.datasets import dataset
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps

RequestFormat = Literal["json", "binary"]
PATH = "/predict"
# A server that cannot keep up with a rate would need longer by the same factor.
_OVERTIME = 1.5
_OVERTIME_SECONDS = 5.0


def json_requests(
    target: ServerAddress,
    sequences: Sequence[Steps],
    per_request: int,
    fields: Mapping[str, str],
    headers: Mapping[str, str],
) -> list[bytes]:
    """Requests of `per_request` sequences each, as JSON; the last one may hold fewer."""
    groups = [sequences[first : first + per_request] for first in range(0, len(sequences), per_request)]
    headers = {"content-type": "application/json", **headers}
    return [target.request(PATH, json_body(group, **fields), headers) for group in groups]


def binary_requests(
    target: ServerAddress, sequences: Sequence[Steps], fields: Mapping[str, str], headers: Mapping[str, str]
) -> list[bytes]:
    """Requests of one sequence each, as little-endian float32 with the shape in a header."""
    query = "&".join(f"{name}={value}" for name, value in fields.items())
    path = f"{PATH}?{query}" if query else PATH
    return [
        target.request(
            path,
            steps.astype("<f4").tobytes(),
            {
                "content-type": "application/octet-stream",
                "x-lengthwise-shape": ",".join(str(size) for size in steps.shape),
                **headers,
            },
        )
        for steps in sequences
    ]


@dataclass(frozen=True)
class LoadSpec:
    """The size and the timing of one load."""

    concurrency: int = 64  # requests in flight; with a rate, the most
    rate: float | None = None  # due per second, of an open loop
    seconds: float = 10.0  # how long requests are due
    warmup_seconds: float = 1.0  # before, not measured
    count: int | None = None  # most requests
    seed: int = 0
    moments: Sequence[float] | None = None  # of the requests of a recorded load

    @property
    def name(self) -> str:
        """A description of the load."""
        if self.moments is not None:
            return f"{len(self.moments):,} recorded requests"
        if self.rate is None:
            return f"{self.concurrency} connection{'s' if self.concurrency > 1 else ''}"
        return f"{self.rate:,.0f} requests/s"

    def schedule(self) -> Schedule:
        """When its requests are due."""
        if self.moments is not None:
            return Open(self.moments[: self.count])
        if self.rate is None:
            return Closed(self.seconds, math.inf if self.count is None else self.count)
        random = np.random.default_rng(self.seed)
        moments = arrival_moments(self.rate, self.seconds, random)
        return Open(moments[: self.count].tolist())


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One server and the requests for it."""

    target: ServerAddress
    requests: Sequence[bytes]  # sent in this order, and again from the start
    expected: Expected | None = None  # None where answers are not checked
    sequences_per_request: float = 1  # on average
    headers: dict[str, str] = field(default_factory=dict)  # of requests for metrics, such as a key

    def run(self, load: LoadSpec, *, tick: Tick | None = None) -> Figures:
        """Runs one load: the warm-up, then the measurement."""
        if load.warmup_seconds:
            warmup = changed(load, seconds=load.warmup_seconds, count=None, seed=load.seed + 1, moments=None)
            limit = _OVERTIME * load.warmup_seconds + _OVERTIME_SECONDS
            drive(self.target, self.requests, warmup.schedule(), connections=load.concurrency, limit_seconds=limit)
        before = remote.metrics(self.target, self.headers)
        check = self.expected.is_right if self.expected else None
        measurement = drive(
            self.target,
            self.requests,
            load.schedule(),
            connections=load.concurrency,
            check=check,
            tick=tick,
            limit_seconds=_OVERTIME * load.seconds + _OVERTIME_SECONDS,
        )
        after = remote.metrics(self.target, self.headers)
        return figures(
            measurement,
            after.since(before) if before and after else None,
            load=load.name,
            seconds=load.seconds,
            offered_rate=load.rate,
            sequences_per_request=self.sequences_per_request,
            checked=check is not None,
        )


def prepare(
    target: ServerAddress,
    sequences: Sequence[Steps],
    *,
    form: RequestFormat = "json",
    per_request: int = 1,
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    check: bool = True,
    tick: Tick | None = None,
) -> LoadTest:
    """Builds the requests, and sends each sequence by itself for its unbatched answer."""
    fields, headers = dict(fields or {}), dict(headers or {})
    sequences = sequences[: max(len(sequences) // per_request, 1) * per_request]
    if form == "binary":
        if per_request > 1 or sequences[0].dtype != np.float32:
            raise ConfigurationError("a binary request holds one sequence of numbers; send tokens or several as json")
        requests = binary_requests(target, sequences, fields, headers)
    else:
        requests = json_requests(target, sequences, per_request, fields, headers)
    expected = None
    if check:
        singles = requests if per_request == 1 else json_requests(target, sequences, 1, fields, headers)
        read = whole if form == "binary" else scores
        expected = Expected(ask_each(target, singles, tick=tick), per_request, read=read)
    return LoadTest(target, requests, expected, per_request, headers)


@dataclass(frozen=True)
class Workload:
    """The sequences and requests of a load test."""

    lengths: str = "lognormal:50,0.7"  # a distribution
    data: str | None = None  # a file of sequences to send; None for random ones
    replay: Path | None = None  # a recorded load
    distinct: int = 500  # different random sequences
    per_request: int = 1
    form: RequestFormat = "json"
    headers: dict[str, str] = field(default_factory=dict)
    check: bool = True  # whether answers are compared with unbatched ones
    seed: int = 0

    def sequences(self, service: ServiceUnderLoad) -> list[Steps]:
        """The sequences for a service's model."""
        model = remote.model(service.target, service.name, self.headers)
        if self.data is not None:
            return [record.steps for record in dataset.read(dataset.locate(self.data), model.step.kind)]
        random = np.random.default_rng(self.seed)
        lengths = draw_lengths(self.lengths, self.distinct, model.max_length, random, min_length=model.min_length)
        return make_sequences(lengths, model.step, random)

    def recorded(self, service: ServiceUnderLoad, path: Path) -> RecordedLoad:
        """The recorded load at a path, for a service's model."""
        model = remote.model(service.target, service.name, self.headers)
        return replay.read(path, model.step, model=model.name)

    def replay_test(self, service: ServiceUnderLoad, recorded: RecordedLoad) -> LoadTest:
        """The load test that sends the requests of a recorded load. Answers are not compared."""
        headers = {"content-type": "application/json", **self.headers}
        requests = [
            service.target.request(PATH, json_body(sequences, **service.fields), headers)
            for sequences in recorded.requests
        ]
        per_request = sum(map(len, recorded.requests)) / len(requests)
        return LoadTest(service.target, requests, None, per_request, self.headers)

    def load_test(self, service: ServiceUnderLoad, *, tick: Tick | None = None) -> LoadTest:
        """The load test for a service's model: requests and expected answers."""
        return prepare(
            service.target,
            self.sequences(service),
            form=self.form,
            per_request=self.per_request,
            fields=service.fields,
            headers=self.headers,
            check=self.check,
            tick=tick,
        )
