"""Does a 95% interval hold the truth in 95% of samples? Simulated, the old rule beside the new one.

    python -m benchmarks.coverage --out benchmarks/results [--simulations 2000] [--seed 0]

Every row draws samples from a distribution whose truth is known, and gives of each rule the share
of the intervals that hold it (coverage) and their mean width. The rules that `workbench.stats` had
before are written out here: percentile bootstraps, whose ends are the 2.5th and 97.5th percentiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import save, table
from workbench import stats

Floats = NDArray[np.float64]
Rule = Callable[..., tuple[float, float]]
COLUMNS = ["of", "truth", "n", "old coverage", "old width", "new coverage", "new width"]
DRAWS = 500  # resamples of the old rules


class Case(NamedTuple):
    """What is sampled. sample: draws the arguments that both rules take."""

    of: str
    truth: float
    n: str
    sample: Callable[[np.random.Generator], tuple[Any, ...]]
    old: Rule
    new: Rule


def percentiles(drawn: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def resampled(values: Floats) -> tuple[float, float]:
    """The percentile bootstrap of a mean."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    return percentiles(values[picks].mean(1))


def resampled_ratio(tops: Floats, bottoms: Floats) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, len(tops), (DRAWS, len(tops)))
    return percentiles(tops[picks].sum(1) / bottoms[picks].sum(1))


def resampled_auc(first: Floats, second: Floats) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    larger = np.sign(first[:, None] - second[None, :]) / 2 + 0.5
    times = [draw.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in larger.shape]
    return percentiles(((times[0] @ larger) * times[1]).sum(1))


def resampled_error(sure: Floats, right: Floats) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, len(sure), (DRAWS, len(sure)))
    return percentiles(stats.calibration_error(sure[picks], right[picks]))


