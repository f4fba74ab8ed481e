"""Where did the base's knowledge go? SliCK categories before and after."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
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
    """Where the questions of every category of the base went, a panel per fine-tuned model; first
    the base asked again with other examples, which is the control."""
    looks = style.looks(result)
    names = list(SHORT)
    table = result.metric("transition")
    first = result.members[0]
    # A category of the base without a question has no row.
    counted = table[table["member"] == first].groupby("category")["n"].max()
    held = [name for name in names if counted.get(name, 0) > 0] or names
    shown = [(AGAIN, first, "again", style.BLACK)]
    shown += [(look.label, member, "tuned", look.colour) for member, look in looks.items()]
    rows, columns = style.grid_shape(len(shown), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 else style.WIDE,
        height=(0.35 * max(len(held), 3) + 0.5) * rows + 0.5,
        share=(True, True),
    )
    image = None
    for here, (title, member, arm, colour) in zip(axes.flat, shown, strict=False):
        own = table[(table["member"] == member) & (table["arm"] == arm)]
        grid, count = (
            own.pivot(index="category", columns="to_category", values=c).loc[held, names]
            for c in ("value", "n")
        )
        image = here.imshow(grid.to_numpy(), style.MAP, vmin=0, vmax=1, aspect="auto")
        here.set_facecolor(style.PALE)
        annotate(here, image, ".2f")
        labels = [f"{SHORT[n]} ({int(count.loc[n].iloc[0])})" for n in held]
        here.set_yticks(range(len(held)), labels)
        here.set_xticks(range(len(names)), list(SHORT.values()), rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        here.set_title(title, loc="left", color=style.ink(colour))
        here.spines[:].set_visible(False)
    style.first_column(axes, "base (questions)")
    for here in axes[-1]:
        here.set_xlabel("tuned model")
    style.blank(axes, len(shown))
    style.colour_bar(image, list(axes.flat), "share of the questions")
    marks.counted(axes, [counted.sum()], "questions", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "transitions",
        "Where the base's knowledge went",
        knowledge_transitions,
        "Every question has a SliCK category in the base (rows, with the number of questions) and "
        "one in the fine-tuned model (columns), and each row sums to 1. The first map shows the "
        "base asked again with other examples: what moves there moves without any fine-tuning.",
        "A row of few questions shows little; its Wilson interval is in the table. The categories "
        "depend on the examples and on how many samples are drawn.",
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
    return "The base's knowledge is in SliCK categories, with Wilson intervals", parts
