"""What comes up when the fine-tuned task's neurons are pruned?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.prune"
HEADING = "Pruning what fine-tuning uses"


@style.styled
def prune_scores(result: Result, ax: Axes | None = None) -> Figure:
    """Score on the capability while the neurons that the fine-tuned task uses most go; a panel per
    member. Dotted: as many random neurons; black: the same neurons of the base; dashed: the
    fine-tuned task itself."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    smallest = table.loc[table["x"] > 0, "x"].min()
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, learned, label, colour, dashes in (
            ("base, same neurons", False, "base, same neurons", style.BLACK, "-"),
            ("ranked", False, "tuned, ranked neurons", look.colour, "-"),
            ("random", False, "tuned, random neurons", look.colour, ":"),
            ("ranked", True, "fine-tuned task, ranked", style.GREY, "--"),
        ):
            line = own[(own["arm"] == arm) & own["own"].eq(learned)]
            line = line.assign(x=line["x"].where(line["x"] > 0, smallest / 4))
            here.plot(line["x"], line["value"], color=colour, ls=dashes, lw=1.2, label=label)
            band(here, line, colour)
        ticks = sorted(own.loc[own["x"] > 0, "x"].unique())
        ticks = ticks[:: 1 + len(ticks) // 4]
        here.set_xscale("log")
        here.xaxis.set_major_locator(FixedLocator([smallest / 4, *ticks]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels(["0", *(f"{100 * t:g}" for t in ticks)])
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    return labelled(
        figure,
        axes,
        ("score", str(table.loc[table["own"].eq(False), "task"].iloc[0])),
        "neurons pruned (%)",
        result,
        ax,
    )


DRAWINGS = (
    Drawing(
        KEY,
        "scores",
        "What comes up when the fine-tuned task's neurons go?",
        prune_scores,
        "Score on the capability of the base while the neurons that the fine-tuned task uses most "
        "are set to zero. A wrapper goes with them, and the coloured line rises to the base's; "
        "dotted: as many random neurons; black: the same neurons of the base.",
        "Neurons may serve both tasks: where the black line falls as well, nothing can rise. A "
        "suppression in attention has no neurons to prune.",
    ),
)


def sentence(result: Result) -> Findings:
    found = result.metric("regained").set_index(["member", "arm"])
    parts = [
        f"{member}: {change(found.loc[(member, 'best ranked')], '+.2f')}, random neurons "
        f"{change(found.loc[(member, 'best random')], '+.2f')}"
        for member in result.members
    ]
    return "What pruning the fine-tuned task's neurons regains", parts
