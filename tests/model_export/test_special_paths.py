"""The paths that a model takes for some batches only: one row, rows of one length, whole blocks, NaN in company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
from lengthwise.errors import ConfigurationError
from lengthwise_export.checking.report import Report


class Pooled(nn.Module):
    """A layer for each step and a masked mean; what differs is `pool`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.size(1)) < lengths[:, None]
        return self.head(self.pool(torch.tanh(self.step(x)), valid, lengths))

    def pool(self, h: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return torch.where(valid[..., None], h, 0.0).sum(1) / lengths[:, None]


def pooling(pool) -> nn.Module:
    return type("Pooling", (Pooled,), {"pool": lambda self, *given: pool(Pooled.pool, self, *given)})()


def judged(module: nn.Module, **options: object) -> Report:
    return lengthwise_export.check(module, features=3, **options)


def failed(report: Report) -> set[str]:
    return {one.name for one in report.trials if not one.passed}


def at(blocks):
    """A path for some widths, which doubles the answer."""
    return pooling(lambda pool, self, h, *rest: pool(self, h, *rest) * (1 + blocks(h.size(1))))


def test_every_check_tries_the_widths_of_blocks_and_one_step_beside_them() -> None:
    report = judged(Pooled())
    assert {31, 32, 33, 127, 128, 129} <= {*report.ran.widths}
    assert {31, 32, 33} <= {*judged(Pooled(), max_length=40).ran.widths}
    assert max(judged(Pooled(), max_length=40).ran.widths) == 40


@pytest.mark.sampled(6)
@pytest.mark.parametrize("width", [31, 32, 33, 127, 128, 129])
def test_a_path_for_one_width_is_found(width: int) -> None:
    report = judged(at(lambda wide: wide == width))
    assert report.verdict == "leak"
    assert failed(report) == {f"beside a sequence of {width} steps"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("padded", [True, False])
def test_a_path_for_rows_of_one_length_is_found(padded: bool) -> None:
    def pool(usual, self, h, valid, lengths):
        is_equal = len(h) > 1 and lengths.min() == lengths.max() and (lengths[0] < h.size(1)) == padded
        return usual(self, h, valid, lengths) * (2 if is_equal else 1)

    report = judged(pooling(pool))
    assert report.verdict == "leak"
    assert ("rows of one length" if padded else "rows of one length, without padding") in failed(report)


def test_a_path_for_one_padded_row_is_found() -> None:
    def pool(usual, self, h, valid, lengths):
        return usual(self, h, valid, lengths) * (2 if len(h) == 1 and not valid.all() else 1)

    assert "with 1 row, padded" in failed(judged(pooling(pool)))


def test_what_is_random_for_a_row_alone_is_not_blamed_on_padding() -> None:
    def pool(usual, self, h, valid, lengths):
        return usual(self, h, valid, lengths) + (torch.rand(1) if len(h) == 1 else 0.0)

    report = judged(pooling(pool))
    assert report.verdict == "uncheckable"
    assert "not the same answer twice" in report.reason
    assert "torch.rand(1)" in report.reason


def test_what_is_random_for_long_rows_alone_is_not_blamed_on_padding() -> None:
    def pool(usual, self, h, valid, lengths):
        return usual(self, h, valid, lengths) + (torch.rand(1) if h.size(1) > 14 and len(h) == 1 else 0.0)

    report = judged(pooling(pool))
    assert report.verdict == "uncheckable"
    assert "not the same answer twice" in report.reason


def test_noise_in_the_padding_that_reaches_an_answer_is_a_leak() -> None:
    def pool(usual, self, h, valid, lengths):
        return torch.where(valid[..., None], h, torch.randn_like(h)).sum(1) / lengths[:, None]

    assert judged(pooling(pool)).verdict == "leak"


def test_a_model_that_is_not_the_same_twice_is_not_blamed_for_nan_in_company() -> None:
    def pool(usual, self, h, valid, lengths):
        return usual(self, h, valid, lengths) + torch.rand(1) + (0.0 if valid.all() else float("nan"))

    report = judged(pooling(pool))
    assert report.verdict == "uncheckable"
    assert "not the same answer twice" in report.reason


def test_nan_at_one_width_only_is_a_leak_where_it_begins() -> None:
    def pool(usual, self, h, valid, lengths):
        fill = float("-inf") if h.size(1) == 128 else -1e4
        weights = torch.zeros(len(h), h.size(1), h.size(1)).masked_fill(~(valid[:, :, None] & valid[:, None]), fill)
        attended = weights.softmax(-1) @ h  # NaN begins here
        return (attended * valid[..., None]).sum(1) / lengths[:, None]

    report = judged(pooling(pool))
    (leak,) = report.leaks
    assert report.verdict == "leak"
    assert "not finite in a padded batch" in report.reason
    assert leak.location is not None
    assert leak.location.source.endswith("# NaN begins here")
    assert leak.trial == "beside a sequence of 128 steps"


def codes(report: Report) -> list[str]:
    return [leak.cause.code for leak in report.leaks]


def attends(read):
    """Attention whose mask is what `read` makes of the valid steps, and the mean of the valid steps behind it."""

    def pool(usual, self, h, valid, lengths):
        attended = torch.nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=read(valid)[:, None])
        return usual(self, h + attended, valid, lengths)

    return pooling(pool)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "module",
    [
        attends(lambda valid: ~valid),
        pooling(lambda usual, self, h, valid, n: h.masked_fill(valid[..., None], 0.0).sum(1) / n[:, None]),
        pooling(lambda usual, self, h, valid, n: h.masked_fill(valid[..., None], -1e9).amax(1)),
        pooling(lambda usual, self, h, valid, n: usual(self, h, ~valid, n)),
        pooling(
            lambda usual, self, h, valid, n: (
                h * h.sum(-1).masked_fill(valid, -1e9).softmax(1)[..., None] * (1 + h.mean(-1, keepdim=True))
            ).sum(1)
        ),
    ],
    ids=["attention", "sum", "maximum", "mean", "weights"],
)
def test_a_mask_that_is_the_wrong_way_round_is_told_so(module: nn.Module) -> None:
    report = judged(module)
    assert report.verdict == "leak"
    assert codes(report)[0] == "LW105"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("padding", ["left", "both"])
