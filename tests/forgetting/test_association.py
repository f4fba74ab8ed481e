"""Correlations of joined Results whose order over the members is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.figures.looking import check
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.results.result import Provenance, Result

MEMBERS = ("a", "b", "c", "d", "e")


def result(analysis: str, rows: list[dict[str, Any]], base: str = "base", **more: Any) -> Result:
    about = Provenance({"fingerprint": base}, {m: {"kind": "full"} for m in MEMBERS}, **more)
    return Result(analysis, pd.DataFrame(rows), about)


def retention(losses: tuple[float, ...] = (1, 2, 3, 4, 5)) -> Result:
    rows = []
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


def test_what_does_not_vary_has_no_correlation():
    found = wb.forgetting.association([retention(), intruders((2,) * 5, (0,) * 5)])
    row = found.metric("spearman").set_index("outcome").loc["loss"]
    assert np.isnan(row["value"])
    assert np.isnan(row["p"])


def test_what_cannot_be_joined_is_refused():
    other = intruders((1, 2, 3, 4, 5), (0,) * 5)
    with pytest.raises(WorkbenchError, match=r"forgetting\.retention"):
        wb.forgetting.association([other])
    with pytest.raises(WorkbenchError, match=r"spectral\.intruders"):
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
        [retention(), intruders((1, 3, 2, 4, 5), (5, 4, 3, 2, 1)), spectrum((50, 40, 30, 20, 10))]
    )
    check("association", found.plot())
    assert "effective rank: ρ -1.00" in figures.headline(found)
