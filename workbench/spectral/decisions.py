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

Vectors that are known only as a plane, because their singular values lie too close, are decided
together: the part of u0_i in the plane bounds the cosine of every vector there from above. From
below the same holds on the other side: where m <= TOGETHER eigenvectors of nearly equal value
share a plane, and no other is near it, one of them has at least the m-th part of the |cosine|^2
that the plane has.

It cannot decide everything: larger clusters, where a rotation among near-equal vectors makes an
intruder or undoes one; an eps within about 0.003 of the cosine; a small eps (a vector spread over
the bulk of the spectrum is bounded by about 1 / sqrt(passes), so eps = 0.1 takes hundreds); and a
vector with a large part where the base's values are zero to float32. Those keep low < eps <= high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench import numerics
from workbench.numerics import singular_values, svd
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
TOGETHER = 3  # base vectors that may share a plane: the fourth part of 1 is (eps = 0.5)^2
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
        without: Int[Tensor, "x m"] | None = None,
    ) -> Float[Tensor, "x k"]:
        """Upper bound on (s . e)^2 of every vector s of `start` and every unit e with
        |(A - centre) e| <= radius; without: only e orthogonal to these Ritz vectors (none at -1).

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
        left_out = torch.zeros_like(keep)
        for column in () if without is None else without.T:
            left_out[(column >= 0).nonzero()[:, 0], column[column >= 0]] = 1
        keep = keep * (1 - left_out)
        block = (keep + left_out) @ pairs
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


def room(size: int, noise: int = NOISE, among: int = 2) -> float:
    """A mass that no unit vector in the span of `among` neighbouring eigenvectors of A (size, size)
    falls below, but with probability CHANCE: the sum over `noise` Gaussian vectors of (e . g)^2.

    The smallest squared singular value of a (noise, m) Gaussian matrix is at least the m-th part
    of the smallest squared distance of a column from the others' span, each chi^2 of
    nu = noise - m + 1 degrees of freedom, and P(chi^2 < s) <= (s / 2)^(nu / 2) / Gamma(nu / 2 + 1).
    m columns and `size` spans share CHANCE.
    """
    half = (noise - among + 1) / 2
    each = CHANCE / (among * size)
    return 2 / among * math.exp((math.log(each) + math.lgamma(half + 1)) / half)


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
        turn, sizes, back = svd(corner.cpu())
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
    cluster: Int[Tensor, " a"],
) -> Float[Tensor, "x a"]:
    """Bound on the |cosine|^2 of the vectors `asked`, and of any other in the plane of those of one
    `cluster`, with any eigenvector whose value lies in [low, high], per interval, tightened only
    where it is not below `limit`; zero where the Gaussian vectors leave no room for one (tall only,
    see `room`)."""
    if len(low) > CHUNK:
        parts = zip(low.split(CHUNK), high.split(CHUNK), strict=True)
        return torch.cat(
            [cosines_squared(measure, asked, *p, limit, needed, cluster) for p in parts]
        )
    centre, radius = (low + high) / 2, (high - low) / 2
    vectors = measure.vectors[:, asked]
    same = (cluster[:, None] == cluster).to(vectors)
    share = measure.weight(low)[:, None]
    found = measure.mass(vectors, centre, radius, TIGHTNESS[0]) @ same / share
    if measure.weighted:
        found[measure.mass(measure.noise, centre, radius, LOOSE).sum(1) < needed] = 0
    for excess in TIGHTNESS[1:]:
        loose = (found >= limit).any(1)
        if bool(loose.any()):
            again = measure.mass(vectors, centre[loose], radius[loose], excess)
            again = again @ same / share[loose]
            found[loose] = torch.minimum(found[loose], again)
    return found


def from_above(
    measure: Measure,
    limit: Float[Tensor, " k"],
    span: tuple[float, float],
    needed: float,
    cluster: Int[Tensor, " k"],
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """(bound, seen): the largest |cosine|^2 at any x of `span`, below `limit` or infinite, and the
    largest bound at a single point that was looked at.

    An interval whose bound is not below the limit is halved, until all are or a point fails.
    needed: as `room`. cluster: the number of each vector's, all of which have one bound.
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
        known = limit[asked], needed, cluster[asked]
        at = cosines_squared(measure, asked, points, points, *known).amax(0)
        seen[asked] = torch.maximum(seen[asked], at)
        found = cosines_squared(measure, asked, low, high, *known)
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
    measure: Measure,
    seen: Float[Tensor, " k"],
    limit: Float[Tensor, " k"],
    cluster: Int[Tensor, " k"],
    done: int,
    passes: int,
) -> Bool[Tensor, " k"]:
    """Whether the passes left will not decide. A bound falls like 1 / passes unless it is that of
    a few base vectors, whose Ritz values stand apart from the others; and where those have
    converged to rounding, the cosine is too close to eps or they have too close a neighbour."""
    if done < SETTLED:
        return torch.zeros_like(limit, dtype=torch.bool)
    same = (cluster[:, None] == cluster).to(limit)
    scale = measure.weight(measure.values.clamp(min=0) + measure.residual)
    weight = measure.vectors.square() @ same / scale[:, None]
    settled = measure.residual[weight.argmax(0)] < 1.1 * measure.rounding
    apart = standing_apart(measure)[:, None] & (TOGETHER * weight >= limit)
    slow = (seen * done / passes > 1.5 * limit) & ~apart.any(0)
    return slow | (settled & (weight.amax(0) >= limit))


