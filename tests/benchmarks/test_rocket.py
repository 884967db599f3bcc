"""The comparison of rocket models with aeon's runs, without aeon's classifier, whose code takes a minute to compile."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import machine, rocket
from benchmarks.rocket import Training
from lengthwise.decoding.dataset import Record


def test_a_rocket_model_is_trained_on_a_data_set() -> None:
    done = CliRunner().invoke(
        rocket.main, ["--seeds", "1", "--data", "JapaneseVowels", "--no-aeon", "--json"], catch_exceptions=False
    )
    (row,) = json.loads(done.stdout)
    assert row["accuracy"] > 0.95
    assert row["left_out"] > 0.9
    assert 0 < row["loss"] < 0.3


def test_the_figures_become_a_line_for_each_data_set() -> None:
    ours = Training("one", "rocket", 0, 0.9, 0.5, 0.8, 1.25)
    rows = [ours, replace(ours, seed=1, accuracy=1.0), Training("one", "aeon", 0, 0.75, None, None, 3.0), ours]
    page = rocket.page(machine.facts(), [*rows, replace(ours, data="two")], 2)
    assert "| one | 0.933 ± 0.047 | 0.800 | 0.500 | 1.2 | 0.750 ± 0.000 | 3.0 |" in page
    assert "| two | 0.900 ± 0.000 | 0.800 | 0.500 | 1.2 | - | - |" in page


def test_a_package_that_is_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rocket.importlib.util, "find_spec", lambda name: None)
    assert list(rocket.measure(["PLAID"], 1, ["rocket"])) == []
    assert "PLAID: left out, because sktime is not installed" in capsys.readouterr().err


def test_the_spec_of_a_data_set_says_nothing_but_the_kind_of_model() -> None:
    records = [Record("a", np.zeros((5, 2), dtype=np.float32), label, "made:1") for label in "ba"]
    spec = rocket.spec_of(records)
    assert spec.output.labels == ("a", "b")
    assert (spec.input.features, spec.model.kind) == (2, "rocket")
