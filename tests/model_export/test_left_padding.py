"""`check --padding left|both`: rows whose sequences stand at the end, or in the middle."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise_export.layouts import StepLayout
from lengthwise_export.testing import PaddingUnsafeError, assert_padding_safe


class Decoder(nn.Module):
    """A classifier of token ids that reads its last step, as those that are padded on the left do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.positions = nn.Embedding(50, 16), nn.Embedding(300, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def places(self, mask):
        return (mask.long().cumsum(1) - 1).clamp(min=0)

    def attend(self, x, mask):
        return x + self.attention(x, x, x, key_padding_mask=~mask)[0]

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids) + self.positions(self.places(attention_mask))
        return self.head(self.attend(x, attention_mask)[:, -1])


class CountsOverTheWidth(Decoder):
    def places(self, mask):
        return torch.arange(mask.size(1))


class WithoutMask(Decoder):
    def attend(self, x, mask):
        return x + self.attention(x, x, x)[0]


class ReadsByLength(Decoder):
    def forward(self, input_ids, attention_mask):
        x = self.attend(self.embedding(input_ids), attention_mask)
        return self.head(x[torch.arange(len(x)), attention_mask.sum(1) - 1])


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(5, 16, batch_first=True), nn.Linear(16, 3)

    def rows(self, x, mask):
        return x

    def forward(self, x, mask):
        lengths = mask.sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(self.rows(x, mask), lengths, batch_first=True, enforce_sorted=False)
        _, (state, _) = self.rnn(packed)
        return self.head(state[-1])


class PacksFromItsOwnStart(Packs):
    def rows(self, x, mask):
        index = torch.arange(x.size(1)) + mask.int().argmax(1, keepdim=True)
        return x.gather(1, index.clamp(max=x.size(1) - 1)[..., None].expand_as(x))


