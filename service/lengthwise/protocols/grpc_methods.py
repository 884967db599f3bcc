"""The calls of the Open Inference Protocol over gRPC other than inference: what they answer."""

from __future__ import annotations

from google.protobuf import json_format
from google.protobuf.message import Message

from lengthwise.errors import Forbidden, RequestError
from lengthwise.protocols import inventory, kserve, model_config, statistics
from lengthwise.protocols.grpc_calls import SmallCalls
from lengthwise.protocols.grpc_transport import Handler
from lengthwise.protocols.open_inference import open_inference_pb2 as pb
from lengthwise.serving import Serving


class Methods:
    """Answers these calls.

    Args:
        serving: The service.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def handlers(self, calls: SmallCalls) -> dict[str, Handler]:
        """The handlers, by the names of the methods."""
        return {
            "ServerLive": calls.probe(pb.ServerLiveRequest, self._live),
            "ServerReady": calls.probe(pb.ServerReadyRequest, self._ready),
            "ServerMetadata": calls.unary(
                pb.ServerMetadataRequest, lambda _: pb.ServerMetadataResponse(**inventory.server())
            ),
            "ModelReady": calls.unary(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": calls.unary(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": calls.unary(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": calls.unary(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": calls.unary(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": calls.unary(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": calls.unary(pb.RepositoryModelUnloadRequest, self._unload),
        }

    def _live(self, _: pb.ServerLiveRequest, __: object) -> Message:
        return pb.ServerLiveResponse(live=self._serving.alive)

    def _ready(self, _: pb.ServerReadyRequest, __: object) -> Message:
        return pb.ServerReadyResponse(ready=self._serving.ready)

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        try:
            served = kserve.find(self._serving, request.name, request.version or None)
        except RequestError:  # not known, unloaded or not started: that is an answer here, and no error
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._serving.answers(served))

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        served = kserve.find(self._serving, request.name, request.version or None)
        return pb.ModelMetadataResponse(**inventory.model(self._serving, served))

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        served = kserve.find(self._serving, request.name, request.version or None)
        return pb.ModelConfigResponse(
            config=json_format.ParseDict(model_config.of(self._serving, served), pb.ModelConfig())
        )

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        document = statistics.of(self._serving, request.name or None, request.version or None)
        return pb.ModelStatisticsResponse(**document)

    def _index(self, request: pb.RepositoryIndexRequest) -> Message:
        return pb.RepositoryIndexResponse(models=inventory.index(self._serving, ready=request.ready))

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> Message:
        self._check_changes()
        await inventory.load(self._serving, request.model_name, dict(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> Message:
        self._check_changes()
        await inventory.unload(self._serving, request.model_name, dict(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    def _check_changes(self) -> None:
        if self._serving.settings.admin_port is not None:
            raise Forbidden("models are loaded and unloaded over HTTP on the admin port")
