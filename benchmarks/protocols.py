"""Every protocol side by side: `python -m benchmarks.protocols`.

The same sequences of T steps, one per request, from the same number of connections (over gRPC: concurrent calls), for
the same model served by one runner on one core; the load comes from another. Requests and answers are as short as the
protocol allows: raw tensors are answered with raw tensors, and v2 asks for the probabilities only. All protocols must
give the bits of `POST /predict`. A second server does not run the graph, and so shows the time of the protocol itself,
beside which stands its ratio to JSON at `/predict`. Of gRPC two more servers show what a call costs that does nothing,
with the same messages: gRPC's own for asyncio (`grpc.aio`), and the service's way of accepting calls.

Bytes are counted on the wire, with headers and frames, by a relay that some requests pass one by one over one
connection. A gRPC client needs more processor time than the others; requests per core-second are requests over the
processor time of the server, and do not depend on that.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import grpc
import grpc.aio
import numpy as np
import orjson
import uvloop
from rich.progress import track

from benchmarks import machine, output, pages
from benchmarks.processes import cpu_seconds, first_core
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.figures import Latency
from lengthwise.bench.load import Load, Schedule, ask_each
from lengthwise.bench.workload import Input, json_body, make_sequences
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import INFER, STREAM
from lengthwise.grpc.transport import RpcCall, RpcServer
from lengthwise.padding import Steps
from lengthwise.settings import bundled_models

PAGE = pages.RESULTS / "protocols.md"
MODEL = "japanese-vowels"
_FEATURES = 12
_RELAYED = 20


@dataclass(frozen=True)
class ProtocolForm:
    """How a protocol writes a request, and where its answer has the probabilities."""

    name: str  # for people
    write: Callable[[ServerAddress, Steps], bytes]  # makes the bytes of a request, or for gRPC of a message
    probabilities: Callable[[bytes], Sequence[float]]  # reads those of an answer's body
    rpc: bool = False  # whether it goes over gRPC
    in_flight: int = 0  # requests on their way on one stream; 0 where each is a call


def _predict(target: ServerAddress, steps: Steps) -> bytes:
    return target.request("/predict", json_body([steps]), {"content-type": "application/json"})


def _octets(target: ServerAddress, steps: Steps) -> bytes:
    kind = "application/octet-stream"
    shape = f"{len(steps)},{_FEATURES}"
    head = {"content-type": kind, "accept": kind, "x-lengthwise-shape": shape}
    return target.request("/predict", steps.astype("<f4").tobytes(), head)


def _v1(target: ServerAddress, steps: Steps) -> bytes:
    body = orjson.dumps({"instances": [steps]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return target.request(f"/v1/models/{MODEL}:predict", body, {"content-type": "application/json"})


def _v2(target: ServerAddress, steps: Steps) -> bytes:
    tensor = {"name": "values", "datatype": "FP32", "shape": [1, *steps.shape], "data": steps.ravel()}
    body = orjson.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return target.request(f"/v2/models/{MODEL}/infer", body, {"content-type": "application/json"})


def _v2_binary(target: ServerAddress, steps: Steps) -> bytes:
    octets = steps.astype("<f4").tobytes()
    tensor = {
        "name": "values",
        "datatype": "FP32",
        "shape": [1, *steps.shape],
        "parameters": {"binary_data_size": len(octets)},
    }
    wanted = {"name": "probabilities", "parameters": {"binary_data": True}}
    head = orjson.dumps({"inputs": [tensor], "outputs": [wanted]})
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return target.request(f"/v2/models/{MODEL}/infer", head + octets, headers)


def message(_: ServerAddress, steps: Steps) -> bytes:
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[steps.astype("<f4").tobytes()])
    request.inputs.add(name="values", datatype="FP32", shape=[1, *steps.shape])
    request.outputs.add(name="probabilities")
    return request.SerializeToString()


def _floats(octets: bytes) -> list[float]:
    found: list[float] = np.frombuffer(octets[-4 * 9 :], "<f4").tolist()
    return found


def _first(body: bytes) -> list[float]:
    found: list[float] = orjson.loads(body)["predictions"][0]["probabilities"]
    return found


FORMS = (
    ProtocolForm("JSON `/predict`", _predict, _first),
    ProtocolForm("octets `/predict`", _octets, _floats),
    ProtocolForm("v1", _v1, _first),
    ProtocolForm("v2 JSON", _v2, lambda body: orjson.loads(body)["outputs"][0]["data"]),
    ProtocolForm("v2 binary", _v2_binary, _floats),
    ProtocolForm(
        "gRPC", message, lambda body: _floats(pb.ModelInferResponse.FromString(body).raw_output_contents[0]), rpc=True
    ),
    ProtocolForm(
        "gRPC stream, 16 in flight",
        message,
        lambda body: _floats(pb.ModelStreamInferResponse.FromString(body).infer_response.raw_output_contents[0]),
        rpc=True,
        in_flight=16,
    ),
)
EMPTY: Final = ("grpc.aio, empty call", "this service's transport, empty call")


@dataclass
class Relay:
    """Counts what passes between a client and a server."""

    port: int  # where clients connect
    sent: int = 0  # bytes towards the server
    received: int = 0  # bytes back


@contextmanager
def relay(server: ServerAddress) -> Iterator[Relay]:
    """A relay of one connection while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Relay(listener.getsockname()[1])

        def passed(source: socket.socket, sink: socket.socket, up: bool) -> None:
            while data := source.recv(65_536):
                if up:
                    made.sent += len(data)
                else:
                    made.received += len(data)
                sink.sendall(data)
            with suppress(OSError):  # it may have been closed from the other end meanwhile
                sink.shutdown(socket.SHUT_WR)

        def carry() -> None:
            near, _ = listener.accept()
            with near, socket.create_connection((server.host, server.port)) as far:
                back = threading.Thread(target=passed, args=(far, near, False))
                back.start()
                passed(near, far, True)
                back.join()

        thread = threading.Thread(target=carry)
        thread.start()
        yield made
        thread.join()


