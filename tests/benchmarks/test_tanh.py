"""The coefficients of the recurrent kernels' tanh are those that the script computes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tanh


@pytest.mark.long
def test_the_kernels_have_the_computed_coefficients():
    p, q, error = tanh.fitted()
    in_p, in_q = tanh.in_header()
    # A number more or less would hide behind the others; a float32 has a relative precision of 6e-8.
    np.testing.assert_allclose(in_p, p, rtol=2e-7)
    np.testing.assert_allclose(in_q, q, rtol=2e-7)
    assert error < 3e-8
