"""What requests hold, as pydantic models: `/openapi.json` has their schemas. Bodies are read by `lengthwise.decoding`.

What a schema refuses, the service refuses. A schema is of all models, so a body that it allows may still be wrong for
one: in the number of features, in what is missing, in its length. Nor can JSON Schema express that a mask is as long as
what it masks, that `data` has as many numbers as `shape` says, or that masked steps and padding are not read.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, RootModel, WithJsonSchema

from lengthwise.application.schemas import ABSENT, Schema
from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding.calls import MAX_ID_CHARACTERS
from lengthwise.decoding.sent_steps import FLOAT32_BEYOND
from lengthwise.protocols import tensor_specs
from lengthwise.runtime.manifest import Manifest

_BEYOND: Final = float(FLOAT32_BEYOND)
_DATA: Final = "Flat, or nested as the shape says."
SOME: Final = Field(min_length=1)
Identifier = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
VERSION: Final = "^([1-9][0-9]*|[a-z][a-z0-9_-]{0,63})$"
Version = Annotated[str, Field(pattern=VERSION, description="Or an alias. Default: the highest good one.")]
Timeout = Annotated[float, Field(gt=0, description="After so many milliseconds the client needs no answer.")]
Priority = Annotated[int, Field(ge=0, le=MAX_PRIORITY, description="Default: 0; higher first.")]
ShapeSize = Annotated[int, Field(ge=1, le=2**63 - 1)]
End = Annotated[int, Field(ge=1, le=2**31 - 1)]
JsonNumber = Annotated[float, Field(gt=-_BEYOND, lt=_BEYOND)] | None
Element = float | None
Token = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]  # in the padding any
NotTaken = Annotated[Any, WithJsonSchema({"not": {}})]
NotAsked = Literal[None, False, 0, ""]  # with which clients send a parameter that they do not use


class Closed(Schema):
    """An object without other fields."""

    model_config = ConfigDict(extra="forbid")


class RawOptions(Schema):
    """The options of raw steps in `/predict`, which are in the query; with a JSON body they are an error."""

    model: str = Field(ABSENT, description="With raw steps: the model; required if several are served.")
    version: Version = Field(ABSENT, description="With raw steps: its version, or an alias.")
    id: Identifier = Field(ABSENT, description="With raw steps: returned with the prediction.")
    outputs: str = Field(ABSENT, pattern="^attention(,attention)*$", description="With raw steps: attention.")
    timeout_ms: Timeout = Field(ABSENT, description="With raw steps: after which the client needs no answer.")
    priority: Priority = Field(ABSENT, description="With raw steps: 0 (default) to 9, higher first.")


class Steps(RootModel[Annotated[list[Annotated[list[JsonNumber], SOME] | JsonNumber | dict[str, JsonNumber]], SOME]]):
    """A step is a list of its features, or one number: of a model of one feature, or the id of a token.

    Of a model with `names`, the steps of a sequence may be objects: each has the features by their names.
    """


class SequenceWithMasks(Closed):
    """A sequence with an id or masks."""

    id: Identifier = ABSENT
    steps: Steps
    step_mask: list[bool] = Field(
        ABSENT,
        min_length=1,
        json_schema_extra={"contains": {"const": True}},
        description="One entry for each step; false: it is left out as if it had never been sent.",
    )
    feature_mask: list[bool] = Field(
        ABSENT, min_length=1, description="false: that feature counts as missing in every step."
    )


SequenceList = Annotated[list[Steps | SequenceWithMasks], SOME]


class CallFields(Closed):
    """The fields of a body besides its sequences."""

    outputs: list[Literal["attention"]] = ABSENT
    timeout_ms: Timeout = ABSENT
    priority: Priority = ABSENT


class PredictRequest(CallFields):
    """Sequences to classify."""

    sequences: SequenceList
    model: str = Field(ABSENT, description="Required if several are served.")
    version: Version = ABSENT


class V1Request(CallFields):
    """Sequences to classify by the model of the path (KServe v1)."""

    instances: SequenceList
    signature_name: str = Field(ABSENT, description="Changes nothing: clients of TensorFlow Serving send it.")


class Unshared(Schema):
    """Unknown parameters are ignored, but no memory is shared with clients."""

    shared_memory_region: NotTaken = ABSENT
    shared_memory_offset: NotTaken = ABSENT
    shared_memory_byte_size: NotTaken = ABSENT


class InferParameters(Unshared):
    """Unknown parameters are ignored; nothing is kept from one request to the next."""

    timeout_ms: Timeout = ABSENT
    priority: Priority = ABSENT
    timeout: Annotated[int, Field(ge=1)] | None = Field(ABSENT, description="Microseconds.")
    binary_data_output: bool = ABSENT
    sequence_id: NotAsked = ABSENT
    sequence_start: NotAsked = ABSENT
    sequence_end: NotAsked = ABSENT
    classification: NotTaken = Field(ABSENT, description="Belongs to an output.")


class InputParameters(Unshared):
    """Unknown parameters are ignored."""

    binary_data_size: None = Field(ABSENT, description="A number only where the elements stand behind the JSON.")


class TensorFields(Closed):
    """Sequences as a rectangle, each padded to its width."""

    parameters: InputParameters = ABSENT


class ValuesTensor(TensorFields):
    """Steps of features; null where one is missing."""

    name: Literal["values"]
    datatype: Literal["FP32", "FP64"]
    shape: tuple[ShapeSize, ShapeSize, ShapeSize] = Field(description="Rows, width, features.")
    data: Annotated[list[Element], SOME] | Annotated[list[list[list[Element]]], SOME] = Field(description=_DATA)


class TokensTensor(TensorFields):
    """Steps of token ids."""

    name: Literal["tokens"]
    datatype: Literal["INT64", "INT32"]
    shape: tuple[ShapeSize, ShapeSize] = Field(description="Rows, width.")
    data: Annotated[list[Token], SOME] | Annotated[list[list[Token]], SOME] = Field(description=_DATA)


class LengthsTensor(TensorFields):
    """The length of each row; required for more than one."""

    name: Literal["lengths"]
    datatype: Literal["INT32", "INT64"]
    shape: tuple[ShapeSize] | tuple[ShapeSize, Literal[1]]
    data: Annotated[list[End], SOME] | Annotated[list[tuple[End]], SOME]


class OutputParameters(Unshared):
    """Unknown parameters are ignored."""

    binary_data: bool = ABSENT
    classification: NotTaken = Field(ABSENT, description="Belongs to `probabilities`.")


class ProbabilitiesParameters(OutputParameters):
    """Unknown parameters are ignored."""

    classification: Annotated[int, Field(ge=1)] = Field(ABSENT, description="So many of the best classes as texts.")


class RequestedOutput(Closed):
    """An output to answer with."""

    name: Literal["label", "score", "assigned", "step_labels", "step_scores", "attention"]
    parameters: OutputParameters = ABSENT


class RequestedProbabilities(Closed):
    """The probabilities, or the best classes."""

    name: Literal["probabilities"]
    parameters: ProbabilitiesParameters = ABSENT


class InferRequest(Closed):
    """Padded sequences to classify by the model of the path (Open Inference Protocol v2)."""

    id: Identifier | None = ABSENT
    model_name: str | None = Field(ABSENT, description="As in the path; may be absent.")
    model_version: str | None = Field(ABSENT, description="As in the path; may be absent.")
    parameters: InferParameters = ABSENT
    inputs: list[ValuesTensor | TokensTensor | LengthsTensor] = Field(
        min_length=1,
        max_length=2,
        json_schema_extra={
            "contains": {"properties": {"name": {"enum": ["values", "tokens"]}}, "required": ["name"]},
            "maxContains": 1,
        },
    )
    outputs: list[RequestedOutput | RequestedProbabilities] = Field(ABSENT, description="Default: all.")


class IndexRequest(Closed):
    """Which versions to list."""

    ready: bool = Field(ABSENT, description="Only those that are ready.")


class LoadRequest(Closed):
    """A call that loads a model. It has no parameters: a model comes from the repository as it is."""

    parameters: dict[str, Any] = Field(ABSENT, max_length=0)


class UnloadRequest(Closed):
    """A call that unloads a model."""

    parameters: dict[Literal["unload_dependents"], Any] = ABSENT


BODIES: Final = (PredictRequest, V1Request, InferRequest, IndexRequest, LoadRequest, UnloadRequest)


def examples(manifest: Manifest) -> dict[str, Any]:
    """A valid body of each call for a model, by the name of its schema: two sequences, one as short as it takes."""
    steps, lengths = tensor_specs.inputs_of(manifest)
    step = [round(value, 2) for value in manifest.input.mean or [0.0] * (manifest.input.features or 1)]
    short = [0 if steps.name == "tokens" else step] * manifest.min_length
    long = (short + short[:1])[: manifest.max_length]
    rows = {
        steps: ([2, len(long), *steps.shape[2:]], [long, long]),  # what is behind the shorter one is padding
        lengths: ([2], [len(long), len(short)]),
    }
    inputs = [
        {"name": one.name, "datatype": one.datatypes[0], "shape": shape, "data": data}
        for one, (shape, data) in rows.items()
    ]
    sequences = [long, {"id": "a", "steps": short}]
    return {
        "PredictRequest": {"model": manifest.name, "version": str(manifest.version), "sequences": sequences},
        "V1Request": {"instances": [long, short]},
        "InferRequest": {"inputs": inputs},
    }
