"""The clients: what they take, what they send, how they split and retry, and what their errors say."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import orjson
import pyarrow as pa
import pytest

import lengthwise
from lengthwise import errors
from lengthwise.client.answers import error_of, seconds_of
from tests.support.numpy_models import Service, manifest, model, serving

STEPS = np.float32([[0.1, 2.0], [3.0, 4.5], [5.0, -1.0]])


def client_of(service: Service, **options: Any) -> lengthwise.AsyncClient:
    return lengthwise.AsyncClient("http://service", transport=httpx2.ASGITransport(service.app), **options)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[lengthwise.AsyncClient]:
    async with client_of(service) as made:
        yield made


def fields(prediction: lengthwise.Prediction) -> dict[str, Any]:
    """A prediction as values that can be compared, arrays by their bits."""
    found = {name: getattr(prediction, name) for name in prediction.__slots__}
    return {
        name: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in found.items()
        if name != "windows"
    } | {"windows": None if prediction.windows is None else len(prediction.windows)}


def lists(steps: Any) -> list[Any]:
    return [[None if value is None or value != value else float(value) for value in step] for step in steps]


def floats(numbers: list[Any]) -> Any:
    """Numbers of an answer as float32; NaN for each step that was left out."""
    classes = next((len(row) for row in numbers if isinstance(row, list)), None)
    rows = [[np.nan] * classes if row is None and classes else row for row in numbers]
    return np.array(rows, dtype=np.float32)


# What callers pass.


@pytest.mark.parametrize(
    "rules",
    [
        manifest(missing="zero"),
        manifest(task="multi-label", missing="zero"),
        manifest(task="per-step", missing="zero"),
        manifest(task="per-step", missing="zero", attention=False, long="window", max_length=2),
        manifest(long="window", max_length=2, missing="zero"),
    ],
    ids=lambda rules: f"{rules.task} {rules.long}",
)
async def test_a_prediction_has_the_fields_and_the_bits_of_the_answer(rules: Any) -> None:
    sequences = [
        {"id": "a", "steps": STEPS, "step_mask": [True, False, True]},
        {"steps": np.array([[1.0, np.nan]]), "feature_mask": np.array([True, False])},
        {"steps": [[None, 2.5]]},
    ]
    attention = rules.graph.attention is not None
    async with serving(model(rules)) as service:
        async with client_of(service) as client:
            predictions = await client.predict(sequences, attention=attention)
        document = {"sequences": [{**one, "steps": lists(one["steps"])} for one in sequences]}
        document["sequences"][1]["feature_mask"] = [True, False]
        answer = await service.predict(document | ({"outputs": ["attention"]} if attention else {}))
    for prediction, entry in zip(predictions, answer.json()["predictions"], strict=True):
        assert prediction.probabilities.tobytes() == floats(entry["probabilities"]).tobytes()
        assert (prediction.attention is None) == (not attention)
        assert prediction.attention is None or prediction.attention.tobytes() == floats(entry["attention"]).tobytes()
        assert (prediction.id, prediction.length) == (entry.get("id"), entry["length"])


# Splitting.


async def test_sequences_are_split_by_the_limits_and_put_together_in_order() -> None:
    rng = np.random.default_rng(0)
    sequences = {str(number): rng.normal(size=(rng.integers(1, 9), 2)) for number in range(50)}
    async with serving(model(manifest()), max_sequences=7) as few, serving(model(manifest())) as many:
        async with client_of(many) as client:
            expected = await client.predict(sequences)
        async with client_of(few) as client:
            found = await client.predict(sequences)
        assert [one.id for one in found] == list(sequences)
        assert list(map(fields, found)) == list(map(fields, expected))
        samples = (await few.client.get("/metrics")).text
    assert 'lengthwise_requests_total{code="200",key="-",model="sums",version="1"} 8.0' in samples


async def test_sequences_are_split_by_the_bytes_of_a_body() -> None:
    sequences = [np.full((100, 2), number / 7, dtype=np.float32) for number in range(30)]
    async with serving(model(manifest()), max_body_bytes=20_000) as service, client_of(service) as client:
        prepared = await client.prepare(sequences)
        found = await client.predict(prepared)
        with pytest.raises(errors.TooLarge):
            await client.predict([STEPS, np.zeros((9000, 2))])
    assert len(prepared.bodies) > 1
    assert len(prepared) == 30
    assert [one.length for one in found] == [100] * 30
    assert all(len(body.content) <= 20_000 for body in prepared.bodies)


async def test_a_request_takes_a_quarter_of_the_queue_at_most() -> None:
    async with serving(model(manifest()), max_queue_cost_steps=16_384) as service, client_of(service) as client:
        prepared = await client.prepare([np.zeros((1000, 2))] * 10)
        assert [body.count for body in prepared.bodies] == [4, 4, 2]
        assert len(await client.predict(prepared)) == 10


async def test_no_sequence_is_no_request(client: lengthwise.AsyncClient) -> None:
    for nothing in ([], {}, pa.array([], pa.list_(pa.list_(pa.float32())))):
        assert await client.predict(nothing) == []


# Errors.


async def test_pointers_become_indices_of_the_callers_sequences() -> None:
    sequences = [STEPS] * 20
    sequences[12] = np.float32([[1, 2], [np.nan, 3]])
    sequences[13] = np.zeros((0, 2), dtype=np.float32)
    async with serving(model(manifest()), max_sequences=5) as service, client_of(service) as client:
        with pytest.raises(errors.InvalidSequences) as error:
            await client.predict(sequences)
    assert isinstance(error.value, ValueError)
    assert error.value.indices == (12, 13)
    assert [(one.sequence, one.step) for one in error.value.problems] == [(12, 1), (13, None)]
    assert str(error.value).startswith("sequence 12, step 1: the model sums/1 refuses missing values")


async def test_what_the_model_refuses_has_the_error_of_its_status() -> None:
    async with serving(model(manifest(attention=False))) as service, client_of(service) as client:
        with pytest.raises(errors.ModelNotFound):
            await client.predict([STEPS], model="other")
        for wrong, options in ((STEPS, {"attention": True}), (np.zeros((2, 3)), {})):
            with pytest.raises(errors.InvalidSequences):
                await client.predict([wrong], **options)


async def test_a_sequence_without_numbers_is_never_sent(service: Service, client: lengthwise.AsyncClient) -> None:
    with pytest.raises(errors.InvalidSequences) as error:
        await client.predict([STEPS, [[1, 2], [3]]])
    assert error.value.indices == (1,)
    assert service.serving.served[0].metrics.number("sequences") == 0


@pytest.mark.filterwarnings("ignore:.verify=<str>.:DeprecationWarning")  # of httpx2
@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"base_url": "x:y"}, {"verify": "/no"}]
)
def test_an_argument_that_is_wrong_is_said(options: Any) -> None:
    with pytest.raises(errors.ConfigurationError):
        lengthwise.Client(**options)


@pytest.mark.parametrize(
    ("status", "title", "kind"),
    [
        *((401, "", errors.Unauthorized), (403, "", errors.Forbidden), (404, "", errors.ModelNotFound)),
        *((413, "", errors.TooLarge), (415, "", errors.UnsupportedMedia), (429, "", errors.QueueFull)),
        *((500, "", errors.InferenceFailed), (502, "", errors.RequestError), (503, "", errors.NotReady)),
        *((503, "Draining", errors.Draining), (503, "Too many bytes in flight", errors.InflightFull)),
        *((504, "", errors.DeadlineExceeded), (400, "", errors.InvalidRequest), (422, "", errors.InvalidRequest)),
    ],
)
def test_each_status_is_an_error(status: int, title: str, kind: type[errors.RequestError]) -> None:
    found = error_of(status, orjson.dumps({"title": title, "detail": "why"}), "7")
    assert type(found) is kind
    assert "why" in str(found)
    for content in (b"", b"<html>bad gateway</html>", b"[]", b'{"detail": 5}', b"\xff"):
        assert error_of(status, content, None).status == kind.status


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("x", None), ("²", None), ("", None), (None, None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


# Retries.


def test_a_refusal_of_another_form_is_an_error_with_its_text() -> None:
    for form in ({"errors": None}, {"errors": 5}, {"errors": {"a": 1}}, {"errors": [5, {"pointer": 3, "detail": 4}]}):
        for total in ("many", None, -1):
            found = error_of(422, orjson.dumps({"detail": "why", "errors_total": total, **form}), None)
            assert isinstance(found, errors.InvalidRequest)
            assert (str(found), found.problems, found.total) == ("why", (errors.Problem("", "why"),), 1)


class Server:
    """A transport that answers as told: each answer is a response or an error; the last one is repeated."""

    def __init__(self, *answers: httpx2.Response | Exception, front: httpx2.Response | None = None) -> None:
        self.answers = list(answers)
        self.front = front or httpx2.Response(200, json={"service": "lengthwise"})
        self.requests: list[httpx2.Request] = []
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            answer: httpx2.Response | Exception = self.front
        else:
            self.requests.append(request)
            self.bodies.append(request.content)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, content=answer.content, headers=answer.headers)


def predictions() -> httpx2.Response:
    entry = {"label": "a", "score": 0.5, "probabilities": [0.5, 0.5], "length": 3}
    return httpx2.Response(200, json={"model": "m", "version": "1", "labels": ["a", "b"], "predictions": [entry]})


def refused(status: int, retry_after: str = "") -> httpx2.Response:
    return httpx2.Response(status, json={"detail": "no"}, headers={"retry-after": retry_after})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of clients, which do not happen."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    patched = {"sleep": staticmethod(sleep), "timeout": staticmethod(asyncio.timeout)}
    monkeypatch.setattr("lengthwise.client.client.asyncio", type("asyncio", (), patched))
    return found


def asked(server: Callable[[httpx2.Request], httpx2.Response], *, is_async: bool, **options: Any) -> Any:
    """What a client returns for one sequence."""
    if not is_async:
        with lengthwise.Client(transport=httpx2.MockTransport(server), **options) as client:
            return client.predict([STEPS])

    async def ask() -> Any:
        async with lengthwise.AsyncClient(transport=httpx2.MockTransport(server), **options) as client:
            return await client.predict([STEPS])

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["Client", "AsyncClient"])


@BOTH
def test_a_busy_server_is_asked_again_after_retry_after(waits: list[float], is_async: bool) -> None:
    server = Server(refused(429, retry_after="3"), refused(503, retry_after="2"), refused(503), predictions())
    (prediction,) = asked(server, is_async=is_async)
    assert prediction.label == "a"
    assert len(server.requests) == 4
    assert 3 <= waits[0] <= 3.3
    assert 2 <= waits[1] <= 2.2
    assert 0 < waits[2] < 1


@BOTH
def test_a_wait_past_the_deadline_is_not_begun(waits: list[float], is_async: bool) -> None:
    server = Server(refused(429, retry_after="9"))
    with pytest.raises(errors.QueueFull) as error:
        asked(server, is_async=is_async, timeout=5)
    assert error.value.retry_after_seconds == 9
    assert (len(server.requests), waits) == (1, [])


@BOTH
@pytest.mark.parametrize("failure", [refused(500), httpx2.ConnectError("refused"), httpx2.ReadError("lost")], ids=str)
def test_a_failure_is_tried_twice_more(failure: Any, waits: list[float], is_async: bool) -> None:
    kind = errors.InferenceFailed if isinstance(failure, httpx2.Response) else errors.ServerUnreachable
    server = Server(failure)
    with pytest.raises(kind):
        asked(server, is_async=is_async)
    assert (len(server.requests), len(waits)) == (3, 2)
    assert asked(Server(failure, failure, predictions()), is_async=is_async)[0].label == "a"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 504])
def test_a_refusal_that_would_come_again_is_not_tried_again(status: int, waits: list[float]) -> None:
    server = Server(refused(status, retry_after="1"))
    with pytest.raises(errors.RequestError):
        asked(server, is_async=False)
    assert (len(server.requests), waits) == (1, [])


def test_no_answer_in_time_is_not_tried_again_and_retries_have_a_number(waits: list[float]) -> None:
    with pytest.raises(errors.DeadlineExceeded, match="no answer came within 2 s"):
        asked(Server(httpx2.ReadTimeout("late")), is_async=False, timeout=2)
    assert waits == []
    server = Server(refused(429, retry_after="1"))
    with pytest.raises(errors.QueueFull):
        asked(server, is_async=False, retries=3)
    assert (len(server.requests), len(waits)) == (4, 3)
    with pytest.raises(errors.QueueFull):
        asked(Server(refused(429)), is_async=False, retries=0)


def test_what_is_sent_again_is_the_same_and_says_what_time_is_left(waits: list[float]) -> None:
    server = Server(refused(503), predictions())
    with lengthwise.Client(transport=httpx2.MockTransport(server), timeout=20) as client:
        client.predict([STEPS])
    first, second = server.bodies
    assert first.partition(b"timeout_ms")[0] == second.partition(b"timeout_ms")[0]
    left = [orjson.loads(body)["timeout_ms"] for body in (first, second)]
    assert 20_000 >= left[0] >= left[1] > 10_000


def test_prepared_sequences_are_encoded_once_and_sent_to_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(predictions())
    with lengthwise.Client(transport=httpx2.MockTransport(server)) as client:
        prepared = client.prepare([STEPS])
        monkeypatch.setattr(orjson, "dumps", lambda value, **_: b"{}" if isinstance(value, dict) else 1 / 0)
        client.predict(prepared)
        client.predict(prepared)
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, content=b"not JSON"),
        httpx2.Response(200, json={"predictions": []}),
        httpx2.Response(200, json={"model": "m", "version": "1", "labels": [], "predictions": []}),
        httpx2.Response(200, json={"model": "m", "version": "1", "labels": [], "predictions": [5]}),
    ],
    ids=["no JSON", "no model", "too few", "no object"],
)
def test_an_answer_that_is_none_is_said(answer: httpx2.Response, waits: list[float]) -> None:
    with pytest.raises(errors.InferenceFailed):
        asked(Server(answer), is_async=False)


def test_a_model_whose_labels_change_during_a_call_is_said(waits: list[float]) -> None:
    other = httpx2.Response(200, json=orjson.loads(predictions().content) | {"version": "2", "labels": ["x", "y"]})
    server = Server(predictions(), other, front=httpx2.Response(200, json={"limits": {"max_sequences": 1}}))
    with lengthwise.Client(transport=httpx2.MockTransport(server)) as client, pytest.raises(errors.InferenceFailed):
        client.predict([STEPS, STEPS])


@pytest.mark.parametrize(
    "front",
    [
        httpx2.Response(200, content=b"<html>", headers={"content-type": "text/html"}),
        httpx2.Response(200, content=b"{", headers={"content-type": "application/json"}),
        httpx2.Response(200, json={"limits": {"max_sequences": "7", "max_body_bytes": -1}}),
        httpx2.Response(404),
    ],
)
def test_a_front_that_says_no_limits_has_the_defaults(waits: list[float], front: httpx2.Response) -> None:
    with lengthwise.Client(transport=httpx2.MockTransport(Server(predictions(), front=front))) as client:
        assert client.predict([STEPS])[0].label == "a"
        assert len(client.prepare([STEPS] * 1025).bodies) == 2


class Trickle(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """An answer that comes byte by byte, and each takes a second of the clock."""

    def __init__(self, clock: list[float]) -> None:
        self.sent = 0
        self._clock = clock

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(1000):
            self._clock[0] += 1
            self.sent += 1
            yield b" "

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


@BOTH
def test_an_answer_that_comes_byte_by_byte_keeps_nobody_beyond_the_timeout(
    monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    clock = [100.0]
    slow = Trickle(clock)
    monkeypatch.setattr("lengthwise.client.exchange.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={}) if request.method == "GET" else httpx2.Response(200, stream=slow)

    with pytest.raises(errors.DeadlineExceeded, match="did not arrive within 10 s"):
        asked(answer, is_async=is_async, timeout=10)
    assert slow.sent <= 12


async def test_a_call_ends_where_its_transport_knows_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lengthwise.client.client.GRACE_SECONDS", 0.0)

    async def silent(_request: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with lengthwise.AsyncClient(transport=httpx2.MockTransport(silent), timeout=0.01) as client:
        with pytest.raises(errors.DeadlineExceeded, match="no answer came within"):
            await asyncio.wait_for(client.predict([STEPS]), 60)


def test_each_step_of_a_request_has_the_time_that_the_steps_before_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("lengthwise.client.exchange.time", SimpleNamespace(monotonic=lambda: clock[0]))
    left: list[float] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        for step in ("pool", "connect", "read"):  # in this order, httpx2's own transport asks for them
            left.append(request.extensions["timeout"].get(step))
            clock[0] += 3
        return httpx2.Response(200, json={})

    with lengthwise.Client(transport=httpx2.MockTransport(answer), timeout=9) as client:
        client.get("/")
    assert left == [10, 7, 4]


async def test_calls_that_begin_together_ask_for_the_limits_once() -> None:
    server = Server(predictions())
    asked: list[str] = []

    async def slow(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        await asyncio.sleep(0.01)
        return server(request)

    async with lengthwise.AsyncClient(transport=httpx2.MockTransport(slow)) as client:
        first = asyncio.create_task(client.predict([STEPS]))  # it is cancelled while it asks
        while not asked:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        asked.clear()
        answers = await asyncio.gather(*(client.predict([STEPS]) for _ in range(10)))
    assert [answer[0].label for answer in answers] == ["a"] * 10
    assert asked.count("GET") == 1


@BOTH
def test_a_redirect_says_where_it_leads(waits: list[float], is_async: bool) -> None:
    server = Server(httpx2.Response(308, headers={"location": "https://other/predict"}))
    with pytest.raises(errors.RequestError, match=r"answered 308: .*redirects to https://other/predict"):
        asked(server, is_async=is_async)


@BOTH
@pytest.mark.parametrize("path", ["/predict", "/predict/", "/v1/models/sums:predict", "/v2/models/sums/infer"])
def test_an_address_with_the_path_of_a_call_is_told(waits: list[float], path: str, is_async: bool) -> None:
    document = {"title": "Not Found", "detail": "nothing is at this path; GET / says what is where"}
    server = Server(httpx2.Response(404, json=document))
    with pytest.raises(errors.ModelNotFound, match=r"nothing is at this path; .*only that of the server") as error:
        asked(server, is_async=is_async, base_url=f"http://host{path}")
    assert f"asked was {path.rstrip('/')}/predict" in str(error.value)
    with pytest.raises(errors.ModelNotFound, match=r"says what is where$"):
        asked(server, is_async=is_async, base_url="http://host/")
    unknown = Server(
        httpx2.Response(404, json={"title": errors.ModelNotFound.title, "detail": "no such model is served"})
    )
    with pytest.raises(errors.ModelNotFound, match=r"no such model is served$"):
        asked(unknown, is_async=is_async, base_url="http://host/prefix")


async def test_a_closed_client_is_said() -> None:
    client = lengthwise.Client(transport=httpx2.MockTransport(Server(predictions())))
    client.close()
    with pytest.raises(errors.ConfigurationError, match="the client was closed"):
        client.predict([STEPS])
    other = lengthwise.AsyncClient(transport=httpx2.MockTransport(Server(predictions())))
    await other.aclose()
    with pytest.raises(errors.ConfigurationError, match="the client was closed"):
        await other.get("/healthz")


@pytest.mark.parametrize("name", ["predict", "prepare", "get", "post"])
def test_the_methods_of_the_client_for_asyncio_say_so_themselves(name: str) -> None:
    method, original = getattr(lengthwise.AsyncClient, name), getattr(lengthwise.Client, name)
    assert method.__qualname__ == f"AsyncClient.{name}"
    assert inspect.signature(method) == inspect.signature(original)
    documentation, example = (method.__doc__ + "Example:").split("Example:")[:2]
    assert documentation.split() == original.__doc__.partition("Example:")[0].split()
    assert ("Example:" in original.__doc__) == ("async with" in example) == (f"await client.{name}(" in example)


# Addresses and keys.


def test_the_key_is_sent_and_not_shown() -> None:
    server = Server(predictions())
    with lengthwise.Client("http://host/prefix", key="secret", transport=httpx2.MockTransport(server)) as client:
        client.predict([STEPS])
        assert "secret" not in repr(client)
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert str(server.requests[0].url) == "http://host/prefix/predict"


@BOTH
@pytest.mark.parametrize("key", ["secret-key\n", " secret-key", "secret-schlüssel", "secret\0key", "", b"secret"])
def test_a_key_that_no_header_can_have_is_said_and_not_shown(key: Any, is_async: bool) -> None:
    with pytest.raises(errors.ConfigurationError) as error:
        (lengthwise.AsyncClient if is_async else lengthwise.Client)(key=key)
    assert "secret" not in str(error.value)


@BOTH
def test_a_password_in_the_address_is_not_in_an_error(waits: list[float], is_async: bool) -> None:
    server = Server(httpx2.ConnectError("refused"))
    with pytest.raises(errors.ServerUnreachable, match=r"http://host: refused") as error:
        asked(server, is_async=is_async, base_url="http://user:secret@host")
    assert "secret" not in str(error.value)


# What is imported.


@pytest.mark.process
def test_what_is_exported_says_which_extra_it_needs() -> None:
    program = "import sys; sys.modules['fastapi'] = None; import lengthwise; lengthwise.make_app"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: lengthwise.make_app needs fastapi" in done.stderr
    assert "pip install 'lengthwise[serve]'" in done.stderr


@pytest.mark.long
@pytest.mark.process
def test_a_client_needs_no_runtime_and_says_what_it_needs() -> None:
    program = """
import sys
sys.modules["onnxruntime"] = None
import lengthwise
client = lengthwise.Client("http://localhost:1", retries=0)
try:
    client.predict([[[1.0]]])
except lengthwise.errors.ServerUnreachable:
    pass
print([name for name in ("onnxruntime", "fastapi", "uvicorn", "pandas", "pyarrow", "grpc") if sys.modules.get(name)])
sys.modules["httpx2"] = None
try:
    lengthwise.Client()
except lengthwise.errors.ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    none, said = done.stdout.splitlines()
    assert none == "[]"
    assert said.startswith("a client needs httpx2: pip install 'lengthwise[client]'")


async def test_other_paths_are_called_with_get_and_post(client: lengthwise.AsyncClient) -> None:
    assert await client.get("/livez") == "ok"
    assert (await client.get("/v2/models/sums"))["name"] == "sums"
    answer = await client.post("/v1/models/sums:predict", {"instances": [STEPS]})
    assert answer["predictions"][0]["length"] == 3
    with pytest.raises(errors.InvalidRequest):
        await client.post("/v1/models/sums:predict", {})