async def calls(
    port: int, messages: Sequence[bytes], at_once: int, seconds: float, count: float, *, wait: bool = False
) -> tuple[list[bytes], list[float], float]:
    """Calls by as many callers as say so: the answers of the first round, the latencies, and the time they took.

    With `wait` the server may not listen yet.
    """
    loop = asyncio.get_running_loop()
    first: dict[int, bytes] = {}
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary(f"/{INFER}")
        if wait:
            await method(messages[0], wait_for_ready=True)
        started, number = loop.time(), 0

        async def caller() -> None:
            nonlocal number
            while number < count and (now := loop.time()) - started < seconds:
                place, number = number % len(messages), number + 1
                body = await method(messages[place])
                first.setdefault(place, body)
                latencies.append(loop.time() - now)

        await asyncio.gather(*(caller() for _ in range(at_once)))
        return [first[place] for place in sorted(first)], latencies, loop.time() - started


async def _streamed(
    port: int, messages: Sequence[bytes], at_once: int, seconds: float, count: float
) -> tuple[list[bytes], list[float], float]:
    """The same over one stream, on which so many requests are on their way at once."""
    loop = asyncio.get_running_loop()
    first: dict[int, bytes] = {}
    latencies: list[float] = []
    sent: dict[str, float] = {}
    named = [pb.ModelInferRequest(id=str(place)).SerializeToString() + body for place, body in enumerate(messages)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(f"/{STREAM}")()
        started, number = loop.time(), 0
        while (number < count and (number < at_once or loop.time() - started < seconds)) or sent:
            while len(sent) < at_once and number < count and loop.time() - started < seconds:
                place, number = number % len(messages), number + 1
                sent[str(place)] = loop.time()
                await call.write(named[place])
            if not sent:
                break
            body: bytes = await call.read()
            identifier = pb.ModelStreamInferResponse.FromString(body).infer_response.id
            latencies.append(loop.time() - sent.pop(identifier))
            first.setdefault(int(identifier), body)
        await call.done_writing()
        return [first[place] for place in sorted(first)], latencies, loop.time() - started


async def _ask(
    form: ProtocolForm, port: int, messages: Sequence[bytes], at_once: int, seconds: float, count: float
) -> tuple[list[bytes], list[float], float]:
    if form.in_flight:
        return await _streamed(port, messages, form.in_flight, seconds, count)
    return await calls(port, messages, at_once, seconds, count)


def serve_empty(name: str, port: int) -> None:
    """Answers every call over gRPC with a fixed message, as one of `EMPTY` says, until the process ends."""
    answer = bytes(120)

    async def serve() -> None:
        if name == EMPTY[0]:

            async def given(_: bytes, __: object) -> bytes:
                return answer

            server = grpc.aio.server()
            service, _, method = INFER.rpartition("/")
            handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(given)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            server.add_insecure_port(f"127.0.0.1:{port}")
            await server.start()
        else:

            def begin(rpc: RpcCall) -> None:
                rpc.receive(lambda _: rpc.finish(message=answer))

            transport = RpcServer((), 1 << 26, begin)
            transport.listen(f"127.0.0.1:{port}", None)
            transport.start()
        await asyncio.Event().wait()

    uvloop.run(serve())


def empty_calls(load: ProtocolLoad, length: int, cores: Sequence[int]) -> dict[str, float]:
    """Calls per core-second of each of `EMPTY`, in turns: the median round."""
    steps = np.zeros((length, _FEATURES), "<f4")
    messages = [message(ServerAddress("", 0), steps)]
    found: dict[str, list[float]] = {name: [] for name in EMPTY}
    for _ in range(load.rounds):
        for name in EMPTY:
            port = launch.free_port()
            code = f"from benchmarks.protocols import serve_empty; serve_empty({name!r}, {port})"
            process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            os.sched_setaffinity(process.pid, cores)
            try:
                asyncio.run(calls(port, messages, load.at_once, load.warmup_seconds, float("inf"), wait=True))
                before = cpu_seconds(process.pid)
                _, seen, _ = asyncio.run(calls(port, messages, load.at_once, load.seconds, float("inf")))
                found[name].append(len(seen) / (cpu_seconds(process.pid) - before))
            finally:
                process.kill()
                process.wait()
    return {name: sorted(rates)[len(rates) // 2] for name, rates in found.items()}


def measure(
    form: ProtocolForm, server: launch.Running, grpc_port: int, work: list[Steps], load: ProtocolLoad
) -> dict[str, Any]:
    """The figures of one protocol; the bits of its answers with them."""
    requests = [form.write(server.target, steps) for steps in work]
    where = ServerAddress(server.target.host, grpc_port) if form.rpc else server.target
    with relay(where) as counted:
        alone = _alone(form, ServerAddress(where.host, counted.port), requests[:_RELAYED])
    if form.rpc:
        asyncio.run(_ask(form, grpc_port, requests, load.at_once, load.warmup_seconds, float("inf")))
    else:
        Load(where, requests, Schedule(seconds=load.warmup_seconds)).run(load.at_once)
    before = cpu_seconds(server.pid)
    if form.rpc:
        _, seen, seconds = asyncio.run(_ask(form, grpc_port, requests, load.at_once, load.seconds, float("inf")))
        latencies, failed = np.array(seen), 0
    else:
        found = Load(where, requests, Schedule(seconds=load.seconds)).run(load.at_once)
        latencies, seconds = found.latency, found.seconds
        failed = int((found.status != 200).sum()) + found.unanswered + found.broken
    cpu = cpu_seconds(server.pid) - before
    return {
        "requests_per_second": len(latencies) / seconds,
        "requests_per_core_second": len(latencies) / cpu,
        "server_core_share": cpu / seconds,
        "failed": failed,
        "latency_ms": asdict(Latency.of(latencies)),
        "sent_bytes": counted.sent / len(alone),
        "received_bytes": counted.received / len(alone),
        "bits": [np.float32(form.probabilities(body)).tobytes().hex() for body in alone],
    }


def _alone(form: ProtocolForm, target: ServerAddress, requests: Sequence[bytes]) -> list[bytes]:
    """The bodies of some answers, one after the other over one connection."""
    if form.rpc:
        return asyncio.run(_ask(form, target.port, requests, 1, float("inf"), len(requests)))[0]
    return ask_each(target, requests)


@dataclass(frozen=True)
class ProtocolLoad:
    """How much is sent."""

    at_once: int = 32  # requests on their way at any time
    seconds: float = 4.0
    warmup_seconds: float = 1.0  # before it
    rounds: int = 3  # how often each protocol has its turn; the median round counts


def _served(empty: bool, cores: Sequence[int], **options: str) -> AbstractContextManager[launch.Running]:
    port = launch.free_port()
    command = launch.serve_command(bundled_models(), port, {"runners": "1", "log_level": "error", **options})
    if empty:
        command[command.index("lengthwise")] = "benchmarks.variants"
        command.insert(command.index("serve"), "empty-run")
    return launch.running(command, port, cores=cores)


def compare(
    lengths: Sequence[int], load: ProtocolLoad, server_cores: Sequence[int], *, empty: bool = False
) -> dict[str, dict[str, Any]]:
    """The figures of every protocol by the number of steps; of an `empty` server the graph is not run."""
    random = np.random.default_rng(0)
    grpc_port = launch.free_port()
    found: dict[str, dict[str, Any]] = {}
    with _served(empty, server_cores, grpc_port=str(grpc_port)) as server:
        for length in lengths:
            work = make_sequences(np.full(100, length), Input("values", _FEATURES), random)
            rounds: dict[str, list[dict[str, Any]]] = {form.name: [] for form in FORMS}
            for _ in range(load.rounds):
                for form in track(FORMS, f"{length} steps", transient=True):
                    rounds[form.name].append(measure(form, server, grpc_port, work, load))
            bits = {name: figures[0]["bits"] for name, figures in rounds.items()}
            different = [name for name in bits if bits[name] != bits[FORMS[0].name]]
            if different:
                raise ValueError(f"{', '.join(different)}: other bits than {FORMS[0].name} at {length} steps")
            found[str(length)] = {  # the round of the middle throughput
                name: sorted(figures, key=lambda each: each["requests_per_second"])[len(figures) // 2]
                for name, figures in rounds.items()
            }
    return found


def page(facts: dict[str, Any], result: dict[str, Any]) -> str:
    """The figures as a page."""
    load = result["load"]
    lines = [
        (
            length,
            name,
            f"{row['requests_per_second']:,.0f}",
            f"{row['requests_per_core_second']:,.0f}",
            f"{_rate(result, length, name):,.0f}",
            f"{_rate(result, length, name) / _rate(result, length, FORMS[0].name):.2f}",
            f"{row['sent_bytes']:,.0f}",
            f"{row['received_bytes']:,.0f}",
            f"{row['latency_ms']['p50']:.2f}",
            f"{row['latency_ms']['p99']:.2f}",
        )
        for length, rows in result["protocols"].items()
        for name, row in rows.items()
    ]
    heads = [
        "steps",
        "protocol",
        "requests/s",
        "per core-second",
        "the same without the graph",
        "ratio to /predict JSON",
    ]
    heads += ["bytes sent", "bytes received", "p50 ms", "p99 ms"]
    how = (
        f"`python -m benchmarks.protocols`: sequences of {_FEATURES} features, {load['at_once']} requests at once; the "
        f"median of {load['rounds']} rounds of {load['seconds']:g} s."
    )
    empty = [
        (length, name, f"{rate:,.0f}", f"{rate / _rate(result, length, FORMS[0].name):.2f}")
        for length, rates in result["empty_calls"].items()
        for name, rate in rates.items()
    ]
    return pages.page(
        facts,
        "Protocols side by side",
        how,
        "The ratio is that of requests per core-second without the graph.",
        pages.table(heads, lines),
        "Empty calls over gRPC, whose messages are as long:",
        pages.table(("steps", "server", "calls per core-second", "ratio to /predict JSON"), empty),
    )


def _rate(result: dict[str, Any], length: str, name: str) -> float:
    """Requests per core-second without the graph."""
    return float(result["without_the_graph"][length][name]["requests_per_core_second"])


@click.command()
@click.option("--quick", is_flag=True, help="One short round: to see that it runs.")
@click.option("--steps", type=click.IntRange(1, 1024), multiple=True, default=(50, 500), show_default=True)
@click.option("--at-once", type=click.IntRange(1), default=32, show_default=True, help="Requests on their way.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True)
def main(quick: bool, steps: tuple[int, ...], at_once: int, out: Path) -> None:
    """Measures every protocol."""
    facts = machine.facts()
    load = ProtocolLoad(at_once, 1.0, 0.3, 1) if quick else ProtocolLoad(at_once)
    server = first_core()
    result = {
        "load": asdict(load),
        "protocols": compare(steps, load, [server]),
        "without_the_graph": compare(steps, load, [server], empty=True),
        "empty_calls": {str(length): empty_calls(load, length, [server]) for length in steps},
    }
    text = page(facts, result)
    output.tell(text, out=out)


if __name__ == "__main__":
    main()
