"""Each fix that a check prints, pasted in the place of its statement, cures the module; or says that it is to adapt."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
from benchmarks import fixes
from benchmarks.fixes import Case
from lengthwise_export.masks import step_mask
from tests.gallery.torch_models import Factory, network


@pytest.mark.sampled(671)
@pytest.mark.parametrize("case", list(fixes.cases()), ids=lambda case: f"{case.statement}|{case.layout}|{case.second}")
def test_a_fix_in_the_place_of_its_statement_ends_the_leak(case: Case, tmp_path: Path) -> None:
    row = fixes.followed(case, tmp_path)
    assert row.before == "leak", row.why
    assert row.is_cured, (row.why, *row.fixes)


NET = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.step, self.score, self.head = nn.Linear(3, 6), nn.Linear(6, 1), nn.Linear(6, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1)
        self.decoder = nn.TransformerDecoderLayer(6, 2, 8, batch_first=True)
        self.gru, self.turned = nn.GRU(3, 6, batch_first=True), nn.GRU(3, 6)
        self.lstm = nn.LSTM(3, 3, batch_first=True, bidirectional=True)
        self.conv, self.pool = nn.Conv1d(6, 6, 3, padding=1), nn.MaxPool1d(3, 1, 1)
        self.net = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1))
        self.group, self.instance = nn.GroupNorm(2, 6), nn.InstanceNorm1d(6)
        self.batch = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x, ARGUMENT):
        BODY
"""

VALID = "valid = torch.arange(x.size(1)) < lengths[:, None]\n"
STEP = "h = self.step(x).tanh()\n"
SCORES = STEP + "s = self.score(h).squeeze(-1)\n"
WEIGHTED = "\nreturn self.head((w[..., None] * h).sum(1)) * lengths[:, None]"
SUMMED = "\nreturn self.head(self.step((c * valid[..., None]).sum(1)))"
BOTH = VALID + "both = valid[:, :, None] & valid[:, None, :]\n"

SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    # By rule: what comes before, behind, and the spellings of what leaks
    "LW101": {
        STEP + "c = {}\nreturn self.head(c) * lengths[:, None, None]": (
            "self.attention(h, h, h)[0]",
            "F.relu(self.encoder(src=h)) + h",
            "F.scaled_dot_product_attention(h, h, h, dropout_p=0.0)",
            "self.decoder(h, h)",
            "self.decoder(tgt=h, memory=h)",
            "self.encoder(h, torch.zeros(x.size(1), x.size(1)))",
        )
    },
    "LW102": {
        SCORES + "w = {}" + WEIGHTED: (
            "s.softmax(-1)",
            "torch.softmax(input=s, dim=1) * 1.0",
            "F.log_softmax(s, 1).exp()",
            "self.score(h).mT.softmax(2)[:, 0]",
        ),
        VALID + SCORES + "w = {}" + WEIGHTED: (
            "s.softmax(1) * valid",
            "s.masked_fill(~valid, -float('-inf')).softmax(1)",
            "F.softmax(torch.where(valid, s, torch.inf), dim=-1)",
            "F.softmin(s.masked_fill(~valid, -torch.inf), 1)",
        ),
        VALID + STEP + "a = {}\nreturn self.head(a @ h)": (
            "(h @ h.mT).masked_fill(~valid[:, None], torch.inf).softmax(-1)",
        ),
        VALID + STEP + "m = torch.zeros(h.shape[:2]).masked_fill(~valid, torch.inf)\nreturn self.head({})": (
            "F.scaled_dot_product_attention(h, h, h, attn_mask=m[:, None])",
            "self.attention(h, h, h, key_padding_mask=m)[0]",
        ),
    },
    "LW103": {SCORES + "w = {}" + WEIGHTED: ("torch.softmax(s, 0)", "F.softmax(s.mT, dim=1).mT", "s.softmax(dim=-2)")},
    "LW105": {
        VALID + SCORES + "w = {}" + WEIGHTED: (
            "s.masked_fill(valid, -1e9).softmax(-1)",
            "F.softmax(s + valid * -1e9, dim=1)",
            "torch.where(valid, 0.0, s)",
        ),
        VALID + STEP + "return self.head({})": ("F.scaled_dot_product_attention(h, h, h, ~valid[:, None])",),
    },
    "LW107": {
        "return self.head({})": (
            "torch.logsumexp(self.step(x), 1)",
            "F.scaled_dot_product_attention(self.step(x), self.step(x), self.step(x))",
            "self.encoder(self.step(x))",
        )
    },
    "LW108": {
        BOTH + "c = {} @ x" + SUMMED: (
            "(x @ x.mT).masked_fill(~both, float('-inf')).softmax(-1)",
            "torch.softmax(torch.where(both, x @ x.mT, -torch.inf), 2)",
            "F.softmax(x @ x.mT + both.float().log(), dim=-1)",
        )
    },
    "LW109": {
        VALID + STEP + "p = (h * valid[..., None]).sum(1)\n{}\nreturn self.head(p)": (
            "if len(x) > 1:\n    p = p / lengths[:, None]",
            "if x.size(0) == 1:\n    p = p.flip(1)",
        )
    },
    "LW201": {
        STEP + "p = {}\nreturn self.head(p)": (
            "torch.mean(h, -2, False)",
            "F.relu(h).mean(1) + h.mT.mean(dim=2)",
            "h.nanmean(1)",
            "torch.nan_to_num(torch.var(h, 1, False))",
            "torch.nan_to_num(h.mT.std(2, True))",
            "h.mean((1, 2)).unsqueeze(-1).expand(-1, 6)",
        )
    },
    "LW202": {
        STEP + "return self.head({}.float())": (
            "h.mT.sum(-1)",
            "torch.prod(h, 1)",
            "(h > 0).all(dim=1)",
            "h.exp().sum(1)",
        )
    },
    "LW203": {
        STEP + "return self.head({}.float())": (
            "h.mT.amax(-1)",
            "torch.max(h, -2)[0]",
            "(h * 100).long().max(1).values",
            "(h > 0).max(1).values",
            "h.topk(1, dim=1, largest=False).values.squeeze(1)",
            "h.median(1)[0]",
            "h.sort(1).values[:, 0]",
        )
    },
    "LW204": {
        STEP + "return self.head({})": (
            "h - h.mean(0)",
            "h / h.abs().max()",
            "h - h.median()",
            "h.cumsum(0)",
            "h / (h ** 2).sum().sqrt()",
        )
    },
    "LW205": {
        STEP + "return self.head({}) * lengths[:, None]": (
            "torch.bmm(self.score(h).mT, h)[:, 0]",
            "torch.einsum('bt,btf->bf', self.score(h)[..., 0], h)",
            "(h.mT @ self.score(h)).squeeze(-1)",
            "(self.score(h).mT @ h)[:, 0] if len(x) < 0 else (self.score(h).mT @ h)[:, 0] * 2",
        )
    },
    "LW206": {
        STEP + "return self.head({})": (
            "h[..., -1, :]",
            "h.mT[:, :, -1]",
            "h.select(1, -1)",
            "h[:, -1:].squeeze(1)",
            "h.narrow(1, h.size(1) - 1, 1).squeeze(1)",
        )
    },
    "LW207": {
        VALID + SCORES + "p = {}\nreturn self.head(p)": (
            "(h * valid[..., None]).sum(1) / h.size(1)",
            "(h * valid[..., None]).sum(1) / lengths.max().clamp(min=1)",
            "((s * valid).sum(1) / lengths.float().mean())[:, None].expand(-1, 6)",
            "(h * valid[..., None]).sum(1) * (lengths / lengths.max())[:, None]",
            "(h * valid[..., None]).sum(1).div(lengths.amax())",
        )
    },
    "LW208": {
        STEP + "return self.head({}.mT)": (
            "self.pool(h.mT)",
            "F.max_pool1d(h.mT, 3, 1, 1)",
            "F.avg_pool1d(h.mT, 3, 1, 1)",
        )
    },
    "LW209": {
        STEP + "return self.head({})": ("h.transpose(0, 1).reshape(h.shape)", "h.reshape(len(h), 6, -1).mean(-1)")
    },
    "LW301": {
        "return self.head({}) * lengths[:, None, None]": (
            "self.lstm(x)[0]",
            "self.lstm(x, (torch.zeros(2, len(x), 3), torch.zeros(2, len(x), 3)))[0]",
            "self.lstm(input=x)[0].relu()",
        )
    },
    "LW302": {
        VALID + "c, _ = {}\nreturn self.head((c * valid[..., None]).sum(1))": (
            "self.turned(x)",
            "self.turned(x, torch.zeros(1, x.size(1), 6))",
            "self.turned(input=x)",
        )
    },
    "LW303": {
        STEP + "return self.head({})": (
            "h.mT.flip(-1).mT",
            "torch.flip(h, dims=(1,))",
            "torch.roll(h, (1,), (1,))",
            "h.roll(dims=1, shifts=2)",
            "h.flip(1, 2)",
        )
    },
    "LW401": {
        STEP + "return self.head({}.mT)": (
            "F.relu(self.conv(h.mT))",
            "self.net(h.transpose(1, 2))",
            "F.conv1d(input=h.mT, weight=self.conv.weight, padding='same')",
            "F.conv1d(F.pad(h.mT, (1, 1)), self.conv.weight)",
        )
    },
    "LW402": {
        STEP + "return self.head({}.squeeze(-1))": (
            "F.adaptive_avg_pool1d(h.mT, 1)",
            "nn.AdaptiveMaxPool1d(1)(h.mT)",
            "F.adaptive_avg_pool1d(h.mT, 2).mean(2)",
        )
    },
    "LW403": {
        STEP + "return self.head(torch.fft.{})": ("fft(h, dim=1).real", "rfft(h, dim=1).abs().mean(1)", "fft2(h).real")
    },
    "LW501": {
        STEP + "return self.head({}.mT)": ("self.batch(h.mT)", "F.batch_norm(h.mT, None, None, training=True)"),
    },
    "LW502": {
        STEP + "return self.head({}.mT)": (
            "self.group(h.mT)",
            "self.instance(h.mT).relu()",
            "F.instance_norm(h.mT)",
            "F.group_norm(h.mT, 2)",
        )
    },
    "LW503": {
        STEP + "return self.head({})": (
            "F.normalize(h, dim=1)",
            "h / h.norm(dim=1, keepdim=True)",
            "F.layer_norm(h, h.shape[1:])",
        )
    },
    "LW504": {
        VALID + STEP + "{}\nreturn self.head((c * valid[..., None]).sum(1))": (
            "s = h.abs().max() / 127\nc = (h / s).round() * s",
            "s = h.abs().amax().item() / 127\nc = (h / s).round() * s",
            "low, high = h.aminmax()\ns = (high - low) / 255\nc = ((h - low) / s).round() * s + low",
            "s = 448 / h.abs().amax()\nc = (h * s).to(torch.float8_e4m3fn).to(h.dtype) / s",
            "s = h.abs().max() / 127\nc = torch.quantize_per_tensor(h, s, 0, torch.qint8).dequantize()",
            "s = h.abs().amax((1, 2), keepdim=True) / 127\nc = (h / s).to(torch.int8).float() * s",
            "s = torch.maximum(h.max(), -h.min()) / 127\nc = (h / s).char().float() * s",
        )
    },
    "LW601": {
        STEP + "t = {}\nreturn self.head(h + t[:, None])": (
            "torch.linspace(0, 1, x.size(1))",
            "torch.arange(x.size(1)) / x.size(1)",
            "x.size(1) - torch.arange(x.size(1))",
        )
    },
    "LW802": {
        VALID + "c = {}" + SUMMED: (
            "x / x.norm(dim=-1, keepdim=True)",
            "torch.log(x.abs() / x.abs().sum(-1, keepdim=True))",
            "F.normalize(x, dim=-1, eps=0.0)",
            "x.reciprocal()",
        ),
        VALID + SCORES + "w = s.softmax(1).masked_fill(~valid, float('-inf'))\nreturn self.head({})": (
            "(w[..., None] * h).sum(1)",
            "torch.einsum('bt,btf->bf', w, h)",
        ),
    },
    "LW803": {
        VALID + "h = self.step(x)\np = {}\nreturn self.head(p)": (
            "h.masked_fill(~valid[..., None], -1e4).amax(1)",
            "torch.where(valid[..., None], h, torch.tensor(-1e3)).max(1).values",
        )
    },
}

