"""Models that are padded on the left, or on both sides, as their users write them; each leak has a cured twin."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gallery.layout_models import model


def decoder():
    return {
        "tokens": nn.Embedding(50, 16),
        "positions": nn.Embedding(300, 16),
        "attention": nn.MultiheadAttention(16, 4, batch_first=True),
        "head": nn.Linear(16, 3),
    }


def rnn():
    return {"rnn": nn.LSTM(5, 16, batch_first=True), "head": nn.Linear(16, 3)}


def conv():
    return {"conv": nn.Conv1d(5, 16, 3, padding=2), "head": nn.Linear(16, 3)}


def mlp():
    return {"dense": nn.Linear(5, 16), "head": nn.Linear(16, 3)}


def attend(self, x, mask):
    """Causal, over valid steps only; a padded query reads itself."""
    width = x.size(1)
    blocked = torch.ones(width, width, dtype=torch.bool).triu(1)[None] | ~mask.bool()[:, None, :]
    blocked = blocked & ~torch.eye(width, dtype=torch.bool)
    return x + self.attention(x, x, x, attn_mask=blocked.repeat_interleave(4, 0))[0]


@dataclass
class Output:
    logits: Tensor


@model("left", decoder, rule="LW602", vocabulary=50)
def positions_by_arange(self, input_ids, attention_mask):
    """Left padding, and positions that no mask reaches."""
    place = torch.arange(input_ids.size(1))  # leak
    x = attend(self, self.tokens(input_ids) + self.positions(place), attention_mask)
    return self.head(x[:, -1])


@model("left", decoder, vocabulary=50)
def positions_by_mask(self, input_ids, attention_mask):
    place = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    x = attend(self, self.tokens(input_ids) + self.positions(place), attention_mask)
    return self.head(x[:, -1])


@model("left", decoder, rule="LW602", vocabulary=50)
def optional_position_ids(self, input_ids, attention_mask=None, position_ids=None, labels=None):
    """As Hugging Face's classes: right if the caller counts."""
    if position_ids is None:
        position_ids = torch.arange(input_ids.size(1)).unsqueeze(0)  # leak
    x = attend(self, self.tokens(input_ids) + self.positions(position_ids), attention_mask)
    return Output(logits=self.head(x)[:, -1])


@model("left", decoder, vocabulary=50)
def counted_position_ids(self, input_ids, attention_mask=None, position_ids=None, labels=None):
    if position_ids is None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
    x = attend(self, self.tokens(input_ids) + self.positions(position_ids), attention_mask)
    return Output(logits=self.head(x)[:, -1])


@model("left", lambda: {**decoder(), "table": nn.Parameter(torch.randn(1, 300, 16))}, rule="LW602", vocabulary=50)
def learned_table_from_the_start(self, input_ids, attention_mask):
    x = self.tokens(input_ids) + self.table[:, : input_ids.size(1)]  # leak
    return self.head(attend(self, x, attention_mask)[:, -1])


@model("left", lambda: {**decoder(), "table": nn.Parameter(torch.randn(1, 300, 16))}, vocabulary=50)
def learned_table_from_the_end(self, input_ids, attention_mask):
    """Counted from the last step, which is one of every sequence."""
    x = self.tokens(input_ids) + self.table[:, : input_ids.size(1)].flip(1)
    return self.head(attend(self, x, attention_mask)[:, -1])


def rotated(x, place):
    angle = place[..., None] / 100 ** (torch.arange(8) / 8)
    one, two = x.chunk(2, -1)
    return torch.cat((one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()), -1)


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)})
def rotary_is_relative(self, x, mask):
    q, k, v = self.qkv(x).chunk(3, -1)
    place = torch.arange(x.size(1)).float()
    allowed = mask[:, None, :] | torch.eye(x.size(1), dtype=torch.bool)
    hidden = F.scaled_dot_product_attention(
        rotated(q, place), rotated(k, place), v.masked_fill(~mask[..., None], 0), attn_mask=allowed
    )
    return self.head(hidden[:, -1])


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)})
def bias_by_distance(self, x, mask):
    q, k, v = self.qkv(x).chunk(3, -1)
    place = torch.arange(x.size(1))
    scores = q @ k.mT / 4 - 0.1 * (place[:, None] - place[None]).abs()
    scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    return self.head((scores.softmax(-1) @ v)[:, -1])


