"""Does a direction do what fine-tuning did? Added to the base, taken out of the tuned model."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.steer"
HEADING = "Steering"
METRIC = "log_probability"
LABEL = "log-probability\nof the answer (nats)"


@style.styled
def steered_by_scale(result: Result, ax: Axes | None = None) -> Figure:
    """The answer's log-probability against the scale, behind the best layer, a panel per model;
    random directions, base and tuned model dashed."""
    members = result.members
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns < 3 else style.WIDE,
        height=1.7 * rows + 0.6,
        share=(True, True),
    )
    table, looks = result.metric(METRIC), style.looks(result)
    for here, member in zip(axes.flat, members, strict=False):
        own = table[table["member"] == member]
        layer = own.loc[own["arm"] == "best", "layer"].iloc[0]
        behind = own[own["layer"] == layer].sort_values("x")
        told = {arm: behind[behind["arm"] == arm] for arm in ("steered", "random")}
        x = told["steered"]["x"].to_numpy(float)
        marks.curve(here, x, told["steered"], looks[member])
        random = told["random"]
        marks.intervals(here, x, random["low"], random["high"], style.GREY, place=(1, 2))
        marks.control(here, x, random["value"], style.DASHES[0], "random directions")
        more = own[own["arm"] == "amplified"].sort_values("x")
        if len(more):
            at = more["x"].to_numpy(float)
            marks.intervals(here, at, more["low"], more["high"], style.BLACK)
            here.plot(at, more["value"], color=style.BLACK, ls=style.DASHES[2], marker="s", ms=3,
                      label="weights' whole change")  # fmt: skip
        for arm, dashes in (("tuned", "-"), ("base", style.DASHES[1])):
            level = own.loc[own["arm"] == arm, "value"].iloc[0]
            here.axhline(level, color=style.GREY, ls=dashes, lw=1, label=f"{arm} model", zorder=0)
        style.name(here, looks[member], f" (layer {layer})")
    for here in axes[-1]:
        here.set_xlabel("scale")
    style.first_column(axes, LABEL)
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


@style.styled
def steered_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Behind every layer: the base with the direction at the best scale, and the tuned model
    without it, each with random directions of equal norm, dashed."""
    figure, axes = style.panels(ax, 1, 2, width=style.WIDE * 0.8, height=2.4)
    table, looks = result.metric(METRIC), style.looks(result)
    pairs = (("steered", "random", "base, direction added"),
             ("ablated", "ablated random", "tuned model, direction taken out"))  # fmt: skip
    for here, (arm, control, title) in zip(axes.flat, pairs, strict=True):
        for number, (member, look) in enumerate(looks.items()):
            own = table[table["member"] == member]
            scale = own.loc[own["arm"] == "best", "x"].iloc[0]
            at = own if arm == "ablated" else own[own["x"] == scale]
            told = at[at["arm"] == arm].sort_values("layer")
            null = at[at["arm"] == control].sort_values("layer")
            x = told["layer"].to_numpy(float)
            marks.curve(here, x, told, look, layers=True)
            label = None if number else "random directions"
            marks.control(here, x, null["value"], style.DASHES[0], label)
        marks.layer_ticks(here, table["layer"].dropna().unique())
        here.set_title(title, loc="left")
        here.set(xlabel="layer", ylabel=LABEL if here is axes.flat[0] else "")
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "scale",
        "The base steered by what fine-tuning added",
        steered_by_scale,
        "The curve shows the log-probability of the answer when the direction behind one layer, "
        "times the scale, is added to the base's stream at every token. Layer and scale were "
        "chosen on one half of the prompts, the numbers are of the other half. Random directions "
        "of the same norm are dashed, and lines mark the base and the tuned model. Where it was "
        "asked for, the dash-dotted curve is the base with the scale times the change of all its "
        "weights. Bars are 95% intervals over prompts.",
        "A direction whose norm is large beside the stream's breaks any model, so read the curve "
        "beside the random directions. A mean direction says nothing of a change that differs from "
        "prompt to prompt.",
        applies=has(METRIC),
    ),
    Drawing(
        KEY,
        "layers",
        "The direction behind every layer",
        steered_by_layer,
        "On the left the direction of each layer is added to the base at the best scale, on the "
        "right it is taken out of the tuned model's stream behind that layer alone. Random "
        "directions of the same norm are dashed. Bands are 95% intervals over prompts.",
        "A direction can steer without being what the tuned model uses, and taking it out behind "
        "one layer leaves later layers free to write it again.",
        applies=has(METRIC),
    ),
)


def sentence(result: Result) -> Findings:
    """The best layer and scale, with its gain over random directions."""
    parts = []
    table, gains = result.metric(METRIC), result.metric(f"beyond_random:{METRIC}")
    for member in result.members:
        own = table[table["member"] == member]
        best = own[own["arm"] == "best"].iloc[0]
        gain = gains[gains["member"] == member].iloc[0]
        tuned = own[own["arm"] == "tuned"].iloc[0]
        parts.append(
            f"{member}: {change(best, '.2f')} with {best['x']:g} times the direction behind layer "
            f"{best['layer']} (base {best['baseline']:.2f}, tuned {tuned['value']:.2f} nats), "
            f"{change(gain, '.2f')} more than with random directions (n = {int(best['n'])} prompts)"
        )
    return "Steering the base, the answer's log-probability is", parts
