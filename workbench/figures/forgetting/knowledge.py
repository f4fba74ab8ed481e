"""Where did the base's knowledge go? SliCK categories before and after."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.knowledge"
HEADING = "Categories of knowledge"
SHORT = {"HighlyKnown": "highly", "MaybeKnown": "maybe", "WeaklyKnown": "weakly",
         "Unknown": "unknown"}  # fmt: skip
AGAIN = "base again"


@style.styled
def knowledge_transitions(result: Result, ax: Axes | None = None) -> Figure:
    """Where the questions of every category of the base went, a panel per member; first the base
    asked again behind other examples, which is the control."""
    looks = style.looks(result)
    names = list(SHORT)
    table = result.metric("transition")
    first = result.members[0]
    shown = [(AGAIN, first, "again", style.BLACK)]
    shown += [(look.label, member, "tuned", look.colour) for member, look in looks.items()]
    rows, columns = style.grid_shape(len(shown), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 else style.WIDE,
        height=1.75 * rows + 0.5,
        share=(True, True),
    )
    image = None
    for here, (title, member, arm, colour) in zip(axes.flat, shown, strict=False):
        own = table[(table["member"] == member) & (table["arm"] == arm)]
        grid, count = (
            own.pivot(index="category", columns="to_category", values=c).loc[names, names]
            for c in ("value", "n")
        )
        image = here.imshow(grid.to_numpy(), style.MAP, vmin=0, vmax=1, aspect="auto")
        here.set_facecolor(style.PALE)
        annotate(here, grid.to_numpy(), ".2f")
        labels = [f"{SHORT[n]} ({int(count.loc[n].iloc[0])})" for n in names]
        here.set_yticks(range(len(names)), labels)
        here.set_xticks(range(len(names)), list(SHORT.values()), rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_title(title, loc="left", color=colour)
        here.spines[:].set_visible(False)
    style.first_column(axes, "base (questions)")
    for here in axes[-1]:
        here.set_xlabel("tuned model")
    style.blank(axes, len(shown))
    style.colour_bar(image, list(axes.flat), "share of the questions")
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "transitions",
        "Where the base's knowledge went",
        knowledge_transitions,
        "Every question's SliCK category in the base (rows, with their number) and in the member "
        "(columns); a row sums to 1. The first map is the base asked again behind other examples: "
        "what moves there moves without any fine-tuning.",
        "A row of few questions says little; its Wilson interval is in the table. Categories hang "
        "on the examples and on how many samples are drawn.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    moved = result.metric("transition")
    moved = moved[(moved["category"] == "HighlyKnown") & (moved["to_category"] == "HighlyKnown")]
    for member in result.members:
        own = moved[moved["member"] == member].set_index("arm")
        if not own.loc["tuned", "n"]:
            parts.append(f"{member}: the base knows no question highly")
            continue
        parts.append(
            f"{member}: {change(own.loc['tuned'], '.2f')} of {own.loc['tuned', 'n']:.0f} highly "
            f"known questions stay so (base asked again {change(own.loc['again'], '.2f')})"
        )
    return "Knowledge kept, SliCK categories with Wilson intervals", parts
