"""A server of a few lines that speaks the contract, for tests of what measures servers.

Its "probabilities" are a function of the sequence alone. How it misbehaves is a callable that sees each request.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson

from lengthwise.bench.connection import ServerAddress


@dataclass
class Reply:
    """What goes back; `close` ends the connection, without any answer where `status` is 0."""

    status: int
    body: bytes
    close: bool = False
    head: tuple[tuple[str, str], ...] = ()
    content_length: bool = True


@dataclass
class SmallServer:
    """What the server saw, and what it does: `behave(number, reply)` may change the reply to request `number`."""

    behave: Callable[[int, Reply], Reply] = lambda _number, reply: reply
    models: list[dict[str, object]] = field(
        default_factory=lambda: [{"model": "small", "version": "1", "input": "values", "features": 2, "max_length": 64}]
    )
    refused: list[dict[str, object]] = field(default_factory=list)
    reason: str | None = None
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    valid_steps: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
        if headers["content-type"] == "application/octet-stream":
            shape = tuple(int(size) for size in headers["x-lengthwise-shape"].split(","))
            sequences = [np.frombuffer(body, "<f4").reshape(shape).tolist()]
        else:
            sequences = orjson.loads(body)["sequences"]
        with self.lock:
            self.valid_steps += sum(len(steps) for steps in sequences)
        predictions = [
            {"probabilities": [float(np.nansum(np.array(steps, dtype=float))), len(steps)]} for steps in sequences
        ]
        return self.behave(number, Reply(200, orjson.dumps({"predictions": predictions})))

    def metrics(self) -> bytes:
        batches = len(self.bodies)
        return (
            "# TYPE lengthwise_steps_total counter\n"
            f'lengthwise_steps_total{{kind="valid",model="small",version="1"}} {self.valid_steps}\n'
            f'lengthwise_steps_total{{kind="padding",model="small",version="1"}} {self.valid_steps / 3}\n'
            "# TYPE lengthwise_batch_rows histogram\n"
            f'lengthwise_batch_rows_bucket{{le="+Inf",model="small",version="1"}} {batches}\n'
            f'lengthwise_batch_rows_sum{{model="small",version="1"}} {batches * 4}\n'
            f'lengthwise_batch_rows_count{{model="small",version="1"}} {batches}\n'
        ).encode()


def _config(model: dict[str, object]) -> dict[str, object]:
    """A model's configuration as Triton has it, from an entry of `/healthz`."""
    stated = {"min_length": 1} | {
        name: model[name] for name in ("vocabulary", "min_length", "max_length", "names") if name in model
    }
    return {
        "input": [{"dims": [-1, model.get("features", -1)]}],
        "parameters": {name: {"string_value": str(value)} for name, value in stated.items()},
    }


@contextmanager
def serving(server: SmallServer) -> Iterator[ServerAddress]:
    """Runs it on a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            pages = {
                "/readyz": lambda: b"",
                "/healthz": lambda: orjson.dumps(
                    {"models": server.models, "reason": server.reason, "refused": server.refused}
                ),
                "/metrics": server.metrics,
            }
            for model in server.models:
                path = f"/v2/models/{model['model']}/versions/{model['version']}/config"
                pages[path] = partial(orjson.dumps, _config(model))
            page = pages.get(self.path)
            self._send(Reply(200, page()) if page else Reply(404, b""))

        def do_POST(self) -> None:
            if self.path == "/v2/repository/index":
                index = [{"name": m["model"], "version": m["version"], "state": "READY"} for m in server.models]
                self._send(Reply(200, orjson.dumps(index)))
                return
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(server.predict(self.path, headers, body))

        def _send(self, reply: Reply) -> None:
            self.close_connection = reply.close
            if reply.status == 0:
                return
            self.send_response(reply.status)
            if reply.content_length:
                self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.head:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield ServerAddress("127.0.0.1", listener.server_address[1])
        finally:
            listener.shutdown()
            thread.join()
