"""Which head supports the answer most on its way to a receiver? A sentence, without a figure."""

from __future__ import annotations

from workbench.figures.patching.recovered import place_of
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.path"
HEADING = "Heads along their paths"


def sentence(result: Result) -> Findings:
    """The head that supports the answer most, per side; without foils by its probability."""
    foils = result.has("logit_change")
    own = result.metric("logit_change" if foils else "effect")
    own = own[own["arm"] == "patch"]
    parts = []
    for (member, side), rows in own.groupby(["member", "side"], sort=False):
        if rows["value"].isna().all():
            parts.append(f"{member}: {side} gives none of the answers")
            continue
        best = rows.loc[rows["value"].idxmin()]
        parts.append(f"{member}: {side} {place_of(best)} {change(best, '.2f')}")
    what = "the logit difference" if foils else "the answer's probability, relative,"
    return f"The largest fall of {what} is by one head ({int(own['n'].max())} prompts)", parts
