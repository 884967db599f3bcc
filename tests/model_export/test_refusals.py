"""What is refused is refused for its true cause, in one line that names the user's own."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import lengthwise_export
from lengthwise.errors import LengthwiseError
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing import source_lines
from tests.gallery.torch_models import Factory, network

FEATURES, WIDTH, CLASSES = 4, 64, 3


def flat() -> dict[str, nn.Module]:
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * WIDTH, CLASSES))
    return {"conv": nn.Conv1d(FEATURES, 8, 3, padding=1), "head": head}


@network(0, flat)
def flat_head(self, x):
    """Flattens all steps into one linear layer."""
    return self.head(self.conv(x.mT).relu())


@network(0, flat)
def masked_flat_head(self, x, mask):
    return self.head(self.conv(x.mT).relu() * mask.unsqueeze(1))


@network(0, lambda: {"norm": nn.BatchNorm1d(WIDTH), "head": nn.Linear(FEATURES, CLASSES)})
def norm_over_steps(self, x):
    """Normalises each step by statistics of its own."""
    return self.head(self.norm(x).mean(1))


@network(0, lambda: {"table": nn.Parameter(torch.randn(1, WIDTH, FEATURES)), "head": nn.Linear(FEATURES, CLASSES)})
def added_table(self, x):
    """Adds a table of all positions."""
    return self.head((x + self.table).relu().mean(1))


@network(0, lambda: {"mix": nn.Parameter(torch.randn(WIDTH, WIDTH)), "head": nn.Linear(FEATURES, CLASSES)})
def gated_over_steps(self, x):
    """Mixes the steps with a matrix, which a single step is repeated to fit."""
    return self.head(torch.einsum("bnd,mn->bmd", x, self.mix).mean(1))


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (gated_over_steps, "test_refusals.py"),
        (flat_head, "`head.1` (Linear(in_features=512"),
        (masked_flat_head, "`head.1` (Linear(in_features=512"),
        (norm_over_steps, "`norm` (BatchNorm1d(64"),
        (added_table, "test_refusals.py"),
    ],
)
@pytest.mark.parametrize("max_length", [WIDTH, 2 * WIDTH])
def test_a_model_of_one_width_is_refused_with_the_layer_that_fixes_it(
    kind: Factory, part: str, max_length: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LengthwiseError) as error:
        lengthwise_export.export(kind(), tmp_path / "m", mend=kind is not masked_flat_head, max_length=max_length)
    said = str(error.value)
    assert f"takes {WIDTH} steps only" in said
    assert part in said
    assert "test_refusals.py:" in said
    assert "\n" not in said
    assert capfd.readouterr().err == ""


@network(0, lambda: {"head": nn.Linear(FEATURES, CLASSES)})
def deviation(self, x, lengths):
    """The deviation of the steps, which one step has not."""
    valid, count = step_mask(lengths, x.shape[1]).unsqueeze(-1), lengths.unsqueeze(1).float()
    mean = x.masked_fill(~valid, 0).sum(1) / count
    apart = (x - mean.unsqueeze(1)).masked_fill(~valid, 0)
    return self.head((apart.square().sum(1) / (count - 1)).sqrt() + mean)


@network(0, lambda: {"head": nn.Linear(FEATURES, CLASSES)})
def sign_changes(self, x):
    """Counts changes of sign: none in one step."""
    return self.head((x[:, 1:].sign() != x[:, :-1].sign()).float().sum(1) / 10 + x.mean(1))


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "mend", "shortest"), [(deviation, False, 2), (sign_changes, True, 1)])
def test_nan_below_a_number_of_steps_becomes_the_shortest_length(
    kind: Factory, mend: bool, shortest: int, tmp_path: Path
) -> None:
    published = lengthwise_export.export(kind(), tmp_path / "m", mend=mend, max_length=40)
    assert published.manifest.min_length == shortest


def layers() -> dict[str, nn.Module]:
    project, head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
    return {"project": project, "head": head, "rnn": nn.GRU(FEATURES, 8, batch_first=True, bias=False)}


@network(0, layers)
def right_alone(self, x, mask):
    """Right for a row alone; the way for batches would be right with left padding."""
    if x.shape[0] == 1 and mask.all():
        return self.head(self.rnn(x)[1][-1])
    return self.head(self.rnn(x * mask.unsqueeze(-1))[1][-1])  # leak of right_alone


@network(0, layers)
def right_in_company(self, x, mask):
    """Right in batches; alone it pools in another way."""
    h = self.project(x).tanh()
    if x.shape[0] == 1 and mask.all():
        return self.head(h.mean(1))  # leak of right_in_company
    return self.head(h[torch.arange(x.shape[0]), mask.sum(1) - 1])


@pytest.mark.long
@pytest.mark.parametrize("kind", [right_alone, right_in_company])
def test_another_way_for_a_row_alone_is_a_leak_at_its_line(kind: Factory) -> None:
    module = kind()
    report = lengthwise_export.check(module, max_length=40)
    assert report.verdict == "leak"
    ending = f"# leak of {type(module).__name__}"
    lines = Path(__file__).read_text().splitlines()
    (marked,) = (number for number, line in enumerate(lines, 1) if line.endswith(ending))
    assert {leak.location.line for leak in report.leaks if leak.location is not None} == {marked}


LIBRARY = """
import torch

