"""Counts, strengths and the sentence of intruders against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.figures.synthetic import intruders, result, stepped
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures.spectral.intruders import correlation
from workbench.stats import predicted

PLACE = {"layer": 0, "component": "self_attn.q_proj"}


def three(cosines=(0.9, 0.3, 0.5), sigmas=(4.0, 2.0, 1.0), member="a", layer=0, **about):
    """One matrix of three vectors, with a null that has no intruder."""
    rows = []
    for rank, (cosine, sigma) in enumerate(zip(cosines, sigmas, strict=True)):
        place = PLACE | {"member": member, "layer": layer, "rank": rank}
        for metric, value in (
            ("max_cosine", cosine),
            ("sigma", sigma),
            ("max_cosine:random_delta", 0.95),
        ):
            rows.append(place | {"metric": metric, "value": value})
    return rows, {member: {"kind": "full"} | about}


def intruders_of(*made, eps=0.5, k=3):
    rows = [row for one, _ in made for row in one]
    members = {name: about for _, known in made for name, about in known.items()}
    return result("spectral.intruders", rows, members, k=k, eps=eps, side="left")


@pytest.mark.parametrize(
    ("eps", "k", "count", "n"),
    [(0.5, 3, 1, 3), (0.51, 3, 2, 3), (0.91, 3, 3, 3), (0.3, 3, 0, 3), (0.5, 1, 0, 1)],
)
def test_counts_of_three_vectors(eps, k, count, n):
    """Strictly below eps, among the first k: .9, .3, .5."""
    counts = figures.intruder_counts(intruders_of(three()), eps, k)
    tuned = counts[counts["arm"] == "tuned"].iloc[0]
    null = counts[counts["arm"] == "random_delta"].iloc[0]
    assert (tuned["count"], tuned["n"]) == (count, n)
    assert tuned["fraction"] == pytest.approx(count / n)
    assert null["count"] == 0


def test_counts_by_place_and_many_eps_add_up():
    made = intruders_of(three(layer=0), three(cosines=(0.1, 0.2, 0.3), layer=1))
    grid = figures.intruder_counts(made, [0.15, 0.5, 1.0])
    assert list(grid.loc[grid["arm"] == "tuned", "count"]) == [1, 4, 6]
    by = figures.intruder_counts(made, 0.5, by=("member", "layer"))
    assert list(by.loc[by["arm"] == "tuned", "count"]) == [1, 3]


def test_a_larger_k_than_stored_is_refused():
    with pytest.raises(WorkbenchError, match="from 1 to 3"):
        figures.intruder_counts(intruders_of(three()), 0.5, 4)


def test_a_result_decided_at_one_eps_is_counted_there_and_nowhere_else(tmp_path: Path):
    full = intruders(stepped())
    rows = full.table[~full.table["metric"].str.startswith("max_cosine")]
    null = rows[rows["metric"] == "intruder"].assign(metric="intruder:random_delta", value=0.0)
    decided = replace(full, table=pd.concat([rows, null]))
    ours, theirs = (figures.intruder_counts(r).query("arm == 'tuned'") for r in (decided, full))
    assert ours["count"].tolist() == theirs["count"].tolist()
    assert figures.headline(decided).count("random delta: 0") == len(full.members)
    with pytest.raises(WorkbenchError, match=r"eps 0.5, at which .* found 0.3; run"):
        figures.intruder_counts(decided, 0.3)
    with pytest.raises(WorkbenchError, match="and their cosines"):
        figures.training_steps(decided)
    names = [path.name for path in figures.save_all([decided], tmp_path)]
    assert "spectral.intruders.count.png" in names
    assert "spectral.intruders.training.png" not in names


def test_the_strongest_intruder_weighs_novelty_by_sigma():
    """(1 - .81) * 1, (1 - .09) * .5, (1 - .25) * .25: the second vector."""
    best = figures.strongest(intruders_of(three())).iloc[0]
    assert best["rank"] == 1
    assert best["strength"] == pytest.approx(0.455)


def test_the_last_checkpoint_names_the_matrix():
    early = three(cosines=(1, 1, 1), member="a@1", kind="lora", step=1)
    late = three(cosines=(1, 1, 1), member="a@2", kind="lora", step=2)
    late[0].extend(three(cosines=(0.1, 1, 1), member="a@2", layer=3)[0])
    early[0].extend(three(cosines=(1, 0.9, 1), member="a@1", layer=3)[0])
    best = figures.strongest(intruders_of(early, late))
    assert list(best.index) == ["a@1", "a@2"]
    assert list(best["layer"]) == [3, 3]
    assert list(best["rank"]) == [1, 0]


def test_spearman_says_where_it_is_not_defined():
    x = np.arange(4.0)
    assert correlation(x, -x) == "-1.00 (n = 4)"
    assert correlation(x[:2], x[:2]) == "not defined (n = 2)"
    assert "constant" in correlation(x, np.ones(4))
    assert correlation(np.array([1, 2, 3, np.nan]), x) == "1.00 (n = 3)"


def test_the_sentence_holds_the_numbers():
    made = intruders_of(three())
    said = figures.headline(made)
    assert "a: 1 of 3" in said
    assert "eps 0.5" in said
    assert "random delta: 0" in said


def drawn(counts=(0, 1, 2, 3, 4), n=10, member="a"):
    """One matrix of n vectors of which three are intruders, and a null of `counts` by draw."""
    rows = []
    for name, count in [("max_cosine", 3)] + [
        (f"max_cosine:same_spectrum:{draw}", count) for draw, count in enumerate(counts, 1)
    ]:
        place = PLACE | {"member": member, "metric": name}
        rows += [place | {"rank": i, "value": 0.1 if i < count else 0.9} for i in range(n)]
    return rows


def test_draws_of_a_null_are_one_mean_with_the_spread_of_a_further_draw():
    """0 to 4 has mean 2 and variance 5/2; t(.975, 4) = 2.776; 2.776 sqrt(2.5 * 1.2) = 4.808."""
    made = result("spectral.intruders", drawn(), {"a": {"kind": "lora"}}, k=10, eps=0.5)
    counts = figures.intruder_counts(made).set_index("arm")
    assert list(counts.index) == ["tuned", "same_spectrum"]
    null = counts.loc["same_spectrum"]
    assert (null["count"], null["low"], null["n"]) == (2, 0, 10)
    assert null["high"] == pytest.approx(2 + 4.808, abs=1e-3)
    assert counts.loc["tuned", ["low", "high"]].isna().all()
    assert "a: 3 of 10" in figures.headline(made)
    assert "same spectrum: 2 [0, 7], no more than chance" in figures.headline(made)


@pytest.mark.parametrize(
    ("counts", "said"),
    [((0,) * 5, "more than chance"), ((9,) * 5, "fewer than chance"), ((3,) * 5, "no more than")],
)
def test_draws_that_agree_leave_room_for_one_count(counts, said):
    """Five draws cannot exclude that a sixth differs by one: 2.776 sqrt(1.2 / 5) = 1.36."""
    made = result("spectral.intruders", drawn(counts), {"a": {"kind": "lora"}}, k=10, eps=0.5)
    null = figures.intruder_counts(made).set_index("arm").loc["same_spectrum"]
    assert null["high"] == pytest.approx(min(10, counts[0] + 1.36), abs=0.01)
    assert f", {said}" in figures.headline(made)


def test_a_prediction_interval_holds_a_further_draw_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(20_000, 6))
    low, high = predicted(draws[:, :5].mean(1), draws[:, :5].var(1, ddof=1), 5)
    assert ((low < draws[:, 5]) & (draws[:, 5] < high)).mean() == pytest.approx(0.95, abs=0.006)
    assert predicted(0.0, 1.0, 1)[1] == np.inf
