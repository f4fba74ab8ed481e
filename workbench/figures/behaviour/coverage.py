"""How many tries until an answer is right, and how many different answers are there?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.coverage"
HEADING = "Many tries, different answers"


@style.styled
def pass_at_k(result: Result, ax: Axes | None = None) -> Figure:
    """pass@k over k (logarithmic), tuned model and base; a panel per fine-tuned model. Dotted: one
    of the prompt's answers at random, where its foils are known."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("pass_at")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        here.set_xscale("log", base=2)
        for place, (side, colour, marker) in enumerate(
            (("base", style.BLACK, "s"), ("tuned", look.colour, look.marker))
        ):
            line = own[own["side"] == side]
            here.plot(line["x"], line["value"], color=colour, marker=marker, ms=3, label=side)
            band(here, line, colour, place=(place, 2))
        guess = own[own["side"] == "guess"]
        if len(guess):
            here.plot(guess["x"], guess["value"], color=style.GREY, ls=":", lw=1, label="chance")
        here.set_xticks(sorted(own["x"].unique()), [f"{k:g}" for k in sorted(own["x"].unique())])
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    samples = result.provenance.parameters["samples"]
    return labelled(
        figure, axes, ("pass@k", table), f"k of {samples} answers (log scale)", result, ax
    )


DRAWINGS = (
    Drawing(
        KEY,
        "pass-at-k",
        "How many tries until one answer is right",
        pass_at_k,
        "The curves show the chance that at least one of k drawn answers is right, for the base "
        "(black) and for the fine-tuned model. Where the black curve passes above the coloured "
        "one, the fine-tuned model is right more often in one try, but reaches fewer prompts in "
        "many. The dotted line draws one of the prompt's known answers at random.",
        "If few answers are possible, many tries reach the right one by chance. The curves are of "
        "one temperature; at another one they can cross elsewhere, or nowhere.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index("metric")
        moved = own.loc[["pass_at_change"]].set_index("x").sort_index()
        first, last = moved.index[0], moved.index[-1]
        crosses = own.loc["crossing"]
        where = (
            f"the curves cross at k = {change(crosses, '.1f')}"
            if crosses["value"] == crosses["value"]
            else "the curves do not cross"
        )
        parts.append(
            f"{member}: {change(moved.loc[first], '+.2f')} at k = {first:g}, "
            f"{change(moved.loc[last], '+.2f')} at k = {last:g}, {where}; different answers "
            f"{change(own.loc['distinct_change'], '+.1f')} (n = {moved.loc[first, 'n']:.0f})"
        )
    return "The change of pass@k is tuned - base", parts
