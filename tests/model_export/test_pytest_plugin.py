"""The plugin of pytest, in runs of pytest of their own: marks, the fixture, and tests of tests."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from lengthwise_export.checking.rule import rules
from lengthwise_export.testing.padding_tests import findings, watched
from tests.support.extras import ROOT

pytestmark = pytest.mark.process

MODELS = """
import pytest, torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, masked=True):
        super().__init__()
        self.masked, self.out = masked, nn.Linear(3, 2)

    def forward(self, steps, lengths):
        valid = (torch.arange(steps.shape[1]) < lengths[:, None])[:, :, None]
        total = torch.where(valid, steps, 0.0) if self.masked else steps
        return self.out(total.sum(dim=1) / lengths[:, None])

class Masked(nn.Module):
    def forward(self, steps, mask=None):
        steps *= 1.0 if mask is None else mask[:, :, None]  # in place, so both batches are equal behind the call
        return nn.Sequential(nn.Tanh())(steps).sum(dim=1)

LENGTHS = torch.tensor([6, 4, 2])
MASK = torch.arange(6) < LENGTHS[:, None]

def batch(padding=0.0):
    torch.manual_seed(0)
    return torch.where(MASK[:, :, None], torch.randn(3, 6, 3), padding)
"""


class Outcome(NamedTuple):
    """Whether a test passed, and what was reported of one that did not."""

    passed: bool
    report: str = ""


Outcomes = dict[str, dict[str, Outcome]]
"""By the name of a file of tests and that of a test."""


def run(folder: Path, files: dict[str, str], *options: str) -> Outcomes:
    """Runs files of tests, in one process, with the plugin of these sources."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    # An entry point may be that of an older installation, and other plugins take as long to import as a test takes.
    plugin = ("--disable-plugin-autoload", "-p", "lengthwise_export.testing.pytest_plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "--rootdir=.", "--junitxml=outcomes.xml", "--strict-markers", *plugin]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=folder, check=False)
    outcomes: Outcomes = {name: {} for name in files}
    assert (folder / "outcomes.xml").exists(), done.stdout + done.stderr
    for case in ElementTree.parse(folder / "outcomes.xml").iter("testcase"):
        failure = case.find("failure")
        outcome = Outcome(True) if failure is None else Outcome(False, failure.text or "")
        outcomes[case.attrib["classname"].split(".")[0].removeprefix("test_")][case.attrib["name"]] = outcome
    assert all(outcomes.values()), done.stdout + done.stderr
    return outcomes


def passing(outcomes: dict[str, Outcome]) -> dict[str, bool]:
    return {name: outcome.passed for name, outcome in outcomes.items()}


MARK = """
@pytest.fixture
def masked():
    return True

@pytest.mark.padding_safe(max_length=20)
def test_sound(masked):
    return Mean(masked)

@pytest.mark.padding_safe(max_length=20)
@pytest.mark.parametrize("masked", [False])
def test_leak(masked):
    return Mean(masked)
"""
FIXTURE = """
def test_sound(padding_safe):
    assert padding_safe(Mean(), max_length=20).verdict == "sound"

def test_leak(padding_safe):
    padding_safe(Mean(masked=False), max_length=20)
"""
WRONG = """
@pytest.mark.padding_safe(24)
def test_24():
    return Mean()

@pytest.mark.padding_safe(max_lenght=24)
def test_misspelt():
    return Mean()

@pytest.mark.padding_safe
def test_forgets():
    Mean()

@pytest.mark.padding_test
def test_nothing():
    pass
"""
NAMED = """
import unittest

def test_padding():
    Mean()(batch(), LENGTHS)
    Mean()(batch(), LENGTHS)

def test_width():
    test_padding()

def test_padding_without_a_model():
    pass

def test_padding_that_fails_by_itself():
    test_padding()
    assert batch() is None

class TestCase(unittest.TestCase):
    def test_padding_of_unittest(self):
        test_padding()
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What comes of tests without an option."""
    calls = "\n".join(
        f"@pytest.mark.padding_test\ndef test_{index}():\n    {case}\n" for index, case in enumerate(CASES)
    )
    tests = {"mark": MARK, "fixture": FIXTURE, "wrong": WRONG, "calls": CALLS + calls, "named": NAMED}
    return run(tmp_path_factory.mktemp("plain"), {name: MODELS + text for name, text in tests.items()})


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What comes of tests with `--padding-tests`."""
    return run(tmp_path_factory.mktemp("watching"), {"named": MODELS + NAMED}, "--padding-tests")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What comes of the examples of rules with that option."""
    texts = {f"{code}_{which}": rules()[code].examples["pytest"][which] for code, which in EXAMPLES}
    return run(tmp_path_factory.mktemp("examples"), texts, "--padding-tests")


def test_a_mark_checks_the_model_that_a_test_returns(plain: Outcomes) -> None:
    assert passing(plain["mark"]) == {"test_sound": True, "test_leak[False]": False}
    report = plain["mark"]["test_leak[False]"].report
    assert "leak  Mean: the answer to a sequence changes with" in report
    assert "total.sum(dim=1)" in report
    assert "pytest_plugin.py" not in report  # no line of the plugin


def test_the_fixture_is_assert_padding_safe(plain: Outcomes) -> None:
    assert passing(plain["fixture"]) == {"test_sound": True, "test_leak": False}
    assert "PaddingUnsafeError: leak  Mean: " in plain["fixture"]["test_leak"].report


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        pytest.param("test_24", "1 positional argument", id="a mark takes options by name only"),
        pytest.param("test_misspelt", "'max_lenght'; did you mean max_length?", id="an option is misspelt"),
        pytest.param("test_forgets", "None is not a target: give a torch.nn.Module", id="no model is returned"),
        pytest.param("test_nothing", "no torch module was called", id="a padding test calls no model"),
    ],
)
def test_a_mark_at_a_wrong_test_fails_it_with_the_reason(plain: Outcomes, test: str, reason: str) -> None:
    assert not plain["wrong"][test].passed
    assert reason in plain["wrong"][test].report


