"""The rules of `check`: each file is whole, and what a leak is gets a number."""

import re
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import lengthwise_export
from benchmarks import rule_pages
from lengthwise_export.checking import rule
from tests.support.rule_examples import EXAMPLES, check_example, marked_line

SHORT = ("LW201", "LW401", "LW207", "LW601", "LW801")
"""The rules of which the daily tests run the examples of torch; the long tests run all."""


def examples() -> list:
    return [
        pytest.param(*one, marks=() if one[0] in SHORT and one[1] == "torch" else pytest.mark.long) for one in EXAMPLES
    ]


@pytest.mark.parametrize("code", rule.rules())
def test_a_file_of_a_rule_has_its_own_code_and_a_name_and_a_sentence(code: str) -> None:
    one = rule.rules()[code]
    assert code == one.code
    assert re.fullmatch("LW[0-9]{3}", code)
    assert re.fullmatch("[a-z]+(-[a-z0-9]+)*", one.name)
    assert one.severity in ("error", "warning")
    assert one.why.endswith(".")
    assert "$" not in one.why


def test_no_two_rules_have_one_name() -> None:
    names = [one.name for one in rule.rules().values()]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("table", ["operators", "layers"])
def test_no_two_entries_have_one_order(table: str) -> None:
    orders = [entry.order for one in rule.rules().values() for entry in getattr(one, table)]
    assert len({*orders}) == len(orders)


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("lstm", "padding", "LW301"),
        ("lstm", "order", "LW302"),
        ("softmax", "width", "LW102"),
        ("softmax", "neighbours", "LW103"),
        ("mean", "width", "LW201"),
        ("mean", "neighbours", "LW204"),
        ("max", "lengths", "LW207"),
        ("sum", "poison", "LW801"),
        ("conv1d", "padding", "LW401"),
        ("an_operator_of_next_year", "neighbours", "LW204"),
        ("an_operator_of_next_year", "lengths", "LW207"),
        ("an_operator_of_next_year", "padding", "LW900"),
    ],
)
def test_an_operator_and_a_change_select_a_rule(kind: str, change, code: str) -> None:
    assert rule.select("operators", kind, change).code == code


@pytest.mark.parametrize(
    ("kind", "mask", "code"),
    [
        ("LSTM", "none", "LW301"),
        ("LSTM", "lengths", "LW303"),
        ("ops.Mean", "none", "LW201"),
        ("Flatten", None, "LW209"),
    ],
)
def test_a_layer_of_keras_and_its_mask_select_a_rule(kind: str, mask: str | None, code: str) -> None:
    assert rule.select("layers", kind, "padding", mask).code == code


def test_a_page_is_what_its_rule_says() -> None:
    """After a change of a rule: `make rules`."""
    pages = dict(rule_pages.pages())
    assert {path.name: path.read_text() for path in pages} == {path.name: text for path, text in pages.items()}
    assert {path.name for path in rule_pages.FOLDER.iterdir()} == {path.name for path in pages}


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore:.*will therefore destroy the mask")  # which is what the example shows
@pytest.mark.parametrize(("code", "framework"), examples())
def test_the_bad_example_of_a_rule_leaks_by_it_at_its_line_and_the_good_one_is_sound(
    code: str, framework: str, tmp_path: Path
) -> None:
    bad = check_example(code, framework, "bad", tmp_path)
    assert bad.verdict == ("leak" if rule.rules()[code].severity == "error" else "warning")
    assert [leak.code for leak in bad.leaks] == [code]
    line = marked_line(code, framework)
    assert (line is None) == (framework != "torch")
    assert line is None or bad.leaks[0].location.line == line
    assert check_example(code, framework, "good", tmp_path).verdict == "sound"


MENDS = [(code, next(iter(one.examples))) for code, one in rule.rules().items() if one.mend is not None]


@pytest.mark.long
@pytest.mark.parametrize(("code", "framework"), MENDS)
def test_the_page_of_a_rule_says_whether_a_mend_cures_its_example(code: str, framework: str, tmp_path: Path) -> None:
    fix = check_example(code, framework, "bad", tmp_path, suggest=True).fix
    assert (fix.mendable and fix.verdict == "sound") == rule.rules()[code].mend


