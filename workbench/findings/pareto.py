"""At an equal score, which kind of fine-tuning forgets less? Read from curves over learning rates.

One run each says little of two methods: at another learning rate either scores and forgets
otherwise, and the best rate of LoRA is about ten times that of full fine-tuning. So each method is
a curve, the recipes that differ in nothing but the learning rate (`results.recipes.curves`): of the
recipes that reach a score s, and of the points between neighbouring rates where the score passes
s, the one that forgets least,

    F(s) = min { forgetting : score >= s }

and methods are compared by F at the same s: at five scores up to the highest that both reach.

The interval has two parts, see `stats.over_runs`: items, the prompts of the score and the texts of
the loss resampled together for all recipes, and runs, F of each seed's own curve. Curves of few
rates are coarse; a method whose best rate lies outside of those tried is shown worse than it is,
and the ends of the curves say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.findings.equivalence import verdict
from workbench.findings.measures import MEASURES, Row
from workbench.findings.sides import Side, sides_of
from workbench.results.recipes import curves
from workbench.results.result import Result
from workbench.stats import Interval, edges, over_runs

KEY = "compare.pareto"
RETENTION = "forgetting.retention"
LEVELS = 5  # scores at which curves are compared, up to the highest that both reach
DRAWS = 1000
Floats = NDArray[np.float64]
SCORE, FORGETTING = (
    next(one for one in MEASURES if one.name == name) for name in ("score", "forgetting")
)


def pareto(results: Sequence[Result], *, seed: int = 0) -> Result | None:
    """Score and forgetting of every recipe, and the least forgetting at equal scores by curve.

    results: of them the first of `forgetting.retention` that holds a task's items, the loss of
    texts, and one recipe at several learning rates, by what the checkpoints tell of their training.

    Returns a Result whose members are curves, with rows point (member; rate; x: score, with x_low
    and x_high; value: forgetting, nats a token; runs), run (the same of single runs, column run),
    least (member; x: score; value: F at that score) and difference (member, versus; x; value: F
    less that of the first full fine-tune's curve; margin and what it `says`, as in
    `findings.equivalence`; runs: of the side that has fewer; read: whether this is the score at
    which they are read, that nearest to the highest that both reach less a score's margin: at the
    very highest a curve hangs on a single prompt); with 95% intervals over items and
    runs. None where no result has such curves.
    """
    for result in (one for one in results if one.analysis == RETENTION):
        found = _curves(result)
        if any(len(curve.rates) > 1 for curve in found):
            rows = [*_points(found), *_compared(found, seed)]
            members = {
                curve.name: {"kind": curve.score[0].kind, "rates": list(curve.rates)}
                | {k: v for k, v in curve.about.items() if k in ("rank", "alpha")}
                for curve in found
            }
            parameters = {
                "results": result.fingerprint,
                "task": result.provenance.parameters["task"],
            }
            provenance = replace(
                result.provenance, members=members, parameters=parameters, seed=seed, notes=()
            )
            return Result(KEY, pd.DataFrame(rows), provenance)
    return None


def least(score: Floats, forgotten: Floats, level: float) -> Floats:
    """F at a score. score, forgotten: (rates, ...), by rising rate; of the same leading shape.

    At a score that no rate reaches, the forgetting of the rate that comes nearest.
    """
    reached = np.where(score >= level, forgotten, np.inf)
    below, above = score[:-1], score[1:]
    crosses = (below < level) != (above < level)
    span = np.where(crosses, above - below, 1.0)
    between = forgotten[:-1] + (level - below) / span * (forgotten[1:] - forgotten[:-1])
    found: Floats = np.minimum(
        reached.min(0), np.where(crosses, between, np.inf).min(0, initial=np.inf)
    )
    best = np.take_along_axis(forgotten, score.argmax(0)[None], 0)[0]
    return np.where(np.isfinite(found), found, best).astype(float)


@dataclass(frozen=True)
class _Curve:
    """One method over its rates, by rising rate. score, forgotten: its recipes as they were
    measured; about: what is known of its first run."""

    name: str
    rates: tuple[float, ...]
    score: tuple[Side, ...]
    forgotten: tuple[Side, ...]
    about: Mapping[str, Any]

    @property
    def runs(self) -> int:
        """Of the rate that has fewest."""
        return min(len(side.rows) for side in self.score)

    def of_run(self, run: int, level: float) -> float:
        """F of the curve that the runs of this number make."""
        score = np.array([side.values[run] for side in self.score])
        forgotten = np.array([side.values[run] for side in self.forgotten])
        return float(least(score, forgotten, level))


def _curves(result: Result) -> list[_Curve]:
    about = result.provenance.members
    score = {side.name: side for side in sides_of(SCORE, result)}
    forgotten = {side.name: side for side in sides_of(FORGETTING, result)}
    whole = {n for n, s in score.items() if s.items is not None and n in forgotten}
    whole &= {name for name, side in forgotten.items() if side.items is not None}
    made = []
    for name, rates in curves(about).items():
        kept = {rate: recipe for rate, recipe in rates.items() if recipe in whole}
        if kept:
            first = score[next(iter(kept.values()))].rows[0]["member"]
            across, up = (tuple(one[r] for r in kept.values()) for one in (score, forgotten))
            made.append(_Curve(name, tuple(kept), across, up, about[first]))
    return made


def _points(found: Sequence[_Curve]) -> Iterator[Row]:
    for curve in found:
        for rate, score, forgotten in zip(curve.rates, curve.score, curve.forgotten, strict=True):
            across, up = score.whole(SCORE), forgotten.whole(FORGETTING)
            about = {"member": curve.name, "rate": rate}
            yield about | {
                "metric": "point", "x": across.value, "x_low": across.low, "x_high": across.high,
                "runs": len(score.rows), "baseline": 0.0,
            } | up._asdict()  # fmt: skip
            for one, other in zip(score.rows, forgotten.rows, strict=True):
                yield about | {
                    "metric": "run", "run": one["member"], "x": one["value"], "runs": 1,
                    "x_low": one["low"], "x_high": one["high"], "baseline": 0.0,
                    **{key: other[key] for key in ("value", "low", "high", "n")},
                }  # fmt: skip


def _compared(found: Sequence[_Curve], seed: int) -> Iterator[Row]:
    reference = next((curve for curve in found if curve.score[0].kind == "full"), None)
    drawn = {curve.name: part for curve, part in zip(found, _resampled(found, seed), strict=True)}
    for curve in found:
        other = reference if reference is not None and reference is not curve else None
        levels = _levels(curve, other)
        read = levels[np.abs(levels - (levels[-1] - (SCORE.margin or 0.0))).argmin()]
        for level in levels:
            own = least(*drawn[curve.name], level)
            runs = [curve.of_run(run, level) for run in range(curve.runs)]
            about = {"member": curve.name, "x": level, "read": bool(level == read)}
            within = _interval(own, curve)
            told = {"runs": curve.runs, "baseline": 0.0}
            yield about | told | over_runs(within, runs)._asdict() | {"metric": "least"}
            if other is None:
                continue
            between = _interval(own - least(*drawn[other.name], level), curve, other)
            theirs = [other.of_run(run, level) for run in range(other.runs)]
            whole = over_runs(between, runs, theirs)
            margin = FORGETTING.margin or 0.0
            yield about | whole._asdict() | {
                "metric": "difference", "versus": other.name, "margin": margin, "baseline": 0.0,
                "runs": min(curve.runs, other.runs),
                "says": verdict(whole.low, whole.high, margin),
            }  # fmt: skip


def _levels(curve: _Curve, other: _Curve | None) -> Floats:
    """Scores that both reach: from the higher of their lowest to the lower of their highest."""
    means = [[fmean(side.values) for side in one.score] for one in (curve, other) if one]
    top = min(max(own) for own in means)
    low = min(max(min(own) for own in means), top)
    return np.unique(np.linspace(low, top, LEVELS)).astype(np.float64)


def _resampled(found: Sequence[_Curve], seed: int) -> Iterator[tuple[Floats, Floats]]:
    """(score, forgetting) of every curve, each (rates, 1 + draws), the first as it was measured;
    the same draws of items for all."""
    rng = np.random.default_rng(seed)
    parts = []
    for name in ("score", "forgotten"):
        means = [[side.mean for side in getattr(curve, name)] for curve in found]
        index = means[0][0].index
        n = len(index)
        times = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
        times = np.vstack([np.ones(n), times]).astype(float)
        parts.append([np.stack([_mean(one.loc[index], times) for one in own]) for own in means])
    yield from zip(*parts, strict=True)


def _mean(items: pd.DataFrame, times: Floats) -> NDArray[Any]:
    """(1 + draws,) weighted means of items drawn so many times."""
    weight = items["weight"].to_numpy(float)
    return times @ (items["value"].to_numpy(float) * weight) / (times @ weight)


def _interval(drawn: Floats, *of: _Curve) -> Interval:
    n = min(side.n for curve in of for side in (*curve.score, *curve.forgotten))
    low, high = edges(drawn[1:], n)
    return Interval(float(drawn[0]), low, high, n)
