"""Graphs at fp16 and int8: what is rounded, what is not, and how they are served."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch.nn.utils.rnn import pack_padded_sequence

import lengthwise_export
from lengthwise.batching.limits import BatchLimits
from lengthwise.commands.cli import main
from lengthwise.errors import VerificationError
from lengthwise.padding import pad
from lengthwise.repository import loading
from lengthwise.runtime.manifest import VERIFICATION_FILE, Manifest, Precision
from lengthwise.runtime.session import CPU_LABEL, Session
from lengthwise.verification import measurement, promises
from lengthwise.verification.random_sequences import KINDS, draw
from lengthwise_export.errors import ExportError
from lengthwise_export.exporting.flow import PublishedModel, publish
from lengthwise_export.onnx_graphs import precision
from lengthwise_export.options import ExportOptions, TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.index import TORCH_SOUND, Exhibit
from tests.gallery.onnx_models import model as onnx_model
from tests.support import model_directories, numpy_models
from tests.support.integer_graphs import batch, float_graph, opened
from tests.support.long import long_but
from tests.support.specs import candidate, from_spec, spec

ROUNDED: tuple[Precision, ...] = ("fp16", "int8")
Published = dict[str, PublishedModel]  # by precision


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A small model with attention pooling, at each precision."""
    folder = tmp_path_factory.mktemp("models")
    described = candidate('pooling = "attention"', step="features = 3\nmax_length = 60")
    return {to: publish(described, folder / to / "tiny", ExportOptions(precision=to)) for to in ("fp32", *ROUNDED)}


def graph_of(found: PublishedModel) -> onnx.ModelProto:
    return onnx.load(found.directory / "model.onnx")