def test_an_inverted_mask_is_told_so_whatever_side_the_padding_is_on(padding: str) -> None:
    class Inverted(Pooled):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = torch.tanh(self.step(x))
            h = h + torch.nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=~mask[:, None])
            return self.head(torch.where(mask[..., None], h, 0.0).sum(1))

    assert codes(judged(Inverted(), padding=padding))[:1] == ["LW105"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("module", "code"),
    [
        (attends(torch.ones_like), "LW101"),
        (pooling(lambda usual, self, h, valid, n: h.sum(1) / n[:, None]), "LW202"),
        (pooling(lambda usual, self, h, valid, n: h.amax(1) / n[:, None]), "LW203"),
    ],
    ids=["attention", "sum", "maximum"],
)
def test_a_mask_that_is_missing_is_not_called_inverted(module: nn.Module, code: str) -> None:
    assert codes(judged(module)) == [code]


def test_lengths_that_no_answer_depends_on_are_said_beside_the_rule_of_the_operator() -> None:
    report = judged(pooling(lambda usual, self, h, valid, n: h.mean(1)))
    assert codes(report) == ["LW201"]
    assert "`lengths` is taken and never used" in report.leaks[0].cause.why


def test_nan_of_padded_queries_is_told_so() -> None:
    def pool(usual, self, h, valid, lengths):
        scores = (h @ h.mT).masked_fill(~(valid[:, :, None] & valid[:, None]), float("-inf"))
        return ((scores.softmax(-1) @ h) * valid[..., None]).sum(1) / lengths[:, None]

    assert codes(judged(pooling(pool))) == ["LW108"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("block", [8, 16, 32, 64])
def test_a_path_for_whole_blocks_is_told_so(block: int) -> None:
    report = judged(at(lambda wide: wide % block == 0))
    assert codes(report) == ["LW804"]
    assert "128" in report.leaks[0].cause.why


@pytest.mark.sampled(4)
@pytest.mark.parametrize("width", [31, 33, 127, 129])
def test_a_path_for_another_width_is_no_path_for_blocks(width: int) -> None:
    assert codes(judged(at(lambda wide: wide == width))) == ["LW207"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("alone", [True, False])
def test_a_mask_that_is_skipped_for_rows_of_one_length_is_told_so(alone: bool) -> None:
    def pool(usual, self, h, valid, lengths):
        is_skipped = (len(h) > 1 or alone) and lengths.min() == lengths.max()
        return h.mean(1) if is_skipped else usual(self, h, valid, lengths)

    report = judged(pooling(pool))
    assert codes(report) == ["LW104"]


@pytest.mark.long
def test_the_line_is_that_of_the_way_for_rows_of_one_length() -> None:
    def pool(usual, self, h, valid, lengths):
        causal = torch.ones(h.size(1), h.size(1)).tril().bool()
        if len(h) > 1 and valid.all():
            h = torch.nn.functional.scaled_dot_product_attention(h, h, h)  # without a mask
        else:
            mask = valid[:, None] & causal
            h = torch.nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=mask)
        return usual(self, h, valid, lengths)

    (leak,) = judged(pooling(pool)).leaks
    assert leak.location is not None
    assert (leak.code, leak.location.source.endswith("# without a mask")) == ("LW104", True)


def test_a_mask_that_is_skipped_where_no_row_has_padding_is_sound() -> None:
    def pool(usual, self, h, valid, lengths):
        return h.mean(1) if valid.all() else usual(self, h, valid, lengths)

    assert judged(pooling(pool)).verdict == "sound"


@pytest.mark.long
def test_a_path_for_one_row_is_no_mask_skipped_for_equal_lengths() -> None:
    def pool(usual, self, h, valid, lengths):
        return h.amax(1) if len(h) == 1 else usual(self, h, valid, lengths)

    assert codes(judged(pooling(pool))) != ["LW104"]


class Tokens(nn.Module):
    """Embeddings and a mean over what `read` makes of the ids and the valid steps."""

    VOCABULARY = 30

    def __init__(self, read) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(self.VOCABULARY, 6)
        self.head = nn.Linear(6, 2)
        self.read = read

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        read = self.read(ids, torch.arange(ids.size(1)) < lengths[:, None])[..., None]
        return self.head((self.table(ids) * read).sum(1) / read.sum(1).clamp(min=1))


def test_a_comparison_with_an_id_does_not_explain_rows_that_are_not_put_back() -> None:
    class Sorts(Tokens):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            h, order = self.table(ids) + (ids == 2)[..., None], lengths.argsort(descending=True)
            valid = torch.arange(ids.size(1)) < lengths[:, None]
            return self.head(torch.where(valid[..., None], h, 0.0).sum(1)[order])

    report = lengthwise_export.check(Sorts(lambda ids, valid: valid), vocabulary=30)
    assert codes(report) == ["LW304"]


@pytest.mark.long
@pytest.mark.parametrize("read", [lambda h: h[:1], lambda h: h[0]], ids=["a part", "an index"])
def test_a_reading_of_the_first_row_is_no_reading_of_a_fixed_step(read) -> None:
    report = judged(pooling(lambda usual, self, h, *rest: (pooled := usual(self, h, *rest)) - read(pooled)))
    assert codes(report) == ["LW204"]


def test_a_layer_that_raises_while_it_is_recorded_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    class Refuses(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            if ids[0, :4].tolist() == [0, 1, 2, 3]:  # all ids in a row, to see which are compared
                raise ValueError
            return super().forward(ids)

    model = Tokens(lambda ids, valid: valid)
    model.table = Refuses(30, 6)
    assert lengthwise_export.check(model, vocabulary=30).verdict == "sound"
    assert not [one for one in recwarn if "hook" in str(one.message)]


def by_id(number: int):
    return Tokens(lambda ids, valid: ids != number)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", [0, 1, 29])
def test_padding_that_is_recognised_by_its_id_leaks(number: int) -> None:
    report = lengthwise_export.check(by_id(number), vocabulary=30)
    (leak,) = report.leaks
    assert (report.verdict, leak.code) == ("leak", "LW106")
    assert f"id {number} (ne at " in leak.cause.why


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("written", "options", "verdict"),
    [
        (1, {}, "sound"),  # the model's own id, which no valid step has
        (1, {"vocabulary": 30}, "leak"),  # which valid steps may have
        (0, {}, "leak"),  # another than the model's own
    ],
)
def test_what_callers_write_into_padding_decides_whether_its_id_may_be_asked_for(
    written: int, options: dict[str, int], verdict: str
) -> None:
    report = lengthwise_export.check(by_id(1), pad_id=written, **options)
    assert report.verdict == verdict
    assert {leak.code for leak in report.leaks} == ({"LW106"} if verdict == "leak" else set())


def test_a_model_with_lengths_that_leaves_out_real_steps_of_an_id_leaks() -> None:
    report = lengthwise_export.check(Tokens(lambda ids, valid: valid & (ids != 0)), vocabulary=30)
    (leak,) = report.leaks
    assert (report.verdict, leak.code, leak.trial) == ("leak", "LW106", "a last step of id 0")
    assert leak.location is not None
    assert "ids != 0" in leak.location.source


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "read",
    [
        lambda ids, valid: valid,
        lambda ids, valid: valid * torch.where(ids == 3, 2.0, 1.0),
        lambda ids, valid: valid * (1 + ((ids == 3).cumsum(1) > 0)),
    ],
    ids=["lengths", "a weight of an id", "behind an id"],
)
def test_a_model_of_tokens_may_compare_ids_for_other_reasons(read) -> None:
    assert lengthwise_export.check(Tokens(read), vocabulary=30).verdict == "sound"
    assert lengthwise_export.check(Tokens(read), vocabulary=30, pad_id=3).verdict == "sound"