OVER_ROWS = {"LW103", "LW302"}
"""Rules of operators that run over the rows: the fix changes what they compute of one sequence, too."""


def spellings() -> list:
    return [
        pytest.param(code, around.replace("{}", statement), id=f"{code}|{statement}")
        for code, statements in SPELLINGS.items()
        for around, leaking in statements.items()
        for statement in leaking
    ]


def module_of(file: Path) -> nn.Module:
    """The module in a file, with the same weights each time."""
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.manual_seed(0)
    net: nn.Module = module.Net()
    return net.eval()


def follow(body: str, folder: Path, argument: str = "lengths", **options) -> tuple[list[str], str, Path, Path]:
    """Pastes fixes until the module is sound, or a fix is to adapt.

    Returns the rules, what it ended with (a verdict, or the fix to adapt), and the first and the last file.
    """
    source = NET.replace("BODY", textwrap.indent(body, " " * 8).strip()).replace("ARGUMENT", argument)
    codes, first = [], folder / "net_0.py"
    for number in range(5):
        file = folder / f"net_{number}.py"
        file.write_text(source)
        report = lengthwise_export.check(f"{file}:Net", max_length=24, features=3, **options)
        leak = next(iter(report.leaks), None)
        if report.verdict != "leak" and (codes or leak is None):
            return codes, f"{report.verdict}: {report.reason}", first, file
        codes.append(leak.code)
        if "to adapt" in leak.cause.fix:
            return codes, leak.cause.fix, first, file
        source = fixes.pasted(source, leak.location.line, leak.cause.fix)
    return codes, "leak", first, file


