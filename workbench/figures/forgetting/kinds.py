"""Into which kinds of answers did the answers turn?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate
from workbench.figures.wording import Findings, interval
from workbench.results.result import Result

KEY = "forgetting.kinds"
HEADING = "Kinds of answers and errors"


@style.styled
def answer_kinds(result: Result, ax: Axes | None = None) -> Figure:
    """Where the base's answers of each kind (down) went (across), in items; a panel per fine-tuned
    model. A frame: more went there than came back, or fewer, for certain."""
    looks = style.looks(result)
    table = result.metric("item")
    names = list(result.metric("share")["category"].drop_duplicates())
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns <= 2 else style.WIDE,
        height=(0.34 * max(len(names), 3) + 0.5) * rows + 0.7,
        share=(True, True),
    )
    net = result.table[result.table["metric"] == "net"]  # none where all answers are of one kind
    image, most = None, table.groupby("member").size().max()
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        grid = own.groupby(["category", "to_category"]).size().unstack(fill_value=0)
        grid = grid.reindex(index=names, columns=names, fill_value=0)
        image = here.imshow(grid.to_numpy(float), style.MAP, vmin=0, vmax=most, aspect="auto")
        annotate(here, image, ".0f")
        for _, row in net[net["member"] == member].iterrows():
            if row["low"] > 0 or row["high"] < 0:
                ends = [names.index(row["category"]), names.index(row["to_category"])]
                down, across = ends if row["value"] > 0 else ends[::-1]
                marks.framed(here, across, down)
        shown = [style.text(name, 20) for name in names]
        here.set_yticks(range(len(names)), shown)
        here.set_xticks(range(len(names)), shown, rotation=40, ha="right", rotation_mode="anchor")
        here.set_title(look.label, loc="left", color=style.ink(look.colour))
        here.spines[:].set_visible(False)
    style.first_column(axes, f"base\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("tuned model")
    style.blank(axes, len(looks))
    style.colour_bar(image, list(axes.flat), "items")
    marks.counted(axes, result.metric("share")["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "transitions",
        "From which kind of answer to which",
        answer_kinds,
        "Each cell counts the items whose answer was of the row's kind in the base and is of the "
        "column's kind in the fine-tuned model. The diagonal kept its kind. A frame marks a "
        "transition that more items took than took the way back, with a 95% interval of the "
        "difference that excludes 0.",
        "The kinds are as good as the classifier, which reads the words alone. If items go both "
        "ways in equal numbers, their kind is unstable, and nothing was traded for anything. "
        "Nothing is corrected for the number of cells.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        test = own[own["metric"] == "homogeneity"].iloc[0]
        said = (
            f"{member}: {test['changed']:.0f} of {test['n']:.0f} answers are of another kind "
            f"(p = {test['value']:.2g} for equal shares)"
        )
        net = own[own["metric"] == "net"]
        if test["changed"] and len(net):
            row = net.loc[net["value"].abs().idxmax()]
            ends = [row["category"], row["to_category"]]
            value, low, high = (float(row[name]) for name in ("value", "low", "high"))
            if value < 0:
                ends, value, low, high = ends[::-1], -value, -high, -low
            net_share = interval(value, low, high, ".2f")
            said += f", most from {ends[0]} to {ends[1]}, {net_share} of all net of the way back"
        parts.append(said)
    return "The kinds of answers, item by item", parts
