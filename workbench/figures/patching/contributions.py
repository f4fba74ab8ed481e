"""Which components write the answer, and whose contribution changed most?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.contributions"
HEADING = "Direct contributions to the answer"
METRIC = "contribution"
CHANGE = "tuned - base"
MOST = 8  # components of each model
WORDS = {"embedding": "embedding", "attn_out": "attention", "mlp_out": "MLP", "bias": "bias",
         "mixer_out": "mixer", "other_out": "other"}  # fmt: skip


def named(row: pd.Series) -> str:
    """A component by its place: "head 4.2", "MLP 3", "embedding"."""
    if pd.notna(row["head"]):
        return f"head {int(row['layer'])}.{int(row['head'])}"
    name = WORDS.get(row["component"], str(row["component"]))
    return name if pd.isna(row["layer"]) else f"{name} {int(row['layer'])}"


def parts(result: Result, member: str) -> pd.DataFrame:
    """The means of one model's components over all prompts, with their names."""
    rows = result.metric(METRIC)
    rows = rows[(rows["member"] == member) & (rows["component"] != "total")]
    rows = rows[rows["arm"] != "picked"] if "arm" in rows else rows
    return rows.assign(name=rows.apply(named, axis=1))


@style.styled
def largest_changes(result: Result, ax: Axes | None = None) -> Figure:
    """The components whose contribution changed most, largest first: base, tuned model and the
    control, a panel per model."""
    members = result.members
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.6,
    )
    looks = style.looks(result)
    for here, member in zip(axes.flat, members, strict=False):
        own = parts(result, member)
        moved = own[own["side"] == CHANGE].set_index("name")["value"].abs()
        names = moved.sort_values(ascending=False, kind="stable").index[:MOST]
        at = np.arange(len(names), dtype=float)
        tuned, base = (
            own[own["side"] == s].set_index("name").loc[names] for s in ("tuned", "base")
        )
        look = looks[member]
        for shift, told, colour, marker, label in (
            (-0.15, tuned, look.colour, look.marker, "tuned"),
            (0.15, base, style.GREY, "o", "base"),
        ):
            here.hlines(at + shift, told["low"], told["high"], color=colour, lw=1)
            here.plot(told["value"], at + shift, marker, color=colour, ms=3.5, label=label)
        here.plot(tuned["baseline"], at - 0.15, "|", color="black", ms=6,
                  label="tuned, another prompt's answer")  # fmt: skip
        here.axvline(0, color=style.GREY, lw=0.8, ls=style.DASHES[1], zorder=0)
        here.set_yticks(at, names)
        here.invert_yaxis()
        style.name(here, look)
    for here in axes[-1]:
        here.set_xlabel("contribution to the\nlogit difference (logits)")
    style.first_column(axes, "component")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric(METRIC)["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "changes",
        "The components whose contribution changed most",
        largest_changes,
        "Each row is a component with what it adds directly to the logit difference of the answer "
        "and its foils, in the base and in the tuned model; all components of a model add up to "
        "its logit difference. A tick marks what the tuned model's component contributes to "
        "another prompt's answer. Bars are 95% intervals over prompts.",
        "Only direct effects count: a head that moves information for a later one contributes "
        "nothing here. The rows were chosen as the largest on the same prompts; the headline's "
        "component was chosen on one half and is reported on the other.",
        applies=has(METRIC),
    ),
)


def sentence(result: Result) -> Findings:
    """The component picked on one half of the prompts, on the other half."""
    told = []
    rows = result.metric(METRIC)
    for member in result.members:
        own = rows[rows["member"] == member]
        picked = own[own["arm"] == "picked"].iloc[0]
        total = own[(own["component"] == "total") & (own["side"] == CHANGE)].iloc[0]
        told.append(
            f"{member}: {named(picked)} by {change(picked, '.2f')} logits of "
            f"{change(total, '.2f')} in all (n = {int(picked['n'])} prompts)"
        )
    return "The direct contribution to the answer changed most in", told