def kinds(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


# ServedModel


@pytest.mark.long
@pytest.mark.parametrize("to", ["fp32", *ROUNDED])
async def test_every_precision_is_batch_invariant_to_the_byte(
    published: Published, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_directories.measure_quickly(monkeypatch)
    model = loading.load(published[to].directory, BatchLimits(rows=16))
    lengths = np.random.default_rng(0).integers(1, 60, 40)
    drawn = draw(model.manifest, lengths.tolist(), 1)
    bodies = [{"sequences": [steps.tolist()], "outputs": ["attention"]} for steps in drawn]
    async with numpy_models.serving(model) as service:
        alone = [(await service.predict(body)).content for body in bodies]
        before = await service.figures()
        together = await asyncio.gather(*(service.predict(body) for body in bodies))
        after = await service.figures()
    assert [answer.content for answer in together] == alone
    assert all(b'"label"' in content for content in alone)
    assert sum(after[name] - before[name] for name in after if name.startswith("lengthwise_batch_rows_count")) < 40


@pytest.mark.long
@pytest.mark.parametrize("to", ROUNDED)
def test_the_promise_is_of_bits_and_the_proof_has_the_float32_difference(published: Published, to: str) -> None:
    manifest, exact = published[to].manifest, published["fp32"].manifest
    (promise,) = manifest.promises
    assert (promise.provider, promise.bits, promise.tolerance) == (CPU_LABEL, True, 0.0)
    assert {"width", "padding", "at padding"} <= {case.varied for case in published[to].cases}
    assert (manifest.max_batch_rows, manifest.width_multiple) == (None, exact.width_multiple)
    assert (exact.max_batch_rows, exact.from_fp32) == (None, None)

    assert Manifest.read(published[to].directory) == manifest
    proof = json.loads((published[to].directory / VERIFICATION_FILE).read_text())
    all_against = [case for case in proof["cases"] if case["name"].endswith("against the float32 graph")]
    against = [case["difference"] for case in all_against if case["name"].rpartition(", ")[0] not in KINDS]
    assert (len(against), len(all_against)) == (3, 3 + len(KINDS))
    assert manifest.precision == proof["precision"] == to
    assert manifest.from_fp32 == proof["from_fp32"] == max(against) > 0
    assert promise.golden == 2 * manifest.from_fp32


@pytest.mark.long
def test_a_graph_that_lies_too_far_from_float32_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(graph: onnx.ModelProto, to: Precision) -> onnx.ModelProto:
        changed = onnx.load_from_string(graph.SerializeToString())
        for tensor in changed.graph.initializer:
            if len(tensor.dims) > 1:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
        return changed

    monkeypatch.setattr(precision, "convert", spoilt)
    with pytest.raises(VerificationError):
        publish(candidate(), tmp_path / "tiny", ExportOptions(precision="fp16"))
    assert list(tmp_path.iterdir()) == []


# fp16


class Amplifies(torch.nn.Module):
    """Multiplies by 100 in front of a bounded function: a value of 1,000 is beyond float16 there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(3, 8), torch.nn.Linear(8, 8)
        self.gru, self.last = torch.nn.GRU(8, 8, batch_first=True), torch.nn.Linear(8, 2)
        self.first.weight.data *= 100

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`[rows, 2]`."""
        packed = pack_padded_sequence(self.second(self.first(x)), lengths.cpu(), True, enforce_sorted=False)
        return self.last(self.gru(packed)[1][-1])


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ROUNDED)
def test_what_a_precision_answers_at_raw_values_is_said_by_its_kind_and_number(to: Precision, tmp_path: Path) -> None:
    published = lengthwise_export.export(Amplifies().eval(), tmp_path / "amplifies", features=3, precision=to)
    kinds_of = {case.name.rpartition(", ")[0]: case for case in published.cases}
    raw = {kind: case for kind, case in kinds_of.items() if kind in KINDS}
    assert set(raw) == set(KINDS)
    assert published.manifest.from_fp32 is not None
    assert published.manifest.from_fp32 < 0.5  # of ordinary values
    for kind, case in raw.items():
        if case.relative > promises.MAX_DIFFERENCE[to]:
            assert any(kind in notice for notice in published.notices)
    told = {kind for kind in KINDS if any(f"{kind} overflow" in notice for notice in published.notices)}
    assert told == ({*list(KINDS)[:3], "one far outlier"} if to == "fp16" else set())


def test_fp16_halves_the_weights_with_few_casts_and_keeps_outer_types(published: Published) -> None:
    half = graph_of(published["fp16"])
    # Into the first layer, and out of the last recurrent one and of the attention's units
    assert kinds(half)["Cast"] == kinds(graph_of(published["fp32"]))["Cast"] + 3
    types = {value.name: value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)}
    assert types == dict.fromkeys(["values", "logits", "attention"], TensorProto.FLOAT) | {"lengths": TensorProto.INT32}
    weights = {tensor.name: tensor for tensor in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type == "LSTM":
            assert {weights[name].data_type for name in node.input[1:4]} == {TensorProto.FLOAT16}
            assert node.input[4] == "lengths"
    assert len(half.SerializeToString()) < 0.7 * len(graph_of(published["fp32"]).SerializeToString())


def test_fp16_leaves_masks_normalisation_softmax_and_the_last_products_in_float32(published: Published) -> None:
    half = graph_of(published["fp16"]).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.initializer}
    masking = [array for array in held.values() if array.size == 1 and array.dtype.kind == "f" and array.item() < -1e4]
    assert [array.dtype for array in masking] == [np.float32]
    assert masking[0].item() == np.finfo(np.float32).min
    halves = {tensor.name for tensor in half.initializer if tensor.data_type == TensorProto.FLOAT16}
    halves |= {node.output[0] for node in half.node if node.op_type == "Cast" and node.attribute[0].i == 10}
    for node in half.node:
        if node.op_type in ("Sub", "Div", "Softmax", "Gemm") or (node.op_type == "Where" and node.input[2] in held):
            assert not halves & set(node.input), node.op_type


@pytest.mark.long
def test_fp16_takes_values_that_only_normalisation_makes_small_enough_for_it() -> None:
    source = candidate()
    graph, manifest = source.build(source.manifest), source.manifest
    for tensor in graph.graph.initializer:
        number = {"mean": 1e6, "std": 1e5}.get(tensor.name.rpartition("first.")[2])
        if number is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.full(3, number, np.float32), tensor.name))
    half = precision.convert(graph, "fp16")
    steps = (1e6 + 1e5 * np.random.default_rng(0).standard_normal((7, 3))).astype(np.float32)
    exact, rounded = (Session(each.SerializeToString(), manifest).run(pad([steps])).logits for each in (graph, half))
    assert np.abs(exact).max() > 0
    assert np.abs(exact - rounded).max() < 1e-3


