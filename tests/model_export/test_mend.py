"""Each operator that the mend knows: the mended graph in a padded batch against the original alone and unpadded."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.engine import RULES
from lengthwise_export.mending.mend import Mended, mend
from tests.support.integer_graphs import opened

FEATURES = 4
LONGEST = 40
Array = NDArray[Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) * 0.5


SHAPES = "W 4x3, W2 4x4, V 4, K3 6x4x3, K5 6x4x5, T3 4x6x3, table 60x4, LX 1x20x4, LR 1x20x5, LB 1x40, \
LX2 2x20x4, LR2 2x20x5, GX 1x15x4, GR 1x15x5, bias4 4, bias2 2, wide 160x3"
NUMBERS = {"half": 0.5, "lo": -0.3, "hi": 0.4, "vlow": -1.5, "vhigh": 2.2, "nought": 0, "none": -np.inf, "all": np.inf}
INTEGERS: dict[str, Any] = {"zero": 0, "one": 1, "two": 2, "minus1": -1, "depth": 6, "v0": [0], "v1": [1], "v2": [2]}
INTEGERS |= {"v3": [3], "v160": [160], "vm1": [-1], "vm3": [-3], "vm2": [-2], "r121": [1, 2, 1]}
INTEGERS |= {"p0000": [0] * 4, "triples": [0, -1, 3 * FEATURES], "flat": [-1, FEATURES]}
INTEGERS |= {"pairs": [0, 0, 2, 2], "p011": [0, 1, 0, 0, 2, 0], "p03": [0, 0, 0, 0, 3, 0]}
INTEGERS |= {"pm1": [0, -1, 0, 0, -1, 0], "pm1rows": [-1, 0, 0, -1, 0, 0]}
CONSTANTS: dict[str, Array] = {
    **{name: normal(*map(int, shape.split("x"))) for name, shape in map(str.split, SHAPES.split(","))},
    **{name: np.array(number, np.float32) for name, number in NUMBERS.items()},
    **{name: np.array(number, np.int64) for name, number in INTEGERS.items()},
    "scale4": normal(FEATURES) + 1,
    "var4": np.abs(normal(FEATURES)) + 0.5,
    "s112": np.array([1, 1, 2], np.float32),
    "scale2": normal(2) + 1,
    "onoff": np.array([0, 1], np.float32),
    "far": np.array([np.iinfo(np.int64).max]),
    "near": np.array([np.iinfo(np.int64).min]),
}

MEAN = "pooled = ReduceMean <axes = [1], keepdims = 0> (y)\n logits = MatMul (pooled, W)"
POOLED = "\np = ReduceMean <axes = [1], keepdims = 0> (t)\nlogits = MatMul (p, W)"
LARGEST = "\np = ReduceMax <axes = [1], keepdims = 0> (t)\nlogits = MatMul (p, W)"
MEAN_OF_WIDTH = "z = ReduceMean <axes = [2], keepdims = 0> (y)\n logits = Identity (z)"
MEAN_OF_CHANNELS = "z = ReduceMean <axes = [2], keepdims = 0> (y)\n logits = ReduceMean <axes = [1]> (z)"
TO_CHANNELS = "c = Transpose <perm = [0, 2, 1]> (values)\n"

CASES: dict[str, str] = {
    "mean": "y = Identity (values)\n" + MEAN,
    **{
        kind: f"p = {kind} <axes = [1], keepdims = 0> (values)\n logits = MatMul (p, W)"
        for kind in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    },
    "ReduceSum, kept": "p = ReduceSum <keepdims = 1> (values, v1)\n q = Squeeze (p, v1)\n logits = MatMul (q, W)",
    "ReduceLogSumExp": "p = ReduceLogSumExp <axes = [1], keepdims = 0> (values)\n logits = MatMul (p, W)",
    "ReduceLogSum": "a = Exp (values)\n p = ReduceLogSum <axes = [1], keepdims = 0> (a)\n logits = MatMul (p, W)",
    "ReduceMean over time and features": "m = ReduceMean <axes = [1, 2], keepdims = 1> (values)\n"
    "y = Sub (values, m)\n a = Abs (y)\n p = ReduceMean <axes = [1], keepdims = 0> (a)\n logits = MatMul (p, W)",
    "Softmax": "s = MatMul (values, W2)\n a = Softmax <axis = 1> (s)\n y = Mul (a, values)\n"
    "p = ReduceSum <keepdims = 0> (y, v1)\n logits = MatMul (p, W)",
    "LogSoftmax": "a = LogSoftmax <axis = 1> (values)\n p = ReduceMax <axes = [1], keepdims = 0> (a)\n"
    "logits = MatMul (p, W)",
    "ArgMax": "a = ArgMax <axis = 1, keepdims = 1> (values)\n b = GatherElements <axis = 1> (values, a)\n"
    "p = Squeeze (b, v1)\n logits = MatMul (p, W)",
    "ArgMin": "a = ArgMin <axis = 1, keepdims = 0> (values)\n b = Cast <to = 1> (a)\n logits = MatMul (b, W)",
    "TopK with hidden steps": "h = Greater (values, hi)\n s = Where (h, values, none)\n"
    "t, i = TopK <axis = 1> (s, v3)\n j = Cast <to = 1> (i)\n"
    "p = ReduceMean <axes = [1], keepdims = 0> (j)\n logits = MatMul (p, W)",
    "ArgMin with hidden steps": "h = Less (values, vlow)\n s = Where (h, values, all)\n"
    "a = ArgMin <axis = 1, keepdims = 0> (s)\n b = Cast <to = 1> (a)\n logits = MatMul (b, W)",
    **{
        f"{kind} with all steps hidden": f"h = Greater (values, vhigh)\n s = Where (h, values, {hidden})\n"
        f"m = {kind} <axes = [1], keepdims = 0> (s)\n n = IsInf (m)\n p = Where (n, nought, m)\n logits = MatMul (p, W)"
        for kind, hidden in (("ReduceMax", "none"), ("ReduceMin", "all"))
    },
    "TopK": "t, i = TopK <axis = 1> (values, v3)" + POOLED,
    "sorted": "s = Shape <start = 1, end = 2> (values)\n y, i = TopK <axis = 1, largest = 0> (values, s)\n"
    "d = CumSum (y, one)\n e = Tanh (d)\n p = ReduceMax <axes = [1], keepdims = 0> (e)\n logits = MatMul (p, W)",
    "CumSum": "y = CumSum (values, one)\n t = Tanh (y)" + POOLED,
    "CumSum from the right": "y = CumSum <reverse = 1, exclusive = 1> (values, one)\n t = Tanh (y)" + POOLED,
    "attention": "q = MatMul (values, W2)\n k = Transpose <perm = [0, 2, 1]> (values)\n s = MatMul (q, k)\n"
    "a = Softmax <axis = -1> (s)\n y = MatMul (a, values)\n" + MEAN,
    "causal attention": "k = Transpose <perm = [0, 2, 1]> (values)\n s = MatMul (values, k)\n e = Exp (s)\n"
    "l = Trilu <upper = 0> (e)\n y = MatMul (l, values)\n t = Tanh (y)\n n = Shape (t)\n w = Slice (n, v1, v2)\n"
    "i = Sub (w, v1)\n j = Squeeze (i, v0)\n p = Gather <axis = 1> (t, j)\n logits = MatMul (p, W)",
    "Einsum": 's = Einsum <equation = "bid,bjd->bij"> (values, values)\n a = Softmax <axis = 2> (s)\n'
    'p = Einsum <equation = "bij,bjd->bd"> (a, values)\n t = Tanh (p)\n logits = MatMul (t, W)',
    "product with a vector": "s = MatMul (values, V)\n a = Softmax <axis = 1> (s)\n u = Unsqueeze (a, v1)\n"
    "p = MatMul (u, values)\n q = Squeeze (p, v1)\n logits = MatMul (q, W)",
    "Gemm over merged rows": "f = Reshape (values, flat)\n g = Gemm (f, W2, bias4)\n r = Relu (g)\n"
    "n = Shape (values)\ny = Reshape (r, n)\n" + MEAN,
    "pairs of features": "f = Reshape (values, pairs)\n m = ReduceMax <axes = [3], keepdims = 0> (f)\n"
    "p = ReduceMean <axes = [1], keepdims = 0> (m)\n logits = Identity (p)",
    "Conv": TO_CHANNELS + "y = Conv <pads = [1, 1]> (c, K3)\n" + MEAN_OF_CHANNELS,
    "Conv, dilated": TO_CHANNELS + "y = Conv <dilations = [2], pads = [0, 4]> (c, K3)\n" + MEAN_OF_CHANNELS,
    "Conv at a stride": TO_CHANNELS + "y = Conv <strides = [3], pads = [2, 2]> (c, K5)\n r = Tanh (y)\n"
    "z = ReduceMax <axes = [2], keepdims = 0> (r)\n logits = ReduceMean <axes = [1]> (z)",
    "Conv without padding": TO_CHANNELS + "y = Conv (c, K5)\n" + MEAN_OF_CHANNELS,
    **{
        f"Conv, {pad} at {stride}": TO_CHANNELS
        + f'y = Conv <auto_pad = "{pad}", strides = [{stride}]> (c, K5)\n t = Tanh (y)\n'
        "u = Transpose <perm = [0, 2, 1]> (t)\n z = ReduceMean <axes = [1], keepdims = 0> (u)\nlogits = Identity (z)"
        for pad in ("SAME_UPPER", "SAME_LOWER")
        for stride in (1, 2, 3)
    },
    "ConvTranspose": TO_CHANNELS + "y = ConvTranspose <strides = [2], pads = [1, 0]> (c, T3)\n" + MEAN_OF_CHANNELS,
    "MaxPool": TO_CHANNELS + "y = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (c)\n" + MEAN_OF_WIDTH,
    "MaxPool, rounded up": TO_CHANNELS
    + "y = MaxPool <kernel_shape = [2], strides = [2], ceil_mode = 1> (c)\n"
    + MEAN_OF_WIDTH,
    **{
        f"AveragePool, zeros {zeros}, rounded up {up}": TO_CHANNELS
        + f"y = AveragePool <kernel_shape = [3], strides = [2], pads = [1, 1], count_include_pad = {zeros}, "
        f"ceil_mode = {up}> (c)\n" + MEAN_OF_WIDTH
        for zeros in (0, 1)
        for up in (0, 1)
    },
    "LpPool": TO_CHANNELS + "y = LpPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (c)\n" + MEAN_OF_WIDTH,
    "GlobalAveragePool": TO_CHANNELS + "y = GlobalAveragePool (c)\n z = Flatten (y)\n logits = MatMul (z, W)",
    "GlobalMaxPool": TO_CHANNELS + "y = GlobalMaxPool (c)\n z = Squeeze (y, v2)\n logits = MatMul (z, W)",
    "GlobalLpPool": TO_CHANNELS + "y = GlobalLpPool (c)\n z = Squeeze (y, v2)\n logits = MatMul (z, W)",
    **{
        f"Resize {where} {rounding}": TO_CHANNELS + 'y = Resize <mode = "nearest", coordinate_transformation_mode = '
        f'"{where}", nearest_mode = "{rounding}"> (c, , s112)\n k = Conv <pads = [2, 2]> (y, K5)\n'
        "z = ReduceMax <axes = [2], keepdims = 0> (k)\n"
        "logits = Identity (z)"
        for where, rounding in (
            ("asymmetric", "floor"),
            ("half_pixel", "round_prefer_floor"),
            ("half_pixel", "round_prefer_ceil"),
        )
    },
    "BatchNormalization": TO_CHANNELS + "y = BatchNormalization (c, scale4, bias4, bias4, var4)\n r = Relu (y)\n"
    "k = Conv <pads = [1, 1]> (r, K3)\n z = ReduceMean <axes = [2], keepdims = 0> (k)\n logits = Identity (z)",
    "InstanceNormalization": TO_CHANNELS + "y = InstanceNormalization (c, scale4, bias4)\n r = Relu (y)\n"
    "z = ReduceMean <axes = [2], keepdims = 0> (r)\n logits = Identity (z)",
    "LayerNormalization": "y = LayerNormalization <axis = -1> (values, scale4, bias4)\n r = Relu (y)\n"
    "p = ReduceMean <axes = [1], keepdims = 0> (r)\n logits = MatMul (p, W)",
    "LpNormalization": "y = LpNormalization <axis = 1, p = 2> (values)\n t = Tanh (y)" + LARGEST,
    "MeanVarianceNormalization": "y = MeanVarianceNormalization <axes = [1]> (values)\n t = Tanh (y)" + LARGEST,
    "LSTM": "t = Transpose <perm = [1, 0, 2]> (values)\n y, h, c = LSTM <hidden_size = 5> (t, LX, LR, LB)\n"
    "logits = Squeeze (h, v0)",
    "LSTM, both directions": "t = Transpose <perm = [1, 0, 2]> (values)\n"
    'y, h = LSTM <hidden_size = 5, direction = "bidirectional"> (t, LX2, LR2)\n'
    "m = ReduceMax <axes = [0], keepdims = 0> (y)\n q = ReduceMean <axes = [0], keepdims = 0> (m)\n"
    "logits = Identity (q)",
    "GRU backwards": "t = Transpose <perm = [1, 0, 2]> (values)\n"
    'y, h = GRU <hidden_size = 5, direction = "reverse"> (t, GX, GR)\n f = Gather <axis = 0> (y, zero)\n'
    "logits = Squeeze (f, v0)",
    "last step": "p = Gather <axis = 1> (values, minus1)\n logits = MatMul (p, W)",
    "last step, sliced": "s = Slice (values, vm1, far, v1)\n p = Squeeze (s, v1)\n logits = MatMul (p, W)",
    "states without their last step": "t = Transpose <perm = [1, 0, 2]> (values)\n"
    "y, h = LSTM <hidden_size = 5> (t, LX, LR)\n q = Squeeze (y, v1)\n s = Slice (q, v1, vm1, v0)\n"
    "m = ReduceMean <axes = [0], keepdims = 0> (s)\n logits = Identity (m)",
    "states padded less": "t = Transpose <perm = [1, 0, 2]> (values)\ny, h = LSTM <hidden_size = 5> (t, LX, LR)\n "
    "q = Squeeze (y, v1)\n s = Pad (q, pm1rows)\nm = ReduceSum <keepdims = 0> (s, v0)\n logits = Identity (m)",
    "last three steps": "s = Slice (values, vm3, far, v1)\n p = ReduceMean <axes = [1], keepdims = 0> (s)\n"
    "logits = MatMul (p, W)",
    "all but the last": "s = Slice (values, v0, vm1, v1)\n t = Tanh (s)" + POOLED,
    "every second from the end": "s = Slice (values, vm1, near, v1, vm2)\n i = CumSum (s, one)\nt = Tanh (i)" + POOLED,
    "reversed": "s = Slice (values, vm1, near, v1, vm1)\n t = Transpose <perm = [1, 0, 2]> (s)\n"
    "y, h = LSTM <hidden_size = 5> (t, LX, LR)\n logits = Squeeze (h, v0)",
    "the step in the middle": "n = Shape (values)\n w = Gather (n, one)\n h = Div (w, two)\n"
    "p = Gather <axis = 1> (values, h)\nlogits = MatMul (p, W)",
    "share of the width": "n = Shape (values)\n w = Gather (n, one)\n r = Range (zero, w, one)\n"
    "f = Cast <to = 1> (r)\n"
    "g = Cast <to = 1> (w)\n d = Div (f, g)\n u = Unsqueeze (d, v1)\n a = Add (values, u)\n t = Tanh (a)" + POOLED,
    "positions from the end": "n = Shape (values)\n w = Gather (n, one)\n l = Sub (w, one)\n"
    "u = Range (zero, w, one)\nr = Sub (l, u)\ne = Gather <axis = 0> (table, r)\n a = Add (values, e)\n "
    "t = Tanh (a)" + POOLED,
    "table of positions": "n = Shape (values)\n w = Slice (n, v1, v2)\n e = Slice (table, v0, w, v0)\n"
    "a = Add (values, e)\nt = Tanh (a)" + POOLED,
    "width as a number": "n = Shape (values)\n w = Gather (n, one)\n g = Cast <to = 1> (w)\n"
    "s = ReduceSum <keepdims = 0> (values, v1)\nq = Sqrt (g)\n d = Div (s, q)\n t = Tanh (d)\n logits = MatMul (t, W)",
    "Concat in front": "f = Slice (values, v0, v2, v1)\n y = Concat <axis = 1> (f, values)\n"
    "i = CumSum (y, one)\n t = Tanh (i)" + POOLED,
    "Concat behind": "f = Slice (values, v0, v2, v1)\n y = Concat <axis = 1> (values, f)\n"
    "i = CumSum (y, one)\n t = Tanh (i)" + POOLED,
    "Concat twice": "y = Concat <axis = 1> (values, values)\n i = CumSum (y, one)\n t = Tanh (i)" + POOLED,
    "Tile": "y = Tile (values, r121)\n i = CumSum (y, one)\n t = Tanh (i)" + POOLED,
    **{
        f"Pad {mode}": f'y = Pad <mode = "{mode}"> (values, p011)\n i = CumSum (y, one)\n t = Tanh (i)\n'
        "p = ReduceMean <axes = [1], keepdims = 0> (t)\n logits = MatMul (p, W)"
        for mode in ("edge", "reflect", "wrap")
    },
    "Pad with a number": "y = Pad (values, p03, half)\n i = CumSum (y, one)\n t = Tanh (i)" + POOLED,
    "Pad taken away": "y = Pad (values, pm1)\n t = Tanh (y)" + POOLED,
    "ReverseSequence of the width": "n = Shape (values)\n w = Slice (n, v1, v2)\n b = Slice (n, v0, v1)\n"
    "l = Expand (w, b)\ny = ReverseSequence <batch_axis = 0, time_axis = 1> (values, l)\n "
    "i = CumSum (y, one)\nt = Tanh (i)" + LARGEST,
    "Clip, Where and tests": "c = Clip (values, lo, hi)\n b = Greater (c, half)\n n = IsNaN (c)\no = Or (b, n)\n "
    "w = Where (o, half, c)\np = ReduceMean <axes = [1], keepdims = 0> (w)\n logits = MatMul (p, W)",
    "OneHot": "a = ArgMax <axis = 2, keepdims = 0> (values)\n h = OneHot (a, depth, onoff)\n"
    "p = ReduceMean <axes = [1], keepdims = 0> (h)\n logits = Identity (p)",
    "Split": "a, b = Split <axis = 2> (values)\n y = Mul (a, b)\n"
    "p = ReduceMean <axes = [1], keepdims = 0> (y)\n logits = Identity (p)",
    "Dropout in evaluation": "y = Dropout (values)\n p = ReduceMean <axes = [1], keepdims = 0> (y)\n"
    "logits = MatMul (p, W)",
    "step of each row by an index": "m = ReduceMax <axes = [2], keepdims = 0> (values)\n"
    "i = ArgMax <axis = 1, keepdims = 1> (m)\n p = GatherND <batch_dims = 1> (values, i)\n logits = MatMul (p, W)",
    "fewer steps of a longer sequence": "n = Shape (values)\n w = Slice (n, v1, v2)\n h = Div (w, v3)\n"
    "e = Mul (h, v2)\n s = Slice (values, e, far, v1)\n i = CumSum (s, one)\n t = Tanh (i)" + POOLED,
    "padded to a multiple": "n = Shape (values)\n w = Slice (n, v1, v2)\n m = Neg (w)\n r = Mod (m, v3)\n"
    "a = Concat <axis = 0> (p0000, r, v0)\n y = Pad (values, a, half)\n f = Reshape (y, triples)\n"
    "g = ReduceMax <axes = [2], keepdims = 0> (f)\np = ReduceMean <axes = [1]> (g)\nlogits = Identity (p)",
    **{
        f"padded to a multiple, {mode}": "n = Shape (values)\n w = Slice (n, v1, v2)\n m = Neg (w)\n r = Mod (m, v3)\n"
        f'a = Concat <axis = 0> (v0, r, v0, v0, r, v0)\n y = Pad <mode = "{mode}"> (values, a)\n i = CumSum (y, one)\n'
        "t = Tanh (i)\np = ReduceMean <axes = [1], keepdims = 0> (t)\n logits = MatMul (p, W)"
        for mode in ("edge", "reflect", "wrap")
    },
    "table of positions padded to a multiple": "n = Shape (values)\n w = Slice (n, v1, v2)\n"
    "e = Slice (table, v0, w, v0)\n m = Neg (w)\n r = Mod (m, v3)\n a = Concat <axis = 0> (v0, v0, r, v0)\n"
    "f = Pad (e, a)\n b = Concat <axis = 0> (p0000, r, v0)\n y = Pad (values, b, half)\n z = Add (y, f)\n"
    "i = CumSum (z, one)\n t = Tanh (i)\np = ReduceMean <axes = [1], keepdims = 0> (t)\n logits = MatMul (p, W)",
    "the first steps again, of those from the third on": "s = Slice (values, v2, far, v1)\n"
    'y = Pad <mode = "wrap"> (s, p011)\n i = CumSum (y, one)\n t = Tanh (i)\n'
    "p = ReduceMean <axes = [1], keepdims = 0> (t)\n logits = MatMul (p, W)",
    "LayerNormalization over the steps": TO_CHANNELS + "n = Shape <start = 2> (c)\n"
    "o = ConstantOfShape <value = float[1] {1}> (n)\n y = LayerNormalization <axis = -1> (c, o)\n t = Tanh (y)\n"
    "z = ReduceMax <axes = [2], keepdims = 0> (t)\n logits = Identity (z)",
    "each step": "y = CumSum <reverse = 1> (values, one)\n t = Tanh (y)\n logits = MatMul (t, W)",
}
OLD = {"ReduceSum of an older graph": "p = ReduceSum <axes = [1], keepdims = 0> (values)\n logits = MatMul (p, W)"}
NEW = {
    "GroupNormalization": TO_CHANNELS + "y = GroupNormalization <num_groups = 2> (c, scale2, bias2)\nr = Relu (y)\n"
    "z = ReduceMean <keepdims = 0> (r, v2)\n logits = Identity (z)",
    "ReduceMean by an input": "p = ReduceMean <keepdims = 0> (values, v1)\n logits = MatMul (p, W)",
}
REFUSED: dict[str, tuple[str, str]] = {
    "mean of rows": ("m = ReduceMean <axes = [0]> (values)\n y = Sub (values, m)\n" + MEAN, "rows"),
    "softmax of rows": ("y = Softmax <axis = 0> (values)\n" + MEAN, "rows"),
    "a row of another": ("f = Gather <axis = 0> (values, zero)\n y = Sub (values, f)\n" + MEAN, "rows"),
    "rows joined": (
        "d = Concat <axis = 0> (values, values)\np = ReduceMax <axes = [1], keepdims = 0> (d)\nlogits = MatMul (p, W)",
        "rows",
    ),
    "NonZero": (
        "i = NonZero (values)\n t = Transpose (i)\n g = GatherND (values, t)\n u = Unsqueeze (g, v0)\n"
        "logits = Identity (u)",
        "as many indices as the data say",
    ),
    "random": ("r = RandomNormalLike (values)\n y = Add (values, r)\n" + MEAN, "random"),
    "dense over the width": (
        "n = Shape (values)\n b = Slice (n, v0, v1)\n s = Concat <axis = 0> (b, v160)\n"
        "f = Reshape (values, s)\n logits = MatMul (f, wide)",
        "width",
    ),
}


def graph_of(text: str, *, opset: int = 17) -> onnx.ModelProto:
    """A model of `values [rows, width, 4]` and `logits` from the text of its nodes."""
    model: onnx.ModelProto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]>\ng (float[B, T, {FEATURES}] values) => (logits) {{\n{text}\n}}'
    )
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    return model


def mended(text: str | onnx.ModelProto, *, opset: int = 17, longest: int = LONGEST) -> tuple[onnx.ModelProto, Mended]:
    graph = graph_of(text, opset=opset) if isinstance(text, str) else text
    return graph, mend(graph, GraphNames(), StepInput(features=FEATURES), max_length=longest)


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for opset, table in ((11, OLD), (17, CASES), (18, NEW)) for name in table]
)
def test_each_row_is_answered_as_it_is_alone(name: str, opset: int) -> None:
    original, result = mended((OLD | CASES | NEW)[name], opset=opset)
    # A variance of few steps may be close to 0, and then amplifies the rounding of the original too.
    shortest = max(result.min_length, 6) if "Norm" in name or "Variance" in name else result.min_length
    lengths = np.array([shortest, 9, LONGEST, 17, shortest + 1, 30], dtype=np.int32)
    random = np.random.default_rng(len(name))
    sequences = [random.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]
    session = opened(original)
    alone = [session.run(["logits"], {"values": steps[None]})[0][0] for steps in sequences]
    session = opened(result.graph)
    for padding, width in ((0.0, LONGEST), (7.0, LONGEST + 3), (np.nan, LONGEST)):
        batch = np.full((len(lengths), width, FEATURES), padding, dtype=np.float32)
        for row, steps in zip(batch, sequences, strict=True):
            row[: len(steps)] = steps
        answers = session.run(["logits"], {"values": batch, "lengths": lengths})[0]
        for right, answer in zip(alone, answers, strict=True):
            own = answer[: len(right)] if right.ndim == 2 else answer
            np.testing.assert_allclose(own, right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pool", ["3], strides = [2], pads = [1, 1", "4], strides = [3", "2], strides = [3"])
@pytest.mark.parametrize("zeros", [0, 1])
def test_an_average_that_is_rounded_up_has_the_same_bits_at_every_width(pool: str, zeros: int) -> None:
    options = f"kernel_shape = [{pool}], count_include_pad = {zeros}, ceil_mode = 1"
    _, result = mended(TO_CHANNELS + f"y = AveragePool <{options}> (c)\n logits = Gather <axis = 2> (y, minus1)")
    session, steps = opened(result.graph), normal(1, LONGEST, FEATURES)
    for length in range(result.min_length, LONGEST):
        given = [{"values": steps[:, :width], "lengths": np.array([length], np.int32)} for width in (length, LONGEST)]
        alone, wide = (session.run(None, each)[0] for each in given)
        assert alone.tobytes() == wide.tobytes()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mended_is_refused_by_operator(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(UnmendableError, match=reason) as error:
        mended(text)
    assert error.value.operator


def test_every_change_says_why_and_shows_the_operator_before_and_after() -> None:
    _, result = mended(CASES["Conv at a stride"])
    assert [change.kind for change in result.changes] == ["Conv", "ReduceMax"]
    assert "reads beyond the last step" in result.changes[0].cause
    assert len(result.changes[0].before) == 1
    assert "Where" in "".join(result.changes[0].after)


def test_the_shortest_and_the_longest_sequence_are_those_the_original_runs_on() -> None:
    original, result = mended(CASES["Conv without padding"])
    assert result.min_length == 5
    with pytest.raises(Exception, match="Invalid input shape"):  # onnxruntime's own
        opened(original).run(None, {"values": normal(1, 4, FEATURES)})
    _, table = mended(CASES["table of positions"], longest=500)
    assert (table.min_length, table.max_length) == (1, 60)

    _, result = mended(CASES["width as a number"])
    assert any("computes with the width of the batch" in change.cause for change in result.changes)


def test_a_graph_that_mixes_no_steps_stays_as_it_is() -> None:
    _, result = mended("t = Tanh (values)\n logits = MatMul (t, W)")
    assert result.changes == ()
    assert [node.op_type for node in result.graph.graph.node][:2] == ["Tanh", "MatMul"]


def test_another_input_and_operators_of_another_domain_are_refused_by_name() -> None:
    extra, foreign = graph_of("y = Add (values, extra)\n" + MEAN), graph_of("y = Tanh (values)\n" + MEAN)
    extra.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))
    foreign.graph.node[0].domain = "com.microsoft"
    for graph, named in ((extra, "extra"), (foreign, r"com\.microsoft")):
        with pytest.raises(UnmendableError, match=named):
            mended(graph)


def test_every_rule_is_tried() -> None:
    tried = {
        node.op_type
        for text in [*CASES.values(), *NEW.values(), *(text for text, _ in REFUSED.values())]
        for node in graph_of(text, opset=18).graph.node
    }
    arithmetic = {name for name, rule in RULES.items() if rule.writes.__module__.endswith(".arithmetic")}
    elementwise = arithmetic - {"MatMul", "Gemm", "Einsum"}
    assert {*RULES} - elementwise - tried == {"RNN", "Size", "Hardmax", "Loop", "Scan"}  # the last two: test_loops


@functools.cache
def functions_of_rules() -> dict[str, tuple[str, str]]:
    """The docstring and the code of every function in a module of rules, by its name."""
    sources = {rule.writes.__module__: sys.modules[rule.writes.__module__] for rule in RULES.values()}
    return {
        function.name: (ast.get_docstring(function) or "", ast.get_source_segment(source, function) or "")
        for source in map(inspect.getsource, sources.values())
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
    }


@pytest.mark.parametrize("name", [name for name, (_, code) in functions_of_rules().items() if "ase " in code])
def test_a_case_that_code_names_stands_in_its_docstring(name: str) -> None:
    docstring, code = functions_of_rules()[name]
    named = {
        int(number) for text in re.findall(r"# [Cc]ases? (\d[^\n:.]*)", code) for number in re.findall(r"\d+", text)
    }
    assert named <= {int(number) for number in re.findall(r"^(\d+)\. ", docstring, re.MULTILINE)}
