"""Attention in one operator, of the kernels or of onnxruntime: the same answers, and nothing leaks into them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lengthwise_export
from benchmarks.transformer import Transformer
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import by_row
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.onnx import attention, valid_attention
from lengthwise.runtime.opening import ATTENTION
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME
from lengthwise.runtime.session import Session
from lengthwise.verification.promises import KERNELS
from lengthwise_export import PublishedModel
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.index import TORCH_SOUND, Exhibit

Floats = NDArray[np.float32]
LENGTHS: Final = (1, 2, 5, 8, 13, 21, 34)
ENCODERS: Final = {
    "alibi_attention": 1,
    "causal_decoder": 2,
    "hugging_face_encoder": 1,
    "padding_mask_encoder": 1,
    "sdpa_attention": 2,
    "time_first_attention": 1,
    "transformer_cls_token": 2,
    "transformer_mean": 2,
}
"""Encoders of the gallery, and how often each has attention."""
EXHIBITS: Final = [exhibit for exhibit in TORCH_SOUND if exhibit.name in ENCODERS]
NOT_OF_LENGTHS: Final = ("alibi_attention", "causal_decoder")
"""Those whose mask says more than which steps are valid."""
OWN: Final = " ".join([ATTENTION, *valid_attention.INSTRUCTION_SETS[:1]])
"""The kernels that run the attention of valid steps; onnxruntime's operator where this processor has none."""


@pytest.fixture(params=[pytest.param(OWN, id="own"), pytest.param(ATTENTION, id="onnxruntime")])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the kernels of a session: with this project's kernels, and on a processor that has none."""
    if request.param == ATTENTION:
        monkeypatch.setattr(valid_attention, "INSTRUCTION_SETS", ())
    return request.param


class SelfAttention(nn.Module):
    """Self-attention by hand. A mask is written over the scores, or added to them; then the mean over the valid steps.

    Args:
        writes: The number that is written over scores of padding; None adds -inf to them.
        parts_last: Whether the parts query, key and value of a feature stand side by side, as in no usual model.
        grows: How large padding is before the attention.
    """

    def __init__(self, writes: float | None = None, *, parts_last: bool = False, grows: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(4, 24), nn.Linear(8, 3)
        self.writes, self.parts_last, self.grows = writes, parts_last, grows

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        x = torch.where(padding[:, :, None], x + self.grows, x)
        heads = self.qkv(x).view(*x.shape[:2], *((2, 4, 3) if self.parts_last else (3, 2, 4)))
        heads = heads.permute(4, 0, 2, 1, 3) if self.parts_last else heads.permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]
        scores, hidden = query @ key.transpose(2, 3) / 2.0, padding[:, None, None, :]
        if self.writes is None:
            scores = scores + torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        else:
            scores = scores.masked_fill(hidden, self.writes)
        joined = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.head(joined.masked_fill(padding[:, :, None], 0.0).sum(1) / lengths[:, None])


def opened(target: Any, options: TargetOptions | None = None) -> tuple[Session, Session, list[Steps]]:
    """A model as it is served, the same in onnxruntime's plain kernels, and sequences for it."""
    target = targets.read(target, options or TargetOptions(features=4))
    manifest = Manifest(
        name="m", version=1, input=target.steps, labels=target.labels, graph=target.names, max_length=64
    )
    graph = target.build("m", 18).SerializeToString()
    random = np.random.default_rng(1)
    sequences: list[Steps] = [
        random.integers(0, target.steps.vocabulary or 1, length)
        if target.steps.kind == "tokens"
        else random.standard_normal((length, target.steps.features or 1)).astype(np.float32)
        for length in LENGTHS
    ]
    return Session(graph, manifest), Session(graph, manifest, devices=(PLAIN_CPU,)), sequences


def require_equal(own: Session, plain: Session, sequences: list[Steps]) -> None:
    """Requires the answers of the plain session, together and alone."""
    for batch in (sequences, *([steps] for steps in sequences)):
        actual, expected = (session.run(pad(batch)).logits for session in (own, plain))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=[exhibit.name for exhibit in EXHIBITS])
