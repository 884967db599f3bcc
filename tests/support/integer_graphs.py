"""Graphs with one recurrent layer, of floats or of bytes, and the arithmetic of bytes in NumPy."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.onnx import integer_layers
from lengthwise_export.onnx_graphs import precision
from tests.gallery.onnx_models import model

Array = NDArray[np.float32]
Numbers = Literal["float32", "int8"]
SETS: dict[str, tuple[str, ...]] = {
    "float32": recurrent_kernels.INSTRUCTION_SETS,
    "int8": recurrent_kernels.INTEGER_SETS,
}
GATES = {"LSTM": 4, "GRU": 3}


def float_graph(
    kind: str = "LSTM",
    *,
    inputs: int = 3,
    hidden: int = 5,
    direction: str = "forward",
    biases: bool = True,
    scale: float = 1.0,
    weights: Mapping[str, Array] | None = None,
    attributes: Mapping[str, Any] | None = None,
    initial: bool = False,
) -> ModelProto:
    """One layer in float32: `x [steps, rows, inputs]` and `lengths [rows]` to all outputs; `h`, `c` if initial."""
    random = np.random.default_rng(hidden * 31 + inputs)
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
    drawn = {
        "w": random.normal(0, scale / inputs**0.5, (directions, gates * hidden, inputs)).astype(np.float32),
        "r": random.normal(0, scale / hidden**0.5, (directions, gates * hidden, hidden)).astype(np.float32),
        "b": random.normal(0, scale, (directions, 2 * gates * hidden)).astype(np.float32),
    } | dict(weights or {})
    if not biases:
        del drawn["b"]
    states = ["h", "c"][: 2 if kind == "LSTM" else 1]
    said = {"hidden_size": hidden, "direction": direction} | ({"linear_before_reset": 1} if kind == "GRU" else {})
    form = ", ".join(f"{name} = {json.dumps(value)}" for name, value in (said | dict(attributes or {})).items())
    given = ["x", "w", "r", "b" if biases else "", "lengths", *(states if initial else [])]
    outputs = ["y", *(f"last_{name}" for name in states)]
    of_state = f"float[{directions}, rows, {hidden}]"
    typed = [f"float[steps, rows, {inputs}] x, int32[rows] lengths", *(f"{of_state} {name}" for name in given[5:])]
    results = [f"float[steps, {directions}, rows, {hidden}] y", *(f"{of_state} {name}" for name in outputs[1:])]
    signature = f"layer ({', '.join(typed)}) => ({', '.join(results)})"
    body = f"[layer] {', '.join(outputs)} = {kind} <{form}> ({', '.join(given)})"
    return model(signature, body, drawn, producer="test", opset=18)


def product_graph(inputs: int, outputs: int, *, rank: int = 3, weights: Array | None = None) -> ModelProto:
    """Two products in float32: `x [..., inputs]` to `y [..., outputs]`. The last one copies the first."""
    if weights is None:
        weights = np.random.default_rng(0).normal(0, 1, (inputs, outputs)).astype(np.float32)
    axes = ", ".join(f"axis{place}" for place in range(rank - 1))
    signature = f"product (float[{axes}, {inputs}] x) => (float[{axes}, {outputs}] y)"
    body = "[product] first = MatMul (x, w)\n[last] y = MatMul (first, one)"
    made = {"w": weights, "one": np.eye(outputs, dtype=np.float32)}
    return model(signature, body, made, producer="test", opset=18)


def integer_graph(kind: str = "LSTM", **form: Any) -> ModelProto:
    """The same layer at int8, as the exporter writes it."""
    return precision.convert(float_graph(kind, **form), "int8")


def layer(numbers: Numbers, kind: str = "LSTM", **form: Any) -> ModelProto:
    """The same layer for the kernels of such numbers."""
    return float_graph(kind, **form) if numbers == "float32" else integer_graph(kind, **form)


def opened(graph: ModelProto | bytes, instruction_set: str | None = None, numbers: Numbers = "int8") -> Any:
    """A session of onnxruntime; with an instruction set, the kernels of such numbers run the layer."""
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if instruction_set is None:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    if numbers == "int8":
        fused = integer_layers.fused(data)
        if fused is None:
            raise ValueError("the graph has no layer for the integer kernels")
        data = fused
    recurrent_kernels.choose(instruction_set, numbers)
    recurrent_kernels.register(options, numbers)
    if numbers == "int8" and b"packed" in data:  # `fusion` has packed its steps
        recurrent_kernels.register(options)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    recurrent_kernels.choose(SETS[numbers][0], numbers)  # the next session has the best one
    return session


def batch(lengths: Sequence[int], inputs: int = 3, *, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Rows of these lengths, padded with zeros to `steps`."""
    random = np.random.default_rng(seed)
    x = np.zeros((steps or max(lengths), len(lengths), inputs), np.float32)
    for row, length in enumerate(lengths):
        x[:length, row] = random.normal(0, 1, (length, inputs))
    return {"x": x, "lengths": np.array(lengths, np.int32)}


def in_numpy(graph: ModelProto, x: Array, lengths: NDArray[np.int32]) -> Array:
    """`y` of an int8 graph, row by row: bytes of states and inputs, whole sums, and cells in double precision."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    layer = next(node for node in graph.graph.node if node.op_type in GATES)
    attributes = {each.name: helper.get_attribute_value(each) for each in layer.attribute}
    direction, gates, hidden = attributes["direction"].decode(), GATES[layer.op_type], attributes["hidden_size"]
    directions = 2 if direction == "bidirectional" else 1
    of_states = _product(held, "layer/R", directions)
    of_inputs = _product(held, "layer/W", directions) if "layer/W_int8" in held else None
    biases = held.get("b", np.zeros((directions, 2 * gates * hidden)))
    steps, rows, _ = x.shape
    y = np.zeros((steps, directions, rows, hidden))
    for d in range(directions):
        first, second = np.split(biases[d].astype(np.float64), 2)
        for row, length in enumerate(lengths):
            state, kept = np.zeros(hidden), np.zeros(hidden)
            for step in range(length)[:: -1 if d == 1 or direction == "reverse" else 1]:
                one = x[step, row].astype(np.float64)
                if of_inputs is None:
                    given = held["w"][d].astype(np.float64) @ one
                else:
                    unit = np.abs(one).max() / 127
                    whole, scales = of_inputs
                    given = (whole[d] @ np.rint(one / unit if unit else one)) * unit * scales[d]
                whole, scales = of_states
                before = (whole[d] @ np.rint(state * 127)) * scales[d] / 127
                if gates == 4:
                    i, o, f, c = np.split(given + before + first + second, 4)
                    kept = _sigmoid(f) * kept + _sigmoid(i) * np.tanh(c)
                    state = _sigmoid(o) * np.tanh(kept)
                else:
                    update, reset, new = np.split(given + first, 3)
                    of_update, of_reset, of_new = np.split(before + second, 3)
                    new = np.tanh(new + _sigmoid(reset + of_reset) * of_new)
                    # The state that is kept is not rounded
                    kept = new + _sigmoid(update + of_update) * (kept - new)
                    state = kept
                y[step, d, row] = state
    return y.astype(np.float32)


def _product(held: Mapping[str, Any], name: str, directions: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bytes `[directions, outputs, inputs]` and scales `[directions, outputs]` of one product."""
    whole, scales = held[f"{name}_int8"].astype(np.float64), held[f"{name}_scale"].astype(np.float64)
    return whole.reshape(directions, -1, whole.shape[1]), scales.reshape(directions, -1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
