"""Modules as their users write them, traced: the sound ones of the gallery, and what no graph can do."""

import builtins
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import rnn as packing
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.errors import ExportError
from lengthwise_export.options import TargetOptions
from lengthwise_export.steady_bits.rewriting import largest_difference, with_steady_bits
from lengthwise_export.targets import targets
from lengthwise_export.tracing import graph
from lengthwise_export.tracing.call_signature import CallSignature, without_fast_path
from lengthwise_export.tracing.outputs import output_selector
from tests.gallery.index import TORCH_SOUND, Exhibit
from tests.support.long import long_but
from tests.support.operator_forms import same_bits, sequences

STEPS = StepInput(features=4)
IN_EVERY_RUN = {"cnn_lstm", "token_cnn"}
"""Two kinds of modules; the others are long, like the trace of each."""
NO_GRAPH = {"cell_loop": "a Python loop", "projected_lstm": "no projection"}


def exported(module: nn.Module, signature: CallSignature | None = None) -> onnx.ModelProto:
    return graph.build(module.eval(), STEPS, name="m", labels="ab", signature=signature or CallSignature())


SIZES = ((3, 7, 0), (1, 1, 3), (5, 12, 1), (4, 33, 5))
"""Rows, width, and how much wider the graph's batch is."""


def worst(subject: TorchSubject, proto: onnx.ModelProto, sizes: Sequence[tuple[int, int, int]] = SIZES) -> float:
    """The largest difference over ragged batches, the graph's padded wider than the module's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    signature, steps, differences = subject.signature, subject.steps, []
    for rows, width, extra in sizes:
        lengths = torch.randint(1, width + 1, (rows,))
        lengths[0] = width
        if steps.kind == "tokens":
            values, fill = torch.randint(0, steps.vocabulary, (rows, width)), 0
        else:
            values, fill = torch.randn(rows, width, steps.features), 3.0
        with without_fast_path(), torch.no_grad():
            mask = torch.arange(width) < lengths[:, None]
            answer = signature.call(subject.module, signature.arguments_of(values, lengths, mask))
            expected = signature.rows_first(subject.select_output(answer)["logits"]).numpy()
        wider = torch.full((rows, width + extra, *values.shape[2:]), fill, dtype=values.dtype)
        wider[:, :width] = values
        feed = {session.get_inputs()[0].name: wider.numpy(), "lengths": lengths.int().numpy()}
        found = session.run(["logits"], feed)[0]
        if found.ndim == 3:
            expected, found = expected[mask.numpy()], found[:, :width][mask.numpy()]
        differences.append(np.abs(expected - found).max())
    return max(differences)


@pytest.mark.parametrize(
    "exhibit",
    long_but((each for each in TORCH_SOUND if each.name not in NO_GRAPH), lambda one: one.name in IN_EVERY_RUN),
    ids=lambda one: one.name,
)
def test_a_sound_module_answers_as_its_graph_which_keeps_its_bits(exhibit: Exhibit) -> None:
    options = TargetOptions(
        features=exhibit.features,
        vocabulary=exhibit.vocabulary,
        output=None if exhibit.output is None else str(exhibit.output),
        time_first=exhibit.time_first,
        channels_first=exhibit.channels_first,
        second=exhibit.second if exhibit.named else None,
    )
    target = targets.read(exhibit.target, options)
    before, manifest = target.build("m", 18), target.describe(max_length=200)
    assert worst(target.subject, before) < 1e-5
    after, _ = with_steady_bits(before, manifest)
    assert largest_difference(before, after, manifest) < 1e-5
    lengths = np.random.default_rng(5).integers(exhibit.shortest, 150, size=200).tolist()
    members = sequences(lengths, manifest)
    assert same_bits(after, members, manifest) == len(members)


@pytest.mark.parametrize("name", NO_GRAPH)
def test_what_no_graph_can_do_is_told_with_its_line(name: str) -> None:
    (exhibit,) = (exhibit for exhibit in TORCH_SOUND if exhibit.name == name)
    with pytest.raises(ExportError, match=NO_GRAPH[name]) as caught:
        targets.read(exhibit.target, TargetOptions(features=exhibit.features)).build("m", 18)
    assert f"{exhibit.file.name}:" in str(caught.value)


class Small(nn.Module):
    """A recurrent layer and a head; what differs between them is `forward`, and some have layers of their own."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def last(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


