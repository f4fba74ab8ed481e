"""How many edges make a side's circuit, does one side's serve the other, and what changed?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.edge_circuits"
HEADING = "Circuits of edges, and which edges changed"
WHOSE = {"tuned": "its own", "base": "the base's"}
KINDS = {"edge_change": ("edges", "o"), "node_change": ("heads and MLPs", "s")}


@style.styled
def faithfulness(result: Result, ax: Axes | None = None) -> Figure:
    """Faithfulness of the base's and of the fine-tuned model's circuit in the fine-tuned model over
    the share of edges, a panel per model; broken: random edges, and the model without the edges of
    its own circuit. 1: as the whole model."""
    members = result.members
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns), width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.1 * rows + 0.6, share=(True, True),
    )  # fmt: skip
    table, looks = result.metric("faithfulness"), style.looks(result)
    table = table[table["side"] == "tuned"].sort_values("x")
    for here, member in zip(axes.flat, members, strict=False):
        own = table[table["member"] == member]
        here.set_xscale("log")
        for number, circuit in enumerate(("tuned", "base")):
            drawn = own[(own["circuit"] == circuit) & (own["arm"] == "patch")]
            colour = looks[member].colour if circuit == "tuned" else style.BLACK
            marks.intervals(here, drawn["x"], drawn["low"], drawn["high"], colour,
                            value=drawn["value"], place=(number, 2))  # fmt: skip
            here.plot(drawn["x"], drawn["value"], marker="os"[number], ms=3, color=colour,
                      label=f"{WHOSE[circuit]} circuit")  # fmt: skip
        for arm, circuit, dashes, label in (
            ("random", None, style.DASHES[0], "random edges"),
            ("without", "tuned", style.DASHES[1], "all but its own circuit"),
        ):
            drawn = own[own["arm"] == arm]
            drawn = drawn if circuit is None else drawn[drawn["circuit"] == circuit]
            marks.control(here, drawn["x"], drawn["value"], dashes, label)
        here.axhline(1, color=style.GREY, lw=0.6, zorder=0)
        style.name(here, looks[member])
    for here in axes[-1]:
        here.set_xlabel("share of all edges (log scale)")
    style.first_column(axes, "faithfulness in the\nfine-tuned model")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table.loc[table["arm"] == "patch", "n"], "prompts", outside=ax is None)
    return figure


@style.styled
def changed(result: Result, ax: Axes | None = None) -> Figure:
    """The share of the base circuit's edges, and of its nodes, that the fine-tuned model's circuit
    of equal size has not, a panel per model; broken: with the two sides exchanged at random."""
    members = result.members
    rows, columns = style.grid_shape(len(members), 3)
    figure, axes = style.panels(
        *(ax, rows, columns), width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.1 * rows + 0.6, share=(True, True),
    )  # fmt: skip
    looks = style.looks(result)
    for here, member in zip(axes.flat, members, strict=False):
        here.set_xscale("log")
        for number, (metric, (label, marker)) in enumerate(KINDS.items()):
            own = result.metric(metric)
            own = own[own["member"] == member].sort_values("x")
            drawn = own[own["arm"] == "patch"]
            colour = looks[member].colour if number == 0 else style.BLACK
            marks.intervals(here, drawn["x"], drawn["low"], drawn["high"], colour,
                            value=drawn["value"], place=(number, 2))  # fmt: skip
            here.plot(drawn["x"], drawn["value"], marker=marker, ms=3, color=colour, label=label)
            null = own[own["arm"] == "null"]
            marks.control(here, null["x"], null["value"], style.DASHES[number],
                          f"{label}, sides exchanged", marker=marker)  # fmt: skip
        here.set_ylim(-0.05, 1.05)
        style.name(here, looks[member])
    for here in axes[-1]:
        here.set_xlabel("share of all edges (log scale)")
    style.first_column(axes, "share of the base's circuit\nthat changed")
    style.blank(axes, len(members))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, result.metric("edge_change")["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "curve",
        "How many edges are enough?",
        faithfulness,
        "The curves show how much of the fine-tuned model's answer is left if only a circuit's "
        "edges read the prompt and all other edges read its corrupt partner: with the strongest "
        "edges of the fine-tuned model itself, and with those of the base. The broken curves show "
        "random edges, and the model without its own circuit's edges. At 1 the circuit is as good "
        "as the whole model. Edges were chosen on other prompts.",
        "A circuit of most edges is faithful whatever it holds: compare with the random one. Above "
        "1 the edges that are left out work against the answer.",
        applies=has("faithfulness"),
    ),
    Drawing(
        KEY,
        "changed",
        "Did edges change more than nodes?",
        changed,
        "The curves show the share of the base circuit's edges, and of the heads and MLPs that "
        "they join, that is not in the fine-tuned model's circuit of as many edges. The broken "
        "curves show the same where the two models' scores are exchanged on a random half of the "
        "prompts: what chance alone would change. Bars are 95% intervals of a bootstrap over "
        "prompts.",
        "Edges near the cut have almost equal scores and change by chance, which the broken curves "
        "show. A circuit of few edges has few nodes, so that one change is a large share.",
        applies=has("edge_change"),
    ),
)


def sentence(result: Result) -> Findings:
    """The area under each curve, and what changed in the size nearest to 5% of the edges."""
    areas = result.table[(result.table["metric"] == "cpr") & (result.table["arm"] == "patch")]
    parts = []
    for member in result.members:
        own = areas[(areas["member"] == member) & (areas["side"] == "tuned")]
        said = [
            f"{WHOSE[row['circuit']]} circuit has a CPR of {change(row, '.2f')}"
            for _, row in own.iterrows()
        ]
        for metric, (label, _) in KINDS.items():
            rows = result.metric(metric)
            rows = rows[(rows["member"] == member) & (rows["arm"] == "patch")]
            row = rows.loc[(rows["x"] - 0.05).abs().idxmin()]
            said.append(
                f"{label} changed at {row['x']:.1%} of the edges {change(row, '.2f')} (sides "
                f"exchanged {row['baseline']:.2f})"
            )
        parts.append(f"{member}: {', '.join(said)}")
    shares = result.table[(result.table["metric"] == "faithfulness")]
    prompts = int(shares["n"].max())
    return f"In the fine-tuned model, on {prompts} prompts with 95% intervals", parts