@pytest.mark.sampled(16)
def test_encoders_of_the_gallery_run_in_the_operator_for_attention(exhibit: Exhibit, kernels: str):
    options = TargetOptions(
        features=exhibit.features,
        vocabulary=exhibit.vocabulary,
        time_first=exhibit.time_first,
        second=exhibit.second if exhibit.named else None,
    )
    own, plain, sequences = opened(exhibit.target, options)
    assert own.kernels == (ATTENTION if exhibit.name in NOT_OF_LENGTHS else kernels)
    assert plain.kernels == ONNXRUNTIME
    require_equal(own, plain, sequences)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    """A transformer, exported."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    return lengthwise_export.export(Transformer(24, 4, 2), folder / "transformer", features=12, max_length=64)


def test_each_layer_of_a_transformer_has_its_attention_in_one_node(published: PublishedModel):
    graph = (published.directory / GRAPH_FILE).read_bytes()
    new = onnx.load_from_string(attention.fused(graph))
    operators = [node.op_type for node in new.graph.node]
    assert operators.count("Attention") == 2  # with the product that makes query, key and value
    assert "Softmax" not in operators
    assert len(operators) < len(onnx.load_from_string(graph).graph.node)


@pytest.mark.skipif(OWN == ATTENTION, reason="no kernels for this processor")
def test_steps_are_packed_from_the_input_to_the_mean(published: PublishedModel):
    graph = (published.directory / GRAPH_FILE).read_bytes()
    new = onnx.load_from_string(valid_attention.fused(graph, "lengths"))
    operators = [node.op_type for node in new.graph.node]
    counts = {name: operators.count(name) for name in ("AttentionOfValidSteps", "Pack", "Unpack", "StepSum")}
    assert counts == {"AttentionOfValidSteps": 2, "Pack": 1, "Unpack": 0, "StepSum": 1}
    assert not {"Attention", "Softmax", "ConstantOfShape"} & {*operators}


@pytest.mark.skipif(OWN == ATTENTION, reason="no kernels for this processor")
@pytest.mark.parametrize("set_", valid_attention.INSTRUCTION_SETS)
def test_padding_that_is_nan_reaches_no_answer(published: PublishedModel, set_: str):
    recurrent_kernels.choose(set_, "attention")
    session = Session.load(published.directory, published.manifest)
    recurrent_kernels.choose(valid_attention.INSTRUCTION_SETS[0], "attention")
    assert session.kernels == f"{ATTENTION} {set_}"
    random = np.random.default_rng(0)
    sequences = [random.standard_normal((length, 12)).astype(np.float32) for length in LENGTHS]
    batch = pad(sequences, width=40)
    wild = PaddedBatch(batch.steps.copy(), batch.lengths)
    wild.steps[np.arange(batch.width) >= batch.lengths[:, None]] = np.nan
    answers = session.run(wild).logits
    assert np.array_equal(answers, [session.run(pad([steps])).logits[0] for steps in sequences])


def test_an_export_promises_the_bits_of_the_operator_that_will_serve(published: PublishedModel):
    session = Session.load(published.directory, published.manifest)
    assert published.manifest.made[KERNELS] == session.kernels == OWN
    assert published.manifest.promise(session.provider).bits
    random = np.random.default_rng(0)
    sequences = [random.standard_normal((length, 12)).astype(np.float32) for length in LENGTHS]
    together = session.run(pad(sequences)).logits
    assert np.array_equal(together, [session.run(pad([steps])).logits[0] for steps in sequences])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("writes", [None, -1e9, -float("inf")])
def test_a_mask_that_is_added_or_written_hides_large_padding(writes: float | None, kernels: str):
    own, plain, sequences = opened(SelfAttention(writes, grows=1e15))
    assert own.kernels == kernels
    require_equal(own, plain, sequences)


@pytest.mark.long
@pytest.mark.sampled(2)
def test_a_written_mask_hides_padding_whose_scores_overflow(kernels: str):
    own, _, sequences = opened(SelfAttention(-1e9))
    batch = pad(sequences)
    wild = PaddedBatch(batch.steps.copy(), batch.lengths)
    wild.steps[np.arange(batch.width) >= batch.lengths[:, None]] = 1e37
    assert own.kernels == kernels
    assert np.array_equal(own.run(wild).logits, own.run(batch).logits)


def test_parts_in_another_order_are_seen_in_the_answers():
    own, plain, sequences = opened(SelfAttention(parts_last=True))
    assert own.kernels == ONNXRUNTIME
    require_equal(own, plain, sequences)


def test_parts_of_a_product_with_turned_weights_and_no_bias_are_found():
    module = SelfAttention(-float("inf"))
    module.qkv = nn.Linear(4, 24, bias=False)
    target = targets.read(module, TargetOptions(features=4))
    model = target.build("m", 18)
    (weights,) = (tensor for tensor in model.graph.initializer if list(tensor.dims) == [4, 24])
    turned = onnx.helper.make_node("Transpose", ["as_in_torch"], [weights.name], perm=[1, 0])
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights).T.copy(), "as_in_torch"))
    model.graph.node.insert(0, turned)  # so are large weights of torch
    manifest = Manifest(name="m", version=1, input=target.steps, labels=target.labels, graph=target.names)
    graph = model.SerializeToString()
    session = Session(graph, manifest)
    assert session.kernels == OWN
    batch = pad([np.random.default_rng(0).standard_normal((length, 4)).astype(np.float32) for length in LENGTHS])
    plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits = plain.run([manifest.graph.logits], feed(manifest.graph, batch))[0]
    assert np.allclose(session.run(batch).logits, logits, rtol=1e-5, atol=1e-6)


def test_a_sum_and_its_layer_norm_stay_two_nodes_on_the_cpu():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            steps = self.norm(x + torch.tanh(x)) * (torch.arange(x.shape[1]) < lengths[:, None])[:, :, None]
            return self.head(steps.sum(1) / lengths[:, None])

    target = targets.read(Residual(), TargetOptions(features=16))
    manifest = Manifest(name="m", version=1, input=target.steps, labels=target.labels, graph=target.names)
    graph, options = target.build("m", 18).SerializeToString(), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    batch = pad([np.random.default_rng(0).normal(3.0, 1.0, (length, 16)).astype(np.float32) for length in LENGTHS])
    node_by_node = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    # The operator for both rounds otherwise, and takes five times as long as the two
    logits = node_by_node.run([manifest.graph.logits], feed(manifest.graph, batch))[0]
    assert np.array_equal(Session(graph, manifest).run(batch).logits, logits)


class ZerosAtSteps(nn.Module):
    """Attention over token ids, with zeros written by the mask of the scores, or by another.

    Args:
        where: What the zeros are written over: query, key, value, or the weights behind the softmax; with `scores`, a
            low number is written over all scores of a query.
        is_rare: Whether they are written at the id 7, else at padding.
    """

    def __init__(self, where: str, *, is_rare: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.where, self.is_rare = where, is_rare
        self.table, self.parts, self.head = nn.Embedding(30_000, 8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(ids.shape[1]) >= lengths[:, None]
        zeros = ids == 7 if self.is_rare else padding
        parts = dict(zip(("query", "key", "value"), self.parts(self.table(ids)).split(8, 2), strict=True))
        for name in parts:
            if name == self.where:
                parts[name] = torch.where(~zeros[:, :, None], parts[name], torch.zeros(()))
            parts[name] = parts[name].unflatten(2, (2, 4)).transpose(1, 2)
        scores = parts["query"] @ parts["key"].mT / 2.0
        hidden = padding[:, None, None]
        if self.where == "scores":
            added = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
            weights = (scores.masked_fill(zeros[:, None, :, None], -1e9) + added).softmax(-1)
        else:
            weights = scores.masked_fill(hidden, -1e9).softmax(-1)
        if self.where == "weights":
            weights = weights.masked_fill(zeros[:, None, None], 0.0)
        joined = (weights @ parts["value"]).transpose(1, 2).flatten(2)
        return self.head(joined.masked_fill(padding[:, :, None], 0.0).sum(1) / lengths[:, None])


@pytest.mark.long
@pytest.mark.sampled(5)
@pytest.mark.parametrize("where", ["weights", "query", "key", "value", "scores"])
def test_what_is_written_at_a_rare_token_is_in_the_answers(where: str):
    own, plain, sequences = opened(ZerosAtSteps(where, is_rare=True), TargetOptions(vocabulary=30_000))
    for steps in sequences[1:]:
        steps[-1] = 7  # no sequence that the service tried has it
    require_equal(own, plain, sequences)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("where", ["weights", "value"])
def test_zeros_that_padding_has_in_the_operator_are_no_hindrance(where: str):
    own, plain, sequences = opened(ZerosAtSteps(where, is_rare=False), TargetOptions(vocabulary=30_000))
    assert own.kernels == OWN
    require_equal(own, plain, sequences)


@pytest.mark.parametrize("square", [4.0, -4.0])
def test_a_scale_is_a_root_of_no_negative_number(square: float):
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[rows, 2, width, 4] query, float[rows, 2, 4, width] key, float[rows, 2, width, 4] value)
        => (float[rows, 2, width, 4] y) {{
            square = Constant<value_float = {square}>() scale = Sqrt(square) scores = MatMul(query, key)
            scaled = Div(scores, scale) weights = Softmax(scaled) y = MatMul(weights, value)
        }}"""
    graph = onnx.parser.parse_model(text).SerializeToString()
    if square > 0:
        assert b"Attention" in attention.fused(graph)
    else:
        with pytest.raises(attention.NotFound):
            attention.fused(graph)


