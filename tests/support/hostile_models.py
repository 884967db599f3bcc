"""Model directories whose digests are right and whose graphs do harm to the process that runs them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lengthwise.runtime.manifest import (
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    GraphNames,
    Manifest,
    StepInput,
)
from lengthwise.verification.golden import Golden
from tests.support.model_directories import sign

LSTM = ("W", "R")
HIDDEN = 2
"""Of the recurrent layers here, which is also the number of labels."""


def constant(name: str, value: Sequence[int] | int | Sequence[float], kind: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=kind), name)


def lstm(steps: str, lengths: str, out: str) -> NodeProto:
    """An LSTM in onnxruntime's own kernels: no others know `clip`."""
    return helper.make_node("LSTM", [steps, *LSTM, "", lengths], ["", out], hidden_size=HIDDEN, clip=5.0)


WEIGHTS = [
    numpy_helper.from_array(np.full((1, 4 * HIDDEN, 1), 0.5, np.float32), "W"),
    numpy_helper.from_array(np.full((1, 4 * HIDDEN, HIDDEN), 0.5, np.float32), "R"),
]


def rows_chosen_by_lengths() -> tuple[list[NodeProto], list[TensorProto]]:
    """Runs as many rows through an LSTM as there are sequences of more than 5 steps: onnxruntime ends the process."""
    nodes = [
        helper.make_node("Greater", ["lengths", "five"], ["long"]),
        helper.make_node("Cast", ["long"], ["counted"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["counted", "first"], ["end"], keepdims=1),
        helper.make_node("Slice", ["values", "zero", "end", "first"], ["kept"]),
        helper.make_node("Slice", ["lengths", "zero", "end", "first"], ["kept_lengths"]),
        helper.make_node("Transpose", ["kept"], ["by_step"], perm=[1, 0, 2]),
        lstm("by_step", "kept_lengths", "state"),
        helper.make_node("ReduceSum", ["state", "first"], ["states"], keepdims=0),
        helper.make_node("ReduceSum", ["states", "first"], ["sums"], keepdims=1),
        *rows_of("sums"),
    ]
    return nodes, [*WEIGHTS, constant("five", 5, np.int32), constant("zero", [0]), constant("first", [0])]


def rows_chosen_by_values() -> tuple[list[NodeProto], list[TensorProto]]:
    """Keeps the rows whose first value is not 0, runs these through an LSTM, and puts them back."""
    nodes = [
        helper.make_node("Slice", ["values", "zero", "one", "second"], ["first_steps"]),
        helper.make_node("Reshape", ["first_steps", "flat"], ["firsts"]),
        helper.make_node("Cast", ["firsts"], ["kept"], to=TensorProto.BOOL),
        helper.make_node("Compress", ["values", "kept"], ["rows"], axis=0),
        helper.make_node("Compress", ["lengths", "kept"], ["row_lengths"], axis=0),
        helper.make_node("Transpose", ["rows"], ["by_step"], perm=[1, 0, 2]),
        lstm("by_step", "row_lengths", "state"),
        helper.make_node("Squeeze", ["state", "zero"], ["states"]),
        helper.make_node("NonZero", ["kept"], ["places"]),
        helper.make_node("Transpose", ["places"], ["indices"]),
        helper.make_node("Shape", ["lengths"], ["count"]),
        helper.make_node("Concat", ["count", "two"], ["whole"], axis=0),
        helper.make_node("ConstantOfShape", ["whole"], ["nothing"]),
        helper.make_node("ScatterND", ["nothing", "indices", "states"], ["logits"]),
    ]
    constants = {"zero": [0], "one": [1], "two": [HIDDEN], "second": [1], "flat": [-1]}
    return nodes, [*WEIGHTS, *(constant(name, value) for name, value in constants.items())]


def endless() -> tuple[list[NodeProto], list[TensorProto]]:
    """A loop without an end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Add", ["kept", "kept"], ["sum"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceSum", ["values", "second"], ["sums"], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "sums"], ["looped"], body=body),
        *rows_of("looped"),
    ]
    return nodes, [constant("second", [1]), constant("turns", 2**62), constant("yes", True, np.bool_)]


def greedy() -> tuple[list[NodeProto], list[TensorProto]]:
    """Sums a terabyte of zeros."""
    nodes = [
        helper.make_node("Shape", ["lengths"], ["count"]),
        helper.make_node("Mul", ["count", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "zero"], ["sum"], keepdims=1),
        *rows_of("sum"),
    ]
    return nodes, [constant("many", [2**38]), constant("zero", [0])]


def rows_of(name: str) -> list[NodeProto]:
    """Makes the logits of one number or one a row, so that the lengths play a part."""
    return [
        helper.make_node("Cast", ["lengths"], ["as_numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["as_numbers", "last"], ["column"]),
        helper.make_node("Add", ["column", name], ["added"]),
        helper.make_node("Concat", ["added", "added"], ["logits"], axis=1),
    ]


Made = Callable[[], tuple[list[NodeProto], list[TensorProto]]]


def model(made: Made) -> bytes:
    """The ONNX file of a graph of one feature and two labels."""
    nodes, initializers = made()
    if not any(one.name == "last" for one in initializers):
        initializers.append(constant("last", [1]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["rows", "width", 1]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def place_graph(folder: Path, made: Made, name: str = "bad", version: int = 1, **fields: object) -> Path:
    """A model directory of such a graph, whose golden sequences expect nothing in particular."""
    directory = folder / name / str(version)
    aside = folder / f".{name}-{version}"
    aside.mkdir(parents=True)
    manifest = Manifest(
        name=name, version=version, input=StepInput(features=1), labels=("a", "b"), graph=GraphNames(), max_length=16
    )
    (aside / GRAPH_FILE).write_bytes(model(made))
    (aside / MANIFEST_FILE).write_text(manifest.to_json())
    (aside / VERIFICATION_FILE).write_text(json.dumps({"cases": [{"name": "a", "holds": True}]}))
    steps = np.ones((3, 1), np.float32)
    Golden((steps,), (np.zeros(2, np.float32),)).write(aside / GOLDEN_FILE)
    sign(aside, **fields)
    directory.parent.mkdir(exist_ok=True)
    aside.rename(directory)
    return directory