class Tagger(nn.Module):
    """A causal convolution that answers each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv1d(5, 16, 3, padding=2), nn.Linear(16, 3)

    def steps(self, x, mask):
        return x.masked_fill(~mask[..., None], 0.0)

    def forward(self, x, mask):
        hidden = self.convolution(self.steps(x, mask).mT)[..., : x.size(1)]
        return self.head(hidden.relu().mT)


class TaggerOverPadding(Tagger):
    def steps(self, x, mask):
        return x


def line(report: lengthwise_export.CheckReport) -> str:
    leak = report.leaks[0]
    assert leak.location is not None
    return leak.location.source


@pytest.mark.sampled(2)
@pytest.mark.parametrize("padding", ["left", "both"])
@pytest.mark.parametrize("model", [PacksFromItsOwnStart, Tagger])
def test_a_model_that_reads_each_sequence_where_its_mask_says_is_sound(model: type[nn.Module], padding: str) -> None:
    assert assert_padding_safe(model(), padding=padding, max_length=64).verdict == "sound"


def test_a_model_of_the_last_step_is_sound_with_padding_on_the_left_only() -> None:
    assert lengthwise_export.check(Decoder(), padding="left", max_length=64).verdict == "sound"
    both = lengthwise_export.check(Decoder(), padding="both", max_length=64)
    assert (both.verdict, both.leaks[0].kind) == ("leak", "__getitem__")
    assert "[:, -1]" in line(both)


@pytest.mark.long
@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("model", "kind", "source"),
    [
        (CountsOverTheWidth, "arange", "torch.arange(mask.size(1))"),
        (WithoutMask, "multi_head_attention_forward", "self.attention(x, x, x)"),
        (ReadsByLength, "__getitem__", "attention_mask.sum(1) - 1"),
        (Packs, "_pack_padded_sequence", "pack_padded_sequence("),
        (TaggerOverPadding, "conv1d", "self.convolution("),
    ],
)
def test_a_leak_begins_at_the_operator_that_reads_the_padding_in_front(
    model: type[nn.Module], kind: str, source: str
) -> None:
    report = lengthwise_export.check(model(), padding="left", max_length=64)
    assert (report.verdict, report.leaks[0].kind) == ("leak", kind)
    assert source in line(report)


class ReadsTheFirstStep(CountsOverTheWidth):
    """As BERT with its pooler: positions from the left edge, and the step there."""

    def places(self, mask):
        return self.table[:, : mask.size(1)]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(300)[None])

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids) + self.positions(self.places(attention_mask))
        return self.head(self.attend(x, attention_mask)[:, 0])


def test_positions_are_the_first_link_and_the_step_at_a_fixed_place_the_second() -> None:
    positions, step = lengthwise_export.check(ReadsTheFirstStep(), padding="left", max_length=64).leaks
    assert (positions.code, step.code) == ("LW602", "LW206")
    assert "argmax(1)]  # the first valid step" in step.cause.fix
    assert "- 1]" not in step.cause.fix


class OfLengths(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.rnn, self.head = nn.Linear(5, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)
        self.of_steps = forward

    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) >= x.size(1) - lengths[:, None]
        return self.head(self.of_steps(self, self.first(x) * valid[..., None], lengths, valid[..., None]))


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("of_steps", "code", "words"),
    [
        (lambda net, h, lengths, valid: h[:, 0], "LW206", "x.size(1) - lengths]"),
        (lambda net, h, lengths, valid: net.rnn(h + 1.0)[0][:, -1], "LW301", "valid.int().argmax(1"),
        (lambda net, h, lengths, valid: ((h + h.flip(1)) * valid).sum(1), "LW303", "2 * first"),
        (
            lambda net, h, lengths, valid: (h * torch.linspace(0, 1, h.size(1))[:, None]).sum(1),
            "LW601",
            "cumsum(1) - 1",
        ),
    ],
)
def test_a_fix_is_written_for_the_side_of_the_padding(of_steps, code: str, words: str) -> None:
    leak = lengthwise_export.check(OfLengths(of_steps), padding="left", max_length=64).leaks[0]
    assert leak.code == code
    assert words in leak.cause.fix


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("of_steps", "code", "words"),
    [
        (lambda net, h, lengths, valid: (h + 1.0).cumsum(1)[:, -1], "LW305", "begins in the padding"),
        (
            lambda net, h, lengths, valid: (
                nn.functional.conv1d((h + 1.0).mT, torch.ones(8, 8, 3), padding=1).mT * valid
            ).sum(1),
            "LW401",
            "the valid steps next to the padding",
        ),
        (
            lambda net, h, lengths, valid: (nn.functional.max_pool1d((h + 9.0).mT, 3, 1, 1).mT * valid).sum(1),
            "LW208",
            "at an end of the sequence",
        ),
    ],
)
def test_a_cause_is_true_where_the_padding_is_in_front(of_steps, code: str, words: str) -> None:
    leak = lengthwise_export.check(OfLengths(of_steps), padding="left", max_length=64).leaks[0]
    assert leak.code == code
    assert words in leak.cause.why
    assert "last" not in leak.cause.why


@pytest.mark.long
def test_what_is_stated_is_tried_so_a_model_for_the_other_side_leaks() -> None:
    assert lengthwise_export.check(Decoder(), max_length=64).verdict == "uncheckable"
    report = lengthwise_export.check(Decoder(), padding="right", max_length=64)
    assert (report.verdict, report.leaks[0].kind) == ("leak", "__getitem__")


class LooksAhead(nn.Module):
    """Reads the next step too, whatever the lengths are: right at the end of the width, and a leak before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden = self.step(x)  # not zero at zeros, so other widths show the leak too
        return self.head(hidden + nn.functional.pad(hidden[:, 1:], (0, 0, 0, 1)))


def test_answers_at_each_step_that_do_not_depend_on_the_lengths_are_no_left_padding() -> None:
    assert lengthwise_export.check(LooksAhead(), features=5, max_length=64).verdict == "leak"


class ReadsByPaddingId(Decoder):
    """Reads the last step whose id is not that of padding, as classifiers of Hugging Face do."""

    padding_id = 7

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[:, None] & torch.ones(input_ids.size(1), input_ids.size(1), dtype=torch.bool).tril()
        x = self.embedding(input_ids) + self.positions(self.places(attention_mask))
        x = x + nn.functional.scaled_dot_product_attention(x, x, x, mask | torch.eye(x.size(1), dtype=torch.bool))
        last = (torch.arange(x.size(1)) * (input_ids != self.padding_id)).argmax(1)
        return self.head(x[torch.arange(len(x)), last])


class ComparesIds(Decoder):
    """Something is added to one kind of token, which is no padding."""

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids) + 0.3 * (input_ids == 7)[..., None]
        return self.head(self.attend(x + self.positions(self.places(attention_mask)), attention_mask)[:, -1])


@pytest.mark.sampled(12)
@pytest.mark.parametrize("padding", [None, "right", "left", "both"])
@pytest.mark.parametrize("padding_id", [0, 7, 49])
def test_padding_that_is_recognised_by_its_id_is_a_leak_on_every_side(padding_id: int, padding: str | None) -> None:
    model = ReadsByPaddingId()
    model.padding_id = padding_id
    report = lengthwise_export.check(model, padding=padding, max_length=64)
    assert (report.verdict, report.leaks[0].code) == ("leak", "LW106")
    assert f"id {padding_id} " in report.leaks[0].cause.why