def standing_apart(measure: Measure) -> Bool[Tensor, " n"]:
    """Whether each Ritz vector is one of at most TOGETHER neighbours whose residual is less than
    the distance to all others."""
    count = len(measure.values)
    edge = measure.values.new_full((1,), torch.inf)
    gap = torch.cat([edge, measure.values.diff(), edge])
    found = torch.zeros(count, dtype=torch.bool, device=gap.device)
    for size in range(1, min(TOGETHER, count) + 1):
        first = torch.arange(count - size + 1, device=gap.device)
        distance = torch.minimum(gap[first], gap[first + size])
        for member in range(size):
            found[first + member] |= measure.residual[first + member] < distance
    return found


def from_below(
    measure: Measure,
    target: Float[Tensor, " k"],
    floor: float,
    needed: list[float],
    cluster: Int[Tensor, " k"],
) -> Float[Tensor, " k"]:
    """A certified lower bound on the largest |cosine| of every vector in the plane of each cluster
    where it reaches `target`, else 0.

    Tried are the planes of up to TOGETHER neighbouring Ritz vectors about the one that has most of
    the cluster: no other eigenvector than theirs may have a value within residual / sin(angle) of
    them, and they must lie above `floor`. needed: `room` for one eigenvector more than each has.
    """
    found = torch.zeros_like(target)
    for number in cluster.unique().tolist():
        own = cluster == number
        low = _plane_from_below(
            measure, measure.vectors[:, own], float(target[own].amax()), floor, needed
        )
        found[own] = low
    return found


def _plane_from_below(
    measure: Measure,
    vectors: Float[Tensor, "n c"],
    target: float,
    floor: float,
    needed: list[float],
) -> float:
    """`from_below` of one cluster; 0 where no plane is certified."""
    size = float(torch.linalg.matrix_norm(vectors, 2))
    count, home = len(measure.values), measure.values.device
    best = int((vectors.square().sum(1) / measure.weight(measure.values.clamp(min=floor))).argmax())
    tried: list[tuple[int, int, float, float]] = []  # first, many, angle, low
    for many in range(1, min(TOGETHER, count) + 1):
        for first in range(max(0, best - many + 1), min(best, count - many) + 1):
            inside = slice(first, first + many)
            leak = float(torch.linalg.vector_norm(measure.residual[inside]))
            value = float(measure.values[first + many - 1]) + leak
            scale = math.sqrt(many * (max(value, floor) if measure.weighted else 1.0))
            # The least that any unit vector of the cluster's plane has in this one.
            part = least(vectors[inside]) / size
            if target * scale / size >= part:
                continue
            turned = math.acos(min(part, 1))
            spare = math.acos(target * scale / size) - turned
            tried += [
                (first, many, share * spare, size * math.cos(turned + share * spare) / scale)
                for share in SHARES
            ]
    if not tried:
        return 0.0
    columns = zip(*tried, strict=True)
    first, many, angle, low = (torch.tensor(column, device=home) for column in columns)
    members = torch.arange(TOGETHER, device=home)[None] + first[:, None]
    members[torch.arange(TOGETHER, device=home)[None] >= many[:, None]] = -1
    ends = measure.values[first], measure.values[first + many - 1]
    leak = (measure.residual[members.clamp(min=0)] * (members >= 0)).norm(dim=1)
    centre, radius = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    away = leak / angle.double().clamp(min=1e-12).sin()
    clear = ends[0] - away > floor
    taken = measure.mass(measure.noise, centre, radius + away, LOOSE, without=members).sum(1)
    clear &= taken < torch.tensor(needed, device=home)[many - 1]
    return float(torch.where(clear, low, 0).amax())


