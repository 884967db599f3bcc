"""`check --packed`: sequences in one row, each against itself alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise_export.layouts import StepLayout
from lengthwise_export.options import Packing


def segments_of(cu_seqlens: Tensor, steps: int) -> Tensor:
    return torch.bucketize(torch.arange(steps), cu_seqlens[1:].long(), right=True)


def mean_of_each(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    borders = zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)
    return torch.stack([hidden[start:end].mean(0) for start, end in borders])


class Attention(nn.Module):
    """Isolates sequences by `cu_seqlens`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection, self.head = nn.Linear(5, 48), nn.Linear(16, 3)

    def block(self, segments):
        return segments[:, None] == segments[None]

    def forward(self, x, cu_seqlens, max_seqlen):
        assert isinstance(max_seqlen, int)
        q, k, v = self.projection(x)[0].chunk(3, -1)
        hidden = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=self.block(segments_of(cu_seqlens, x.size(1)))
        )[0]
        return self.head(mean_of_each(hidden, cu_seqlens))


class CausalOnly(Attention):
    def block(self, segments):
        return torch.ones(len(segments), len(segments), dtype=torch.bool).tril()


class RowOfSteps(nn.Module):
    """Takes `[steps, features]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, 16), nn.Linear(16, 3)

    def shifted(self, hidden, cu_seqlens):
        return hidden

    def forward(self, x, cu_seqlens):
        hidden = self.hidden(x).relu()
        return self.head(mean_of_each(hidden + self.shifted(hidden, cu_seqlens), cu_seqlens))


class ShiftedOverBorders(RowOfSteps):
    def shifted(self, hidden, cu_seqlens):
        return F.pad(hidden, (0, 0, 1, 0))[:-1]


class CentredOverTheRow(RowOfSteps):
    def shifted(self, hidden, cu_seqlens):
        return -hidden.mean(0)


class Scan(nn.Module):
    """A state space in a loop that answers each step, and begins again at each segment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decay, self.gain, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def begins(self, segment_ids):
        return F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)

    def forward(self, x, segment_ids):
        decay = self.decay(x).sigmoid().masked_fill(self.begins(segment_ids)[..., None], 0.0)
        gain, state, states = self.gain(x), torch.zeros(1, 8), []
        for step in range(x.size(1)):
            state = decay[:, step] * state + gain[:, step]
            states.append(state)
        return self.head(torch.stack(states, 1))


class SegmentsNeverReachTheScan(Scan):
    def begins(self, segment_ids):
        return torch.zeros_like(segment_ids, dtype=torch.bool)