def test_a_weight_that_float16_cannot_hold_keeps_its_product_in_float32() -> None:
    graph = products([np.full((3, 4), 1e5, np.float32), np.ones((4, 4), np.float32), np.ones((4, 2), np.float32)])
    half = precision.convert(graph, "fp16")
    assert [tensor.data_type for tensor in half.graph.initializer if tensor.name == "w0"] == [TensorProto.FLOAT]
    assert sum(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer) == 1


def test_a_subgraph_finds_what_it_takes_from_outside_in_float32() -> None:
    graph = products([np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)])
    inside = onnx.parser.parse_graph("inside () => (float[n, 4] negated) { negated = Neg (p0) }")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=inside, else_branch=inside))
    graph.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None))
    half = precision.convert(graph, "fp16")
    assert kinds(half)["Cast"] == 2
    onnx.checker.check_model(half, full_check=True)


@pytest.mark.parametrize("to", ROUNDED)
def test_a_graph_with_one_product_has_nothing_to_round(to: Precision) -> None:
    with pytest.raises(ExportError):
        precision.convert(products([np.ones((3, 2), np.float32)]), to)


# int8


def test_int8_stores_only_weights_of_recurrent_layers_as_bytes_and_says_so(
    published: Published,
) -> None:
    exact, graph = graph_of(published["fp32"]), graph_of(published["int8"])
    before, after = kinds(exact), kinds(graph)
    added = before["LSTM"]  # the states' weights: both layers have few inputs
    assert after - before == Counter(DequantizeLinear=added, Reshape=added)
    assert not before - after
    wide = [tensor for tensor in graph.graph.initializer if tensor.data_type == TensorProto.INT8]
    assert len(wide) == added
    sizes = [
        sum(np.prod(tensor.dims) for tensor in each.graph.initializer if tensor.data_type == TensorProto.FLOAT)
        for each in (exact, graph)
    ]
    in_bytes = sum(len(tensor.raw_data) for tensor in wide)  # a quarter of what they took, and a scale for each row
    assert sizes[0] - sizes[1] == in_bytes - sum(tensor.dims[0] for tensor in wide)
    assert max(np.abs(numpy_helper.to_array(tensor).astype(int)).max() for tensor in wide) == 63
    (notice,) = published["int8"].notices
    assert re.fullmatch(r"in int8: 2 recurrent layers with \d\d% of all weights; .* float32", notice)
    assert published["fp16"].notices == published["fp32"].notices == ()
    told = {entry.key for entry in graph.metadata_props}
    assert told == {"lengthwise.contract", "lengthwise.name", "lengthwise.labels"}


def test_a_weight_is_a_whole_number_of_its_rows_scale() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (20, 9)).astype(np.float32)
    weights[3] = 0
    weights[5] *= 1e-30
    whole, scales = precision.rounded(weights)
    assert np.abs(whole.astype(int)).max(axis=1).tolist() == [0 if row == 3 else 63 for row in range(20)]
    assert (np.abs(whole * scales[:, None] - weights) <= 0.501 * scales[:, None]).all()


@pytest.mark.parametrize(
    ("form", "inputs", "why"),
    [
        ({"attributes": {"clip": 0.5}}, [], "a clip"),
        ({"attributes": {"activations": ["Sigmoid", "Tanh", "Relu"]}}, [], "other activations"),
        ({"attributes": {"input_forget": 1}}, [], "coupled"),
        ({"kind": "GRU", "attributes": {"linear_before_reset": 0}}, [], "reset gate comes before"),
        ({"weights": {"r": np.full((1, 20, 5), np.inf, np.float32)}}, [], "not finite"),
        ({"weights": {"state": np.ones((1, 1, 5), np.float32)}}, ["state"], "states of its own"),
        ({"weights": {"more": np.ones((1, 15), np.float32)}}, ["", "", "more"], "peepholes"),
    ],
    ids=["clip", "activations", "coupled gates", "reset before", "weights without end", "first states", "peepholes"],
)
def test_int8_of_a_form_that_is_not_known_is_refused_with_the_reason(
    form: dict[str, Any], inputs: list[str], why: str
) -> None:
    graph = float_graph(**form)
    graph.graph.node[0].input.extend(inputs)
    said = rf"that could run in int8 \((LSTM|GRU) layer: .*{why}.*\): export it in fp32"
    with pytest.raises(ExportError, match=said):
        precision.convert(graph, "int8")


