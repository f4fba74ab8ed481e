"""How far do the hidden states move, layer by layer? Distances with their nulls."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.drift"
HEADING = "Drift of the hidden states"
CHANGE = "tuned - base"
PANELS = {
    "frechet": "Fréchet distance over\nthat of the base's halves",
    "cka": "linear CKA",
    "cosine": "mean cosine",
}
FLOOR = 1e-3  # of the null: below it the distance is drawn as this


@style.styled
def drift_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Distance and two similarities of base and tuned states at every depth, with their nulls."""
    figure, axes = style.panels(ax, 1, 3, width=style.WIDE, height=2.3)
    looks = style.looks(result)
    for here, (metric, label) in zip(axes.flat, PANELS.items(), strict=True):
        rows = result.metric(metric)
        rows = rows[rows["side"] == CHANGE].sort_values("layer")
        ratio, x, null = metric == "frechet", np.zeros(0), np.zeros(0)
        for name, look in looks.items():
            own = rows[rows["member"] == name]
            x = own["layer"].to_numpy(float)
            null = own["baseline"].to_numpy(float)
            if ratio:
                value = own["value"] / np.where(null > 0, null, np.nan)
                own = own.assign(value=value.clip(lower=FLOOR), low=np.nan, high=np.nan)
                null = np.where(null > 0, 1.0, np.nan)
            marks.curve(here, x, own, look, layers=True)
        if len(rows):
            # The nulls of all models are of the one base; those of CKA differ little.
            marks.control(here, x, null, style.DASHES[0], "null: the base's other prompts")
        if ratio:
            here.set_yscale("log")
            label = f"{label} {marks.LOG}"
        here.set(xlabel="layer", ylabel=label)
        marks.layer_ticks(here, rows["layer"].unique(), named=marks.layer_name)
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("cosine")["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def sphere(result: Result, ax: Axes | None = None) -> Figure:
    """Uniformity at every depth, and alignment where rewordings were given: each model in colour,
    the base dashed. Bands: 95% intervals over prompts."""
    shown = {
        "uniformity": "uniformity (lower: more even)",
        "alignment": "alignment (lower: closer)",
    }
    shown = {metric: label for metric, label in shown.items() if result.has(metric)}
    figure, axes = style.panels(
        *(ax, 1, len(shown)), width=style.COLUMN if len(shown) < 2 else style.WIDE * 0.8, height=2.4
    )
    for here, (metric, label) in zip(axes.flat, shown.items(), strict=True):
        rows = result.metric(metric).sort_values("layer")
        for name, look in style.looks(result).items():
            own = rows[(rows["member"] == name) & (rows["side"] == "tuned")]
            marks.curve(here, own["layer"].to_numpy(float), own, look, layers=True)
        base = rows[(rows["member"] == result.members[0]) & (rows["side"] == "base")]
        marks.control(here, base["layer"].to_numpy(float), base["value"], style.DASHES[0], "base")
        if metric == "alignment":
            marks.control(here, base["layer"].to_numpy(float), base["baseline"], style.DASHES[1],
                          "base, rewordings of other prompts", marker="s")  # fmt: skip
        here.set(xlabel="layer", ylabel=label)
        marks.layer_ticks(here, rows["layer"].unique(), named=marks.layer_name)
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("uniformity")["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "Drift of the hidden states",
        drift_by_layer,
        "The curves compare the two models' residual streams at the last token of the prompts, at "
        "every depth (emb is the embedding). The Fréchet distance is divided by that of the base "
        "from itself on two halves of the prompts, so that 1 is as far as other prompts are; CKA "
        "and cosine are dashed for states paired with other prompts'.",
        "A few huge coordinates decide all three. With fewer prompts than coordinates CKA is high "
        "for any two models. A distance below 0.001 of the null is drawn there.",
        applies=has("frechet"),
    ),
    Drawing(
        KEY,
        "sphere",
        "Uniformity and alignment of the states",
        sphere,
        "Uniformity is the log of the mean exp(-2 d²) over pairs of prompts, d their distance on "
        "the unit sphere: 0 where all states point the same way, lower where they spread. "
        "Alignment is the mean d² of a prompt and its rewording. Bands are 95% intervals over "
        "prompts, and the base is dashed.",
        "Prompts of one form have states of one direction in any model; compare with the base, not "
        "with other sets of prompts.",
        applies=has("uniformity"),
    ),
)


def sentence(result: Result) -> Findings:
    """The layer of the largest distance, against its null, and the last layer's cosine."""
    far, near = (result.metric(metric) for metric in ("frechet", "cosine"))
    parts = []
    for member in result.members:
        rows = far[far["member"] == member]
        times = rows["value"] / rows["baseline"].where(rows["baseline"] > 0)
        last = near[near["member"] == member].sort_values("layer").iloc[-1]
        said = f"cosine {change(last, '.3f')} behind the last layer"
        if times.notna().any():
            at = rows.loc[times.idxmax()]
            told = f"most in layer {at['layer']} ({times.max():.2g} times the null)"
            said = f"{told}, {said}"
        parts.append(f"{member}: {said} (n = {int(last['n'])} prompts)")
    return "The hidden states moved, by the Fréchet distance", parts
