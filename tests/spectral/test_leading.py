"""The k largest triplets: none larger is overlooked, whatever the iteration starts from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from torch import Tensor

from tests.spectral.test_intruders import power_law
from workbench.loaders.adapters import Factors
from workbench.spectral import leading
from workbench.spectral.intruders import cosines, decisions, tuned_triplets
from workbench.spectral.leading import (
    Cluster,
    Ritz,
    at_most,
    bordered,
    reach,
    top_clusters,
    top_triplets,
)
from workbench.spectral.linalg import Operator, Triplets, dense_triplets

LED = 20  # vectors of the base that the iteration starts from
KINDS = ("planted", "projected", "leaking", "block", "null-space", "swapped")


def changed(base: Triplets, kind: str, size: float, rank: int, noise: torch.Generator) -> Operator:
    """base + a change of norm `size` that the base's first LED vectors do not, or hardly, show."""
    rows, columns = len(base.left), len(base.right)
    weight = (base.left * base.values) @ base.right.T
    up = torch.randn(rows, rank, generator=noise)
    down = torch.randn(rank, columns, generator=noise)
    last = len(base.values) - rank
    if kind == "planted":
        up, down = base.left[:, LED : LED + rank], base.right[:, LED : LED + rank].T
    if kind == "swapped":  # the left vector of one weak direction on the right one of another
        up, down = base.left[:, LED : LED + rank], base.right[:, last : last + rank].T
    if kind in ("projected", "leaking"):
        kept = 1 - 3e-5 if kind == "leaking" else 1.0
        lead, right = base.left[:, :LED], base.right[:, :LED]
        up, down = up - kept * lead @ (lead.T @ up), down - kept * (down @ right) @ right.T
    if kind == "block":  # of rows and columns where the base is nothing
        up[: rows // 2], down[:, : columns // 2] = 0, 0
        weight[rows // 2 :], weight[:, columns // 2 :] = 0, 0
    if kind == "null-space":
        weight = (base.left[:, :last] * base.values[:last]) @ base.right[:, :last].T
        up, down = base.left[:, last:], base.right[:, last:].T
    return Operator(weight, Factors(up * (size / Factors(up, down).norm), down))


def agrees(found: Triplets, operator: Operator) -> bool:
    """Values and both vectors against a float64 decomposition, within the bounds told."""
    left, values, right = torch.linalg.svd(operator.formed().double(), full_matrices=False)
    k = len(found.values)
    alike = torch.allclose(found.values.double(), values[:k], rtol=1e-4, atol=0)
    for ours, theirs in ((found.left, left[:, :k]), (found.right, right[:k].T)):
        ours = ours.double()
        sine = (ours - theirs * (theirs * ours).sum(0)).norm(dim=0)
        alike &= bool((sine <= found.angle + 1e-4).all())
    return alike


@settings(max_examples=40)
@given(
    rows=st.sampled_from([64, 256, 400]),
    columns=st.sampled_from([64, 300, 520]),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([0.3, 2.0, 6.0, 30.0]),
    rank=st.sampled_from([1, 4]),
    decay=st.sampled_from([0.3, 0.7, 1.2]),
    seed=st.integers(0, 10**6),
)
def test_nothing_larger_is_overlooked(rows, columns, kind, size, rank, decay, seed):
    """What is certified, is so; and whether or not it was, "auto" and "exact" decide alike."""
    base = dense_triplets(power_law(rows, columns, seed, decay))
    operator = changed(base, kind, size, rank, torch.Generator().manual_seed(seed))
    found = top_triplets(operator, 5, base.right[:, :LED])
    assert found is None or agrees(found, operator)
    base = dense_triplets(operator.dense).supported()
    auto, exact = (
        tuned_triplets(operator, base, 5, 0.5, "left", method) for method in ("auto", "exact")
    )
    torch.testing.assert_close(auto.values, exact.values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_certifies_and_does_not_merely_abstain(kind: str):
    base = dense_triplets(power_law(1024, 768, 3))
    operator = changed(base, kind, 6.0, 4, torch.Generator().manual_seed(1))
    found = top_triplets(operator, 10, base.right[:, :LED])
    exact = dense_triplets(operator.formed()).top(10)
    if kind in ("planted", "swapped", "null-space"):  # four equal values among them, or nearly
        torch.testing.assert_close(
            tuned_triplets(operator, base, 10, 0.5, "left", "auto").values,
            exact.values, rtol=1e-4, atol=0,
        )  # fmt: skip
    else:
        assert found is not None
        assert agrees(found, operator)


def ritz(values: list[float], residuals: list[float], dtype: torch.dtype) -> Ritz:
    """Triplets along the axes with these values, and residuals of these lengths."""
    axes = torch.eye(5, len(values), dtype=dtype)
    lengths = torch.tensor(residuals, dtype=dtype)
    # Half of each on two axes of its own, so that it is no single entry.
    return Ritz(
        axes, torch.tensor(values, dtype=dtype), axes, (axes + axes.roll(1, 0)) * lengths / 2**0.5
    )


def test_bounds_by_hand():
    """Values 4, 2, 1.5 with residuals .3, .2, .1, and all else at most .25: the next value below
    may be larger by its own residual, so the gaps are 1.8, .4 and 1.25."""
    found = ritz([4, 2, 1.5], [0.3, 0.2, 0.1], torch.float64)
    assert found.sizes(2).tolist() == pytest.approx([0.3, 0.2])
    assert found.gaps(3, 0.25).tolist() == pytest.approx([1.8, 0.4, 1.25])
    assert found.angles(3, 0.25).tolist() == pytest.approx([0.3 / 1.8, 0.2 / 0.4, 0.1 / 0.4])
    singles = found.clusters(3, 0.6, 0.25)
    assert [one.angle for one in singles] == pytest.approx([0.3 / 1.8, 0.2 / 0.4, 0.1 / 0.4])
    # The last two cannot be told apart at .2; their plane can, sqrt(.2^2 + .1^2) over 1.25.
    first, plane = found.clusters(3, 0.2, 0.25)
    assert first == (0, 1, pytest.approx(0.3 / 1.8))
    assert plane == (1, 3, pytest.approx(math.sqrt(0.05) / 1.25))
    # Nor can they at .17, and all three together neither, sqrt(.14) over 1.25.
    assert found.clusters(3, 0.17, 0.25) == []
    # Values 4, 3.5, 3: the gaps are .4, .4 and 3, and only all three together keep .2.
    close = ritz([4, 3.5, 3], [0.1, 0.1, 0.1], torch.float64)
    assert close.clusters(3, 0.2) == [Cluster(0, 3, pytest.approx(math.sqrt(0.03) / 3))]


def test_what_is_left_over_is_bounded_by_the_polynomial():
    """theta cosh(a / (2m - 1)) by hand: 2 cosh(1) for one pass, 2 cosh(1 / 3) for two."""
    assert at_most(2.0, 1.0, 1) == pytest.approx(3.08616, abs=1e-5)
    assert at_most(2.0, 1.0, 2) == pytest.approx(2.11214, abs=1e-5)


def test_a_wide_vector_joins_the_neighbour_it_is_nearest_to():
    """Values 4, 3.5, 1: the gaps are .4, 2.4 and 1; the first two belong together."""
    found = ritz([4, 3.5, 1], [0.1, 0.1, 0.1], torch.float64)
    assert [one[:2] for one in found.clusters(3, 0.2)] == [(0, 2), (2, 3)]


def test_no_bound_is_below_rounding():
    """Four float32 epsilons of the largest value, where the residual is nothing; and no angle is
    bounded where the gap is gone."""
    found = ritz([8, 4, 4], [0, 0, 0], torch.float32)
    least = 8 * 4 * 2.0**-23
    assert found.sizes(3).tolist() == pytest.approx([least] * 3)
    assert found.angles(3)[0] == pytest.approx(least / 4, rel=1e-5)
    assert found.angles(3)[1:].isinf().all()


def strengthened() -> tuple[Triplets, Operator]:
    """base + 5 u_50 v_50^T: the base's leading vectors stay exact singular vectors of it, and an
    iteration that begins with them has no residual that would lead it further."""
    base = dense_triplets(power_law(400, 400) * (10 / 3))
    weight = (base.left * base.values) @ base.right.T
    return base, Operator(weight + 5 * torch.outer(base.left[:, 49], base.right[:, 49]))


def test_a_strengthened_weak_direction_is_among_the_largest():
    base, operator = strengthened()
    found = top_triplets(operator, 10, base.right[:, :LED])
    assert found is not None
    assert float(found.values[2]) == pytest.approx(5 + 10 * 50**-0.7, rel=1e-4)
    assert agrees(found, operator)


def test_without_the_certificate_it_is_overlooked(monkeypatch):
    """Negative control: the iteration alone stops at once, with small bounds on wrong vectors."""
    base, operator = strengthened()
    monkeypatch.setattr(
        leading,
        "_certified",
        lambda space, ritz, block, k, angle, most, apart: (ritz.clusters(k, angle), None),
    )
    wrong = top_triplets(operator, 10, base.right[:, :LED])
    assert wrong is not None
    assert (wrong.angle <= leading.ANGLE).all()
    assert not agrees(wrong, operator)


@pytest.mark.parametrize(("size", "block", "chance"), [(300, 14, 0.02), (200, 3, 0.1)])
def test_the_bound_on_what_is_left_over_fails_as_rarely_as_it_says(size, block, chance):
    """|E| <= theta cosh(a / (2m - 1)) for every m, over many Gaussian blocks; the adversary's
    spectrum is flat but for one value, which a small projection hides."""
    noise = torch.Generator().manual_seed(0)
    values = torch.full((size,), 0.9).double()
    values[0] = 1.0
    far, draws = reach(size, block, chance), 1500
    wrong = 0
    for _ in range(draws):
        start = torch.linalg.qr(torch.randn(size, block, generator=noise).double())[0]
        basis, newest, failed = start, start, False
        for passes in (1, 2, 3):
            theta = torch.linalg.matrix_norm(values[:, None] * basis, 2)
            failed |= bool(theta * math.cosh(far / (2 * passes - 1)) < 1)
            newest = values[:, None] ** 2 * newest
            newest = torch.linalg.qr(newest - basis @ (basis.T @ newest))[0]
            basis = torch.cat([basis, newest], 1)
        wrong += failed
    assert wrong / draws <= chance
    # The chance itself: the squared projection of a unit vector on the block is Beta.
    assert beta.cdf(1 / math.cosh(far) ** 2, block / 2, (size - block) / 2) == pytest.approx(chance)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), coupling=st.floats(0, 1), guards=st.integers(1, 5))
def test_the_bordered_matrix_bounds_what_follows(seed: int, coupling: float, guards: int):
    """W = [[S, R^T], [0, E]] with |[R^T; E]| <= e has no singular value above the bound."""
    noise = torch.Generator().manual_seed(seed)
    values = torch.rand(guards, generator=noise).double().sort(descending=True).values
    residual = coupling * torch.randn(guards, guards, generator=noise).double()
    below = torch.zeros(guards + 6, guards + 6).double()
    below[:guards, :guards] = values.diag()
    below[:guards, guards : 2 * guards] = residual.T[:, : min(guards, 6)]
    below[guards:, guards:] = torch.rand(6, 6, generator=noise).double()
    left_over = float(torch.linalg.matrix_norm(below[:, guards:], 2))
    whole = float(torch.linalg.matrix_norm(below, 2))
    assert bordered(values, residual, left_over) >= whole * (1 - 1e-9)


def test_the_random_block_is_the_matrices_own():
    """A matrix cannot be made for the block that it is tested with."""
    weight = power_law(80, 80)
    first, again, other = (
        torch.randn(4, generator=Operator(w).own_generator())
        for w in (weight, weight.clone(), weight + 1e-6)
    )
    assert (first == again).all()
    assert (first != other).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e20])
