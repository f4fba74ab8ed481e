"""Are LoRA and full fine-tuning equivalent here? A panel per measure, a row per model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.compare.sensitivity import has_margins, verdicts_by_margin
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "compare.equivalence"
HEADING = "Are they equivalent here?"
MARKS = {"alike": "=", "different": "≠", "undecided": "?"}
SIZE = "graft size"
ESSENTIAL = {"score", "forgetting"}  # without both, equal in the rest is not equivalent
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
    """member x measure: value with interval, null, and a mark for what its difference shows."""
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
    """Every measure of every fine-tuned model with its 95% interval and its null; the band is the
    margin around the full fine-tune, the mark on the right what the difference from it shows."""
    measured, says = result.metric("measure"), _says(result)
    differences = result.table[result.table["metric"] == "difference"]
    measures = _drawn(result)
    if not measures:
        raise WorkbenchError(
            "Expected a measure with a value of two models to draw, found none; the table holds "
            "what was measured."
        )
    looks = style.looks(result)
    # A panel has the rows of its own models, and no empty ones.
    shown = {measure: _with_value(measured, measure, list(looks)) for measure in measures}
    rows, columns = style.grid_shape(len(measures), 3)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.COLUMN if columns == 1 else style.WIDE,
        height=rows * (0.16 * max(map(len, shown.values())) + 0.62) + 0.15,
    )
    style.blank(axes, len(measures))  # every panel has a label of its own
    for number, (here, measure) in enumerate(zip(axes.flat, measures, strict=False)):
        own = measured[measured["measure"] == measure].set_index("member")
        compared = differences[differences["measure"] == measure]
        _margin(here, own, compared)
        for place, member in enumerate(shown[measure]):
            row, look = own.loc[member], looks[member]
            here.plot([row["low"], row["high"]], [place, place], color=look.colour, lw=1.2)
            here.plot(row["value"], place, color=look.colour, marker=look.marker, ls="")
            here.plot(row["baseline"], place, color=style.GREY, marker="|", ms=9, mew=1.4, ls="",
                      zorder=5)  # fmt: skip
            mark = MARKS.get(says.get((member, measure), ""), "")
            here.annotate(mark, (1.02, place), xycoords=("axes fraction", "data"), va="center")
        if len(compared) and (compared["arm"] == "ratio").any() and own["value"].gt(0).any():
            here.set_xscale("log")
            low, high = here.get_xlim()
            if high / low > 3:  # else the ticks would stand in each other's way
                marks.log_ticks(here.xaxis, low, high)
            else:
                here.set_xscale("linear")
        log = f"\n{marks.LOG}" if here.get_xscale() == "log" else ""
        here.set_xlabel(UNITS.get(measure, style.text(measure, 28)) + log)
        here.margins(x=0.08)
        members = shown[measure]
        here.set_ylim(len(members) - 0.4, -0.6)
        repeated = number % columns and members == shown[measures[number - 1]]
        names = [] if repeated else [looks[member].label for member in members]
        here.set_yticks(range(len(members)), names or [""] * len(members))
    axes[0, 0].plot([], [], color=style.GREY, marker="|", ms=7, mew=1.4, ls="", label="null")
    axes[0, 0].fill_between([], [], [], color=style.PALE, label="margin around the full fine-tune")
    axes[0, 0].plot([], [], ls="", label="= alike   ≠ different   ? undecided")
    style.legend(axes, outside=ax is None)
    held = measured[measured["measure"].isin(measures) & measured["value"].notna()]
    marks.counted(axes, held["n"], "prompts, texts or matrices", outside=ax is None)
    return figure


def _with_value(measured: pd.DataFrame, measure: str, members: list[str]) -> list[str]:
    """The models of which a measure has a value, in their order."""
    own = measured[(measured["measure"] == measure) & measured["value"].notna()]
    return [member for member in members if member in set(own["member"])]


def _drawn(result: Result) -> list[str]:
    """The measures that two models have; a single value is a sentence, which the headline says."""
    measured = result.metric("measure")
    counts = measured[measured["value"].notna()].groupby("measure", sort=False)["member"].nunique()
    return [measure for measure in counts.index if counts[measure] > 1]


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
        "Every row is a fine-tuned model with its 95% interval and its null (grey). The null of an "
        "effective rank is the LoRA's own rank, and that of TuCo is its value on prompts that "
        "fine-tuning was not about. The band is the margin around the full fine-tune. The mark on "
        "the right shows whether the interval of the difference lies within the margin (=), "
        "excludes zero (≠), or does neither (?).",
        "Intervals of a recipe of several runs are over runs, too. Those of a single run are over "
        "its prompts, texts or matrices alone, and another seed may differ. A model of another "
        "score has learned something else, so its other measures cannot be compared. Of twenty "
        "comparisons of equal models about one comes out different.",
        applies=lambda result, *others: bool(_drawn(result)),
    ),
    Drawing(
        KEY,
        "margins",
        "Which margin gives which verdict?",
        verdicts_by_margin,
        "Every row is a model's difference from the full fine-tune. From the margin where blue "
        "begins its whole 95% interval lies within the margin, so that it counts as alike. At "
        "smaller margins it counts as different if the interval excludes zero (orange), and else "
        "as undecided (grey). The dashed line is the margin that was used.",
        "Choosing a margin after having seen this figure makes a verdict of any kind: it shows how "
        "much depends on the choice, and does not make it. A margin from which on a model is alike "
        "is no estimate of its difference, as few items make it large too.",
        applies=lambda result, *others: has_margins(result),
    ),
)


def sentence(result: Result) -> Findings:
    """Whether each model is equivalent to the full fine-tune, and by which differences."""
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
        whole = marks == {"alike"} and set(own["measure"]) >= ESSENTIAL
        verdict = "is not equivalent to" if "different" in marks else (
            "is equivalent to" if whole else "may or may not be equivalent to"
        )  # fmt: skip
        parts.append(f"{member} {verdict} {versus}: {'; '.join(said)}")
    if not parts:
        return "There is no full fine-tune to compare with, so the models are only measured", []
    return (
        "By the 95% intervals of the differences, a measure counts as alike if its interval lies "
        f"within a margin ({margins(rows)})"
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
