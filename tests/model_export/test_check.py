import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lengthwise.commands.cli import main
from lengthwise.runtime.manifest import StepInput
from lengthwise_export import check, export
from lengthwise_export.checking.check import check_subject
from lengthwise_export.checking.report import Report
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.errors import ExportError
from lengthwise_export.targets import target
from lengthwise_export.tracing.call_signature import CallSignature, Second
from lengthwise_export.tracing.outputs import output_selector
from tests.gallery.index import TORCH_LEAKING
from tests.gallery.torch_models import network
from tests.support.users_models import Unpadded

STEPS = StepInput(features=3)


class Base(nn.Module):
    """Tanh of every step and a head over them; what differs is `pool`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        return self.head(self.pool(torch.tanh(self.step(x)), valid, lengths))

    def pool(self, h, valid, lengths):
        return masked_mean(h, valid, lengths)


def forwarding(forward) -> nn.Module:
    """The same with another `forward`."""
    return type("Forwarding", (Base,), {"forward": forward})()


def pooling(pool) -> nn.Module:
    """The same with another `pool`, a function of `(h, valid, lengths)`."""
    return type("Pooling", (Base,), {"pool": lambda self, *given: pool(*given)})()


def masked_mean(h, valid, lengths):
    return torch.where(valid[..., None], h, 0.0).sum(1) / lengths[:, None]


class MeanOverWidth(Base):
    def pool(self, h, valid, lengths):
        return h.mean(1)


class Positions(Base):
    def __init__(self, table: int) -> None:
        super().__init__()
        self.table = nn.Embedding(table, 6)

    def pool(self, h, valid, lengths):
        return super().pool(h + self.table(torch.arange(h.size(1))), valid, lengths)


def refusing(unwanted) -> nn.Module:
    """Raises for the batches that it is told to."""

    def forward(self, x, lengths):
        if unwanted(x, lengths):
            raise ValueError("not this one")
        return Base.forward(self, x, lengths)

    return forwarding(forward)


def judged(module: nn.Module, **options: object) -> Report:
    return check_subject(
        TorchSubject(module, STEPS, signature=CallSignature(), select_output=output_selector(None)), **options
    )


def test_a_sound_model_passes_every_trial_and_takes_every_length_from_1_alone() -> None:
    report = judged(Base())
    assert (report.verdict, report.exit_code(), report.min_length, report.max_length) == ("sound", 0, 1, 1024)
    assert all(outcome.passed for outcome in report.trials)
    names = [outcome.name for outcome in report.trials if outcome.name.startswith("unbatched")]
    alone = [name for name in names if not name.endswith(")")]  # those of raw values say their kind
    assert len(names) > len(alone) >= 12
    assert alone[-2:] == ["unbatched, 2 steps", "unbatched, 1 step"]
    assert judged(Base(), max_length=1).verdict == "sound"


def test_only_poison_is_a_warning_and_bad_under_strict() -> None:
    report = judged(pooling(lambda h, valid, lengths: (h * valid[..., None]).sum(1) / lengths[:, None]))
    assert report.verdict == "warning"
    assert (report.exit_code(), report.exit_code(strict=True)) == (0, 1)
    assert report.leaks[0].operator == "sum"


def test_a_leak_names_operator_line_cause_and_mend_and_shows_what_moves() -> None:
    report = judged(MeanOverWidth())
    (leak,) = report.leaks
    assert (report.verdict, report.min_length, leak.operator) == ("leak", 1, "mean")
    assert getattr(leak.location, "source", None) == "return h.mean(1)"
    assert "divides by the width" in leak.cause.why
    assert "lengths[:, None]" in leak.cause.fix
    spread = {line.operator: line.along for line in leak.spread}
    assert max(spread["step: linear"][: leak.length]) == 0.0
    assert min(spread["step: linear"][leak.length :]) > 0.0
    assert len(spread["mean"]) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_with_a_part_in_torchscript_is_judged_and_not_exported(tmp_path: Path) -> None:
    for module, verdict in ((MeanOverWidth(), "leak"), (Base(), "sound")):
        module.step = torch.jit.script(module.step)
        assert check(module, features=3, max_length=40).verdict == verdict
    with pytest.raises(ExportError, match=r"trace: tests/model_export/test_check\.py:"):
        export(module, tmp_path / "m" / "1", features=3, max_length=40)


@pytest.mark.long
def test_the_same_seed_gives_the_same_report() -> None:
    first, again, other = (judged(MeanOverWidth(), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert [one.difference for one in first.trials] != [one.difference for one in other.trials]


def test_a_tolerance_lets_a_small_leak_be_and_is_refused_where_it_hides_every_answer() -> None:
    assert judged(MeanOverWidth(), tolerance=10.0).verdict != "leak"
    assert "--tolerance is too large" in judged(Base(), tolerance=100.0).reason


@pytest.mark.parametrize("table", [40, 16])
def test_a_table_of_positions_says_how_wide_the_model_goes(table: int) -> None:
    report = judged(Positions(table))
    assert (report.verdict, report.max_length) == ("sound", table)
    assert any(f"past a width of {table}: " in note and "index out of range" in note for note in report.notes)


def test_the_end_of_a_table_of_positions_is_met_in_few_runs() -> None:
    model, widths = Positions(300), []
    model.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].size(1)))
    assert judged(model, max_length=1024).max_length == 300
    searched = [width for width in widths[: widths.index(300) + 2] if width > 24]
    assert searched[-2:] == [300, 301]
    assert len(searched) <= 6  # the largest length, and a few ends of weights; halving 1,000 widths takes ten more


@pytest.mark.sampled(2)
@pytest.mark.parametrize("is_large", [False, True])
def test_a_large_module_is_checked_in_the_callers_threads_and_others_in_one(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    monkeypatch.setattr(target, "LARGE", 10 if is_large else 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert check(Base(), max_length=20, progress=lambda _: threads.add(torch.get_num_threads())).verdict == "sound"
    finally:
        torch.set_num_threads(before)
    assert threads == {2 if is_large else 1}


def test_a_length_at_which_the_model_raises_alone_is_noted_and_the_others_decide() -> None:
    report = judged(refusing(lambda x, lengths: x.size(1) < 2))
    assert report.verdict == "sound"
    assert any("unbatched, the model raises at 1 steps" in note and "not this one" in note for note in report.notes)


def forgetting(forgets) -> nn.Module:
    """Masks nothing in some batches, or behind some sequences."""

    def forward(self, x, lengths):
        valid = (torch.arange(x.size(1)) < lengths[:, None]) | torch.as_tensor(forgets(x, lengths))
        return self.head(self.pool(torch.tanh(self.step(x)), valid, lengths))

    return forwarding(forward)


def in_place(self, x, lengths):
    valid = torch.arange(x.size(1)) < lengths[:, None]
    x[~valid] = 1.0
    h = torch.tanh(self.step(x))
    h[~valid] = 0.0
    h[:, -1] += x[:, -1] @ torch.ones(3, 6)
    return self.head(h.sum(1) / lengths[:, None])


def over_steps(h, valid, lengths):
    total = torch.zeros(h.shape[0], 6)
    for step in range(h.shape[1]):
        total = total + h[:, step]
    return total / lengths[:, None]


def attends(self, x, lengths):
    valid = torch.arange(x.size(1)) < lengths[:, None]
    weights = self.step(x).sum(-1).softmax(1) * valid
    return {"logits": self.head(self.pool(torch.tanh(self.step(x)), valid, lengths)), "attention": weights}


class FromTheEnd(Positions):
    """The position follows the width: the leak begins there, and not at the width."""

    def pool(self, h, valid, lengths):
        width = torch.tensor(h.size(1))
        place = width - 1 - torch.arange(h.size(1))
        return Base.pool(self, h + self.table(place), valid, lengths)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("module", "operators", "source"),
    [
        (forgetting(lambda x, lengths: len(x) == 1), "sum", ""),
        (forgetting(lambda x, lengths: len(x) == 3), "sum", ""),
        (forgetting(lambda x, lengths: bool((lengths == lengths[0]).all())), "sum", ""),
        (forgetting(lambda x, lengths: x.size(1) > 64), "sum", ""),
        (forgetting(lambda x, lengths: (lengths > 64)[:, None]), "sum", ""),
        (pooling(lambda *given: masked_mean(*given) / int(given[2].max())), "max div __truediv__ truediv", ""),
        (pooling(over_steps), "", ""),
        (forwarding(in_place), "", "x[:, -1]"),
        (forwarding(attends), "softmax", ""),
        (FromTheEnd(2000), "", "torch.arange"),
    ],
    ids=[
        *("no mask for one row", "for three rows", "if equally long", "past a width of 64", "past a length of 64"),
        *("a number of the longest", "a loop over steps", "in place", "attention", "positions from the end"),
    ],
)
def test_a_leak_is_found_where_it_begins(module: nn.Module, operators: str, source: str) -> None:
    report = judged(module)
    assert report.verdict == "leak", report.reason
    leak = report.leaks[0]
    assert not operators or leak.operator in operators.split()
    assert source in (leak.location.source if leak.location else "")


def test_a_model_that_raises_for_poison_reads_it() -> None:
    report = judged(refusing(lambda x, lengths: not x.isfinite().all()))
    assert report.verdict == "warning"
    assert any(outcome.raised is not None for outcome in report.trials)


def test_rounding_that_a_model_amplifies_is_no_leak() -> None:
    report = judged(pooling(lambda *given: torch.sin(masked_mean(*given) * 300.0)))
    assert report.verdict == "sound", report
    assert any("1-ulp input change" in note for note in report.notes)


@pytest.mark.long
def test_a_page_shows_the_leak_and_needs_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "leak.html"
    (leaking,) = (exhibit for exhibit in TORCH_LEAKING if exhibit.name == "mean_over_width")
    result = CliRunner().invoke(main, ["check", leaking.target, "--html", str(page)])
    text = page.read_text()
    assert result.exit_code == 1
    assert f"{leaking.file.name}:{leaking.line}" in text
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.long
def test_strict_makes_a_warning_bad() -> None:
    target = "tests.gallery.torch_sound.recurrent:masked_mean"
    assert CliRunner().invoke(main, ["check", target]).exit_code == 0
    assert CliRunner().invoke(main, ["check", target, "--strict"]).exit_code == 1


def test_a_bundled_model_directory_is_sound() -> None:
    directory = Path(__file__).parents[2] / "service" / "lengthwise" / "models" / "japanese-vowels" / "1"
    result = CliRunner().invoke(main, ["check", str(directory), "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["verdict"] == "sound"
    assert max(trial["difference"] for trial in report["trials"]) < 1e-5


@network(0, lambda: {"table": nn.Embedding(9, 3)})
def bag(self, tokens, lengths):
    return self.table(tokens).sum(1) / lengths[:, None]


def test_small_models_of_tokens_are_judged() -> None:
    steps = StepInput(kind="tokens", vocabulary=9)
    report = check_subject(TorchSubject(bag(), steps, signature=CallSignature(), select_output=output_selector(None)))
    assert (report.verdict, report.leaks[0].operator) == ("leak", "sum")
    assert np.isfinite(report.leaks[0].difference)


@pytest.mark.long
def test_what_only_the_plain_path_shows_is_said() -> None:
    class Encoded(Base):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def pool(self, h, valid, lengths):
            h = self.encoder(h, src_key_padding_mask=~valid)
            width = valid.shape[1]
            return super().pool(nn.functional.pad(h, (0, 0, 0, width - h.shape[1])), valid, lengths)

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        report = judged(Encoded())
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert report.verdict == "warning"
    assert any("does not show it" in note for note in report.notes)


def three_convolutions() -> dict[str, nn.Module]:
    convs = nn.Sequential(nn.Conv1d(3, 6, 9), nn.MaxPool1d(4), nn.Conv1d(6, 6, 5))
    return {"convs": convs, "head": nn.Linear(6, 2)}


@network(0, three_convolutions)
def pools(self, x, lengths):
    return self.head(self.convs(x.transpose(1, 2)).mean(-1))


def test_a_model_that_pools_away_short_sequences_is_judged_at_the_widths_it_takes() -> None:
    report = judged(pools())
    assert report.verdict == "leak"
    assert report.leaks[0].operator in ("convs.0: conv1d", "convs.1: max_pool1d", "convs.2: conv1d", "mean")
    assert any("the model raises at 1, 2, 3" in note for note in report.notes)


def test_a_decoder_that_raises_without_a_padding_id_is_told_to_have_one() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            if len(input_ids) > 1:
                raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
            return self.head(self.embed(input_ids)[:, -1])

    report = check(Decoder(), max_length=16)
    assert report.verdict == "uncheckable"
    assert "config.pad_token_id = 0), and pass it with --pad-id" in report.reason
    assert "from the shape" not in report.reason


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("unwanted", "why"),
    [
        (lambda x, lengths: True, "raises for a batch of 7 rows"),
        (lambda x, lengths: len(lengths) != 16, "rows is frozen at 16"),
        (lambda x, lengths: x.size(1) != 40, "width is frozen at 40"),
        (lambda x, lengths: len(lengths) == 7 and x.size(1) == 18, "raises at 18: its width is frozen"),
        (lambda x, lengths: lengths[0] < lengths.max(), "requires an order of the rows"),
        (lambda x, lengths: len(lengths) == 7 and lengths[0] == 10, "neighbours of other lengths: the model raises"),
        (lambda x, lengths: x.size(1) % 2, "multiples of 2"),
        (lambda x, lengths: x.size(1) % 16, "multiples of 16"),
        (lambda x, lengths: x.size(1) % 32, "multiples of 32"),
        (lambda x, lengths: len(set(lengths.tolist())) > 1, "lengths differ"),
        (lambda x, lengths: len(lengths) > 1, "rows is frozen at 1"),
        (lambda x, lengths: len(lengths) == 1, "a batch of one row"),
        (lambda x, lengths: len(lengths) == 2, ""),
        (lambda x, lengths: len(lengths) == 3, ""),
        (lambda x, lengths: len(lengths) == 5, ""),
    ],
)
def test_a_model_that_raises_is_told_from_what_it_runs_with(unwanted, why: str) -> None:
    report = judged(refusing(unwanted))
    assert report.verdict == "uncheckable"
    assert why in report.reason
    assert "not this one" in report.reason


def divided(divisor) -> nn.Module:
    return pooling(lambda *given: masked_mean(*given) / divisor(given[2])[:, None])


def weights_alone(self, x, lengths):
    valid = torch.arange(x.size(1)) < lengths[:, None]
    return self.step(x).sum(-1).masked_fill(~valid, -1e9).softmax(1)


def tight(self, x, lengths):
    """Needs a width that is the longest row's."""
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    return self.head(self.pool(torch.tanh(self.step(x)), valid, lengths))


