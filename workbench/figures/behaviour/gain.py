"""What would one step on each example teach? Gains told by gradients, and gains of real steps."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.member_panels import by_member
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.gain"
HEADING = "What each example teaches"


@style.styled
def gains_of_examples(result: Result, ax: Axes | None = None) -> Figure:
    """The gain of every example in ascending order, and in grey with the answers of others; a panel
    per fine-tuned model. Crosses: the gain of real steps."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("gain").dropna(subset=["prompt"])
    checked = result.table[result.table["metric"] == "real_gain"]
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        given = own[own["arm"] == "given"].sort_values("value")
        others = np.sort(own[own["arm"] != "given"]["value"].to_numpy(float))
        at = {name: place for place, name in enumerate(given["prompt"], start=1)}
        here.axhline(0, color=style.BLACK, lw=0.6)
        here.plot(range(1, len(others) + 1), others, color=style.GREY, ls=":", lw=1,
                  label="answers of others (chance)")  # fmt: skip
        here.plot([*at.values()], given["value"], color=look.colour, marker=look.marker, ms=3,
                  lw=0.8, label="told by the gradients")  # fmt: skip
        real = checked[checked["member"] == member]
        here.plot([at[name] for name in real["prompt"]], real["value"], color=style.BLACK, ls="",
                  marker="x", ms=5, label="after a real step")  # fmt: skip
        style.name(here, look)
    style.first_column(axes, "gain of one step\n(nats an answer)")
    for here in axes[-1]:
        here.set_xlabel("examples, by their gain")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    counted = result.metric("gain").dropna(subset=["n"])["n"]
    marks.counted(axes, counted, "examples", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "gains",
        "What one training step on each example teaches",
        gains_of_examples,
        "Every point is an example: by how much one step of gradient descent on it lowers the loss "
        "of the held-out prompts, told by the product of the two gradients. The crosses are real "
        "steps. The dotted line is of the same examples with the answers of other ones.",
        "The gains are those of the first step from the base. Training takes many steps, and "
        "usually not those of plain gradient descent.",
        applies=has("gain"),
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    for member in result.members:
        own = table[(table["member"] == member) & table["prompt"].isna()]
        rows = own[own["metric"] == "gain"].set_index("arm")
        text = (
            f"{member}: {change(rows.loc['given'], '.2g')} nats, with the answers of others "
            f"{rows.loc['answers of others', 'value']:.2g} (n = {rows.loc['given', 'n']:.0f} "
            "examples)"
        )
        fit = own[own["metric"] == "agreement"]
        if len(fit):
            text += f", real steps gain {change(fit.iloc[0], '.2f')} times as much as told"
        parts.append(text)
    return "One step on an example lowers the held-out loss by these gains", parts