def of_many_ids(read) -> Report:
    model = Tokens(read)
    model.table = nn.Embedding(30_000, 6)
    return lengthwise_export.check(model, max_length=64)


@pytest.mark.long
def test_an_id_that_is_looked_for_in_the_whole_batch_is_put_into_other_rows() -> None:
    report = of_many_ids(lambda ids, valid: valid * (1 + ids % 2 * ((ids == 103) & valid).any()))
    assert (report.verdict, failed(report)) == ("leak", {"neighbours of id 103"})
    report = of_many_ids(lambda ids, valid: valid * (1 + ids % 2 * ((ids == 103) & valid).any(1, keepdim=True)))
    assert (report.verdict, failed(report)) == ("sound", set())


@pytest.mark.parametrize("is_of_rows", [True, False])
def test_a_row_that_the_model_refuses_alone_is_no_neighbour(is_of_rows: bool) -> None:
    def read(ids, valid):
        counts = ((ids == 103) & valid).sum(1)
        if (counts > 3).any() if is_of_rows else counts.sum() > 6:
            raise ValueError("too many")
        return valid

    report = of_many_ids(read)
    assert report.verdict == ("sound" if is_of_rows else "leak")
    assert any("left out: neighbours of id 103" in note for note in report.notes) is is_of_rows


