"""What requests hold, as pydantic models made for the models that are served: `/openapi.json` has their schemas.

A body that its schema allows is not rejected as malformed. The schemas are made for each request of `/openapi.json`,
so they have the number of features, whether a value may be missing, and the vocabulary. They read nothing: bodies are
read by `lengthwise.decoding`. JSON Schema cannot express that a mask is as long as what it masks, that `data` has as
many numbers as `shape` says, that no output is named twice, and that masked steps and padding are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model
from pydantic.json_schema import models_json_schema

from lengthwise.batching.pending import MAX_PRIORITY
from lengthwise.decoding.calls import MAX_ID_CHARACTERS
from lengthwise.decoding.sent_steps import FLOAT32_BEYOND
from lengthwise.http.schemas import ABSENT, Schema, bare
from lengthwise.protocols import inventory, request_parameters, tensor_specs
from lengthwise.protocols.tensor_specs import TensorSpec
from lengthwise.runtime.manifest import Manifest

_BEYOND: Final = float(FLOAT32_BEYOND)
_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1
_NEVER: Final = False
_UNSHARED: Final[dict[str, Any]] = dict.fromkeys(request_parameters.SHARED_MEMORY, _NEVER)
Identifier = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
Version = Annotated[str, Field(pattern="^[1-9][0-9]*$", description="Default: the highest good one.")]
Timeout = Annotated[float, Field(gt=0, description="After so many milliseconds the client needs no answer.")]
Priority = Annotated[int, Field(ge=0, le=MAX_PRIORITY, description="Default: 0; higher first.")]
Positive = Annotated[int, Field(ge=1)]
_SIZE = Annotated[int, Field(ge=1, le=_INT64_MAX)]


class Closed(Schema):
    """An object without other fields."""

    model_config = ConfigDict(extra="forbid")


class OfModel(Schema):
    """What a path names."""

    model: str


class OfVersion(OfModel):
    """What a path with a version names."""

    version: Version


class RawOptions(Schema):
    """The options of a binary body of `/predict`, which are in the query; with a JSON body they are an error."""

    model: str = Field(ABSENT, description="With a binary body: the model; required if several are served.")
    version: Version = Field(ABSENT, description="With a binary body: its version.")
    id: Identifier = Field(ABSENT, description="With raw steps: returned with the prediction.")
    outputs: str = Field(ABSENT, pattern="^attention(,attention)*$", description="With a binary body: attention.")
    timeout_ms: Timeout = Field(ABSENT, description="With a binary body: after which the client needs no answer.")
    priority: Priority = Field(ABSENT, description="With a binary body: 0 (default) to 9, higher first.")


class RawShape(Schema):
    """The header of raw steps."""

    shape: str = Field(
        ABSENT,
        alias="x-lengthwise-shape",
        description="Required with raw steps: `STEPS,FEATURES`, or of a token model `STEPS`.",
    )


class HeaderLength(Schema):
    """The header of v2's binary data."""

    length: str = Field(
        ABSENT,
        alias="Inference-Header-Content-Length",
        pattern="^[0-9]{1,19}$",
        description="Bytes of the JSON, if raw tensors follow it; required with application/octet-stream.",
    )


class Options(Closed):
    """The fields of a body besides its sequences."""

    outputs: list[Literal["attention"]] = ABSENT
    timeout_ms: Timeout = ABSENT
    priority: Priority = ABSENT


class PredictRequest(Options):
    """A call, where no model is served."""

    sequences: list[list[Any] | dict[str, Any]] = Field(min_length=1)
    model: str = ABSENT
    version: Version = ABSENT


class V1Request(Options):
    """A call, where no model is served."""

    instances: list[list[Any] | dict[str, Any]] = Field(min_length=1)


class InferRequest(Schema):
    """A call, where no model is served."""

    inputs: list[Any] = Field(min_length=1)


class IndexRequest(Closed):
    """Which versions to list."""

    ready: bool = Field(ABSENT, description="Only those that are ready.")


def _change(name: str) -> type[BaseModel]:
    """A call that loads or unloads a model. No parameter sets the model: it comes from the repository."""
    fields: dict[str, Any] = dict.fromkeys(sorted(inventory.PARAMETERS[name]), (Any, ABSENT))
    parameters: Any = create_model(f"{name.title()}Parameters", __base__=Closed, **fields)
    made: type[BaseModel] = create_model(f"{name.title()}Request", __base__=Closed, parameters=(parameters, ABSENT))
    return made


def _and(more: dict[str, Any]) -> ConfigDict:
    """Other fields are ignored, and further properties are shown."""

    def add(schema: dict[str, Any]) -> None:
        bare(schema)
        schema["properties"].update(more)

    return ConfigDict(json_schema_extra=add)


