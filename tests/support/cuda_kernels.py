"""Which nodes of a graph onnxruntime's CUDA provider has kernels for, as its documentation lists them.

Read of onnxruntime's docs/OperatorKernels.md and of what its provider refuses beside types. So a graph can be held to
it on a machine without a GPU; on one with a GPU `lengthwise.runtime.placement` asks onnxruntime itself.
"""

from typing import Final

import onnx
from onnx import TensorProto

ANY: Final = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
NUMBERS: Final = ANY - {TensorProto.BOOL}
FLOAT: Final = {TensorProto.FLOAT, TensorProto.DOUBLE}
BOOL: Final = {TensorProto.BOOL}

KERNELS: Final = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Less", "Range", "ReduceMax", "ReduceSum", "Where"), NUMBERS),
    **dict.fromkeys(("Abs", "Greater", "GreaterOrEqual", "Max", "ReduceMin"), NUMBERS),
    **dict.fromkeys(("And", "Not"), BOOL),
    **dict.fromkeys(("Clip", "Sqrt"), FLOAT),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Gather", "GatherElements", "Identity", "Reshape", "Shape"), ANY),
    **dict.fromkeys(("Slice", "Squeeze", "Transpose", "Unsqueeze"), ANY),
    **dict.fromkeys(("Gemm", "MatMul", "LayerNormalization", "Softmax", "Relu", "Tanh", "Conv", "IsNaN"), FLOAT),
    **dict.fromkeys(("GRU", "LSTM"), FLOAT),
    "Pad": FLOAT | {TensorProto.BOOL},
}
"""The types that an operator's values may have, of those that the exporter's graphs hold. The opset is 20 at most:
kernels of later schemas are not registered."""

_OF_RECURRENT: Final = {"direction", "hidden_size", "linear_before_reset"}
"""The attributes of a recurrent layer that do not send it to the CPU; any other must be 0, its default."""
_LENGTHS, _PEEPHOLES = 4, 7


def strangers(graph: onnx.ModelProto, lengths: str) -> list[str]:
    """The nodes that would run on the CPU, each with why; those that compute shapes are none."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    found = []
    for node in graph.graph.node:
        values = node.input[1] if node.op_type == "Where" else node.input[0]
        if node.domain not in ("", "ai.onnx") or types.get(values) not in KERNELS.get(node.op_type, set()):
            found.append(f"{node.name}: no {node.op_type} of {TensorProto.DataType.Name(types.get(values, 0))}")
        elif node.op_type in ("GRU", "LSTM"):
            named = {attribute.name: attribute for attribute in node.attribute}
            odd = [name for name in named.keys() - _OF_RECURRENT if onnx.helper.get_attribute_value(named[name])]
            if odd or (node.op_type == "GRU" and not named["linear_before_reset"].i):
                found.append(f"{node.name}: its attributes {sorted(named)}")
            if node.input[_LENGTHS] != lengths or len(node.input) > _PEEPHOLES:
                found.append(f"{node.name}: its inputs {list(node.input)}")
    return found
