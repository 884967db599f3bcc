"""The plugin of pytest, in runs of pytest of their own: marks, the fixture, and tests of tests."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from lengthwise_export.checking.rule import rules
from lengthwise_export.testing.padding_tests import watched
from tests.support.extras import ROOT

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


def run(folder: Path, tests: str, *options: str) -> tuple[dict[str, str], str]:
    """Runs tests with this plugin, whether or not an entry point of an older installation brings it.

    Returns what came of each test, in lower case, and the output.
    """
    (folder / "test_of_a_user.py").write_text(MODELS + tests)
    words = (
        "-p",
        "no:lengthwise",
        "-p",
        "lengthwise_export.testing.pytest_plugin",
        "-p",
        "no:cacheprovider",
        "-rA",
        *options,
    )
    command = [sys.executable, "-m", "pytest", "--rootdir=.", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    lines = re.findall(r"^(PASSED|FAILED|ERROR) test_of_a_user\.py::(?:\w+::)?(\S+)", done.stdout, re.MULTILINE)
    assert lines, done.stdout + done.stderr
    return {name: outcome.lower() for outcome, name in lines}, done.stdout


def test_a_mark_checks_the_model_that_a_test_returns(tmp_path: Path) -> None:
    tests = """
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
    outcomes, report = run(tmp_path, tests, "--strict-markers")
    assert outcomes == {"test_sound": "passed", "test_leak[False]": "failed"}
    assert "leak  Mean: the answer to a sequence changes with" in report
    assert "total.sum(dim=1)" in report
    assert "pytest_plugin.py" not in report  # no line of the plugin


def test_the_fixture_is_assert_padding_safe(tmp_path: Path) -> None:
    tests = """
def test_sound(padding_safe):
    assert padding_safe(Mean(), max_length=20).verdict == "sound"

def test_leak(padding_safe):
    padding_safe(Mean(masked=False), max_length=20)
"""
    outcomes, report = run(tmp_path, tests)
    assert outcomes == {"test_sound": "passed", "test_leak": "failed"}
    assert "PaddingUnsafeError: leak  Mean: " in report


def test_a_mark_takes_options_by_name_only(tmp_path: Path) -> None:
    outcomes, report = run(tmp_path, "@pytest.mark.padding_safe(24)\ndef test_24():\n    return Mean()\n")
    assert outcomes == {"test_24": "failed"}
    assert "1 positional argument" in report


def test_a_marked_test_that_returns_no_model_says_what_is_one(tmp_path: Path) -> None:
    outcomes, report = run(tmp_path, "@pytest.mark.padding_safe\ndef test_forgets():\n    Mean()\n")
    assert outcomes == {"test_forgets": "failed"}
    assert "None is not a target: give a torch.nn.Module" in report


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


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """By their calls: what came of the padding tests that make them, and the codes that were told of each."""
    lines = [f"@pytest.mark.padding_test\ndef test_{index}():\n    {calls}\n" for index, calls in enumerate(CASES)]
    outcomes, output = run(tmp_path_factory.mktemp("judged"), CALLS + "\n".join(lines))
    told = dict(re.findall(r"^_+ test_(\d+) _+\n(.*?)(?=^[_=]+ )", output, re.MULTILINE | re.DOTALL))
    return {
        calls: (outcomes[f"test_{index}"], " ".join(re.findall(r"LW\d+", told.get(str(index), ""))))
        for index, calls in enumerate(CASES)
    }


@pytest.mark.parametrize("case", CANNOT_FAIL)
def test_a_padding_test_that_cannot_fail_fails_with_its_rule(judged: dict[str, tuple[str, str]], case: str) -> None:
    calls, codes = CANNOT_FAIL[case]
    assert judged[calls] == ("failed", codes)


@pytest.mark.parametrize("case", COULD_FAIL)
def test_a_padding_test_that_could_fail_passes(judged: dict[str, tuple[str, str]], case: str) -> None:
    assert judged[COULD_FAIL[case]] == ("passed", "")


@pytest.mark.parametrize("code", ["LW001", "LW002"])
def test_the_bad_example_of_a_rule_could_not_fail_and_the_good_one_fails_by_itself(code: str, tmp_path: Path) -> None:
    for which, told in (("bad", True), ("good", False)):
        text = rules()[code].examples["pytest"][which]
        outcomes, output = run(tmp_path, text, "--padding-tests")
        assert outcomes == {"test_padding_is_ignored": "failed"}
        assert (f"{code} " in output) == told
        assert ("Tensor-likes are not close" in output) != told


def test_an_option_watches_the_tests_whose_names_match(tmp_path: Path) -> None:
    tests = """
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
    failing = {"test_padding_that_fails_by_itself"}
    for options, watches in (
        ((), set()),
        (("--padding-tests", "test_of_a_user.py"), {"test_padding", "test_padding_of_unittest"}),
    ):
        outcomes, report = run(tmp_path, tests, *options)
        assert {name for name, outcome in outcomes.items() if outcome == "failed"} == failing | watches
        assert report.count("LW001 ") == 2 * len(watches)  # once more in the summary


def test_a_marked_test_without_a_model_is_told(tmp_path: Path) -> None:
    outcomes, report = run(tmp_path, "@pytest.mark.padding_test\ndef test_nothing():\n    pass\n")
    assert outcomes == {"test_nothing": "failed"}
    assert "no torch module was called" in report


def test_watching_leaves_no_hook_behind() -> None:
    module = torch.nn.Identity()
    with watched() as calls:
        module(torch.ones(1))
    module(torch.ones(1))
    assert len(calls) == 1


def test_pytest_loads_the_plugin_by_its_entry_point_and_without_torch(tmp_path: Path) -> None:
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    (tmp_path / "test_plain.py").write_text("import sys\n\ndef test_plain():\n    assert 'torch' not in sys.modules\n")
    words = ("-p", "no:lengthwise", "-p", entry_points["lengthwise"], "--padding-tests", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
