"""int8 as older versions of the exporter published it: onnxruntime's dynamic quantisation, one row at a time."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from lengthwise.runtime.manifest import Manifest, Precision


def convert(graph: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """The graph with `DynamicQuantizeLSTM` and `MatMulInteger`, whose scales are of the whole batch."""
    if precision == "fp32":
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        kinds = ["LSTM", "MatMul"]
        quantize_dynamic(model, path, op_types_to_quantize=kinds, weight_type=QuantType.QInt8, reduce_range=True)
        quantised = onnx.load(path)
    onnx.helper.set_model_props(quantised, metadata)
    return quantised


def manifest_at(manifest: Manifest, precision: Precision) -> Manifest:
    """The manifest that allows one row, at its own width."""
    one_row = {"max_batch_rows": 1, "width_multiple": 1} if precision == "int8" else {}
    return manifest.model_copy(update={"precision": precision, **one_row})
