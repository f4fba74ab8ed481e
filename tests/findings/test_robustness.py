"""Members on a line have no effective robustness, and what one has more is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.figures.looking import check
from tests.figures.synthetic import result
from workbench.figures.compare.robustness import line_of_the_family, sentence
from workbench.findings.robustness import KEY, effective, line, logits, robustness
from workbench.results.result import Result

N = 199  # (k + 1/2) / 200
SLOPE, START = 0.8, -0.3


def on_the_line(x: np.ndarray) -> np.ndarray:
    """The share of right answers whose logit is on the line."""
    share = 1 / (1 + np.exp(-(START + SLOPE * logits(x, N))))
    return (share * (N + 1) - 0.5) / N


def retention(x: np.ndarray, y: np.ndarray, members: int, seed: int = 0) -> Result:
    """Items of two tasks: the first of x and y are the base's. Which items are right is drawn."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for task, shares in (("boxes", x), ("facts", y)):
        right = [rng.permutation(N) < round(share * N) for share in shares]
        for place in range(1, members + 1):
            rows += [
                {"member": f"m{place}", "task": task, "metric": "item", "prompt": f"{task} {i}",
                 "value": float(right[place][i]), "baseline": float(right[0][i])}
                for i in range(N)
            ]  # fmt: skip
    about = {f"m{i}": {"kind": "lora", "rank": 2**i} for i in range(1, members + 1)}
    return result("forgetting.retention", rows, about, task="boxes")


X = np.array([0.1, 0.3, 0.5, 0.7, 0.8, 0.9])


def test_members_on_a_line_have_none():
    y = on_the_line(X)
    assert effective(X, y, (N, N)) == pytest.approx(np.zeros(6), abs=1e-12)
    slope, start = line(logits(X, N), logits(y, N))
    assert (float(slope), float(start)) == pytest.approx((SLOPE, START))


def test_what_a_member_has_more_is_found():
    y = on_the_line(X)
    y[3] += 0.15
    found = effective(X, y, (N, N))
    assert found[3] == pytest.approx(0.15, abs=1e-12)
    assert np.abs(np.delete(found, 3)).max() < 0.15
    made = robustness([retention(X, y, 5)])
    assert made is not None
    assert made.analysis == KEY
    rows = made.metric("effective").set_index("member")
    # Shares of 199 items are rounded.
    assert rows.loc["m3", "value"] == pytest.approx(0.15, abs=0.02)
    assert rows.loc["m3", "low"] > 0
    point = made.metric("point").set_index("member").loc["m3"]
    assert point["x"] == pytest.approx(round(X[3] * N) / N)
    assert point["value"] == pytest.approx(round(y[3] * N) / N)
    assert point["baseline"] == pytest.approx(round(y[0] * N) / N)
    assert point["base_x"] == pytest.approx(round(X[0] * N) / N)


def test_the_line_by_numpy():
    rng = np.random.default_rng(1)
    y = np.clip(on_the_line(X) + rng.normal(0, 0.05, 6), 0.02, 0.98)
    made = robustness([retention(X, y, 5)])
    assert made is not None
    across, up = (np.log((np.round(v * N) + 0.5) / (N + 1 - np.round(v * N) - 0.5)) for v in (X, y))
    told = made.table.set_index("metric")["value"]
    slope, start = np.polyfit(across, up, 1)
    assert told["slope"] == pytest.approx(slope)
    assert told["intercept"] == pytest.approx(start)
    assert told["correlation"] == pytest.approx(np.corrcoef(across, up)[0, 1])
    others = [0, 1, 2, 4, 5]
    slope, start = np.polyfit(across[others], up[others], 1)
    expected = 1 / (1 + np.exp(-(start + slope * across[3])))
    wanted = (np.round(y[3] * N) + 0.5 - expected * (N + 1)) / N
    rows = made.metric("effective").set_index("member")
    assert rows.loc["m3", "value"] == pytest.approx(wanted)


def test_of_models_on_the_line_one_in_twenty_is_told_apart():
    """Items are drawn anew: intervals that leave out 0 are no more than they may be."""
    rng = np.random.default_rng(0)
    left_out = []
    for seed in range(20):
        x, y = (rng.binomial(N, one) / N for one in (X, on_the_line(X)))
        made = robustness([retention(x, y, 5, seed)])
        assert made is not None
        rows = made.metric("effective")
        left_out += ((rows["low"] > 0) | (rows["high"] < 0)).tolist()
    assert np.mean(left_out) < 0.12


def test_too_few_members_and_one_score_say_nothing():
    y = on_the_line(X)
    assert robustness([retention(X, y, 3)]) is None
    assert robustness([]) is None
    same = robustness([retention(np.full(6, 0.5), y, 5)])
    assert same is not None
    assert same.metric("effective")["value"].isna().all()


def test_the_figure_and_its_sentence():
    y = on_the_line(X)
    made = robustness([retention(X, y, 5)])
    assert made is not None
    figure = line_of_the_family(made)
    check("line", figure)
    figure.draw_without_rendering()
    head, parts = sentence(made)
    assert "line" in head
    assert len(parts) == 1
    assert all(name in parts[0] for name in made.members)
