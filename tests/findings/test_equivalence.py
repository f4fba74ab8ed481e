"""Equal members are alike, planted differences are different, wide intervals decide nothing."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.figures.synthetic import result
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.findings.equivalence import (
    ALIKE,
    DIFFERENT,
    MEASURES,
    UNDECIDED,
    equivalence,
    verdict,
)
from workbench.results.result import Result
from workbench.stats import Interval, difference, proportion

MEMBERS = {
    "r4": {"kind": "lora", "rank": 4},
    "r64": {"kind": "lora", "rank": 64},
    "full": {"kind": "full"},
}


def retention(
    score: dict[str, tuple], loss: dict[str, tuple], members=MEMBERS, n: int = 400
) -> Result:
    """A Result of (value, low, high) by member."""
    rows = [
        {"member": m, "task": t, "metric": metric, "value": v, "low": low, "high": high, "n": n,
         "baseline": 0.25}
        for metric, t, given in (("score", "boxes", score), ("loss_change", "pretraining", loss))
        for m, (v, low, high) in given.items()
    ]  # fmt: skip
    return result("forgetting.retention", rows, members, task="boxes")


def says(made: Result) -> dict[tuple[str, str], str]:
    rows = made.metric("difference")
    return {(row.member, row.measure): row.says for row in rows.itertuples()}


def test_equal_different_and_too_wide_to_tell():
    score = {"r4": (0.9, 0.89, 0.91), "r64": (0.7, 0.68, 0.72), "full": (0.9, 0.89, 0.91)}
    loss = {"r4": (0.5, 0.49, 0.51), "r64": (0.5, 0.2, 0.8), "full": (0.5, 0.49, 0.51)}
    made = equivalence([retention(score, loss)])
    assert made is not None
    assert says(made) == {
        ("r4", "score"): ALIKE, ("r64", "score"): DIFFERENT,
        ("r4", "forgetting"): ALIKE, ("r64", "forgetting"): UNDECIDED,
    }  # fmt: skip
    rows = made.metric("difference").set_index(["member", "measure"])
    assert rows.loc[("r64", "score"), "value"] == pytest.approx(-0.2)
    # By hand: each side of the interval is the root of the two sides' squares.
    assert rows.loc[("r64", "score"), "low"] == pytest.approx(-0.2 - math.hypot(0.02, 0.01))
    measured = made.metric("measure").set_index(["member", "measure"])
    assert measured.loc[("r4", "score"), "baseline"] == 0.25
    assert measured.loc[("r4", "forgetting"), "baseline"] == 0


def test_a_certain_difference_within_the_margin_is_alike():
    score = {"r4": (0.91, 0.909, 0.911), "r64": (0.96, 0.95, 0.97), "full": (0.9, 0.899, 0.901)}
    made = equivalence([retention(score, {})])
    assert made is not None
    assert says(made) == {("r4", "score"): ALIKE, ("r64", "score"): DIFFERENT}
    strict = equivalence([retention(score, {})], margins={"score": 0.001})
    assert strict is not None
    assert says(strict)["r4", "score"] == DIFFERENT


def test_scores_of_all_right_are_not_certain():
    score = dict.fromkeys(("r4", "full"), (1.0, 1.0, 1.0))
    few = equivalence([retention(score, {}, n=20)])
    many = equivalence([retention(score, {}, n=2000)])
    assert few is not None
    assert many is not None
    assert says(few)["r4", "score"] == UNDECIDED
    assert says(many)["r4", "score"] == ALIKE


def test_sizes_are_compared_as_ratios():
    ranks = {"r4": [4.0, 4.0, 4.1], "r64": [100.0, 110.0, 105.0], "full": [100.0, 112.0, 104.0]}
    rows = [
        {"member": m, "layer": i, "component": "q", "metric": "effective_rank", "value": value}
        for m, values in ranks.items()
        for i, value in enumerate(values)
    ]
    made = equivalence([result("spectral.delta_spectrum", rows, MEMBERS)])
    assert made is not None
    assert says(made) == {("r4", "effective rank"): DIFFERENT, ("r64", "effective rank"): ALIKE}
    found = made.metric("difference").set_index("member").loc["r4"]
    assert found["value"] == pytest.approx(4.0333333 / 105.333333)
    assert (found["arm"], found["margin"], found["n"]) == ("ratio", 1.25, 3)
    # Matrix by matrix: of three the most uneven draws have the first alone, and the second.
    ends = sorted(a / b for a, b in zip(ranks["r4"], ranks["full"], strict=True))
    assert ends[0] - 1e-12 < found["low"] < found["value"] < found["high"] < ends[-1] + 1e-12
    assert found["baseline"] == 1
    ceilings = made.metric("measure").set_index("member")["baseline"]
    assert ceilings["r4"] == 4
    assert math.isnan(ceilings["full"])


def test_the_smallest_graft_that_carries_the_gain():
    gains = {
        "r4": [(0.01, 0.2, 0.1, 0.3), (0.1, 0.92, 0.85, 0.97), (0.3, 1.0, 0.95, 1.0)],
        "full": [(0.01, 0.0, 0.0, 0.1), (0.1, 0.5, 0.4, 0.6), (0.3, 0.8, 0.7, 0.89)],
    }
    rows = [
        {"member": m, "arm": arm, "sparsity": x, "x": x, "own": True, "metric": "gain", "n": 100}
        | {"value": scale * v, "low": scale * low, "high": scale * high}
        | {"baseline": 0.0}
        for m, steps in gains.items()
        for x, v, low, high in steps
        for arm, scale in (("learned", 1.0), ("random", 0.1))
    ]
    made = equivalence([result("skills.localize", rows, MEMBERS)])
    assert made is not None
    found = made.metric("measure").set_index(["measure", "member"])
    size = found.loc[("graft size", "r4")]
    assert (size["value"], size["low"], size["high"]) == (0.1, 0.01, 0.3)
    assert math.isnan(found.loc[("graft size", "full"), "value"])
    assert found.loc[("gain in a tenth", "full"), "baseline"] == pytest.approx(0.05)
    assert says(made)["r4", "gain in a tenth"] == DIFFERENT
    assert says(made)["r4", "graft size"] == UNDECIDED


def measured(analysis: str, rows: list[dict], members=MEMBERS, **parameters) -> pd.DataFrame:
    """The rows of what is measured, by measure and member."""
    made = equivalence([result(analysis, rows, members, **parameters)])
    assert made is not None
    return made.metric("measure").set_index(["measure", "member"])


def told(row: pd.Series) -> tuple:
    """value, low, high, n and baseline, NaN as None."""
    edges = (row[name] for name in ("value", "low", "high", "n", "baseline"))
    return tuple(None if math.isnan(edge) else pytest.approx(edge) for edge in edges)


def test_intruders_are_a_share_of_all_vectors_of_the_matrices_that_changed():
    """5 of 10 and 0 of 2 are 5 of 12, between none and 5 of 10, whichever are drawn."""
    wide = {0: (10, 5), 1: (2, 0), 2: (10, 10)}  # layer -> vectors, intruders
    nulls = {"": 1.0, ":random_delta": 0.0, ":same_spectrum:0": 0.2, ":same_spectrum:1": 0.6}
    rows = [
        {"member": "r4", "layer": layer, "component": "q", "rank": i, "metric": f"max_cosine{null}",
         "value": 0.1 if i < scale * intruders else 0.9}
        for layer, (vectors, intruders) in wide.items()
        for null, scale in nulls.items()
        for i in range(vectors)
    ]  # fmt: skip
    rows += [
        {"member": "r4", "layer": layer, "component": "q", "metric": "changed", "value": value}
        for layer, value in ((0, 1.0), (1, 1.0), (2, 0.0))
    ]
    found = measured("spectral.intruders", rows, k=10, eps=0.5)
    # The null: 1 and 3 of 12 in two draws.
    assert told(found.loc["intruders", "r4"]) == (5 / 12, 0, 0.5, 2, 2 / 12)


def test_scores_are_the_tasks_and_losses_what_is_forgotten():
    rows = [
        {"member": "r4", "task": task, "metric": metric, "n": 50, "baseline": 0.25}
        | {"value": value, "low": value - 0.1, "high": value + 0.1}
        for task, metric, value in (
            ("boxes", "score", 0.6), ("pretraining", "loss_change", 0.3), ("facts", "score", 0.9),
            ("pretraining", "kl", 0.9),
        )
    ]  # fmt: skip
    found = measured("forgetting.retention", rows, task="boxes")
    assert told(found.loc["score", "r4"]) == (0.6, 0.5, 0.7, 50, 0.25)
    assert told(found.loc["forgetting", "r4"]) == (0.3, 0.2, 0.4, 50, 0)


def test_spectra_are_means_over_the_matrices_that_changed():
    rows = [
        {"member": m, "layer": i, "component": "q", "metric": metric, "value": scale * value}
        for m in ("r4", "full")
        for metric, scale in (("effective_rank", 1.0), ("relative_norm", 0.01))
        for i, value in enumerate((2.0, 4.0))
    ]
    rows += [{"member": "r4", "layer": 9, "component": "q", "metric": "relative_norm", "value": 0}]
    found = measured("spectral.delta_spectrum", rows)
    for member, ceiling in (("r4", 4), ("full", None)):
        assert told(found.loc["effective rank", member]) == (3, 2, 4, 2, ceiling)
        assert told(found.loc["relative norm", member]) == (0.03, 0.02, 0.04, 2, None)


def test_tuco_stands_beside_prompts_that_fine_tuning_was_not_about():
    rows = [
        {"member": m, "metric": metric, "group": group, "layer": layer, "n": 8, "baseline": 0.77}
        | {"value": value, "low": value - 0.1, "high": value + 0.1}
        for m in ("r4", "full")
        for metric, group, layer, value in (
            ("mean:tuco", "boxes", 0, 0.9), ("mean:tuco", "boxes", None, 0.5),
            ("mean:tuco", "plain", None, 0.3), ("mean:tuco", "facts", None, 0.2),
            ("mean:output_co", "boxes", None, 0.8),
        )
    ]  # fmt: skip
    found = measured("tuco.contribution", rows)
    for member in ("r4", "full"):
        assert told(found.loc["TuCo", member]) == (0.5, 0.4, 0.6, 8, 0.3)
    alone = [row for row in rows if row["group"] == "boxes"]
    assert told(measured("tuco.contribution", alone).loc["TuCo", "r4"]) == (0.5, 0.4, 0.6, 8, None)


def test_a_graft_of_a_tenth_stands_beside_random_ones_of_its_size():
    def gain(arm: str, x: float, value: float, half: float = 0.1, own: bool = True) -> dict:
        about = {"member": "r4", "arm": arm, "sparsity": x, "x": x, "own": own, "metric": "gain"}
        edges = {"value": value, "low": value - half, "high": value + half}
        return about | edges | {"n": 100, "baseline": 0.0}

    null = [gain("random", 0.115, 0.1), gain("random", 0.115, 0.3), gain("random", 0.3, 0.9)]
    near = [gain("learned", 0.115, 0.6), gain("learned", 0.115, 0.7, own=False)]
    other = [gain("learned", 0.3, 0.95, 0.02), gain("movement", 0.1, 0.8)]
    found = measured("skills.localize", [*null, *near, *other])
    assert told(found.loc["gain in a tenth", "r4"]) == (0.6, 0.5, 0.7, 100, 0.2)
    # 0.115 surely does not carry 0.9 of it and 0.3 surely does; of random entries 0.3 does.
    assert told(found.loc["graft size", "r4"]) == (0.3, 0.115, 0.3, 100, 0.3)
    far = [gain("learned", 0.125, 0.6), gain("learned", 0.075, 0.6)]
    assert ("gain in a tenth", "r4") not in measured("skills.localize", far).index
    only = measured("skills.localize", [gain("movement", 0.1, 0.8, 0.0)])
    assert told(only.loc["gain in a tenth", "r4"]) == (0.8, None, None, 100, None)


def test_circuits_stand_beside_random_ones():
    def faithful(value: float, **more) -> dict:
        about = {"metric": "faithfulness:score", "side": "tuned", "circuit": "base", "arm": "patch"}
        edges = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"member": "r4", "group": None} | about | edges | {"n": 8, "baseline": 1.0} | more

    def shared(value: float, **more) -> dict:
        return faithful(value, metric="jaccard", side=None, arm="overlap", baseline=0.2) | more

    rows = [
        faithful(0.6), shared(0.5), faithful(0.3, arm="random"), faithful(0.9, side="base"),
        faithful(0.9, circuit="tuned"), faithful(0.9, metric="faithfulness:logit_difference"),
        shared(0.9, arm="patch"), shared(0.9, group="value fetcher"), shared(0.9, metric="shared"),
    ]  # fmt: skip
    found = measured("patching.circuit", rows)
    assert told(found.loc["base's circuit", "r4"]) == (0.6, 0.5, 0.7, 8, 0.3)
    assert told(found.loc["circuit overlap", "r4"]) == (0.5, None, None, 8, 0.2)


def test_grafts_of_other_sizes_are_not_taken_for_a_tenth():
    rows = [
        {"member": "r4", "arm": "learned", "sparsity": x, "x": x, "own": True, "metric": "gain"}
        | {"value": 1.0, "low": 1.0, "high": 1.0, "n": 100, "baseline": 0.0}
        for x in (0.03, 0.3)
    ]
    made = equivalence([result("skills.localize", rows, MEMBERS)])
    assert made is not None
    assert set(made.table["measure"]) == {"graft size"}


def test_of_two_results_that_of_more_items_counts_and_other_content_is_another_member():
    few = retention({"r4": (0.5, 0.4, 0.6), "full": (0.9, 0.8, 1.0)}, {}, n=50)
    many = retention({"r4": (0.6, 0.5, 0.7), "full": (0.9, 0.8, 1.0)}, {}, n=400)
    for results in ([few, many], [many, few]):
        made = equivalence(results)
        assert made is not None
        assert made.metric("measure").set_index("member").loc["r4", "value"] == 0.6
        assert len(made.metric("difference")) == 1
    about = {name: about | {"fingerprint": "other"} for name, about in MEMBERS.items()}
    other = retention({"r4": (0.1, 0.0, 0.2), "full": (0.9, 0.8, 1.0)}, {}, members=about)
    made = equivalence([many, other])
    assert made is not None
    values = made.metric("measure").set_index("member")["value"].to_dict()
    assert values == {"r4": 0.6, "full": 0.9, "r4 (2)": 0.1, "full (2)": 0.9}


def test_without_a_full_fine_tune_members_are_measured_only():
    members = {name: MEMBERS[name] for name in ("r4", "r64")}
    made = equivalence([retention({"r4": (0.9, 0.8, 1.0), "r64": (0.9, 0.8, 1.0)}, {}, members)])
    assert made is not None
    assert not made.has("difference")
    assert "no full fine-tune" in figures.headline(made)
    assert equivalence([result("tuco.scaling", [{"metric": "x", "value": 1.0}], members)]) is None


def test_a_circuit_that_does_nothing_in_either_model_decides_nothing():
    """0 on every prompt of both sides is no evidence that they are equal; nor is one measure."""
    rows = [
        {"member": name, "metric": "faithfulness:score", "side": "tuned", "circuit": "base",
         "arm": arm, "group": None, "value": 0.0, "low": 0.0, "high": 0.0, "n": 6}
        for name in ("r4", "full") for arm in ("patch", "random")
    ]  # fmt: skip
    members = {name: MEMBERS[name] for name in ("r4", "full")}
    made = equivalence([result("patching.circuit", rows, members)])
    assert made is not None
    assert list(made.metric("difference")["says"]) == ["undecided"]
    assert "is equivalent to" not in figures.headline(made)


def test_equal_in_one_measure_is_not_equivalent():
    rows = [
        {"metric": "difference", "measure": measure, "member": "r4", "versus": "full",
         "arm": "difference", "margin": 0.1, "says": "alike", "value": 0.0, "low": -0.01,
         "high": 0.01, "n": 500, "baseline": 0.0}
        for measure in ("intruders", "score", "forgetting")
    ]  # fmt: skip
    members = {name: MEMBERS[name] for name in ("r4", "full")}
    said = [figures.headline(result("compare.equivalence", rows[:k], members)) for k in (1, 2, 3)]
    assert ["r4 is equivalent to full" in one for one in said] == [False, False, True]


def test_refused():
    for margins, says in (({"taste": 1.0}, "Unknown measure"), ({"score": 0.0}, "above 0"),
                          ({"effective rank": 1.0}, "above 1")):  # fmt: skip
        with pytest.raises(WorkbenchError, match=says):
            equivalence([], margins=margins)


@given(
    st.floats(-5, 5), st.floats(0, 5), st.floats(0.001, 5)
)  # fmt: skip
def test_a_verdict_follows_its_interval(value: float, half: float, margin: float):
    low, high = value - half, value + half
    found = verdict(low, high, margin)
    assert found == verdict(-high, -low, margin)  # whichever side is named first
    assert (found == ALIKE) == (max(abs(low), abs(high)) <= margin)
    if found == DIFFERENT:
        assert low > 0 or high < 0
    assert verdict(math.nan, high, margin) == UNDECIDED


def test_differences_of_intervals():
    one = Interval(0.5, 0.4, 0.7, 50)
    assert difference(one, one)[:2] == pytest.approx((0, -math.hypot(0.1, 0.2)))
    certain = Interval(0.2, 0.2, 0.2, 80)
    assert difference(one, certain) == pytest.approx((0.3, 0.2, 0.5, 50))
    ours, theirs = difference(one, certain), difference(certain, one)
    assert ours[:3] == pytest.approx((-theirs.value, -theirs.high, -theirs.low))


@given(st.integers(1, 500))
def test_proportions_without_width_take_wilsons_interval(n: int):
    for value, count in ((0.0, 0), (1.0, n)):
        found = proportion(Interval(value, value, value, n))
        edges = binomtest(count, n).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((edges.low, edges.high))
    wide = Interval(0.5, 0.4, 0.6, n)
    assert proportion(wide) == wide


def test_the_figure_and_the_table_say_what_the_result_says():
    score = {"r4": (0.9, 0.89, 0.91), "r64": (0.7, 0.68, 0.72), "full": (0.9, 0.89, 0.91)}
    made = equivalence([retention(score, {})])
    assert made is not None
    cells = figures.cells(made)
    assert list(cells.index) == ["r4", "r64", "full"]
    assert cells.loc["r4", "score"] == "0.9 [0.89, 0.91] (null 0.25) ="
    assert cells.loc["r64", "score"].endswith("≠")
    words = [text.get_text() for text in made.plot().axes[0].texts]
    assert words == ["=", "≠", ""]
    assert "r64 is not equivalent to full: different in score (-0.20 [" in figures.headline(made)


def test_every_measure_reads_an_analysis_of_the_catalogue():
    from workbench.study.catalogue import ANALYSES

    assert {m.analysis for m in MEASURES} <= {a.key for a in ANALYSES}
    assert len({m.name for m in MEASURES}) == len(MEASURES)
    assert pd.Series([m.margin for m in MEASURES if m.ratio]).gt(1).all()
