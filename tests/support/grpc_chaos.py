"""Callers over gRPC beside those of `chaos`: good ones, wrong ones, and callers who cancel."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import grpc
import numpy as np

from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from lengthwise.padding import Steps
from tests.support.chaos import NAME, Chaos
from tests.support.server_process import PATIENCE_SECONDS

_METHOD: Final = f"/{SERVICE}/ModelInfer"
_REFUSED: Final = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""What 429, 503 and 504 are over gRPC. A connection that was lost is UNAVAILABLE too; its text differs."""
_KINDS: Final = ("good", "bad", "cancels")
_SHARES: Final = (0.6, 0.2, 0.2)


@dataclass
class GrpcChaos:
    """Callers over gRPC."""

    chaos: Chaos
    port: int
    cancels: bool = True
    _alone: list[list[bytes]] = field(default_factory=list)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, text.strip()) for name, _, text in (line.partition(":") for line in self.chaos.headers))

    async def ask_alone(self) -> None:
        """Asks for each sequence alone, while nothing else runs."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            call = _inference(channel)
            for steps in self.chaos.sequences:
                answer = await call(
                    _request([steps]), timeout=PATIENCE_SECONDS, wait_for_ready=True, metadata=self._metadata
                )
                self._alone.append(list(answer.raw_output_contents))

    @asynccontextmanager
    async def callers(self, count: int) -> AsyncIterator[None]:
        """So many callers, each with a connection of its own, while the block runs."""
        going = asyncio.Event()
        tasks = [asyncio.create_task(self._call(number, going)) for number in range(count)]
        try:
            yield
        finally:
            going.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*tasks)

    async def _call(self, number: int, ended: asyncio.Event) -> None:
        chance = random.Random(f"{self.chaos.seed}-grpc-{number}")
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=own) as channel:
            call = _inference(channel)
            while not ended.is_set():
                await self._turn(call, self._kind(chance), chance)
                pause = self.chaos.pause_seconds
                await asyncio.sleep(chance.expovariate(1 / pause) if pause else 0)

    def _kind(self, chance: random.Random) -> str:
        kind = chance.choices(_KINDS, _SHARES)[0]
        return kind if self.cancels or kind != "cancels" else "good"

    async def _turn(
        self,
        call: grpc.aio.UnaryUnaryMultiCallable[pb.ModelInferRequest, pb.ModelInferResponse],
        kind: str,
        chance: random.Random,
    ) -> None:
        place = chance.randrange(len(self.chaos.sequences))
        message = _request([self.chaos.sequences[place]])
        if kind == "bad":
            message.inputs[0].shape[-1] += 1
        asked = call(message, timeout=PATIENCE_SECONDS, wait_for_ready=True, metadata=self._metadata)
        if kind == "cancels":
            await asyncio.sleep(chance.uniform(0, 0.005))
            asked.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await asked
            self.chaos.ends["gRPC cancels"] += 1
            return
        try:
            answer = await asked
        except grpc.aio.AioRpcError as error:
            self._judge_error(kind, error)
            return
        self.chaos.ends[f"gRPC {kind}: OK"] += 1
        if kind == "bad" or list(answer.raw_output_contents) != self._alone[place]:
            self.chaos.wrong.append(f"a {kind} request over gRPC got another answer than alone")

    def _judge_error(self, kind: str, error: grpc.aio.AioRpcError) -> None:
        name, text = error.code().name, error.details() or ""
        self.chaos.ends[f"gRPC {kind}: {name}"] += 1
        if name in _REFUSED and "onnect" not in text and "ocket" not in text:
            return
        injected = name == "INTERNAL" and "could not be run on this batch" in text
        if not (injected or (kind == "bad" and name == "INVALID_ARGUMENT")):
            self.chaos.wrong.append(f"a {kind} request over gRPC got {name}: {text[:200]}")


def _inference(
    channel: grpc.aio.Channel,
) -> grpc.aio.UnaryUnaryMultiCallable[pb.ModelInferRequest, pb.ModelInferResponse]:
    return channel.unary_unary(
        _METHOD,
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def _request(sequences: list[Steps]) -> pb.ModelInferRequest:
    """All of one length."""
    values = np.stack([np.asarray(steps, dtype="<f4") for steps in sequences])
    made = pb.ModelInferRequest(model_name=NAME)
    made.inputs.add(name="values", datatype="FP32", shape=values.shape)
    made.raw_input_contents.append(values.tobytes())
    return made
