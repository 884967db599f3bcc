"""The paths that a model takes for some batches only: one row, rows of one length, whole blocks, NaN in company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
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


@pytest.mark.parametrize("width", [31, 32, 33, 127, 128, 129])
def test_a_path_for_one_width_is_found(width: int) -> None:
    report = judged(at(lambda wide: wide == width))
    assert report.verdict == "leak"
    assert failed(report) == {f"beside a sequence of {width} steps"}


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
