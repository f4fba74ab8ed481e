"""Gains over a chain: by hand, of models whose knowledge is written, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import workbench as wb
from tests.figures.looking import check
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.lab.compiled import pairs
from workbench.results.result import Provenance, Result
from workbench.stats import change, gaps

N = 32


def retention(
    before: list[float], after: list[float], base: str, member: str = "tuned", task: str = "t"
) -> Result:
    rows = [
        {"member": member, "task": task, "metric": "item", "prompt": str(i), "value": own,
         "baseline": was, "group": f"template {i % 2}"}
        for i, (was, own) in enumerate(zip(before, after, strict=True))
    ]  # fmt: skip
    about = Provenance({"reference": f"some/{base}", "fingerprint": base}, {member: {}})
    return Result("forgetting.retention", pd.DataFrame(rows), about)


def first(n: int, of: int = N) -> list[float]:
    """The first n items are right."""
    return [1.0] * n + [0.0] * (of - n)


def one(result: Result, metric: str, x: float | None = None) -> pd.Series:
    rows = result.metric(metric)
    rows = rows[rows["x"].isna() if x is None else rows["x"] == x]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def test_every_number_by_hand():
    """Bases know 4, 8, 8 and 16 of 32 items in a row; tuned models 16, 20, 28 and 24."""
    before, after = [first(n) for n in (4, 8, 8, 16)], [first(n) for n in (16, 20, 28, 24)]
    found = wb.forgetting.gains(
        [retention(*both, f"step{i}") for i, both in enumerate(zip(before, after, strict=True))]
    )
    for x, (was, own) in enumerate(zip((4, 8, 8, 16), (16, 20, 28, 24), strict=True)):
        assert one(found, "base_score", x)["value"] == was / N
        assert one(found, "score", x)[["value", "baseline"]].tolist() == [own / N, was / N]
        told = one(found, "gain", x)
        assert told["value"] == pytest.approx((own - was) / N)
        interval = change(np.array(before[x]), np.array(after[x]))
        assert (told["low"], told["high"]) == (interval.low, interval.high)
        unknown = one(found, "gain_unknown", x)
        assert unknown["value"] == pytest.approx((own - was) / (N - was))
        assert (unknown["baseline"], unknown["n"]) == (own / N, N - was)
        assert told["checkpoint"] == f"step{x}"
        for row in gaps(np.array(before[x]), np.array(after[x]), np.arange(N) % 2):
            assert one(found, row["metric"], x)["value"] == row["value"]
    latent = [one(found, "latent", x)["value"] * N for x in (1, 2, 3)]
    assert latent == pytest.approx([(20 - 16) - 4, 28 - 20, (24 - 28) - 8])
    gain, score = np.array([12, 12, 20, 8]), np.array([4, 8, 8, 16])
    told = one(found, "gain_with_score")
    assert told["value"] == pytest.approx(spearmanr(score, gain).statistic)
    assert told["baseline"] < -0.3  # what is known cannot be gained
    assert one(found, "gain_with_place")["value"] == pytest.approx(
        spearmanr(range(4), gain).statistic
    )


def test_gaps_fall_where_templates_come_to_agree():
    """The base is right on 16, 12, 8 and 0 of one template's 16 prompts and on none of the other's:
    its gap falls from 1 to 0."""
    runs = [
        retention([float(i % 2 and i < 2 * n) for i in range(N)], first(N), f"step{k}")
        for k, n in enumerate((16, 12, 8, 0))
    ]
    told = one(wb.forgetting.gains(runs), "gap_with_place")
    assert (told["value"], told["p"]) == (-1, pytest.approx(2 / 24))


def test_scores_that_have_nothing_to_do_with_the_base_gain_by_chance_alone():
    """The null: what the base had wrong is learned as often as all else, and nothing is latent."""
    draw = np.random.default_rng(0)
    told: dict[str, list[float]] = {"gain_unknown": [], "latent": []}
    inside: dict[str, list[float]] = {"gain_unknown": [], "latent": []}
    for _ in range(12):
        sides = draw.random((2, 3, 200)) < 0.5
        runs = [
            retention(*np.array(own, float).tolist(), f"b{i}")
            for i, own in enumerate(sides.swapaxes(0, 1))
        ]
        found = wb.forgetting.gains(runs)
        for metric, kept in told.items():
            rows = found.metric(metric)
            kept.append(float((rows["value"] - rows["baseline"]).mean()))
            held = (rows["low"] <= rows["baseline"]) & (rows["baseline"] <= rows["high"])
            inside[metric].append(float(held.mean()))
    for metric in ("gain_unknown", "latent"):
        error = np.std(told[metric]) / np.sqrt(len(told[metric]))
        assert abs(np.mean(told[metric])) < 4 * error
        assert np.mean(inside[metric]) > 0.8


def test_models_whose_facts_are_written(tmp_path: Path):
    """Bases that lost 2, 5, 8 and 11 of 24 facts, each made whole: the gain is what was lost."""
    known = pairs(tmp_path, ["facts-graded"])["facts-graded"]
    runs = []
    for name, folder in known.siblings.items():
        pair = wb.load_pair(folder, known.base, name="whole")
        runs.append(wb.forgetting.retention(pair, [known.prompts]))
        assert name in str(pair.base.folder)
    found = wb.forgetting.gains(runs)
    assert [*found.metric("gain")["value"]] == pytest.approx([2 / 24, 5 / 24, 8 / 24, 11 / 24])
    assert found.metric("gain_unknown")["value"].eq(1).all()
    assert [*found.metric("gain")["checkpoint"]] == [*known.siblings]
    told = one(found, "gain_with_score")
    assert (told["value"], told["p"]) == (-1, pytest.approx(2 / 24))
    assert found.members == ["whole"]


def test_the_chain_is_drawn():
    sides = ((4, 16), (8, 20), (8, 28))
    found = wb.forgetting.gains(
        [retention(first(was), first(own), f"step{k}") for k, (was, own) in enumerate(sides)]
    )
    figure = figures.gains_over_chain(found)
    check("chain", figure)
    before, after = (line.get_ydata() for line in figure.axes[0].lines[:2])
    np.testing.assert_allclose(before, [4 / N, 8 / N, 8 / N])
    np.testing.assert_allclose(after, [16 / N, 20 / N, 28 / N])
    assert "tuned: +0.38 " in figures.headline(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: [retention(first(4), first(8), "a")], "two or more; found 1"),
        (lambda: [retention(first(4), first(8), "a"), other()], "found spectral.intruders"),
        (lambda: [retention(first(4), first(8), "a"),
                  retention(first(4), first(8), "b", task="u")], "found none that all have"),
        (lambda: [retention(first(4), first(8), "a"),
                  retention(first(4, 20), first(8, 20), "b")], "are others"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused(given: Any, said: str):
    with pytest.raises(WorkbenchError, match=said):
        wb.forgetting.gains(given())


def other() -> Result:
    table = pd.DataFrame([{"member": "tuned", "metric": "intruder", "value": 1.0}])
    return Result("spectral.intruders", table, Provenance({"fingerprint": "b"}, {"tuned": {}}))
