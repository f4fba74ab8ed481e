"""Calibration errors against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.stats import bin_of, calibration, calibration_error


def test_bins_by_hand():
    """An edge belongs below it; equal mass parts the values themselves."""
    sure = np.array([0.1, 0.5, 0.51, 1.0, 0.0])
    assert bin_of(sure, 2, mass=False).tolist() == [0, 0, 1, 1, 0]
    assert bin_of(sure, 10, mass=False).tolist() == [0, 4, 5, 9, 0]
    assert bin_of(np.array([0.9, 0.91, 0.92, 0.93]), 2, mass=True).tolist() == [0, 0, 1, 1]


def test_calibration_error_by_hand():
    """Two bins: |.2 + .4 - 1| / 4 + |.9 + .7 - 1| / 4."""
    sure, right = np.array([0.2, 0.4, 0.9, 0.7]), np.array([1.0, 0, 1, 0])
    assert calibration_error(sure, right, bins=2) == pytest.approx((0.4 + 0.6) / 4)
    rows = calibration_error(np.stack([sure, sure]), np.stack([right, 1 - right]), bins=2)
    assert rows[0] == pytest.approx(0.25)
    assert rows[1] == pytest.approx((0.4 + 0.6) / 4)


def test_the_calibrated_null_is_the_middle_95_percent_of_errors():
    """Confidence .5 of n items in one bin: the error is |heads / n - 1/2| of a fair coin."""
    from scipy.stats import binom

    n = 100
    right = (np.arange(n) < 70).astype(float)
    found, null = calibration(np.full(n, 0.5), right, draws=20_000)
    assert found.value == pytest.approx(0.2)
    exact = np.abs(binom.rvs(n, 0.5, size=200_000, random_state=0) / n - 0.5)
    low, high = np.quantile(exact, [0.025, 0.975])
    assert (null.low, null.high) == pytest.approx((low, high), abs=1e-9)
    assert null.high > np.quantile(exact, 0.95) + 0.005  # negative control: not that of 90%
    assert null.value == pytest.approx(exact.mean(), rel=0.02)


def test_a_calibrated_model_may_have_no_error():
    """Right with its own confidence: whatever the estimate, 0 lies within the interval."""
    draw = np.random.default_rng(4)
    for n in (20, 200):
        sure = draw.random(n)
        found, null = calibration(sure, draw.random(n) < sure)
        assert 0 < found.value <= null.high
        assert found.low == 0 < found.value <= found.high


def test_a_certain_error_is_told_by_the_triangle_inequality():
    """Sure of all, right in 60 of 200, in one bin: .7, less the 97.5% of |resampled - found|."""
    right = np.arange(200) < 60
    found, _ = calibration(np.ones(200), right, draws=20_000)
    picks = np.random.default_rng(1).binomial(200, 0.3, 200_000) / 200
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - np.quantile(np.abs(picks - 0.3), 0.976), abs=0.005)
    assert found.high == pytest.approx(1 - np.quantile(picks, 0.024), abs=0.005)
    assert np.isnan(calibration([0.7], [1.0])[0][1:3]).all()
