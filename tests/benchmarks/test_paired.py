"""Two checkouts in turns: pairs, their order, and the ratio."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks import paired


def test_each_turn_measures_both_and_the_first_alternates() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    measures = [{"cpu": lambda: measure("before", 2.0)}, {"cpu": lambda: measure("after", 3.0)}]
    pairs: dict[str, list[tuple[float, float]]] = {}
    paired.in_turns(measures, 2, "", pairs)
    assert order == ["before", "after", "after", "before"]
    assert pairs == {"cpu": [(2.0, 3.0), (2.0, 3.0)]}
    paired.in_turns(measures, 1, "another name", pairs)
    assert len(pairs["cpu"]) == 2


def test_a_row_has_medians_and_the_middle_half_of_the_ratios() -> None:
    pairs = [(1.0, 1.0), (2.0, 2.2), (4.0, 4.8), (10.0, 13.0), (10.0, 14.0)]
    assert paired.row("cpu", pairs) == ("cpu", "4", "4.8", "1.200", "1.100-1.300")


@pytest.mark.parametrize(("folder", "package"), [("service", "service"), ("service/lengthwise", "service/lengthwise")])
def test_a_checkout_of_either_layout_finds_its_own_packages(folder: str, package: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    checkout = paired.Checkout(tmp_path)
    assert checkout.package == tmp_path / package
    places = checkout.environment["PYTHONPATH"].split(":")
    assert places[0] == str(tmp_path / "service" if checkout.nested else tmp_path)


def test_the_processor_time_of_a_process_is_read() -> None:
    before, until = paired.server_seconds(os.getpid()), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert paired.server_seconds(os.getpid()) - before > 0.05
