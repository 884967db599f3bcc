"""A server of grpcio that has nothing of Lengthwise: it reads a message, waits two milliseconds and answers."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

METHOD = "/plain.Plain/Answer"


async def _answer(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.read()
    await asyncio.sleep(0.002)
    return bytes(200)


async def serve(port: int) -> None:
    """Serves until the process ends."""
    server = grpc.aio.server()
    service, name = METHOD[1:].split("/")
    handlers = {name: grpc.stream_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
