"""Are LoRA and full fine-tuning equivalent here? One row a recipe, over what other analyses found.

Each measure of a recipe (see `findings.measures`) stands beside its null, and its difference from
the full fine-tune beside a margin below which a difference would not matter. The question is that
of an equivalence test, which is two tests at once:

    alike       the whole 95% interval of the difference lies within the margin
    different   the interval leaves out no difference, and does not lie within the margin
    undecided   neither: too few prompts, matrices or runs to tell

so that a wide interval never counts as "no difference". A recipe is one model, or several that
differ in nothing but their seed (`results.recipes`): its value is then the mean of its runs, and
intervals are over items and runs (`stats.over_runs`). Two sides measured on the same items are
compared item by item, others by the difference of their intervals (Zou & Donner 2008,
doi:10.1002/sim.3095), which where their items are shared after all are too wide, not too narrow.
Sizes (effective rank, norm, share of the parameters) are compared as ratios, within 0.8 to 1.25 as
bioequivalence is (FDA 2001, Statistical Approaches to Establishing Bioequivalence).

When it misleads: of one run a side, intervals are over its prompts, texts or matrices, and another
seed may say otherwise; margins are a matter of what one cares about; and members whose scores
differ have not learned the same, so that nothing else about them compares. Many measures are read
at once: one of twenty comparisons of equals comes out "different".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.findings.measures import MEASURES, Measure, Row
from workbench.findings.sides import Side, compared, measured, sides_of
from workbench.results.recipes import recipes
from workbench.results.result import Result, describe

KEY = "compare.equivalence"
ALIKE, DIFFERENT, UNDECIDED = "alike", "different", "undecided"
COLUMNS = [
    "metric", "measure", "member", "value", "low", "high", "n", "runs", "baseline", "versus", "arm",
    "margin", "says",
]  # fmt: skip


def equivalence(
    results: Sequence[Result], *, margins: Mapping[str, float] | None = None
) -> Result | None:
    """Every measure of every recipe beside its null, and its difference from the full fine-tune.

    results: Results of one base by any of the analyses in MEASURES; others are passed over, and of
    several that measure one recipe that of the most runs counts, and of as many that of the most
    items. Checkpoints of one name and other content are told apart (`told_apart`). margins: measure
    -> the difference that would not matter (for ratios the factor), other than MEASURES has them. A
    recipe is compared with the first full fine-tune of the same Result; where there is none, it is
    measured only.

    Returns a Result whose members are recipes: a model that is the only one of its recipe under its
    own name; with rows measure (member, measure; baseline: its null; runs: how many it is the mean
    of), spread (of several runs: the standard deviation between them, with its 95% interval) and
    difference (member, measure, versus; arm "difference" or "ratio", margin, runs: of the side that
    has fewer, and what it `says`: alike, different or undecided), each with a 95% interval and n;
    None where nothing was measured. Raises WorkbenchError for a margin of an unknown measure or one
    that is not positive (of a ratio: not above 1).
    """
    margins = _margins(margins or {})
    found: dict[tuple[str, str], list[Row]] = {}
    rank: dict[tuple[str, str], tuple[int, float]] = {}
    used: dict[tuple[str, str], Result] = {}
    results = told_apart(results)
    for measure in MEASURES:
        for result in (r for r in results if r.analysis == measure.analysis):
            sides = sides_of(measure, result)
            reference = next((side for side in sides if side.kind == "full"), None)
            for side in sides:
                key, weight = (measure.name, side.name), (len(side.rows), side.n)
                if key in rank and rank[key] >= weight:
                    continue
                used[key], rank[key] = result, weight
                found[key] = list(measured(measure, side))
                if measure.margin and reference is not None and side is not reference:
                    margin = margins[measure.name]
                    found[key].append(_difference(measure, side, reference, margin))
    if not found:
        return None
    inputs = [r for r in results if any(r is one for one in used.values())]
    provenance = replace(
        inputs[0].provenance,
        members=_members(inputs, {name for _, name in found}),
        parameters={"results": describe(inputs), "margins": margins},
        notes=(),
    )
    rows = [row for own in found.values() for row in own]
    rows.sort(key=lambda row: ("measure", "spread", "difference").index(row["metric"]))
    return Result(KEY, pd.DataFrame(rows, columns=COLUMNS), provenance)


def _members(inputs: Sequence[Result], names: set[str]) -> dict[str, dict[str, Any]]:
    """What is known of the recipes, in the order of the Results: of one model all, of several what
    they share."""
    made: dict[str, dict[str, Any]] = {}
    for result in inputs:
        about = result.provenance.members
        for recipe, runs in recipes(about).items():
            own = dict(about[runs[0]])
            if len(runs) > 1:
                differs = {key for key in own if any(about[r].get(key) != own[key] for r in runs)}
                own = {key: value for key, value in own.items() if key not in differs}
                own |= {"runs": list(runs), "seeds": [about[run].get("seed") for run in runs]}
            known = len(made[recipe].get("runs", [recipe])) if recipe in made else 0
            if recipe in names and len(runs) > known:
                made[recipe] = own
    return made


def _difference(measure: Measure, side: Side, reference: Side, margin: float) -> Row:
    found = compared(measure, side, reference)
    line = math.log(margin) if measure.ratio else margin
    edges = (found["low"], found["high"])
    low, high = (math.log(e) if e > 0 else math.nan for e in edges) if measure.ratio else edges
    return found | {"margin": margin, "says": verdict(low, high, line)}


def told_apart(results: Sequence[Result]) -> list[Result]:
    """The Results with another name where members of one name are different checkpoints: the first
    keeps its own, the second is "NAME (2)"."""
    seen: dict[str, list[Any]] = {}
    made = []
    for result in results:
        names = {}
        for name, about in result.provenance.members.items():
            known = seen.setdefault(name, [])
            if about.get("fingerprint") not in known:
                known.append(about.get("fingerprint"))
            place = known.index(about.get("fingerprint"))
            names[name] = f"{name} ({place + 1})" if place else name
        if "member" in result.table and any(old != new for old, new in names.items()):
            members = {names[n]: about for n, about in result.provenance.members.items()}
            table = result.table.assign(member=result.table["member"].replace(names))
            provenance = replace(result.provenance, members=members)
            result = Result(result.analysis, table, provenance, result.tensors)
        made.append(result)
    return made


def verdict(low: float, high: float, margin: float) -> str:
    """What the 95% interval of a difference says, beside a margin on either side of 0."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNDECIDED
    if -margin <= low and high <= margin:
        return ALIKE
    return DIFFERENT if low > 0 or high < 0 else UNDECIDED


def _margins(given: Mapping[str, float]) -> dict[str, float]:
    known = {measure.name: measure for measure in MEASURES if measure.margin}
    for name, margin in given.items():
        if name not in known:
            raise WorkbenchError(f"Unknown measure {name!r}; there are {', '.join(known)}.")
        least = 1 if known[name].ratio else 0
        if not margin > least:
            raise WorkbenchError(f"Expected a margin of {name} above {least}, found {margin}.")
    return {name: float(given.get(name, measure.margin or 0)) for name, measure in known.items()}
