"""Each fix that a check prints, pasted in the place of its statement, cures the module."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

import lengthwise_export
from benchmarks import fixes
from benchmarks.fixes import Case
from lengthwise_export.masks import step_mask
from tests.gallery.torch_models import Factory, network


@pytest.mark.sampled(61)
@pytest.mark.parametrize("case", list(fixes.cases()), ids=lambda case: f"{case.statement}|{case.layout}|{case.second}")
def test_a_fix_in_the_place_of_its_statement_ends_the_leak(case: Case, tmp_path: Path) -> None:
    row = fixes.followed(case, tmp_path)
    assert row.before == "leak", row.why
    assert row.is_cured, (row.why, *row.fixes)


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


@pytest.mark.parametrize("name", NAN)
def test_an_answer_that_is_finite_alone_and_nan_with_padding_is_a_leak_where_nan_begins(name: str) -> None:
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