CANNOT_FAIL = {
    "the same batch twice": ("mean(batch(), LENGTHS), mean(batch(), LENGTHS)", "LW001"),
    "padding replaced by what it was": ("mean(batch(0.0), LENGTHS), mean(batch(-0.0), LENGTHS)", "LW001"),
    "by keyword": ("mean(batch(), lengths=LENGTHS), mean(batch(), lengths=LENGTHS)", "LW001"),
    "packed": (
        "packed(pack_padded_sequence(batch(), LENGTHS, True)), packed(pack_padded_sequence(batch(9.0), LENGTHS, True))",
        "LW001",
    ),
    "one row, repeated": ("mean(batch()[1:2].repeat(3, 1, 1), LENGTHS[[1, 1, 1]]), None", "LW001"),
    "NaN in both": ("masked(batch(float('nan')), MASK), masked(batch(float('nan')), MASK)", "LW001"),
    "lengths of the width": ("mean(steps, LENGTHS[[0, 0, 0]]), mean(steps[:1], LENGTHS[:1])", "LW002"),
    "lengths in a list": ("listed(steps, [6, 6, 6]), listed(steps[:1], [6])", "LW002"),
    "a mask of ones": ("masked(steps + 1, MASK | True), masked(steps[:1] + 1, MASK[:1])", "LW002"),
    "a padding mask of zeros": ("masked(steps + 1, MASK & False), masked(steps[:1] + 1, ~MASK[:1])", "LW002"),
    "steps alone": ("masked(steps + 1), masked(steps[1:2] + 1)", "LW002"),
    "token ids": ("nn.Embedding(9, 2)(IDS), nn.Embedding(9, 2)(IDS[:1])", "LW002"),
}
COULD_FAIL = {
    "junk in the padding": "mean(batch(), LENGTHS), mean(batch(9.0), LENGTHS)",
    "written in place by the model": "masked(batch(), MASK), masked(batch(9.0), MASK)",
    "by keyword": "masked(batch(), mask=MASK), masked(batch(9.0), mask=MASK)",
    "padded and alone": "mean(batch(), LENGTHS)[1:2], mean(batch()[1:2, :4], LENGTHS[1:2])",
    "another width, lengths alike": "mean(steps[:, :4], LENGTHS[[1] * 3]), mean(steps, LENGTHS[[1] * 3])",
    "lengths that the features have": "mean(steps, LENGTHS[[0] * 3] - 3), mean(steps + 0, LENGTHS[[0] * 3] - 2)",
    "an additive mask": "masked(steps, MASK / 1.0), masked(steps[:1], MASK[:1] / 1.0)",
    "a list of lengths": "listed(batch(), [6, 4, 2]), listed(batch()[1:2], [6])",
    "zeros at the end": "masked(batch()), masked(batch()[:1])",
    "token ids with padding": "nn.Embedding(9, 2)(PADDED), nn.Embedding(9, 2)(PADDED[:1])",
    "a sequence in one batch twice": "mean(batch()[[1, 2]], LENGTHS[[1, 2]]), None",
}
CALLS = """
from torch.nn.utils.rnn import pack_padded_sequence

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 8]])
PADDED = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 0, 0]])

class Listed(nn.Module):
    def forward(self, steps, lengths):
        return torch.stack([row[:length].sum(0) for row, length in zip(steps, lengths)])

class Packed(nn.Module):
    def forward(self, packed):
        return packed.data.sum(0)

mean, masked, listed, packed = Mean(), Masked(), Listed(), Packed()
torch.manual_seed(0)
steps = torch.randn(3, 6, 3)
"""
CASES = [calls for calls, _ in CANNOT_FAIL.values()] + [*COULD_FAIL.values()]


