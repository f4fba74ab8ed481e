"""The k largest singular triplets of a tuned matrix, certified to be the largest.

A block Golub-Kahan-Davidson iteration finds them (the basis grows by the residuals of the wanted
triplets, which spans the block Krylov space; Golub & Van Loan, Matrix Computations, 4th ed., 10.4).
It needs only products with W: a LoRA change stays factored. Started from the base's vectors it is
fast, and blind: they are exact singular vectors of the tuned matrix wherever the change avoids
them, so that every residual vanishes at once and a new direction outside them is never seen.
Residuals show that a vector is a singular vector, not that it is among the largest.

So what the found right vectors V leave over, E = W (I - V V^T), is measured. Let theta be the
largest singular value of E on the Krylov space of m passes from a Gaussian block of b columns that
nothing before depended on, and c the length of the projection of E's largest right singular vector
onto that block's span. Then |E|_2 <= theta cosh(a / (2m - 1)) for every m at once, unless
c^2 <= 1 / cosh(a)^2: the even polynomial U_{2m-2}(sqrt x) of Kuczynski & Wozniakowski 1992 (SIAM J.
Matrix Anal. Appl. 13, theorem 3.2) as a filter, with a block instead of a vector (as in Halko,
Martinsson & Tropp 2011). c^2 is Beta(b/2, (n - b)/2), so that a is chosen by the chance of failure.

With |E|_2 <= e no more than k singular values lie above the largest eigenvalue of the few guards'
Gram matrix bordered by e, and Wedin's bound on the angles (1972) uses that as the k-th's neighbour.
Where singular values lie too close for vectors to be told apart, the plane they span still can
be: `top_clusters` certifies the angles of such planes, each with the values outside it as
neighbours. Where not even that can be done, or the certificate would cost as much as the dense
decomposition, there is no answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.numerics import svd
from workbench.spectral.linalg import Operator, Triplets

DENSE_BELOW = 256  # rows below which a full SVD costs no more than a certificate
GUARD = 4  # extra triplets followed, so that the k-th has a neighbour to keep a distance from
ANGLE = 1e-3  # largest accepted bound on the sine of the angle to the true vector
CHANCE = 1e-6  # that one certificate is wrong
ROUNDS = 6  # certificates tried, each with a Gaussian block of its own; what one finds is added
HELD = 2  # times the wanted triplets are held, which makes what is left over small


@dataclass(frozen=True)
class Space:
    """Orthonormal right vectors and their images under W."""

    operator: Operator
    basis: Float[Tensor, "in d"]
    image: Float[Tensor, "out d"]

    @classmethod
    def of(cls, operator: Operator, block: Float[Tensor, "in d"]) -> Space:
        basis = torch.linalg.qr(block)[0]
        return cls(operator, basis, operator.times(basis))

    @property
    def size(self) -> int:
        return self.basis.shape[1]

    def grown(self, block: Float[Tensor, "in b"]) -> Space | None:
        """With what `block` adds; None where that is nothing."""
        fresh = new_directions(self.basis, block)
        if fresh.shape[1] == 0:
            return None
        basis = torch.cat([self.basis, fresh], 1)
        return Space(self.operator, basis, torch.cat([self.image, self.operator.times(fresh)], 1))

    def ritz(self, count: int) -> Ritz:
        left, values, turn = thin_svd(self.image)
        left, values = left[:, :count], values[:count]
        right = self.basis @ turn[:count].T
        return Ritz(left, values, right, self.operator.transposed_times(left) - right * values)


@dataclass(frozen=True)
class Ritz:
    """W right = left values exactly; residual: W^T left - right values."""

    left: Float[Tensor, "out r"]
    values: Float[Tensor, " r"]
    right: Float[Tensor, "in r"]
    residual: Float[Tensor, "in r"]

    @property
    def rounding(self) -> float:
        """Bound on what float32 leaves of a residual that is zero."""
        return float(self.values[0]) * torch.finfo(self.values.dtype).eps * 4

    def sizes(self, count: int) -> Float[Tensor, " count"]:
        """Of the first residuals, their rounding added."""
        return torch.linalg.vector_norm(self.residual[:, :count], dim=0) + self.rounding

    def gaps(self, count: int, rest: float = 0.0) -> Float[Tensor, " count"]:
        """From each of the first values down to the next, less what that one may be larger;
        rest: bound on all other singular values."""
        values = self.values[:count]
        return torch.cat([values[:-1] - values[1:] - self.sizes(count)[1:], values[-1:] - rest])

    def angles(self, count: int, rest: float = 0.0) -> Float[Tensor, " count"]:
        """sin(angle) <= residual / gap for each of the first triplets, the gap taken to both
        neighbours."""
        gap = self.gaps(count, rest)
        nearest = torch.minimum(gap, torch.cat([gap.new_full((1,), torch.inf), gap[:-1]]))
        return torch.where(nearest > 0, self.sizes(count) / nearest, torch.inf)

    def clusters(self, count: int, angle: float, rest: float = 0.0) -> list[Cluster]:
        """The first triplets, each that does not keep `angle` joined to the neighbour it is nearest
        to until the plane of all so joined does; none where not even all of them together do."""
        gap = [math.inf, *self.gaps(count, rest).tolist()]
        squares = self.sizes(count).square().tolist()

        def cluster(first: int, stop: int) -> Cluster:
            nearest = min(gap[first], gap[stop])
            size = math.sqrt(sum(squares[first:stop]))
            return Cluster(first, stop, size / nearest if nearest > 0 else math.inf)

        found = [cluster(i, i + 1) for i in range(count)]
        while True:
            wide = next((i for i, one in enumerate(found) if one.angle > angle), None)
            if wide is None:
                return found
            if len(found) == 1:
                return []
            above = gap[found[wide].first] <= gap[found[wide].stop] or wide == len(found) - 1
            i = wide - 1 if above else wide
            found[i : i + 2] = [cluster(found[i].first, found[i + 1].stop)]

    def without(self, block: Float[Tensor, "in b"]) -> Float[Tensor, "in b"]:
        """What `block` has outside the right vectors."""
        return block - self.right @ (self.right.T @ block)


class Cluster(NamedTuple):
    """Triplets number `first` up to `stop`, whose vectors span a plane within `angle` (its sine) of
    the true one; one alone is a vector."""

    first: int
    stop: int
    angle: float


def top_triplets(
    operator: Operator,
    k: int,
    start: Float[Tensor, "in b"] | None = None,
    *,
    angle: float = ANGLE,
) -> Triplets | None:
    """The k largest triplets of W, or None where they cannot be certified more cheaply than by a
    dense SVD. With probability 1 - ROUNDS * CHANCE none larger was overlooked.

    start: right vectors to begin from (the base's own converge fastest). angle: the bound every
    returned vector keeps.
    """
    found = _found(operator, k, start, angle, apart=True)
    return None if found is None else found[0]


def top_clusters(
    operator: Operator,
    k: int,
    start: Float[Tensor, "in b"] | None = None,
    *,
    angle: float = ANGLE,
) -> tuple[Triplets, Int[Tensor, " n"]] | None:
    """`top_triplets` where vectors whose values lie too close stay together: the n >= k largest
    triplets (the last of the k may belong with some that follow), and the number of each one's
    cluster, whose plane keeps `angle`."""
    return _found(operator, k, start, angle, apart=False)


def _found(
    operator: Operator, k: int, start: Tensor | None, angle: float, *, apart: bool
) -> tuple[Triplets, Tensor] | None:
    """apart: every cluster is one vector."""
    out, width = operator.shape
    # Past a quarter of the columns, basis and projection cost as much as the dense SVD.
    most = min(out, width) // 4
    wanted = k + GUARD
    if min(out, width) < DENSE_BELOW or most < 2 * wanted:
        return None
    unit = operator.unit
    operator = operator.over(unit)
    noise = operator.own_generator()
    block = gaussian(width, wanted, noise).to(operator.dense)
    space = Space.of(operator, block if start is None else torch.cat([start, block], 1))
    for _ in range(ROUNDS):
        settled = _settled(space, k, wanted, angle, most, apart)
        if settled is None:
            return None
        ritz = settled.ritz(HELD * wanted)
        count = k if apart else _edge(ritz, k, wanted)
        block = gaussian(width, wanted, noise).to(operator.dense)
        clusters, larger = _certified(settled, ritz, block, count, angle, most, apart)
        if clusters:
            return _told(ritz, [one for one in clusters if one.first < k], unit)
        grown = None if larger is None else settled.grown(larger)
        if grown is None:
            return None
        space = grown
    return None


def _told(ritz: Ritz, clusters: list[Cluster], unit: float) -> tuple[Triplets, Tensor]:
    """The triplets of these clusters, and the number of each one's."""
    count = clusters[-1].stop
    number = torch.tensor([n for n, one in enumerate(clusters) for _ in range(one.first, one.stop)])
    angle = torch.tensor([one.angle for one in clusters])[number].to(ritz.values)
    left, values, right = ritz.left[:, :count], ritz.values[:count], ritz.right[:, :count]
    return Triplets(left, values * unit, right, angle), number


def _edge(ritz: Ritz, k: int, wanted: int) -> int:
    """How many triplets to certify so that the k-th has all that it cannot be told from with it:
    up to the widest gap among the guards."""
    values = ritz.values[k - 1 : wanted + 1]
    return k + int((values[:-1] - values[1:]).argmax())


def _settled(
    space: Space, k: int, wanted: int, angle: float, most: int, apart: bool
) -> Space | None:
    """The space grown until it holds k triplets that would do if nothing larger were left: each
    alone, or, unless they must be `apart`, in clusters that rounding or `most` keeps together."""
    while True:
        ritz = space.ritz(wanted + 1)
        bound = ritz.angles(wanted)
        if bool((bound[:k] <= angle).all()):
            return space
        open_ = bound > angle
        # Four times what rounding alone leaves, no growing brings a residual down.
        rough = bool((ritz.sizes(wanted)[:k][open_[:k]] > 4 * ritz.rounding).any())
        grown = space.grown(ritz.residual[:, :wanted][:, open_]) if rough or apart else None
        if grown is None or grown.size > most:
            together = not apart and ritz.clusters(_edge(ritz, k, wanted), angle)
            return space if together else None
        space = grown


def _certified(
    space: Space, ritz: Ritz, block: Tensor, count: int, angle: float, most: int, apart: bool
) -> tuple[list[Cluster], Tensor | None]:
    """(clusters of the first `count`, None) where nothing larger is left, ([], right vectors to
    add) where something is, ([], None) where that would take too long to tell."""
    guards = torch.linalg.qr(ritz.residual[:, count:])[1].double().cpu()
    values = ritz.values[count:].double().cpu()
    finest = count if apart else len(ritz.clusters(count, angle, float(values[0])))

    def clusters(left_over: float) -> list[Cluster]:
        found = ritz.clusters(count, angle, bordered(values, guards, left_over))
        return found if len(found) == finest else []

    far = reach(*block.shape)
    newest = torch.linalg.qr(ritz.without(block))[0]
    krylov = Space(space.operator, newest, space.operator.times(newest))
    passes = 1
    while True:
        largest = _spectral_norm(krylov.image)
        # The Krylov space is too small where even its own largest value is too large.
        if not clusters(largest):
            found = krylov.ritz(block.shape[1])
            return [], torch.cat([found.right, ritz.residual[:, count:]], 1)
        bound = clusters(at_most(largest, far, passes))
        if bound:
            return bound, None
        if krylov.size + newest.shape[1] > most:
            return [], None
        image = krylov.image[:, -newest.shape[1] :]
        newest = new_directions(
            torch.cat([ritz.right, krylov.basis], 1), space.operator.transposed_times(image)
        )
        if newest.shape[1] == 0:  # invariant: the largest value is its own bound
            return clusters(largest), None
        krylov = Space(
            space.operator,
            torch.cat([krylov.basis, newest], 1),
            torch.cat([krylov.image, space.operator.times(newest)], 1),
        )
        passes += 1


def at_most(largest: float, far: float, passes: int) -> float:
    """The bound on |E|_2 by theta, a and m of the module: theta cosh(a / (2m - 1))."""
    return largest * math.cosh(far / (2 * passes - 1))


def reach(size: int, block: int, chance: float = CHANCE) -> float:
    """a of the module's bound: arccosh(1 / c), where the projection of a unit vector of R^size onto
    the span of `block` Gaussian vectors is shorter than c with probability `chance`."""
    from scipy.special import betaincinv

    return math.acosh(1 / math.sqrt(betaincinv(block / 2, (size - block) / 2, chance)))


def bordered(
    values: Float[Tensor, " g"], residual: Float[Tensor, "g g"], left_over: float
) -> float:
    """Bound on all singular values but the first k: the largest of a matrix that sends g right
    vectors to `values`, couples them by `residual` to the others, and whose image of those others
    is at most `left_over`."""
    coupling = residual * values
    others = torch.eye(len(residual), dtype=coupling.dtype) * left_over**2
    gram = torch.cat(
        [
            torch.cat([values.square().diag(), coupling.T], 1),
            torch.cat([coupling, others], 1),
        ]
    )
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


def gaussian(size: int, columns: int, noise: torch.Generator) -> Float[Tensor, "size columns"]:
    return torch.randn(size, columns, generator=noise)


def thin_svd(tall: Float[Tensor, "n b"]) -> tuple[Tensor, Tensor, Tensor]:
    """A thin SVD of few columns; elsewhere than on a CPU by way of QR, whose small triangle the CPU
    decomposes sooner than an accelerator."""
    if tall.device.type == "cpu":
        return svd(tall)
    frame, corner = torch.linalg.qr(tall)
    left, values, right = (part.to(tall.device) for part in svd(corner.cpu()))
    return frame @ left, values, right


def new_directions(basis: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis of what `block` adds to `basis`; two passes of Gram-Schmidt suffice."""
    scale = torch.linalg.vector_norm(block, dim=0)
    block = block[:, scale > 0] / scale[scale > 0]
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
    leak = torch.linalg.vector_norm(basis.T @ block, dim=0)
    return block[:, leak < 1e-3]


def _spectral_norm(tall: Float[Tensor, "n b"]) -> float:
    """The largest singular value of few columns."""
    return float(torch.linalg.eigvalsh((tall.T @ tall).double().cpu())[-1].clamp(min=0).sqrt())
