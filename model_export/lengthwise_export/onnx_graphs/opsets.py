"""What changed between the opsets of ONNX."""

from __future__ import annotations

from typing import Final

AXES_ARE_INPUTS: Final = 18
"""The opset from which every reduction takes its axes as an input, and not as an attribute."""
