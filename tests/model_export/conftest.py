"""What holds for the tests of the exporter."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def costs_of_no_interest(quick_costs: None) -> None:
    """Models that are loaded here are about their answers."""
