"""Loads against one server, each giving its figures: the same requests, closed or open, answers checked as they come.

A `Trial` is prepared once: requests are made as bytes, every sequence is sent alone and its answer kept. Each load is
then warmed up, and measured between two readings of the server's metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lengthwise.bench import remote
from lengthwise.bench.connection import Target
from lengthwise.bench.expected import Expected, scores, whole
from lengthwise.bench.figures import Figures, figures
from lengthwise.bench.launch import Served
from lengthwise.bench.load import Tick, ask_each, drive
from lengthwise.bench.schedule import Closed, Open, Schedule
from lengthwise.bench.workload import Arrivals, Input, arrival_moments, draw_lengths, json_body, make_sequences
from lengthwise.decoding import dataset
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps

Form = Literal["json", "binary"]
PATH = "/predict"
_DEFAULT_MAX_LENGTH = 1024
# A server that cannot keep up with a rate would be at it for as many times longer as the rate is too high.
_OVERTIME = 1.5
_OVERTIME_SECONDS = 5.0


def json_requests(
    target: Target, sequences: Sequence[Steps], per_request: int, fields: Mapping[str, str], headers: Mapping[str, str]
) -> list[bytes]:
    """Requests of `per_request` sequences each, as JSON; the last one may hold fewer."""
    groups = [sequences[first : first + per_request] for first in range(0, len(sequences), per_request)]
    headers = {"content-type": "application/json", **headers}
    return [target.request(PATH, json_body(group, **fields), headers) for group in groups]


def binary_requests(
    target: Target, sequences: Sequence[Steps], fields: Mapping[str, str], headers: Mapping[str, str]
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
class Load:
    """How much is sent, and when.

    Attributes:
        concurrency: Requests on their way at once, each on a connection of its own; with a rate, the most of them.
        rate: Requests due a second, which makes the loop open; None for a closed one.
        arrivals: How an open loop's requests are spaced.
        burst: Requests in one burst.
        seconds: How long requests are due.
        warmup_seconds: Load of the same kind before, which does not count.
        count: Most requests; None for as many as the time allows.
        seed: Of the arrivals.
    """

    concurrency: int = 64
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    burst: int = 32
    seconds: float = 10.0
    warmup_seconds: float = 1.0
    count: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The load in words."""
        if self.rate is None:
            return f"{self.concurrency} connection{'s' if self.concurrency > 1 else ''}"
        return f"{self.arrivals} {self.rate:,.0f}/s"

    def schedule(self) -> Schedule:
        """When its requests are due."""
        if self.rate is None:
            return Closed(self.seconds, math.inf if self.count is None else self.count)
        random = np.random.default_rng(self.seed)
        moments = arrival_moments(self.arrivals, self.rate, self.seconds, random, burst=self.burst)
        return Open(moments[: self.count].tolist())


@dataclass(frozen=True, slots=True)
class Trial:
    """One server and the requests for it.

    Attributes:
        target: The server.
        requests: Sent in this order, and again from the start.
        expected: What each must be answered; None where answers are not checked.
        sequences_per_request: How many sequences each holds.
        headers: Of requests for metrics, such as a key.
    """

    target: Target
    requests: Sequence[bytes]
    expected: Expected | None = None
    sequences_per_request: int = 1
    headers: dict[str, str] = field(default_factory=dict)

    def run(self, load: Load, *, tick: Tick | None = None) -> Figures:
        """Puts one load on the server: the warm-up, then what counts."""
        if load.warmup_seconds:
            warmup = replace(load, seconds=load.warmup_seconds, count=None, seed=load.seed + 1)
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
    target: Target,
    sequences: Sequence[Steps],
    *,
    form: Form = "json",
    per_request: int = 1,
    fields: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    check: bool = True,
    tick: Tick | None = None,
) -> Trial:
    """Makes the requests, and sends each sequence alone to learn its answer.

    Args:
        target: The server.
        sequences: At least one; those past the last whole request are left out.
        form: `json`, or `binary` of one sequence a request.
        per_request: Sequences a request.
        fields: Further fields of each body, such as `model`.
        headers: Further headers of each request, such as a key.
        check: Whether answers will be compared with those alone.
        tick: For a progress bar over the sequences sent alone.

    Raises:
        ConfigurationError: The server cannot be reached, or does not answer a sequence.
    """
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
        alone = requests if per_request == 1 else json_requests(target, sequences, 1, fields, headers)
        read = whole if form == "binary" else scores
        expected = Expected(ask_each(target, alone, tick=tick), per_request, read=read)
    return Trial(target, requests, expected, per_request, headers)


@dataclass(frozen=True)
class Workload:
    """What is sent.

    Attributes:
        lengths: The distribution of lengths.
        data: A file whose sequences are sent instead of made ones.
        distinct: How many different sequences there are.
        per_request: Sequences a request.
        form: How they are sent.
        step: What a step is; None to ask the service.
        max_length: Longest sequence; None to ask the service.
        headers: Further headers of each request.
        check: Whether answers are compared with those alone.
        seed: Of lengths, values and arrivals.
    """

    lengths: str = "lognormal:50,0.7"
    data: str | None = None
    distinct: int = 500
    per_request: int = 1
    form: Form = "json"
    step: Input | None = None
    max_length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    check: bool = True
    seed: int = 0

    def sequences(self, service: Served) -> list[Steps]:
        """The sequences for a service's model."""
        step, max_length = self.step, self.max_length
        if step is None or max_length is None:
            try:
                model = remote.model(service.target, service.name, self.headers)
            except ConfigurationError:
                if step is None:
                    raise
                max_length = max_length or _DEFAULT_MAX_LENGTH
            else:
                step, max_length = step or model.step, max_length or model.max_length
        if self.data is not None:
            return [record.steps for record in dataset.read(dataset.locate(self.data), step.kind)]
        random = np.random.default_rng(self.seed)
        return make_sequences(draw_lengths(self.lengths, self.distinct, max_length, random), step, random)

    def trial(self, service: Served, *, tick: Tick | None = None) -> Trial:
        """Everything made and learnt that loads on this service need."""
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
