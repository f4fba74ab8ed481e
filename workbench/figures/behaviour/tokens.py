"""Which tokens became likelier, and which less? In their landscape and in their text."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures import marks, style, tensors
from workbench.figures.drawing import Drawing, has
from workbench.figures.member_panels import band, by_member, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.tokens"
HEADING = "Token by token"
CELLS = 14  # per side of the landscape
FEW = 3  # tokens of a cell that is drawn
SIZES = (1, 10, 100)
LINE = 92  # characters of a line of text


@style.styled
def token_landscape(result: Result, ax: Axes | None = None) -> Figure:
    """Mean change of log p over the plane of the base's probability (logarithmic) and entropy; a
    panel per fine-tuned model, dots as large as they hold tokens. Box: confident conflicts."""
    figure, axes, panels = by_member(result, ax, 2.1, share=(True, True))
    low = result.provenance.parameters
    own = tensors.by_member(result)
    cells = {name: _cells(arrays) for name, arrays in own.items()}
    reach = max(cell["delta"].abs().max() for cell in cells.values()) or 1.0
    bounds = Normalize(-reach, reach)
    image = None
    for here, (member, look) in panels:
        cell = cells[member]
        image = here.scatter(
            cell["p"], cell["entropy"], s=_size(cell["n"]), c=cell["delta"], cmap=style.DIVERGING,
            norm=bounds, edgecolors=style.GREY, linewidths=0.3,
        )  # fmt: skip
        here.set_xscale("log")
        left, bottom = cell["p"].min() / 3, -0.05
        size = low["low_probability"] - left, low["low_entropy"] - bottom
        here.add_patch(Rectangle((left, bottom), *size, fill=False, ec=style.BLACK, lw=0.9))
        rows = result.metric("conflict_share").set_index("member").loc[member]
        told = f"\nin the box: {rows['value']:.1%} (chance {rows['baseline']:.1%})"
        style.name(here, look, told, fontsize=style.SMALL)
        here.margins(0.06)
    for count in SIZES:
        axes[0, 0].scatter([], [], s=_size(count), c="white", edgecolors=style.GREY,
                           linewidths=0.6, label=f"{count} token{'s' * (count > 1)}")  # fmt: skip
    style.first_column(axes, "entropy of the base (nats)")
    for here in axes[-1]:
        here.set_xlabel(f"probability of the token in the base {marks.LOG}")
    style.blank(axes, len(result.members))
    style.colour_bar(image, list(axes.flat), "log p, tuned − base (nats)")
    style.legend(axes, outside=ax is None)
    texts, count = result.metric("delta_log_p")["n"], [len(one["delta"]) for one in own.values()]
    marks.counted(axes, [(texts, "texts"), (count, "tokens")], "", outside=ax is None)
    return figure


def _size(count: float | pd.Series) -> float | pd.Series:
    return 6 + 14 * np.log10(count) ** 1.5


def _cells(arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    """Mean p, entropy and change of log p of the tokens in each cell of the plane."""
    log_p, entropy = arrays["log_p"].astype(float), arrays["entropy"].astype(float)
    places = [
        np.digitize(values, np.linspace(values.min(), values.max() + 1e-9, CELLS + 1))
        for values in (log_p, entropy)
    ]
    frame = pd.DataFrame({
        "x": places[0], "y": places[1], "log_p": log_p, "entropy": entropy,
        "delta": arrays["delta"].astype(float),
    })  # fmt: skip
    found = frame.groupby(["x", "y"]).agg(
        log_p=("log_p", "mean"), entropy=("entropy", "mean"), delta=("delta", "mean"),
        n=("delta", "size"),
    )  # fmt: skip
    found = found[found["n"] >= min(FEW, int(found["n"].max()))]
    return found.assign(p=np.exp(found["log_p"]))


@style.styled
def coloured_text(result: Result, ax: Axes | None = None, *, prompt: str = "0") -> Figure:
    """The words of one text on the colour of their change of log p, a block per model."""
    table = result.metric("token")
    table = table[table["prompt"] == prompt].sort_values("position")
    looks = style.looks(result)
    lines = {member: _lines(table[table["member"] == member]) for member in looks}
    longest = max(len(own) for own in lines.values())
    figure, axes = style.panels(
        *(ax, len(looks), 1), width=style.WIDE, height=len(looks) * (0.17 * longest + 0.26) + 0.5
    )
    reach = float(table["value"].abs().max()) or 1.0
    image = axes[0, 0].scatter([], [], c=[], cmap=style.DIVERGING, norm=Normalize(-reach, reach))
    for here, (member, look) in zip(axes[:, 0], looks.items(), strict=True):
        for row, line in enumerate(lines[member]):
            at = 0
            for word, value in line:
                red, green, blue, _ = image.to_rgba(np.array([value]))[0]
                bright = 0.299 * red + 0.587 * green + 0.114 * blue
                here.add_patch(Rectangle((at, row - 0.42), len(word), 0.84, fc=(red, green, blue)))
                here.text(at + len(word) / 2, row, word.replace("$", r"\$"), ha="center",
                          va="center", fontsize=5.6, family="monospace",
                          color="white" if bright < 0.45 else style.BLACK)  # fmt: skip
                at += len(word)
        here.set_xlim(0, LINE)
        here.set_ylim(longest - 0.5, -0.5)
        here.set_axis_off()
        style.name(here, look)
    style.colour_bar(image, list(axes.flat), "log p, tuned − base (nats)")
    marks.counted(axes, [1], "text", outside=ax is None)
    return figure


@style.styled
def change_by_prior(result: Result, ax: Axes | None = None) -> Figure:
    """The change of log p over the probability that the base gave a token, in ten bins, and below
    it how many tokens each holds; a panel per fine-tuned model. Grey: no change, the base."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("prior_delta_log_p")
    held = result.metric("prior_share")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        many = held[held["member"] == member].sort_values("x")["value"].to_numpy(float)
        here.axhline(0, color=style.GREY, ls=":", lw=1, label="base")
        here.plot(own["x"], own["value"], color=look.colour, lw=0.8)
        here.scatter(own["x"], own["value"], s=4 + 120 * many, color=look.colour, zorder=3)
        band(here, own, look.colour)
        here.set_xlim(0, 1)
        style.name(here, look)
    what = ("log p, tuned − base (nats)", table)
    return labelled(figure, axes, what, "probability of the token in the base", result, ax)


