"""Does the base's circuit do the tuned model's work, is it the same one, and how was it found?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.patching.layer_maps import by_side, layer_maps
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.circuit"
HEADING = "The circuit, in the base and in the fine-tuned models"


@style.styled
def faithfulness(result: Result, ax: Axes | None = None, *, measure: str = "score") -> Figure:
    """Faithfulness of the base's circuit and of each fine-tuned model's own, in both models.

    Bars with 95% intervals over prompts; grey: random circuits of as many heads. 1: as good as the
    whole model. Below every pair of bars the circuit's size in heads.
    """
    table = result.table
    own = table[table["metric"] == f"faithfulness:{measure}"]
    rows, columns = style.grid_shape(len(result.members))
    figure, axes = style.panels(
        *(ax, rows, columns), width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.6, share=(False, True),
    )  # fmt: skip
    looks = style.looks(result)
    cases = [("base", "base"), ("base", "tuned"), ("tuned", "tuned"), ("tuned", "base")]
    ticks = ["base's\nin base", "base's\nin tuned", "tuned's\nin tuned", "tuned's\nin base"]
    for here, member in zip(axes.flat, result.members, strict=False):
        mine = own[own["member"] == member]
        sizes = table[(table["member"] == member) & (table["metric"] == "size")]
        named = []
        for place, (circuit, side) in enumerate(cases):
            one = mine[(mine["circuit"] == circuit) & (mine["side"] == side)]
            colour = looks[member].colour if circuit == "tuned" else "#56B4E9"
            _bar(here, place - 0.2, one[one["arm"] == "patch"], colour,
                 {"base": "base's circuit", "tuned": "tuned model's circuit"}[circuit])  # fmt: skip
            _bar(here, place + 0.2, one[one["arm"] == "random"], "#bbbbbb", "random, same size")
            size = sizes[(sizes["circuit"] == circuit) & (sizes["side"] == side)]["value"]
            named.append(
                f"{ticks[place]}\n{int(size.iloc[0])} heads" if len(size) else ticks[place]
            )
        here.axhline(1, color=style.GREY, lw=0.8, ls=style.DASHES[0], label="the whole model")
        here.set_xticks(range(4), named, fontsize=6)
        style.name(here, looks[member])
    for here in axes[:, 0]:
        here.set_ylabel(f"faithfulness ({measure.replace('_', ' ')})")
    for here in axes[-1]:
        here.set_xlabel("circuit, and the model it runs in")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, own.loc[own["arm"] == "patch", "n"], "prompts", outside=ax is None)
    return figure


def _bar(here: Axes, x: float, rows: pd.DataFrame, colour: str, label: str) -> None:
    if rows.empty:
        return
    row = rows.iloc[0]
    spread = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
    here.bar(x, row["value"], 0.38, color=colour, label=label)
    here.errorbar(x, row["value"], yerr=spread, fmt="none", color="k", capsize=2, lw=0.8)
    if row["value"] == 0:  # a bar of no height shows as a mark
        here.plot(x, 0, "_", color=colour, ms=9, mew=2.5, clip_on=False, zorder=4)


@style.styled
def overlap(result: Result, ax: Axes | None = None) -> Figure:
    """Overlap (Jaccard) of each model's circuit with the base's, whole and group by group; grey:
    the middle 95% of random circuits of the same sizes."""
    own = result.metric("jaccard")
    own = own[own["circuit"] == "base & tuned"].assign(group=own["group"].fillna("whole circuit"))
    groups = list(dict.fromkeys(own["group"]))
    figure, axes = style.panels(ax, 1, 1, width=style.COLUMN, height=2.4)
    here, looks = axes[0, 0], style.looks(result)
    step = 0.7 / len(looks)
    for number, (member, look) in enumerate(looks.items()):
        rows = own[own["member"] == member].set_index("group").reindex(groups)
        x = np.arange(len(groups)) - 0.35 + step * (number + 0.5)
        here.vlines(x, rows["low"], rows["high"], color="#bbbbbb", lw=4,
                    label="random circuits (95%)" if number == 0 else None)  # fmt: skip
        here.plot(x, rows["value"], ls="none", marker=look.marker, color=look.colour,
                  label=look.label)  # fmt: skip
    here.set_xticks(range(len(groups)), [style.text(g) for g in groups], rotation=25, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    here.set(ylim=(-0.05, 1.05), ylabel="heads in common\n(Jaccard index)", xlabel="group of heads")
    style.legend(axes, outside=ax is None)
    sizes = result.table.loc[result.table["metric"] == "size", "value"]
    marks.counted(axes, sizes, "heads in a circuit", outside=ax is None)
    return figure


@style.styled
def paths(result: Result, ax: Axes | None = None) -> Figure:
    """Change of the logit difference by every head through each group's receivers, layers upwards:
    a row for the base and one per model, a column per group. Blue: the head supports the answer.
    """
    own = result.metric("logit_change")
    own = own[own["arm"] == "patch"]
    groups = list(dict.fromkeys(own["group"]))
    sides = by_side(result, own)
    panels = [
        (f"{name}\n{group}", part[part["group"] == group]) for name, part in sides
        for group in groups
    ]  # fmt: skip
    heads = sorted(int(h) for h in own["head"].unique())
    return layer_maps(
        ax, panels, "head", heads, [str(h) for h in heads], "sender head",
        "change of logit difference\n(0: none)", columns=len(groups), looks=style.looks(result),
    )  # fmt: skip


DRAWINGS = (
    Drawing(
        KEY,
        "faithfulness",
        "Does the base's circuit do the tuned model's work?",
        faithfulness,
        "The bars show the score of the circuit's heads alone over the score of the whole model. "
        "Each head is left unchanged at its group's position (if asked for, at every token), and "
        "all other heads and tokens are replaced by their mean. The base's circuit and the tuned "
        "model's own run in both models. The number of heads is below the bars, and grey shows "
        "random circuits of as many heads.",
        "A circuit of most heads is faithful whatever it contains: compare with the random one. "
        "Means over prompts retain what all prompts share.",
        applies=has("faithfulness:score"),
    ),
    Drawing(
        KEY,
        "overlap",
        "Is it the same circuit?",
        overlap,
        "The marks show the heads that the circuits of the base and of the fine-tuned model have "
        "in common, for the whole circuit and group by group. The grey bars are the middle 95% of "
        "random circuits of the same sizes.",
        "Both circuits are cut off at a threshold, and heads near it come and go by chance. The "
        "same heads may do something else, and other heads may do the same.",
        applies=has("jaccard"),
    ),
    Drawing(
        KEY,
        "paths",
        "How the circuit was found",
        paths,
        "Each cell is the change of the logit difference when a head is corrupted only on its way "
        "to one group of receivers (value fetchers: the logits), with all later heads frozen. Blue "
        "means that the head supports the answer, and grey that it does not come before the "
        "receivers.",
        "The total effect of a head is not the sum of its paths, and receivers that were not found "
        "have no senders.",
        applies=has("logit_change"),
    ),
)


def sentence(result: Result) -> Findings:
    table = result.table
    rows = table[table["metric"] == "faithfulness:score"]
    shared = table[(table["metric"] == "jaccard") & table["group"].isna()]
    parts = []
    for member in result.members:
        own = rows[rows["member"] == member].set_index(["circuit", "side", "arm"])
        said = []
        for circuit, side, told in (
            ("base", "base", "the base's circuit in the base"),
            ("base", "tuned", "in the tuned model"),
            ("tuned", "tuned", "the tuned model's own"),
        ):
            if (circuit, side, "patch") in own.index:
                value = change(own.loc[(circuit, side, "patch")], ".2f")
                drawn = (circuit, side, "random")
                beside = f" (random {own.loc[drawn, 'value']:.2f})" if drawn in own.index else ""
                said.append(f"{told} {value}{beside}")
        overlap = shared[(shared["member"] == member) & (shared["circuit"] == "base & tuned")]
        for _, row in overlap.iterrows():
            said.append(f"heads in common {row['value']:.2f} (chance {row['baseline']:.2f})")
        parts.append(f"{member}: {', '.join(said)}")
    prompts = int(rows.loc[rows["arm"] == "patch", "n"].max())
    return f"The faithfulness is by score, with its 95% interval over {prompts} prompts", parts
