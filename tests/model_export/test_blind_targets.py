"""Targets that take the steps alone: which call they get, and the graph that is built for a mend."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch, pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError, UncheckableError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from lengthwise_export.targets.target import Target
from tests.gallery.torch_models import network
from tests.support.integer_graphs import opened


@network(0, lambda: {"conv": nn.Conv1d(4, 6, 3, padding=1), "head": nn.Linear(6, 3)})
def averaged(self, x: Tensor) -> Tensor:
    """Convolutions over `[rows, features, width]`, as most models of time series are written."""
    return self.head(self.conv(x).relu().mean(-1))


class BothWays(nn.Module):
    """A BiLSTM whose last output reads the end of the row."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, batch_first=batch_first, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(out[:, -1] if self.rnn.batch_first else out[-1])


class Tagger(nn.Module):
    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=batch_first)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@network(0, lambda: {"table": nn.Embedding(20, 6), "head": nn.Linear(6, 3)})
def tokens(self, ids: Tensor) -> Tensor:
    return self.head(self.table(ids).mean(1))


BAG = nn.Sequential(nn.EmbeddingBag(20, 6, mode="max"), nn.Linear(6, 3))


@network(0, lambda: {"conv": nn.Conv1d(1, 6, 20, stride=2), "head": nn.Linear(6, 3)})
def raw(self, samples: Tensor) -> Tensor:
    """Samples `[rows, width]` without an axis of features, and no padding before the convolution."""
    return self.head(self.conv(samples.unsqueeze(1)).relu().amax(-1))


class MayTakeLengths(Tagger):
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        out = super().forward(x)
        return out if lengths is None else out * 2


class WithSwitch(BothWays):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return super().forward(x)


def batch_of(steps: StepInput, rows: int, width: int) -> PaddedBatch:
    """Rows that fill the width."""
    sampler = Sampler(steps, seed=rows + width)
    return pad([sampler.sequence(width) for _ in range(rows)], width=width)


@functools.cache
def made(name: str) -> tuple[Target, onnx.ModelProto]:
    """The target of a case, and its graph."""
    module, options, _ = CASES[name]
    target = targets.read(module, options, blind=True)
    return target, target.build("model", 18)


def built(target: Target, graph: onnx.ModelProto | None = None) -> onnxruntime.InferenceSession:
    graph = graph or target.build("model", 18)
    return opened(graph)


def require_equal(target: Target, session: onnxruntime.InferenceSession) -> None:
    """The graph answers as the module does, with several rows and alone, at several widths."""
    for rows, width in ((3, 24), (1, 41), (2, 65)):
        batch = batch_of(target.steps, rows, width)
        (logits,) = session.run(["logits"], {target.names.sequences: batch.steps})
        np.testing.assert_allclose(logits, target.subject.answer(batch).logits, atol=1e-5, rtol=1e-5)