@pytest.mark.sampled(126)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("code", "body"), spellings())
def test_a_fix_cures_each_spelling_or_says_that_it_is_to_adapt(code: str, body: str, tmp_path: Path) -> None:
    codes, ended, first, last = follow(body, tmp_path)
    assert codes[0] == code
    assert ended.startswith(("sound", "warning", "# to adapt, not to paste")), (ended, last.read_text())
    if ended.startswith("#") or code in OVER_ROWS:
        return
    before, after = module_of(first), module_of(last)
    for length in (3, 7):  # the answer to a sequence alone stays as it was
        steps, lengths = torch.randn(1, length, 3), torch.tensor([length])
        torch.testing.assert_close(after(steps, lengths), before(steps, lengths), rtol=1e-4, atol=1e-4)


def layers() -> dict[str, nn.Module]:
    return {"step": nn.Linear(3, 6), "score": nn.Linear(6, 1), "head": nn.Linear(6, 2)}


def attending(fill: float, scale: float, *, bounded: bool) -> nn.Module:
    """Adds a number to the scores of padding, and takes a weighted sum over the steps."""

    @network(0, layers)
    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.step(x).tanh() if bounded else self.step(x)
        scores = self.score(h).squeeze(-1) * scale + (1 - mask.float()) * fill
        weights = scores.softmax(1)
        return self.head((weights[..., None] * h).sum(1))

    return pooled()


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("fill", "scale", "bounded"),
    [(-1, 1, True), (-10, 1, True), (-15, 5, True), (-15, 0.1, False), (-50, 1, False), (-100, 1, False)],
)
def test_an_additive_mask_that_is_too_small_is_a_leak_at_its_softmax(fill: float, scale: float, bounded: bool) -> None:
    report = lengthwise_export.check(attending(fill, scale, bounded=bounded), features=3, max_length=64)
    assert report.verdict == "leak", report.reason
    location = report.leaks[0].location
    assert location is not None
    assert location.source == "weights = scores.softmax(1)"


