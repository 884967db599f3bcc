"""What docs/cuda.md says can be asked for can be asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import PROVIDERS
from lengthwise.settings import Settings, flag

TEXT = (Path(__file__).parents[1] / "docs" / "cuda.md").read_text()


def test_every_option_of_serve_in_it_is_one() -> None:
    named = set(re.findall(r"`(--[a-z0-9-]+)`", TEXT))
    assert named >= {"--provider", "--tf32", "--gpu-memory-bytes"}
    assert named <= {flag(name) for name in Settings.model_fields}


def test_the_values_of_provider_are_those_of_the_option() -> None:
    values = get_args(Settings.model_fields["provider"].annotation)
    table = TEXT[TEXT.index("| `--provider` |") : TEXT.index("`CUDA_VISIBLE_DEVICES`")]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(values) == {"auto", *PROVIDERS}


def test_the_manifests_field_is_one() -> None:
    assert "`host_nodes`" in TEXT
    assert "host_nodes" in Manifest.model_fields


def test_the_options_of_the_provider_are_as_it_says() -> None:
    options = PROVIDERS["cuda"].options
    assert f"`{options['arena_extend_strategy']}`" in TEXT
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_what_it_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (Path(__file__).parents[1] / "docs" / target).exists()
