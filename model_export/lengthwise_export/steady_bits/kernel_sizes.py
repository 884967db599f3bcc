"""How many numbers onnxruntime's kernels take at once: the order of a sum depends on what is left over."""

from __future__ import annotations

from typing import Final

PART: Final = 128
"""A product over so many numbers is added in one part."""
LANES: Final = 4
"""The numbers that sums, functions and products of one row take at once."""
MOST_LANES: Final = 16
"""The most numbers that a processor computes at once, in float32."""
