"""Is the answer still in the stream? Linear probes by layer."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.probe"
HEADING = "Linear probes for a lost capability"


@style.styled
def probe_layers(result: Result, ax: Axes | None = None) -> Figure:
    """Accuracy of the linear probes at every depth; a panel per model. Black: the base; dotted:
    random weights; grey band: the tuned model's stream with shuffled labels."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("accuracy").assign(x=lambda rows: rows["layer"].astype(float))
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, label, colour, marker in (
            ("base", "base", style.BLACK, "o"),
            ("tuned", "tuned model", look.colour, look.marker),
        ):
            line = own[own["arm"] == arm]
            here.plot(line["x"], line["value"], color=colour, lw=1.2, label=label, marker=marker,
                      ms=3)  # fmt: skip
            band(here, line, colour, layers=True)
        for arm, label, dashes in (
            ("random weights", "random weights", style.DASHES[1]),
            ("tuned, shuffled", "shuffled labels", style.DASHES[0]),
        ):
            line = own[own["arm"] == arm]
            marks.control(here, line["x"], line["value"], dashes, label, marker="")
            band(here, line, style.GREY, layers=True)
        marks.layer_ticks(here, own["x"].unique(), named=marks.layer_name)
        here.set_ylim(0, 1.03)
        style.name(here, look)
    return labelled(
        figure,
        axes,
        ("probe accuracy", table),
        "layer (resid_post; emb: embedding)",
        result,
        ax,
    )


@style.styled
def probe_vocabulary(result: Result, ax: Axes | None = None) -> Figure:
    """The share of the probe's accuracy that a readout through words keeps at every depth, base and
    tuned model; a panel per model. Dashed: through rows of the vocabulary turned at random."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("kept").assign(x=lambda rows: rows["layer"].astype(float))
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, label, colour, marker, dashes in (
            ("base", "base", style.BLACK, "o", style.DASHES[0]),
            ("tuned", "tuned model", look.colour, look.marker, style.DASHES[1]),
        ):
            line = own[own["arm"] == arm]
            here.plot(line["x"], line["value"], color=colour, lw=1.2, label=label, marker=marker,
                      ms=3)  # fmt: skip
            band(here, line, colour, layers=True)
            marks.control(here, line["x"], line["baseline"], dashes,
                          f"{arm}, random directions", marker="")  # fmt: skip
        marks.layer_ticks(here, own["x"].unique(), named=marks.layer_name)
        here.axhline(1, color=style.GREY, lw=0.6, zorder=0)
        style.name(here, look)
    what = ("accuracy through words\nover that of the full state", table)
    return labelled(figure, axes, what, "layer (resid_post; emb: embedding)", result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "Is the answer still in the stream?",
        probe_layers,
        "The lines show how often a linear probe reads the answer from the residual stream at the "
        "prompt's last token, by layer, on prompts it was not trained on. If a tuned model does "
        "not give the answer although its line follows the base's, it still holds the answer; if "
        "its line falls to the dotted one, it does not.",
        "A probe can find what the model does not use, and it can learn what the words of the "
        "prompt reveal. The dotted line is a model of random weights and the dashed line is a "
        "probe for shuffled labels.",
    ),
    Drawing(
        KEY,
        "vocabulary",
        "How much of it can be put in words",
        probe_vocabulary,
        "The lines show which share of the probe's accuracy is left if it sees the state through a "
        "few rows of the unembedding alone, those that explain the states best. Dashed: through as "
        "many rows chosen in the same way from the unembedding turned at random.",
        "Any directions along which the states vary much keep accuracy, whether a reader would "
        "name the answer by these words or not: compare with the turned ones, at a small k.",
        applies=has("kept"),
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index("metric")
        row = own.loc["retention"]
        lost = own.loc["retention_lost"]
        said = f"{member}: {change(row, '.2f')} at layer {row['layer']} (n = {row['n']:.0f})"
        if pd.notna(lost["value"]):
            said = f"{said}, {change(lost, '.2f')} of the lost answers (n = {lost['n']:.0f})"
        parts.append(said)
    return "A probe reads this share of the answers (random weights 0, base 1)", parts
