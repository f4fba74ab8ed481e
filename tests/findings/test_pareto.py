"""Curves over learning rates: who forgets less at an equal score is found, and equals are not told
apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.findings.test_recipes import retention
from workbench.findings import findings
from workbench.findings.pareto import KEY, least, pareto
from workbench.results.result import Result

RATES = (0.1, 0.2, 0.4)
SHARES = (0.5, 0.8, 0.9)  # of the prompts that a rate answers
ITEMS = 200


def swept(worse: float, *, runs: int = 2, between: float = 0.02, seed: int = 0) -> Result:
    """Full and LoRA at three rates. Both forget 0.5, 1 and 2 nats at these scores, LoRA `worse`
    more; but it needs twice the rate of full for the same score, so that at one rate it forgets
    less. Runs differ by `between`."""
    rng = np.random.default_rng(seed)
    texts, losses, right, members = rng.normal(0, 0.2, ITEMS), {}, {}, {}
    for kind in ("full", "lora"):
        for rate, share, lost in zip(RATES, SHARES, (0.5, 1.0, 2.0), strict=True):
            for run in range(runs):
                lr = rate * (2 if kind == "lora" else 1)
                name = f"{kind}-x{lr:g}-s{run}"
                more: dict[str, Any] = {"rank": 4, "alpha": 8} if kind == "lora" else {}
                members[name] = {"kind": kind, "seed": run, "recipe": f"lr {lr:g}, steps 9"} | more
                shift = lost + worse * (kind == "lora") + rng.normal(0, between)
                losses[name] = texts + shift + rng.normal(0, 0.02, ITEMS)
                right[name] = (np.arange(ITEMS) < share * ITEMS).astype(float)
    return retention(losses, members, right)


def test_the_least_forgetting_at_a_score_by_hand():
    score, lost = np.array([0.5, 0.8, 0.9]), np.array([0.5, 1.0, 2.0])
    assert least(score, lost, 0.5) == 0.5
    assert least(score, lost, 0.65) == pytest.approx(0.75)  # half the way to the next rate
    assert least(score, lost, 0.9) == 2.0
    assert least(score, lost, 0.95) == 2.0  # reached by none: the nearest
    # A rate that scores more and forgets less leaves the one before it behind.
    assert least(np.array([0.5, 0.9]), np.array([3.0, 1.0]), 0.4) == 1.0
    several = least(np.stack([score, score]).T, np.stack([lost, 2 * lost]).T, 0.65)
    assert several == pytest.approx([0.75, 1.5])


@pytest.mark.parametrize(
    ("worse", "says"), [(0.5, "different"), (0.0, "alike"), (-0.5, "different")]
)
def test_who_forgets_less_at_an_equal_score(worse: float, says: str):
    made = pareto([swept(worse, runs=4)])
    assert made is not None
    assert made.analysis == KEY
    assert made.members == ["full", "lora"]
    rows = made.metric("difference")
    assert set(rows["member"]) == {"lora"}
    assert set(rows["versus"]) == {"full"}
    assert rows["x"].max() == pytest.approx(0.9)
    top = rows.loc[rows["x"].idxmax()]
    assert top["value"] == pytest.approx(worse, abs=0.05)
    assert top["low"] < worse < top["high"]
    assert top["says"] == says
    assert set(rows["runs"]) == {4}
    points = made.metric("point")
    assert points["x"].tolist() == pytest.approx([*SHARES, *SHARES])
    assert len(made.metric("run")) == 24


def test_the_claims_read_curves_and_not_one_rate():
    """At the same rate this LoRA forgets less; at the same score it forgets more."""
    table = findings([swept(0.3, runs=4)])
    more = table[table["claim"].str.contains("forgets more than")]
    assert more["member"].tolist() == ["lora, over learning rates"]
    assert more["verdict"].tolist() == ["reproduced"]
    assert more["seeds"].tolist() == [4]
    less = table[table["claim"].str.contains("forgets less than")]
    assert less["verdict"].tolist() == ["not reproduced"]


def test_equals_are_rarely_told_apart():
    """By items alone they would be: of one run a side most are."""

    def decided(runs: int) -> int:
        found = [pareto([swept(0.0, runs=runs, between=0.3, seed=i)]) for i in range(40)]
        rows = [made.metric("difference") for made in found if made is not None]
        return sum(own.loc[own["x"].idxmax(), "says"] == "different" for own in rows)

    assert decided(3) <= 5  # of 40: 5%, and twice the binomial's spread
    assert decided(1) > 15


def test_one_rate_is_no_curve():
    made = swept(0.0)
    rows = made.table[made.table["member"].str.contains("full-x0.1|lora-x0.2")]
    kept = {m: a for m, a in made.provenance.members.items() if m in set(rows["member"])}
    from tests.figures.synthetic import result

    alone = result("forgetting.retention", rows.to_dict("records"), kept, task="boxes")
    assert pareto([alone]) is None
    assert pareto([]) is None