NET = """import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        BODY
        return self.head(h.masked_fill(~valid[..., None], 0.0).sum(1) / lengths[:, None])
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("h = x - x.mean(0)", "LW204"),
        ("h = x / x.abs().max()", "LW204"),
        ("h = x.cumsum(0)", "LW204"),
        ("h = x + (torch.arange(x.size(1)) / x.size(1))[None, :, None]", "LW601"),
    ],
)
def test_what_runs_over_rows_or_is_a_position_has_its_rule_whatever_trial_shows_it(
    body: str, code: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET.replace("BODY", body))
    report = lengthwise_export.check(f"{tmp_path / 'net.py'}:Net", max_length=24)
    assert [(leak.code, leak.location.source) for leak in report.leaks] == [(code, body)]


GRAPH = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft": 1]>
main (float[rows, width, 3] steps, int64[rows] lengths) => (float[rows, 2] answer)
<float[3, 2] weight = {0.5, -0.25, 0.125, 1.0, -1.0, 0.75}, int64[1] zero = {0}, int64[1] one = {1},
 float none = {0.0}, float low = {-3.4e38}, float highest = {3.4e38}, int64 begin = {0}, int64 by = {1},
 int64[1] two = {2},
 int8[3, 2] coarse = {10, -5, 3, 20, -20, 15}, int8[2, 3, 1] taps = {10, -5, 3, 20, -20, 15}, float fixed = {0.05},
 int8 offset = {0}, uint8 middle = {128}, float steps_of_scale = {127.0}>
{
  shape = Shape (steps)
  width = Gather (shape, by)
  position = Range (begin, width, by)
  line = Unsqueeze (position, zero)
  ends = Unsqueeze (lengths, one)
  inside = Less (line, ends)
  valid = Unsqueeze (inside, two)
  BODY
}
"""
SUMMED = """kept = Where (valid, steps, none)
  BODY
  chosen = Where (valid, z, none)
  answer = ReduceSum <keepdims = 0> (chosen, one)"""
BY_HAND = "size = Abs (kept)\n largest = ReduceMax <keepdims = 0> (size)\n scale = Div (largest, steps_of_scale)\n "
FLOATS = "\n floats = Cast <to = 1> (sums)\n scaled = Mul (floats, scale)\n "
SCALED = {
    "DynamicQuantizeMatMul": "z = com.microsoft.DynamicQuantizeMatMul (kept, coarse, fixed, offset)",
    "MatMulInteger": "c, scale, at = DynamicQuantizeLinear (kept)\n sums = MatMulInteger (c, coarse, at, offset)"
    + FLOATS
    + "z = Mul (scaled, fixed)",
    "cast to MatMulInteger": BY_HAND
    + "divided = Div (kept, scale)\n c = Cast <to = 3> (divided)\n sums = MatMulInteger (c, coarse)"
    + FLOATS
    + "z = Mul (scaled, fixed)",
    "ConvInteger": BY_HAND
    + "channels = Transpose <perm = [0, 2, 1]> (kept)\n c = QuantizeLinear (channels, scale, middle)\n"
    + "sums = ConvInteger (c, taps, middle, offset)"
    + FLOATS
    + "z = Transpose <perm = [0, 2, 1]> (scaled)",
    "range": "high = ReduceMax <keepdims = 0> (kept)\n least = ReduceMin <keepdims = 0> (kept)\n"
    "range = Sub (high, least)\n scale = Div (range, steps_of_scale)\n c = QuantizeLinear (kept, scale, offset)\n"
    "back = DequantizeLinear (c, scale, offset)\n z = MatMul (back, weight)",
}


def graph(body: str) -> ModelProto:
    return onnx.parser.parse_model(GRAPH.replace("BODY", body))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SCALED)
def test_a_scale_of_the_batch_is_lw504_in_a_graph(name: str) -> None:
    report = lengthwise_export.check(graph(SUMMED.replace("BODY", SCALED[name])), max_length=24)
    assert [leak.code for leak in report.leaks] == ["LW504"]
    assert "quantise with a fixed scale, or export with --precision int8" in report.leaks[0].cause.fix


