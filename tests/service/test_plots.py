"""Pictures of a bench."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lengthwise.bench import plots
from lengthwise.errors import ConfigurationError


def test_without_matplotlib_the_extra_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"lengthwise\[bench\]"):
        plots.save(lambda axes: None, tmp_path / "plot.png")
