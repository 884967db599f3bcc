"""Pastes the fixes that `lengthwise check` prints, and checks again. `python -m benchmarks.fixes [--json]`.

Each case is a small module with one statement that leaks, as people write it. The fix of the first leak is pasted in
the place of its statement, until the module is sound or a fix is no code to paste. Each statement is tried with steps
first and with rows first, and with lengths and with a mask.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track

import lengthwise_export
from benchmarks import machine, output, pages
from lengthwise.commands.command import Command

PAGE = pages.RESULTS / "fixes.md"
MAX_FIXES = 6

_NET = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.step, self.score, self.head = nn.Linear(3, 6), nn.Linear(6, 1), nn.Linear(6, 2)
        {layers}

    def forward(self, x, {second}):
        h = self.step(x).tanh()
        {body}
        return self.head({result})
"""

_MASK = {
    "lengths": "(torch.arange(x.size({T})) < lengths[:, None])",
    "mask": "mask",
}
"""A mask `[rows, width]`, where a case needs one."""

_LAYOUTS = {
    # T and R: the axes of steps and rows, N: that of steps counted from the end
    "rows first": {"T": "1", "R": "0", "N": "-2", "first": "[:, 0]", "last": "[:, -1]", "rows_first": "True"},
    "steps first": {"T": "0", "R": "1", "N": "-3", "first": "[0]", "last": "[-1]", "rows_first": "False"},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A module that leaks; `{T}` and the other words are those of a layout."""

    cause: str
    statement: str
    result: str  # What goes into the head
    layers: str = "pass"
    layout: str = "rows first"
    second: str = "lengths"

    @property
    def source(self) -> str:
        """The module's file."""
        words = _LAYOUTS[self.layout]
        valid = _MASK[self.second].replace("{T}", words["T"])
        words = words | {"valid": valid if self.layout == "rows first" else f"{valid}.T"}
        layers, body, result = (_filled(text, words) for text in (self.layers, self.statement, self.result))
        body = textwrap.indent(body, " " * 8).strip()
        return _NET.format(layers=layers, second=self.second, body=body, result=result)


def _filled(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text


_SCORES = "s = self.score(h).squeeze(-1)\n"
_WEIGHTED = "(w.unsqueeze(-1) * h).sum({T})"
_POOLED = "(c * {valid}.unsqueeze(-1)).sum({T})"  # of values for each step, at valid steps

_CASES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    # The cause; layers; what goes into the head; the statements
    (
        "mean",
        "self.pool = nn.AdaptiveAvgPool1d(1)",
        "p",
        (
            "p = h.mean({T})",
            "p = torch.mean(h, dim={T})",
            "p = h.mean(dim={N})",
            "p = h.mean(axis={T})",
            "p = torch.mean(h, {T}, keepdim=True).squeeze({T})",
            "p = h.mean(({T}, 2)).unsqueeze(-1).expand(-1, 6)",
            "p = h.mean({T}) * 2 + 1",
            "p = h.nanmean({T})",
            "p = torch.mean(input=h, dim={T})",
            "p = F.relu(h).mean({T}) + h.abs().mean({T})",
            "p = h.mean({T}) if True else h.amax({T})",
        ),
    ),
    ("sum", "pass", "p", ("p = h.sum({T})", "p = torch.sum(h, dim={T})", "p = h.sum(dim={N})", "p = h.sum(axis={T})")),
    (
        "the width, or one number of all lengths",
        "pass",
        "p",
        (
            "p = h.sum({T}) / x.size({T})",
            "p = h.sum(dim={T}) / h.shape[{T}]",
            "p = (h * {valid}.unsqueeze(-1)).sum({T}) / x.shape[{T}]",
            "n = {valid}.sum({T})\np = (h * {valid}.unsqueeze(-1)).sum({T}) / n.max()",
            "n = {valid}.float().sum({T})\np = (h * {valid}.unsqueeze(-1)).sum({T}) / n.mean()",
            "n = (x.abs().sum(-1) != 0).sum({T})\np = (h * {valid}.unsqueeze(-1)).sum({T}) / n[:, None]",
        ),
    ),
    (
        "largest and smallest",
        "pass",
        "p",
        (
            "p = h.max({T}).values",
            "p = h.max({T})[0]",
            "p, _ = h.max({T})",
            "p = torch.max(h, dim={T}).values",
            "p, where = torch.max(h, {T})",
            "p = h.max(dim={N})[0]",
            "p = h.amax({T})",
            "p = torch.amax(h, dim={T})",
            "p = h.min({T}).values",
            "p = torch.amin(h, {T})",
            "p = h.topk(1, {T}).values.squeeze({T})",
            "p = h.topk(1, dim={T}, largest=False).values.squeeze({T})",
            "p = torch.topk(h, 1, {T})[0].squeeze({T})",
            "p = h.sort({T}).values{first}",
            "p = h.sort(dim={T}, descending=True).values{first}",
            "p = torch.sort(h, {T}, True)[0]{first}",
            "p = h.kthvalue(1, {T}).values",
            "p = h.gather({T}, h.argmax({T}, keepdim=True)).squeeze({T})",
        ),
    ),
    (
        "deviation",
        "pass",
        "p",
        (
            "p = h.std({T})",
            "p = torch.std(h, dim={T})",
            "p = h.std({T}, unbiased=False)",
            "p = h.std(dim={T}, correction=0)",
            "p = h.var({T})",
            "p = torch.var(h, {T}, unbiased=False)",
            "p = h.var(dim={N})",
            "p = torch.cat((h.mean({T})[:, :3], h.std({T})[:, :3]), -1)",
            "s, m = torch.std_mean(h, dim={T})\np = s + m",
        ),
    ),
    (
        "middle",
        "pass",
        "p",
        (
            "p = h.median({T}).values",
            "p = torch.median(h, dim={T})[0]",
            "p = h.quantile(0.5, dim={T})",
            "p = torch.quantile(h, 0.25, {T})",
        ),
    ),
    ("logsumexp", "pass", "p", ("p = h.logsumexp({T})", "p = torch.logsumexp(h, dim={T})", "p = h.logsumexp(dim={N})")),
    (
        "norm",
        "pass",
        "p",
        (
            "p = h.norm(dim={T})",
            "p = torch.norm(h, dim={T})",
            "p = torch.linalg.norm(h, dim={T})",
            "p = torch.linalg.vector_norm(h, dim={T})",
            "p = F.normalize(h, dim={T}){first}",
            "p = (h ** 2).sum({T}).sqrt()",
        ),
    ),
    (
        "softmax",
        "self.soft = nn.Softmax(dim={T})",
        _WEIGHTED,
        (
            _SCORES + "w = s.softmax({T})",
            _SCORES + "w = F.softmax(s, {T})",
            _SCORES + "w = F.softmax(s, dim={T})",
            _SCORES + "w = torch.softmax(s, dim={T})",
            _SCORES + "w = torch.softmax(s, {T}, dtype=torch.float32)",
            _SCORES + "w = self.soft(s)",
            _SCORES + "w = nn.Softmax(dim={T})(s)",
            _SCORES + "w = F.log_softmax(s, {T}).exp()",
            _SCORES + "w = F.softmin(s, {T})",
            _SCORES + "w = s.exp() / s.exp().sum({T}, keepdim=True)",
            "w = F.softmax(self.score(h), {T}).squeeze(-1)",
            "w = torch.softmax(\n    self.score(h),\n    dim={T},\n).squeeze(-1)",
            _SCORES + "w = s.softmax({R})",
            _SCORES + "w = F.softmax(s, dim={R})",
        ),
    ),
    (
        "a mask that is too small",
        "pass",
        _WEIGHTED,
        (
            _SCORES + "s = s + (1 - {valid}.float()) * -1\nw = s.softmax({T})",
            _SCORES + "s = 5 * s + (1 - {valid}.float()) * -5\nw = F.softmax(s, {T})",
            "s = self.score(self.step(x)).squeeze(-1) + (1 - {valid}.float()) * -10\nw = s.softmax({T})",
            "s = self.score(self.step(x)).squeeze(-1).masked_fill(~{valid}, -100.0)\nw = torch.softmax(s, {T})",
        ),
    ),
    (
        "matrix product",
        "pass",
        "p",
        (
            "p = (self.score(h).sigmoid().permute({R}, 2, {T}) @ h.transpose(0, {R})).squeeze(1)",
            "p = torch.bmm(self.score(h).sigmoid().permute({R}, 2, {T}), h.transpose(0, {R})).squeeze(1)",
            "g = self.score(h).sigmoid().permute({R}, 2, {T})\np = torch.matmul(g, h.transpose(0, {R})).squeeze(1)",
        ),
    ),
    (
        "einsum",
        "pass",
        "p",
        (
            "p = torch.einsum('bto,bth->bh', self.score(h).sigmoid().transpose(0, {R}), h.transpose(0, {R}))",
            "g = self.score(h).sigmoid().squeeze(-1).transpose(0, {R})\n"
            "p = torch.einsum('bt,bth->bh', g, h.transpose(0, {R}))",
        ),
    ),
    (
        "last step",
        "self.gru = nn.GRU(3, 6, batch_first={rows_first})",
        "p",
        (
            "p = h{last}",
            "p = h.select({T}, -1)",
            "r = h.transpose(0, {R})\np = r[:, -1, :]",
            "r = h.transpose(0, {R})\np = r[..., -1, :]",
            "r = h.transpose(0, {R})\np = r[torch.arange(len(r)), -1]",
            "r = h.transpose(0, {R})\np = r[:, x.size({T}) - 1]",
            "out, state = self.gru(x)\np = out{last}",
            "p = self.gru(x)[0]{last}",
            "p = h.cumsum({T}){last}",
            "p = torch.cumsum(h, dim={T}){last}",
        ),
    ),
    (
        "reversed",
        "self.gru = nn.GRU(6, 6, batch_first={rows_first})",
        "p",
        (
            "p = h.flip({T}){first}",
            "p = torch.flip(h, [{T}]){first}",
            "p = torch.flip(h, dims=({T},)){first}",
            "r = h.flip([{T}])\np = self.gru(r)[0]{first}",
            "p = h.flip({T}).cumsum({T}).flip({T}){first}",
            "p = h.roll(1, {T}){first}",
            "p = torch.roll(h, shifts=1, dims={T}){first}",
        ),
    ),
    (
        "recurrent layer",
        "self.rnns = nn.ModuleList([nn.GRU(3, 6, batch_first={rows_first})])\n"
        "        self.gru = nn.GRU(3, 6, batch_first={rows_first})\n"
        "        self.lstm = nn.LSTM(3, 6, batch_first={rows_first})\n"
        "        self.rnn = nn.RNN(3, 6, nonlinearity='relu', batch_first={rows_first})\n"
        "        self.two = nn.GRU(3, 3, bidirectional=True, batch_first={rows_first})\n"
        "        self.both = nn.LSTM(3, 3, num_layers=2, bidirectional=True, batch_first={rows_first})",
        "p",
        (
            "_, state = self.gru(x)\np = state[-1]",
            "out, state = self.gru(x)\np = state.squeeze(0)",
            "p = self.gru(x)[1][-1]",
            "_, (state, cell) = self.lstm(x)\np = state[-1]",
            "out, (state, cell) = self.lstm(x)\np = cell[0]",
            "_, state = self.rnn(x)\np = state[-1]",
            "_, state = self.rnns[0](x)\np = state[-1]",
            "_, state = self.gru(x, torch.zeros(1, x.size({R}), 6))\np = state[-1]",
            "out, _ = self.two(x)\np = out{first}",
            "_, state = self.two(x)\np = torch.cat((state[-2], state[-1]), 1)",
            "out = self.both(x)[0]\np = out{first}",
            "out, _ = self.both(x)\np = out.mean({T})",
        ),
    ),
    (
        "a recurrent layer over the rows",
        "self.gru = nn.GRU(3, 6, batch_first=not {rows_first})",
        _POOLED,
        ("c, _ = self.gru(x)", "c = self.gru(x)[0]"),
    ),
    (
        "convolution",
        "self.conv = nn.Conv1d(6, 6, 3, padding=1)\n"
        "        self.convs = nn.ModuleList([nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 6, 5, padding='same')])\n"
        "        self.net = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1))",
        "({valid}.unsqueeze(-1) * c.permute(0, 2, 1).transpose(0, {R})).sum({T})",
        (
            "c = self.conv(h.permute({R}, 2, {T}))",
            "c = F.conv1d(h.permute({R}, 2, {T}), self.conv.weight, self.conv.bias, padding=1)",
            "c = h.permute({R}, 2, {T})\nc = F.relu(self.conv(c))",
            "c = h.permute({R}, 2, {T})\nc = self.convs[0](c).relu()\nc = self.convs[1](c).relu()",
            "c = self.net(h.permute({R}, 2, {T}))",
            "c = h.permute({R}, 2, {T})\nfor conv in self.convs:\n    c = conv(c).relu()",
        ),
    ),
    (
        "pooling to one step",
        "self.avg, self.top = nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1)",
        "c.squeeze(2)",
        (
            "c = self.avg(h.permute({R}, 2, {T}))",
            "c = self.top(h.permute({R}, 2, {T}))",
            "c = F.adaptive_avg_pool1d(h.permute({R}, 2, {T}), 1)",
            "c = F.adaptive_max_pool1d(h.permute({R}, 2, {T}), 1)",
        ),
    ),
    (
        "normalisation over the steps",
        "self.norm, self.affine = nn.InstanceNorm1d(6), nn.InstanceNorm1d(6, affine=True)\n"
        "        self.group, self.layer = nn.GroupNorm(2, 6), nn.GroupNorm(1, 6)",
        "c[:, :, 0]",
        (
            "c = self.norm(h.permute({R}, 2, {T}))",
            "c = self.affine(h.permute({R}, 2, {T}))",
            "c = self.group(h.permute({R}, 2, {T}))",
            "c = h.permute({R}, 2, {T})\nc = self.layer(c).relu()",
        ),
    ),
    (
        "attention",
        "self.attn = nn.MultiheadAttention(6, 2, batch_first={rows_first})\n"
        "        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first={rows_first})\n"
        "        self.encoder = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)",
        "c{first}",
        (
            "c, _ = self.attn(h, h, h)",
            "c = self.attn(h, h, h, need_weights=False)[0]",
            "c, weights = self.attn(h, h, h, key_padding_mask=None)",
            "c, _ = self.attn(query=h, key=h, value=h)",
            "c = self.layer(h)",
            "c = self.encoder(h)",
            "c = self.encoder(h, src_key_padding_mask=None)",
            "c = h\nfor layer in self.encoder.layers:\n    c = layer(c)",
        ),
    ),
    (
        "attention by hand",
        "pass",
        "c[:, 0]",
        (
            "r = h.transpose(0, {R})\nc = F.scaled_dot_product_attention(r, r, r)",
            "r = h.transpose(0, {R})[:, None]\nc = F.scaled_dot_product_attention(r, r, r)[:, 0]",
            "r = h.transpose(0, {R})\nc = (r @ r.mT / 2.4).softmax(-1) @ r",
            "r = h.transpose(0, {R})\nc = torch.softmax(torch.bmm(r, r.transpose(1, 2)), dim=-1) @ r",
            "r = h.transpose(0, {R})\ns = torch.einsum('bqd,bkd->bqk', r, r)\nc = F.softmax(s, dim=2) @ r",
        ),
    ),
    (
        "over all rows",
        "pass",
        "c{first}",
        (
            "c = h / h.max()",
            "c = h - torch.mean(h)",
            "c = (h - h.mean()) / h.std()",
            "c = h / h.norm()",
            "c = h / torch.linalg.norm(h)",
            "c = h / 2 / h.std()",
            "c = h - 0.1 - h.mean()",
        ),
    ),
    (
        "NaN at padding",
        "pass",
        "self.step((c * {valid}.unsqueeze(-1)).sum({T}))",
        (
            "c = x / x.norm(dim=-1, keepdim=True)",
            "c = x.abs().log()",
            "c = torch.log(x.abs())",
            "c = x / x.std(-1, keepdim=True)",
            "c = (x.abs() / x.abs().sum(-1, keepdim=True)).sqrt()",
            "both = {valid}.transpose(0, {R})[:, :, None] & {valid}.transpose(0, {R})[:, None, :]\n"
            "r = x.transpose(0, {R})\n"
            "s = (r @ r.mT).masked_fill(~both, float('-inf'))\n"
            "c = (s.softmax(-1) @ r).transpose(0, {R})",
        ),
    ),
)


def cases() -> Iterator[Case]:
    """Every statement, in each layout, with lengths and with a mask."""
    for cause, layers, result, statements in _CASES:
        for statement, layout, second in itertools.product(statements, _LAYOUTS, _MASK):
            yield Case(cause, statement, result, layers, layout, second)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What became of a case."""

    case: Case
    before: str  # The verdict on the module as it is
    fixes: tuple[str, ...]  # Those that were pasted
    after: str  # The verdict on the module with them
    why: str = ""

    @property
    def is_cured(self) -> bool:
        """Whether a leak became none."""
        return self.before == "leak" and self.after in ("sound", "warning")


def pasted(source: str, line: int, fix: str) -> str:
    """The source with a fix in the place of the statement at a line."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    lines, statement = source.splitlines(), around[-1]
    indented = textwrap.indent(fix, " " * statement.col_offset).splitlines()
    return "\n".join([*lines[: statement.lineno - 1], *indented, *lines[statement.end_lineno :]]) + "\n"


def followed(case: Case, folder: Path) -> Row:
    """Pastes fixes until the module is sound."""
    source, verdicts, fixes = case.source, [], []
    for number in range(MAX_FIXES):
        file = folder / f"net_{number}.py"
        file.write_text(source)
        try:
            report = lengthwise_export.check(
                f"{file}:Net", max_length=40, features=3, time_first=case.layout == "steps first"
            )
        except Exception as error:  # a fix that is no code, or breaks the module
            return Row(case, *(verdicts[:1] or ["none"]), tuple(fixes), "none", str(error))
        verdicts.append(report.verdict)
        if report.verdict != "leak" or not report.leaks or report.leaks[0].location is None:
            return Row(case, verdicts[0], tuple(fixes), report.verdict, report.reason)
        fixes.append(report.leaks[0].cause.fix)
        source = pasted(source, report.leaks[0].location.line, fixes[-1])
    return Row(case, verdicts[0], tuple(fixes), "leak", f"after {MAX_FIXES} fixes")


def tried(case: Case) -> Row:
    """What becomes of a case, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return followed(case, Path(folder))


def table(rows: list[Row]) -> str:
    """For each cause, how many statements leak and how many are cured."""
    lines = []
    for cause, group in itertools.groupby(rows, key=lambda row: row.case.cause):
        members = list(group)
        for layout in _LAYOUTS:
            mine = [row for row in members if row.case.layout == layout]
            cured = sum(row.is_cured for row in mine)
            lines.append((cause, layout, str(len(mine)), "all" if cured == len(mine) else str(cured)))
    return pages.table(("cause", "layout", "rows", "cured"), lines)


@click.command(cls=Command)
@output.as_json_or_page(PAGE)
def main(as_json: bool, out: Path | None) -> None:
    """Pastes every fix that a check prints, and checks again."""
    torch.set_num_threads(1)
    bar = track([*cases()], "modules fixed", console=Console(stderr=True), transient=True)
    rows = [tried(case) for case in bar]
    how = "`python -m benchmarks.fixes`: each fix that a check prints, pasted in the place of its statement."
    page = pages.page(machine.facts(), "Fixes, pasted", how, table(rows))
    output.tell(page, [dataclasses.asdict(row) | {"cured": row.is_cured} for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()