class Windows(torch.nn.Module):
    def forward(self, x):
        return x * sizes(x)

def sizes(x):
    return len([0] * x.shape[1])  # the line of the library
"""


def of_a_library(part: nn.Module) -> nn.Module:
    """Calls a module of an installed package, whose helper needs the width as a number."""

    @network(0, lambda: {"part": part, "head": nn.Linear(FEATURES, CLASSES)})
    def calling(self, x):
        return self.head(self.part(x).mean(1))  # the user's line

    return calling()


def test_a_refusal_inside_of_a_library_names_the_users_line_and_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "windows_of_others-1.0.dist-info").mkdir(parents=True)
    (site / "windows_of_others").mkdir()
    (site / "windows_of_others" / "__init__.py").write_text("")
    (site / "windows_of_others" / "windows.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(site)
    for name in ("_folders", "_owner_of_folder"):  # what they cached is of the path of modules before
        monkeypatch.setattr(source_lines, name, cache(getattr(source_lines, name).__wrapped__))
    module = of_a_library(importlib.import_module("windows_of_others.windows").Windows())
    with pytest.raises(LengthwiseError) as error:
        lengthwise_export.export(module, tmp_path / "m", mend=True, features=FEATURES, max_length=40)
    said = str(error.value)
    assert "test_refusals.py:" in said
    assert "# the user's line" in said
    assert f"{Path('windows_of_others') / 'windows.py'}:9: `" in said
    assert "# the line of the library" in said


@network(0, lambda: {"head": nn.Linear(FEATURES, CLASSES)})
def noisy(self, x, mask):
    """Adds a noise that is little more than what counts as rounding."""
    valid = mask.unsqueeze(-1)
    moved = (x + 1e-4 * torch.randn_like(x)).masked_fill(~valid, 0)
    return self.head(moved.sum(1) / valid.sum(1))


def test_a_little_noise_is_told_as_random_with_its_line() -> None:
    report = lengthwise_export.check(noisy(), features=FEATURES, max_length=40)
    assert report.verdict == "uncheckable"
    assert "something random runs" in report.reason
    assert "randn_like" in report.reason


@network(0, lambda: {"wide": nn.Conv1d(3, 4, 60), "head": nn.Linear(4, 2)})
def wide_kernel(self, x):
    """A convolution whose kernel is wider than most batches, behind which two widths alone fit."""
    return self.head(torch.max_pool1d(self.wide(x.transpose(1, 2)), 2).flatten(1))


@network(0, lambda: {"rows": 16, "head": nn.Linear(3, 2)})
def remembers(self, x):
    """Compares its rows with those of the call before, as libraries do that keep a state for each row."""
    if self.rows != x.shape[0]:
        self.rows = x.shape[0]
    return self.head(x).mean(1)


@network(0, lambda: {"head": nn.Linear(3, 2)})
def expansion(self, x):
    """Powers of all steps of all rows and heads side by side, over one axis for the three."""
    heads = torch.stack((x[..., :2], x[..., 1:]), 1).flatten(0, 2)  # [rows * 2 * steps, 2]
    powers = torch.cat((heads.new_ones((heads.shape[0], 1)), heads), dim=-1)
    return self.head(powers.reshape(x.shape[0], 2, x.shape[1], 3).mean((1, 2)))


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (wide_kernel, "too narrow for the kernel of `wide`"),
        (remembers, "if self.rows != x.shape[0]:"),
        (expansion, "axes that were merged of different ones"),
    ],
)
def test_a_refusal_names_what_is_the_cause_and_not_what_comes_behind_it(
    module: Factory, why: str, tmp_path: Path
) -> None:
    with pytest.raises(LengthwiseError) as refused:
        lengthwise_export.export(module().eval(), tmp_path / "model", mend=True, features=3)
    assert why in str(refused.value)