Forward = Callable[..., torch.Tensor]


def made(forward: Forward, **layers: nn.Module) -> nn.Module:
    """A `Small` with this `forward`."""
    return type("Small", (Small,), {"forward": forward})(**layers).eval()


def longest_by_hand(self, x, lengths):
    longest = int(lengths.max().item())
    x = x[:, :longest]
    packed = pack_padded_sequence(x, lengths.tolist(), batch_first=True, enforce_sorted=False)
    y, ends = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
    valid = torch.arange(longest).expand(len(lengths), longest) < ends.unsqueeze(1)
    return self.head((y * valid.unsqueeze(-1)).sum(1) / ends.unsqueeze(-1))


def longest_as_tensor(self, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu().numpy(), batch_first=True, enforce_sorted=False)
    y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
    valid = torch.arange(lengths.max())[None, :] < lengths[:, None]
    return self.head(y.masked_fill(~valid[..., None], -1e9).max(1).values)


def guarded(self, x, lengths):
    if lengths.min() < 1:
        raise ValueError("empty")
    assert lengths.max() <= x.size(1)
    return self.last(x, lengths.clamp(min=1).cpu())


def indexed_by_range(self, x, lengths):
    y, _ = self.rnn(x)
    return self.head(y[range(len(y)), lengths - 1])


def taken_along(self, x, lengths):
    y, _ = self.rnn(x)
    return self.head(torch.take_along_dim(y, (lengths - 1).view(-1, 1, 1), dim=1).squeeze(1))


def time_first_inside(self, x, lengths):
    y, _ = self.rnn(x.transpose(0, 1))
    return self.head(y[lengths - 1, torch.arange(x.shape[0])])


def over_features(self, x, lengths):
    """Runs along the features too: an axis that has nothing to do with the lengths."""
    steps = x[torch.arange(len(lengths)), lengths - 1]
    return self.head(self.across(steps.unsqueeze(-1))[1][-1])


def from_mask(self, x, mask):
    return self.last(x, mask.sum(dim=1).cpu())


def padded_with_minus_ten(self, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed = PackedSequence(torch.tanh(packed.data), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=-10.0)
    return self.head(y.amax(1))


def plain_python(self, x, lengths):
    """Uses the names that stand for something else while it is traced in their ordinary ways."""
    width = int(x.size(1))
    scale = int("2") + len([1, 2]) + int(3.7) + int(torch.tensor(x.dim()).shape == ())
    for layer in range(2):
        x = x * (1.0 + layer)
    if not isinstance(scale, int) or isinstance("2", int):
        raise TypeError("int is int")
    valid = torch.arange(width) < lengths[:, None]
    y = torch.where(valid[..., None], self.rnn(x)[0], 0.0)
    return self.head(y.sum(1) / scale)


def mask_of_mask(self, x, mask):
    """Lengths counted from a mask in every spelling."""
    counted = mask.long().sum(-1, keepdim=True).squeeze(1)
    also = mask.float().sum(1)
    packed = pack_padded_sequence(x, counted.cpu(), batch_first=True, enforce_sorted=False)
    y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=mask.size(1))
    return self.head(y.sum(1) / also[:, None])


def sliced_to_longest(self, x, lengths):
    x = x[:, : lengths.max()]
    weights = torch.ones(x.size(0), lengths.max()).masked_fill(torch.arange(lengths.amax()) >= lengths[:, None], 0.0)
    return self.head(self.rnn(x)[0].mul(weights[..., None]).sum(1))


def repacked_time_first(self, x, lengths):
    packed = pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
    y, ends = pad_packed_sequence(self.rnn(packed)[0])
    return self.head(y.sum(0) / ends[:, None])


def attends_without_heads(self, x, lengths):
    valid = (torch.arange(x.size(1)) < lengths[:, None])[:, None]
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=valid)
    return self.last(y, lengths)


def max_pooled(self, x, lengths):
    """The pooling branch of InceptionTime, then half as many steps."""
    valid = torch.arange(x.size(1)) < lengths[:, None]
    h = self.branch(x.mT.masked_fill(~valid[:, None], -torch.inf)).masked_fill(~valid[:, None], -torch.inf)
    h = torch.nn.functional.max_pool1d(self.halve(h), (1,))
    return self.last(h.masked_fill(h.isinf(), 0.0).mT, (lengths + 1) // 2)


LAYERS: dict[Forward, dict[str, nn.Module]] = {
    time_first_inside: {"rnn": nn.GRU(4, 6)},
    over_features: {"across": nn.GRU(1, 6, batch_first=True)},
    repacked_time_first: {"rnn": nn.GRU(4, 6)},
    max_pooled: {"branch": nn.MaxPool1d(3, stride=1, padding=1), "halve": nn.MaxPool1d(2, ceil_mode=True)},
}


@pytest.mark.long
@pytest.mark.parametrize(
    "forward",
    [
        *(longest_by_hand, longest_as_tensor, guarded, indexed_by_range, taken_along, from_mask, padded_with_minus_ten),
        *(plain_python, mask_of_mask, sliced_to_longest, attends_without_heads),
        *LAYERS,
    ],
)
def test_sizes_and_lengths_asked_of_python_stay_open(forward: Forward) -> None:
    module = made(forward, **LAYERS.get(forward, {}))
    signature = CallSignature("mask" if forward in (from_mask, mask_of_mask) else "lengths")
    subject = TorchSubject(module, STEPS, signature, output_selector(None))
    assert worst(subject, exported(module, signature)) < 1e-5


@pytest.mark.long
def test_three_exports_of_one_process_keep_rows_and_steps_dynamic() -> None:
    for forward in (longest_as_tensor, guarded, longest_as_tensor):
        module = made(forward)
        proto = exported(module)
        axes = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim[:2]]
        assert len({*axes} - {""}) == 2, axes
        assert worst(TorchSubject(module, STEPS, CallSignature(), output_selector(None)), proto) < 1e-5


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("forward", [guarded, from_mask])
def test_lengths_that_were_only_checked_or_counted_are_the_graphs_own(forward: Forward) -> None:
    proto = exported(made(forward), CallSignature("mask" if forward is from_mask else "lengths"))
    assert [node.input[4] for node in proto.graph.node if node.op_type == "GRU"] == ["lengths"]


def row_loop(self, x, lengths):
    return torch.stack([self.head(self.rnn(x[row : row + 1])[1][-1, 0]) for row in range(x.size(0))])


def unbound_steps(self, x, lengths):
    return torch.stack([self.head(step[:, [0, 0, 0, 0, 0, 0]]) for step in x.unbind(1)]).sum(0)


def branches(self, x, lengths):
    if x.sum() > 0:
        return self.last(x, lengths)
    return -self.last(x, lengths)


def takes_a_number(self, x, lengths):
    return self.last(x / x.abs().max().item(), lengths)


def made_by_hand(self, x, lengths):
    packed = PackedSequence(x.flatten(0, 1), torch.ones(3, dtype=torch.int64))
    return self.head(self.rnn(packed)[1][-1])


def one_sequence(self, x, lengths):
    return self.head(self.rnn(x[0])[0])


def fixed(self, x, lengths):
    return self.last(x.view(3, 7, 4), lengths)


def loops_to_longest(self, x, lengths):
    total = 0.0
    for step in range(lengths.max()):
        total = total + x[:, step]
    return total


def lists_as_long_as_the_width(self, x, lengths):
    return self.last(x * torch.tensor([1.0] * x.size(1))[:, None], lengths)


def in_a_loop(lengths):
    numbers = []
    for length in lengths:
        numbers.append(int(length))
    return numbers


LISTS = {
    "list": list,
    "tuple": tuple,
    "numbers": lambda lengths: [int(length) for length in lengths],
    "items": lambda lengths: [length.item() for length in lengths.cpu()],
    "mapped": lambda lengths: tuple(map(int, lengths)),
    "unpacked": lambda lengths: [*lengths],
    "of a list": lambda lengths: [int(length) for length in lengths.tolist()],
    "a tensor again": lambda lengths: torch.tensor([int(length) for length in lengths]),
    "in a loop": in_a_loop,
    "counted": lambda lengths: torch.as_tensor(list(lengths))[: len(list(lengths))],
}


def packed_by_hand(self, x, lengths, listed):
    """Rows sorted by hand, packed with a list of their lengths, unpacked, and put back in order."""
    order = lengths.argsort(descending=True)
    packed = pack_padded_sequence(x[order], listed(lengths[order]), batch_first=True)
    y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
    return self.head(y[order.argsort()][torch.arange(len(lengths)), lengths - 1])


@pytest.mark.sampled(21)
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("second", ["lengths", "mask"])
def test_a_list_made_of_the_lengths_stands_for_them(name: str, second: Literal["lengths", "mask"]) -> None:
    def sorted_by_hand(self, x, given):
        return packed_by_hand(self, x, given if second == "lengths" else given.sum(1), LISTS[name])

    module, signature = made(sorted_by_hand), CallSignature(second)
    subject = TorchSubject(module, STEPS, signature, output_selector(None))
    assert worst(subject, exported(module, signature)) < 1e-5


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "listed",
    [
        lambda lengths: sorted(lengths, reverse=True),
        lambda lengths: list(lengths)[::-1],
        lambda lengths: [max(int(length), 1) for length in lengths],
        lambda lengths: [int(length) - 0 for length in lengths],
        lambda lengths: [int(torch.relu(length)) for length in lengths],
        lambda lengths: torch.stack(list(lengths)),
        lambda lengths: [lengths[0].new_ones(()) for _ in lengths],
    ],
    ids=["sorted", "turned around", "compared", "computed", "of torch", "stacked", "for each"],
)
def test_a_list_computed_of_the_lengths_is_told_to_be_a_tensor(listed: Callable[[Any], Any]) -> None:
    def computed(self, x, lengths):
        return packed_by_hand(self, x, lengths, listed)

    with pytest.raises(ExportError, match=r"pass the tensor .*lengths.tolist\(\)"):
        exported(made(computed))


SLICES = {
    "from the first step": lambda y: y[:, :90],
    "with a step": lambda y: y[:, :90:3],
    "none": lambda y: torch.cat([y[:, :0], y], 1),
    "between": lambda y: y[:, 80:90],
    "behind": lambda y: y[:, 80:],
    "of the last axes": lambda y: y[..., :90, :],
    "of one feature": lambda y: y[:, :90, 2, None],
    "of the first axis": lambda y: y.transpose(0, 1)[:90].transpose(0, 1),
    "with a mask as wide": lambda y: y[:, :90] * (torch.arange(y.size(1)) % 2)[:90, None],
    "again": lambda y: y[:, :95][:, :90],
    "as many as a layer takes": lambda y: nn.functional.pad(y, (0, 0, 0, 90))[:, :90].flatten(1)[..., None],
}


@pytest.mark.long
@pytest.mark.sampled(11)
@pytest.mark.parametrize("name", SLICES)
def test_a_slice_may_end_behind_the_last_step(name: str) -> None:
    def sliced(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        taken = SLICES[name](torch.where(valid[..., None], x, 0.0)).sum(1)
        return self.head(nn.functional.pad(taken, (0, 6))[:, :6])

    module = made(sliced)
    subject, proto = TorchSubject(module, STEPS, CallSignature(), output_selector(None)), exported(module)
    assert worst(subject, proto, [(2, width, 1) for width in (1, 7, 80, 89, 90, 91, 150)]) < 1e-5


def test_a_slice_of_too_many_axes_is_refused_as_torch_does() -> None:
    with pytest.raises(ExportError, match="too many indices"):
        exported(made(lambda self, x, lengths: self.head(x[:, :5, :, :3].sum(1))))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "split",
    [
        *(lambda x: x.split(4, 1), lambda x: x.split(split_size=4, dim=1), lambda x: torch.split(x, 2)),
        lambda x: x.split(x.size(1), 1),
    ],
)
def test_parts_of_an_axis_that_depends_on_the_batch_are_refused_with_their_line(split) -> None:
    with pytest.raises(ExportError, match="splits an axis whose size depends on the batch") as caught:
        exported(made(lambda self, x, lengths: self.last(torch.cat(split(x), 1), lengths)))
    assert "tests/model_export/test_capture.py:" in str(caught.value)


@pytest.mark.long
def test_features_may_be_split() -> None:
    module = made(lambda self, x, lengths: self.last(torch.cat([*x.split(2, 2)][::-1], 2), lengths))
    subject, proto = TorchSubject(module, STEPS, CallSignature(), output_selector(None)), exported(module)
    assert worst(subject, proto) < 1e-5


