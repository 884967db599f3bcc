"""Small graphs that stream: their states are inputs and outputs, as `export --streaming` makes them, but made by hand.

| graph | states | bits after any cut |
|---|---|---|
| `gru` | of a GRU | equal |
| `mean` | the sum and the number of steps so far | not promised: sums have another order |
| `convolution` | the last inputs of a causal convolution, and the largest output so far | equal |
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lengthwise.batching.cost import CostTable
from lengthwise.files import digest_of
from lengthwise.padding import pad
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import (
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Manifest,
    StreamState,
)
from lengthwise.runtime.session import Session
from lengthwise.verification import golden
from lengthwise.verification.random_sequences import draw
from tests.support.model_directories import sign

FEATURES = 4
UNITS = 8
KERNEL = 3
LABELS = ("a", "b", "c")
LOWEST = float(np.finfo(np.float32).min)

Graph = onnx.ModelProto


def _model(
    nodes: list[Any], weights: dict[str, Any], states: Mapping[str, Sequence[Any]], logits: Sequence[Any]
) -> Graph:
    """A graph of `nodes`; `states` are their shapes with rows, by name."""
    floats = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("values", floats, ["rows", "width", FEATURES]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
        *(helper.make_tensor_value_info(name, floats, shape) for name, shape in states.items()),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", floats, logits),
        *(helper.make_tensor_value_info(f"{name}_next", floats, shape) for name, shape in states.items()),
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "streams", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def _weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def _valid() -> tuple[list[Any], dict[str, Any]]:
    """Nodes that make `is_valid [rows, width, 1]`, and what they need."""
    nodes = [
        helper.make_node("Shape", ["values"], ["width_"], start=1, end=2),
        helper.make_node("Squeeze", ["width_"], ["width"]),
        helper.make_node("Range", ["zero", "width", "one"], ["places"]),
        helper.make_node("Cast", ["lengths"], ["lengths64"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lengths64", "axis1"], ["ends"]),
        helper.make_node("Less", ["places", "ends"], ["valid2"]),
        helper.make_node("Unsqueeze", ["valid2", "axis2"], ["is_valid"]),
    ]
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
    }
    return nodes, constants


def gru(*, seed: int = 0, per_step: bool = False, head: bool = True) -> Graph:
    """A GRU, and a dense layer on its last state, or on all steps; without a head the answer is the state."""
    weights = _weights(
        seed,
        W=(1, 3 * UNITS, FEATURES),
        R=(1, 3 * UNITS, UNITS),
        B=(1, 6 * UNITS),
        dense=(UNITS, len(LABELS)),
        bias=(len(LABELS),),
    )
    weights |= {"axis0": np.array([0]), "axis1": np.array([1]), "no_steps": np.int32(0)}
    nodes = [
        helper.make_node("Transpose", ["values"], ["by_time"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", ["hidden", "axis0"], ["initial"]),
        helper.make_node(
            "GRU",
            ["by_time", "W", "R", "B", "lengths", "initial"],
            ["Y", "Y_h"],
            hidden_size=UNITS,
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["Y_h", "axis0"], ["last"]),
        helper.make_node("Greater", ["lengths", "no_steps"], ["has_steps1"]),
        helper.make_node("Unsqueeze", ["has_steps1", "axis1"], ["has_steps"]),
        helper.make_node("Where", ["has_steps", "last", "hidden"], ["hidden_next"]),
    ]
    if per_step:
        nodes += [
            helper.make_node("Squeeze", ["Y", "axis1"], ["steps_by_time"]),
            helper.make_node("Transpose", ["steps_by_time"], ["steps"], perm=[1, 0, 2]),
        ]
    answer = "steps" if per_step else "hidden_next"
    if head:
        nodes += [helper.make_node("MatMul", [answer, "dense"], ["product"])]
        nodes += [helper.make_node("Add", ["product", "bias"], ["logits"])]
    else:
        nodes += [helper.make_node("Identity", [answer], ["logits"])]
        del weights["dense"], weights["bias"]
    shape = ["rows", "width", len(LABELS)] if per_step else ["rows", len(LABELS) if head else UNITS]
    return _model(nodes, weights, {"hidden": ["rows", UNITS]}, shape)


def mean(*, seed: int = 0) -> Graph:
    """The mean over all steps so far, and a dense layer."""
    nodes, constants = _valid()
    nodes += [
        helper.make_node("Where", ["is_valid", "values", "nothing"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis1"], ["chunk"], keepdims=0),
        helper.make_node("Add", ["total", "chunk"], ["total_next"]),
        helper.make_node("Cast", ["lengths"], ["new"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["steps", "new"], ["steps_next"]),
        helper.make_node("Unsqueeze", ["steps_next", "axis1"], ["count"]),
        helper.make_node("Div", ["total_next", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "dense"], ["logits"]),
    ]
    weights = _weights(seed, dense=(FEATURES, len(LABELS))) | constants | {"nothing": np.float32(0)}
    del weights["axis0"]
    return _model(nodes, weights, {"total": ["rows", FEATURES], "steps": ["rows"]}, ["rows", len(LABELS)])


def convolution(*, seed: int = 0) -> Graph:
    """A causal convolution, its largest outputs over all steps so far, and a dense layer."""
    nodes, constants = _valid()
    nodes += [
        helper.make_node("Where", ["is_valid", "values", "nothing"], ["kept"]),
        helper.make_node("Concat", ["recent", "kept"], ["joined"], axis=1),
        helper.make_node("Transpose", ["joined"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "kernel"], ["convolved"]),
        helper.make_node("Transpose", ["convolved"], ["outputs"], perm=[0, 2, 1]),
        helper.make_node("Where", ["is_valid", "outputs", "lowest"], ["only_valid"]),
        helper.make_node("ReduceMax", ["only_valid", "axis1"], ["chunk"], keepdims=0),
        helper.make_node("Max", ["best", "chunk"], ["best_next"]),
        helper.make_node("MatMul", ["best_next", "dense"], ["logits"]),
        # The last inputs: those before the end of each row
        helper.make_node("Add", ["ends", "window"], ["kept_places"]),
        helper.make_node("Unsqueeze", ["kept_places", "axis2"], ["indices"]),
        helper.make_node("GatherND", ["joined", "indices"], ["recent_next"], batch_dims=1),
    ]
    weights = _weights(seed, kernel=(UNITS, FEATURES, KERNEL), dense=(UNITS, len(LABELS))) | constants
    weights |= {"nothing": np.float32(0), "lowest": np.float32(LOWEST), "window": np.arange(KERNEL - 1)[None]}
    del weights["axis0"]
    states = {"recent": ["rows", KERNEL - 1, FEATURES], "best": ["rows", UNITS]}
    return _model(nodes, weights, states, ["rows", len(LABELS)])


STATES: dict[Callable[..., Graph], tuple[StreamState, ...]] = {
    gru: (StreamState(name="hidden", shape=(UNITS,)),),
    mean: (StreamState(name="total", shape=(FEATURES,)), StreamState(name="steps")),
    convolution: (
        StreamState(name="recent", shape=(KERNEL - 1, FEATURES)),
        StreamState(name="best", shape=(UNITS,), initial=LOWEST),
    ),
}


@cache
def graph_bytes(make: Callable[..., Graph], **options: Any) -> bytes:
    """The graph that a function makes, as bytes."""
    content: bytes = make(**options).SerializeToString()
    return content


def manifest(make: Callable[..., Graph], graph: bytes, **fields: Any) -> Manifest:
    """The manifest of a graph that `make` has made."""
    states = STATES[make]
    size = 4 * sum(int(np.prod(state.shape)) for state in states)
    streaming = {"state_bytes": size, "states": [state.model_dump() for state in states]} | fields.pop("streaming", {})
    table: dict[str, Any] = {
        "name": "streams",
        "version": 1,
        "input": {"features": FEATURES},
        "labels": LABELS,
        "max_length": 64,
        "streaming": streaming,
        "digests": {GRAPH_FILE: digest_of(graph)},
    }
    return Manifest.model_validate(table | fields)


def model(make: Callable[..., Graph], *, options: dict[str, Any] | None = None, **fields: Any) -> LoadedModel:
    """A model of a graph, ready to be served, that was not verified; `options` are those of `make`."""
    graph = graph_bytes(make, **(options or {}))
    made = manifest(make, graph, **fields)
    table = CostTable([1, 64], [4, 1024], np.full((2, 2), 0.01))
    return LoadedModel(made, Session(graph, made), table)


def place(folder: Path, make: Callable[..., Graph], *, options: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A model directory `FOLDER/NAME/VERSION` of a graph, as an export writes it."""
    graph = graph_bytes(make, **(options or {}))
    made = manifest(make, graph, **fields)
    directory = folder / made.name / str(made.version)
    directory.mkdir(parents=True)
    (directory / GRAPH_FILE).write_bytes(graph)
    golden.answers(Session(graph, made), draw(made, [1, 3, 7], 10), made).write(directory / GOLDEN_FILE)
    cases = {"cases": [{"name": "mixed lengths", "holds": True}]}
    (directory / VERIFICATION_FILE).write_text(json.dumps(cases))
    (directory / MANIFEST_FILE).write_text(made.to_json())
    sign(directory)
    return directory


def sequences(lengths: Sequence[int], seed: int = 0) -> list[NDArray[np.float32]]:
    """Sequences of these lengths, with values that JSON keeps."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((length, FEATURES)).astype(np.float32).round(3) for length in lengths]


def cuts(steps: NDArray[np.float32], random: np.random.Generator) -> list[NDArray[np.float32]]:
    """The chunks of a sequence, cut at random: single steps, empty chunks and long ones; the first has a step."""
    places = np.sort(random.integers(1, len(steps) + 1, random.integers(0, 6)))
    return np.split(steps, places)


def whole(loaded: LoadedModel, steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities that the model gives for a whole sequence, unbatched."""
    answer = loaded.answer(pad([steps], blank=loaded.manifest.blank), False)[0]
    assert answer is not None
    return answer.probabilities
