"""Which latents of a sparse dictionary changed, does it still fit, and what does its part do?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.dictionary"
HEADING = "Latents of a sparse dictionary"
CHANGE = "tuned - base"
MOST = 10  # latents of each model
SIDES = {"base": "base", "tuned": "tuned"}
ARMS = {
    "base": "base", "latents": "+ latents", "error": "+ error node",
    "both": "+ both",
}  # fmt: skip


@style.styled
def changed_latents(result: Result, ax: Axes | None = None) -> Figure:
    """The latents whose activation changed most, a panel per model, over the band of the largest
    change by chance; ticks: what another half of the prompts makes of the base."""
    members = result.members
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.6,
    )
    table, looks = result.metric("activation"), style.looks(result)
    table = table[table["side"] == CHANGE]
    for here, member in zip(axes.flat, members, strict=False):
        own, look = table[table["member"] == member][:MOST], looks[member]
        at = np.arange(len(own), dtype=float)
        if len(own):
            low, high = own["null_low"].iloc[0], own["null_high"].iloc[0]
            here.axvspan(low, high, color=style.GREY, alpha=0.2, lw=0,
                         label="largest of all latents, sides exchanged")  # fmt: skip
        here.hlines(at, own["low"], own["high"], color=look.colour, lw=1)
        here.plot(own["value"], at, look.marker, color=look.colour, ms=3.5, label=CHANGE)
        here.plot(own["baseline"], at, "|", color="black", ms=6,
                  label="base, two halves of the prompts")  # fmt: skip
        here.axvline(0, color=style.GREY, lw=0.8, ls=style.DASHES[1], zorder=0)
        here.set_yticks(at, [str(int(latent)) for latent in own["latent"]])
        here.invert_yaxis()
        style.name(here, look)
    for here in axes[-1]:
        here.set_xlabel("change of the activation\n(unit of the state)")
    style.first_column(axes, "latent")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def fit(result: Result, ax: Axes | None = None) -> Figure:
    """What the dictionary leaves unexplained of either side, and how far the base is from the tuned
    model once the latents' part of the change, the error node's, or both are put into it."""
    figure, axes = style.panels(ax, 1, 2, width=style.WIDE * 0.8, height=2.4)
    looks = style.looks(result)
    left = "variance unexplained\n(fraction)"
    right = "KL of the tuned model\nfrom it (nats)"
    for here, metric, column, names, label in (
        (axes.flat[0], "fvu", "side", SIDES, left), (axes.flat[1], "kl_tuned", "arm", ARMS, right),
    ):  # fmt: skip
        rows = result.metric(metric)
        x = np.arange(len(names), dtype=float)
        for number, (member, look) in enumerate(looks.items()):
            own = rows[rows["member"] == member].set_index(column).reindex([*names])
            at = x + 0.12 * (number - (len(looks) - 1) / 2)
            here.vlines(at, own["low"], own["high"], color=look.colour, lw=1)
            here.plot(at, own["value"], look.marker, color=look.colour, ms=3.5, label=look.label)
        here.set_xticks(x, [*names.values()], rotation=0 if len(names) < 3 else 20)
        here.margins(x=0.15)
        here.set(ylabel=label, xlabel="model" if column == "side" else "run")
        here.set_ylim(bottom=min(0.0, here.get_ylim()[0]))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("fvu")["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "latents",
        "The latents that changed most",
        changed_latents,
        "Each row is a latent of the sparse dictionary, chosen on one half of the prompts, with "
        "its change from base to tuned model on the other half. Bars are 95% intervals over "
        "prompts. The grey band holds 95% of the largest changes of all latents when the two "
        "models of each prompt are exchanged at random; a tick marks how far the base's own mean "
        "moves between two halves of the prompts.",
        "A latent is named by its number alone: what it stands for is what its examples say, in "
        "the base. Latents that only grow with the state's norm change without a new feature.",
        applies=has("activation"),
    ),
    Drawing(
        KEY,
        "fit",
        "What the dictionary explains of both models, and of their difference",
        fit,
        "Left: the fraction of variance that the reconstruction leaves unexplained, in the base "
        "and in the tuned model. Right: the Kullback-Leibler divergence of the tuned model from "
        "the base, and from the base with the latents' part of the change, with the error node's, "
        "and with both. Bars are 95% intervals over prompts.",
        "A dictionary that leaves much of the base itself unexplained says little of either model. "
        "The part of a change that no latent holds is in the error node, and may matter most.",
        applies=has("fvu"),
    ),
)


def sentence(result: Result) -> Findings:
    """How many latents changed, against the null, and what is explained of either side."""
    told = []
    for member in result.members:
        rows = result.table[result.table["member"] == member]
        number, part, fvu = (
            rows[rows["metric"] == metric] for metric in ("changed", "change_explained", "fvu")
        )
        count = number.iloc[0]
        moved = fvu[fvu["side"] == CHANGE].iloc[0]
        told.append(
            f"{member}: {int(count['value'])} (chance: {int(count['baseline'])}); the latents hold "
            f"{change(part.iloc[0], '.2f')} of the change, and the unexplained variance rises by "
            f"{change(moved, '.3f')} (n = {int(count['n'])} prompts)"
        )
    return "The latents that changed beyond chance", told
