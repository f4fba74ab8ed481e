"""Matrices that fine-tuning left alone are in no count, share or mean."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.synthetic import result
from workbench import figures
from workbench.findings.equivalence import equivalence

PLACE = {"layer": 0, "component": "self_attn.q_proj"}


def test_unchanged_matrices_are_in_no_share():
    """One of two matrices changed: its two intruders of three, and a rank that is its own."""
    rows = [
        PLACE | {"member": "a", "layer": layer, "rank": rank, "metric": "max_cosine", "value": v}
        for layer, cosines in ((0, (0.1, 0.2, 0.9)), (1, (1.0, 1.0, 1.0)))
        for rank, v in enumerate(cosines)
    ]
    rows += [
        PLACE | {"member": "a", "layer": layer, "rank": None, "metric": "changed", "value": v}
        for layer, v in ((0, 1.0), (1, 0.0))
    ]
    made = result("spectral.intruders", rows, {"a": {"kind": "lora"}}, k=3, eps=0.5)
    counts = figures.intruder_counts(made).iloc[0]
    assert (counts["count"], counts["n"]) == (2, 3)
    assert "a: 2 of 3 (66.7%; 1 of 2 matrices changed)" in figures.headline(made)
    spectrum = result(
        "spectral.delta_spectrum",
        [
            PLACE | {"member": "a", "layer": layer, "metric": "effective_rank", "value": v}
            for layer, v in ((0, 2.0), (1, np.nan), (2, 0.0))  # today's and older tables
        ],
        {"a": {"kind": "lora", "rank": 2}},
    )
    assert "a: 2 (n = 1, ceiling 2, 1 of 3 matrices changed)" in figures.headline(spectrum)
    found = equivalence([made, spectrum])
    assert found is not None
    measured = found.metric("measure").set_index("measure")["value"]
    assert measured["intruders"] == pytest.approx(2 / 3)
    assert measured["effective rank"] == 2
