"""What comes back when the fine-tuned task's neurons are pruned?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.prune"
HEADING = "Pruning what fine-tuning uses"


@style.styled
def prune_scores(result: Result, ax: Axes | None = None) -> Figure:
    """Score on the capability while the neurons that the fine-tuned task uses most are set to zero;
    a panel per model. Dotted: as many random neurons; black: the same neurons of the base; dashed:
    the fine-tuned task itself."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    smallest = table.loc[table["x"] > 0, "x"].min()
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        here.set_xscale("log")
        for place, (arm, learned, label, colour, dashes, marker) in enumerate((
            ("base, same neurons", False, "base, same neurons", style.BLACK, "-", "o"),
            ("ranked", False, "tuned, ranked neurons", look.colour, "-", look.marker),
            ("ranked", True, "fine-tuned task, ranked", look.colour, style.DASHES[0], "d"),
            ("random", False, "tuned, random neurons", style.GREY, style.DASHES[1], "o"),
        )):  # fmt: skip
            line = own[(own["arm"] == arm) & own["own"].eq(learned)]
            line = line.assign(x=line["x"].where(line["x"] > 0, smallest / 4))
            if arm == "random":
                marks.control(here, line["x"], line["value"], dashes, label)
            else:
                here.plot(line["x"], line["value"], color=colour, ls=dashes, lw=1.2, label=label,
                          marker=marker, ms=3.5, zorder=3 + learned)  # fmt: skip
            band(here, line, colour, place=(place, 4))
        ticks = sorted(own.loc[own["x"] > 0, "x"].unique())
        ticks = ticks[:: 1 + len(ticks) // 4]
        here.xaxis.set_major_locator(FixedLocator([smallest / 4, *ticks]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels(["0", *(f"{100 * t:g}" for t in ticks)])
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    return labelled(
        figure,
        axes,
        ("score", table[table["own"].eq(False)]),
        f"neurons pruned (%) {marks.LOG}",
        result,
        ax,
    )


DRAWINGS = (
    Drawing(
        KEY,
        "scores",
        "What comes back when the fine-tuned task's neurons are pruned?",
        prune_scores,
        "The coloured line is the score on the capability of the base while the neurons that the "
        "fine-tuned task uses most are set to zero. If these neurons only hide the capability, the "
        "line rises to the base's. The dotted grey line prunes as many random neurons, the black "
        "line prunes the same neurons of the base, and the dashed line is the fine-tuned task.",
        "Neurons may serve both tasks: if the black line falls as well, nothing can rise. A "
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
    return "Pruning the fine-tuned task's neurons changes the score by this much", parts