def quantised_lstm() -> ModelProto:
    """An LSTM with lengths, whose node has no name and no first output; its weights are int8."""
    random = np.random.default_rng(0)
    constants = {
        "weights": random.integers(-99, 99, (1, 3, 24), np.int8),
        "recurrence": random.integers(-99, 99, (1, 6, 24), np.int8),
        "scale": np.full(1, 0.01, np.float32),
        "offset": np.zeros(1, np.int8),
        "axis": np.array([0]),
        "head": random.standard_normal((6, 2), np.float32),
    }
    inputs = ["first", "weights", "recurrence", "", "short", "", "", "", "scale", "offset", "scale", "offset"]
    nodes = [
        helper.make_node("Transpose", ["steps"], ["first"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["short"], to=TensorProto.INT32),
        helper.make_node("DynamicQuantizeLSTM", inputs, ["", "last"], domain="com.microsoft", hidden_size=6),
        helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["answer"]),
    ]
    shapes = {"steps": ["rows", "width", 3], "lengths": ["rows"], "answer": ["rows", 2]}
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "lengths" else TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_graph(nodes, "main", values[:2], values[2:], tensors)
    return helper.make_model(body, opset_imports=opsets, ir_version=8)


def test_a_quantised_lstm_has_one_scale_for_the_batch_and_a_whole_name() -> None:
    report = lengthwise_export.check(quantised_lstm(), max_length=24, suggest=True)
    assert [(leak.code, leak.operator) for leak in report.leaks] == [("LW504", "DynamicQuantizeLSTM giving last")]
    assert report.fix.operator == "DynamicQuantizeLSTM giving last"
    assert "export with --precision int8" in report.fix.reason


QUANTISED = """import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.ModuleDict({"lstm": nn.LSTM(3, 3, batch_first=True), "gru": nn.GRU(3, 3, batch_first=True),
                                "linear": nn.Linear(3, 3)})
        self.layers = torch.ao.quantization.quantize_dynamic(layers, {nn.LSTM, nn.GRU, nn.Linear}, dtype=torch.qint8)
        self.head = nn.Linear(3, 2)

    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(BODY)
"""


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "body",
    [
        "self.layers['lstm'](packed)[1][0][-1]",
        "self.layers['gru'](packed)[1][-1]",
        "(self.layers['linear'](x.masked_fill(~valid[..., None], 0.0)) * valid[..., None]).sum(1)",
    ],
)
def test_a_quantised_layer_of_torch_has_one_scale_for_the_batch(body: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(QUANTISED.replace("BODY", body))
    report = lengthwise_export.check(f"{tmp_path / 'net.py'}:Net", max_length=24)
    assert [leak.code for leak in report.leaks] == ["LW504"]


POOLED = """kept = Where (valid, steps, low)
  channels = Transpose <perm = [0, 2, 1]> (kept)
  pooled = GlobalMaxPool (channels)
  top = Flatten (pooled)
  """
REPLACED = "is_missing = IsNaN (top)\n known = Where (is_missing, none, top)\n answer = MatMul (known, weight)"


@pytest.mark.parametrize("behind", ["answer = MatMul (top, weight)", REPLACED])
def test_an_operator_that_shows_a_missing_value_by_its_place_is_named(behind: str) -> None:
    report = lengthwise_export.check(graph(POOLED + behind), max_length=24, missing="handled")
    assert [(leak.code, leak.kind) for leak in report.leaks] == [("LW805", "GlobalMaxPool")]
    assert "IsNaN" in report.leaks[0].cause.fix


@pytest.mark.parametrize(("operator", "fill"), [("ReduceMax", "low"), ("ReduceMin", "highest")])
def test_answers_that_are_not_finite_are_those_to_missing_values(operator: str, fill: str) -> None:
    body = f"kept = Where (valid, steps, {fill})\n top = {operator} <keepdims = 0> (kept, one)\n"
    model = graph(body + "answer = MatMul (top, weight)")
    reason = lengthwise_export.check(model, max_length=24, missing="handled").reason
    assert reason.startswith("the answers to sequences with missing values are not finite")
    assert f"{operator} giving top shows a missing value by its place" in reason
