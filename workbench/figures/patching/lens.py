"""Which answer do both models hold at every layer? Answers read from the residual stream."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.lens"
HEADING = "The answer at every layer"
BASE = style.Look(style.GREY, "", "base")
CHANGE = "tuned - base"
ITSELF = "base against itself"


@style.styled
def lens_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Log-probability of the answer read from every layer, base and tuned, a panel per model; in
    the last one KL(tuned || base) of every model. Bands: 95% intervals over prompts."""
    members = result.members
    rows, columns = style.grid_shape(len(members) + 1, 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns < 3 else style.WIDE,
        height=1.5 * rows + 0.6,
        share=(True, False),
    )
    looks = style.looks(result)
    table = result.metric("log_probability")
    places = axes.flat[: len(members)]
    for here, member in zip(places, members, strict=True):
        own = table[table["member"] == member].sort_values("layer")
        for side, look in (("tuned", looks[member]), ("base", BASE)):
            rows_of = own[own["side"] == side]
            marks.curve(here, rows_of["layer"].to_numpy(float), rows_of, look, layers=True)
        here.lines[-1].set(linestyle=style.DASHES[0], zorder=5)  # the base, where both agree
        here.sharey(axes.flat[0])
        style.name(here, looks[member])
    last = axes.flat[len(members)]
    table = result.metric("kl")
    for member, look in looks.items():
        own = table[(table["member"] == member) & (table["side"] == CHANGE)].sort_values("layer")
        marks.curve(last, own["layer"].to_numpy(float), own, look, layers=True)
    last.axhline(0, color=style.GREY, ls=style.DASHES[1], lw=1, label=ITSELF, zorder=0)
    last.set_title("KL(tuned ‖ base)", loc="left")
    last.set_ylabel("KL (nats)")
    style.first_column(axes, "log-probability\nof the answer (nats)")
    if last in axes[:, 0]:
        last.set_ylabel("KL (nats)")
    for here in axes.flat[: len(members) + 1]:
        marks.layer_ticks(here, table["layer"].dropna().unique(), named=marks.layer_name)
    for here in axes[-1]:
        here.set_xlabel("layer")
    style.blank(axes, len(members) + 1)
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "layers",
        "The answer at every layer",
        lens_by_layer,
        "The curves show the log-probability of the answer's first token when the residual stream "
        "after every layer is read through the model's own final norm and head, with the tuned "
        "model in colour and the base dashed. Bands are 95% intervals over prompts, and emb is the "
        "embedding. The last panel shows KL(tuned || base), with the base against itself dotted.",
        "Early streams need not be readable by the head, so a low value there does not mean that "
        "the answer is not yet known. A changed head or final norm moves every layer: the table "
        "then also contains the tuned stream read through the base's head.",
    ),
)


def sentence(result: Result) -> Findings:
    """The first layer whose stream already reads the answer best, per side."""
    own = result.metric("score")
    parts = []
    for member in result.members:
        said = []
        for side in ("base", "tuned"):
            rows = own[(own["member"] == member) & (own["side"] == side)].sort_values("layer")
            last = rows.iloc[-1]
            half = rows[rows["value"] >= last["value"] / 2].iloc[0]
            said.append(
                f"{side} {change(last, '.2f')} at the end, half of it from layer {half['layer']}"
            )
        parts.append(f"{member}: {', '.join(said)}")
    return f"The answers are read from the residual stream ({int(own['n'].max())} prompts)", parts