@pytest.mark.parametrize("is_lower", [False, True])
def test_a_row_with_nothing_but_a_hidden_id_may_not_read_its_padding(is_lower: bool) -> None:
    class Attends(Tokens):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            y, valid = self.table(ids), torch.arange(ids.size(1)) < lengths[:, None]
            scores = (y @ y.mT).masked_fill(~(valid & (ids != 103))[:, None], -1e9)
            if is_lower:  # than what hides the id, so that only steps of the sequence are left in such a row
                scores = scores.masked_fill(~valid[:, None], torch.finfo(scores.dtype).min)
            y = y + scores.softmax(-1) @ y
            return self.head(torch.where(valid[..., None], y, 0.0).sum(1) / lengths[:, None])

    model = Attends(None)
    model.table = nn.Embedding(30_000, 6)
    report = lengthwise_export.check(model, max_length=64)
    assert report.verdict == ("sound" if is_lower else "leak")
    assert failed(report) == (set() if is_lower else {"alone, all steps of id 103"})
    assert [leak.code for leak in report.leaks] == ([] if is_lower else ["LW102"])


def test_a_row_with_nothing_but_a_hidden_id_may_have_no_answer() -> None:
    class Refuses(Tokens):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            kept = (torch.arange(ids.size(1)) < lengths[:, None]) & (ids != 103)
            if not kept.any(1).all():
                raise ValueError("no step is left")
            return super().forward(ids, lengths)

    model = Refuses(lambda ids, valid: valid)
    model.table = nn.Embedding(30_000, 6)
    assert lengthwise_export.check(model, max_length=64).verdict == "sound"