@pytest.mark.parametrize("opset", [14, 18])
def test_three_products_and_a_scale_of_the_heads_are_one_operator(opset: int):
    # As torch's exporter of TorchScript writes `scaled_dot_product_attention`, so of folders of optimum
    made = [
        f"{part}_made = MatMul(x, {part}_weights) {part}_sum = Add({part}_bias, {part}_made) "
        f"{part}_apart = Reshape({part}_sum, apart) {part} = Transpose<perm = {order}>({part}_apart)"
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    ]
    parameters = [f"float[8, 8] {part}_weights, float[8] {part}_bias" for part in ("query", "key", "value")]
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[rows, width, 8] x, float[rows, 1, 1, width] mask, {", ".join(parameters)})
        => (float[rows, width, 8] y) {{
            apart = Constant<value_ints = [0, 0, 2, 4]>() joined = Constant<value_ints = [0, 0, 8]>()
            last = Constant<value_ints = [-1]>() end = Constant<value_ints = [9223372036854775807]>()
            one = Constant<value_float = 1.0>()
            {" ".join(made)}
            shape = Shape(query) size = Slice(shape, last, end) number = Cast<to = 1>(size)
            root = Sqrt(number) scale = Div(one, root) part = Sqrt(scale)
            query_scaled = Mul(query, part) key_scaled = Mul(key, part)
            scores = MatMul(query_scaled, key_scaled) hidden = Add(scores, mask) weights = Softmax(hidden)
            answer = MatMul(weights, value) turned = Transpose<perm = [0, 2, 1, 3]>(answer) y = Reshape(turned, joined)
        }}"""
    model, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    for given in list(model.graph.input)[2:]:
        shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        numbers = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, given.name))
    del model.graph.input[2:]
    fused = attention.fused(model.SerializeToString())
    operators = [node.op_type for node in onnx.load_from_string(fused).graph.node]
    assert operators.count("Attention") == 1
    assert not {"MatMul", "Softmax", "Sqrt"} & {*operators}
    mask = np.where(np.arange(7) < np.array([[7], [3]]), 0, -np.inf)[:, None, None].astype(np.float32)
    given = {"x": random.standard_normal((2, 7, 8)).astype(np.float32), "mask": mask}
    answers = [
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, given)[0]
        for graph in (fused, model.SerializeToString())
    ]
    assert np.allclose(*answers, rtol=1e-5, atol=1e-6)


ENCODER: Final = """<ir_version: 8, opset_import: ["": 14]>
    g (float[rows, width, 8] x, float[rows, 1, 1, width] mask)
    => (float[rows, width, 8] y, float[rows, 1, 8] total) {
        two = Constant<value_float = 2.0>() little = Constant<value_float = 0.001>() axis = Constant<value_ints = [1]>()
        apart = Constant<value_ints = [0, 0, 2, 4]>() one = Constant<value_ints = [-1]>()
        moved = Add(x, bias) mean = ReduceMean<axes = [-1]>(moved) off = Sub(moved, mean) square = Pow(off, two)
        variance = ReduceMean<axes = [-1]>(square) more = Add(variance, little) root = Sqrt(more) norm = Div(off, root)
        q_made = MatMul(norm, wq) k_made = MatMul(norm, wk) v_made = MatMul(norm, wv)
        q_apart = Reshape(q_made, apart) k_apart = Reshape(k_made, apart) v_apart = Reshape(v_made, apart)
        q = Transpose<perm = [0, 2, 1, 3]>(q_apart) k = Transpose<perm = [0, 2, 3, 1]>(k_apart)
        v = Transpose<perm = [0, 2, 1, 3]>(v_apart)
        scores = MatMul(q, k) hidden = Add(scores, mask) weights = Softmax(hidden) answer = MatMul(weights, v)
        turned = Transpose<perm = [0, 2, 1, 3]>(answer)
        sizes = Shape(turned) first = Constant<value_ints = [0]>() second = Constant<value_ints = [1]>()
        size0 = Gather(sizes, first) size1 = Gather(sizes, second) joined = Concat<axis = 0>(size0, size1, one)
        heads = Reshape(turned, joined) y = Add(heads, norm) total = ReduceSum(y, axis)
    }"""
"""Attention behind a norm of nodes, whose heads are joined by sizes of their own."""


def encoder(*, text: str = ENCODER) -> bytes:
    """The graph with random weights."""
    model, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"bias": (8,), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "up": (8, 24), "down": (24, 8)}.items():
        numbers = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, name))
    return model.SerializeToString()


def answers_of(graph: bytes, new: bytes, valid: NDArray[np.bool_]) -> tuple[list[Floats], list[Floats]]:
    """What the new graph answers, and what the graph does, to random steps; padding is NaN in the new one only."""
    mask = np.where(valid, 0, -np.inf)[:, None, None].astype(np.float32)
    x = np.random.default_rng(1).standard_normal((*valid.shape, 8)).astype(np.float32)
    wild, options = np.where(valid[..., None], x, np.float32(np.nan)), onnxruntime.SessionOptions()
    recurrent_kernels.register(options)
    recurrent_kernels.register(options, "attention")
    own = onnxruntime.InferenceSession(new, options, providers=["CPUExecutionProvider"])
    plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return own.run(None, {"x": wild, "mask": mask}), plain.run(None, {"x": x, "mask": mask})


@pytest.mark.skipif(OWN == ATTENTION, reason="no kernels for this processor")
def test_a_norm_of_several_nodes_is_packed_as_a_whole():
    new = valid_attention.fused(graph := encoder(), "mask")
    operators = [node.op_type for node in onnx.load_from_string(new).graph.node]
    assert [operators.count(name) for name in ("Pack", "Unpack", "StepSum", "ReduceMean")] == [1, 1, 1, 2]
    valid = np.arange(7) < np.array([[7], [3]])
    (y, total), (expected, _) = answers_of(graph, new, valid)
    assert np.allclose(y[valid], expected[valid], rtol=1e-5, atol=1e-5)
    assert not y[~valid].any()
    assert np.allclose(total, y.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-5)


ANSWER: Final = "(float[rows, width, 8] y, float[rows, 1, 8] total)"
LAST: Final = "total = ReduceSum(y, axis)"
HEAD: Final = """wide = MatMul(y, up) smooth = Tanh(wide) back = MatMul(smooth, down) summed = Add(back, y)
    place = Constant<value_int = 0>() logits = Gather<axis = 1>(summed, place)"""


@pytest.mark.skipif(OWN == ATTENTION, reason="no kernels for this processor")
@pytest.mark.parametrize("is_one", [True, False], ids=["one product", "three"])
@pytest.mark.parametrize("further", ["", "total = ReduceSum(summed, axis)"], ids=["the first step", "all steps"])
def test_a_last_layer_of_which_the_first_step_is_read_computes_no_other(further: str, is_one: bool):
    outputs = "(float[rows, 8] logits, float[rows, 1, 8] total)" if further else "(float[rows, 8] logits)"
    text = ENCODER.replace(ANSWER, outputs).replace(LAST, HEAD + " " + further)
    if is_one:  # query, key and value with a bias each are made by one product
        for part in "qkv":
            text = text.replace(f"{part}_made =", f"{part}_bare =")
            text = text.replace(f"{part}_apart =", f"{part}_made = Add({part}_bare, bias) {part}_apart =")
    new = valid_attention.fused(graph := encoder(text=text), "mask")
    nodes = onnx.load_from_string(new).graph.node
    (attended,) = (node for node in nodes if node.op_type == "AttentionOfValidSteps")
    assert (len(attended.input), all(attended.input[:3])) == ((4, not is_one) if further else (5, True))
    for valid in (np.arange(7) < np.array([[7], [3], [1]]), np.arange(1) < np.array([[1]])):
        for own, plain in zip(*answers_of(graph, new, valid), strict=True):
            if own.ndim == 2:  # of the first step; the sum has padding in the graph
                assert np.allclose(own, plain, rtol=1e-5, atol=1e-5)


class OfFirstSteps(SelfAttention):
    """It hides every step behind the first 40, too."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x, torch.where(lengths < 40, lengths, 40))


