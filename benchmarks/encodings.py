"""Server time of one request with many sequences, by its encoding: `python -m benchmarks.encodings`.

The same 64 sequences of 50 steps of 12 features as an Arrow stream, as JSON, and as the tensors of the Open Inference
Protocol (v2) with the binary extension. In one process, each is read to the sequences that are queued, these are padded
to one batch, and the answers are written, in alternating turns, without running the graph between them; the figure is
the median of the turns, of the thread's processor time. Then a server answers each over HTTP in short alternating
rounds, first without running the graph, then with it: the figure is its processor time per request, the median of the
rounds, and the ratio is the median of the ratios within a round.
All encodings must give the same padded batch and the same probabilities, bit for bit.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import orjson
import pyarrow as pa

from benchmarks import machine, output, pages
from benchmarks.processes import cpu_seconds
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import Closed, ask_each, drive
from lengthwise.bench.workload import Input, json_body, make_sequences
from lengthwise.client.bodies import ServerLimits, prepare
from lengthwise.decoding.given import sequences_of
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.protocols.arrow import MEDIA_TYPE
from lengthwise.protocols.endpoint import Endpoint, Received
from lengthwise.protocols.predict import Predict
from lengthwise.protocols.v2 import Infer
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving
from lengthwise.settings import Settings, bundled_models

PAGE = pages.RESULTS / "encodings.md"
MODEL = "japanese-vowels"
_FEATURES = 12
_ARROW = MEDIA_TYPE.decode()
_REFERENCE = 2
"""Which of the requests the others are compared with: JSON."""


@dataclass(frozen=True)
class EncodedRequest:
    """One request in one encoding.

    Attributes:
        name: For people.
        path: Its path.
        headers: Its headers.
        body: Its body.
        probabilities: Reads those of an answer's body, `[rows, classes]`.
    """

    name: str
    path: str
    headers: dict[str, str]
    body: bytes
    probabilities: Callable[[bytes], Any]

    def received(self) -> Received:
        """The request as an endpoint gets it."""
        headers = {name.encode(): text.encode() for name, text in self.headers.items()}
        return Received({"path_params": {"model": MODEL}}, headers, self.body)


def requests_of(sequences: Sequence[Steps]) -> list[EncodedRequest]:
    """The sequences in every encoding."""
    (arrow,) = prepare(sequences_of(sequences), ServerLimits(media_types=(_ARROW,)), "arrow").bodies
    return [
        EncodedRequest(
            "Arrow `/predict`", "/predict", {"content-type": _ARROW, "accept": _ARROW}, arrow.content, _of_arrow
        ),
        EncodedRequest(
            "Arrow `/predict`, answer as JSON", "/predict", {"content-type": _ARROW}, arrow.content, _of_json
        ),
        EncodedRequest(
            "JSON `/predict`", "/predict", {"content-type": "application/json"}, json_body(sequences), _of_json
        ),
        _v2_binary(sequences),
    ]


def _v2_binary(sequences: Sequence[Steps]) -> EncodedRequest:
    width = max(map(len, sequences))
    values = np.zeros((len(sequences), width, _FEATURES), dtype="<f4")
    for row, steps in zip(values, sequences, strict=True):
        row[: len(steps)] = steps
    lengths = np.array([len(steps) for steps in sequences], dtype="<i4")
    tensors = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [*array.shape],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, datatype, array in (("values", "FP32", values), ("lengths", "INT32", lengths))
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "score", "probabilities")]
    head = orjson.dumps({"inputs": tensors, "outputs": wanted})
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    body = head + values.tobytes() + lengths.tobytes()
    size = len(sequences) * 9 * 4

    def probabilities(answer: bytes) -> Any:
        return np.frombuffer(answer[-size:], "<f4").reshape(-1, 9)

    return EncodedRequest("v2 binary", f"/v2/models/{MODEL}/infer", headers, body, probabilities)


def _of_json(answer: bytes) -> Any:
    return np.float32([one["probabilities"] for one in orjson.loads(answer)["predictions"]])


def _of_arrow(answer: bytes) -> Any:
    with pa.ipc.open_stream(answer) as reader:
        column = reader.read_all().column("probabilities").combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


async def in_process(requests: Sequence[EncodedRequest], seconds: float) -> list[dict[str, float]]:
    """The microseconds of reading, padding and writing, for each request.

    Raises:
        ValueError: They do not give the same padded batch.
    """
    serving = Serving(Settings(runners=1, log_level="error"))
    await serving.start()
    try:
        places = asyncio.Semaphore(1)
        endpoints: list[Endpoint] = [
            (Infer if request.path.startswith("/v2") else Predict)(serving, places) for request in requests
        ]
        turns: list[list[tuple[float, float, float]]] = [[] for _ in requests]
        batches: list[PaddedBatch] = []
        call, _ = endpoints[0].decode(requests[0].received())
        scored = call.model.model.answer(pad([item.steps for item in call.items]), False)
        answers = [answer for answer in scored if answer is not None]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            batches.clear()
            for request, endpoint, found in zip(requests, endpoints, turns, strict=True):
                found.append(_turn(request, endpoint, answers, batches))
        for batch in batches[1:]:
            if batch.steps.tobytes() != batches[0].steps.tobytes():
                raise ValueError("the encodings do not give the same batch")
        return [
            dict(
                zip(("read", "pad", "write"), (median(times) * 1e6 for times in zip(*found, strict=True)), strict=True)
            )
            for found in turns
        ]
    finally:
        await serving.stop()


def _turn(
    request: EncodedRequest, endpoint: Endpoint, answers: list[Answer], batches: list[PaddedBatch]
) -> tuple[float, float, float]:
    """The processor seconds of reading, padding and writing of one request."""
    received = request.received()
    started = time.thread_time()
    call, encode = endpoint.decode(received)
    read = time.thread_time()
    batches.append(pad([item.steps for item in call.items]))
    padded = time.thread_time()
    encode(answers)
    return read - started, padded - read, time.thread_time() - padded


def over_http(
    requests: Sequence[EncodedRequest], server_cores: Sequence[int], rounds: int, seconds: float, *, empty: bool
) -> list[dict[str, float]]:
    """The processor time of a server per request; the median of the rounds, and that of the ratios to JSON.

    Raises:
        ValueError: The answers have not the same probabilities.
    """
    port = launch.free_port()
    command = launch.serve_command(bundled_models(), port, {"runners": "1", "log_level": "error"})
    if empty:
        command[command.index("lengthwise")] = "benchmarks.variants"
        command.insert(command.index("serve"), "empty-run")
    figures: list[list[dict[str, float]]] = [[] for _ in requests]
    with launch.running(command, port, cores=server_cores) as server:
        written = [_bytes(server.target, request) for request in requests]
        answers = [ask_each(server.target, [text])[0] for text in written]
        bits = {request.probabilities(body).tobytes() for request, body in zip(requests, answers, strict=True)}
        if len(bits) != 1:
            raise ValueError("the encodings do not give the same probabilities")
        for _ in range(rounds):
            for text, found, body in zip(written, figures, answers, strict=True):
                before = cpu_seconds(server.pid)
                load = drive(server.target, [text], Closed(seconds), connections=4)
                used = cpu_seconds(server.pid) - before
                count = int((load.status == 200).sum())
                found.append({"us": used / count * 1e6, "answer": len(body)})
    reference = [one["us"] for one in figures[_REFERENCE]]
    return [
        {
            "us": median(one["us"] for one in found),
            "ratio": median(one["us"] / other for one, other in zip(found, reference, strict=True)),
            "answer": found[0]["answer"],
        }
        for found in figures
    ]


def _bytes(target: ServerAddress, request: EncodedRequest) -> bytes:
    return target.request(request.path, request.body, request.headers)


def page(facts: dict[str, Any], result: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        (
            request["name"],
            f"{request['body_bytes']:,}",
            f"{request['without']['answer']:,.0f}",
            *(f"{request['stages'][stage]:,.0f}" for stage in ("read", "pad", "write")),
            f"{request['without']['us']:,.0f}",
            f"{request['without']['ratio']:.2f}",
            f"{request['with']['us']:,.0f}",
            f"{request['with']['ratio']:.2f}",
        )
        for request in result["requests"]
    ]
    heads = ("encoding", "bytes sent", "bytes back", "read us", "pad us", "write us")
    heads += ("server us without the graph", "over JSON", "server us", "over JSON")
    how = (
        f"`python -m benchmarks.encodings`: {result['rows']} sequences of {result['steps']} steps of {_FEATURES} "
        "features in one request. Read, pad and write: in one process, processor time, the median of alternating "
        f"turns. Server: processor time per request over HTTP from 4 connections, the median of {result['rounds']} "
        "alternating rounds; other programs ran on the machine."
    )
    return pages.page(facts, "Encodings of many sequences", how, pages.table(heads, lines))


@click.command()
@click.option("--quick", is_flag=True, help="One short round: to see that it runs.")
@click.option("--rows", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1024), default=50, show_default=True)
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True)
def main(quick: bool, rows: int, steps: int, out: Path) -> None:
    """Measures the encodings of many sequences."""
    facts = machine.facts()
    rounds, seconds = (1, 0.3) if quick else (15, 0.5)
    sequences = make_sequences(np.full(rows, steps), Input("values", _FEATURES), np.random.default_rng(0))
    requests = requests_of(sequences)
    server, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [server])
    stages = asyncio.run(in_process(requests, 1.0 if quick else 6.0))
    without = over_http(requests, [server], rounds, seconds, empty=True)
    served = over_http(requests, [server], rounds, seconds, empty=False)
    found = [
        {"name": one.name, "body_bytes": len(one.body), "stages": stage, "without": bare, "with": whole}
        for one, stage, bare, whole in zip(requests, stages, without, served, strict=True)
    ]
    text = page(facts, {"rows": rows, "steps": steps, "rounds": rounds, "requests": found})
    pages.write(out, text)
    click.echo(text)


if __name__ == "__main__":
    main()
