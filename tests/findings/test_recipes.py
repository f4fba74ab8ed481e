"""Seeds are the unit: null data are different no more often than they may be, items that both sides
have are paired, and what differs between recipes is found over their runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.figures.synthetic import result
from workbench.findings.equivalence import ALIKE, DIFFERENT, UNDECIDED, equivalence
from workbench.findings.verdicts import findings
from workbench.results.result import Result
from workbench.stats import Interval, bootstrap, over_runs, wilson


def about(kind: str, seed: int, **more: Any) -> dict[str, Any]:
    told = {"kind": kind, "seed": seed, "recipe": f"lr 0.1, {kind}"}
    return told | ({"rank": 4, "alpha": 8} if kind == "lora" else {}) | more


def retention(
    losses: dict[str, np.ndarray],
    members: dict[str, Any],
    right: dict[str, np.ndarray],
    begins: int = 0,
) -> Result:
    """As the analysis gives it. losses, right: (items,) of every member; begins: how many items the
    second member's are on from the first's."""
    rows: list[dict[str, Any]] = []
    for place, (member, own) in enumerate(losses.items()):
        first = begins * place
        found, score = bootstrap(own)._asdict(), right[member]
        rows.append({"member": member, "task": "pretraining", "metric": "loss_change"} | found)
        share = wilson(int(score.sum()), len(score))._asdict()
        rows.append({"member": member, "task": "boxes", "metric": "score"} | share)
        rows += [
            {"member": member, "task": "pretraining", "metric": "item_loss", "prompt": f"text {i}",
             "value": 2 + one, "baseline": 2.0, "tokens": 10.0}
            for i, one in enumerate(own, first)
        ]  # fmt: skip
        rows += [
            {"member": member, "task": "boxes", "metric": "item", "prompt": f"p{i}", "value": one}
            for i, one in enumerate(score, first)
        ]
    for row in rows:
        row.setdefault("baseline", 0.0)
    return result("forgetting.retention", rows, members, task="boxes")


def family(
    rng: np.random.Generator, runs: tuple[int, int], between: float, shift: float = 0.0, n: int = 60
) -> Result:
    """Two recipes, full and LoRA, whose runs differ by `between` nats from seed to seed."""
    texts = rng.normal(0.5, 0.3, n)  # some texts are forgotten more, by every run
    members, losses = {}, {}
    for kind, count in zip(("full", "lora"), runs, strict=True):
        for seed in range(count):
            name = f"{kind}-s{seed}"
            members[name] = about(kind, seed)
            own = rng.normal(shift * (kind == "lora"), between)
            losses[name] = texts + own + rng.normal(0, 0.05, n)
    right = {name: np.ones(300) for name in members}  # enough to be known to be alike
    return retention(losses, members, right)


def forgetting(made: Result) -> pd.Series:
    found = equivalence([made])
    assert found is not None
    rows = found.metric("difference")
    return rows[rows["measure"] == "forgetting"].iloc[0]


def different(runs: tuple[int, int], between: float, families: int = 60) -> int:
    """How many of so many families of equal recipes are called different."""
    rng = np.random.default_rng(0)
    found = [forgetting(family(rng, runs, between)) for _ in range(families)]
    return sum(row["says"] == DIFFERENT for row in found)


def test_seeds_of_one_recipe_dressed_as_two_are_rarely_different():
    """By items alone most such pairs would be: the negative control, one run a side."""
    assert different((5, 5), between=0.2) <= 6  # of 60: 5%, and twice the binomial's spread
    assert different((3, 2), between=0.2) <= 6
    assert different((1, 1), between=0.2) > 20


def decided(draw: Any, families: int = 120) -> int:
    """In how many of so many families of two models a claim on forgetting is decided."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(families):
        losses, begins = draw(rng)
        members = {"full": about("full", 0), "lora": about("lora", 0)}
        right = dict.fromkeys(members, np.ones(300))
        made = retention(dict(zip(members, losses, strict=True)), members, right, begins)
        table = findings([made])
        found += bool((table["verdict"] != "undecided").any())
    return found


def test_one_model_on_other_texts_and_shuffled_labels_decide_little():
    """By 5%, and twice the binomial's spread."""

    def others(rng: np.random.Generator) -> tuple[Any, int]:
        return (rng.normal(0.5, 0.3, 60), rng.normal(0.5, 0.3, 60)), 300

    def shuffled(rng: np.random.Generator) -> tuple[Any, int]:
        sides = np.stack([rng.normal(0.5, 0.3, 60), rng.normal(1.5, 0.3, 60)])
        return rng.permuted(sides, axis=0), 0

    def apart(rng: np.random.Generator) -> tuple[Any, int]:
        texts = rng.normal(0.5, 0.3, 60)
        return (texts, texts + 1), 0

    assert decided(others) <= 11
    assert decided(shuffled) <= 11
    assert decided(apart, 10) == 10