@pytest.mark.long
def test_a_mask_of_more_than_the_lengths_is_that_of_onnxruntimes_operator():
    own, plain, sequences = opened(OfFirstSteps())
    assert own.kernels == ATTENTION
    require_equal(own, plain, [*sequences, np.ones((60, 4), np.float32)])


class OfEachStep(SelfAttention):
    """An answer of each step; of padding, what its own numbers make."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        hidden = (torch.arange(x.shape[1]) >= lengths[:, None])[:, None, None]
        weights = (query @ key.mT / 2.0).masked_fill(hidden, -torch.inf).softmax(-1)
        return self.head((weights @ value).transpose(1, 2).flatten(2))


@pytest.mark.long
@pytest.mark.sampled(2)
def test_answers_of_padding_need_not_be_the_same(kernels: str):
    target = targets.read(OfEachStep(), TargetOptions(features=4))
    names = Manifest(name="m", version=1, input=target.steps, labels=target.labels, graph=target.names)
    manifest = names.like(task="per-step")
    graph = target.build("m", 18).SerializeToString()
    own, plain = Session(graph, manifest), Session(graph, manifest, devices=(PLAIN_CPU,))
    assert own.kernels == kernels
    batch = pad([np.full((length, 4), length, np.float32) for length in LENGTHS])
    answers, expected = (by_row(each.run(batch).logits, batch.lengths, manifest) for each in (own, plain))
    np.testing.assert_allclose(np.concatenate(answers), np.concatenate(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "DequantizeLinear"])
def test_weights_that_have_the_bytes_of_a_layers_name_are_no_layer(name: str):
    target = targets.read(SelfAttention(), TargetOptions(features=4))
    manifest = Manifest(name="m", version=1, input=target.steps, labels=target.labels, graph=target.names)
    model = target.build("m", 18)
    model.graph.doc_string = name
    assert Session(model.SerializeToString(), manifest).kernels == OWN


def test_a_softmax_of_an_answer_is_no_attention():
    head = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))

    class Mean(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            padding = torch.arange(x.shape[1]) >= lengths[:, None]
            return head(x.masked_fill(padding[:, :, None], 0.0).sum(1) / lengths[:, None])

    assert opened(Mean())[0].kernels == ONNXRUNTIME


def test_a_long_chain_of_sums_before_a_softmax_is_given_up():
    nodes = [onnx.helper.make_node("Add", [f"x{place}", f"x{place}"], [f"x{place + 1}"]) for place in range(60)]
    nodes.append(onnx.helper.make_node("Softmax", ["x60"], ["logits"]))
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x0", "logits")]
    graph = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", values[:1], values[1:]))
    with pytest.raises(attention.NotFound):
        attention.fused(graph.SerializeToString())