def test_int8_drops_first_states_of_zeros_whatever_their_shape() -> None:
    graph = float_graph()
    (node,) = graph.graph.node
    node.input.extend(["state", "state"])
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 5]), "shape"))
    graph.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))
    graph.graph.node.insert(1, helper.make_node("Identity", ["zeros"], ["state"]))
    eight = precision.convert(graph, "int8")
    assert [*next(node for node in eight.graph.node if node.op_type == "LSTM").input][5:] == []


def with_second_layer(graph: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """A layer beside the first, of the same weights."""
    second = onnx.NodeProto()
    second.CopyFrom(graph.graph.node[0])
    second.name = name
    second.output[:] = ["y2", "h2", "c2"]
    graph.graph.node.append(second)
    return graph.graph.node[-1]


def test_a_layer_that_cannot_run_in_integers_stays_in_float32_and_is_listed() -> None:
    graph = float_graph(hidden=40, inputs=40)
    with_second_layer(graph, "with a clip").attribute.append(helper.make_attribute("clip", 0.5))
    eight = precision.convert(graph, "int8")
    assert kinds(eight) == Counter(LSTM=2, DequantizeLinear=2, Reshape=2)
    assert [*eight.graph.node[-1].input[1:3]] == ["w", "r"]
    said = precision.describe(graph, "int8")
    assert said[0].startswith("in int8: 1 recurrent layer with ")
    assert said[1:] == ("LSTM with a clip stays in float32: it has other activations, or a clip",)


def test_int8_stores_products_with_enough_weights_but_not_the_last_ones() -> None:
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (64, 16), (16, 64), (64, 64))]
    graph = products(weights, first=64)
    eight = precision.convert(graph, "int8")
    assert kinds(eight) == Counter(MatMul=4, DequantizeLinear=1)
    assert [node.input[1] for node in eight.graph.node if node.op_type == "MatMul"][1:] == ["w1", "w2", "w3"]
    assert precision.describe(graph, "int8")[0].startswith("in int8: 1 product with 40% of all weights; ")


def test_int8_of_layers_that_share_their_weights_stores_them_for_each() -> None:
    graph, feed = float_graph(hidden=40, inputs=40), batch([5, 2], 40)
    with_second_layer(graph, "second")
    eight = precision.convert(graph, "int8")
    assert kinds(eight) == Counter(LSTM=2, DequantizeLinear=4, Reshape=4)
    exact, found = opened(graph).run(["y"], feed)[0], opened(eight, "portable").run(["y"], feed)[0]
    np.testing.assert_allclose(found, exact, atol=0.05)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ROUNDED)
def test_a_conversion_leaves_the_float32_graph_and_gives_the_same_bytes(to: Precision) -> None:
    source = candidate('pooling = "attention"')
    graph = source.build(source.manifest)
    before = graph.SerializeToString()
    assert precision.convert(graph, to).SerializeToString() == precision.convert(graph, to).SerializeToString()
    assert graph.SerializeToString() == before


# Modules as their users write them

GALLERY = {
    "additive_attention": ("fp16",),
    "causal_decoder": ("fp16",),
    "causal_tcn": ("fp16",),
    "cnn_lstm": ROUNDED,
    "masked_batchnorm": ("fp16",),
    "relu_rnn": ("fp16",),
    "statistics_pooling": ("fp16",),
    "three_layer_bigru": ROUNDED,
    "token_cnn": ("fp16",),
    "transformer_cls_token": ("fp16",),
}
"""Which precisions a module of the gallery can have; at the others it is refused."""
IN_EVERY_RUN = {"cnn_lstm", "token_cnn"}


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "exhibit",
    long_but((each for each in TORCH_SOUND if each.name in GALLERY), lambda one: one.name in IN_EVERY_RUN),
    ids=lambda one: one.name,
)
def test_a_users_module_lies_as_near_to_float32_as_its_precision_rounds(exhibit: Exhibit) -> None:
    target = targets.read(exhibit.target, TargetOptions(features=exhibit.features, vocabulary=exhibit.vocabulary))
    manifest = target.describe(max_length=60)
    graph = target.build("m", 18)
    exact = Session(graph.SerializeToString(), manifest)
    for to in ROUNDED:
        if to not in GALLERY[exhibit.name]:
            with pytest.raises(ExportError):
                precision.convert(graph, to)
            continue
        rounded, served = precision.convert(graph, to).SerializeToString(), precision.manifest_at(manifest, to)
        cases = measurement.measure_cases(
            lambda threads, data=rounded, served=served: Session(data, served, threads=threads),  # type: ignore[misc]
            served,
            lambda batch: exact.run(batch).logits,
        )
        assert promises.failures(cases, tolerance=0.0, most_from_reference={"fp16": 2e-3, "int8": 3e-2}[to]) == []


