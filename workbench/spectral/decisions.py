"""Is max_i |u . u0_i| below eps? Decided for a few vectors u without the base's full SVD.

Let A = W0 W0^T with eigenpairs (x_i, u0_i), and P an orthonormal basis of the block Krylov space
of A from the vectors u. An eigenvector e at x has coordinates y = P^T e with |y| <= 1 that satisfy
every row of (P^T A P - x) y = 0 but those of the newest block, whose image leaves the space. So
|u . e|^2 is at most the largest (P^T u . y)^2 under these constraints: the Christoffel function of
u's spectral measure (Golub & Meurant, Matrices, Moments and Quadrature, 2010, ch. 6; here for
blocks). `mass` bounds it for a whole interval of x and with a rounding error of the rows at once,
so a bisection of the axis covers all x and no atom hides between the points of a grid.

From below: a Ritz vector of residual r whose eigenvalue is alone within rho of it is within
asin(r / rho) of an eigenvector (Davis & Kahan 1970; Wedin 1972). A small residual never shows that
it is alone: a mixture of two vectors of nearly equal value has one too. Gaussian vectors in the
block do: every plane of eigenvectors holds some of them, and where `mass` leaves no room for it
beside the Ritz vector, there is no second eigenvector. That part holds with probability
1 - CHANCE; the upper bound needs no chance, except for tall matrices (below).

Tall W0 (out > in): A's null space would look like one large atom, so the same is done with
W0^T W0 and w = W0^T u, where |u . u0_i|^2 = |w . v0_i|^2 / x_i; values too small to matter are
excluded by the Gaussian vectors.

It cannot decide everything: near-degenerate base values, an eps within about 0.003 of the cosine,
a small eps (a vector spread over the bulk of the spectrum is bounded by about 1 / sqrt(passes), so
eps = 0.1 takes hundreds) and, for a vector with a part in its null space, a base of low rank are
left to the caller's dense decomposition. It misleads where the cosine itself does: which vectors
are "the" base vectors of nearly equal values is rounding, and no bracket changes that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench import magnitude
from workbench.spectral.linalg import own_generator

CHANCE = 1e-6  # that any certificate of one call is wrong
NOISE = 12  # Gaussian vectors in the block; more make a smaller mass suffice, at a wider block
SLACK = 2e-5  # on a cosine: the basis is orthonormal to float32
ROUNDING = 4  # rounding of the projected rows, in float32 epsilons of the largest value
PASSES = 48  # products with W0 and W0^T, each with the whole block, before giving up
CELLS = 4_000  # intervals left open in one test before it counts as failed
DEPTH = 40  # halvings of an interval before the same
SETTLED = 8  # passes before which nothing is given up
CHUNK = 1024  # intervals bounded at once
SHARES = (0.999, 0.3, 0.1, 0.03)  # of the angle to spare, tried for the lower bound
TESTS = (2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 20, 23, 27, 31, 36, 41)  # passes before a decision
TIGHTNESS = (0.3, 0.03, 0.003)  # excess in `mass`, the next where one fails: bulk to atoms
LOOSE = 3.0  # excess where only the order of magnitude counts
DOUBLE = ("cuda",)  # devices where float64 is fast; elsewhere bounds are made on the CPU


@dataclass(frozen=True)
class Bracket:
    """low <= max_i |cosine| <= high, per vector."""

    low: Float[Tensor, " k"]
    high: Float[Tensor, " k"]

    def decided(self, eps: float) -> Bool[Tensor, " k"]:
        return (self.high < eps) | (self.low >= eps)


@dataclass(frozen=True)
class Measure:
    """What K passes know about A, in the eigenbasis of P^T A P; float64, on a GPU where W is.

    values: Ritz values, rising. vectors, noise: coordinates of the vectors asked about and of the
    Gaussian ones. last: coordinates of the newest block. residual: |A z - x z| of each Ritz vector.
    rounding: bound on the error of a row. weighted: |cosine|^2 is the mass at x divided by x.
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n k"]
    noise: Float[Tensor, "n g"]
    last: Float[Tensor, "n c"]
    residual: Float[Tensor, " n"]
    rounding: float
    weighted: bool

    def mass(
        self,
        start: Float[Tensor, "n k"],
        centre: Float[Tensor, " x"],
        radius: Float[Tensor, " x"],
        excess: float,
        without: Int[Tensor, " x"] | None = None,
    ) -> Float[Tensor, "x k"]:
        """Upper bound on (s . e)^2 of every vector s of `start` and every unit e with
        |(A - centre) e| <= radius; without: only e orthogonal to this Ritz vector.

        With R the rows of (T - centre) but the newest block's, |y| <= 1 and |R y| <= radius give
        y^T (1 + tau R^T R) y <= 1 + tau radius^2 for any tau > 0, so (s . y)^2 is at most
        (1 + tau radius^2) s^T (1 + tau R^T R)^-1 s; tau = excess / radius^2. In the eigenbasis of
        T that inverse is diagonal plus the newest block's rank (Woodbury).
        """
        radius = radius + self.rounding
        tau = excess / radius.square()
        away = self.values - centre[:, None]
        keep = 1 / (1 + tau[:, None] * away.square())
        count = self.last.shape[1]
        pairs = (self.last[:, :, None] * self.last[:, None, :]).flatten(1)
        if without is not None:
            keep = keep.scatter(1, without[:, None], 0)
        block = keep @ pairs
        if without is not None:
            block = block + pairs[without]
        mixed = (self.last[:, :, None] * start[:, None, :]).flatten(1)
        found = keep @ start.square()
        if count:
            lower, failed = torch.linalg.cholesky_ex(block.view(-1, count, count))
            right = ((keep * away) @ mixed).view(-1, count, start.shape[1])
            solved = torch.linalg.solve_triangular(lower, right, upper=False)
            found = found + tau[:, None] * solved.square().sum(1)
            found[failed != 0] = torch.inf  # too ill-conditioned to say anything
        return (1 + excess) * found

    def weight(self, x: Tensor) -> Tensor:
        """What a mass at x is divided by to be a |cosine|^2."""
        return x if self.weighted else torch.ones_like(x)


