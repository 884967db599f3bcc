"""docs/targets.md is true: its checks say what it says, and its options and keys are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from examples import conventions
from lengthwise_export.architecture import checkpoint
from lengthwise_export.errors import UncheckableError
from lengthwise_export.interface.cli import main as lengthwise
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "targets.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.M | re.S) for line in block.splitlines()]
EXIT_CODES = {"sound": 0, "warning": 0, "uncheckable": 2}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_check_says_what_the_page_says(line: str) -> None:
    command, _, verdict = line.partition("  # ")
    done = CliRunner().invoke(lengthwise, [*shlex.split(command)[1:], "--max-length", "100"])
    assert (done.stdout.split()[0], done.exit_code) == (verdict, EXIT_CODES[verdict])


def test_left_padding_is_refused_with_the_cure() -> None:
    done = CliRunner().invoke(lengthwise, ["check", "examples/conventions.py:left_padded", "--json"])
    assert "requires left padding" in done.stdout
    assert "at its own last step, not at [:, -1]" in done.stdout


def test_embeddings_in_the_place_of_ids_need_their_number_of_features() -> None:
    target = targets.read(conventions.hugging_face(), TargetOptions(features=conventions.HIDDEN))
    assert (target.steps.kind, target.steps.features) == ("values", conventions.HIDDEN)
    assert targets.read(conventions.hugging_face(), TargetOptions()).steps.vocabulary == conventions.VOCABULARY


def test_which_way_round_a_padding_mask_is_must_be_said() -> None:
    done = CliRunner().invoke(lengthwise, ["check", "examples/conventions.py:padding_mask"])
    assert done.exit_code == 2
    assert "--second padding-mask (true at padding)" in done.output


@pytest.mark.parametrize("blind", [False, True])
def test_what_only_holds_the_model_is_told_which_part_to_give(blind: bool) -> None:
    with pytest.raises(Exception, match=r"such as model\.model \(a KeywordOnly\) or model\.loss"):
        targets.read(conventions.Lit(), TargetOptions(features=4), blind=blind)


class Nothing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 2)


def test_what_has_no_forward_is_told_which_part_to_give() -> None:
    with pytest.raises(Exception, match=r"Nothing has no forward: return the part .* model\.net \(a Linear\)"):
        targets.read(Nothing(), TargetOptions())


def test_a_checkpoint_of_lightning_fits_the_model_inside(tmp_path: Path) -> None:
    lit = conventions.Lit()
    with torch.no_grad():
        lit.model.head.bias.fill_(3.0)
    torch.save({"state_dict": lit.state_dict(), "epoch": 1}, tmp_path / "last.ckpt")
    target = targets.read("examples/conventions.py:lightning", TargetOptions(checkpoint=tmp_path / "last.ckpt"))
    (notice,) = target.notices
    assert notice.endswith("left out, and so are the weights of other parts: loss.weight")


def test_steps_alone_are_read_for_a_mend_only() -> None:
    options = TargetOptions(channels_first=True)
    with pytest.raises(UncheckableError, match="or pass --mend"):
        targets.read("examples/conventions.py:steps_alone", options)
    assert targets.read("examples/conventions.py:steps_alone", options, blind=True).blind


def test_the_keys_of_weights_are_all_named(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(Exception, match="under a key") as refused:
        checkpoint.weights(tmp_path / "list.pt")
    (keys,) = re.findall(r"key\n?\s?(`state_dict`.*?), as training", DOCUMENT, re.S)
    assert re.findall(r"`(\w+)`", keys) == re.findall(r"'(\w+)'", str(refused.value))
