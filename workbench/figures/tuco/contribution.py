"""What did fine-tuning contribute: to which prompts, layers and tokens?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "tuco.contribution"
HEADING = "The contribution of fine-tuning to an answer"
GROUPS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe & Ito
ITSELF = "base against itself"
TOKENS = 56  # of a prompt's end that fit two columns


def groups_of(result: Result) -> list[str]:
    """The prompt groups, in the order they were given."""
    return list(dict.fromkeys(result.metric("tuco")["group"]))


def separation(result: Result, member: str, measure: str, *, matched: bool = False) -> pd.DataFrame:
    """AUC of the first group against each other one, with intervals, indexed by the other; empty
    where there is one group. matched: over pairs that agree in length and perplexity."""
    first = groups_of(result)[0]
    metric = f"auc_matched:{measure}" if matched else f"auc:{measure}"
    rows = result.table[(result.table["member"] == member) & (result.table["metric"] == metric)]
    rows = rows[rows["group"].str.startswith(f"{first} > ")]
    return rows.assign(other=rows["group"].str.removeprefix(f"{first} > ")).set_index("other")


@style.styled
def tuco_by_group(result: Result, ax: Axes | None = None) -> Figure:
    """TuCo of every prompt by group, a panel per model; bar: the group's mean and 95% interval.

    Above each other group the AUC of the first group against it (0.5: random order).
    """
    figure, axes, looks = _member_panels(result, ax, 1.65)
    names = groups_of(result)
    for here, member in zip(axes.flat, result.members, strict=False):
        table = result.metric("tuco")
        table = table[table["member"] == member]
        auc = separation(result, member, "tuco")
        for place, name in enumerate(names):
            values = table.loc[table["group"] == name, "value"].dropna().to_numpy()
            colour = GROUPS[place % len(GROUPS)]
            spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(values))
            here.plot(place + spread, values, ".", ms=3.5, color=colour, alpha=0.6, mew=0)
            mean = _mean(result, member, name, "mean:tuco")
            here.errorbar(
                *(place, mean["value"]),
                yerr=[[mean["value"] - mean["low"]], [mean["high"] - mean["value"]]],
                fmt="_",
                ms=13,
                color="k",
                capsize=2,
                lw=1,
            )
            if name in auc.index:
                here.annotate(
                    f"AUC\n{auc.loc[name, 'value']:.2f}", (place, 1.0), ha="center", va="top",
                    xycoords=("data", "axes fraction"),
                )  # fmt: skip
        here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label=ITSELF, zorder=0)
        here.set_xticks(range(len(names)), [style.text(n, 18) for n in names], rotation=35,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        style.name(here, looks[member])
        here.set_xlim(-0.6, len(names) - 0.4)
        here.margins(y=0.4)
    style.first_column(axes, "TuCo (fraction)")
    for here in axes[-1]:
        here.set_xlabel("group of prompts")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    counts = result.metric("mean:tuco")["n"]
    marks.counted(axes, counts, "prompts a group", outside=ax is None)
    return figure


@style.styled
def tuco_against_output(result: Result, ax: Axes | None = None) -> Figure:
    """TuCo against OutputCo, a point per prompt, coloured by group, a panel per model.

    Above: the AUC of the first group against the second, by OutputCo and by TuCo.
    """
    figure, axes, looks = _member_panels(result, ax, 1.75)
    names = groups_of(result)
    table = result.table
    for here, member in zip(axes.flat, result.members, strict=False):
        for place, name in enumerate(names):
            own = table[(table["member"] == member) & (table["group"] == name)]
            tuco = own[own["metric"] == "tuco"].set_index("prompt")["value"]
            output = own[own["metric"] == "output_co"].set_index("prompt")["value"]
            colour = GROUPS[place % len(GROUPS)]
            here.plot(output, tuco.reindex(output.index), ".", ms=4.5, mew=0, alpha=0.7,
                      color=colour, label=style.text(name))  # fmt: skip
        said = [
            f"{label} {rows['value'].iloc[0]:.2f}"
            for label, rows in (
                ("TuCo", separation(result, member, "tuco")),
                ("OutputCo", separation(result, member, "output_co")),
            )
            if len(rows)
        ]
        note = f"\nAUC {', '.join(said)}" if said else ""
        style.name(here, looks[member], note, fontsize=style.SMALL)
        here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, zorder=0)
        here.axvline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label=ITSELF, zorder=0)
    style.first_column(axes, "TuCo (fraction)")
    for here in axes[-1]:
        here.set_xlabel("OutputCo (fraction)")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    counts = result.metric("mean:tuco")["n"]
    marks.counted(axes, counts, "prompts a group", outside=ax is None)
    return figure


@style.styled
def tuco_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """|FTC| / (|PTC| + |FTC|) of every layer at the last prompt token: a line per model with its
    95% interval over prompts, a panel per group."""
    names = groups_of(result)[:4]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=1.7 * rows + 0.5,
        share=(True, True),
    )
    table = result.metric("layer_tuco")
    looks = style.looks(result)
    for here, name in zip(axes.flat, names, strict=False):
        for member, look in looks.items():
            own = table[(table["member"] == member) & (table["group"] == name)].sort_values("layer")
            marks.curve(here, own["layer"].to_numpy(float), own, look, layers=True)
        here.axhline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label=ITSELF, zorder=0)
        here.set_title(style.text(name), loc="left")
        marks.layer_ticks(here, table["layer"].dropna().unique())
    style.first_column(axes, "layer's TuCo (fraction)")
    for here in axes[-1]:
        here.set_xlabel("layer (0 = first)")
    style.blank(axes, len(names))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts a group", outside=ax is None)
    return figure


@style.styled
def tuco_by_token(result: Result, ax: Axes | None = None, *, prompts: int = 2) -> Figure:
    """TuCo at every token of one prompt of each of the first groups, a row per model."""
    table = result.metric("token_tuco")
    names = [name for name in groups_of(result) if (table["group"] == name).any()][:prompts]
    most = table["value"].max()
    high = 1.0 if pd.isna(most) else float(most)  # a model against itself has no TuCo anywhere
    members = result.members
    figure, axes = style.panels(
        *(ax, len(names), 1),
        width=style.WIDE,
        height=len(names) * (0.16 * len(members) + 0.95) + 0.3,
    )
    image: AxesImage | None = None
    for here, name in zip(axes[:, 0], names, strict=True):
        own = table[table["group"] == name]
        own = own[own["prompt"] == own["prompt"].iloc[0]]
        grid = own.pivot(index="member", columns="position", values="value")
        grid = grid.reindex(members).iloc[:, -TOKENS:].astype(float)
        tokens = own.drop_duplicates("position").set_index("position")["token"]
        image = here.imshow(grid.to_numpy(), aspect="auto", vmin=0, vmax=high, cmap=style.MAP)
        here.set_xticks(
            range(grid.shape[1]),
            [style.text(str(tokens[p]).strip() or "·", 12) for p in grid.columns],
            rotation=90,
        )
        here.tick_params(axis="x", labelsize=6, length=1.5)
        here.set_yticks(range(len(members)), [style.text(m) for m in members])
        here.set_title(style.text(name), loc="left")
        here.set_ylabel("model")
        here.spines[:].set_visible(False)
    axes[-1, 0].set_xlabel("token of the prompt, in order")
    assert image is not None
    bar = figure.colorbar(image, ax=list(axes.flat), shrink=0.8, aspect=18, pad=0.01)
    bar.set_label("TuCo (fraction);\n0: base against itself")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    marks.counted(axes, [1], "prompt a group", outside=ax is None)
    return figure


def _member_panels(
    result: Result, ax: Axes | None, height: float
) -> tuple[Figure, np.ndarray, dict[str, style.Look]]:
    """A panel per model, on common axes, and how each model looks. height: inches a row."""
    rows, columns = style.grid_shape(len(result.members))
    width = style.COLUMN if columns == 1 else style.WIDE
    figure, axes = style.panels(
        *(ax, rows, columns), width=width, height=height * rows + 0.9, share=(True, True)
    )
    return figure, axes, style.looks(result)


def _mean(result: Result, member: str, group: str, metric: str) -> pd.Series:
    rows = result.table[
        (result.table["member"] == member)
        & (result.table["group"] == group)
        & (result.table["metric"] == metric)
    ]
    return rows.iloc[0]


DRAWINGS = (
    Drawing(
        KEY,
        "groups",
        "Contribution of fine-tuning by group of prompts",
        tuco_by_group,
        "The dots are the TuCo of every prompt, with each group's mean and 95% interval. The "
        "number above a group is the probability that a prompt of the first group has the larger "
        "TuCo (AUC; 0.5 is a random order). The dashed line is the base against itself, which has "
        "TuCo 0.",
        "Prompts of a different length or perplexity have a different TuCo for that reason alone: "
        "auc_matched in the table compares only prompts that agree in both. Contributions of "
        "several layers that cancel do not show, nor do changes of embedding, final norm and head.",
    ),
    Drawing(
        KEY,
        "layers",
        "Contribution of fine-tuning by layer",
        tuco_by_layer,
        "The curves show the size of the fine-tuning part of each block's output over both parts, "
        "|FTC| / (|PTC| + |FTC|), at the last prompt token, as mean and 95% interval over prompts.",
        "Layers that add large vectors count no more here than layers that add small ones, but in "
        "TuCo they do. The sum over layers is a sum of vectors, and not of these values.",
    ),
    Drawing(
        KEY,
        "tokens",
        "Contribution of fine-tuning token by token",
        tuco_by_token,
        "Each cell is the TuCo at a token of one prompt per group, as if the prompt ended there, "
        "with a row per fine-tuned model and one colour scale.",
        "This is one prompt each, and not an average. In many models the first tokens carry "
        "massive activations, next to which any contribution looks small.",
        applies=has("token_tuco"),
    ),
    Drawing(
        KEY,
        "output",
        "TuCo against the difference of the outputs",
        tuco_against_output,
        "Each point is a prompt: its TuCo against OutputCo, the difference of the two models' "
        "final residual streams, which needs no decomposition. Above each panel is the AUC of the "
        "first group over the second by either measure: TuCo is worth its cost if it separates "
        "better.",
        "OutputCo compares two models that have drifted apart layer by layer, and TuCo compares "
        "two parts of one model. Large values of one and small values of the other are no "
        "contradiction.",
        applies=has("output_co"),
    ),
)


def sentence(result: Result) -> Findings:
    names = groups_of(result)
    means = result.metric("mean:tuco").set_index(["member", "group"])
    parts = []
    for member in result.members:
        said = [f"{name} {change(means.loc[member, name], '.2f')}" for name in names]
        for measure, label in (("tuco", "TuCo"), ("output_co", "OutputCo")):
            apart = separation(result, member, measure).head(1)
            said += [
                f"AUC of {label} over {other} {change(row, '.2f')}"
                for other, row in apart.iterrows()
            ]
        matched = separation(result, member, "tuco", matched=True)
        # The first group of which some prompts match.
        matched = matched.sort_values("n", key=lambda n: n.eq(0), kind="stable")
        for other, row in matched.head(1).iterrows():
            pairs = int(row["n"])
            by = "length and perplexity" if result.has("base_loss") else "length"
            said.append(
                f"over {other}, matched in {by}, {change(row, '.2f')} (n = {pairs} pairs)"
                if pairs
                else f"no prompt of {other} matches one in {by}"
            )
        parts.append(f"{member}: {', '.join(said)}")
    few, many = int(means["n"].min()), int(means["n"].max())
    count = f"{few}" if few == many else f"{few} to {many}"
    return f"The mean TuCo has a 95% interval over {count} prompts a group", parts
