"""A gRPC server on a free port, and a client that calls it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from lengthwise.grpc.server import GrpcServer
from lengthwise.protocols.turns import Turns
from lengthwise.repository.loading import LoadedModel
from tests.support.numpy_models import Service, serving

PADDED = np.array([[[1, 3], [7, 7]], [[0, 0], [-2, 0]]], dtype="<f4")
ENDS = np.array([1, 2], dtype="<i4")


def request(*, raw: bool = True, values: Any = PADDED, ends: Any = ENDS, **fields: Any) -> pb.ModelInferRequest:
    """Two sequences, the first padded with junk."""
    made = pb.ModelInferRequest(**{"model_name": "sums"} | fields)
    for name, datatype, array in (("values", "FP32", values), ("lengths", "INT32", ends)):
        tensor = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            made.raw_input_contents.append(array.tobytes())
        elif datatype == "FP32":
            tensor.contents.fp32_contents.extend(array.ravel().tolist())
        else:
            tensor.contents.int_contents.extend(array.ravel().tolist())
    return made


class Caller:
    """A client of one server."""

    def __init__(self, service: Service, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.channel = channel

    def call(self, method: str, message: Any = None, **options: Any) -> Any:
        """One call of a method, whose request and answer are named after it."""
        asked = message if message is not None else getattr(pb, f"{method}Request")()
        return self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda given: given if isinstance(given, bytes) else given.SerializeToString(),
            response_deserializer=getattr(pb, f"{method}Response").FromString,
        )(asked, **options)

    async def refused(self, method: str, message: Any = None, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(method, message, **options)
        return raised.value


@asynccontextmanager
async def listening(*models: LoadedModel, **options: Any) -> AsyncIterator[Caller]:
    async with serving(*models, **options) as service, calling(service) as caller:
        yield caller


@asynccontextmanager
async def calling(service: Service, turns: Turns | None = None) -> AsyncIterator[Caller]:
    """A client of a service that is there; large messages are inflated in `turns`."""
    server = GrpcServer(service.serving, turns or Turns())
    port = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Caller(service, channel)
    finally:
        await server.stop()