def quits(self, x, lengths):
    sys.exit(0)


def shares(self, x, lens):
    valid = torch.arange(x.size(1)) < (lens * x.size(1)).round()[:, None]
    return self.head(self.pool(torch.tanh(self.step(x)), valid, valid.sum(1)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (pooling(lambda *given: masked_mean(*given).squeeze()), "a batch of one row"),
        (pooling(lambda *given: masked_mean(*given).mean(0, keepdim=True)), r"\[1, 2\] for 7 rows"),
        (divided(lambda lengths: lengths * 0.0), "not finite"),
        (divided(lambda lengths: lengths < 200), "not finite"),
        (divided(lambda lengths: torch.where(lengths == 2, torch.nan, lengths)), "of 2 steps are not finite"),
        (pooling(lambda h, *given: masked_mean(torch.zeros_like(h), *given)), "do not depend on the sequences"),
        (pooling(lambda h, *given: torch.ones_like(h).mean(1) * given[1][:, None]), "do not depend on the sequences"),
        # reads padding, and nothing moves it by more than rounding
        (pooling(lambda h, valid, lengths: 1e-7 * h.mean(1)), "do not depend on the sequences"),
        (forwarding(weights_alone), "no axis of classes: return it with unsqueeze"),
        (forwarding(tight), r"total_length=x\.size\(1\)"),
        (forwarding(quits), r"tests/model_export/test_check\.py:\d+: it quits with SystemExit\(0\)"),
        (forwarding(shares), "shares of the width"),
    ],
    ids=[
        *("no lone row", "no axis of rows", "nowhere finite", "not finite if long", "not finite at two steps"),
        *("nothing", "lengths alone", "faint", "weights", "tight", "quits", "shares"),
    ],
)
def test_what_cannot_be_judged_is_not_called_sound_and_told_why(module: nn.Module, why: str) -> None:
    report = judged(module)
    assert (report.verdict, report.exit_code(), report.min_length) == ("uncheckable", 2, 1)
    assert re.search(why, report.reason), report.reason