def summed(before) -> nn.Module:
    """Multiplies by the mask what `before` makes of the steps."""

    @network(0, layers)
    def masked(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = step_mask(lengths, x.shape[1])
        return self.head(self.step((before(x, valid) * valid.unsqueeze(-1)).sum(1) / lengths[:, None]))

    return masked()


def attention_of_padded_rows(x: Tensor, valid: Tensor) -> Tensor:
    scores = (x @ x.mT).masked_fill(~(valid[:, :, None] & valid[:, None, :]), float("-inf"))
    return scores.softmax(-1) @ x


NAN = {
    "norm": lambda x, valid: x / x.norm(dim=-1, keepdim=True),
    "deviation": lambda x, valid: x / x.std(-1, keepdim=True),
    "logarithm": lambda x, valid: x.abs().log(),
    "softmax": attention_of_padded_rows,
}
LINES = {"norm": "x / x.norm", "deviation": "x / x.std", "logarithm": "valid.unsqueeze(-1)", "softmax": "softmax(-1)"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAN)
def test_an_answer_that_padding_turns_to_nan_is_a_leak_where_nan_begins(name: str) -> None:
    report = lengthwise_export.check(summed(NAN[name]), features=3, max_length=40)
    assert (report.verdict, report.exit_code()) == ("leak", 1)
    assert "finite alone" in report.reason
    leak = report.leaks[0]
    assert leak.location is not None
    assert LINES[name] in leak.location.source
    assert "NaN" in leak.cause.why
    assert "and is finite unbatched" in str(report)


def test_an_answer_that_is_not_finite_alone_is_not_checkable() -> None:
    report = lengthwise_export.check(summed(lambda x, valid: x.log()), features=3, max_length=40)
    assert (report.verdict, report.exit_code()) == ("uncheckable", 2)
    assert "not even to one alone" in report.reason


def test_a_sound_model_without_an_answer_to_some_values_is_checked_with_the_others() -> None:
    def gated(x: Tensor, valid: Tensor) -> Tensor:
        gates = x[..., :1].sigmoid().masked_fill(~valid.unsqueeze(-1), 0.0)  # all 0 for values around -1,000
        return x.masked_fill(~valid.unsqueeze(-1), 0.0) * gates / gates.sum(1, keepdim=True)

    def unit(x: Tensor, valid: Tensor) -> Tensor:
        return (x / x.norm(dim=-1, keepdim=True)).masked_fill(~valid.unsqueeze(-1), 0.0)

    for before, words in ((gated, "values around -1,000"), (unit, "a step of zeros")):
        report = lengthwise_export.check(summed(before), features=3, max_length=40)
        assert report.verdict == "sound", report.reason
        assert any(words in note for note in report.notes), report.notes


def scaled(values: Tensor, by: Tensor | float) -> Tensor:
    return values / by


TWICE = {
    "std": lambda x, valid: x / 2 / x.std(),
    "mean": lambda x, valid: x - 0.1 - x.mean(),
    "var": lambda x, valid: scaled(scaled(x, 2.0), x.var()),
}


@pytest.mark.parametrize("operator", TWICE)
def test_a_call_at_a_line_is_told_from_an_earlier_one_that_is_sound(operator: str) -> None:
    report = lengthwise_export.check(summed(TWICE[operator]), features=3, max_length=40)
    assert [leak.operator for leak in report.leaks] == [operator]


def recurrent() -> dict[str, nn.Module]:
    layers = {"gru": nn.GRU(3, 6, batch_first=True), "turned": nn.GRU(3, 6), "conv": nn.Conv1d(3, 6, 3, 2, 1)}
    return {"step": nn.Linear(3, 6), "head": nn.Linear(6, 2), **layers}


def packed(x: Tensor, lengths: Tensor, *, rows_first: bool = True) -> nn.utils.rnn.PackedSequence:
    return nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=rows_first, enforce_sorted=False)


@network(0, recurrent)
def tagger(self, x, lengths):
    return self.head(nn.utils.rnn.pad_packed_sequence(self.gru(packed(x, lengths))[0], batch_first=True)[0])


@network(0, recurrent)
def turned_tagger(self, x, lengths):
    return self.head(nn.utils.rnn.pad_packed_sequence(self.turned(packed(x, lengths, rows_first=False))[0])[0])


@network(0, recurrent)
def cut(self, x, lengths):
    return self.head(self.step(x[:, : lengths.max()]))


@network(0, recurrent)
def strided(self, x, lengths):
    return self.head(self.conv(x.mT).mT)


@network(0, recurrent)
def first_row(self, x, lengths):
    return self.head(self.step(x))[0]


@network(0, recurrent)
def unsqueezed(self, x, lengths):
    return self.head(self.gru(packed(x, lengths))[1])