@model("left", decoder, rule="LW101", vocabulary=50)
def attention_without_mask(self, input_ids, attention_mask):
    x = self.tokens(input_ids)
    x = x + self.attention(x, x, x)[0]  # leak
    return self.head(x[:, -1])


@model("left", decoder, vocabulary=50)
def attention_with_mask(self, input_ids, attention_mask):
    x = self.tokens(input_ids)
    x = x + self.attention(x, x, x, key_padding_mask=~attention_mask)[0]
    return self.head(x[:, -1])


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)}, rule="LW101 LW105")
def mask_the_other_way_round(self, x, mask):
    q, k, v = self.qkv(x).chunk(3, -1)
    extended = mask[:, None, :].to(x.dtype) * -1e4
    hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=extended)  # leak
    return self.head(hidden[:, -1])


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)})
def extended_mask(self, x, mask):
    """[rows, 1, 1, width], as of BERT."""
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
    extended = (1.0 - mask[:, None, None, :].float()) * torch.finfo(x.dtype).min
    hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=extended).transpose(1, 2).flatten(2)
    return self.head(hidden[:, -1])


@model("left", decoder, rule="LW206", vocabulary=50)
def index_by_the_sum_of_the_mask(self, input_ids, attention_mask):
    x = attend(self, self.tokens(input_ids), attention_mask)
    last = attention_mask.sum(1) - 1
    return self.head(x[torch.arange(len(x)), last])  # leak


@model("left", decoder, vocabulary=50)
def index_of_the_last_valid_step(self, input_ids, attention_mask):
    x = attend(self, self.tokens(input_ids), attention_mask)
    last = (attention_mask.long() * torch.arange(x.size(1))).argmax(1)
    return self.head(x[torch.arange(len(x)), last])


@model("left", mlp, rule="LW206")
def first_step_as_summary(self, x, mask):
    hidden = self.dense(x).relu()
    return self.head(hidden[:, 0])  # leak


@model("left", mlp)
def first_valid_step_as_summary(self, x, mask):
    hidden = self.dense(x).relu()
    return self.head(hidden[torch.arange(len(x)), mask.int().argmax(1)])


@model("left", rnn, rule="LW301")
def recurrence_through_the_padding(self, x, mask):
    hidden, _ = self.rnn(x)  # leak
    return self.head(hidden[:, -1])


@model("left", rnn)
def recurrence_backwards_only(self, x, mask):
    """From the end, padding comes last."""
    hidden, _ = self.rnn(x.flip(1))
    return self.head(hidden.flip(1))


@model("left", rnn, rule="LW306")
def packed_from_the_start(self, x, mask):
    lengths = mask.sum(1)
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)  # leak
    _, (state, _) = self.rnn(rows)
    return self.head(state[-1])


@model("left", rnn)
def packed_from_its_own_start(self, x, mask):
    index = torch.arange(x.size(1)) + mask.int().argmax(1, keepdim=True)
    own = x.gather(1, index.clamp(max=x.size(1) - 1)[..., None].expand_as(x))
    rows = nn.utils.rnn.pack_padded_sequence(own, mask.sum(1), batch_first=True, enforce_sorted=False)
    _, (state, _) = self.rnn(rows)
    return self.head(state[-1])


@model("left", conv, rule="LW401")
def causal_convolution_over_padding(self, x, mask):
    hidden = self.conv(x.mT)[..., : x.size(1)].relu().mT  # leak
    return self.head(hidden)


@model("left", conv)
def causal_convolution_over_zeros(self, x, mask):
    hidden = self.conv(x.masked_fill(~mask[..., None], 0.0).mT)[..., : x.size(1)].relu().mT
    return self.head(hidden)


@model("left", mlp, rule="LW201")
def mean_over_the_width(self, x, mask):
    hidden = self.dense(x).relu()
    return self.head(hidden.mean(1))  # leak


@model("left", mlp)
def mean_over_the_steps(self, x, mask):
    hidden = self.dense(x).relu().masked_fill(~mask[..., None], 0.0)
    return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


@model("left", mlp, rule="LW203")
def largest_of_the_width(self, x, mask):
    return self.head(self.dense(x).amax(1))  # leak


@model("both", mlp)
def largest_of_the_steps(self, x, mask):
    return self.head(self.dense(x).masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(1))


