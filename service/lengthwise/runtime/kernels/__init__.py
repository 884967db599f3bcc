"""The kernels in C: recurrent layers over valid steps, in float32 and in 8-bit integers.

`_kernels` is None where they were not built.
"""

try:
    from lengthwise.runtime.kernels import _kernels
except ImportError:  # mypy reads the module's stub; an installation may lack the module
    _kernels = None  # type: ignore[assignment]