def test_a_sound_report_lists_what_really_ran() -> None:
    seen = set()

    def watched(self, x, lengths):
        seen.update((x.size(0), x.size(1), int(length)) for length in lengths)
        return Base.forward(self, x, lengths)

    ran = judged(forwarding(watched)).ran
    rows, widths, lengths = (set(sizes) for sizes in zip(*seen, strict=True))
    assert {1, 2, 7} <= set(ran.rows) <= rows
    assert {1024} <= set(ran.widths) <= widths
    assert {1, 2, 3, 1024} <= set(ran.lengths) <= lengths


def test_a_report_of_what_cannot_be_judged_lists_what_ran_and_was_tried() -> None:
    report = judged(forwarding(lambda self, x, lengths: Base.forward(self, torch.zeros_like(x), lengths)))
    assert report.verdict == "uncheckable"
    assert {1, 2, 7} <= set(report.ran.rows)
    assert {"large junk in the padding", "padded wider"} <= {one.name for one in report.trials}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("most", [1, 2, 3, 6, 12])
def test_a_model_that_raises_before_the_trials_widths_is_not_called_sound(most: int) -> None:
    report = judged(refusing(lambda x, lengths: x.size(1) > most))
    assert (report.verdict, report.exit_code()) == ("uncheckable", 2)
    assert f"past a width of {most}" in report.reason
    assert "not this one" in report.reason
    assert f"--max-length {most}" in report.reason