CASES = {
    "channels first": (averaged(), TargetOptions(channels_first=True), StepInput(features=4)),
    "recurrent": (BothWays(), TargetOptions(), StepInput(features=4)),
    "time first": (BothWays(batch_first=False), TargetOptions(time_first=True), StepInput(features=4)),
    "per step": (Tagger(), TargetOptions(), StepInput(features=4)),
    "per step, time first": (Tagger(batch_first=False), TargetOptions(time_first=True), StepInput(features=4)),
    "tokens": (tokens(), TargetOptions(), StepInput(kind="tokens", vocabulary=20)),
    "a bag of tokens": (BAG, TargetOptions(), StepInput(kind="tokens", vocabulary=20)),
    "raw": (raw(), TargetOptions(), StepInput(features=1)),
    "an option of its own": (WithSwitch(), TargetOptions(), StepInput(features=4)),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", CASES)
def test_a_module_of_the_steps_alone_gives_a_graph_of_the_steps_alone(name: str) -> None:
    steps = CASES[name][2]
    target, graph = made(name)
    assert (target.blind, target.steps, target.per_step) == (True, steps, "per step" in name)
    names = target.names
    assert (names.lengths, names.lengths_type, names.sequences) == ("lengths", "int32", steps.kind)
    session = built(target, graph)
    assert [value.name for value in session.get_inputs()] == [steps.kind]
    assert session.get_inputs()[0].shape == ["rows", "width", *([] if steps.features is None else [steps.features])]
    require_equal(target, session)


@pytest.mark.long
def test_a_bag_of_tokens_needs_no_loop_and_a_recurrent_layer_gets_no_lengths() -> None:
    assert {node.op_type for node in made("a bag of tokens")[1].graph.node} == {"Gather", "ReduceMax", "Gemm"}
    layers = [node for node in made("recurrent")[1].graph.node if node.op_type == "LSTM"]
    assert [list(node.input[4:]) for node in layers] == [[], []]


def test_one_row_alone_is_the_original_whatever_the_lengths_say() -> None:
    module = BothWays()
    target = targets.read(module, TargetOptions(), blind=True)
    batch = batch_of(target.steps, 1, 9)
    shorter = PaddedBatch(batch.steps, batch.lengths - 4)
    with torch.no_grad():
        expected = module(torch.tensor(batch.steps)).numpy()
    np.testing.assert_allclose(target.subject.answer(batch).logits, expected, atol=1e-6)
    assert np.array_equal(target.subject.answer(shorter).logits, target.subject.answer(batch).logits)


@pytest.mark.long
def test_a_model_that_takes_lengths_gets_them_unless_the_user_says_otherwise() -> None:
    given = targets.read(MayTakeLengths(), TargetOptions(), blind=True)
    assert not given.blind
    assert [value.name for value in built(given).get_inputs()] == ["values", "lengths"]
    alone = targets.read(MayTakeLengths(), TargetOptions(second="none"), blind=True)
    assert alone.blind
    require_equal(alone, built(alone))


def test_without_a_mend_no_module_goes_without_lengths() -> None:
    for module in (BothWays(), tokens()):
        with pytest.raises(UncheckableError):
            targets.read(module, TargetOptions())
    with pytest.raises(ConfigurationError):
        targets.read(MayTakeLengths(), TargetOptions(second="none"))


class InForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = x + 1
        return self.head(steps.mean(1))


class InHelper(InForward):
    def pooled(self, steps: Tensor) -> Tensor:
        return steps.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x + 1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "first_line"),
    [
        (InForward, "# lengths: add this argument to the model's forward"),
        (InHelper, "# lengths: add this argument to the model's forward; pass this argument of the model to pooled"),
    ],
)
def test_a_fix_adds_lengths_that_the_module_lacks(kind: type[nn.Module], first_line: str) -> None:
    (leak,) = lengthwise_export.check(kind(), features=4, max_length=40, suggest=True).leaks
    assert (leak.code, leak.cause.fix.splitlines()[0]) == ("LW201", first_line)
    assert "never used" not in leak.cause.why


def test_an_argument_that_nobody_gives_is_asked_for() -> None:
    class Times(BothWays):
        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            return super().forward(x + times)

    for error, second in ((ConfigurationError, None), (UncheckableError, "none")):
        with pytest.raises(error, match="times"):
            targets.read(Times(), TargetOptions(second=second), blind=True)


