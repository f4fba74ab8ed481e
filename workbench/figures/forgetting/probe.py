"""Is the answer still in the stream? Linear probes by layer."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "forgetting.probe"
HEADING = "Linear probes for a lost capability"


@style.styled
def probe_layers(result: Result, ax: Axes | None = None) -> Figure:
    """Accuracy of the linear probes at every depth; a panel per member. Black: the base; dotted:
    random weights; grey band: the tuned model's stream with shuffled labels."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("accuracy").assign(x=lambda rows: rows["layer"].astype(float))
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, label, colour, dashes in (
            ("base", "base", style.BLACK, "-"),
            ("tuned", "tuned model", look.colour, "-"),
            ("random weights", "random weights", style.GREY, ":"),
            ("tuned, shuffled", "shuffled labels", style.GREY, "--"),
        ):
            line = own[own["arm"] == arm]
            here.plot(line["x"], line["value"], color=colour, ls=dashes, lw=1.2, label=label,
                      marker="o" if arm in ("base", "tuned") else "", ms=2.5)  # fmt: skip
            band(here, line, colour)
        depths = sorted(own["x"].unique())
        step = max(1, len(depths) // 6)
        shown = depths[::step]
        here.set_xticks(shown, ["emb" if d < 0 else f"{d:.0f}" for d in shown])
        here.set_ylim(0, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    return labelled(
        figure,
        axes,
        ("probe accuracy", str(table["task"].iloc[0])),
        "layer (resid_post)",
        result,
        ax,
    )


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "Is the answer still in the stream?",
        probe_layers,
        "How often a linear probe reads the answer from the stream at the prompt's last token, by "
        "layer, on prompts it did not see. A tuned model that is silent where its line follows "
        "the base's still holds the answer; one whose line falls to the dotted one does not.",
        "A probe finds what the model may not use, and can learn what the prompt's words tell: the "
        "dotted line is a model of random weights, the broken one shuffled labels.",
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
    return "What a probe reads, random weights 0 and base 1", parts