def test_items_are_places_also_where_a_matrix_has_no_layer():
    rows = [
        {"member": m, "layer": layer, "component": part, "metric": "relative_norm", "value": v + i}
        for i, m in enumerate(("full", "lora"))
        for layer, part, v in ((None, "lm_head", 5.0), (0, "q", 1.0), (1, "q", 2.0))
    ]
    members = {"full": about("full", 0), "lora": about("lora", 0)}
    made = equivalence([result("spectral.delta_spectrum", rows, members)])
    assert made is not None
    (row,) = made.metric("difference").to_dict("records")
    assert row["value"] == pytest.approx((6 + 2 + 3) / (5 + 1 + 2))
    assert row["n"] == 3


def test_one_run_a_side_reproduces_nothing():
    table = findings([family(np.random.default_rng(0), (1, 1), 0.2, shift=1.0)])
    more = table[table["claim"].str.contains("forgets more")]
    assert more["verdict"].unique().tolist() == ["holds in one run"]


def test_a_difference_beyond_the_seeds_is_found():
    rng = np.random.default_rng(1)
    made = [forgetting(family(rng, (5, 5), 0.1, shift=1.0)) for _ in range(10)]
    assert all(row["says"] == DIFFERENT and row["runs"] == 5 for row in made)
    table = findings([family(rng, (5, 5), 0.1, shift=1.0)])
    more = table[table["claim"].str.contains("forgets more")]
    assert more["verdict"].unique().tolist() == ["reproduced"]
    assert more["seeds"].unique().tolist() == [5]


def test_recipes_are_the_members_and_their_spread_stands_beside_them():
    made = equivalence([family(np.random.default_rng(2), (3, 1), 0.2)])
    assert made is not None
    assert made.members == ["full", "lora-s0"]
    assert made.provenance.members["full"]["seeds"] == [0, 1, 2]
    own = made.table[(made.table["measure"] == "forgetting") & (made.table["member"] == "full")]
    spread = own[own["metric"] == "spread"].iloc[0]
    assert spread["n"] == spread["runs"] == 3
    assert spread["low"] < spread["value"] < spread["high"]
    assert not (made.table["metric"].eq("spread") & made.table["member"].eq("lora-s0")).any()


def test_the_same_items_are_compared_one_by_one():
    """Texts that differ much, and all by the same from one side to the other: independent sides
    decide nothing, pairs do."""
    texts = np.random.default_rng(3).normal(1, 1, 40)
    members = {"full": about("full", 0), "lora": about("lora", 0)}
    ones = {name: np.ones(40) for name in members}
    made = retention({"full": texts, "lora": texts + 0.15}, members, ones)
    row = forgetting(made)
    assert row["says"] == DIFFERENT
    assert (row["low"], row["high"]) == pytest.approx((0.15, 0.15))
    apart = made.table[made.table["metric"] != "item_loss"]
    alone = result("forgetting.retention", apart.to_dict("records"), members, task="boxes")
    assert forgetting(alone)["says"] == UNDECIDED


def test_a_member_against_itself_is_alike_at_any_number_of_items():
    rng = np.random.default_rng(4)
    for n in (1, 2, 5):
        losses, right = rng.normal(size=n), (rng.random(n) < 0.5).astype(float)
        members = {
            "full": about("full", 0, fingerprint="a"),
            "again": about("full", 0, fingerprint="a"),
        }
        same = dict.fromkeys(members, losses), dict.fromkeys(members, right)
        made = equivalence([retention(same[0], members, same[1])])
        assert made is not None
        rows = made.metric("difference")
        assert set(rows["says"]) == {ALIKE}
        assert rows[["value", "low", "high"]].eq(0).all(axis=None)


def test_over_runs_by_hand():
    """Welch's t of two and three runs beside an interval over items, by its textbook formula."""
    first, second = [1.0, 3.0], [0.0, 0.5, 1.0]
    parts = 2.0 / 2, 0.25 / 3
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2)
    from scipy.stats import t

    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    found = over_runs(Interval(1.5, 1.0, 2.5, 9), first, second)
    assert found.low == pytest.approx(1.5 - math.hypot(0.5, half))
    assert found.high == pytest.approx(1.5 + math.hypot(1.0, half))
    assert found.n == 9
    only = over_runs(Interval(1.5, 1.0, 2.5, 9), [1.5], [0.0])
    assert only == Interval(1.5, 1.0, 2.5, 9)