@pytest.mark.long
def test_a_comparison_with_an_id_that_is_not_padding_excuses_no_side() -> None:
    assert lengthwise_export.check(ComparesIds(), max_length=64).verdict == "uncheckable"
    assert lengthwise_export.check(ComparesIds(), padding="left", max_length=64).verdict == "sound"


class CausalOverPadding(Decoder):
    def attend(self, x, mask):
        return x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def test_a_causal_attention_without_a_mask_of_padding_is_not_called_inverted() -> None:
    report = lengthwise_export.check(CausalOverPadding(), padding="left", max_length=64)
    assert (report.verdict, report.leaks[0].code) == ("leak", "LW101")
    assert "is_causal=True" in line(report)


class ShiftsByOneStep(Tagger):
    def forward(self, x, mask):
        return self.head(torch.tanh(self.convolution.weight[:, :, 0] @ (x + nn.functional.pad(x, (0, 0, 1, -1))).mT).mT)


def test_a_shift_over_the_padding_in_front_is_no_reduction_over_the_rows() -> None:
    report = lengthwise_export.check(ShiftsByOneStep(), padding="left", max_length=64)
    assert (report.verdict, report.leaks[0].kind, report.leaks[0].code) == ("leak", "pad", "LW900")


@pytest.mark.long
def test_a_configuration_chooses_the_padding_side_and_the_report_names_it() -> None:
    model = Decoder()
    model.config = SimpleNamespace(padding_side="left")
    report = lengthwise_export.check(model, max_length=64)
    assert report.verdict == "sound"
    assert "padding_side='left'" in report.notices[0]
    assert lengthwise_export.check(model, padding="right", max_length=64).verdict == "leak"


@pytest.mark.long
def test_the_command_takes_the_side(tmp_path: Path) -> None:
    file = tmp_path / "tagger_of_left.py"
    file.write_text(f"from {__name__} import TaggerOverPadding as make\n")
    words = ["check", f"{file}:make", "--features", "5", "--max-length", "64", "--json"]
    assert CliRunner().invoke(main, [*words, "--padding", "left"]).exit_code == 1
    shown = json.loads(CliRunner().invoke(main, [*words, "--padding", "both"]).stdout)
    assert shown["leaks"][0]["kind"] == "conv1d"


def test_a_failing_assertion_shows_the_leak() -> None:
    with pytest.raises(PaddingUnsafeError, match="conv1d"):
        assert_padding_safe(TaggerOverPadding(), padding="left", max_length=64)


def test_options_about_padding_on_the_right_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--padding right"):
        lengthwise_export.check(Tagger(), padding="left", suggest=True)


@pytest.mark.parametrize(("padding", "starts"), [("right", [0, 0, 0]), ("left", [4, 2, 0]), ("both", [2, 1, 0])])
def test_steps_and_answers_are_moved_there_and_back(padding: str, starts: list[int]) -> None:
    layout = StepLayout(padding)  # type: ignore[arg-type]  # one of its words
    rows = [np.arange(1, length + 1) for length in (3, 5, 7)]
    batch = pad(rows, width=7)
    arranged = layout.arrange(batch)
    for row, (steps, start) in enumerate(zip(rows, starts, strict=True)):
        inside = slice(start, start + len(steps))
        assert arranged.steps[row, inside].tolist() == steps.tolist()
        assert np.flatnonzero(arranged.valid[row]).tolist() == list(range(start, start + len(steps)))
        assert arranged.positions[row, inside].tolist() == list(range(len(steps)))
    answer = arranged.steps[..., None].astype(np.float32)
    assert layout.restore(answer, batch)[..., 0].tolist() == batch.steps.tolist()


class TakesPositions(Decoder):
    def forward(self, input_ids, attention_mask, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.size(1))
        x = self.embedding(input_ids) + self.positions(position_ids)
        return self.head(self.attend(x, attention_mask)[:, -1])


class RequiresPositions(TakesPositions):
    def forward(self, input_ids, attention_mask, position_ids):
        return super().forward(input_ids, attention_mask, position_ids)


@pytest.mark.long
def test_positions_that_a_model_may_take_are_a_second_trial_that_decides_nothing() -> None:
    report = lengthwise_export.check(TakesPositions(), padding="left", max_length=64)
    assert (report.verdict, report.leaks[0].cause.code) == ("leak", "LW602")
    assert any("position_ids counted from" in note for note in report.notes)


def test_positions_that_a_model_requires_are_passed() -> None:
    assert lengthwise_export.check(RequiresPositions(), padding="left", max_length=64).verdict == "sound"