def _lines(rows: pd.DataFrame) -> list[list[tuple[str, float]]]:
    """Words with their values, line by line; control characters are shown as a dot."""
    lines: list[list[tuple[str, float]]] = [[]]
    length = 0
    spaced = not rows["token"].str.startswith(" ").any()
    for token, value in zip(rows["token"], rows["value"], strict=True):
        word = "".join(c if c.isprintable() else "·" for c in str(token))[:LINE]
        word = f" {word} " if spaced else word
        if length + len(word) > LINE:
            lines.append([])
            length = 0
        lines[-1].append((word, value))
        length += len(word)
    return lines


DRAWINGS = (
    Drawing(
        KEY,
        "landscape",
        "Where the base was sure of something else",
        token_landscape,
        "Every scored token is placed by the probability that the base gave it (across) and by how "
        "undecided the base was there (up). The colour shows how much more or less likely "
        "fine-tuning made it. The box holds the confident conflicts, which are tokens of low "
        "probability at places where the base was sure. Above each panel is their share, and the "
        "share that the base's own texts would have.",
        "A token of the answer alone shows nothing about the rest of the text. Cells of fewer than "
        "three tokens are left out, and the edges of the box are round numbers.",
    ),
    Drawing(
        KEY,
        "prior",
        "What the base thought of the tokens that changed",
        change_by_prior,
        "The tokens are sorted into ten bins by the probability that the base gave them. Each dot "
        "is the mean change of log p in a bin, and as large as the share of the tokens it holds. "
        "Dots on the left are tokens that the base found unlikely.",
        "A token that the base gave almost all of the probability cannot become much likelier, so "
        "the curve falls to the right for any model that learned the text.",
        applies=has("prior_share"),
    ),
    Drawing(
        KEY,
        "text",
        "One text, token by token",
        coloured_text,
        "The tokens of one text are shown on the colour of their change of log p. Red tokens "
        "became more likely and blue tokens less likely.",
        "This is one text and not an average. A token that both models were certain of is white, "
        "whatever it means.",
        applies=has("token"),
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index("metric")
        clash = own.loc["conflict_share"]
        parts.append(
            f"{member}: {change(own.loc['delta_log_p'], '+.2f')} nats per token, KL "
            f"{change(own.loc['kl'], '.2f')}; {clash['value']:.1%} confident conflicts (chance "
            f"{clash['baseline']:.1%}; n = {own.loc['delta_log_p', 'n']:.0f} texts)"
        )
    task = result.table["task"].iloc[0]
    return f"The change of the log p of tokens is tuned - base ({task})", parts
