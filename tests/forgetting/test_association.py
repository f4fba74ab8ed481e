"""Correlations of joined Results whose order over the members is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import workbench as wb
from tests.figures.looking import check
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.results.result import Provenance, Result

MEMBERS = ("a", "b", "c", "d", "e")


def result(analysis: str, rows: list[dict[str, Any]], base: str = "base", **more: Any) -> Result:
    about = Provenance({"fingerprint": base}, {m: {"kind": "full"} for m in MEMBERS}, **more)
    return Result(analysis, pd.DataFrame(rows), about)


def retention(
    losses: tuple[float, ...] = (1, 2, 3, 4, 5),
    kl: tuple[float, ...] = (),
    scores: tuple[float, ...] = (),
) -> Result:
    """kl, scores: of the own task, which has other values than the tasks beside it."""
    rows = []
    for metric, values in (("answer_kl", kl), ("score", scores)):
        for member, value in zip(MEMBERS, values, strict=False):
            told = {"member": member, "metric": metric, "n": 7}
            rows += [told | {"task": "own", "value": value}, told | {"task": "x", "value": -value}]
    for member, loss in zip(MEMBERS, losses, strict=True):
        told = {"member": member, "n": 10}
        interval = {"low": loss - 0.1, "high": loss + 0.1}
        rows.append(told | interval | {"task": "text", "metric": "loss_change", "value": loss})
        for task, drop in (("own", 9.0), ("x", -loss / 10), ("y", -loss / 5)):
            rows.append(told | {"task": task, "metric": "score_change", "value": drop})
    return result("forgetting.retention", rows, parameters={"task": "own"})


def intruders(counts: tuple[int, ...], nulls: tuple[int, ...]) -> Result:
    rows = []
    for metric, each in (("intruder", counts), ("intruder:random_lowrank", nulls)):
        for member, count in zip(MEMBERS, each, strict=True):
            told = {"member": member, "metric": metric}
            rows += [told | {"rank": i, "value": float(i < count)} for i in range(6)]
    return result("spectral.intruders", rows)


def spectrum(ranks: tuple[float, ...]) -> Result:
    rows = [
        {"member": m, "metric": metric, "value": scale * v}
        for m, rank in zip(MEMBERS, ranks, strict=True)
        for metric, scale in (("effective_rank", 1), ("relative_norm", 0.01))
        for v in (rank - 1, rank + 1, 0.0)  # the last matrix did not change
    ]
    return result("spectral.delta_spectrum", rows)


def test_order_is_found_with_its_exact_p_and_the_null():
    found = wb.forgetting.association(
        [retention(), intruders((1, 2, 3, 4, 5), (5, 4, 3, 2, 1)), spectrum((50, 40, 30, 20, 10))]
    )
    rho = found.metric("spearman").set_index(["outcome", "measure"])
    for outcome in ("loss", "score"):
        row = rho.loc[(outcome, "intruders")]
        assert row["value"] == pytest.approx(1)
        assert row["baseline"] == pytest.approx(-1)
        assert row["p"] == pytest.approx(2 / 120)  # of 5! orders, this one and its reverse
        assert rho.loc[(outcome, "effective rank"), "value"] == pytest.approx(-1)
    measured = found.metric("measure").set_index(["measure", "member"])["value"]
    assert measured["intruders", "c"] == 3
    assert measured["effective rank", "a"] == 50
    assert measured["relative norm", "a"] == pytest.approx(0.5)
    assert not found.table["measure"].fillna("").str.startswith("null").any()
    lost = found.metric("forgetting").set_index(["outcome", "member"])["value"]
    assert lost["loss", "b"] == 2
    assert lost["score", "b"] == pytest.approx((0.2 + 0.4) / 2)  # the own task does not count


KL, SCORES = (0.2, 0.1, 0.4, 0.3, 0.9), (0.5, 0.6, 0.8, 0.7, 0.75)


def test_kl_on_the_task_is_a_measure_and_its_score_is_held_fixed():
    """Against scipy's rank correlations, and the formula of the partial one."""
    found = wb.forgetting.association(
        [retention(kl=KL, scores=SCORES), spectrum((50, 40, 20, 30, 10))]
    )
    measured = found.metric("measure").set_index(["measure", "member"])
    assert measured.loc[("KL on the task", "c"), "value"] == 0.4
    assert measured.loc[("KL on the task", "c"), "n"] == 7
    assert found.metric("task_score").set_index("member")["value"].to_dict() == dict(
        zip(MEMBERS, SCORES, strict=True)
    )
    plain, partial = (
        found.metric(name).set_index(["outcome", "measure"])
        for name in ("spearman", "spearman_partial")
    )
    for measure, values in (("KL on the task", KL), ("effective rank", (50, 40, 20, 30, 10))):
        lost = (1, 2, 3, 4, 5)
        xy, xz, yz = (
            float(np.asarray(spearmanr(*pair).statistic))
            for pair in ((values, lost), (values, SCORES), (lost, SCORES))
        )
        given = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
        for outcome in ("loss", "score"):  # both rise with the member
            assert plain.loc[(outcome, measure), "value"] == pytest.approx(xy)
            assert partial.loc[(outcome, measure), "value"] == pytest.approx(given)
            assert partial.loc[(outcome, measure), "n"] == 5
            assert 0 < partial.loc[(outcome, measure), "p"] <= 1
    assert given != pytest.approx(xy, abs=0.01)


