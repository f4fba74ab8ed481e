"""ECE and Brier by hand, the null of perfect calibration, and the models' own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve

import workbench as wb
from tests.skills.conftest import (
    APPLE,
    PLACES,
    asked,
    no_gradients,  # noqa: F401
    planted,
)
from workbench.skills import Graft
from workbench.skills.calibration import calibration, difference, errors, reliability
from workbench.skills.graft import graft_of, inside, top
from workbench.skills.rankings import movement
from workbench.stats import calibration as against_null
from workbench.stats import calibration_error

SURE = np.array([0.15, 0.25, 0.22, 0.95, 0.91, 0.93])
RIGHT = np.array([0, 1, 0, 1, 1, 0.0])
# |0.15 - 0|, |0.47 - 1| and |2.79 - 2| over six
ECE = (0.15 + 0.53 + 0.79) / 6


def found(sure, right, bins: int = 10) -> dict[str, dict]:
    return {row["metric"]: row for row in errors(sure, right, bins, seed=0)}


def test_by_hand():
    rows = found(SURE, RIGHT)
    assert rows["ece"]["value"] == pytest.approx(ECE)
    # In order of confidence: {.15, .22}, {.25, .91}, {.93, .95}
    mass = (abs(0.37 - 0) + abs(1.16 - 2) + abs(1.88 - 1)) / 6
    assert found(SURE, RIGHT, bins=3)["ece_mass"]["value"] == pytest.approx(mass)
    assert rows["brier"]["value"] == pytest.approx(((SURE - RIGHT) ** 2).mean())
    assert rows["brier"]["baseline"] == pytest.approx((SURE * (1 - SURE)).mean())
    assert rows["accuracy"]["value"] == 0.5
    assert rows["accuracy"]["baseline"] == rows["confidence"]["value"] == pytest.approx(SURE.mean())
    assert rows["overconfidence"]["value"] == pytest.approx(SURE.mean() - 0.5)
    for name in ("ece", "brier", "accuracy", "overconfidence"):
        row = rows[name]
        assert row["low"] <= row["value"] <= row["high"]
        assert row["null_low"] <= row["baseline"] <= row["null_high"]


def test_intervals_are_those_of_means():
    """Of 4000 items every mean is as good as normal: 1.96 standard errors to either side, for the
    items themselves and, from the moments of a coin of known chance, for a model that is right
    with its own confidence: (p - b)^2 has the variance p (1 - p) (1 - 2 p)^2."""
    draw, n = np.random.default_rng(2), 4000
    sure = draw.uniform(0.2, 1, n)
    right = (draw.random(n) < sure**2).astype(float)
    rows, coin = found(sure, right), sure * (1 - sure)
    for metric, items, null in (
        ("brier", (sure - right) ** 2, coin * (1 - 2 * sure) ** 2),
        ("accuracy", right, coin),
        ("overconfidence", sure - right, coin),
        ("confidence", sure, None),
    ):
        row, error = rows[metric], items.std() / np.sqrt(n)
        assert row["value"] == pytest.approx(items.mean())
        assert row["low"] == pytest.approx(items.mean() - 1.96 * error, abs=0.3 * error), metric
        assert row["high"] == pytest.approx(items.mean() + 1.96 * error, abs=0.3 * error), metric
        if null is None:
            assert np.isnan([row["baseline"], row["null_low"], row["null_high"]]).all()
            continue
        error = np.sqrt(null.sum()) / n
        for name, side in (("null_low", -1.96), ("null_high", 1.96)):
            wanted = row["baseline"] + side * error
            assert row[name] == pytest.approx(wanted, abs=0.3 * error), metric


def test_the_curve_by_hand():
    rows = reliability(SURE, RIGHT, 10, mass=False)
    assert [row["bin"] for row in rows] == [1, 2, 9]
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert [row["x"] for row in rows] == pytest.approx([0.15, 0.235, 0.93])
    assert [row["value"] for row in rows] == pytest.approx([0, 0.5, 2 / 3])
    # Wilson's interval of 1 of 2: (1 + z^2 / 2) / (2 + z^2) -+ ...
    z = 1.959964
    half = z * np.sqrt(2 * 0.25 + z**2 / 4) / (2 + z**2)
    assert [rows[1]["low"], rows[1]["high"]] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-6)


@pytest.mark.parametrize("mass", [False, True])
def test_the_curve_sums_up_to_the_error(mass: bool):
    draw = np.random.default_rng(0)
    sure = draw.random(200)
    right = (draw.random(200) < sure**2).astype(float)
    rows = reliability(sure, right, 10, mass=mass)
    assert sum(row["n"] for row in rows) == 200
    total = sum(row["n"] * abs(row["x"] - row["value"]) for row in rows) / 200
    assert total == pytest.approx(float(calibration_error(sure, right, bins=10, mass=mass)))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_the_curve_is_scikit_learns(strategy: str):
    """Values on the edges of bins among them."""
    draw = np.random.default_rng(1)
    sure = draw.permutation(np.concatenate([draw.random(173), np.arange(11) / 10]))
    right = (draw.random(len(sure)) < sure).astype(float)
    rows = reliability(sure, right, 10, mass=strategy == "quantile")
    accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy=strategy)
    np.testing.assert_allclose([row["value"] for row in rows], accuracy)
    np.testing.assert_allclose([row["x"] for row in rows], confidence)


@pytest.mark.parametrize(("n", "shown"), [(200, 0.051), (5000, 0.010)])
def test_a_perfectly_calibrated_model_shows_an_error(n: int, shown: float):
    """The published null holds for confidences in the upper half, which fill five of ten bins; with
    k bins filled, the mean of |gap| is sqrt(2 k / (pi n)) times that of sqrt(p (1 - p)), pi / 8."""
    draw = np.random.default_rng(0)
    for filled, lowest in ((5, 0.5), (10, 0.0)):
        sure = lowest + (1 - lowest) * draw.random((400, n))
        right = draw.random((400, n)) < sure
        measured = calibration_error(sure, right).mean()
        assert measured == pytest.approx(np.sqrt(2 * filled / np.pi / n) * np.pi / 8, rel=0.05)
        if filled == 5:
            assert measured == pytest.approx(shown, rel=0.08)
        null = against_null(sure[0], right[0], draws=200)[1]
        assert null.value == pytest.approx(measured, rel=0.1)
        assert null.low < null.value < null.high


def test_overconfidence_is_beyond_the_null_and_calibration_is_not():
    draw = np.random.default_rng(1)
    sure = draw.random(500)
    perfect, bold = draw.random(500) < sure, draw.random(500) < sure**6
    rows = found(sure, perfect.astype(float))
    assert all(rows[m]["null_low"] <= rows[m]["value"] <= rows[m]["null_high"]
               for m in ("ece", "ece_mass", "brier", "accuracy", "overconfidence"))  # fmt: skip
    rows = found(sure, bold.astype(float))
    assert all(rows[m]["value"] > rows[m]["null_high"] for m in ("ece", "brier", "overconfidence"))


def test_one_answer_for_all_and_certainty():
    for right in (np.zeros(20), np.ones(20)):
        rows = found(np.ones(20), right)
        assert rows["ece"]["value"] == rows["brier"]["value"] == 1 - right[0]
        (row,) = reliability(np.ones(20), right, 10, mass=True)
        assert (row["x"], row["value"], row["n"]) == (1, right[0], 20)


def test_a_difference_is_paired():
    same = difference((SURE, RIGHT), (SURE, RIGHT), 10, 0, mass=False)
    assert same["value"] == same["low"] == same["high"] == 0
    other = np.full(6, 0.5)
    apart = difference((SURE, RIGHT), (other, RIGHT), 10, 0, mass=False)
    assert apart["value"] == pytest.approx(ECE)
    assert apart["low"] <= apart["value"] <= apart["high"]


@pytest.mark.parametrize("mass", [False, True])
def test_the_null_of_a_difference_by_simulation(mass: bool):
    """Two models that are right with their own confidences, each on its own; bins by hand."""
    draw = np.random.default_rng(5)
    sides = [draw.uniform(0.4, 1, 60), draw.uniform(0.8, 1, 60)]

    def error(sure: np.ndarray, right: np.ndarray) -> float:
        parts = np.linspace(0, 1, 6)
        parts = np.quantile(sure, parts) if mass else parts
        bins = np.searchsorted(parts[1:-1], sure)
        return sum(abs((sure - right)[bins == b].sum()) for b in range(5)) / len(sure)

    drawn = [
        error(sides[0], draw.random(60) < sides[0]) - error(sides[1], draw.random(60) < sides[1])
        for _ in range(4000)
    ]
    both = [(sure, np.ones(60)) for sure in sides]
    found = difference(both[0], both[1], 5, 0, mass=mass)
    assert found["value"] == pytest.approx(error(*both[0]) - error(*both[1]))
    assert found["baseline"] == pytest.approx(np.mean(drawn), abs=0.005)
    edges = np.quantile(drawn, [0.025, 0.975])
    assert [found["null_low"], found["null_high"]] == pytest.approx(edges.tolist(), abs=0.012)
    assert found["n"] == 60


def test_items_that_are_all_alike_have_no_spread():
    """Half sure, half right: (1/2)^2 each, whichever are drawn."""
    row = found(np.full(20, 0.5), np.tile([0.0, 1.0], 10))["brier"]
    assert row["value"] == row["low"] == row["high"] == row["baseline"] == 0.25


def test_what_models_answer_is_what_is_measured(tmp_path: Path):
    """The first token's probability, and whether it is the answer's, of each side by itself."""
    pair = planted(tmp_path, {(APPLE, PLACES): 0.35})
    prompts, beside = asked(PLACES, "apple", 16), asked(PLACES, "book", 12)
    table = calibration(pair, prompts, others=[beside]).table
    for arm, made in (("base", pair.base.load()), ("tuned", pair.tuned.load())):
        for task in (prompts, beside):
            frame = wb.tasks.answers(made, pair.base.tokenizer(), task)
            own = table[(table["arm"] == arm) & (table["task"] == task.name)]
            assert own["own"].eq(task is prompts).all()
            told = own.set_index("metric")
            sure, right = frame["confidence"], frame["first_correct"].astype(float)
            for metric, expected in (
                ("confidence", sure.mean()), ("accuracy", right.mean()),
                ("overconfidence", (sure - right).mean()), ("brier", ((sure - right) ** 2).mean()),
            ):  # fmt: skip
                assert told.loc[metric, "value"] == pytest.approx(expected, abs=1e-6), metric
            curve = own[(own["metric"] == "reliability") & (own["binning"] == "width")]
            assert (curve["n"] * curve["x"]).sum() == pytest.approx(sure.sum(), abs=1e-5)
            assert (curve["n"] * curve["value"]).sum() == pytest.approx(right.sum())


cases = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        arrays(float, n, elements=st.floats(0, 1)),
        arrays(float, n, elements=st.sampled_from([0.0, 1.0])),
        st.permutations(range(n)),
    )
)


@settings(max_examples=80, deadline=None)
@given(cases, st.booleans(), st.integers(2, 15))
def test_an_error_is_a_share_and_ignores_order(case, mass: bool, bins: int):
    sure, right, order = case
    value = float(calibration_error(sure, right, bins=bins, mass=mass))
    again = float(calibration_error(sure[order], right[order], bins=bins, mass=mass))
    assert 0 <= value <= 1
    assert again == pytest.approx(value)
    assert value >= abs(sure.mean() - right.mean()) - 1e-9
    rows = reliability(sure, right, bins, mass=mass)
    assert sum(row["n"] for row in rows) == len(sure)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def whole(pair) -> Graft:
    sites = inside(pair)
    return graft_of("whole", top(movement(pair), sites, sum(pair.delta(s).base.numel()
                                                            for s in sites)))  # fmt: skip


def test_grafts_of_nothing_and_everything_are_the_ends(tmp_path: Path):
    pair = planted(tmp_path, {(APPLE, PLACES): 3.0})
    prompts = asked(PLACES, "apple", 24)
    every = whole(pair)
    nothing = Graft("nothing", {}, every.sizes)
    got = calibration(pair, prompts, grafts={"all": every, "none": nothing},
                      others=[asked(PLACES, "book", 12)])  # fmt: skip
    table = got.table.set_index("arm").drop(columns="member")
    for arm, end in (("all", "tuned"), ("none", "base")):
        here, there = table.loc[arm], table.loc[end]
        if end == "tuned":
            here = here[~here["metric"].str.endswith("change")]
        assert here.reset_index(drop=True).equals(there.reset_index(drop=True))
    changes = got.metric("ece_change").set_index(["arm", "own"])["value"]
    assert changes["all", True] == 0
    eces = got.metric("ece").set_index(["arm", "own"])["value"]
    assert changes["base", True] == pytest.approx(eces["base", True] - eces["tuned", True])
    curve = got.metric("reliability")
    assert set(curve["binning"]) == {"width", "mass"}
    counts = curve.groupby(["arm", "task", "binning"])["n"].sum()
    assert set(counts.xs("apple", level="task")) == {24}


def test_too_few_prompts_are_said(tmp_path: Path):
    pair = planted(tmp_path, {(APPLE, PLACES): 3.0})
    got = calibration(pair, asked(PLACES, "apple", 6))
    rows = got.metric("ece").set_index("arm")
    small = rows[rows["value"] <= rows["null_high"]].index.tolist()
    noted = [note for note in got.provenance.notes if "perfectly calibrated" in note]
    assert bool(noted) == bool(small)
    assert all(arm in noted[0] for arm in small)


def test_errors(tmp_path: Path):
    pair, prompts = planted(tmp_path, {(APPLE, PLACES): 3.0}), asked(PLACES, "apple", 12)
    every = whole(pair)
    with pytest.raises(wb.WorkbenchError, match="2 bins"):
        calibration(pair, prompts, bins=1)
    with pytest.raises(wb.WorkbenchError, match="rename"):
        calibration(pair, prompts, grafts={"base": every})
    stranger = Graft("other", every.places, {"one": 3})
    with pytest.raises(wb.WorkbenchError, match="3 entries of 1 parameters"):
        calibration(pair, prompts, grafts={"mine": stranger})


def test_two_calibrated_models_do_not_differ_although_their_errors_do():
    """The error's bias is larger for an unsure model: without its null every draw would differ."""
    draw = np.random.default_rng(0)
    inside, plain = 0, 0
    for seed in range(20):
        unsure, certain = draw.uniform(0.4, 1, 200), draw.uniform(0.97, 1, 200)
        both = [(sure, (draw.random(200) < sure).astype(float)) for sure in (unsure, certain)]
        found = difference(both[0], both[1], 10, seed, mass=False)
        inside += found["null_low"] <= found["value"] <= found["null_high"]
        plain += found["low"] > 0
    assert inside >= 17
    assert plain >= 15