@pytest.mark.sampled(3)
@pytest.mark.parametrize("most", [2, 3, 5, 6, 12])
def test_it_is_judged_where_the_caller_says_that_it_ends_there(most: int) -> None:
    report = judged(refusing(lambda x, lengths: x.size(1) > most), max_length=most)
    assert report.verdict == "sound"
    assert max(report.ran.widths) == most
    assert len(report.ran.lengths) > 1


def test_a_limit_past_the_trials_is_a_note_with_the_exception() -> None:
    report = judged(refusing(lambda x, lengths: x.size(1) > 100))
    assert report.verdict == "sound"
    assert "not this one" in report.notes[0]
    assert report.max_length == max(report.ran.widths) == 100


@pytest.mark.parametrize(
    ("second", "expected"), [("mask", {"leak", "warning", "uncheckable"}), ("padding-mask", {"sound"})]
)
def test_a_mask_is_read_the_way_round_that_is_said(second: Second, expected: set[str]) -> None:
    module = forwarding(lambda self, x, mask: Base.forward(self, x.masked_fill(mask[..., None], 0.0), (~mask).sum(1)))
    assert check_subject(TorchSubject(module, STEPS, CallSignature(second), output_selector(None))).verdict in expected


class Guarded(Unpadded):
    """Pads a batch that is too narrow, and so never raises."""

    def forward(self, values, lengths):
        return super().forward(nn.functional.pad(values, (0, 0, 0, max(0, self.kernel - values.size(1)))), lengths)