class StateOverDocuments(nn.Module):
    """A recurrence over all packed documents, pooled by segment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(5, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x, seq_idx):
        hidden, _ = self.rnn(x)
        count = int(seq_idx.max()) + 1
        total = torch.zeros(count, 16).index_add(0, seq_idx[0], hidden[0])
        return self.head(total / torch.bincount(seq_idx[0], minlength=count).clamp(min=1)[:, None])


class PartsOfTheRow(nn.Module):
    """Answers each part of the row: the sequences, then the steps behind the last, whose number of a segment is 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.rnn, self.head = nn.Linear(5, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def mixed(self, hidden):
        return hidden

    def forward(self, x, segment_ids):
        hidden = self.mixed(self.hidden(x).tanh())
        counts = segment_ids[0].unique_consecutive(return_counts=True)[1]
        return self.head(torch.stack([part.mean(0) for part in hidden[0].split(counts.tolist())]))


class PartsByNumber(PartsOfTheRow):
    """Answers segment 0 last, too, whether the row has such steps or not."""

    def forward(self, x, segment_ids):
        index = (segment_ids[0] - 1) % (segment_ids.max() + 1)
        hidden, counts = self.mixed(self.hidden(x).tanh()), index.bincount(minlength=int(segment_ids.max()) + 1)
        return self.head(torch.zeros(len(counts), 8).index_add(0, index, hidden[0]) / counts.clamp(min=1)[:, None])


class StateOverParts(PartsOfTheRow):
    def mixed(self, hidden):
        return self.rnn(hidden)[0]


class StepBefore(PartsOfTheRow):
    def mixed(self, hidden):
        return hidden - F.pad(hidden, (0, 0, 1, 0))[:, :-1]


class StateOverPartsWithoutTheLast(StateOverParts):
    """Leaves out what it computes for segment 0."""

    def forward(self, x, segment_ids):
        answers = super().forward(x, segment_ids)
        return answers[: int(segment_ids.max())]


class Decoder(nn.Module):
    """Takes token ids and positions, and finds the sequences where positions begin again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.positions = nn.Embedding(50, 16), nn.Embedding(512, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def places(self, position_ids):
        return position_ids

    def apart(self, segments):
        return segments[:, None] != segments[None]

    def forward(self, input_ids, position_ids):
        x = self.embedding(input_ids) + self.positions(self.places(position_ids))
        segments = (position_ids[0] == 0).cumsum(0) - 1
        x = x + self.attention(x, x, x, attn_mask=self.apart(segments))[0]
        last = F.pad(segments[1:] != segments[:-1], (0, 1), value=True)
        return self.head(x[0, last])


class PositionsOnly(Decoder):
    def apart(self, segments):
        return torch.zeros(len(segments), len(segments), dtype=torch.bool)


class CountsOverTheRow(Decoder):
    def places(self, position_ids):
        return torch.arange(position_ids.size(1))


SOUND = [
    (Attention, "cu_seqlens"),
    (RowOfSteps, "cu_seqlens"),
    (Scan, "segment_ids"),
    (PartsOfTheRow, "segment_ids"),
    (PartsByNumber, "segment_ids"),
    (Decoder, "position_ids"),
]
LEAKS = [
    (CausalOnly, "cu_seqlens", "LW702", "F.scaled_dot_product_attention("),
    (ShiftedOverBorders, "cu_seqlens", "LW703", "F.pad(hidden"),
    (CentredOverTheRow, "cu_seqlens", "LW705", "hidden.mean(0)"),
    (SegmentsNeverReachTheScan, "segment_ids", "LW701", "decay[:, step] * state"),
    (StateOverDocuments, "segment_ids", "LW701", "self.rnn(x)"),
    (StateOverParts, "segment_ids", "LW701", "self.rnn(hidden)"),
    (StateOverPartsWithoutTheLast, "segment_ids", "LW701", "self.rnn(hidden)"),
    (StepBefore, "segment_ids", "LW703", "F.pad(hidden"),
    (PositionsOnly, "position_ids", "LW704", "self.attention("),
    (CountsOverTheRow, "position_ids", "LW706", "torch.arange("),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("model", "packed"), SOUND)
def test_a_model_that_keeps_packed_sequences_apart_does_not_leak(model: type[nn.Module], packed: str) -> None:
    report = lengthwise_export.check(model(), packed=packed, max_length=64)
    assert report.verdict in ("sound", "warning"), report  # an attention lets NaN behind the last sequence through
    assert not [trial for trial in report.trials if not trial.passed and trial.change != "poison"]


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("model", "packed", "code", "source"), LEAKS)
def test_a_leak_over_a_border_has_the_rule_and_the_line_where_it_begins(
    model: type[nn.Module], packed: str, code: str, source: str
) -> None:
    report = lengthwise_export.check(model(), packed=packed, max_length=64)
    leak = report.leaks[0]
    assert (report.verdict, leak.cause.code) == ("leak", code)
    assert leak.location is not None
    assert source in leak.location.source


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("model", "is_last"), [(PartsOfTheRow, True), (PartsByNumber, True), (Attention, False)])
def test_a_report_says_that_the_last_answer_is_that_to_the_padding(model: type[nn.Module], is_last: bool) -> None:
    packed: Packing = "segment_ids" if is_last else "cu_seqlens"
    report = lengthwise_export.check(model(), packed=packed, max_length=64)
    assert any("the last answer is left out" in notice for notice in report.notices) is is_last


@pytest.mark.long
def test_the_command_takes_the_form_and_the_name_of_the_argument(tmp_path: Path) -> None:
    file = tmp_path / "packed_model.py"
    file.write_text(
        f"from {__name__} import SegmentsNeverReachTheScan\n"
        "class Named(SegmentsNeverReachTheScan):\n"
        "    def forward(self, x, which):\n"
        "        return super().forward(x, which)\n"
    )
    words = ["check", f"{file}:Named", "--features", "5", "--max-length", "64", "--json", "--packed", "segment_ids"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "--packed-input" in refused.stderr
    result = CliRunner().invoke(main, [*words, "--packed-input", "which"])
    assert json.loads(result.stdout)["leaks"][0]["code"] == "LW701"


def test_packed_rows_are_not_padded_rows() -> None:
    with pytest.raises(ConfigurationError, match="--padding left"):
        lengthwise_export.check(Scan(), packed="segment_ids", padding="left")
    with pytest.raises(ConfigurationError, match="takes no cu_seqlens"):
        lengthwise_export.check(Scan(), packed="cu_seqlens")


def test_a_packed_row_has_sequences_one_behind_the_other_and_padding_last() -> None:
    rows = [np.arange(1, length + 1) for length in (3, 1, 4)]
    batch, layout = pad(rows, width=6), StepLayout(packed="segment_ids")
    batch.steps[0, 3:] = 9
    arranged = layout.arrange(batch)
    assert arranged.steps.tolist() == [[1, 2, 3, 1, 1, 2, 3, 4, 9, 9, 9]]
    assert arranged.positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0, 1, 2]]
    assert arranged.segments.tolist() == [[1, 1, 1, 2, 3, 3, 3, 3, 0, 0, 0]]
    assert arranged.borders.tolist() == [0, 3, 4, 8]
    assert arranged.borders.dtype == np.int32
    each_step = np.arange(11, dtype=np.float32)[None, :, None]
    assert layout.restore(each_step, batch)[..., 0].tolist() == [
        [0, 1, 2, 0, 0, 0],
        [3, 0, 0, 0, 0, 0],
        [4, 5, 6, 7, 0, 0],
    ]
    each_segment = np.arange(4, dtype=np.float32)[:, None]
    assert layout.restore(each_segment, batch).tolist() == [[1], [2], [3]]


def test_features_that_contradict_a_packed_graph_are_a_wrong_call() -> None:
    onnx_parser = pytest.importorskip("onnx.parser")
    graph = onnx_parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1,S,4] x, int64[N] cu_seqlens) => (float[1,S,4] y) '
        "{ y = Relu(x) }"
    )
    with pytest.raises(ConfigurationError, match=r"--features 3 contradicts the graph"):
        lengthwise_export.check(graph, packed="cu_seqlens", features=3)