def test_a_padding_id_is_of_tokens_and_in_the_vocabulary() -> None:
    with pytest.raises(ConfigurationError, match="--pad-id is for models of tokens"):
        judged(Pooled(), pad_id=0)
    with pytest.raises(ConfigurationError, match="--pad-id 30 is not in the vocabulary"):
        lengthwise_export.check(by_id(0), pad_id=30)


class Normalised(nn.Module):
    """A batch norm over steps, over all or over the valid ones, and every kind of dropout."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked = masked
        self.norm = nn.BatchNorm1d(3)
        self.rnn = nn.GRU(3, 6, 2, batch_first=True, dropout=0.5)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.size(1)) < lengths[:, None]
        h = torch.zeros_like(x)
        if self.masked:
            h[valid] = self.norm(x[valid])
        else:
            h = self.norm(x.mT).mT  # over padding
        h = self.rnn(torch.where(valid[..., None], h, 0.0))[0]
        h = torch.where(valid[..., None], h, 0.0)
        h = h + self.attention(h, h, h, key_padding_mask=~valid, need_weights=False)[0]
        h = torch.nn.functional.dropout(h, 0.5, self.training)
        return self.head(torch.where(valid[..., None], h, 0.0).sum(1) / lengths[:, None])


def test_training_mode_shows_batch_statistics_and_leaves_the_module() -> None:
    module = Normalised(masked=False)
    mean = module.norm.running_mean.clone()
    report = judged(module, train=True, max_length=60)
    (leak,) = report.leaks
    assert (report.verdict, leak.code) == ("leak", "LW501")
    assert leak.location is not None
    assert leak.location.source.endswith("# over padding")
    assert torch.equal(module.norm.running_mean, mean)


@pytest.mark.long
def test_valid_batch_statistics_and_dropout_are_sound_in_training_mode() -> None:
    assert judged(Normalised(masked=True), train=True, max_length=60).verdict in ("sound", "warning")
    assert judged(Normalised(masked=False), max_length=60).verdict in ("sound", "warning")


def test_training_mode_is_of_torch_modules() -> None:
    with pytest.raises(ConfigurationError, match="--train is for torch modules"):
        lengthwise_export.check("service/lengthwise/models/japanese-vowels/1", train=True)


def saturated(h: Tensor, valid: Tensor) -> Tensor:
    weights = (99 * h[..., 0]).masked_fill(~valid, -1e9).softmax(1)
    return (h * weights[..., None]).sum(1)


def last_step(h: Tensor, valid: Tensor) -> Tensor:
    return h[torch.arange(len(h)), valid.sum(1) - 1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("pool", "is_unread"),
    [
        (lambda usual, self, h, valid, n: usual(self, h, valid & (torch.arange(h.size(1)) < n[:, None] - 1), n), True),
        (lambda usual, self, h, valid, n: usual(self, h, valid, n), False),
        (lambda usual, self, h, valid, n: h.masked_fill(~valid[..., None], -9.0).amax(1), False),
        (lambda usual, self, h, valid, n: last_step(h, valid), False),
        (lambda usual, self, h, valid, n: h[:, 0], False),
        (lambda usual, self, h, valid, n: usual(self, h.relu(), valid, n), False),
        (lambda usual, self, h, valid, n: usual(self, h[:, ::4], valid[:, ::4], -(-n // 4)), False),
        (lambda usual, self, h, valid, n: saturated(h, valid), False),
    ],
    ids=["one too few", "mean", "max", "last", "first", "relu", "strided", "saturated attention"],
)
def test_a_last_step_that_no_answer_reads_is_a_note(pool, is_unread: bool) -> None:
    report = judged(pooling(pool), max_length=60)
    assert report.verdict in ("sound", "warning")
    assert any(note.startswith("LW210: ") for note in report.notes) == is_unread