@model("left", lambda: {"gain": nn.Linear(5, 8), "head": nn.Linear(8, 3)}, rule="LW301 LW701")
def scan_from_the_start_of_the_row(self, x, mask):
    gain, state = self.gain(x), torch.zeros(len(x), 8)
    for step in range(x.size(1)):
        state = 0.9 * state + gain[:, step]  # leak
    return self.head(state)


@model("left", lambda: {"gain": nn.Linear(5, 8), "head": nn.Linear(8, 3)})
def scan_of_zeros_in_front(self, x, mask):
    gain, state = self.gain(x).masked_fill(~mask[..., None], 0.0), torch.zeros(len(x), 8)
    for step in range(x.size(1)):
        state = 0.9 * state + gain[:, step]
    return self.head(state)


@model("left", mlp, rule="LW305 LW202")
def cumulative_mean_of_the_row(self, x, mask):
    total = self.dense(x).cumsum(1)  # leak
    return self.head(total / mask.long().cumsum(1).clamp(min=1)[..., None])


@model("left", mlp)
def cumulative_mean_of_the_sequence(self, x, mask):
    total = self.dense(x).masked_fill(~mask[..., None], 0.0).cumsum(1)
    return self.head(total / mask.long().cumsum(1).clamp(min=1)[..., None])


@model("left", mlp, rule="LW303 LW206 LW401")
def token_shift_from_the_padding(self, x, mask):
    hidden = self.dense(x)
    before = hidden.roll(1, 1)  # leak
    return self.head(hidden + 0.5 * before)


@model("left", mlp)
def token_shift_from_zeros(self, x, mask):
    hidden = self.dense(x).masked_fill(~mask[..., None], 0.0)
    before = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
    return self.head(hidden + 0.5 * before)


@model("both", decoder, rule="LW206", vocabulary=50)
def last_step_of_the_row(self, input_ids, attention_mask):
    x = attend(self, self.tokens(input_ids), attention_mask)
    return self.head(x[:, -1])  # leak


@model("both", decoder, vocabulary=50)
def last_step_of_the_sequence(self, input_ids, attention_mask):
    x = attend(self, self.tokens(input_ids), attention_mask)
    last = (attention_mask.long() * torch.arange(x.size(1))).argmax(1)
    return self.head(x[torch.arange(len(x)), last])


@model("both", lambda: {"conv": nn.Conv1d(5, 16, 5, padding=2), "head": nn.Linear(16, 3)}, rule="LW401")
def window_over_both_sides(self, x, mask):
    hidden = self.conv(x.mT).mT.relu()  # leak
    hidden = hidden.masked_fill(~mask[..., None], 0.0)
    return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


@model("both", lambda: {"conv": nn.Conv1d(5, 16, 5, padding=2), "head": nn.Linear(16, 3)})
def window_over_zeros(self, x, mask):
    hidden = self.conv(x.masked_fill(~mask[..., None], 0.0).mT).mT.relu()
    hidden = hidden.masked_fill(~mask[..., None], 0.0)
    return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)}, rule="LW201")
def padding_attends_to_padding(self, x, mask):
    """Equal marks may attend: padded queries read padding, and the mean of the row reads them."""
    q, k, v = self.qkv(x).chunk(3, -1)
    hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :, None] == mask[:, None, :])
    return self.head(hidden.mean(1))  # leak


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)})
def padding_attends_to_padding_and_is_left_out(self, x, mask):
    q, k, v = self.qkv(x).chunk(3, -1)
    hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :, None] == mask[:, None, :])
    return self.head(hidden.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True))


@model("left", lambda: {**mlp(), "config": SimpleNamespace(padding_side="left")}, options={"padding": None})
def said_by_its_configuration(self, x, mask):
    return self.head(self.dense(x)[:, -1])


@model("left", lambda: {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)}, rule="LW201 LW205 LW207 LW601 LW900")
def rotary_and_a_sum_over_the_width(self, x, mask):
    """Rotary angles are others in each width, and right; the divisor is not."""
    q, k, v = self.qkv(x).chunk(3, -1)
    place = torch.arange(x.size(1)).float()
    allowed = mask[:, None, :] | torch.eye(x.size(1), dtype=torch.bool)
    hidden = F.scaled_dot_product_attention(rotated(q, place), rotated(k, place), v, attn_mask=allowed)
    total = hidden.masked_fill(~mask[..., None], 0.0).sum(1)
    return self.head(total / x.size(1))  # leak
