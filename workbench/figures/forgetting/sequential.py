"""What does a chain of fine-tunings retain of every stage?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.sequential"
HEADING = "A chain of tasks"
FRAME = "#D55E00"


@style.styled
def chain_matrix(result: Result, ax: Axes | None = None) -> Figure:
    """Score after every stage of a chain (downwards) on every task; framed: what the stage just
    learned. Tasks right of the line were learned by no stage."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 2)
    table = result.metric("score")
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.5,
        share=(True, False),
    )
    image = None
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        tasks = list(dict.fromkeys(own["task"]))
        stages = list(own.drop_duplicates("x").sort_values("x")["stage"])
        grid = own.pivot(index="x", columns="task", values="value")[tasks].to_numpy()
        image = here.imshow(grid, style.MAP, vmin=0, vmax=1, aspect="auto")
        annotate(here, image, ".2f")
        for stage in range(1, len(stages)):
            here.add_patch(
                Rectangle((stage - 1.47, stage - 0.46), 0.94, 0.92, fill=False, ec=FRAME, lw=1.4)
            )
        learned = int(own.drop_duplicates("task")["own"].sum())
        here.axvline(learned - 0.5, color="white", lw=2)
        here.set_xticks(range(len(tasks)), [style.text(t, 14) for t in tasks], rotation=40,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_yticks(range(len(stages)), [style.text(s, 18) for s in stages])
        style.name(here, look)
        here.spines[:].set_visible(False)
        here.set_xlabel("task")
    style.first_column(axes, "after stage")
    style.blank(axes, len(looks))
    style.colour_bar(image, list(axes.flat), "score")
    marks.counted(axes, table["n"], "prompts a task", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "matrix",
        "What a chain of fine-tunings retains",
        chain_matrix,
        "Each cell is the score on a task (across) after a stage (down). A frame marks the stage "
        "that learned the task. Below a frame, a column shows what later stages lost of it, and "
        "right of the white line are tasks that no stage learned.",
        "This is one order of tasks and one seed. A later stage that trains a task of the same "
        "kind can bring an earlier one back.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[(result.table["member"] == member) & (result.table["task"] == "mean")]
        told = own.set_index("metric")
        parts.append(
            f"{member}: forgetting {change(told.loc['forgetting'], '.2f')}, backward transfer "
            f"{change(told.loc['backward_transfer'], '+.2f')} (n = "
            f"{told.loc['forgetting', 'n']:.0f} prompts)"
        )
    return "The earlier tasks of a chain are measured after its last stage", parts
