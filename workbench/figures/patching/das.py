"""Is the same variable in the same subspace? Interchange accuracy in both models."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.das"
HEADING = "Variables in subspaces"
FEW = 4  # layers whose curves stand side by side
LOOKS = {
    "base": style.Look("#0072B2", "o", "base's, in the base"),
    "tuned": style.Look("#D55E00", "s", "tuned model's, in the tuned model"),
    "base->tuned": style.Look("#009E73", "^", "base's, in the tuned model"),
    "tuned->base": style.Look("#CC79A7", "D", "tuned model's, in the base"),
}


@style.styled
def accuracies(result: Result, ax: Axes | None = None) -> Figure:
    """Interchange accuracy behind every layer, of the model that the subspace was trained in and of
    the other; a panel per fine-tuned model. Dashed: random subspaces; dotted: trained on answers
    dealt to other pairs; dash-dotted: the whole state. Of few layers the curves stand side by side.
    """
    looks, table = style.looks(result), result.metric("score")
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.9 * rows + 0.9,
        share=(True, True),
    )
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        at = own[own["side"] == "tuned"].sort_values("layer")
        told, dealt, whole = (at[at["arm"] == arm] for arm in ("learned", "shuffled", "all"))
        x = told["layer"].to_numpy(float)
        few, step = len(x) <= FEW, np.diff(x).min() if len(x) > 1 else 1.0
        apart = 0.08 * step if few else 0.0
        for number, (side, own_look) in enumerate(LOOKS.items()):
            arm = own[(own["side"] == side) & (own["arm"] == "learned")].sort_values("layer")
            at_once = x + apart * (number - (len(LOOKS) - 1) / 2)
            marks.curve(here, at_once, arm, own_look, layers=not few)
        marks.control(here, x, told["baseline"], style.DASHES[0], "random subspaces")
        marks.control(here, x, dealt["value"], style.DASHES[1], "trained on shuffled answers")
        marks.control(here, x, whole["value"], style.DASHES[2], "the whole state", marker="s")
        if len(x) == 1:
            here.set_xlim(x[0] - 0.6, x[0] + 0.6)
        marks.layer_ticks(here, table["layer"].dropna().unique())
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    for here in axes[-1]:
        here.set_xlabel("layer")
    style.first_column(axes, "interchange accuracy")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "pairs", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "accuracy",
        "One variable's subspace in both models",
        accuracies,
        "The curves show the share of held-out pairs whose answer follows the source prompt's "
        "variable when a subspace of the stream is exchanged behind that layer: the subspace that "
        "was trained in the same model, and the one that was trained in the other. Controls, in "
        "the tuned model, are random subspaces (dashed), a subspace trained on answers dealt to "
        "other pairs (dotted) and the whole state, which no subspace can be expected to surpass "
        "(dash-dotted). Bands and bars are 95% intervals over pairs.",
        "A trained subspace can bring the answer without being what the model uses. A low accuracy "
        "may mean too few steps, dimensions or pairs: compare with the whole state, and with "
        "training_score in the table.",
        applies=has("score"),
    ),
)


def sentence(result: Result) -> Findings:
    """The accuracies behind the layer that was best in the base on the pairs that train."""
    table, taught, parts = result.metric("score"), result.metric("training_score"), []
    overlaps = result.metric("overlap")
    for member in result.members:
        own = table[(table["member"] == member) & (table["arm"] == "learned")]
        chosen = taught[taught["member"] == member].reset_index(drop=True)
        layer = chosen.loc[chosen["value"].idxmax(), "layer"]
        at = own[own["layer"] == layer].set_index("side")
        whole = table[(table["member"] == member) & (table["arm"] == "all")]
        whole = whole[(whole["side"] == "base") & (whole["layer"] == layer)]["value"].iloc[0]
        near = overlaps[(overlaps["member"] == member) & (overlaps["layer"] == layer)]
        near = near.set_index("side")["value"]
        parts.append(
            f"{member}: {change(at.loc['base'], '.2f')} in the base behind layer {layer}, and "
            f"{change(at.loc['base->tuned'], '.2f')} with the same subspace in the tuned model, "
            f"whose own gives {change(at.loc['tuned'], '.2f')} (the whole "
            f"state {whole:.2f} in the base; random subspaces {at.loc['tuned', 'baseline']:.2f}; "
            f"overlap {near['base and tuned']:.2f}, of two trainings in the base "
            f"{near['base, twice']:.2f})"
        )
    return f"Interchange accuracy of a learned subspace ({int(table['n'].max())} pairs)", parts
