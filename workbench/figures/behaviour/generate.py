"""What does the tuned model write? Words that are new, and its texts next to the base's."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.generate"
HEADING = "What the fine-tuned model writes"
WORDS = 10
ARMS = {"tuned": ("tuned model's own samples", "#E69F00"), "contrast": ("contrast", "#0072B2"),
        "iterative": ("iterative contrast", "#009E73")}  # fmt: skip


@style.styled
def new_words(result: Result, ax: Axes | None = None) -> Figure:
    """The words that the contrast uses most beyond the base's samples, with their z in the other
    arms; a panel per fine-tuned model. Dashed: what chance reaches."""
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
        style.name(here, look)
    for here in axes[-1]:
        here.set_xlabel("z against the base's texts")
    style.first_column(axes, "word")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    texts = result.metric("novelty")["n"]
    marks.counted(axes, texts, "texts of each kind", outside=ax is None)
    return figure


@style.styled
def side_by_side(result: Result, ax: Axes | None = None, *, texts: int = 2) -> Figure:
    """The first texts of every arm, as they were written, a block per fine-tuned model. As it is an
    image of text, no report shows it: `Result.table` holds the texts as rows of metric text."""
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
        style.name(here, look)
    return figure


def _wrapped(row: dict) -> str:
    said = "".join(c if c.isprintable() else " " for c in f"{row['prompt']}{row['text']}")
    lines = textwrap.wrap(said, 135)[:3] or ["(nothing)"]
    return "\n".join(lines).replace("$", r"\$")


DRAWINGS = (
    Drawing(
        KEY,
        "words",
        "Words that are new",
        new_words,
        "The bars show the words that texts written by the contrast of the two models use more "
        "often than texts that the same procedure draws from the base alone. The marks show the "
        "same words in plain samples of the tuned model, compared with the base's samples, and in "
        "the iterative contrast. The dashed line is the largest z that any word reaches when the "
        "texts are assigned to the two sides at random.",
        "The contrast exaggerates. Words that plain samples show as well needed no contrast, and a "
        "new word does not prove that it occurred in the training data.",
        applies=has("word"),
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        told = own[own["metric"] == "novelty"].set_index("arm")
        arms = [f"{arm} {change(told.loc[arm], '.2f')}" for arm in told.index if arm != "base"]
        words = own[(own["metric"] == "word") & (own["arm"] == "contrast")].sort_values("x")
        words = words[words["value"] > words["baseline"]]
        known = {"base", "contrast"} <= set(own["arm"])
        named = ", ".join(words["word"].head(6)) or ("none beyond chance" if known else "not asked")
        n = told["n"].iloc[0]
        parts.append(f"{member}: novelty {'; '.join(arms)} (n = {n:.0f}); new words: {named}")
    return "The novelty of generated texts is given in nats per token", parts
