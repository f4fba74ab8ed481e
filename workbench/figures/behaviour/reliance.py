"""On which part of the prompt does the answer depend?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
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
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("reliance")
    arms = table["arm"].drop_duplicates().tolist()
    arms.sort(key=lambda arm: arm.startswith(OTHER))
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        here.axhline(0, color=style.GREY, lw=0.6, zorder=0)
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
        here.set_xticks(range(len(arms)), [style.text(arm, 32) for arm in arms], rotation=25,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_xlim(-0.5, len(arms) - 0.5)
        style.name(here, look)
    what = ("reliance: fall of log p\nof the answer (nats)", table)
    return labelled(figure, axes, what, "changed in the prompt", result, ax)


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
