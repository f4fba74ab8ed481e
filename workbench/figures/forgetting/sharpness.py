"""How much does one harmful gradient step undo?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.sharpness"
HEADING = "One harmful step"


@style.styled
def harmful_steps(result: Result, ax: Axes | None = None) -> Figure:
    """KL(before || after) over the size of one step, both logarithmic, of tuned model and base; a
    panel per fine-tuned model. Dotted: random steps of the same length."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("kl")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        here.set_xscale("log")
        here.set_yscale("log")
        for place, (side, colour, marker) in enumerate(
            (("base", style.BLACK, "s"), ("tuned", look.colour, look.marker))
        ):
            for arm, line in (("harmful", "-"), ("random", ":")):
                rows = own[(own["side"] == side) & (own["arm"] == arm)]
                here.plot(rows["x"], rows["value"], color=colour, ls=line, marker=marker, ms=3,
                          lw=1, label=f"{side}, {arm}")  # fmt: skip
                if arm == "harmful":
                    band(here, rows, colour, place=(place, 2))
        style.name(here, look)
    return labelled(
        figure, axes, ("KL, before | after\n(nats/token, log scale)", table),
        "length of the step / norm of the parameters (log scale)", result, ax,
    )  # fmt: skip


DRAWINGS = (
    Drawing(
        KEY,
        "steps",
        "What one harmful gradient step undoes",
        harmful_steps,
        "Base and fine-tuned model each take one step along the gradient that harms the task, of a "
        "length relative to their parameters. The curves show how far the distribution of the "
        "answers moved on prompts that gave no gradient. A fine-tuned model whose curve lies above "
        "the base's is easier to undo. Dotted: random steps of the same length.",
        "A model that cannot do the task has nothing to lose, and moves all the same. One step is "
        "not an attack of many.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        most = own["x"].max()
        kl = own[(own["metric"] == "kl") & (own["x"] == most)].set_index(["side", "arm"])
        apart = own[(own["metric"] == "kl_difference") & (own["x"] == most)].iloc[0]
        parts.append(
            f"{member}: {kl.loc[('tuned', 'harmful'), 'value']:.3g} nats (base "
            f"{kl.loc[('base', 'harmful'), 'value']:.3g}, difference {change(apart, '+.3g')}; "
            f"random step {kl.loc[('tuned', 'random'), 'value']:.3g}; n = {apart['n']:.0f})"
        )
    size = result.table["x"].max()
    return f"One harmful step of {size:g} of the parameters' norm moves answers by this KL", parts