def last_four(h, valid, lengths):
    """The last four steps of a sequence, read from wherever the index falls."""
    if h.size(1) < 4:
        raise ValueError("too short")
    places = (lengths[:, None] - 4 + torch.arange(4)) % h.size(1)
    return h.gather(1, places[..., None].expand(-1, -1, h.size(2))).sum(1)


def four_highest(h, valid, lengths):
    return torch.where(valid[..., None], h, -1.0).topk(4, dim=1).values.sum(1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("module", "least"),
    [*((Unpadded(kernel), kernel) for kernel in (2, 5, 12, 100)), (pooling(last_four), 4), (pooling(four_highest), 4)],
    ids=["2", "5", "12", "100", "last steps", "top-k"],
)
def test_the_shortest_sequence_that_a_model_takes_alone_is_found(module: nn.Module, least: int) -> None:
    report = judged(module)
    assert (report.verdict, report.min_length) == ("sound", least)
    assert (report.ran.lengths[0], report.ran.lengths[-1]) == (least, 1024)
    assert len(report.ran.lengths) > 5
    raised = [outcome for outcome in report.trials if outcome.raised is not None]
    assert all(outcome.passed and outcome.name.startswith("unbatched, ") for outcome in raised)
    assert len(raised) == min(least - 1, 48)
    assert any(f"needs at least {least} steps" in note for note in report.notes)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("longest", [5, 6, 7, 8, 9, 12, 20])
