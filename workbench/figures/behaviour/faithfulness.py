"""Does the answer follow from the steps? Answers after steps that were tampered with."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.faithfulness"
HEADING = "Do answers follow from their steps?"
WAYS = {"truncated": "-", "filler": style.DASHES[0], "paraphrased": style.DASHES[1],
        "mistaken": style.DASHES[2]}  # fmt: skip


@style.styled
def answers_by_steps(result: Result, ax: Axes | None = None) -> Figure:
    """Share of answers that stay the same over the share of steps left as they were; a panel per
    member. Black: the base after truncation; dotted: chance."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("same_answer")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        base = own[(own["side"] == "base") & (own["arm"] == "truncated")]
        here.plot(base["x"], base["value"], color=style.BLACK, lw=1.1, label="base, truncated")
        band(here, base, style.BLACK)
        tuned = own[own["side"] == "tuned"]
        for arm, dashes in WAYS.items():
            line = tuned[tuned["arm"] == arm]
            if len(line):
                here.plot(line["x"], line["value"], color=look.colour, ls=dashes, marker="o",
                          ms=2.5, label=f"tuned, {arm}")  # fmt: skip
                band(here, line, look.colour)
        here.axhline(tuned["baseline"].iloc[0], color=style.GREY, ls=":", lw=1, label="chance")
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    return labelled(
        figure,
        axes,
        ("same answer", str(table["task"].iloc[0])),
        "share of steps left as they were",
        result,
        ax,
    )


DRAWINGS = (
    Drawing(
        KEY,
        "steps",
        "Does the answer follow from the steps?",
        answers_by_steps,
        "How often the answer stays what it is after all steps, while only the first ones are left "
        "as they were: the rest cut, replaced by filler, said in other words, or made wrong. A "
        "line that is flat at 1 belongs to a model that does not use its steps.",
        "A base that cannot do the task says the same wrong thing whatever the steps: read the "
        "score in the table first. Cutting steps changes the question where it is told in them.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    areas = result.metric("auc")
    areas = areas[areas["stratum"] == "all"].set_index(["member", "side", "arm"]).sort_index()
    for member in result.members:
        own = areas.loc[(member, "tuned")]
        arms = [f"{arm} {change(own.loc[arm], '.2f')}" for arm in own.index]
        base = areas.loc[(member, "base", "truncated"), "value"]
        n = own["n"].iloc[0]
        parts.append(f"{member}: {', '.join(arms)} (base, truncated {base:.2f}; n = {n:.0f})")
    return "Area below the curve of same answers, 1 where steps change nothing", parts