def test_nothing_depends_on_the_unit(scale: float):
    base = power_law(400, 360)
    operator = changed(dense_triplets(base), "leaking", 6.0, 4, torch.Generator().manual_seed(2))
    scaled = Operator(
        operator.dense * scale, Factors(operator.factors.up * scale, operator.factors.down)
    )
    for method in ("auto", "exact"):
        ours, theirs = (
            tuned_triplets(one, dense_triplets(one.dense), 10, 0.5, "left", method)
            for one in (scaled, operator)
        )
        torch.testing.assert_close(ours.values / scale, theirs.values, rtol=1e-4, atol=0)
        torch.testing.assert_close(
            cosines(ours, dense_triplets(scaled.dense), "left").max(0).values,
            cosines(theirs, dense_triplets(operator.dense), "left").max(0).values,
            rtol=0, atol=2e-3,
        )  # fmt: skip
    ours = decisions(scaled, scaled.dense, 10, 0.5, "left")["intruder"]
    assert (ours == decisions(operator, operator.dense, 10, 0.5, "left")["intruder"]).all()
    assert 0 < ours.sum() < 10


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_vectors_of_value_zero_are_none(method):
    """1.5 times a base of rank 5 has five vectors, all of them the base's; zero has none."""
    low = dense_triplets(power_law(400, 380)).top(5)
    weight = (low.left * low.values) @ low.right.T
    base = dense_triplets(weight).supported()
    assert len(base.values) == 5
    for side in ("left", "right", "joint"):
        found = tuned_triplets(Operator(1.5 * weight), base, 10, 0.5, side, method)
        assert len(found.values) == 5
        assert cosines(found, base, side).max(0).values.min() > 0.999
    assert len(tuned_triplets(Operator(0 * weight), base, 10, 0.5, "left", method).values) == 0
    assert len(decisions(Operator(1.5 * weight), weight, 10, 0.5, "left")["sigma"]) == 5


