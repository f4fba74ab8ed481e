"""How would a large model answer if it were fine-tuned as the small one was?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.emulate"
HEADING = "Emulated fine-tuning"


@style.styled
def emulation(result: Result, ax: Axes | None = None) -> Figure:
    """Score of the large model with beta times the small pair's change, and the models that it is
    computed from as lines; a panel per fine-tuned model."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        line = own[own["arm"] == "emulated"].sort_values("x")
        here.plot(line["x"], line["value"], color=look.colour, marker=look.marker, ms=3,
                  label="emulated")  # fmt: skip
        band(here, line, look.colour)
        for arm, dashes in zip(("large", "tuned", "base", "large, tuned"),
                               ("-", *style.DASHES), strict=True):  # fmt: skip
            end = own[own["arm"] == arm]
            if len(end):
                name = arm if arm.startswith("large") else f"small {arm}"
                here.axhline(end["value"].iloc[0], color=style.GREY, ls=dashes, lw=0.9, label=name)
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    return labelled(figure, axes, ("score", table), "β, weight of the change", result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "beta",
        "Emulated fine-tuning",
        emulation,
        "The curve is the score of the large model after β times what fine-tuning changed in the "
        "small model is added to its log-probabilities. The grey lines are the scores of the large "
        "model and of the small models on their own.",
        "Nothing of the large model was trained. If the curve rises above the small tuned model, "
        "the large model's own knowledge helps; if it does not, the small model's change does all "
        "of the work.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.metric("score")
        own = own[own["member"] == member]
        rows = own.set_index("arm")
        at = own[own["arm"] == "emulated"].set_index("x")
        one = (at.loc[[1.0]] if 1.0 in at.index else at.iloc[[-1]]).reset_index().iloc[0]
        parts.append(
            f"{member}: {change(one, '.2f')} emulated at β = {one['x']:g} (n = {one['n']:.0f}), "
            f"large {rows.loc['large', 'value']:.2f}, small tuned {rows.loc['tuned', 'value']:.2f}"
        )
    return "Emulated fine-tuning reaches these scores", parts