EXAMPLES = [(code, which) for code in ("LW001", "LW002") for which in ("bad", "good")]


@pytest.mark.parametrize("case", CANNOT_FAIL)
def test_a_padding_test_that_cannot_fail_fails_with_its_rule(plain: Outcomes, case: str) -> None:
    calls, code = CANNOT_FAIL[case]
    outcome = plain["calls"][f"test_{CASES.index(calls)}"]
    assert (outcome.passed, re.findall(r"LW\d+", outcome.report)) == (False, [code])


@pytest.mark.parametrize("case", COULD_FAIL)
def test_a_padding_test_that_could_fail_passes(plain: Outcomes, case: str) -> None:
    assert plain["calls"][f"test_{CASES.index(COULD_FAIL[case])}"] == Outcome(True)


@pytest.mark.gallery
@pytest.mark.parametrize(("code", "which"), EXAMPLES)
def test_the_bad_example_of_a_rule_could_not_fail_and_the_good_one_fails_by_itself(
    examples: Outcomes, code: str, which: str
) -> None:
    assert passing(examples[f"{code}_{which}"]) == {"test_padding_is_ignored": False}
    report = examples[f"{code}_{which}"]["test_padding_is_ignored"].report
    assert (f"{code} " in report) == (which == "bad")
    assert ("Tensor-likes are not close" in report) == (which == "good")


@pytest.mark.long
def test_an_option_watches_the_tests_whose_names_match(plain: Outcomes, watching: Outcomes) -> None:
    failing = {"test_padding_that_fails_by_itself"}
    for outcomes, watches in (
        (plain["named"], set()),
        (watching["named"], {"test_padding", "test_padding_of_unittest"}),
    ):
        assert {name for name, outcome in outcomes.items() if not outcome.passed} == failing | watches
        assert {name for name, outcome in outcomes.items() if "LW001 " in outcome.report} == watches


@pytest.mark.parametrize(
    "argument",
    [
        ["a word", "another"],
        [[1, 2], [3]],
        [(1, 2), (3,)],
        [1, "a"],
        {"texts": ["a word"]},
        np.array(["a word"]),
        np.array([{}], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        torch.tensor(3.0),
        torch.zeros(0, 3),
    ],
    ids=str,
)
def test_a_padding_test_may_pass_anything_to_its_model(argument: object) -> None:
    class Takes(torch.nn.Module):
        def forward(self, *arguments: object) -> torch.Tensor:
            return torch.zeros(2)

    lengths = torch.tensor([2, 1])
    with watched() as calls:
        Takes()(argument, torch.ones(2, 2), lengths)
        Takes()(argument, torch.zeros(2, 2), lengths)
    assert findings(calls) == []


def test_watching_leaves_no_hook_behind() -> None:
    module = torch.nn.Identity()
    with watched() as calls:
        module(torch.ones(1))
    module(torch.ones(1))
    assert len(calls) == 1


@pytest.mark.long
def test_pytest_loads_the_plugin_by_its_entry_point_and_without_torch(tmp_path: Path) -> None:
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    (tmp_path / "test_plain.py").write_text("import sys\n\ndef test_plain():\n    assert 'torch' not in sys.modules\n")
    words = ("-p", "no:lengthwise", "-p", entry_points["lengthwise"], "--padding-tests", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