@pytest.mark.parametrize(
    "gaps", [[0.3] * 14, [0.0] * 14, [0.0, 1e-6, 0.3, 0.0, 0.3, 1e-6, 1e-6] * 2], ids=str
)
def test_planes_are_certified_and_not_merely_abstained_from(gaps):
    matrix, _, _, _ = of_gaps(gaps, 7)
    assert top_clusters(Operator(matrix), 10, angle=0.05) is not None


def of_gaps(gaps: list[float], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A 400 x 400 matrix whose 14 leading values lie so far apart, and its triplets."""
    size = 400
    noise = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=noise).double())[0] for _ in "lr"
    )
    values = 3 + torch.tensor(gaps).double().flip(0).cumsum(0).flip(0)
    values = torch.cat([values, torch.linspace(2, 0.1, size - 14).double()])
    return ((left * values) @ right.T).float(), left, values, right


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.3]), min_size=14, max_size=14),
    seed=st.integers(0, 10**6),
)
def test_planes_are_within_their_bound(gaps, seed):
    """Leading values equal, nearly so or apart: every cluster's plane against float64, and values
    that are short by no more than the cosine of its angle."""
    matrix, left, values, right = of_gaps(gaps, seed)
    found = top_clusters(Operator(matrix), 10, angle=0.05)
    if found is None:  # the columns that may be held can be too few
        return
    triplets, cluster = found
    count = len(cluster)
    short = float(triplets.angle.max()) ** 2
    torch.testing.assert_close(triplets.values.double(), values[:count], rtol=short + 1e-5, atol=0)
    for number in cluster.unique():
        own = cluster == number
        for ours, theirs in ((triplets.left, left), (triplets.right, right)):
            part = ours[:, own].double()
            whole = theirs[:, :count][:, own]
            sine = torch.linalg.matrix_norm(part - whole @ (whole.T @ part), 2)
            assert sine <= triplets.angle[own].max() + 1e-4
    # Told apart where the gap allows, and only there; the last of ten keeps its equals with it.
    apart = torch.tensor([0, *(gap > 0.1 for gap in gaps[: count - 1])]).cumsum(0)
    assert (cluster.diff() >= apart.diff()).all()
    assert count == 14 or gaps[count - 1] > 1e-6


@pytest.mark.parametrize(("following", "certified"), [(5.95, False), (2.0, True)])
def test_a_certificate_that_costs_as_much_as_a_decomposition_is_not_sought(
    following: float, certified: bool, monkeypatch
):
    """Values 10 to 6, then `following` and falling slowly: where that is near, how much may be left
    over is known closely enough only with more than a quarter of the columns."""
    size, sizes = 400, []

    def counted(tall: Tensor) -> float:
        sizes.append(tall.shape[1])
        return spectral_norm(tall)

    spectral_norm = leading._spectral_norm
    monkeypatch.setattr(leading, "_spectral_norm", counted)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=draw))[0] for _ in "ab")
    rest = torch.linspace(following, following - 1, size - 5)
    values = torch.cat([torch.tensor([10.0, 9.0, 8.0, 7.0, 6.0]), rest])
    found = top_triplets(Operator((left * values) @ right.T), 5, right[:, :LED])
    assert (found is not None) is certified
    assert max(sizes) <= size // 4
    assert certified or max(sizes) > size // 5