@network(0, recurrent)
def steps_first(self, x, lengths):
    return self.head(self.step(x)).transpose(0, 1)


@network(0, recurrent)
def classes_first(self, x, lengths):
    return self.head(self.step(x)).mT


@network(0, recurrent)
def two_outputs(self, x, lengths):
    return self.head(self.step(x))[0], self.step(x)


@pytest.mark.parametrize(
    ("factory", "time_first", "words"),
    [
        (tagger, False, ["[7, 11, 2]", "total_length=x.size(1)"]),
        (turned_tagger, True, ["[11, 7, 2]", "total_length=x.size(0)"]),
        (cut, False, ["[7, 11, 2]", "do not cut x at lengths.max()"]),
        (strided, False, ["[7, 9, 2]", "9 steps in the place of 17", "a stride"]),
        (first_row, False, ["[17, 2]", "out[0] is the answer to the first row only"]),
        (unsqueezed, False, ["[1, 7, 2]", "return state[-1], or squeeze(0)"]),
        (steps_first, False, ["[17, 7, 2]", ".transpose(0, 1)", "--time-first"]),
        (steps_first, True, ["[7, 17, 2]", "leave --time-first out"]),
        (classes_first, False, ["[7, 2, 17]", ".transpose(1, 2)"]),
    ],
)
def test_an_output_of_another_form_is_told_by_what_it_is(factory: Factory, time_first: bool, words: list[str]) -> None:
    report = lengthwise_export.check(factory(), features=3, max_length=40, time_first=time_first)
    assert report.verdict == "uncheckable"
    assert all(word in report.reason for word in words), report.reason
    assert "--output" not in report.reason


def test_of_several_outputs_another_may_be_the_right_one() -> None:
    reason = lengthwise_export.check(two_outputs(), features=3, max_length=40).reason
    assert "another of the 2 outputs is right, name it with --output" in reason


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("argument", "options", "body", "code"),
    [
        (
            "lengths",
            {"padding": "left"},
            STEP + "h = h + torch.arange(x.size(1))[:, None]\nreturn self.head(h)",
            "LW602",
        ),
        ("segment_ids", {"packed": "segment_ids"}, "return self.head(self.gru(x)[0])", "LW701"),
        (
            "segment_ids",
            {"packed": "segment_ids"},
            STEP + "return self.head(h + torch.arange(x.size(1))[:, None])",
            "LW706",
        ),
    ],
)
def test_a_fix_in_another_layout_says_that_it_is_to_adapt(argument, options, body, code, tmp_path: Path) -> None:
    codes, ended, *_ = follow(body, tmp_path, argument, **options)
    assert codes[-1] == code
    assert ended.startswith("# to adapt, not to paste")


def test_of_two_equal_operators_of_which_one_runs_none_is_rewritten(tmp_path: Path) -> None:
    body = STEP + "p = h.mean(1) * 2 if len(x) < 0 else h.mean(1)\nreturn self.head(p)"
    assert follow(body, tmp_path)[1].startswith("# to adapt, not to paste")


def test_scores_that_are_filled_with_inf_are_a_softmax_over_padding(tmp_path: Path) -> None:
    body = VALID + SCORES + "s = s.masked_fill(~valid, -float('-inf'))\nw = s.softmax(1)" + WEIGHTED
    codes, ended, _, last = follow(body, tmp_path)
    assert codes == ["LW102"]
    assert ended.startswith(("sound", "warning"))
    assert "s.masked_fill(~valid_, torch.finfo(s.dtype).min).softmax(1)" in last.read_text()


@pytest.mark.long
def test_weights_that_are_filled_with_inf_are_masked_with_their_own_shape(tmp_path: Path) -> None:
    body = (
        VALID
        + SCORES
        + "w = s.softmax(1).masked_fill(~valid, -torch.inf)\nreturn self.head(torch.bmm(w[:, None], h)[:, 0])"
    )
    codes, ended, _, last = follow(body, tmp_path)
    assert codes == ["LW802", "LW102"]
    assert ended.startswith(("sound", "warning"))
    assert "masked_fill(~valid_[:, None, :], 0.0)" in last.read_text()
