"""A cost table, for people."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from lengthwise.batching.cost import CostTable
from lengthwise.bench import cost_report

COST = CostTable([1, 2], [4, 8], np.array([[4e-6, 8e-6], [4e-6, 16e-6]]))


def test_a_step_is_a_batchs_time_over_rows_and_width():
    assert np.allclose(cost_report.microseconds_per_step(COST), [[1, 1], [0.5, 1]])


def test_the_table_has_rows_down_and_widths_across():
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(cost_report.table(COST, title="t"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["rows", "4", "8"] in lines
    assert ["2", "0.50", "1.00"] in lines


def test_the_picture_is_drawn(tmp_path: Path):
    cost_report.draw(COST, tmp_path / "costs.png", title="t")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
