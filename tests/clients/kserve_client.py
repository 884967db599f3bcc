"""What a user of KServe's client does: health, inference and errors, over v1, v2 and gRPC. Runs where only `kserve` is.

`python kserve_client.py URL GRPC_ADDRESS` prints one line of JSON: what each call gave, by its name.
"""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

MODEL = "japanese-vowels"
VALUES = np.linspace(-1, 1, 2 * 3 * 12, dtype=np.float32).reshape(2, 3, 12)
LENGTHS = np.array([3, 1], dtype=np.int32)


def request(values: np.ndarray, *, binary: bool, lengths: bool = True, model: str = MODEL) -> InferRequest:
    inputs = [InferInput("values", list(values.shape), "FP32")]
    inputs[0].set_data_from_numpy(values, binary_data=binary)
    if lengths:
        inputs.append(InferInput("lengths", [len(values)], "INT32"))
        inputs[1].set_data_from_numpy(LENGTHS, binary_data=binary)
    outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("probabilities", "label")]
    return InferRequest(model, inputs, request_id="mine", request_outputs=outputs)


def shown(answer) -> dict:
    found = {output.name: output.as_numpy() for output in answer.outputs}
    labels = [label.decode() if isinstance(label, bytes) else str(label) for label in found["label"].ravel()]
    bits = found["probabilities"].astype("<f4").tobytes().hex()
    return {"id": answer.id, "model": answer.model_name, "labels": labels, "bits": bits}


async def refused(call) -> str:
    try:
        await call
    except Exception as error:  # whatever the client makes of a refusal is what its user sees
        return f"{type(error).__name__}: {error}"
    return "answered"


async def rest(url: str) -> dict:
    found = {}
    v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    found["v2 live"] = await v2.is_server_live(url)
    found["v2 ready"] = await v2.is_server_ready(url)
    found["v2 model ready"] = await v2.is_model_ready(url, MODEL)
    found["v2 other ready"] = await v2.is_model_ready(url, "none")
    found["v2 json"] = shown(await v2.infer(url, request(VALUES, binary=False), model_name=MODEL))
    found["v2 binary"] = shown(await v2.infer(url, request(VALUES, binary=True), model_name=MODEL))
    found["v2 wrong"] = await refused(v2.infer(url, request(VALUES, binary=True, lengths=False), model_name=MODEL))
    found["v2 none"] = await refused(v2.infer(url, request(VALUES, binary=False, model="none"), model_name="none"))
    found["v1 model ready"] = await v1.is_model_ready(url, MODEL)
    body = {"instances": [VALUES[0].tolist(), VALUES[1, :1].tolist()]}
    found["v1"] = (await v1.infer(url, body, model_name=MODEL))["predictions"]
    found["v1 wrong"] = await refused(v1.infer(url, {"instances": [[]]}, model_name=MODEL))
    return found


async def rpc(address: str) -> dict:
    found = {}
    client = InferenceGRPCClient(address)
    found["grpc live"] = await client.is_server_live()
    found["grpc ready"] = await client.is_server_ready()
    found["grpc model ready"] = await client.is_model_ready(MODEL)
    found["grpc typed"] = shown(await client.infer(request(VALUES, binary=False)))
    found["grpc raw"] = shown(await client.infer(request(VALUES, binary=True)))
    found["grpc wrong"] = await refused(client.infer(request(VALUES, binary=True, lengths=False)))
    found["grpc none"] = await refused(client.infer(request(VALUES, binary=True, model="none")))
    await client.close()
    async with grpc.aio.insecure_channel(address) as channel:  # the client asks for no metadata, its messages can
        stub = GRPCInferenceServiceStub(channel)
        found["grpc server"] = (await stub.ServerMetadata(pb.ServerMetadataRequest())).name
        described = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
        found["grpc metadata"] = {tensor.name: list(tensor.shape) for tensor in described.inputs}
    return found


async def main() -> None:
    url, address = sys.argv[1:]
    print(json.dumps(await rest(url) | await rpc(address)))


asyncio.run(main())
