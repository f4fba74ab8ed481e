"""Partial rank correlation against its formula, and its p against every order by plain loops."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from workbench.forgetting.partial import partial_p, partial_spearman

X = np.array([1.0, 2.0, 4.0, 3.0, 5.0, 9.0])
Y = np.array([0.1, 0.7, 0.3, 0.9, 1.1, 0.8])
Z = np.array([10.0, 30.0, 20.0, 20.0, 40.0, 60.0])  # with a tie


def rho(first, second) -> float:
    return float(np.asarray(spearmanr(first, second).statistic))


def formula(x, y, z) -> float:
    xy, xz, yz = rho(x, y), rho(x, z), rho(y, z)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def test_it_is_the_formula_of_three_correlations():
    found = partial_spearman(X, Y, Z)
    assert found.value == pytest.approx(formula(X, Y, Z), abs=1e-12)
    assert found.value != pytest.approx(rho(X, Y), abs=0.1)  # it is not the plain one
    assert found.n == 6
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_its_interval_is_that_of_drawn_entries():
    """A bootstrap of our own, over draws in which it is defined; many entries, so that it is."""
    draw = np.random.default_rng(5)
    z = draw.normal(size=40)
    x, y = z + draw.normal(size=40), draw.normal(size=40) - z
    found = partial_spearman(x, y, z, draws=4000)
    picks = draw.integers(0, 40, (2000, 40))
    drawn = [formula(x[one], y[one], z[one]) for one in picks]
    edges = np.quantile(drawn, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(list(edges), abs=0.06)


def test_nothing_is_left_of_what_the_third_makes():
    """Negative control: both sides follow z and nothing else."""
    draw = np.random.default_rng(0)
    z = draw.normal(size=400)
    x, y = z + 0.3 * draw.normal(size=400), z + 0.3 * draw.normal(size=400)
    assert rho(x, y) > 0.8
    assert abs(partial_spearman(x, y, z).value) < 0.1
    assert partial_p(x, y, z, most=500) > 0.05


def test_p_is_over_every_order_of_what_is_left():
    """Residuals of a least-squares fit by numpy, permuted and put back, one order at a time."""
    x, y, z = (rankdata(side) for side in (X, Y, Z))
    design = np.stack([np.ones(6), z], axis=1)

    def left(side):
        return side - design @ np.linalg.lstsq(design, side, rcond=None)[0]

    def statistic(side):
        return abs(np.corrcoef(left(x), left(side))[0, 1])

    fitted, own = y - left(y), left(y)
    drawn = [statistic(fitted + own[list(order)]) for order in permutations(range(6))]
    expected = np.mean(np.array(drawn) >= statistic(y) - 1e-9)
    assert partial_p(X, Y, Z) == pytest.approx(expected, abs=1e-12)
    assert partial_p(X, Y, Z, most=719) == pytest.approx(expected, abs=0.06)  # 6! = 720 are drawn


def test_p_is_even_where_nothing_is_there():
    """Of sides that share z alone, p below 0.2 in about a fifth of the cases."""
    draw = np.random.default_rng(3)
    found = []
    for _ in range(300):
        z = draw.normal(size=6)
        found.append(partial_p(z + draw.normal(size=6), z - draw.normal(size=6), z))
    assert 0.12 < np.mean(np.array(found) <= 0.2) < 0.28


def test_a_constant_third_leaves_the_plain_correlation():
    found = partial_spearman(X, Y, np.full(6, 0.5))
    assert found.value == pytest.approx(rho(X, Y))
    orders = [abs(rho(X, Y[list(one)])) for one in permutations(range(6))]
    expected = np.mean(np.array(orders) >= abs(rho(X, Y)) - 1e-9)
    assert partial_p(X, Y, np.full(6, 0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "sides",
    [
        (X[:3], Y[:3], Z[:3]),
        (X, np.full(6, 2.0), Z),
        (np.full(6, 2.0), Y, Z),
        (Z * 3, Y, Z),  # the score itself
        (X, -np.exp(Z / 60), Z),
    ],
    ids=["three entries", "constant", "constant first", "explained", "explained second"],
)
def test_where_nothing_is_left_there_is_none(sides):
    found = partial_spearman(*sides)
    assert np.isnan([found.value, found.low, found.high, partial_p(*sides)]).all()
    assert found.n == len(sides[0])
