"""What spectra of the change are held against."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.figures.spectral.delta_spectrum import effective_rank, quarter_circle


def test_random_references():
    sigma = quarter_circle(400)
    assert (np.diff(sigma) < 0).all()
    assert (sigma**2).mean() == pytest.approx(1, abs=0.01)  # its second moment
    drawn = np.linalg.svd(np.random.default_rng(0).normal(size=(400, 400)) / 20, compute_uv=False)
    assert np.abs(sigma - drawn).max() < 0.08
    assert effective_rank(np.ones(7)) == pytest.approx(7)
