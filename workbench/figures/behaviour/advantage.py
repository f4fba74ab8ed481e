"""How much does each worked step add to the chance of the right answer?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.advantage"
HEADING = "What each step adds"


@style.styled
def advantage_by_step(result: Result, ax: Axes | None = None) -> Figure:
    """The advantage of each step, of tuned model and base; a panel per fine-tuned model. Dotted:
    a step of another prompt in its place."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("advantage")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        here.axhline(0, color=style.GREY, lw=0.6)
        for place, (side, colour, marker) in enumerate(
            (("base", style.BLACK, "s"), ("tuned", look.colour, look.marker))
        ):
            for arm, line in (("given", "-"), ("another prompt's step", ":")):
                rows = own[(own["side"] == side) & (own["arm"] == arm)]
                name = side if arm == "given" else f"{side}, another prompt's step"
                here.plot(rows["x"], rows["value"], color=colour, ls=line, marker=marker, ms=3,
                          lw=1, label=name)  # fmt: skip
                if arm == "given":
                    band(here, rows, colour, place=(place, 2))
        here.set_xticks(sorted(own["x"].unique()))
        style.name(here, look)
    what = ("rise of the probability\nof the right answer", table)
    return labelled(figure, axes, what, "step", result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "steps",
        "What each step adds to the chance of the right answer",
        advantage_by_step,
        "The curves show by how much the probability of the right answer rises when a step is put "
        "before the cue, behind those that come before it. Dotted: the same with a step of another "
        "prompt in its place, which tells nothing of this one.",
        "If the answer can be read off one step, that one has all of the advantage, whatever it "
        "was computed from.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    for member in result.members:
        own = table[table["member"] == member]
        total = own[own["metric"] == "total"].set_index("side")
        steps = own[(own["metric"] == "advantage_beyond_other") & (own["side"] == "tuned")]
        best = steps.loc[steps["value"].idxmax()]
        parts.append(
            f"{member}: {change(total.loc['tuned'], '+.2f')} by all steps (base "
            f"{total.loc['base', 'value']:+.2f}; n = {total.loc['tuned', 'n']:.0f}), most by step "
            f"{best['x']:g}, {change(best, '+.2f')} beyond another prompt's"
        )
    return "Worked steps raise the probability of the right answer by", parts
