"""In how many bits does the change fit?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import band, by_member, error_bars
from workbench.figures.skills.scores import CURVES, ENOUGH, RANDOM, finish, model_lines, own_rows
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "skills.compression"
HEADING = "In how many bits the change fits"
# As in CURVES: label, colour (None: the model's), dashes, marker.
STORED = {
    "rank": ("best low rank of Δ", None, "-", "o"),
    "movement": CURVES["movement"],
    "principal": CURVES["principal"],
    "random": RANDOM,
}
WHOLE = {  # one number of bits each: label, colour (None: the model's), marker, size
    "tiered": ("singular vectors at 8, 3, 2 bits", "#0072B2", "P", 5.5),
    "1-bit": ("signs and one scale (1 bit)", "#009E73", "^", 5),
    "adapter": ("the adapter's own file", None, "*", 8),
    "tuned": ("tuned, 16 bits an entry", None, "X", 5.5),
}
# In the order of the sentence.
STORES = ("rank", "tiered", "1-bit", "adapter", "movement", "principal", "random")


@style.styled
def bits_score(result: Result, ax: Axes | None = None, *, metric: str = "score") -> Figure:
    """Score against the stored bits per entry of the base; a panel per model.

    metric: any of `Readout.rows`. Bars: 95% intervals of the low ranks, of random entries and of
    the ways that have only one size.
    """
    table = own_rows(result, metric)
    figure, axes, members = by_member(result, ax, 1.9, share=(True, True))
    for here, (member, look) in members:
        own = table[table["member"] == member]
        here.set_xscale("log")
        for arm, (label, colour, dashes, marker) in STORED.items():
            line = own[own["arm"] == arm].sort_values("x")
            if line.empty:
                continue
            colour = colour or look.colour
            if arm in ("rank", "random"):
                band(here, line, colour, place=(arm == "random", 2))
            if arm == "random":
                marks.control(here, line["x"], line["value"], dashes, label)
                continue
            here.plot(line["x"], line["value"], color=colour, ls=dashes, marker=marker, ms=3,
                      label=label)  # fmt: skip
        for arm, (label, colour, marker, size) in WHOLE.items():
            point = own[own["arm"] == arm]
            if len(point):
                here.errorbar(
                    point["x"], point["value"], yerr=error_bars(point), ls="", marker=marker,
                    ms=size, mew=0, color=colour or look.colour, elinewidth=0.8, zorder=4,
                    label=label,
                )  # fmt: skip
        model_lines(here, own)
        style.name(here, look)
    held = table.loc[table["x"] > 0, "x"]
    marks.log_ticks(axes[0, 0].xaxis, held.min(), held.max())
    finish(result, ax, axes, table, f"stored bits per entry of the base {marks.LOG}")
    return figure


def has_whole(result: Result, *others: Result) -> bool:
    """Whether the fine-tuned matrices themselves were truncated."""
    return bool((result.table["arm"] == "whole").any())


@style.styled
def truncation(result: Result, ax: Axes | None = None) -> Figure:
    """Score on the task and AUROC of the confidence against other prompts, over the share of the
    singular values that is left; dashed: the base."""
    figure, axes = style.panels(ax, 1, 2, width=style.WIDE * 0.75, height=2.4)
    table = result.table[result.table["arm"] == "whole"].sort_values("sparsity")
    shown = {"score": "score on the task", "auroc": "AUROC, task against others"}
    for here, (metric, label) in zip(axes.flat, shown.items(), strict=True):
        rows = table[table["metric"] == metric]
        rows = rows[rows["own"].eq(True)] if metric == "score" else rows
        rows = rows[rows["task"] == rows["task"].iloc[0]] if len(rows) else rows
        for name, look in style.looks(result).items():
            own = rows[rows["member"] == name]
            marks.curve(here, own["sparsity"].to_numpy(float), own, look)
        if len(rows):
            here.axhline(rows["baseline"].iloc[0], color=style.GREY, ls=style.DASHES[0], lw=1,
                         label="base")  # fmt: skip
        here.set(xlabel="singular values left (share)", ylabel=label, ylim=(-0.03, 1.03))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, table["n"], "prompts", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "bits",
        "In how many bits the change fits",
        bits_score,
        "The curves show the score of the base plus a compressed change against the bits that it "
        "takes to store, per entry of the base. Masks cost 16 bits per value and the entropy of "
        "their places. Grey shows random entries, and the star is the adapter's own file.",
        "Values stored at 16 bits are counted and not rounded. Nothing here was calibrated on "
        "data, from which the published codecs gain.",
    ),
    Drawing(
        KEY,
        "truncation",
        "When the fine-tuned matrices themselves are truncated",
        truncation,
        "The curves show the score on the task, and how well the model's confidence in its first "
        "token tells the task's prompts from others (1/2: not at all), over the share of singular "
        "values that is left of every matrix, with 95% intervals over prompts.",
        "All matrices keep the same share here; greedy_matrices chooses one for each. A model "
        "that is sure of everything it has learned is not more right.",
        applies=has_whole,
    ),
)


def sentence(result: Result) -> Findings:
    """The fewest bits with 95% of the gain, per way of storing."""
    gains = own_rows(result, "gain")
    parts = []
    for member in result.members:
        here = gains[gains["member"] == member]
        if here.loc[here["arm"] == "tuned", "value"].isna().all():
            parts.append(f"{member}: no gain to store")
            continue
        own, said = here[here["value"] >= ENOUGH], []
        for arm in [a for a in STORES if (here["arm"] == a).any()]:
            rows = own[own["arm"] == arm].sort_values("x")
            said.append(
                f"{arm} {rows['x'].iloc[0]:.2f} bits ({change(rows.iloc[0], '.2f')})"
                if len(rows)
                else f"{arm} not reached"
            )
        parts.append(f"{member}: {', '.join(said)}")
    n = int(gains["n"].max())
    return (
        f"These are the fewest stored bits per entry with 95% of the gain (95% interval over {n} "
        "prompts)",
        parts,
    )