def least(block: Float[Tensor, "m c"]) -> float:
    """The least length of block @ u over all unit vectors u of R^c."""
    rows, columns = block.shape
    if columns > rows:
        return 0.0
    lengths = torch.linalg.vector_norm(block, dim=0) if columns == 1 else singular_values(block)
    return float(lengths[-1])


def bracket(
    matrix: Float[Tensor, "out in"],
    vectors: Float[Tensor, "out k"],
    angle: Float[Tensor, " k"],
    eps: float,
    *,
    cluster: Int[Tensor, " k"] | None = None,
    passes: int = PASSES,
    seed: int | None = None,
) -> Bracket:
    """Bounds on max_i |u . u0_i| over the left singular vectors of `matrix` (float32), narrow
    enough to decide `< eps` where that takes at most `passes` products with it and its transpose.

    angle: bound on the angle of each vector to the one it stands for. cluster: a number each;
    vectors that share one stand for a plane, and what is said holds for every vector in it. seed:
    of the Gaussian vectors; None draws them by the content of matrix and vectors, so that no matrix
    can have been made for them. Undecided vectors, and all of a matrix that is too small, have
    low < eps <= high.
    """
    if cluster is None:
        cluster = torch.arange(len(angle))
    own = own_generator(matrix, vectors) if seed is None else torch.Generator().manual_seed(seed)
    unit = numerics.unit(matrix)
    matrix = matrix if unit == 1 else matrix / unit
    out, width = matrix.shape
    tall = out > width
    noise = torch.randn(min(out, width), NOISE, generator=own)
    first = (vectors.T @ matrix).T if tall else vectors
    krylov = Krylov(matrix, torch.cat([first, noise.to(matrix.device)], 1), tall=tall)
    slack = angle.cpu().double().to(krylov.home) + SLACK
    low, high = torch.zeros_like(slack), torch.ones_like(slack)
    cluster = cluster.to(krylov.home)
    needed = [room(min(out, width), among=many + 1) for many in range(1, TOGETHER + 1)]
    frobenius = float(torch.linalg.vector_norm(matrix)) ** 2 * (1 + 1e-4)
    open_ = torch.full_like(low, frobenius > 0, dtype=torch.bool)
    while not krylov.exhausted and krylov.passes < passes and bool(open_.any()):
        krylov.grow()
        if krylov.passes not in TESTS and krylov.passes < passes and not krylov.exhausted:
            continue
        measure = krylov.measure(len(angle))
        floor = float(measure.values[-1]) * (max(out, width) * torch.finfo(torch.float32).eps) ** 2
        found = from_below(measure, eps + slack, floor, needed, cluster)
        low = torch.where(open_, torch.maximum(low, found - slack), low)
        open_ = open_ & (low < eps)
        limit = torch.where(open_, (eps - slack).clamp(min=0).square(), 0)
        span = (floor if tall else 0.0, frobenius)
        bound, seen = from_above(measure, limit, span, needed[0], cluster)
        high = torch.where(bound < limit, bound.sqrt() + slack, high)
        open_ = open_ & (high >= eps)
        open_ = open_ & ~hopeless(measure, seen, limit, cluster, krylov.passes, passes)
    return Bracket(low.cpu(), high.cpu())