def resampled_ranks(first: Floats, second: Floats) -> tuple[float, float]:
    from scipy.stats import rankdata

    picks = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))
    a, b = (rankdata(values[picks], axis=1) for values in (first, second))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore"):
        return percentiles((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def ends(found: stats.Interval) -> tuple[float, float]:
    return found.low, found.high


def paired(draw: np.random.Generator, p: float, q: float, r: float, n: int) -> tuple[Floats, ...]:
    """(before, after), each (n,) of 0 and 1 with these means and this correlation."""
    both = p * q + r * np.sqrt(p * (1 - p) * q * (1 - q))
    cells = np.array([both, p - both, q - both, 1 - p - q + both])
    kind = draw.choice(4, n, p=np.maximum(cells, 0) / np.maximum(cells, 0).sum())
    return np.isin(kind, (0, 1)).astype(float), np.isin(kind, (0, 2)).astype(float)


def shares() -> Iterator[Case]:
    for p in (0.5, 0.9, 0.95, 0.98):
        for n in (10, 30, 100):
            yield Case(
                "a share of items", p, str(n),
                lambda draw, p=p, n=n: ((draw.random(n) < p).astype(float),),
                resampled, lambda right: ends(stats.share(right)),
            )  # fmt: skip


def clustered() -> Iterator[Case]:
    """Five items a cluster, whose own share is drawn from a beta distribution."""
    for count in (5, 10, 30):

        def sample(draw: np.random.Generator, count: int = count) -> tuple[Floats, Floats]:
            chances = np.repeat(draw.beta(2.7, 0.3, count), 5)
            return (draw.random(5 * count) < chances).astype(float), np.repeat(range(count), 5)

        def old(right: Floats, of: Floats) -> tuple[float, float]:
            return resampled(np.bincount(of.astype(int), right) / 5)

        yield Case(
            "a share of items in clusters of 5", 0.9, f"{count} clusters", sample, old,
            lambda right, of: ends(stats.share(right, clusters=of, draws=DRAWS)),
        )  # fmt: skip


def changes() -> Iterator[Case]:
    for p, q in ((0.9, 0.9), (0.9, 0.8), (0.5, 0.5)):
        for r in (0.0, 0.5, 0.9) if p == q else (0.0, 0.5):
            for n in (10, 30, 100):
                yield Case(
                    f"a paired change of shares, {p} to {q}, correlation {r}", q - p, str(n),
                    lambda draw, p=p, q=q, r=r, n=n: paired(draw, p, q, r, n),
                    lambda before, after: resampled(after - before),
                    lambda before, after: ends(stats.change(before, after)),
                )  # fmt: skip


def means() -> Iterator[Case]:
    for of, truth, sample in (
        ("a mean of normal values", 0.0, lambda draw, n: (draw.normal(size=n),)),
        ("a mean of exponential values", 1.0, lambda draw, n: (draw.exponential(size=n),)),
        (
            "a mean of lognormal values", float(np.exp(0.5)),
            lambda draw, n: (draw.lognormal(size=n),),
        ),
    ):  # fmt: skip
        for n in (3, 8, 30, 100):
            yield Case(
                of, truth, str(n), lambda draw, s=sample, n=n: s(draw, n), resampled,
                lambda values: ends(stats.ratios(values, draws=DRAWS).first),
            )  # fmt: skip


def areas() -> Iterator[Case]:
    from scipy.stats import norm

    for chance in (0.5, 0.75, 0.95):
        for n, m, deviation in (
            (2, 2, 1), (5, 5, 1), (10, 10, 1), (30, 30, 1), (10, 10, 2), (5, 30, 1), (5, 30, 2),
        ):  # fmt: skip
            apart = float(norm.ppf(chance)) * np.sqrt(1 + deviation**2)
            unlike = "" if deviation == 1 else ", twice the deviation"

            def sample(draw, n=n, m=m, apart=apart, deviation=deviation):
                return draw.normal(apart, deviation, n), draw.normal(size=m)

            yield Case(
                f"AUC{unlike}", chance, f"{n} and {m}", sample, resampled_auc,
                lambda a, b: ends(stats.auc(a, b)),
            )  # fmt: skip


def two_areas() -> Iterator[Case]:
    """The same items measured twice, with correlated normal noise; old: each side's new interval,
    taken as independent."""
    from scipy.stats import norm

    for one, other, r in ((0.5, 0.5, 0.6), (0.9, 0.75, 0.6), (0.9, 0.9, 0.9), (0.95, 0.5, 0.0)):
        for n in (5, 10, 30):
            apart = [float(norm.ppf(chance)) * np.sqrt(2) for chance in (one, other)]

            def sample(draw, apart=apart, r=r, n=n):
                noise = draw.normal(size=(2, 2, n))
                second = r * noise[0] + np.sqrt(1 - r * r) * noise[1]
                return noise[0, 0] + apart[0], noise[0, 1], second[0] + apart[1], second[1]

            yield Case(
                f"difference of two AUCs, {one} and {other}, correlation {r}", one - other,
                f"{n} and {n}", sample,
                lambda a, b, c, d: ends(stats.difference(stats.auc(a, b), stats.auc(c, d))),
                lambda a, b, c, d: ends(stats.auc_difference(a, b, c, d)),
            )  # fmt: skip


def correlations() -> Iterator[Case]:
    for r in (0.0, 0.5, 0.9):
        truth = float(6 / np.pi * np.arcsin(r / 2))
        for n in (5, 10, 30, 100):

            def sample(draw, r=r, n=n):
                first, noise = draw.normal(size=(2, n))
                return first, r * first + np.sqrt(1 - r * r) * noise

            yield Case(
                "Spearman's correlation", truth, str(n), sample, resampled_ranks,
                lambda a, b: ends(stats.spearman(a, b, draws=DRAWS)),
            )  # fmt: skip


def quotients() -> Iterator[Case]:
    """Paired tops of half the bottoms; near 0 most samples have no interval, which counts for
    neither rule."""
    for mean in (2.0, 0.5, 0.2):
        for n in (10, 30, 100):

            def sample(draw, mean=mean, n=n):
                bottoms = draw.normal(mean, 1, n)
                return 0.5 * bottoms + draw.normal(0, 0.5, n), bottoms

            yield Case(
                f"a ratio of sums, bottom {mean} deviations from 0", 0.5, str(n), sample,
                resampled_ratio, lambda tops, bottoms: ends(stats.share_of(tops, bottoms)),
            )  # fmt: skip


def errors() -> Iterator[Case]:
    """Uniform confidence, right that much less often; the truth over ten bins of equal width."""
    for shift in (0.0, 0.1, 0.4):
        sure = (np.arange(1_000_000) + 0.5) / 1_000_000
        gap = sure - np.maximum(sure - shift, 0)
        truth = float(np.abs(gap.reshape(10, -1).mean(1)).mean())
        for n in (30, 100, 300):

            def sample(draw, shift=shift, n=n):
                confidence = draw.random(n)
                return confidence, (draw.random(n) < confidence - shift).astype(float)

            yield Case(
                "expected calibration error", truth, str(n), sample, resampled_error,
                lambda sure, right: ends(stats.calibration(sure, right, draws=DRAWS)[0]),
            )  # fmt: skip


CASES = (
    shares, clustered, changes, means, areas, two_areas, correlations, quotients, errors,
)  # fmt: skip


def measured(case: Case, simulations: int, seed: int) -> dict[str, Any]:
    """Of both rules: how many of the intervals hold the truth, and how wide they are. An interval
    that is NaN is none, and counts in neither."""
    draw = np.random.default_rng(seed)
    found = np.full((simulations, 2, 2), np.nan)
    for i in range(simulations):
        sample = case.sample(draw)
        found[i] = case.old(*sample), case.new(*sample)
    low, high = found[..., 0], found[..., 1]
    told = np.isfinite(low).all(1)
    # A truth at an end is held, whatever rounding says.
    holds = (low - 1e-9 <= case.truth) & (case.truth <= high + 1e-9)
    old, new = holds[told].mean(0) if told.any() else (np.nan, np.nan)
    widths = (high - low)[told].mean(0) if told.any() else (np.nan, np.nan)
    return {
        "of": case.of, "truth": round(case.truth, 3), "n": case.n,
        "old coverage": float(old), "old width": float(widths[0]),
        "new coverage": float(new), "new width": float(widths[1]), "told": float(told.mean()),
    }  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--simulations", type=int, default=2000)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    rows = [measured(case, given.simulations, given.seed) for family in CASES for case in family()]
    slack = 1.96 * np.sqrt(0.95 * 0.05 / given.simulations)
    lines = [
        "# Do 95% intervals cover?", "",
        f"{given.simulations} simulations a row, seed {given.seed}: a coverage of .95 is measured "
        f"to +-{slack:.3f}. Old: the 2.5th to the 97.5th percentile of resamples (for two AUCs: "
        "each interval as if the two were independent). New: `workbench.stats`. Where the new "
        "rule gives no interval, as of a ratio whose bottom may be 0, the sample counts in "
        "neither; told is the share of the samples that have one.", "",
        *table(rows, [*COLUMNS, "told"]),
    ]  # fmt: skip
    about = {"simulations": given.simulations, "seed": given.seed, "rows": rows}
    save(given.out, "coverage", about, lines)


if __name__ == "__main__":
    main()
