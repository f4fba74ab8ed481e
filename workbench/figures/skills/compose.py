"""Do skills add up when they are put together?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.heat_maps import annotate
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "skills.compose"
HEADING = "Several skills put together"
ARMS = {"graft": "grafts", "random": "random entries", "whole": "whole changes"}


@style.styled
def composition(result: Result, ax: Axes | None = None) -> Figure:
    """Score of every task (across) under every set of grafts (up): the grafts, as many random
    entries, and the models' whole changes summed; the lowest row is the base."""
    table = result.metric("score")
    tasks = list(dict.fromkeys(table["task"]))
    sets = list(dict.fromkeys(table.loc[table["arm"] == "graft", "skills"]))
    base = table[table["arm"] == "base"].set_index("task")["value"]
    figure, axes = style.panels(
        *(ax, 1, len(ARMS)), width=style.WIDE, height=1.3 + 0.22 * (len(sets) + 1),
        share=(True, True),
    )  # fmt: skip
    image = None
    for here, (arm, title) in zip(axes[0], ARMS.items(), strict=True):
        own = table[table["arm"] == arm].set_index(["skills", "task"])["value"]
        grid = np.array([base[tasks], *([own[s, t] for t in tasks] for s in sets)])
        image = here.imshow(grid, cmap=style.MAP, vmin=0, vmax=1, origin="lower", aspect="auto")
        annotate(here, image, ".2f")
        here.set_xticks(range(len(tasks)), [style.text(t, 18) for t in tasks], rotation=40,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        here.set_yticks(range(len(sets) + 1), ["none (base)", *(style.text(s, 30) for s in sets)])
        here.set_title(title, loc="left")
        here.set_xlabel("task")
        here.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("skills put in")
    assert image is not None
    style.colour_bar(image, list(axes.flat), "score")
    marks.counted(axes, table["n"], "prompts a task", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "scores",
        "Do the skills add up?",
        composition,
        "Each cell is the score on a task (across) with a set of grafts (up): the grafts, as many "
        "random entries of the same models, and their whole changes summed. A column whose score "
        "stays the same when more grafts join shows no interference.",
        "A task that the base already answers retains its score under any small graft.",
    ),
)


def sentence(result: Result) -> Findings:
    together = result.metric("interference")
    whole = together["skills"].iloc[-1]
    parts = [
        f"{row['task']}: {row['baseline']:.2f} with its own graft alone, "
        f"{change(row, '+.2f')} with all"
        for _, row in together[together["skills"] == whole].iterrows()
    ]
    count = int(together["n"].max())
    return f"Grafts of {whole} are put together (95% over {count} prompts)", parts
