"""Are LoRA and full fine-tuning equivalent here? A panel per measure, a line per member."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "compare.equivalence"
HEADING = "Are they equivalent here?"
MARKS = {"alike": "=", "different": "≠", "undecided": "?"}
SIZE = "graft size"
UNITS = {
    "score": "score on the task",
    "forgetting": "rise of the loss (nats/token)",
    "intruders": "intruders (share of vectors)",
    "effective rank": "effective rank (dimensions)",
    "relative norm": "relative norm of the change",
    "TuCo": "TuCo on the task",
    "gain in a tenth": "gain in a tenth of the entries",
    SIZE: "graft size (share of entries)",
    "base's circuit": "faithfulness of base's circuit",
    "circuit overlap": "Jaccard index of circuits",
}


def cells(result: Result) -> pd.DataFrame:
    """member x measure: value with interval, null, and a mark for what its difference says."""
    measured, says = result.metric("measure"), _says(result)
    rows = {}
    for _, row in measured.iterrows():
        null = "" if pd.isna(row["baseline"]) else f" (null {row['baseline']:.3g})"
        unknown = "none tried" if row["measure"] == SIZE else "undefined"
        value = unknown if pd.isna(row["value"]) else change(row, ".3g") + null
        mark = MARKS.get(says.get((row["member"], row["measure"]), ""), "")
        rows.setdefault(row["member"], {})[row["measure"]] = f"{value} {mark}".strip()
    order = list(dict.fromkeys(measured["measure"]))
    return pd.DataFrame.from_dict(rows, orient="index").reindex(index=result.members, columns=order)


def _says(result: Result) -> dict[tuple[str, str], str]:
    rows = result.table[result.table["metric"] == "difference"]
    return {(row["member"], row["measure"]): row["says"] for _, row in rows.iterrows()}


@style.styled
def members_against_full(result: Result, ax: Axes | None = None) -> Figure:
    """Every measure of every member with its 95% interval and its null; the band is the margin
    around the full fine-tune, the mark on the right what the difference from it says."""
    measured, says = result.metric("measure"), _says(result)
    differences = result.table[result.table["metric"] == "difference"]
    measures = list(dict.fromkeys(measured.dropna(subset="value")["measure"]))
    if not measures:
        raise WorkbenchError("Expected a measure with a value to draw, found none.")
    looks = style.looks(result)
    rows, columns = style.grid_shape(len(measures), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=rows * (0.16 * len(looks) + 0.62),
        share=(False, True),
    )
    style.blank(axes, len(measures))  # every panel has a label of its own
    for here, measure in zip(axes.flat, measures, strict=False):
        own = measured[measured["measure"] == measure].set_index("member")
        compared = differences[differences["measure"] == measure]
        _margin(here, own, compared)
        for place, (member, look) in enumerate(looks.items()):
            if member not in own.index:
                continue
            row = own.loc[member]
            here.plot([row["low"], row["high"]], [place, place], color=look.colour, lw=1.2)
            here.plot(row["value"], place, color=look.colour, marker=look.marker, ls="")
            here.plot(row["baseline"], place, color=style.GREY, marker="|", ms=7, mew=1.4, ls="")
            mark = MARKS.get(says.get((member, measure), ""), "")
            here.annotate(mark, (1.02, place), xycoords=("axes fraction", "data"), va="center")
        if len(compared) and (compared["arm"] == "ratio").any() and own["value"].gt(0).any():
            here.set_xscale("log")
            low, high = here.get_xlim()
            if high / low > 3:  # else the ticks would stand in each other's way
                style.log_ticks(here.xaxis, low, high)
            else:
                here.set_xscale("linear")
        here.set_xlabel(UNITS.get(measure, style.text(measure, 28)))
        here.margins(x=0.08)
    axes[0, 0].set_ylim(len(looks) - 0.4, -0.6)
    for here in axes[:, 0]:
        here.set_yticks(range(len(looks)), [look.label for look in looks.values()])
    axes[0, 0].plot([], [], color=style.GREY, marker="|", ms=7, mew=1.4, ls="", label="null")
    axes[0, 0].fill_between([], [], [], color=style.PALE, label="margin around the full fine-tune")
    axes[0, 0].plot([], [], ls="", label="= alike   ≠ different   ? undecided")
    style.legend(axes, outside=ax is None)
    return figure


def _margin(here: Axes, own: pd.DataFrame, compared: pd.DataFrame) -> None:
    """The values within the margin of the full fine-tune."""
    for reference, rows in compared.groupby("versus", sort=False):
        if reference not in own.index:  # only some of the members are shown
            continue
        at, margin = own.loc[reference, "value"], float(rows["margin"].iloc[0])
        ratio = rows["arm"].iloc[0] == "ratio"
        edges = (at / margin, at * margin) if ratio else (at - margin, at + margin)
        here.axvspan(*edges, color=style.PALE, lw=0, zorder=0)


DRAWINGS = (
    Drawing(
        KEY,
        "members",
        "Are they equivalent here?",
        members_against_full,
        "Every measure of every member with its 95% interval, and its null (grey; for an effective "
        "rank the LoRA's own rank, for TuCo prompts that fine-tuning was not about). The band is "
        "the margin around the full fine-tune; the mark says what the interval of the difference "
        "does: lie within the margin (=), leave out no difference (≠), or neither (?).",
        "Intervals are over prompts, texts or matrices of one training run each, not over seeds. "
        "A member with another score has learned something else, so that nothing else compares; "
        "of twenty comparisons of equals about one comes out different.",
        applies=lambda result, *others: result.metric("measure")["value"].notna().any(),
    ),
)


def sentence(result: Result) -> Findings:
    """Whether each member is equivalent to the full fine-tune, and by which differences."""
    rows = result.table[result.table["metric"] == "difference"]
    parts = []
    for (member, versus), own in rows.groupby(["member", "versus"], sort=False):
        said = []
        for mark in ("different", "alike", "undecided"):
            found = own[own["says"] == mark]
            if len(found):
                names = [_difference(row) if mark == "different" else str(row["measure"])
                         for _, row in found.iterrows()]  # fmt: skip
                said.append(f"{mark} in {', '.join(names)}")
        marks = set(own["says"])
        told = "is not equivalent to" if "different" in marks else (
            "is equivalent to" if marks == {"alike"} else "may or may not be equivalent to"
        )  # fmt: skip
        parts.append(f"{member} {told} {versus}: {'; '.join(said)}")
    if not parts:
        return "No full fine-tune beside another member: they are measured only", []
    return (
        "By 95% intervals of the differences, alike where they lie within a margin "
        f"({margins(rows)})"
    ), parts


def margins(rows: pd.DataFrame) -> str:
    """What would not matter, measure by measure."""
    first = rows.drop_duplicates("measure")
    return ", ".join(
        f"{row['measure']} {'a factor of ' if row['arm'] == 'ratio' else ''}{row['margin']:g}"
        for _, row in first.iterrows()
    )


def _difference(row: pd.Series) -> str:
    if row["arm"] == "ratio":
        return f"{row['measure']} (x {change(row, '.2g')})"
    return f"{row['measure']} ({change(row, '+.2f')})"
