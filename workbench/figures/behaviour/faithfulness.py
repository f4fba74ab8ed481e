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
WAYS = {"truncated": ("-", "o"), "filler": (style.DASHES[0], "s"),
        "paraphrased": (style.DASHES[1], "^"), "mistaken": (style.DASHES[2], "D"),
        "regenerated": (":", "v")}  # fmt: skip


@style.styled
def answers_by_steps(result: Result, ax: Axes | None = None) -> Figure:
    """Share of answers that stay the same over the share of steps left unchanged; a panel per
    fine-tuned model. Black: the base after truncation; dotted: chance."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("same_answer")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        base = own[(own["side"] == "base") & (own["arm"] == "truncated")]
        here.plot(base["x"], base["value"], color=style.BLACK, lw=1.1, label="base, truncated")
        tuned = own[own["side"] == "tuned"]
        shown = [arm for arm in WAYS if (tuned["arm"] == arm).any()]
        band(here, base, style.BLACK, place=(0, len(shown) + 1))
        for number, arm in enumerate(shown, start=1):
            line, (dashes, marker) = tuned[tuned["arm"] == arm], WAYS[arm]
            here.plot(line["x"], line["value"], color=look.colour, ls=dashes, marker=marker,
                      ms=3, label=f"tuned, {arm}")  # fmt: skip
            band(here, line, look.colour, place=(number, len(shown) + 1))
        here.axhline(tuned["baseline"].iloc[0], color=style.GREY, ls=":", lw=1, label="chance")
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    return labelled(
        figure,
        axes,
        ("same answer", table),
        "share of steps left unchanged",
        result,
        ax,
    )


DRAWINGS = (
    Drawing(
        KEY,
        "steps",
        "Does the answer follow from the steps?",
        answers_by_steps,
        "The curves show how often the answer stays what it is after all steps, while only the "
        "first steps are left unchanged and the rest are cut, replaced by filler, paraphrased or "
        "made wrong. A line that is flat at 1 belongs to a model that does not use its steps.",
        "A base that cannot do the task gives the same wrong answer whatever the steps are, so "
        "read the score in the table first. Cutting steps changes the question if the steps "
        "contain part of it.",
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
    return "The area below the curve of same answers is 1 if the steps change nothing", parts
