"""What is learned, and what is lost, along a training run?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.looks import Look
from workbench.figures.spectral.checkpoints import runs
from workbench.figures.task_and_loss import LOSS, PRETRAINING, measured
from workbench.results.result import Result

MARKERS = "osDv^<>"
TEXT = (("loss_change", LOSS), ("kl", "KL(tuned ‖ base)\non text (nats/token)"))


def of_one_run(result: Result) -> bool:
    """Whether every model is a checkpoint of the same training run."""
    own = [len(one) for one in runs(result).values()]
    return len(result.members) > 1 and own == [len(result.members)]


@style.styled
def over_steps(result: Result, ax: Axes | None = None) -> Figure:
    """Rise of the pre-training loss, KL to the base and every task's score (up) over the training
    steps of one run. Dashed: the base."""
    names = next(iter(runs(result).values()))
    steps = np.array([result.provenance.members[name]["step"] for name in names])
    tables = [(measured(result, PRETRAINING, metric), label) for metric, label in TEXT]
    tables = [(rows.reindex(names), label) for rows, label in tables if len(rows)]
    own = result.table[result.table["metric"] == "score"]  # none where texts alone were read
    # Further tasks are in the table.
    tasks = own["task"].dropna().unique().tolist()[: len(style.CYCLE)]
    count = len(tables) + bool(tasks)
    figure, axes = style.panels(*(ax, count, 1), height=1.45 * count + 0.8, share=(True, False))
    for here, (rows, label) in zip(axes[:, 0], tables, strict=False):
        marks.curve(here, steps, rows, Look(style.BLACK, "o", "_"))
        here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label="base", zorder=0)
        here.set_ylabel(label)
        here.margins(y=0.15)
    for i, task in enumerate(tasks):
        here, rows = axes[-1, 0], measured(result, task, "score").reindex(names)
        look = Look(style.CYCLE[i], MARKERS[i], style.text(task))
        marks.curve(here, steps, rows, look, place=(i, len(tasks)))
        for level in rows["baseline"].dropna().head(1):
            here.axhline(level, color=look.colour, ls=style.DASHES[0], lw=0.8, zorder=0)
        here.set(ylabel="score\n(fraction right)", ylim=(-0.05, 1.05))
    axes[-1, 0].set_xlabel("training step (optimizer updates)")
    style.legend(axes, outside=ax is None)
    table = result.table
    counts = [
        ([len(names)], "checkpoints"),
        (table.loc[table["metric"].isin(("loss", "loss_change")), "n"], "texts"),
        (own["n"], "prompts"),
    ]
    marks.counted(axes, counts, "", outside=ax is None)
    return figure
