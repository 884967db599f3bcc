"""Conventions of libraries, as docs/targets.md describes them, whose checks tests/test_documents.py runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from click.testing import CliRunner

from examples import conventions
from lengthwise.commands.cli import main as lengthwise
from lengthwise_export.errors import UncheckableError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets


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


class Nothing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("made", "blind", "said"),
    [
        *((conventions.Lit, blind, r"model\.model .*model\.loss") for blind in (False, True)),
        (Nothing, False, r"model\.net"),
    ],
)
def test_what_only_holds_the_model_is_told_which_part_to_give(made: Any, blind: bool, said: str) -> None:
    with pytest.raises(Exception, match=said):
        targets.read(made(), TargetOptions(features=4), blind=blind)


def test_steps_alone_are_read_for_a_mend_only() -> None:
    options = TargetOptions(channels_first=True)
    with pytest.raises(UncheckableError):
        targets.read("examples/conventions.py:steps_alone", options)
    assert targets.read("examples/conventions.py:steps_alone", options, blind=True).blind