def test_the_shortest_sequence_may_be_nearly_the_longest(longest: int) -> None:
    report = judged(Unpadded(), max_length=longest)
    assert (report.verdict, report.min_length, report.max_length) == ("sound", 5, longest)
    assert judged(Guarded(), max_length=longest, min_length=5).verdict == "sound"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "unwanted",
    [
        lambda x, lengths: len(x) == 1 and x.size(1) in (1, 3),
        lambda x, lengths: len(x) == 1 and x.size(1) % 2 == 1 and x.size(1) < 30,
        lambda x, lengths: len(x) == 1 and x.size(1) == 4,
        lambda x, lengths: len(x) == 1 and x.size(1) > 6,
        lambda x, lengths: len(x) == 1 and (x.size(1) < 4 or x.size(1) == 15),
    ],
    ids=["1 and 3", "odd", "4", "long ones", "below 4, and 15"],
)
def test_lengths_that_raise_with_others_between_are_noted_and_set_no_bound(unwanted) -> None:
    report = judged(refusing(unwanted))
    assert (report.verdict, report.min_length) == ("sound", 1)
    assert any("unbatched, the model raises at" in note for note in report.notes)
    assert not any("needs at least" in note for note in report.notes)


@pytest.mark.long
def test_a_shortest_sequence_that_is_known_is_not_gone_below() -> None:
    leaking = judged(Guarded())
    assert leaking.verdict == "leak"
    assert [note for note in leaking.notes if "with --min-length 5 padding reaches no answer" in note] != []
    report = judged(Guarded(), min_length=5)
    assert (report.verdict, report.min_length, report.ran.lengths[0]) == ("sound", 5, 5)
    assert judged(Unpadded(8), min_length=5).min_length == 8
    assert judged(Unpadded(), min_length=8).min_length == 8


@pytest.mark.long
def test_a_longest_sequence_below_the_shortest_cannot_be_checked() -> None:
    report = judged(Guarded(), min_length=9, max_length=8)
    assert report.verdict == "uncheckable"
    assert "needs at least 9 steps" in report.reason
    assert judged(Unpadded(), max_length=4).verdict == "uncheckable"


def test_a_leak_above_the_shortest_sequence_is_still_one() -> None:
    class Leaks(Unpadded):
        def forward(self, values, lengths):
            return super().forward(values, lengths) + values.mean(dim=1)[:, :2]

    report = judged(Leaks())
    assert (report.verdict, report.min_length) == ("leak", 5)


@pytest.mark.long
@pytest.mark.parametrize("exhibit", [one for one in TORCH_LEAKING if one.shortest > 1], ids=lambda one: one.name)
def test_the_shortest_sequence_of_a_gallery_model_is_the_one_its_author_gives(exhibit) -> None:
    result = CliRunner().invoke(main, ["check", exhibit.target, "--json"])
    assert json.loads(result.output)["min_length"] == exhibit.shortest
    assert json.loads(result.output)["verdict"] == "leak"