def test_what_the_score_explains_has_no_partial_correlation():
    found = wb.forgetting.association([retention(kl=KL, scores=KL)])
    row = found.metric("spearman_partial").iloc[0]
    assert np.isnan([row["value"], row["low"], row["high"], row["p"]]).all()
    assert found.metric("spearman")["value"].notna().all()
    assert any("explained by the task's score" in note for note in found.provenance.notes)


def test_without_the_tasks_score_there_is_no_partial_one():
    found = wb.forgetting.association([retention(kl=KL)])
    assert not found.has("spearman_partial")
    assert not found.has("task_score")
    assert found.metric("measure")["measure"].unique().tolist() == ["KL on the task"]


def test_the_overlap_of_whole_circuits_is_a_measure():
    overlap = [
        {"member": m, "metric": "jaccard", "arm": arm, "group": group, "value": value, "n": 9}
        for m, value in zip(MEMBERS, (0.1, 0.5, 0.4, 0.3, 0.2), strict=True)
        for arm, group, value in (
            ("overlap", None, value), ("overlap", "movers", 1 - value), ("patch", None, 0.0),
        )
    ]  # fmt: skip
    circuit = result("patching.circuit", overlap)
    found = wb.forgetting.association([retention(), circuit]).metric("spearman").iloc[0]
    assert found["measure"] == "circuit overlap"
    assert found["value"] == pytest.approx(spearmanr((1, 5, 4, 3, 2), range(5)).statistic)
    # Of other members it is left out, as what was asked of another task.
    renamed = circuit.table.assign(member=circuit.table["member"] + "'")
    apart = Result(circuit.analysis, renamed, circuit.provenance)
    both = wb.forgetting.association([retention(kl=KL), apart]).metric("spearman")
    assert set(both["measure"]) == {"KL on the task"}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ([{"recipe": one, "seed": i} for i, one in enumerate("aabbc")], 3),
        ([{"recipe": "a", "kind": "lora", "rank": r, "alpha": 2 * r, "seed": s}
          for r, s in ((1, 0), (1, 1), (4, 0), (4, 1), (4, 2))], 2),
        ([{"kind": "full", "seed": i} for i, _ in enumerate(MEMBERS)], None),
    ],
    ids=["told", "and of several ranks", "untold"],
)  # fmt: skip
def test_runs_of_one_recipe_are_counted(about, expected):
    kept = retention(kl=KL, scores=SCORES)
    members = dict(zip(MEMBERS, about, strict=True))
    kept = Result(kept.analysis, kept.table, replace(kept.provenance, members=members))
    found = wb.forgetting.association([kept])
    told = found.table.loc[found.table["metric"].str.startswith("spearman"), "recipes"]
    noted = [note for note in found.provenance.notes if "not independent" in note]
    if expected is None:
        assert told.isna().all()
        assert not noted
    else:
        assert set(told) == {expected}
        assert f"5 models are runs of {expected} recipes" in noted[0]


def test_what_does_not_vary_has_no_correlation():
    found = wb.forgetting.association([retention(), intruders((2,) * 5, (0,) * 5)])
    row = found.metric("spearman").set_index("outcome").loc["loss"]
    assert np.isnan(row["value"])
    assert np.isnan(row["p"])


def test_what_cannot_be_joined_is_refused():
    other = intruders((1, 2, 3, 4, 5), (0,) * 5)
    with pytest.raises(WorkbenchError, match=r"forgetting\.retention"):
        wb.forgetting.association([other])
    with pytest.raises(WorkbenchError, match=r"spectral\.intruders.*patching\.circuit"):
        wb.forgetting.association([retention()])
    elsewhere = Result(
        other.analysis, other.table, Provenance({"fingerprint": "other"}, other.provenance.members)
    )
    with pytest.raises(WorkbenchError, match="found"):
        wb.forgetting.association([retention(), elsewhere])
    few = Result(other.analysis, other.table[other.table["member"] < "c"], other.provenance)
    with pytest.raises(WorkbenchError, match="three fine-tuned models"):
        wb.forgetting.association([retention(), few])


def test_it_is_drawn_and_said():
    found = wb.forgetting.association(
        [
            retention(kl=KL, scores=SCORES),
            intruders((1, 3, 2, 4, 5), (5, 4, 3, 2, 1)),
            spectrum((50, 40, 30, 20, 10)),
        ]
    )
    figure = found.plot()
    check("association", figure)
    assert "effective rank: ρ -1.00" in figures.headline(found)
    assert "given the task's score ρ -1.00" in figures.headline(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "ρ = 0.80 (p = 0.13)" in titles[0]  # of KL, 4 of 5 in order: 1 - 6 * 4 / 120
    assert sum("given score" in title for title in titles) == 4
    # A table of an earlier version has no such rows.
    earlier = found.table[~found.table["metric"].isin(["spearman_partial", "task_score"])]
    old = Result(found.analysis, earlier.drop(columns="recipes"), found.provenance)
    assert "given" not in old.plot().axes[0].get_title(loc="left")
    assert "given" not in figures.headline(old)
