"""`--min-length`: what a model is asked for at least, in checks, mends, specs and the manifest."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lengthwise_export
from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GOLDEN_FILE
from lengthwise.verification.golden import Golden
from lengthwise_export.exporting.candidate import PLAIN
from lengthwise_export.options import ExportOptions
from lengthwise_export.targets.torch_targets import target_of_spec
from tests.support.specs import from_spec, spec


class ShortLeak(nn.Module):
    """A masked mean, but over the width of the batch where a sequence has fewer than six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(values)
        valid = (torch.arange(values.shape[1])[None] < lengths[:, None]).unsqueeze(-1)
        masked = torch.where(valid, states, 0.0).sum(1) / lengths[:, None]
        return self.head(torch.where(lengths[:, None] < 6, states.mean(1), masked))


class Blind(nn.Module):
    """A mean of all steps, which has no answer to fewer than six."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(values.mean(1) / (values.shape[1] >= 6))


SAID: dict[str, Any] = {"features": 3, "max_length": 40}


@pytest.mark.long
def test_a_report_says_from_which_length_a_model_holds() -> None:
    report = lengthwise_export.check(ShortLeak(), **SAID)
    assert report.verdict == "leak"
    assert [note for note in report.notes if "only sequences of fewer than 6 steps" in note] != []
    longer = lengthwise_export.check(ShortLeak(), min_length=6, **SAID)
    assert (longer.verdict, longer.min_length, longer.ran.lengths[0]) == ("sound", 6, 6)
    assert lengthwise_export.check(ShortLeak(), min_length=5, **SAID).verdict == "leak"


def test_a_model_that_leaks_at_all_lengths_gets_no_such_note() -> None:
    report = lengthwise_export.check("examples/masking.py:attention_after_lstm", max_length=40)
    assert report.verdict == "leak"
    assert [note for note in report.notes if "--min-length" in note] == []


@pytest.mark.long
def test_the_shortest_length_stands_in_the_manifest_of_an_export(tmp_path: Path) -> None:
    published = lengthwise_export.export(ShortLeak(), tmp_path / "m" / "1", min_length=6, **SAID)
    assert published.manifest.min_length == 6
    golden = Golden.read(published.directory / GOLDEN_FILE, published.manifest)
    assert min(map(len, golden.sequences)) == 6


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_mend_is_proved_from_the_shortest_length_on(tmp_path: Path) -> None:
    published = lengthwise_export.export(Blind(), tmp_path / "m" / "1", mend=True, min_length=8, **SAID)
    assert published.manifest.min_length == 8
    assert published.mend is not None
    assert published.mend.proof is not None
    assert min(published.mend.proof.lengths) == 8


def test_a_spec_says_its_shortest_sequence() -> None:
    said = spec(step="features = 2\nmin_length = 4\nmax_length = 16")
    assert target_of_spec("the spec", PLAIN, said, None).min_length == 4
    assert from_spec(said, None).manifest.min_length == 4
    with pytest.raises(ConfigurationError, match=r"--min-length 3 contradicts input\.min_length = 4"):
        from_spec(said, None, ExportOptions(min_length=3))
    with pytest.raises(ConfigurationError, match="'min_length' 9 is more than 'max_length', 8"):
        spec(step="features = 2\nmin_length = 9\nmax_length = 8")


def test_a_shortest_sequence_past_the_longest_is_refused_with_both() -> None:
    call = ["check", "examples/masking.py:lengths_given", "--min-length", "50", "--max-length", "40"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert "the model needs at least 50 steps, and sequences of up to 40 are tried" in result.output
