"""Shares against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.stats import Interval, proportion


def test_a_proportion_of_all_alike_is_wilsons():
    """None of 10: up to z^2 / (n + z^2) = 3.8415 / 13.8415."""
    found = proportion(Interval(0.0, 0.0, 0.0, 10))
    assert found.low == pytest.approx(0, abs=1e-9)
    assert found.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert proportion(Interval(1.0, np.nan, np.nan, 1)).low == pytest.approx(1 / 4.841459, abs=1e-6)
    wide = Interval(0.4, 0.2, 0.6, 10)
    assert proportion(wide) is wide
    above = Interval(2.0, 2.0, 2.0, 10)
    assert proportion(above) is above
