"""What was it fine-tuned for? Words that the mean difference of the two models' streams says."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.difference"
HEADING = "What it was fine-tuned for"
WORDS = 12
SAID = 5
READ = "#0072B2"


def read_at(result: Result, member: str) -> pd.DataFrame:
    """The tokens up that the base's head reads behind the layer of the headlines, in their order;
    none where there is no difference."""
    own = result.table[(result.table["member"] == member) & (result.table["arm"] == "difference")]
    layer = own.loc[own["metric"] == "new_words", "layer"].iloc[0]
    found = own[(own["metric"] == "up") & (own["side"] == "lens") & (own["layer"] == layer)]
    return found.sort_values("x")


@style.styled
def words_read(result: Result, ax: Axes | None = None) -> Figure:
    """The tokens that the mean difference raises most, read by the base's head; a panel per model.
    Dashed: the largest of random directions. Filled: words of the reference."""
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(looks), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=2.2 * rows + 0.5,
        share=(True, False),
    )
    table = result.table
    told = table[(table["metric"] == "word") & table["arm"].isin(["contrast", "prompts"])]
    for here, (member, look) in zip(axes.flat, looks.items(), strict=False):
        own = read_at(result, member).head(WORDS)
        reference = {*told.loc[told["member"] == member, "word"]}
        places = np.arange(len(own))
        said = own["token"].astype(str).str.strip()
        inside = np.array([_begins(token, reference) for token in said], dtype=bool)
        for which, fill, label in (
            (inside, READ, "begins a word of the reference"), (~inside, "none", "other"),
        ):  # fmt: skip
            values = own["value"].to_numpy(float)[which]
            if len(values):
                here.barh(places[which], values, 0.7, color=fill, edgecolor=READ, label=label)
        if len(own):
            here.axvline(own["baseline"].iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1,
                         label="largest of random directions")  # fmt: skip
        here.set_yticks(places, [style.text(str(token), 14) for token in own["token"]])
        here.set_ylim(WORDS - 0.4, -0.6)
        layer = own["layer"].iloc[0] if len(own) else None
        style.name(here, look, " (no difference)" if layer is None else f" (layer {layer})")
    for here in axes[-1]:
        here.set_xlabel("logit, less the mean logit")
    style.first_column(axes, "token")
    style.blank(axes, len(looks))
    style.legend(axes, outside=ax is None)
    texts = table.loc[table["metric"] == "norm", "n"]
    marks.counted(axes, texts, "texts", outside=ax is None)
    return figure


@style.styled
def difference_by_layer(result: Result, ax: Axes | None = None) -> Figure:
    """Behind every layer: how constant the difference is over texts, with the base against itself
    dashed, and how many of the reference's words are read, with random directions dashed."""
    figure, axes = style.panels(ax, 1, 2, width=style.WIDE * 0.8, height=2.4)
    table, looks = result.table, style.looks(result)
    own = table[table["arm"] == "difference"]
    panels = (
        (own[own["metric"] == "constant"], "constant part", "share of the difference",
         "base against itself"),
        (own[(own["metric"] == "found") & (own["side"] == "lens")], "words read",
         "share of the reference's words", "random directions"),
    )  # fmt: skip
    for here, (rows, title, label, control) in zip(axes.flat, panels, strict=True):
        for number, (member, look) in enumerate(looks.items()):
            told = rows[rows["member"] == member].sort_values("layer")
            x = told["layer"].to_numpy(float)
            marks.curve(here, x, told, look, layers=True)
            marks.control(here, x, told["baseline"], style.DASHES[0], None if number else control)
        marks.layer_ticks(here, table["layer"].dropna().unique())
        here.set_title(title, loc="left")
        here.set(xlabel="layer", ylabel=label)
    style.legend(axes, outside=ax is None)
    marks.counted(axes, panels[0][0]["n"], "texts", outside=ax is None)
    return figure


def _begins(token: str, words: set[str]) -> bool:
    """Whether a token is how one of the words begins."""
    return bool(token) and any(word.startswith(token) for word in words)


DRAWINGS = (
    Drawing(
        KEY,
        "words",
        "What the difference of the two models says",
        words_read,
        "The bars show the tokens that the mean difference of the two models' streams, measured on "
        "the first tokens of unrelated texts, raises most when the base's norm and head read it "
        "behind the layer given. Filled bars begin a word of the reference, which are the words "
        "that the contrast of the two models writes, or those of the fine-tuning's prompts. The "
        "dashed line is the largest value that random directions of the same norm reach, on "
        "average.",
        "Early streams need not be readable by the head, and the head says some words for any "
        "direction. After broad training nothing need be constant, whatever was learned.",
        applies=has("up"),
    ),
    Drawing(
        KEY,
        "layers",
        "The constant difference behind every layer",
        difference_by_layer,
        "On the left, the share of the difference of the two models' streams that is the same for "
        "all texts: the mean of one half of the texts explains it on the other half. Dashed is the "
        "base against itself on other texts. On the right, the share of the reference's words "
        "among the tokens read behind that layer, with random directions dashed. Bands are 95% "
        "intervals, on the left over texts and on the right over words.",
        "A difference can be constant without being about anything: compare with models that "
        "learned nothing. The reference's words are found by the two models as well, and a bias "
        "that both share counts on both sides.",
        applies=has("norm"),
    ),
)


def sentence(result: Result) -> Findings:
    """The words read, how many of the reference's are among them, and how constant it is."""
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        words = read_at(result, member)["token"].head(SAID)
        if not len(words):
            parts.append(f"{member}: nothing, as the two models' mean states are the same")
            continue
        layer = read_at(result, member)["layer"].iloc[0]
        at = own[(own["layer"] == layer) & (own["arm"] == "difference")]
        constant = at[at["metric"] == "constant"].iloc[0]
        found = at[(at["metric"] == "found") & (at["side"] == "lens")]
        said = f"{member}: {', '.join(repr(word.strip()) for word in words)} (layer {layer})"
        if len(found) and found["n"].iloc[0]:
            row = found.iloc[0]
            said += (f", and {change(row, '.2f')} of {int(row['n'])} reference words begin with a "
                     f"token read (random directions {row['baseline']:.2f})")  # fmt: skip
        parts.append(
            f"{said}; {change(constant, '.2f')} of the difference is constant over texts "
            f"(base against itself {constant['baseline']:.2f})"
        )
    return "On unrelated texts the mean difference of the two models says", parts
