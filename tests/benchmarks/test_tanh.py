"""The coefficients of the recurrent kernels' tanh are those that the script computes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tanh


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "most"), [(tanh.FLOAT32, 3e-8), (tanh.INT8, 3e-6)], ids=lambda one: getattr(one, "header", one)
)
def test_the_kernels_have_the_computed_coefficients(form: tanh.TanhForm, most: float):
    p, q, error = tanh.fitted(form)
    in_p, in_q = tanh.in_header(form)
    # A number more or less would hide behind the others; a float32 has a relative precision of 6e-8.
    np.testing.assert_allclose(in_p, p, rtol=2e-7)
    np.testing.assert_allclose(in_q, q, rtol=2e-7)
    assert error < most
