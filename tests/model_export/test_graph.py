import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lengthwise.runtime.manifest import StepInput
from lengthwise_export.errors import ExportError
from lengthwise_export.tracing import graph
from lengthwise_export.tracing.call_signature import CallSignature
from tests.gallery.torch_models import network
from tests.support.integer_graphs import opened

STEPS = StepInput(features=5)
LABELS = ("low", "high", "ä")


class Pooled(nn.Module):
    """Recurrent layers, packed, and attention pooling."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, layers: int = 2, both_ways: bool = True) -> None:
        super().__init__()
        self.rnn = kind(5, 8, layers, batch_first=True, bidirectional=both_ways)
        self.score = nn.Linear(16 if both_ways else 8, 1)
        self.head = nn.Linear(16 if both_ways else 8, 3)

    def forward(self, values, lengths):
        width = values.shape[1]
        valid = torch.arange(width) < lengths[:, None]
        packed = pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=width)
        scores = self.score(y).squeeze(-1).masked_fill(~valid, torch.finfo(y.dtype).min)
        attention = torch.softmax(scores, 1).masked_fill(~valid, 0.0)
        return {"logits": self.head((attention[:, None] @ y).squeeze(1)), "attention": attention}


@pytest.fixture(scope="module")
def pooled() -> Pooled:
    torch.manual_seed(0)
    return Pooled().eval()


@pytest.fixture(scope="module")
def proto(pooled: Pooled) -> onnx.ModelProto:
    return graph.build(pooled, STEPS, name="pooled", labels=LABELS)


def answers(proto: onnx.ModelProto, values: torch.Tensor, lengths: torch.Tensor) -> list[np.ndarray]:
    session = opened(proto)
    steps = session.get_inputs()[0].name
    return session.run(None, {steps: values.numpy(), "lengths": lengths.int().numpy()})


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_the_graph_has_the_inputs_and_outputs_of_the_contract_and_unrolls_no_layer(proto: onnx.ModelProto) -> None:
    assert {value.name: axes(value) for value in proto.graph.input} == {
        "values": ["rows", "width", 5],
        "lengths": ["rows"],
    }
    assert {value.name: axes(value) for value in proto.graph.output} == {
        "logits": ["rows", 3],
        "attention": ["rows", "width"],
    }
    assert proto.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT32
    assert len(proto.graph.node) <= 60
    assert [node.input[4] for node in proto.graph.node if node.op_type == "LSTM"] == ["lengths", "lengths"]


@network(0, lambda: {"head": nn.Linear(5, 3)})
def averaged(self, values, lengths):
    padding = torch.arange(values.shape[1]) >= lengths.unsqueeze(1)
    return self.head(values).masked_fill(padding.unsqueeze(-1), 0).sum(1) / lengths.unsqueeze(1)


def test_values_with_a_frozen_shape_have_named_axes_too() -> None:
    proto = graph.build(averaged(), STEPS, name="averaged", labels=LABELS)
    sizes = {size for value in proto.graph.value_info for size in axes(value)}
    assert {size for size in sizes if isinstance(size, str)} == {"rows", "width"}


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 4), (2, 1), (5, 12), (3, 40)])
def test_the_graph_answers_like_the_module_at_sizes_it_was_not_traced_with(
    pooled: Pooled, proto: onnx.ModelProto, rows: int, width: int
) -> None:
    values, lengths = torch.randn(rows, width, 5), torch.randint(1, width + 1, (rows,))
    with torch.no_grad():
        expected = pooled(values, lengths)
    logits, attention = answers(proto, values, lengths)
    assert np.abs(logits - expected["logits"].numpy()).max() < 1e-6
    assert np.abs(attention - expected["attention"].numpy()).max() < 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "layers", "both_ways"), [(nn.GRU, 2, False), (nn.RNN, 1, True)])
def test_other_recurrent_layers_answer_like_the_module(kind: type[nn.RNNBase], layers: int, both_ways: bool) -> None:
    torch.manual_seed(1)
    model = Pooled(kind, layers, both_ways).eval()
    proto = graph.build(model, STEPS, name="other", labels=LABELS)
    values, lengths = torch.randn(4, 11, 5), torch.tensor([11, 1, 6, 2])
    with torch.no_grad():
        expected = model(values, lengths)["logits"].numpy()
    assert np.abs(answers(proto, values, lengths)[0] - expected).max() < 1e-6


def test_padding_of_any_kind_changes_no_bit(proto: onnx.ModelProto) -> None:
    values, lengths = torch.randn(3, 8, 5), torch.tensor([8, 2, 5])
    expected = answers(proto, values, lengths)
    values[torch.arange(8) >= lengths[:, None]] = torch.nan
    for before, after in zip(expected, answers(proto, values, lengths), strict=True):
        assert np.array_equal(before, after)


@network(0, lambda: {"table": nn.Embedding(9, 4)})
def counted(self, tokens, mask):
    return torch.where(mask[..., None], self.table(tokens), 0.0).sum(1)


@pytest.mark.long
def test_a_translation_parses_no_source_of_traced_functions(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    graph.build(pooled, STEPS, name="pooled", labels=LABELS)  # imports what it translates with
    parsed: list[object] = []
    monkeypatch.setattr("onnxscript._internal.ast_utils.get_src_and_ast", parsed.append)
    graph.build(pooled, STEPS, name="pooled", labels=LABELS)
    assert parsed == []


@pytest.mark.long
def test_tokens_have_their_own_input() -> None:
    steps = StepInput(kind="tokens", vocabulary=9)
    proto = graph.build(counted(), steps, name="counted", labels="abcd", signature=CallSignature("mask"))
    assert (proto.graph.input[0].name, axes(proto.graph.input[0])) == ("tokens", ["rows", "width"])
    (logits,) = answers(proto, torch.tensor([[1, 2, 0]]), torch.tensor([2]))
    assert logits.shape == (1, 4)


@pytest.mark.long
def test_opset_20_is_the_highest(pooled: Pooled) -> None:
    proto = graph.build(pooled, STEPS, name="pooled", labels=LABELS, opset=20)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 20}
    with pytest.raises(ExportError):
        graph.build(pooled, STEPS, name="pooled", labels=LABELS, opset=21)


PROMISED = {"values": ("FLOAT", ["rows", "width", 5]), "lengths": ("INT32", ["rows"])}


def recurrent(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "LSTM")


BROKEN = {
    "a recurrent node without lengths": lambda model: recurrent(model).replace_input_with(4, None),
    "weights that are computed": lambda model: recurrent(model).replace_input_with(1, recurrent(model).inputs[0]),
    "another domain": lambda model: model.graph.opset_imports.__setitem__("com.microsoft", 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_breaks_the_contract_is_not_let_through(proto: onnx.ModelProto, name: str) -> None:
    model = ir.from_proto(proto)
    graph.ensure(model, PROMISED)
    with pytest.raises(ExportError):
        graph.ensure(model, {**PROMISED, "values": ("FLOAT", ["rows", 7, 5])})
    BROKEN[name](model)
    with pytest.raises(ExportError):
        graph.ensure(model, PROMISED)


def quotient(total, weights):
    return total / weights


def direction(total, weights):
    return nn.functional.normalize(total, dim=1)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("pool", [quotient, direction])
def test_small_gates_keep_their_digits_where_their_sum_is_a_divisor(pool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gate = nn.Linear(5, 1)
            nn.init.constant_(self.gate.bias, -15.0)

        def forward(self, values, lengths):
            valid = (torch.arange(values.shape[1]) < lengths[:, None])[..., None]
            weights = torch.where(valid, self.gate(values).sigmoid(), 0.0)
            return pool((weights * torch.where(valid, values, 0.0)).sum(1), weights.sum(1))

    model = Gated().eval()
    values, lengths = torch.randn(4, 9, 5), torch.tensor([9, 1, 4, 6])
    (logits,) = answers(graph.build(model, STEPS, name="gated", labels="abcde"), values, lengths)
    with torch.no_grad():
        expected = model.double()(values.double(), lengths).numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