# The command


SPEC = """input = {features = 3, max_length = 40}
model = {hidden = 8, layers = 1}
output.labels = ["0", "1"]"""


def run(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["export", *map(str, arguments)])
    return answer.exit_code, answer.output


@pytest.mark.long
def test_the_command_counts_the_labels_that_a_precision_changes(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(SPEC)
    rows = [{"id": str(i), "steps": [[0.1 * i, 1.0, -0.5]] * (1 + i % 50), "label": "0"} for i in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = (tmp_path / "target.toml", "--out", tmp_path / "m", "--precision", "int8", "--data", tmp_path / "data.jsonl")
    code, output = run(*call, "--json")
    assert code == 0, output
    told = json.loads(output[output.index("{") :])
    assert told["labels"]["sequences"] == sum(len(row["steps"]) <= 40 for row in rows)
    assert told["labels"]["changed"] <= told["labels"]["sequences"]
    assert 0 < told["labels"]["difference"] < 0.1
    proof = json.loads((Path(told["directory"]) / VERIFICATION_FILE).read_text())
    assert proof["data"] == told["labels"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [*ROUNDED, "int8 of a per-step model"])
def test_a_directory_of_each_precision_is_checked_as_it_is_served(
    published: Published, kind: str, tmp_path: Path
) -> None:
    if kind in published:
        directory, longest = published[kind].directory, "60"
    else:
        described = from_spec(spec(step="features = 3\nmax_length = 30", task="per-step"), None)
        directory, longest = publish(described, tmp_path / "m", ExportOptions(precision="int8")).directory, "30"
    answer = CliRunner().invoke(main, ["check", str(directory), "--max-length", longest, "--json"])
    assert (answer.exit_code, json.loads(answer.output)["verdict"]) == (0, "sound"), answer.output


@pytest.mark.long
def test_a_model_that_is_said_to_take_nan_gets_none_at_int8(tmp_path: Path) -> None:
    described = spec(step='features = 3\nmax_length = 30\nmissing = "zero"')
    target = publish(from_spec(described, None), tmp_path / "filled").directory / "model.onnx"
    handled = ("--max-length", 20, "--missing", "handled")
    code, output = run(target, "--out", tmp_path / "m", "--precision", "fp16", *handled)
    assert (code, Manifest.read(tmp_path / "m" / "1").missing, "fp16 within" in output) == (0, "handled", True), output
    code, output = run(target, "--out", tmp_path / "m", "--precision", "int8", *handled)
    assert (code, Manifest.read(tmp_path / "m" / "2").missing, "int8 within" in output) == (0, "refuse", True), output
    assert "missing values are refused at int8" in output
    assert "notice: in int8: " in output


@pytest.mark.long
def test_a_model_without_a_recurrent_layer_is_exit_2_at_int8(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(SPEC.replace("layers = 1", 'layers = 1, rnn = "none"'))
    code, output = run(tmp_path / "target.toml", "--out", tmp_path / "m", "--precision", "int8")
    assert (code, "no LSTM or GRU, and no large MatMul" in output) == (2, True)
    assert not (tmp_path / "m").exists()


def products(weights: list[np.ndarray], *, first: int = 3) -> onnx.ModelProto:
    """A graph of one product after another: `x [n, first]` times `w0`, which is `p0`, times `w1`, and so on."""
    names = ["x", *(f"p{i}" for i in range(len(weights)))]
    body = "\n".join(f"{names[i + 1]} = MatMul ({names[i]}, w{i})" for i in range(len(weights)))
    signature = f"products (float[n, {first}] x) => (float[n, {weights[-1].shape[1]}] {names[-1]})"
    return onnx_model(signature, body, {f"w{i}": weight for i, weight in enumerate(weights)}, producer="test", opset=18)
