"""The same recordings through every protocol: the same bits, over real sockets, to the clients that people have."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import httpx2
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray

from lengthwise.bench.launch import free_port
from lengthwise.datasets import dataset
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.support.server_process import ServerProcess, started

pytestmark = pytest.mark.process

MODEL = "japanese-vowels"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Server:
    process: ServerProcess
    client: httpx2.Client
    channel: grpc.Channel
    grpc_port: int

    def post(self, path: str, content: bytes, **headers: str) -> bytes:
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        answer = self.client.post(path, content=content, headers=sent)
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    port = free_port()
    with (
        started("--grpc-port", str(port)) as process,
        httpx2.Client(base_url=process.url, trust_env=False) as client,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Server(process, client, channel, port)


@pytest.fixture(scope="module")
def recordings() -> list[Floats]:
    """The 370 test recordings of JapaneseVowels, 7 to 29 steps each."""
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST"), "values"))
    return [np.asarray(record.steps, dtype=np.float32) for record in records]


@pytest.fixture(scope="module")
def expected(server: Server, recordings: list[Floats]) -> list[bytes]:
    """The probabilities of each, of one body of JSON."""
    body = orjson.dumps({"sequences": [steps.tolist() for steps in recordings]})
    predictions = orjson.loads(server.post("/predict", body))["predictions"]
    return [np.float32(prediction["probabilities"]).tobytes() for prediction in predictions]


def padded(recordings: Sequence[Floats], junk: float) -> Iterator[tuple[Floats, NDArray[np.int32]]]:
    """All of them in rectangles of 37 rows, with junk for padding."""
    for first in range(0, len(recordings), 37):
        rows = recordings[first : first + 37]
        lengths = np.array([len(steps) for steps in rows], dtype="<i4")
        rectangle = np.full((len(rows), lengths.max() + 3, 12), junk, dtype="<f4")
        for row, steps in zip(rectangle, rows, strict=True):
            row[: len(steps)] = steps
        yield rectangle, lengths


def rows_of(probabilities: NDArray[np.float32]) -> list[bytes]:
    return [row.tobytes() for row in probabilities.astype("<f4").reshape(-1, 9)]


def one_by_one(server: Server, recordings: list[Floats]) -> list[bytes]:
    bodies = [orjson.dumps({"sequences": [steps.tolist()]}) for steps in recordings]
    answers = [orjson.loads(server.post("/predict", body)) for body in bodies]
    return [np.float32(answer["predictions"][0]["probabilities"]).tobytes() for answer in answers]


def octets(server: Server, recordings: list[Floats]) -> list[bytes]:
    form = "application/octet-stream"
    return [
        server.post("/predict", steps.tobytes(), content_type=form, accept=form, x_lengthwise_shape=f"{len(steps)},12")
        for steps in recordings
    ]


def v1(server: Server, recordings: list[Floats]) -> list[bytes]:
    body = orjson.dumps({"instances": [steps.tolist() for steps in reversed(recordings)]})
    predictions = orjson.loads(server.post(f"/v1/models/{MODEL}:predict", body))["predictions"]
    return [np.float32(prediction["probabilities"]).tobytes() for prediction in reversed(predictions)]


class TritonClient(triton.InferenceServerClient):  # type: ignore[misc]  # it ships no types
    """Triton's client, which closes its connections once more when it is collected: its gevent refuses that in whatever
    thread the collector happens to run.
    """

    def __del__(self) -> None:
        """Leaves nothing to do: the tests close it."""


def triton_client(*, binary: bool) -> Callable[[Server, list[Floats]], list[bytes]]:
    def ask(server: Server, recordings: list[Floats]) -> list[bytes]:
        client = TritonClient(server.process.url.removeprefix("http://"))
        found: list[bytes] = []
        for values, lengths in padded(recordings, np.nan if binary else -1e30):
            inputs = [
                triton.InferInput("values", values.shape, "FP32"),
                triton.InferInput("lengths", lengths.shape, "INT32"),
            ]
            for tensor, array in zip(inputs, (values, lengths), strict=True):
                tensor.set_data_from_numpy(array, binary_data=binary)
            outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary)]
            found += rows_of(client.infer(MODEL, inputs, outputs=outputs).as_numpy("probabilities"))
        client.close()
        return found

    return ask


def infer(server: Server, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    request.outputs.add(name="probabilities")
    method = server.channel.unary_unary(
        f"/{SERVICE}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    answer: pb.ModelInferResponse = method(request)
    return answer


def grpc_raw_alone(server: Server, recordings: list[Floats]) -> list[bytes]:
    found = []
    for steps in recordings:
        request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[steps.tobytes()])
        request.inputs.add(name="values", datatype="FP32", shape=[1, *steps.shape])
        found.append(infer(server, request).raw_output_contents[0])
    return found


def grpc_typed(server: Server, recordings: list[Floats]) -> list[bytes]:
    found: list[bytes] = []
    for values, lengths in padded(recordings, np.inf):
        request = pb.ModelInferRequest(model_name=MODEL)
        rows = request.inputs.add(name="values", datatype="FP32", shape=values.shape)
        rows.contents.fp32_contents.extend(values.ravel().tolist())
        ends = request.inputs.add(name="lengths", datatype="INT32", shape=lengths.shape)
        ends.contents.int_contents.extend(lengths.tolist())
        found += rows_of(np.array(infer(server, request).outputs[0].contents.fp32_contents, dtype="<f4"))
    return found


@pytest.mark.parametrize(
    "protocol",
    [one_by_one, octets, v1, triton_client(binary=True), triton_client(binary=False), grpc_raw_alone, grpc_typed],
    ids=["json", "octets", "v1", "v2 binary", "v2 json", "grpc raw", "grpc typed"],
)
def test_every_protocol_gives_the_same_bits_batched_and_unbatched(
    server: Server,
    recordings: list[Floats],
    expected: list[bytes],
    protocol: Callable[[Server, list[Floats]], list[bytes]],
) -> None:
    found = protocol(server, recordings)
    assert len(found) == len(recordings) == 370
    assert [i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other] == []
