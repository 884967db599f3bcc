"""LW210, the note on a last step that is not read: reductions that most steps do not move are no reason for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lengthwise_export
from lengthwise_export.checking import rule

Reduction = Callable[[Tensor, Tensor], Tensor]

REDUCTIONS: dict[str, Reduction] = {  # of values `[rows, width, features]` and a mask `[rows, width, 1]`
    "min, filled": lambda h, valid: h.masked_fill(~valid, torch.finfo(h.dtype).max).amin(1),
    "min, selected": lambda h, valid: torch.where(valid, h, torch.inf).min(dim=1).values,
    "max, filled": lambda h, valid: h.masked_fill(~valid, torch.finfo(h.dtype).min).amax(1),
    "max, selected": lambda h, valid: torch.where(valid, h, -torch.inf).max(dim=1).values,
    "count, as a sum": lambda h, valid: ((h > 0.3) & valid).sum(1).float(),
    "count, of what is not zero": lambda h, valid: torch.where(valid, h, 0.0).relu().count_nonzero(1).float(),
    "any, of truth values": lambda h, valid: ((h > 1.5) & valid).any(dim=1).float(),
    "any, as a largest number": lambda h, valid: ((h > 1.5) & valid).float().amax(1),
    "median, without NaN": lambda h, valid: h.masked_fill(~valid, torch.nan).nanmedian(1).values,
    "median, of what is sorted": lambda h, valid: (
        h.masked_fill(~valid, torch.inf).sort(1).values.take_along_dim((valid.sum(1, True) - 1) // 2, 1).squeeze(1)
    ),
}


# Seeds of weights with which a few random sequences move with a middle step of theirs, and with no last one
SEEDS = {"min": 50, "count": 41, "median": 17}


class Reduced(nn.Module):
    """A layer of one unit, and a reduction over its valid steps, or over those before the last one."""

    def __init__(self, reduction: Reduction, left_out: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.step, self.head, self.reduction, self.left_out = nn.Linear(3, 1), nn.Linear(1, 2), reduction, left_out

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(x.size(1)) < (lengths - self.left_out).clamp(min=1)[:, None]
        return self.head(self.reduction(self.step(x), valid[..., None]))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("left_out", [0, 1], ids=["all steps", "all but the last"])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_an_unread_last_step_is_a_note_whatever_the_reduction_is(name: str, left_out: int) -> None:
    module = Reduced(REDUCTIONS[name], left_out, SEEDS.get(name.partition(",")[0], 0))
    report = lengthwise_export.check(module, max_length=7)
    assert report.verdict == "sound"
    notes = [note for note in report.notes if note.startswith("LW")]
    assert notes == [f"LW210: {rule.rules()['LW210'].why}"] * left_out