class InferParameters(Schema):
    """Unknown parameters are ignored."""

    model_config = _and(
        {name: {"enum": list(request_parameters.NOT_ASKED)} for name in request_parameters.STATEFUL}
        | {request_parameters.CLASSIFICATION: _NEVER, **_UNSHARED}
    )
    timeout_ms: Timeout = ABSENT
    priority: Priority = ABSENT
    timeout: Positive | None = Field(ABSENT, description="Microseconds.")
    binary_data_output: bool = ABSENT


class InputParameters(Schema):
    """Unknown parameters are ignored."""

    model_config = _and(_UNSHARED)
    binary_data_size: None = Field(ABSENT, description="A number only where the elements stand behind the JSON.")


STATIC: Final[tuple[type[BaseModel], ...]] = (IndexRequest, _change("load"), _change("unload"))


def components(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The schemas of all request bodies, by name: those of the calls are for the models that are served."""
    calls = {PredictRequest: _predict(manifests), V1Request: _v1(manifests), InferRequest: _infer(manifests)}
    made: list[Any] = [_made(call.__name__, _root(forms)) if forms else call for call, forms in calls.items()]
    _, found = models_json_schema(
        [(one, "validation") for one in (*made, *STATIC)], ref_template="#/components/schemas/{model}"
    )
    return dict(found["$defs"])


# Types that are made for a model are of no use to a type checker.


def _made(called: str, base: Any = Closed, /, **fields: Any) -> Any:
    return create_model(called, __base__=base, **fields)


def _named(kind: str, manifest: Manifest) -> str:
    return f"{kind}-{manifest.name}-{manifest.version}"


def _any(forms: Iterable[Any]) -> Any:
    return Union[tuple(forms)]  # noqa: UP007  # of a list that is only known now


def _root(forms: Iterable[Any]) -> Any:
    one: Any = RootModel
    return one[_any(forms)]


def _one_of(*values: Any) -> Any:
    return Literal[values]


def _list(of: Any, least: int | None = None, most: int | None = None) -> Any:
    return Annotated[list[of], Field(min_length=least, max_length=most)]


def _whole(least: int, most: int | None = None) -> Any:
    return Annotated[int, Field(ge=least, le=most)]


def _predict(manifests: Sequence[Manifest]) -> list[Any]:
    names, highest = {manifest.name for manifest in manifests}, _highest(manifests)
    return [
        _made(
            _named("Predict", one),
            _options(one),
            sequences=_sequences(one),
            model=(_one_of(one.name), ... if len(names) > 1 else ABSENT),
            version=(_one_of(str(one.version)), ABSENT if one is highest[one.name] else ...),
        )
        for one in manifests
    ]


def _v1(manifests: Sequence[Manifest]) -> list[Any]:
    return [
        _made(_named("V1Predict", one), _options(one), instances=_sequences(one))
        for one in _highest(manifests).values()
    ]


def _highest(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """The default version of each name: the highest."""
    return {one.name: one for one in sorted(manifests, key=lambda one: one.version)}


def _options(manifest: Manifest) -> Any:
    if manifest.graph.attention is not None:
        return Options
    return _made(_named("Options", manifest), Options, outputs=(_list(Any, most=0), ABSENT))


def _sequences(manifest: Manifest) -> Any:
    least = manifest.min_length
    steps = _list(_step(manifest), least, manifest.max_length if manifest.long == "reject" else None)
    kept: dict[str, Any] = {"contains": {"const": True}} | ({"minContains": least} if least > 1 else {})
    left_out = "One entry for each step; false: it is left out as if it had never been sent."
    fields: dict[str, Any] = {
        "id": (Identifier, ABSENT),
        "steps": steps,
        "step_mask": (list[bool], Field(ABSENT, min_length=least, json_schema_extra=kept, description=left_out)),
    }
    if manifest.input.kind != "tokens":
        features = manifest.input.features or 1
        known = _one_of(True) if manifest.missing == "refuse" else bool
        absent = "false: that feature counts as missing in every step."
        fields["feature_mask"] = (_list(known, features, features), Field(ABSENT, description=absent))
    return _list(_any([steps, _made(_named("Sequence", manifest), **fields)]), 1)


def _step(manifest: Manifest) -> Any:
    if manifest.input.kind == "tokens":
        return _whole(0, (manifest.input.vocabulary or 1) - 1)
    features = manifest.input.features or 1
    value: Any = Annotated[float, Field(gt=-_BEYOND, lt=_BEYOND)]
    if manifest.missing != "refuse":
        value = value | None
    row = _list(value, features, features)
    return row if features > 1 else row | value


def _infer(manifests: Sequence[Manifest]) -> list[Any]:
    same = Field(ABSENT, description="As in the path; may be absent.")
    return [
        _made(
            _named("Infer", one),
            id=(Identifier | None, ABSENT),
            model_name=(_one_of(None, "", one.name), same),
            model_version=(_one_of(None, "", str(one.version)), same),
            parameters=(InferParameters, ABSENT),
            inputs=_inputs(one),
            outputs=(list[_any(_output(form.name) for form in tensor_specs.outputs_of(one))], ABSENT),  # type: ignore[misc]
        )
        for one in manifests
    ]


def _inputs(manifest: Manifest) -> Any:
    steps, lengths = tensor_specs.inputs_of(manifest)
    number: Any = int if manifest.input.kind == "tokens" else float | None
    sizes = [*zip(steps.shape, (1, manifest.min_length, 1), strict=False)]
    nested = number
    for size, fewest in reversed(sizes):
        nested = _list(nested, size, size) if size > 0 else _list(nested, fewest)
    axes = tuple(_one_of(size) if size > 0 else _whole(fewest, _INT64_MAX) for size, fewest in sizes)
    end = _whole(manifest.min_length, _INT32_MAX)
    forms = [
        _tensor(manifest, steps, tuple[axes], [_list(number, 1), nested]),  # type: ignore[valid-type]
        _tensor(
            manifest,
            lengths,
            _any([tuple[_SIZE], tuple[_SIZE, Literal[1]]]),
            [_list(end, 1), _list(_list(end, 1, 1), 1)],
        ),
    ]
    has_steps: dict[str, Any] = {
        "contains": {"properties": {"name": {"const": steps.name}}, "required": ["name"]},
        "maxContains": 1,
    }
    return Annotated[_list(_any(forms), 1, 2), Field(json_schema_extra=has_steps)]


def _tensor(manifest: Manifest, form: TensorSpec, shape: Any, data: Sequence[Any]) -> Any:
    told = "Flat, or nested as the shape says; null where one is missing."
    return _made(
        _named(f"Input-{form.name}", manifest),
        name=_one_of(form.name),
        datatype=_one_of(*form.datatypes),
        shape=shape,
        data=(_any(data), Field(description=told)),
        parameters=(InputParameters, ABSENT),
    )


def _output(name: str) -> Any:
    classes: Any = {"type": "integer", "minimum": 1} if name == "probabilities" else _NEVER
    shown = {request_parameters.CLASSIFICATION: classes, **_UNSHARED}
    parameters: Any = create_model(f"Parameters-{name}", __config__=_and(shown), binary_data=(bool, ABSENT))
    return _made(f"Requested-{name}", name=_one_of(name), parameters=(parameters, ABSENT))


def shape_pattern(manifests: Sequence[Manifest]) -> str:
    """What the shape header of raw steps matches: `STEPS,FEATURES`, or of a token model `STEPS`."""
    forms = {r"[0-9]+" if one.input.kind == "tokens" else rf"[0-9]+,{one.input.features}" for one in manifests}
    return f"^({'|'.join(sorted(forms))})$" if forms else ""


def examples(manifest: Manifest) -> Mapping[str, Any]:
    """A valid body of each call for a model, by the name of its schema: two sequences, the second as short as allowed.

    In v2's tensors it is padded.
    """
    first, second = _example_steps(manifest)
    tokens = manifest.input.kind == "tokens"
    blank = 0 if tokens else [0.0] * (manifest.input.features or 1)
    data = [first, second + [blank] * (len(first) - len(second))], [len(first), len(second)]
    tensors = [
        {
            "name": spec.name,
            "datatype": spec.datatypes[0],
            "shape": [2, len(first), *spec.shape[2:]][: len(spec.shapes[-1])],
            "data": elements,
        }
        for spec, elements in zip(tensor_specs.inputs_of(manifest), data, strict=True)
    ]
    sequences = [first, {"id": "a", "steps": second}]
    return {
        "PredictRequest": {"model": manifest.name, "version": str(manifest.version), "sequences": sequences},
        "V1Request": {"instances": [first, second]},
        "InferRequest": {"inputs": tensors},
    }


def _example_steps(manifest: Manifest) -> tuple[list[Any], list[Any]]:
    """The steps of two valid sequences for the model: the second as short as it accepts, the first one step longer."""
    least = manifest.min_length
    if manifest.input.kind == "tokens":
        first: list[Any] = [0] * least + [(manifest.input.vocabulary or 1) - 1]
        return first[: manifest.max_length], first[:least]
    middle = [round(value, 2) for value in manifest.input.mean or [0.0] * (manifest.input.features or 1)]
    return ([middle] * (least + 1))[: manifest.max_length], [middle] * least