def rounding(scale: float) -> float:
    """Bound on what float32 leaves of a zero row, `scale` being the largest value of A."""
    return ROUNDING * torch.finfo(torch.float32).eps * scale


def room(size: int, noise: int = NOISE) -> float:
    """A mass that no unit vector in a plane of eigenvectors of A (size, size) falls below, but
    with probability CHANCE: the sum over `noise` Gaussian vectors of (e . g)^2.

    The smallest squared singular value of a (noise, 2) Gaussian matrix is at least half the
    smaller squared distance of its columns from each other's span, each chi^2 of noise - 1 degrees
    of freedom nu, and P(chi^2 < s) <= (s / 2)^(nu / 2) / Gamma(nu / 2 + 1). Two columns and
    `size` neighbouring pairs share CHANCE.
    """
    half = (noise - 1) / 2
    each = CHANCE / (2 * size)
    return math.exp((math.log(each) + math.lgamma(half + 1)) / half)


class Krylov:
    """The block Krylov space of A = W W^T (of W^T W if `tall`) from `start`, grown a pass at a
    time with full reorthogonalisation (Golub & Van Loan, Matrix Computations, 4th ed., 10.3).

    basis: its orthonormal vectors. projected: P^T A P, float64. fresh: what A added to the space,
    not yet part of the basis, and coupling: by how much. Products are in W's own precision.
    """

    def __init__(
        self, matrix: Float[Tensor, "out in"], start: Float[Tensor, "n b"], *, tall: bool = False
    ):
        self.matrix, self.tall = matrix, tall
        # Many small products in float64, which not every accelerator has.
        self.home = matrix.device if matrix.device.type in DOUBLE else torch.device("cpu")
        self.fresh, first = torch.linalg.qr(start)
        self.start = first.double().cpu()
        self.basis = self.fresh[:, :0]
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self.coupling = torch.zeros(0, 0, dtype=torch.float64)
        self.passes = 0

    def image(self, block: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
        # (b, out) @ (out, in) reads W along its rows; W.T @ block would stride through it.
        if self.tall:
            return ((self.matrix @ block).T @ self.matrix).T
        return self.matrix @ (block.T.contiguous() @ self.matrix).T

    def grow(self) -> None:
        """Apply A to the newest directions; what leaves the space is the next to be applied to."""
        old = len(self.projected)
        self.basis = torch.cat([self.basis, self.fresh], 1)
        rest = self.image(self.fresh)
        inside = self.basis.T @ rest
        rest = rest - self.basis @ inside
        again = self.basis.T @ rest
        rest = rest - self.basis @ again
        columns = (inside + again).double().cpu()
        above, corner = columns[:old], columns[old:]
        self.projected = torch.cat(
            [
                torch.cat([self.projected, above], 1),
                torch.cat([above.T, (corner + corner.T) / 2], 1),
            ]
        )
        self._leave(rest)
        self.passes += 1

    def _leave(self, rest: Float[Tensor, "n b"]) -> None:
        """Split what left the space into orthonormal directions and their coupling to the newest
        ones, without directions of the size of rounding."""
        frame, corner = torch.linalg.qr(rest)
        turn, sizes, back = torch.linalg.svd(corner.cpu())
        self.coupling = (sizes[:, None] * back).double()
        scale = float(self.projected.diagonal().max())
        frame = frame @ turn[:, sizes > rounding(scale) / 4].to(frame.device)
        frame = frame - self.basis @ (self.basis.T @ frame)
        self.fresh = torch.linalg.qr(frame)[0]

    @property
    def exhausted(self) -> bool:
        """Whether the space is invariant under A, or another block would fill half of it all."""
        size, full = self.basis.shape[1], self.basis.shape[0]
        return self.fresh.shape[1] == 0 or 2 * (size + self.fresh.shape[1]) > full

    def measure(self, count: int) -> Measure:
        """The spectral measure as known so far; the first `count` starting vectors are those
        asked about, the others the Gaussian ones."""
        values, turn = torch.linalg.eigh(self.projected)
        start = turn[: len(self.start)].T @ self.start
        # An invariant space leaves no row out.
        newest = self.coupling.shape[1] if self.fresh.shape[1] else 0
        last = turn[len(turn) - newest :].T
        error = rounding(float(values[-1]))
        leak = torch.linalg.vector_norm(
            self.coupling @ turn[len(turn) - self.coupling.shape[1] :], dim=0
        )
        start = start.to(self.home)
        return Measure(
            values.to(self.home), start[:, :count], start[:, count:], last.to(self.home),
            (leak + error).to(self.home), error, self.tall,
        )  # fmt: skip


def cosines_squared(
    measure: Measure,
    asked: Int[Tensor, " a"],
    low: Float[Tensor, " x"],
    high: Float[Tensor, " x"],
    limit: Float[Tensor, " a"],
    needed: float,
) -> Float[Tensor, "x a"]:
    """Bound on the |cosine|^2 of the vectors `asked` with any eigenvector whose value lies in
    [low, high], per interval, tightened only where it is not below `limit`; zero where the
    Gaussian vectors leave no room for one (tall only, see `room`)."""
    if len(low) > CHUNK:
        parts = zip(low.split(CHUNK), high.split(CHUNK), strict=True)
        return torch.cat([cosines_squared(measure, asked, *p, limit, needed) for p in parts])
    centre, radius = (low + high) / 2, (high - low) / 2
    vectors = measure.vectors[:, asked]
    share = measure.weight(low)[:, None]
    found = measure.mass(vectors, centre, radius, TIGHTNESS[0]) / share
    if measure.weighted:
        found[measure.mass(measure.noise, centre, radius, LOOSE).sum(1) < needed] = 0
    for excess in TIGHTNESS[1:]:
        loose = (found >= limit).any(1)
        if bool(loose.any()):
            again = measure.mass(vectors, centre[loose], radius[loose], excess) / share[loose]
            found[loose] = torch.minimum(found[loose], again)
    return found


def from_above(
    measure: Measure, limit: Float[Tensor, " k"], span: tuple[float, float], needed: float
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """(bound, seen): the largest |cosine|^2 at any x of `span`, below `limit` or infinite, and the
    largest bound at a single point that was looked at.

    An interval whose bound is not below the limit is halved, until all are or a point fails.
    needed: as `room`.
    """
    bound, seen = torch.zeros_like(limit), torch.zeros_like(limit)
    nodes = measure.values.clamp(*span)
    beyond = float(nodes[-1]) * 1.1 ** torch.arange(1, 200, dtype=nodes.dtype, device=nodes.device)
    ends = nodes.new_tensor(span)
    middle = (nodes[1:] + nodes[:-1]) / 2
    edges = torch.cat([middle, beyond[beyond < span[1]], ends]).unique()
    low, high, points = edges[:-1], edges[1:], nodes
    for depth in range(DEPTH):
        asked = (seen < limit).nonzero()[:, 0]
        if not len(asked):
            break
        at = cosines_squared(measure, asked, points, points, limit[asked], needed).amax(0)
        seen[asked] = torch.maximum(seen[asked], at)
        found = cosines_squared(measure, asked, low, high, limit[asked], needed)
        passed = found < limit[asked]
        bound[asked] = torch.maximum(bound[asked], torch.where(passed, found, 0).amax(0))
        split = ~passed.all(1)
        if not bool(split.any()):
            break
        if depth == DEPTH - 1 or int(split.sum()) > CELLS:
            bound[asked] = torch.inf
            break
        points = (low[split] + high[split]) / 2
        low, high = torch.cat([low[split], points]), torch.cat([points, high[split]])
    bound[seen >= limit] = torch.inf
    return bound, seen


def hopeless(
    measure: Measure, seen: Float[Tensor, " k"], limit: Float[Tensor, " k"], done: int, passes: int
) -> Bool[Tensor, " k"]:
    """Whether the passes left will not decide. A bound falls like 1 / passes unless it is a single
    base vector's, whose Ritz value stands apart from its neighbours; and where that has converged
    to rounding, the cosine is too close to eps or the value has too close a neighbour."""
    if done < SETTLED:
        return torch.zeros_like(limit, dtype=torch.bool)
    gap = measure.values.diff()
    edge = gap.new_full((1,), torch.inf)
    apart = measure.residual < torch.minimum(torch.cat([gap, edge]), torch.cat([edge, gap]))
    scale = measure.weight(measure.values.clamp(min=0) + measure.residual)
    weight = measure.vectors.square() / scale[:, None]
    settled = measure.residual[weight.argmax(0)] < 1.1 * measure.rounding
    slow = (seen * done / passes > 1.5 * limit) & ~(apart[:, None] & (weight >= limit)).any(0)
    return slow | (settled & (weight.amax(0) >= limit))


def from_below(
    measure: Measure, target: Float[Tensor, " k"], floor: float, needed: float
) -> Float[Tensor, " k"]:
    """A certified lower bound on the largest |cosine| where it reaches `target`, else 0.

    Per vector the Ritz vector with most angle to spare is tried: it must be alone within
    residual / sin(spare) of its value, which must lie above `floor`; needed: as `room`.
    """
    size = torch.linalg.vector_norm(measure.vectors, dim=0)
    value = measure.values[:, None] + measure.residual[:, None]
    scale = value.clamp(min=floor).sqrt() if measure.weighted else torch.ones_like(value)
    turned = (measure.vectors.abs() / size).clamp(max=1).arccos()
    spare = (target * scale / size).clamp(max=1).arccos() - turned
    spare[(target * scale / size) >= 1] = 0
    best, place = spare.max(0)
    found = torch.zeros_like(target)
    for share in SHARES:
        angle = best.clamp(min=1e-12) * share
        radius = measure.residual[place] / angle.sin()
        clear = (best > 0) & (measure.values[place] - radius > floor)
        taken = measure.mass(measure.noise, measure.values[place], radius, LOOSE, without=place)
        clear &= taken.sum(1) < needed
        own = torch.arange(len(place), device=place.device)
        low = size * (turned[place, own] + angle).cos() / scale[place, 0]
        found = torch.where(clear, torch.maximum(found, low), found)
    return found


def bracket(
    matrix: Float[Tensor, "out in"],
    vectors: Float[Tensor, "out k"],
    angle: Float[Tensor, " k"],
    eps: float,
    *,
    passes: int = PASSES,
    seed: int | None = None,
) -> Bracket:
    """Bounds on max_i |u . u0_i| over the left singular vectors of `matrix` (float32), narrow
    enough to decide `< eps` where that takes at most `passes` products with it and its transpose.

    angle: bound on the angle of each vector to the one it stands for. seed: of the Gaussian
    vectors; None draws them by the content of matrix and vectors, so that no matrix can have been
    made for them. Undecided vectors, and all of a matrix that is too small, have low < eps <= high.
    """
    own = own_generator(matrix, vectors) if seed is None else torch.Generator().manual_seed(seed)
    unit = magnitude.unit(matrix)
    matrix = matrix if unit == 1 else matrix / unit
    out, width = matrix.shape
    tall = out > width
    noise = torch.randn(min(out, width), NOISE, generator=own)
    first = (vectors.T @ matrix).T if tall else vectors
    krylov = Krylov(matrix, torch.cat([first, noise.to(matrix.device)], 1), tall=tall)
    slack = angle.cpu().double().to(krylov.home) + SLACK
    low, high = torch.zeros_like(slack), torch.ones_like(slack)
    needed = room(min(out, width))
    frobenius = float(torch.linalg.vector_norm(matrix)) ** 2 * (1 + 1e-4)
    open_ = torch.full_like(low, frobenius > 0, dtype=torch.bool)
    while not krylov.exhausted and krylov.passes < passes and bool(open_.any()):
        krylov.grow()
        if krylov.passes not in TESTS and krylov.passes < passes and not krylov.exhausted:
            continue
        measure = krylov.measure(len(angle))
        floor = float(measure.values[-1]) * (max(out, width) * torch.finfo(torch.float32).eps) ** 2
        found = from_below(measure, eps + slack, floor, needed)
        low = torch.where(open_, torch.maximum(low, found - slack), low)
        open_ = open_ & (low < eps)
        limit = torch.where(open_, (eps - slack).clamp(min=0).square(), 0)
        span = (floor if tall else 0.0, frobenius)
        bound, seen = from_above(measure, limit, span, needed)
        high = torch.where(bound < limit, bound.sqrt() + slack, high)
        open_ = open_ & (high >= eps)
        if bool((open_ & hopeless(measure, seen, limit, krylov.passes, passes)).any()):
            break
    return Bracket(low.cpu(), high.cpu())
