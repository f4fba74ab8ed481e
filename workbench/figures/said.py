"""What does the tuned model say now? Tokens in their landscape and in their text, new words, texts
side by side, emulated fine-tuning, and answers after steps that were tampered with."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures import scores, style
from workbench.figures.scores import BLACK
from workbench.figures.similarity import matrices
from workbench.results.result import Result

TOKENS, GENERATE = "behaviour.tokens", "behaviour.generate"
EMULATE, FAITHFULNESS = "behaviour.emulate", "behaviour.faithfulness"
CELLS = 14  # per side of the landscape
FEW = 3  # tokens of a cell that is drawn
WORDS = 10
SIZES = (1, 10, 100)
ARMS = {"tuned": ("tuned model's own samples", "#E69F00"), "contrast": ("contrast", "#0072B2"),
        "iterative": ("iterative contrast", "#009E73")}  # fmt: skip
LINE = 92  # characters of a line of text
WAYS = {"truncated": "-", "filler": style.DASHES[0], "paraphrased": style.DASHES[1],
        "mistaken": style.DASHES[2]}  # fmt: skip


@style.styled
def token_landscape(result: Result, ax: Axes | None = None) -> Figure:
    """Mean change of log p over the plane of the base's probability (logarithmic) and entropy; a
    panel per member, dots as large as they hold tokens. Box: confident conflicts."""
    figure, axes, panels = scores.by_member(result, ax, 2.1, share=(True, True))
    low = result.provenance.parameters
    own = matrices(result)
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
        here.add_patch(Rectangle((left, bottom), *size, fill=False, ec=BLACK, lw=0.9))
        rows = result.metric("conflict_share").set_index("member").loc[member]
        told = f"{rows['value']:.1%} (chance {rows['baseline']:.1%})"
        here.annotate(told, (left, low["low_entropy"]), (2, 2), textcoords="offset points",
                      fontsize=6)  # fmt: skip
        here.set_title(look.label, loc="left", color=look.colour)
        here.margins(0.06)
    for count in SIZES:
        axes[0, 0].scatter([], [], s=_size(count), c="white", edgecolors=style.GREY,
                           linewidths=0.6, label=f"{count} token{'s' * (count > 1)}")  # fmt: skip
    style.first_column(axes, "entropy of the base (nats)")
    for here in axes[-1]:
        here.set_xlabel("probability of the token in the base")
    style.blank(axes, len(result.members))
    style.colour_bar(image, list(axes.flat), "log p, tuned − base (nats)")
    style.legend(axes, outside=ax is None)
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
    """The words of one text on the colour of their change of log p, a block per member."""
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
                          color="white" if bright < 0.45 else BLACK)  # fmt: skip
                at += len(word)
        here.set_xlim(0, LINE)
        here.set_ylim(longest - 0.5, -0.5)
        here.set_axis_off()
        here.set_title(look.label, loc="left", color=look.colour)
    style.colour_bar(image, list(axes.flat), "log p, tuned − base (nats)")
    return figure


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


@style.styled
def new_words(result: Result, ax: Axes | None = None) -> Figure:
    """The words that the contrast uses most beyond the base's samples, with their z in the other
    arms; a panel per member. Dashed: what chance reaches."""
    looks = style.looks(result)
    table = result.metric("word")
    first = "contrast" if (table["arm"] == "contrast").any() else str(table["arm"].iloc[0])
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.0 * rows + 0.5,
        share=(True, False),
    )
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = table[table["member"] == member]
        named = own[own["arm"] == first].sort_values("x").head(WORDS)
        places = np.arange(len(named))
        here.barh(places, named["value"], 0.7, color=ARMS[first][1], label=ARMS[first][0])
        for arm, mark in (("tuned", "o"), ("iterative", "^")):
            if arm != first and (own["arm"] == arm).any():
                z = own[own["arm"] == arm].set_index("word")["value"].reindex(named["word"])
                here.plot(z.to_numpy(), places, ls="", marker=mark, ms=4, mec="white", mew=0.5,
                          color=ARMS[arm][1], label=ARMS[arm][0])  # fmt: skip
        here.axvline(named["baseline"].iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1,
                     label="chance (largest of all words)")  # fmt: skip
        here.set_yticks(places, [style.text(str(word), 14) for word in named["word"]])
        here.set_ylim(WORDS - 0.4, -0.6)
        here.set_title(look.label, loc="left", color=look.colour)
    for here in axes[-1]:
        here.set_xlabel("z against the base's texts")
    style.first_column(axes, "word")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def side_by_side(result: Result, ax: Axes | None = None, *, texts: int = 2) -> Figure:
    """The first texts of every arm, as they were written, a block per member."""
    looks = style.looks(result)
    table = result.metric("text")
    arms = list(dict.fromkeys(table["arm"]))
    blocks: list[list[tuple[str, str]]] = []
    for member in looks:
        own = table[table["member"] == member]
        blocks.append([
            (arm if i == 0 else "", _wrapped(row))
            for arm in arms
            for i, row in enumerate(own[own["arm"] == arm].head(texts).to_dict("records"))
        ])  # fmt: skip
    heights = [sum(said.count("\n") + 1.5 for _, said in block) for block in blocks]
    figure, axes = style.panels(
        *(ax, len(looks), 1), width=style.WIDE, height=0.125 * sum(heights) + 0.3 * len(looks)
    )
    for here, block, look in zip(axes[:, 0], blocks, looks.values(), strict=True):
        at = 0.0
        for arm, said in block:
            here.text(0, at, arm, va="top", fontsize=6, color=style.GREY)
            here.text(0.1, at, said, va="top", fontsize=6)
            at += said.count("\n") + 1.5
        here.set_xlim(0, 1)
        here.set_ylim(max(heights), 0)
        here.set_axis_off()
        here.set_title(look.label, loc="left", color=look.colour)
    return figure


def _wrapped(row: dict) -> str:
    said = "".join(c if c.isprintable() else " " for c in f"{row['prompt']}{row['text']}")
    lines = textwrap.wrap(said, 135)[:3] or ["(nothing)"]
    return "\n".join(lines).replace("$", r"\$")


@style.styled
def emulation(result: Result, ax: Axes | None = None) -> Figure:
    """Score of the large model with beta times the small pair's change, and the models it is made
    of as lines; a panel per member."""
    figure, axes, panels = scores.by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        line = own[own["arm"] == "emulated"].sort_values("x")
        here.plot(line["x"], line["value"], color=look.colour, marker=look.marker, ms=3,
                  label="emulated")  # fmt: skip
        scores.band(here, line, look.colour)
        for arm, dashes in zip(("large", "tuned", "base", "large, tuned"),
                               ("-", *style.DASHES), strict=True):  # fmt: skip
            end = own[own["arm"] == arm]
            if len(end):
                name = arm if arm.startswith("large") else f"small {arm}"
                here.axhline(end["value"].iloc[0], color=style.GREY, ls=dashes, lw=0.9, label=name)
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    style.first_column(axes, f"score\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("β, weight of the change")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def answers_by_steps(result: Result, ax: Axes | None = None) -> Figure:
    """Share of answers that stay the same over the share of steps left as they were; a panel per
    member. Black: the base after truncation; dotted: chance."""
    figure, axes, panels = scores.by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("same_answer")
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        base = own[(own["side"] == "base") & (own["arm"] == "truncated")]
        here.plot(base["x"], base["value"], color=BLACK, lw=1.1, label="base, truncated")
        scores.band(here, base, BLACK)
        tuned = own[own["side"] == "tuned"]
        for arm, dashes in WAYS.items():
            line = tuned[tuned["arm"] == arm]
            if len(line):
                here.plot(line["x"], line["value"], color=look.colour, ls=dashes, marker="o",
                          ms=2.5, label=f"tuned, {arm}")  # fmt: skip
                scores.band(here, line, look.colour)
        here.axhline(tuned["baseline"].iloc[0], color=style.GREY, ls=":", lw=1, label="chance")
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    style.first_column(axes, f"same answer\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("share of steps left as they were")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure
