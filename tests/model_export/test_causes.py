from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lengthwise_export
from lengthwise_export.checking.causes import explain
from lengthwise_export.checking.recording import ArgumentNames, Operation
from lengthwise_export.checking.trials import CHANGES
from lengthwise_export.tracing.source_lines import CodeLocation


@pytest.mark.parametrize(
    ("kinds", "change", "words"),
    [
        ("lstm GRU", "width", "does not know the lengths"),
        ("lstm", "neighbours", "rows of the batch instead of the steps"),
        ("Conv conv1d", "padding", "reads the padding, which is not 0 there"),
        ("Softmax", "padding", "before the mask"),
        ("softmax mean", "neighbours", "over the rows of the batch"),
        ("batch_norm", "padding", "statistics"),
        ("InstanceNormalization", "padding", "padding included"),
        ("layer_norm", "width", "along the steps"),
        ("mean ReduceMean", "width", "divides by the width"),
        ("sum", "padding", "inferred from zeros"),
        ("max", "padding", "compete"),
        ("max", "lengths", "over all rows"),
        ("__getitem__", "width", "fixed position of the width"),
        ("flip", "padding", "reversed over the whole width"),
        ("CumSum", "padding", "cumulative sum"),
        ("linspace", "width", "relative to the width"),
        ("multi_head_attention_forward", "padding", "reads padded steps"),
        ("DynamicQuantizeLinear", "neighbours", "One scale"),
        ("sort", "order", "never put back"),
        ("sum", "poison", "0 * NaN"),
        ("adaptive_avg_pool1d", "padding", "equal parts"),
        ("reshape", "neighbours", "Axes are mixed up"),
        ("fft_fft", "padding", "Fourier"),
        ("something_new", "neighbours", "depends on the other rows"),
        ("something_new", "width", "on the width of the batch"),
        ("something_new", "padding", "carries padding"),
    ],
)
def test_a_leak_is_explained_by_what_the_operator_computes(kinds: str, change, words: str) -> None:
    assert all(words in explain(Operation("", kind, None), change).why for kind in kinds.split())


LENGTHS = ArgumentNames("x.size(1)", "seq_len", "lengths")
MASK = ArgumentNames("x.size(1)", "attention_mask", "mask")
PADDING = ArgumentNames("x.size(1)", "pad", "padding-mask")


@pytest.mark.parametrize(
    ("operator", "names", "fix"),
    [
        (
            "encoder.rnns.0: lstm",
            LENGTHS,
            "packed = pack_padded_sequence(inputs, seq_len.cpu(), batch_first=True, enforce_sorted=False)\n"
            "packed, state = self.rnns[0](packed)\n"
            "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))  # ONNX: sequence_lens",
        ),
        (
            "gru: gru",
            PADDING,
            "lengths = (~pad.bool()).sum(1)\n"
            "packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)\n"
            "packed, state = self.gru(packed)\n"
            "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))  # ONNX: sequence_lens",
        ),
        (
            "__getitem__",
            LENGTHS,
            "last = inputs[torch.arange(len(seq_len), device=seq_len.device), seq_len - 1]"
            "  # for inputs [rows, width, features]",
        ),
    ],
)
def test_what_cannot_be_pasted_says_so_and_has_the_modules_own_names(
    operator: str, names: ArgumentNames, fix: str
) -> None:
    at = Operation(operator, operator.rpartition(": ")[2], CodeLocation("", 1, "", "forward"))
    first, _, others = explain(at, "padding", names).fix.partition("\n")
    assert first.startswith("# to adapt, not to paste")
    assert others == fix


@pytest.mark.parametrize("names", [LENGTHS, MASK, PADDING, ArgumentNames()])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_has_a_cause_and_a_mend_without_a_place_left_to_fill_in(change, names: ArgumentNames) -> None:
    kinds = "lstm gru conv1d batch_norm group_norm layer_norm softmax flip cumsum fft_fft arange mean max sum matmul "
    kinds += "__getitem__ reshape sort adaptive_avg_pool1d max_pool1d attention an_operator_of_next_year"
    for kind in kinds.split():
        cause = explain(Operation("", kind, None), change, names)
        assert cause.why.endswith(".")
        assert "$" not in (cause.fix or "$")
        told = any(words in cause.fix for words in ("all lengths", "lengths of", "lengths = "))
        assert names.role == "lengths" or "lengths" not in cause.fix or told, cause.fix


NET = """from torch import nn
import torch.nn.functional as fn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.score, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 1), nn.Linear(6, 2)
        self.soft, self.pool = nn.Softmax(dim=1), nn.AdaptiveAvgPool1d(1)
    def forward(self, x, SECOND):
        packed = pack_padded_sequence(x, LENGTHS.cpu(), batch_first=True, enforce_sorted=False)
        h = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=WIDTH)[0] + 0.1
        """


@pytest.mark.parametrize("width", ["None", "x.size(1)"])
@pytest.mark.parametrize(("second", "lengths"), [("lengths", "lengths"), ("mask", "mask.sum(1)")])
@pytest.mark.sampled(65)
@pytest.mark.parametrize(
    ("before", "line", "result"),
    [
        ("a = self.score(h).squeeze(2)", "w = a.softmax(dim=1)", "(w[..., None] * h).sum(1)"),
        ("", "w = fn.softmax(self.score(h), 1)", "(w * h).sum(1)"),
        ("inputs = h", "w = self.soft(self.score(inputs))", "(w * inputs).sum(1)"),
        ("", "w = fn.softmax(\n    self.score(h).mT,\n    dim=-1,\n)", "(w @ h).squeeze(1)"),
        ("", "p = h.mean(1)", "p"),
        ("valid = h", "p = valid.mean(dim=1, keepdim=True)[:, 0] * 2", "p"),
        ("", "p = h.mean((1, 2))[:, None] + h[:, 0]", "p"),
        ("", "pooled = h.mT.mean(dim=-1)", "pooled"),
        ("", "p = h.transpose(0, 1).mean(0)", "p"),
        ("", "top = h.mT.amax(dim=-1)", "top"),
        ("", "p, _ = h.max(1)", "p"),
        ("", "p = h.min(axis=1).values", "p"),
        ("c = h.mT", "s = c.sum(dim=2)", "s"),
        ("", "p = self.pool(h.mT).squeeze(2)", "p"),
    ],
)
def test_a_printed_fix_in_the_place_of_its_line_ends_the_leak(
    before: str, line: str, result: str, second: str, lengths: str, width: str, tmp_path: Path
) -> None:
    net = NET.replace("SECOND", second).replace("LENGTHS", lengths).replace("WIDTH", width)

    def check(name: str, code: str) -> lengthwise_export.CheckReport:
        body = f"{before}\n{code}\nreturn self.head({result})".replace("\n", "\n" + " " * 8)
        (tmp_path / f"{name}.py").write_text(net + body)
        return lengthwise_export.check(f"{tmp_path / name}.py:Net", max_length=24)

    fix = check("leaking", line).to_dict()["leaks"][0]["fix"]
    assert check("fixed", fix).verdict == "sound", fix


MASKED = """import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)
    def forward(self, x, lengths):
        valid = (torch.arange(x.size(1)) < lengths[:, None])[..., None]
        h = self.lstm(x)[0] * valid  # the mask
        READ
        return self.head(h.masked_fill(~valid, 0.0).sum(1) / scale)
"""


@pytest.mark.parametrize(
    "line",
    [
        "scale = 1 + h.abs().amax((1, 2))[:, None]",
        "scale = 2 + (2 * h).relu().amax(1)",
        "scale = 2 + torch.relu(h).max(dim=1).values",
        "scale = 99 + h.sum(1)",
    ],
)
def test_a_product_with_a_mask_that_nan_gets_past_is_named(line: str, tmp_path: Path) -> None:
    code = MASKED.replace("READ", line)
    (tmp_path / "net.py").write_text(code)
    report = lengthwise_export.check(f"{tmp_path / 'net.py'}:Net", max_length=24)
    (leak,) = report.leaks
    assert (report.verdict, leak.code, leak.location.source) == ("warning", "LW801", line)
    assert leak.cause_at.endswith(f"net.py:{code[: code.index('# the mask')].count(chr(10)) + 1}")


class Moved(nn.Module):
    """A masked mean of what a function makes of the steps, and what another makes of the means."""

    def __init__(self, of_steps: Callable[[torch.Tensor], torch.Tensor], of_rows: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.of_steps, self.of_rows = nn.Linear(5, 8), of_steps, of_rows

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        valid = (torch.arange(x.size(1)) < lengths[:, None])[..., None]
        hidden = self.of_steps(self.step(x).masked_fill(~valid, 0.0))
        return self.of_rows(hidden.masked_fill(~valid, 0.0).sum(1) / lengths[:, None])


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("of_steps", "of_rows", "code"),
    [
        (same, lambda means: means + means.roll(1, 0), "LW204"),
        (same, lambda means: means + means.roll(-1, dims=0), "LW204"),
        (same, lambda means: means + means.flip(0), "LW204"),
        (lambda steps: steps + steps.roll(1, 0), same, "LW204"),
        (lambda steps: steps + torch.cat([steps[-1:], steps[:-1]]), same, "LW204"),
        (lambda steps: steps + steps[torch.arange(len(steps)).flip(0)], same, "LW204"),
        (same, lambda means: torch.cat([means[:1], means[1:] - means[:-1]]), "LW204"),
        (lambda steps: steps + steps.roll(1, 1), same, "LW303"),
        (lambda steps: steps + steps.flip(1), same, "LW303"),
        (lambda steps: steps + torch.fft.rfft(steps, dim=1).abs()[:, :3].sum(1, keepdim=True), same, "LW403"),
        (lambda steps: torch.fft.irfft(torch.fft.rfft(steps, dim=1)[:, :4], n=steps.size(1), dim=1), same, "LW403"),
    ],
)
def test_moved_rows_and_cut_frequencies_have_the_rules_of_their_causes(of_steps, of_rows, code) -> None:
    report = lengthwise_export.check(Moved(of_steps, of_rows), max_length=40)
    assert (report.verdict, report.leaks[0].code) == ("leak", code)


class OverThePadding(Moved):
    """As `Moved`, of steps whose padding is not 0."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        valid = (torch.arange(x.size(1)) < lengths[:, None])[..., None]
        hidden = self.of_steps(self.step(x)).masked_fill(~valid, 0.0)
        return self.of_rows(hidden.sum(1) / lengths[:, None])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "of_steps",
    [
        lambda steps: steps + torch.cat([steps[-1:], steps[:-1]]),
        lambda steps: steps + steps[torch.arange(len(steps)).flip(0)],
        lambda steps: steps + torch.stack([*steps[1:], steps[0]]),
        lambda steps: steps + torch.cat([*reversed(steps.tensor_split([1]))]),
    ],
)
def test_what_takes_another_row_is_no_reader_of_steps_and_needs_no_lengths(of_steps) -> None:
    leak = lengthwise_export.check(OverThePadding(of_steps, same), max_length=40).leaks[0]
    assert (leak.code, "another row" in leak.cause.why) == ("LW204", True)
    assert "lengths" not in leak.cause.fix


def convolved(steps: torch.Tensor, size: int = 2) -> torch.Tensor:
    """A convolution with a kernel as long as the width, by Fourier transforms over `size` widths."""
    width = steps.size(1)
    kernel = torch.exp(-torch.arange(width)[:, None] * torch.linspace(0.1, 1.0, steps.size(2)))
    spectra = (torch.fft.rfft(part, n=size * width - 1, dim=-2) for part in (steps, kernel))
    return torch.fft.irfft(next(spectra) * next(spectra), n=size * width - 1, dim=1)[:, :width]


def by_kernel(steps: torch.Tensor) -> torch.Tensor:
    """The same by a kernel as long as the width."""
    width, size = steps.shape[1:]
    kernel = torch.exp(-torch.arange(width) * torch.linspace(0.1, 1.0, size)[:, None])[:, None].flip(-1)
    return torch.conv1d(steps.mT, kernel, padding=width - 1, groups=size)[..., :width].mT


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "of_steps",
    [
        convolved,
        lambda steps: convolved(steps, 4),
        by_kernel,
    ],
)
@pytest.mark.parametrize(("pooled", "code"), [(lambda h: h.mean(1), "LW201"), (lambda h: h.amax(1), "LW203")])
def test_what_grows_with_the_width_and_is_cut_is_not_blamed_for_a_pooling(of_steps, pooled, code) -> None:
    class Pooled(Moved):
        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            valid = (torch.arange(x.size(1)) < lengths[:, None])[..., None]
            return pooled(self.of_steps(self.step(x).masked_fill(~valid, 0.0) - 3.0 * valid))

    leak = lengthwise_export.check(Pooled(of_steps, same), max_length=40).leaks[0]
    assert (leak.code, leak.kind) == (code, {"LW201": "mean", "LW203": "amax"}[code])
