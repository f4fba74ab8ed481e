"""What is retained along the straight path between two models' weights?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.interpolate"
HEADING = "The path from base to fine-tuned model"


@style.styled
def path_scores(result: Result, ax: Axes | None = None) -> Figure:
    """Score out of distribution, the mean of the other tasks, against the score in distribution
    along the path; a panel per model. The diamond is alpha = .5; dotted: the ensemble of
    logits; grey: the chord."""
    table = result.metric("score")
    if table["own"].all():
        raise WorkbenchError("There is no task out of distribution to draw; give others.")
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.7,
        share=(True, True),
    )
    # A path begins at the base unless another member was named.
    begins = "start" if result.provenance.parameters.get("origin") else "base"
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        for arm, label, dashes in (
            ("path", "weights interpolated", "-"),
            ("ensemble", "logits mixed", style.DASHES[1]),
        ):
            line = own[own["arm"] == arm]
            inside = line[line["own"].eq(True)].set_index("x").sort_index()
            outside = line[line["own"].eq(False)].groupby("x")[["value", "baseline"]].mean()
            here.plot(inside["value"], outside["value"], color=look.colour, ls=dashes, lw=1.1,
                      marker="o" if arm == "path" else "", ms=2.5, label=label)  # fmt: skip
            if arm == "path":
                here.plot(inside["baseline"], outside["baseline"], color=style.GREY, lw=0.8,
                          zorder=0, label="chord")  # fmt: skip
            if 0.5 in inside.index:
                here.plot(inside.loc[0.5, "value"], outside.loc[0.5, "value"], marker="D", ms=5,
                          ls="", color=look.colour, mec="white", mew=0.6, zorder=5,
                          label="α = .5")  # fmt: skip
            if arm == "path":
                # Off the path, which runs between the two.
                for x, name, side in ((0.0, begins, "left"), (1.0, "end", "right")):
                    here.annotate(name, (inside.loc[x, "value"], outside.loc[x, "value"]),
                                  (0, -11), textcoords="offset points", fontsize=6, ha=side,
                                  color=style.GREY)  # fmt: skip
        style.name(here, look)
        here.margins(x=0.1, y=0.16)
    task = str(table.loc[table["own"].eq(True), "task"].iloc[0])
    style.first_column(axes, "mean score on other tasks")
    for here in axes[-1]:
        here.set_xlabel(f"score on {style.text(task)}")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts a task", outside=ax is None)
    return figure


def _elsewhere(result: Result) -> bool:
    return bool(result.table["own"].eq(False).any())


DRAWINGS = (
    Drawing(
        KEY,
        "path",
        "In against out of distribution along the path",
        path_scores,
        "The score on the fine-tuned task (across) is shown against the mean of the other tasks "
        "(up), while the weights move in a straight line from start to end. The diamonds mark α = "
        ".5. The dotted line mixes the logits of the two models, which needs both of them, and the "
        "grey line is the chord, a linear mix of the two scores. A path above the chord has points "
        "that retain more than their share of both.",
        "The best point of a path is chosen by looking at it; the table has the gain of one that "
        "was chosen on other prompts. The intervals over prompts, which the table shows, can be "
        "wider than the bend of the path.",
        applies=_elsewhere,
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        best = own[(own["arm"] == "best") & (own["metric"] == "score_change")]
        said = [f"{row['task']} {change(row, '+.2f')}" for _, row in best.iterrows()]
        barrier = own[(own["arm"] == "path") & (own["metric"] == "barrier") & own["own"].eq(True)]
        chosen = f"α = {best['x'].iloc[0]:g}: {', '.join(said)}" if said else "too few prompts"
        wall = f"; barrier {change(barrier.iloc[0], '.2f')} nats"
        parts.append(f"{member}: {chosen}{wall}")
    return "The changes are against the tuned model, at the α chosen on other prompts", parts