def scaled(self, x, lengths):
    if self.writes == "before":
        self.count.copy_(x.shape[1] + lengths[:2])
    if self.writes == "plain":
        self.plain.copy_(lengths.max())
    valid = torch.arange(x.size(1)) < lengths[:, None]
    total = sum([x * self.plain[place].item() for place in range(int(self.count[0]))])
    if self.writes == "behind":
        self.count.mul_(1)
    return self.head(nn.functional.pad(torch.where(valid[..., None], total, 0.0).sum(1), (0, 2)))


@pytest.fixture
def with_buffer() -> nn.Module:
    module = made(scaled)
    module.register_buffer("count", torch.tensor([2, 3]))
    module.plain, module.writes = torch.tensor([1.5, 0.5, 7.0]), ""
    return module


@pytest.mark.long
def test_numbers_in_buffers_and_plain_tensors_are_the_graphs_own(with_buffer: nn.Module) -> None:
    subject, proto = TorchSubject(with_buffer, STEPS, CallSignature(), output_selector(None)), exported(with_buffer)
    assert worst(subject, proto) < 1e-5


@pytest.mark.parametrize("writes", ["before", "behind", "plain"])
def test_a_number_of_a_tensor_that_the_call_writes_is_refused(with_buffer: nn.Module, writes: str) -> None:
    with_buffer.writes = writes
    with pytest.raises(ExportError, match="use tensors only"):
        exported(with_buffer)


def raises(self, x, lengths):
    raise ValueError("not today")


def quits(self, x, lengths):
    sys.exit(0)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (row_loop, "a Python loop runs a fixed number of times"),
        (unbound_steps, "a Python loop runs a fixed number of times"),
        (branches, "use torch.where"),
        (takes_a_number, "use tensors only"),
        (made_by_hand, "use pack_padded_sequence"),
        (one_sequence, "run it over the batch"),
        (fixed, "at the size of one batch"),
        (loops_to_longest, "a Python loop runs a fixed number of times"),
        (lists_as_long_as_the_width, "as a fixed Python number"),
        (raises, "not today"),
        (quits, r"it quits with SystemExit\(0\)"),
    ],
)
def test_what_cannot_be_traced_is_named_with_file_and_line(forward: Forward, why: str) -> None:
    with pytest.raises(ExportError, match=why) as caught:
        exported(made(forward))
    assert caught.value.step == "trace"
    assert "tests/model_export/test_capture.py:" in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("forward", [guarded, raises])
def test_a_trace_leaves_torch_and_python_as_they_were(forward: Forward) -> None:
    def state() -> list[object]:
        codes = [function.__code__ for function in (packing.pack_padded_sequence, packing.pad_packed_sequence)]
        changed = (nn.LSTM.forward, nn.GRU.forward, torch.SymInt.__index__)
        return [*codes, *changed, torch.backends.mha.get_fastpath_enabled()]

    before = state()
    try:
        exported(made(forward))
    except ExportError:
        assert forward is raises
    assert before == state()
    assert (len, int, range) == (builtins.len, builtins.int, builtins.range)
    assert not {"len", "int", "range"} & globals().keys()


class LargestSoFar(Small):
    def forward(self, x, lengths):
        return self.last(x.cummax(1).values, lengths)


class ProductSoFar(Small):
    """What the exporter decomposes before it finds that it has no translation."""

    def forward(self, x, lengths):
        return self.last(x.cumprod(1), lengths)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "name"), [(LargestSoFar, "cummax"), (ProductSoFar, "cumprod")])
def test_what_cannot_be_translated_is_named_with_file_and_line(kind: type[nn.Module], name: str) -> None:
    why = f"`return .*{name}.*`: {name} has no translation to ONNX: write it with operators"
    with pytest.raises(ExportError, match=rf"translate: tests/model_export/test_capture\.py:\d+: {why}") as caught:
        exported(kind())
    assert caught.value.step == "translate"


class Spectrum(Small):
    def forward(self, x, lengths):
        spectrum = torch.fft.rfft(x, n=8, dim=2)
        return self.last((spectrum.unsqueeze(0) * spectrum).squeeze(0).real[..., :3], lengths)


@pytest.mark.long
def test_an_export_of_complex_numbers_says_that_they_are_missing() -> None:
    with pytest.raises(ExportError, match=r"spectrum = .*: fft_rfft gives complex numbers, which are missing in ONNX"):
        exported(Spectrum())
