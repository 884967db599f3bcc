"""Models that take several sequences in one row, as their users write them; each leak has a cured twin."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.layout_models import mean_of_each, model, segments_of


def attention():
    return {"qkv": nn.Linear(5, 48), "head": nn.Linear(16, 3)}


def mlp():
    return {"dense": nn.Linear(5, 16), "head": nn.Linear(16, 3)}


def decoder():
    return {
        "tokens": nn.Embedding(50, 16),
        "positions": nn.Embedding(600, 16),
        "attention": nn.MultiheadAttention(16, 2, batch_first=True),
        "head": nn.Linear(16, 3),
    }


def scan():
    return {"decay": nn.Linear(5, 8), "gain": nn.Linear(5, 8), "head": nn.Linear(8, 3)}


def causal(steps):
    return torch.ones(steps, steps, dtype=torch.bool).tril()


def attended(self, x, allowed):
    q, k, v = self.qkv(x).chunk(3, -1)
    return q, k, v, allowed


def last_of_each(x, cu_seqlens):
    return x[0, cu_seqlens[1:].long() - 1]


@model("cu_seqlens", attention, rule="LW702")
def attention_over_the_row(self, x, cu_seqlens):
    q, k, v = self.qkv(x).chunk(3, -1)
    hidden = F.scaled_dot_product_attention(q, k, v)  # leak
    return self.head(last_of_each(hidden, cu_seqlens))


@model("cu_seqlens", attention, rule="LW702")
def causal_attention_over_the_row(self, x, cu_seqlens, max_seqlen):
    q, k, v = self.qkv(x).chunk(3, -1)
    hidden = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # leak
    return self.head(last_of_each(hidden, cu_seqlens))


@model("cu_seqlens", attention)
def attention_in_blocks(self, x, cu_seqlens, max_seqlen):
    q, k, v = self.qkv(x).chunk(3, -1)
    segments = segments_of(cu_seqlens, x.size(1))
    hidden = F.scaled_dot_product_attention(q, k, v, attn_mask=causal(x.size(1)) & (segments[:, None] == segments))
    return self.head(last_of_each(hidden, cu_seqlens))


@model("cu_seqlens", attention)
def attention_of_each_by_itself(self, x, cu_seqlens):
    """As a kernel for ragged rows does."""
    answers = []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = self.qkv(x[:, start:end]).chunk(3, -1)
        answers.append(F.scaled_dot_product_attention(q, k, v).mean(1))
    return self.head(torch.cat(answers))


@model("segment_ids", attention, rule="LW702")
def sliding_window_over_borders(self, x, segment_ids):
    q, k, v = self.qkv(x).chunk(3, -1)
    place = torch.arange(x.size(1))
    near = (place[:, None] - place).abs() < 3
    return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=near))  # leak


@model("segment_ids", attention)
def sliding_window_in_segments(self, x, segment_ids):
    q, k, v = self.qkv(x).chunk(3, -1)
    place = torch.arange(x.size(1))
    near = (place[:, None] - place).abs() < 3
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=near & same))


@model("segment_ids", scan, rule="LW701")
def segments_never_reach_the_scan(self, x, segment_ids):
    decay, gain, state, states = self.decay(x).sigmoid(), self.gain(x), torch.zeros(1, 8), []
    for step in range(x.size(1)):
        state = decay[:, step] * state + gain[:, step]  # leak
        states.append(state)
    return self.head(torch.stack(states, 1))


@model("segment_ids", scan)
def scan_that_begins_again(self, x, segment_ids):
    begins = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    decay = self.decay(x).sigmoid().masked_fill(begins[..., None], 0.0)
    gain, state, states = self.gain(x), torch.zeros(1, 8), []
    for step in range(x.size(1)):
        state = decay[:, step] * state + gain[:, step]
        states.append(state)
    return self.head(torch.stack(states, 1))


@model("cu_seqlens", lambda: {"rnn": nn.GRU(5, 16, batch_first=True), "head": nn.Linear(16, 3)}, rule="LW701")
def state_over_packed_documents(self, x, cu_seqlens):
    hidden, _ = self.rnn(x)  # leak
    return self.head(last_of_each(hidden, cu_seqlens))


@model("cu_seqlens", lambda: {"rnn": nn.GRU(5, 16, batch_first=True), "head": nn.Linear(16, 3)})
def rows_made_of_documents(self, x, cu_seqlens):
    lengths = cu_seqlens.diff().long()
    rows = nn.utils.rnn.pad_sequence(list(x[0, : cu_seqlens[-1]].split(lengths.tolist())), batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
    _, state = self.rnn(packed)
    return self.head(state[-1])


@model("segment_ids", mlp, rule="LW701")
def cumulative_sum_over_borders(self, x, segment_ids):
    return self.head(self.dense(x).relu().cumsum(1) / 10)  # leak


@model("segment_ids", mlp)
def cumulative_sum_of_each(self, x, segment_ids):
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & causal(x.size(1))
    return self.head(same.float() @ self.dense(x).relu() / 10)


@model("segment_ids", lambda: {"conv": nn.Conv1d(5, 16, 3, padding=1), "head": nn.Linear(16, 3)}, rule="LW703")
def convolution_over_borders(self, x, seq_idx):
    hidden = self.conv(x.mT).mT.relu()  # leak
    return self.head(mean_of_each(hidden[0], seq_idx[0], int(seq_idx.max()) + 1))


@model("segment_ids", lambda: {"taps": nn.Parameter(torch.randn(3, 5, 16) / 3), "head": nn.Linear(16, 3)})
def convolution_in_segments(self, x, seq_idx):
    hidden = x @ self.taps[1]
    for tap, shift in ((0, 1), (2, -1)):
        same = F.pad(seq_idx, (1, 1), value=-1).roll(shift, 1)[:, 1:-1] == seq_idx
        hidden = hidden + (x.roll(shift, 1) @ self.taps[tap]) * same[..., None]
    return self.head(mean_of_each(hidden.relu()[0], seq_idx[0], int(seq_idx.max()) + 1)[1:])


@model("position_ids", mlp, rule="LW703")
def token_shift_over_borders(self, x, position_ids):
    hidden = self.dense(x).relu()
    before = F.pad(hidden, (0, 0, 1, 0))[:, :-1]  # leak
    return self.head(hidden + before)


@model("position_ids", mlp)
def token_shift_where_positions_go_on(self, x, position_ids):
    hidden = self.dense(x).relu()
    before = F.pad(hidden, (0, 0, 1, 0))[:, :-1].masked_fill((position_ids == 0)[..., None], 0.0)
    return self.head(hidden + before)


@model("cu_seqlens", mlp, rule="LW705")
def centred_over_the_row(self, x, cu_seqlens):
    hidden = self.dense(x).relu()
    hidden = hidden - hidden.mean(1, keepdim=True)  # leak
    return self.head(mean_of_each(hidden[0], segments_of(cu_seqlens, x.size(1)), len(cu_seqlens) - 1))


@model("cu_seqlens", mlp)
def centred_over_each(self, x, cu_seqlens):
    hidden, segments, count = self.dense(x).relu()[0], segments_of(cu_seqlens, x.size(1)), len(cu_seqlens) - 1
    mean = mean_of_each(hidden, segments, count + 1)
    return self.head(mean_of_each((hidden - mean[segments]).relu(), segments, count))


@model("cu_seqlens", mlp, rule="LW705")
def steps_behind_the_last_are_in_it(self, x, cu_seqlens):
    hidden, count = self.dense(x).relu()[0], len(cu_seqlens) - 1
    segments = torch.bucketize(torch.arange(x.size(1)), cu_seqlens[1:-1].long(), right=True)
    total = torch.zeros(count, 16).index_add(0, segments, hidden)  # leak
    return self.head(total / 10)


@model("cu_seqlens", mlp)
def steps_behind_the_last_are_left_out(self, x, cu_seqlens):
    hidden, count = self.dense(x).relu()[0], len(cu_seqlens) - 1
    segments = segments_of(cu_seqlens, x.size(1))
    total = torch.zeros(count + 1, 16).index_add(0, segments, hidden)
    return self.head(total[:count] / 10)


@model("position_ids", decoder, rule="LW704", vocabulary=50)
def positions_begin_again_and_attention_does_not(self, input_ids, position_ids):
    x = self.tokens(input_ids) + self.positions(position_ids)
    x = x + self.attention(x, x, x, attn_mask=~causal(x.size(1)))[0]  # leak
    return self.head(x)


@model("position_ids", decoder, vocabulary=50)
def attention_begins_again_with_positions(self, input_ids, position_ids):
    x = self.tokens(input_ids) + self.positions(position_ids)
    segments = (position_ids[0] == 0).cumsum(0)
    x = x + self.attention(x, x, x, attn_mask=~causal(x.size(1)) | (segments[:, None] != segments))[0]
    return self.head(x)


@model("cu_seqlens", decoder, rule="LW706", vocabulary=50)
def positions_over_the_row(self, input_ids, cu_seqlens):
    segments = segments_of(cu_seqlens, input_ids.size(1))
    place = torch.arange(input_ids.size(1))  # leak
    x = self.tokens(input_ids) + self.positions(place)
    x = x + self.attention(x, x, x, attn_mask=segments[:, None] != segments)[0]
    return self.head(last_of_each(x, cu_seqlens))


@model("cu_seqlens", decoder, vocabulary=50)
def positions_of_each(self, input_ids, cu_seqlens):
    segments = segments_of(cu_seqlens, input_ids.size(1))
    place = torch.arange(input_ids.size(1)) - cu_seqlens.long()[segments]
    x = self.tokens(input_ids) + self.positions(place)
    x = x + self.attention(x, x, x, attn_mask=segments[:, None] != segments)[0]
    return self.head(last_of_each(x, cu_seqlens))


@model("cu_seqlens", mlp, rule="LW703 LW705 LW206")
def one_step_past_the_end(self, x, cu_seqlens):
    hidden = F.pad(self.dense(x).relu(), (0, 0, 0, 1))
    return self.head(hidden[0, cu_seqlens[1:].long()])  # leak


@model("cu_seqlens", mlp)
def last_step_of_each(self, x, cu_seqlens):
    return self.head(self.dense(x).relu()[0, cu_seqlens[1:].long() - 1])


@model("segment_ids", lambda: {**mlp(), "score": nn.Linear(16, 1)}, rule="LW702 LW705")
def weights_over_the_row(self, x, segment_ids):
    hidden = self.dense(x).relu()[0]
    weights = self.score(hidden).softmax(0)  # leak
    total = torch.zeros(int(segment_ids.max()) + 1, 16).index_add(0, segment_ids[0], weights * hidden)
    return self.head(total[1:])


@model("segment_ids", lambda: {**mlp(), "score": nn.Linear(16, 1)})
def weights_of_each_segment(self, x, segment_ids):
    hidden, count = self.dense(x).relu()[0], int(segment_ids.max()) + 1
    score = self.score(hidden).tanh().exp()
    sums = torch.zeros(count, 1).index_add(0, segment_ids[0], score)
    total = torch.zeros(count, 16).index_add(0, segment_ids[0], score * hidden)
    return self.head((total / sums.clamp(min=1e-9))[1:])


@model("cu_seqlens", mlp, rule="LW703")
def steps_without_rows_shifted(self, x, cu_seqlens):
    """Takes [steps, features]."""
    assert x.dim() == 2
    hidden = self.dense(x).relu()
    hidden = hidden + torch.cat((hidden[:1], hidden[:-1]))  # leak
    return self.head(hidden)


@model("cu_seqlens", mlp)
def steps_without_rows(self, x, cu_seqlens):
    assert x.dim() == 2
    return self.head(self.dense(x).relu())