def test_features_as_many_as_a_width_that_is_tried_do_not_hide_the_order_of_the_axes() -> None:
    """At a width of 7, a module of 7 channels runs either way."""
    module = nn.Sequential(nn.Conv1d(7, 3, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    with pytest.raises(ConfigurationError, match="--channels-first"):
        targets.read(module, TargetOptions(), blind=True)
    assert targets.read(module, TargetOptions(channels_first=True), blind=True).steps == StepInput(features=7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["recurrent", "per step", "tokens"])
def test_an_onnx_file_of_the_steps_alone_is_read(tmp_path: Path, name: str) -> None:
    steps = CASES[name][2]
    original, graph = made(name)
    file = tmp_path / "model.onnx"
    onnx.save(graph, file)
    target = targets.read(str(file), TargetOptions(), blind=True)
    assert (target.blind, target.steps, target.per_step) == (True, steps, name == "per step")
    assert (target.names.sequences, target.names.lengths, target.names.time_first) == (steps.kind, "lengths", False)
    assert [value.name for value in target.build("model", 18).graph.input] == [steps.kind]
    batch = batch_of(steps, 2, 24)
    np.testing.assert_allclose(
        target.subject.answer(batch).logits, original.subject.answer(batch).logits, atol=1e-5, rtol=1e-5
    )
    assert target.subject.record(batch).operations
    with pytest.raises(UncheckableError):
        targets.read(str(file), TargetOptions())


def parsed(signature: str, body: str, **constants: object) -> onnx.ModelProto:
    graph = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {signature} {{ {body} }}')
    held = (onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.graph.initializer.extend(held)
    return graph


def test_the_rows_of_a_graph_that_answers_each_step_are_those_that_do_not_mix() -> None:
    running = "c = Constant <value_int = {axis}> ()  logits = CumSum (x, c)"
    for axis in (0, 1):
        graph = parsed("g (float[p,q,4] x) => (float[p,q,4] logits)", running.format(axis=axis))
        assert targets.read(graph, TargetOptions(), blind=True).names.time_first == (axis == 0)


def test_rows_that_mix_only_by_large_numbers_are_not_taken_for_the_rows() -> None:
    # The first numbers along `p` are added to all others if their sum is above 2.5. A trial sees that if it changes
    # them to other random ones; not if it changes them to zeros, as for those that it begins with nothing is added.
    body = (
        "first = Slice (x, zero, one, zero)  sum = ReduceSum <keepdims = 1> (first, two)  above = Sub (sum, least)"
        "  added = Relu (above)  logits = Add (x, added)"
    )
    constants = {"zero": [0], "one": [1], "two": [2], "least": np.float32(2.5)}
    graph = parsed("g (float[p,q,4] x) => (float[p,q,4] logits)", body, **constants)
    assert targets.read(graph, TargetOptions(), blind=True).names.time_first


@pytest.mark.parametrize(
    ("value", "steps", "kind"),
    [
        ("int32[N,T] ids", StepInput(kind="tokens", vocabulary=9), onnx.TensorProto.INT64),
        ("float[N,T] samples", StepInput(features=1), onnx.TensorProto.FLOAT),
    ],
)
def test_int32_ids_and_samples_without_features_are_read(value: str, steps: StepInput, kind: int) -> None:
    body = f"f = Cast <to = 1> ({value.split()[1]})  m = ReduceMean <keepdims = 1> (f, one)"
    graph = parsed(f"g ({value}) => (float[N,2] logits)", body + "  logits = Concat <axis = 1> (m, m)", one=[1])
    target = targets.read(graph, TargetOptions(vocabulary=steps.vocabulary), blind=True)
    assert (target.steps, target.names.features_axis) == (steps, steps.kind == "tokens")
    assert target.build("model", 18).graph.input[0].type.tensor_type.elem_type == kind


def test_a_name_that_the_graph_has_already_is_not_taken_for_the_lengths() -> None:
    graph = parsed(
        "g (float[N,T,4] x) => (float[N,4] logits)",
        "lengths = Relu (x)  logits = ReduceMax <keepdims = 0> (lengths, one)",
        one=[1],
    )
    assert targets.read(graph, TargetOptions(), blind=True).names.lengths == "sequence_lengths"


def test_a_graph_that_needs_many_steps_is_read() -> None:
    graph = parsed(
        "g (float[N,4,T] x) => (float[N,2] logits)",
        "c = Conv <kernel_shape = [40]> (x, W)  logits = ReduceMean <keepdims = 0> (c, two)",
        W=np.ones((2, 4, 40), np.float32),
        two=[2],
    )
    target = targets.read(graph, TargetOptions(), blind=True)
    assert (target.names.channels_first, target.steps) == (True, StepInput(features=4))


def test_an_input_that_a_graph_has_cannot_be_left_out() -> None:
    signature = "g (float[N,T,4] x, int64[N] n) => (float[N,4] logits)"
    graph = parsed(signature, "logits = ReduceMax <keepdims = 0> (x, one)", one=[1])
    with pytest.raises(ConfigurationError):
        targets.read(graph, TargetOptions(second="none"), blind=True)
    assert not targets.read(graph, TargetOptions(), blind=True).blind


@pytest.mark.parametrize("kind", [Tagger, BothWays])
def test_an_order_of_axes_that_mixes_rows_is_asked_about(kind: type[nn.Module]) -> None:
    for time_first in (False, True):
        with pytest.raises(ConfigurationError, match="--time-first"):
            targets.read(kind(batch_first=time_first), TargetOptions(time_first=time_first), blind=True)


def test_rows_that_a_module_mixes_in_any_order_are_left_to_the_mend() -> None:
    class Centred(BothWays):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean((0, 1), keepdim=True))

    assert targets.read(Centred(), TargetOptions(), blind=True).blind


@pytest.mark.parametrize(
    ("signature", "options", "why"),
    [
        ("float[2,4,T] x", TargetOptions(), r"rows at 2 \(it takes x \(float32\[2, 4, 'T'\]\)\)"),
        ("float[N,4,100] x", TargetOptions(), r"frozen: .* \(it takes x \(float32\['N', 4, 100\]\)\)"),
        ("float[N,C,T] x", TargetOptions(features=4), r"as \[rows, features, width\]: .* pass --channels-first"),
        ("float16[N,4,T] x", TargetOptions(), r"logits \(float16.*is not float32, .*: export the graph in float32"),
    ],
)
def test_a_graph_that_cannot_be_read_is_told_why(signature: str, options: TargetOptions, why: str) -> None:
    kind = signature.partition("[")[0]
    weights = np.ones((4, 4, 1), np.float16 if kind == "float16" else np.float32)
    body = "c = Conv (x, W)  logits = ReduceMean <keepdims = 0> (c, two)"
    graph = parsed(f"g ({signature}) => ({kind}[N,4] logits)", body, W=weights, two=[2])
    with pytest.raises(UncheckableError, match=why):
        targets.read(graph, options, blind=True)


@network(0, lambda: {"conv": nn.Conv1d(4, 6, 3, padding=1), "head": nn.Linear(6, 3)})
def squeezed(self, x: Tensor) -> Tensor:
    """`squeeze()` without an axis takes the rows away too, if there is one."""
    return self.head(nn.functional.adaptive_avg_pool1d(self.conv(x).relu(), 1).squeeze())


class SqueezedTagger(Tagger):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("module", "channels_first"), [(squeezed(), True), (SqueezedTagger(), False)])
def test_one_row_is_answered_also_where_the_module_squeezes_it_away(module: nn.Module, channels_first: bool) -> None:
    target = targets.read(module, TargetOptions(channels_first=channels_first), blind=True)
    several = batch_of(target.steps, 3, 9)
    expected = target.subject.answer(several).logits[:1]
    one = target.subject.answer(PaddedBatch(several.steps[:1], several.lengths[:1])).logits
    assert one.shape == expected.shape
    np.testing.assert_allclose(one, expected, atol=1e-6)
    require_equal(target, built(target))


def test_what_raises_for_one_row_and_for_two_tells_the_first_error() -> None:
    target = targets.read(raw(), TargetOptions(), blind=True)
    with pytest.raises(RunError):
        target.subject.answer(batch_of(target.steps, 1, 5))
