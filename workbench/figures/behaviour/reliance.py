"""On which part of the prompt does the answer depend?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing, has
from workbench.figures.member_panels import by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.reliance"
HEADING = "What the answer depends on"
OTHER = "without other words"


@style.styled
def reliance_by_arm(result: Result, ax: Axes | None = None) -> Figure:
    """The fall of the answer's log-probability by what was changed, base and tuned model; a panel
    per fine-tuned model. Hollow: as many other words taken out, the control."""
    table = result.metric("reliance")
    arms = table["arm"].drop_duplicates().tolist()
    arms.sort(key=lambda arm: arm.startswith(OTHER))
    names = {arm: style.text(arm, 32) for arm in arms}
    what = "reliance: fall of log p\nof the answer (nats)"
    return _by_side(result, ax, table, names, (what, "changed in the prompt"))


@style.styled
def attribution_by_premise(result: Result, ax: Axes | None = None) -> Figure:
    """The share of the input attribution that lies in each premise, base and tuned model; a panel
    per fine-tuned model. Grey bars: its share of the prompt's tokens, the control."""
    table = result.metric("attribution")
    names = {
        arm: style.text(arm.removeprefix("without "), 32) for arm in dict.fromkeys(table["arm"])
    }
    what = "share of the\ninput attribution"
    evenly = table.groupby("arm", sort=False)["baseline"].first()
    return _by_side(result, ax, table, names, (what, "premise"), evenly)


def _by_side(
    result: Result, ax: Axes | None, table: pd.DataFrame, names: Mapping[str, str],
    labels: tuple[str, str], evenly: pd.Series | None = None,
) -> Figure:  # fmt: skip
    """A mark for each arm and side. names: arm -> how it is called. labels: of the values, and of
    the arms. evenly: by arm, the share of the tokens."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    arms = [*names]
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        here.axhline(0, color=style.GREY, lw=0.6, zorder=0)
        if evenly is not None:
            x = np.arange(len(arms))
            here.hlines(evenly.reindex(arms), x - 0.3, x + 0.3, color=style.GREY, lw=2, zorder=0,
                        label="share of the tokens")  # fmt: skip
        for side, colour, marker, shift in (
            ("base", style.BLACK, "s", -0.12), ("tuned", look.colour, look.marker, 0.12),
        ):  # fmt: skip
            rows = own[own["side"] == side].set_index("arm").reindex(arms)
            x = np.arange(len(arms)) + shift
            hollow = ["white" if arm.startswith(OTHER) else colour for arm in arms]
            here.vlines(x, rows["low"], rows["high"], color=colour, lw=1, alpha=0.75)
            here.plot([], [], marker, color=colour, ms=4, label=side)
            for at, value, face in zip(x, rows["value"], hollow, strict=True):
                here.plot(at, value, marker, color=colour, mfc=face, ms=4)
        here.set_xticks(range(len(arms)), [*names.values()], rotation=25, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_xlim(-0.5, len(arms) - 0.5)
        style.name(here, look)
    return labelled(figure, axes, (labels[0], table), labels[1], result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "reliance",
        "What the answer depends on, before and after",
        reliance_by_arm,
        "Each mark shows by how many nats the right answer's log-probability falls when something "
        "in the prompt is flipped or taken out, in the base and in the fine-tuned model, with 95% "
        "intervals over prompts. The hollow marks are the control: as many other words taken out.",
        "A prompt that was cut may be unlike any text, so compare a premise with the control and "
        "not with 0. A fall of a model that did not give the answer anyway means little.",
    ),
    Drawing(
        KEY,
        "attribution",
        "How much of the input attribution lies in each premise",
        attribution_by_premise,
        "Each mark shows which share of the prompt's input attribution, by gradient times input, "
        "lies in a premise, in the base and in the fine-tuned model, with 95% intervals over "
        "prompts. The grey bars are the control: the premise's share of the prompt's tokens.",
        "A gradient tells what a small change of the embeddings would do. Where the answer is "
        "certain it is small, though all may depend on the premise.",
        applies=has("attribution"),
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    for member in result.members:
        own = table[(table["member"] == member) & ~table["arm"].astype(str).str.startswith(OTHER)]
        moved = own[own["metric"] == "reliance_change"]
        best = moved.loc[moved["value"].abs().idxmax()]
        sides = own[(own["metric"] == "reliance") & (own["arm"] == best["arm"])].set_index("side")
        parts.append(
            f"{member}: {style.text(best['arm'])} costs {change(sides.loc['tuned'], '.2f')} nats "
            f"(base {change(sides.loc['base'], '.2f')}; changed by {change(best, '+.2f')}, "
            f"n = {best['n']:.0f})"
        )
    return "What a changed prompt costs the right answer, most changed", parts
