"""Every decoder under fuzz, and what holds whatever it is sent: it makes a `Call` that is valid, or a refusal.

Nothing else may come out of it, neither another exception nor a long wait, and nothing may stay behind. The cases are
made first, so that what hypothesis keeps is no part of what is measured; the time is processor time, so that a busy
machine fails nothing.
"""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from hypothesis.strategies import SearchStrategy

from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding.calls import MAX_TIMEOUT_MS, Call, why_refused
from lengthwise.errors import RequestError
from lengthwise.grpc import codec
from lengthwise.protocols import kserve
from lengthwise.protocols.endpoint import Endpoint, Received
from lengthwise.protocols.predict import Predict, PredictV1
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from tests.fuzz import cases
from tests.fuzz.cases import Case
from tests.support.numpy_models import Service

LONGEST_SECONDS: Final = 1.0
"""Of processor time, for a body of at most 64 KiB."""
GROWTH_BYTES: Final = 262_144
"""What may stay behind after all bodies: caches of a fixed size, no more."""
STATUSES: Final = frozenset({404, 413, 415, 422})
"""How a body can be refused where models are served and nothing is queued."""

Decode = Callable[[Service, Case], Awaitable[str]]
"""Decodes a case: the status of its refusal, or 200. Raises what a decoder must not."""


def _endpoint(kind: type[Endpoint]) -> Decode:
    async def decode(service: Service, case: Case) -> str:
        endpoint = kind(service.serving, _NO_LIMIT)
        try:
            decoded = endpoint.read(
                Received({"path_params": case.path, "query_string": case.query}, case.headers, case.body), fast=False
            )
        except RequestError as error:
            return _told(error, *endpoint.refuse(error)[:2])
        assert decoded is not None
        return _valid(decoded[0])

    return decode


async def _message(service: Service, case: Case) -> str:
    try:
        call, _ = codec.decode(case.body, service.serving)
    except RequestError as error:
        return _told(error, *kserve.refusal(error)[:2])
    return _valid(call)


async def _repository(service: Service, case: Case) -> str:
    """The whole way over HTTP: these calls have no decoder apart from their endpoints."""
    answer = await service.client.post(f"/v2/repository/{case.path['place']}", content=case.body)
    assert answer.status_code in {200, 400, 404}, (answer.status_code, answer.text)
    assert isinstance(answer.json(), (dict, list))
    return str(answer.status_code)


def _told(refused: RequestError, status: int, body: bytes) -> str:
    """Holds what is said of every refusal."""
    assert refused.status in STATUSES, refused
    assert json.loads(body)
    return str(status)


def _valid(call: Call) -> str:
    """Holds what is said of every `Call`."""
    manifest = call.model.manifest
    assert call.items
    for item in call.items:
        assert why_refused(item.steps, manifest) is None
        assert item.sent_steps >= len(item.steps) >= 1
        assert item.step_indices is None or len(item.step_indices) == len(item.steps)
        assert item.id is None or isinstance(item.id.encode(), bytes)  # it can be sent back
    assert call.timeout_ms is None or 0 < call.timeout_ms <= MAX_TIMEOUT_MS
    assert 0 <= call.priority <= MAX_PRIORITY
    assert not call.attention or manifest.graph.attention is not None
    return "200"


_NO_LIMIT: Final = Turns()


@dataclass(frozen=True)
class Decoder:
    """One of them: its name, what makes its cases, and what decodes one."""

    name: str
    built: Callable[[], SearchStrategy[Case]]
    decode: Decode


DECODERS: Final = (
    Decoder("predict", cases.predict, _endpoint(Predict)),
    Decoder("octets", cases.octets, _endpoint(Predict)),
    Decoder("v1", cases.v1, _endpoint(PredictV1)),
    Decoder("v2 json", lambda: cases.v2(binary=False), _endpoint(Infer)),
    Decoder("v2 binary", lambda: cases.v2(binary=True), _endpoint(Infer)),
    Decoder("grpc", cases.rpc, _message),
    Decoder("repository", cases.repository, _repository),
)


@dataclass
class Report:
    """What was seen of a decoder."""

    decoder: str
    bodies: int = 0  # different ones
    body_bytes: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # how many ended in which status; 200 for a valid call
    slowest_seconds: float = 0.0  # of processor time
    slowest: bytes = b""
    growth_bytes: int = 0  # allocated by the second time through all of them, and not freed
    failures: list[tuple[Case, str]] = field(default_factory=list)  # the bodies that broke a rule, with how

    @property
    def good(self) -> bool:
        """Whether every rule held."""
        return not self.failures and self.slowest_seconds < LONGEST_SECONDS and self.growth_bytes < GROWTH_BYTES


async def fuzz(service: Service, decoder: Decoder, sent: list[Case]) -> Report:
    """Sends every case once for its answer and its time, and once more for what stays behind."""
    report = Report(decoder.name, len(sent), sum(len(case.body) for case in sent))
    for case in sent:
        started = time.process_time()
        try:
            report.answers[await decoder.decode(service, case)] += 1
        except Exception as error:  # whatever it is, it is what is looked for
            report.failures.append((case, f"{type(error).__name__}: {error}"[:300]))
        seconds = time.process_time() - started
        if seconds > report.slowest_seconds:
            report.slowest_seconds, report.slowest = seconds, case.body
    failed = [case for case, _ in report.failures]
    report.growth_bytes = await _growth(service, decoder, [case for case in sent if case not in failed])
    return report


async def _growth(service: Service, decoder: Decoder, sent: list[Case]) -> int:
    """What Python still holds after every case; what the first tenth leaves in caches is left out."""
    tracemalloc.start()
    try:
        before = 0
        for number, case in enumerate(sent):
            if number == len(sent) // 10:
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
            await decoder.decode(service, case)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
