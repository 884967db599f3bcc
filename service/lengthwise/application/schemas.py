"""What the operations answer, as pydantic models: `/openapi.json` has their schemas.

The answers themselves are encoded where they are made, and never built from these classes: an answer of thousands of
numbers would take many times as long. Tests hold the answers against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

ABSENT: Final[Any] = None
"""The default of a field that may be absent. It is never shown."""
Count = Annotated[int, Field(ge=0)]


def bare(schema: dict[str, Any]) -> None:
    """Removes from a model's schema what says nothing: titles that are the names, and the default `ABSENT`."""
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
        if field.get("default", False) is ABSENT:
            del field["default"]


class Schema(BaseModel):
    """A part of a request or an answer."""

    model_config = ConfigDict(json_schema_extra=bare, protected_namespaces=())


class FoundProblem(Schema):
    """One thing that is wrong with a body."""

    pointer: str = Field(description="RFC 6901, into the body as sent")
    detail: str


class Problem(Schema):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FoundProblem] = Field(ABSENT, max_length=20)
    errors_total: int = ABSENT


class Error(Schema):
    """A refusal of KServe's protocols."""

    error: str


class Prediction(Schema):
    """The answer to one sequence."""

    id: str = ABSENT
    label: str = ABSENT
    score: float = ABSENT
    assigned: list[str] = ABSENT
    step_labels: list[str | None] = ABSENT
    step_scores: list[float | None] = ABSENT
    probabilities: list[float | list[float] | None]
    length: int
    attention: list[float] = ABSENT
    windows: list[dict[str, Any]] = ABSENT


class Answer(Schema):
    """One prediction for each sequence, in request order."""

    model: str
    version: str
    labels: list[str]
    predictions: list[Prediction]


class V1Answer(Schema):
    """One prediction for each instance, in request order."""

    predictions: list[Prediction]


class Limits(Schema):
    """What one request may have: a client splits many sequences into requests by these."""

    max_body_bytes: int
    max_sequences: int
    max_queue_cost_steps: int


class Places(Schema):
    """The paths and the limits of this server."""

    service: str
    predict: str
    docs: str
    openapi: str
    health: str = ABSENT
    media_types: list[str] = Field(description="Bodies of /predict.")
    limits: Limits
    names: dict[str, dict[str, list[str] | None]] = Field(
        description="Of the features of each model and version; null of one without names."
    )


class ModelHealth(Schema):
    """One version that is served."""

    model: str
    version: str
    default: bool
    aliases: list[str]
    shadow: bool
    accuracy: float | None
    accuracy_answers: int | None
    accuracy_data: Any
    trained: str | None
    exported: str | None
    input: Literal["values", "tokens"]
    features: int | None
    names: list[str] | None = Field(description="Of the features, in their order; null if the model has none.")
    vocabulary: int | None
    labels: list[str]
    task: Literal["single-label", "multi-label", "per-step"]
    min_length: int
    max_length: int
    long: Literal["reject", "head", "tail", "window"]
    missing: str
    attention: bool
    provider: str
    precision: str
    planned_by: Literal["arrival", "length"]
    promise: dict[str, Any] | None
    promises: list[dict[str, Any]]
    queue_sequences: Count
    broken: dict[str, Any] | None


class WorkerHealth(Schema):
    """One of the processes that serve together; `started` in UNIX seconds, `restarts` of its place."""

    pid: int
    ready: bool
    started: float
    restarts: int


class Health(Schema):
    """What is served, and what is not and why."""

    ready: bool
    starting: bool
    draining: bool
    version: str
    provider: dict[str, Any]
    hung: str | None
    models: list[ModelHealth]
    shadow: str | None
    reason: str | None
    workers: list[WorkerHealth]
    workers_reason: str
    refused: list[dict[str, str]]


class Shadow(Schema):
    """How the answers of the shadow version compare with those that were sent."""

    candidate: str | None
    served: bool = ABSENT
    share: float = ABSENT
    versions: dict[str, dict[str, Any]]


class ModelNames(Schema):
    """The models that are served."""

    models: list[str]


class ModelState(Schema):
    """Whether a request for a model would be answered."""

    name: str
    ready: bool


class Live(Schema):
    """Whether the process lives."""

    live: bool


class Ready(Schema):
    """Whether a request would be answered."""

    ready: bool


class ServerMetadata(Schema):
    """The server, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Schema):
    """A tensor of a model; -1 for a free axis."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Schema):
    """A model, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, list[str]] = Field(ABSENT, description="`names`, of the features, if the model has names.")


class OutputTensor(TensorMetadata):
    """A tensor of an answer."""

    data: list[Any] = ABSENT
    parameters: dict[str, Any] = ABSENT


class InferAnswer(Schema):
    """One row for each sequence."""

    model_name: str
    model_version: str
    id: str = ABSENT
    outputs: list[OutputTensor]


class IndexEntry(Schema):
    """A version in the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Duration(Schema):
    """How often something was done, and how long all of it took."""

    count: Count
    ns: Count


class ModelStatistics(Schema):
    """A version's statistics, in Triton's format."""

    name: str
    version: str
    last_inference: Count = Field(description="Milliseconds since the epoch; 0 before the first.")
    inference_count: Count = Field(description="Sequences.")
    execution_count: Count = Field(description="Batches.")
    inference_stats: dict[str, Duration]
    batch_stats: list[dict[str, Duration | Count]] = Field(description="By `batch_size`.")


class Statistics(Schema):
    """Statistics, in Triton's format."""

    model_stats: list[ModelStatistics]


class ModelConfig(Schema):
    """A model's configuration, in Triton's format."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    instance_group: list[dict[str, Any]]
    default_model_filename: str
    dynamic_batching: dict[str, Any]
    parameters: dict[str, Any]


class Nothing(Schema):
    """An empty object."""
