"""A Result as a table elsewhere: a CSV file of every row, or LaTeX of its means for a paper."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, visible
from workbench.figures.wording import interval
from workbench.files.writing import Mark, writing
from workbench.results.intruder_counts import intruder_counts
from workbench.results.result import Result, changed_rows

# What tells one value of a metric from another, in the order of a table's columns.
KEYS = (
    "member", "task", "measure", "outcome", "first", "second", "skills", "stage", "side",
    "direction", "circuit", "group", "category", "to_category", "reading", "stratum", "arm",
    "control", "run", "versus", "binning", "bin", "layer", "component", "expert", "head", "neuron",
    "position", "prompt", "word", "rank", "seed", "sparsity", "x",
)  # fmt: skip
# Those that say where in a model or in which item: such rows are no means of a whole run.
WITHIN = (
    "layer", "component", "expert", "head", "neuron", "position", "prompt", "word", "rank", "bin",
)  # fmt: skip
EDGES = ["low", "high", "n"]
MOST = 60  # rows of a table that a person reads in a paper


def _quoted_header(file: Path) -> bool:
    """Spreadsheets write names of columns without quotes; `to_csv` writes them all with."""
    with file.open("rb") as opened:
        names = opened.readline(1 << 14).rstrip(b"\n").split(b",")
    quoted = all(name[:1] == name[-1:] == b'"' for name in names)
    return quoted and {b'"metric"', b'"value"'} <= {*names}


WRITTEN, END = "% Written by the workbench: ", "\\end{tabular}\n"


def _whole(file: Path) -> bool:
    """Nothing before the table, and nothing behind: a paper that it was put into is a person's."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return text.startswith(WRITTEN) and text.find(END) == len(text) - len(END)


CSV = Mark("a table", lambda path: path.is_file() and _quoted_header(path), "give another path")
LATEX = Mark("a table", lambda path: path.is_file() and _whole(path), "give another path")


@provides("Result.to_csv")
def to_csv(result: Result, path: str | Path) -> Path:
    """Every row of the table as UTF-8 CSV, missing values as nothing, numbers in full; its path.

    `pandas.read_csv(path, float_precision="round_trip")` reads the same numbers. Text is written
    as it is: a spreadsheet may take one that begins with = for a formula. Raises WorkbenchError
    where anything but such a table is there.
    """
    with writing(Path(path), CSV) as fresh:
        result.table.to_csv(
            fresh, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n",
            encoding="utf-8", errors="backslashreplace",
        )  # fmt: skip
    return Path(path)


def summary(result: Result, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """The means of whole runs: the columns of KEYS that the table has, metric, value, low, high, n.

    metrics: only these, at whatever place or item they are; None for all that are no place's or
    item's own. Of values per matrix, which have no n, medians with their quartiles over the
    matrices that changed; of intruders their share among the top vectors (arm: the member or a
    null; of a null of several draws low and high are those between which one more would fall).
    Raises WorkbenchError for a metric that the table has not.
    """
    for name in metrics or ():
        result.metric(name)
    table = result.table
    if metrics is None and result.analysis == "spectral.intruders":
        counts = intruder_counts(result).rename(columns={"fraction": "value"})
        edges = {edge: counts[edge] / counts["n"] for edge in ("low", "high")}
        table = counts.assign(metric="intruders", **edges)
    elif "n" not in table:
        table = _medians(result, metrics)
    elif metrics is None:
        within = [name for name in WITHIN if name in table]
        table = table[table[within].isna().all(axis=1) & table["n"].notna()]
    else:
        table = table[table["metric"].isin([*metrics])]
    if "measure" in table and table["metric"].eq("measure").any():
        # Of the first page the measures are what a reader knows as metrics.
        own = table[table["metric"] == "measure"]
        table = own.assign(metric=own["measure"]).drop(columns="measure")
    keys = [name for name in KEYS if name in table and table[name].notna().any()]
    table = table.reindex(columns=[*keys, "metric", "value", *EDGES])
    return table.reset_index(drop=True)


def _medians(result: Result, metrics: Sequence[str] | None) -> pd.DataFrame:
    """Of every member and metric the median over its matrices, the quartiles, and their number."""
    table = result.table
    if "member" not in table:
        table = table.assign(member=" + ".join(result.members))
    if "rank" in table and table["rank"].isna().any():  # beside values of single vectors
        table = table[table["rank"].isna()]
    if table["metric"].isin(["changed", "effective_rank"]).any():
        table = changed_rows(table)
    table = table if metrics is None else table[table["metric"].isin([*metrics])]
    grouped = table.groupby(["member", "metric"], sort=False)["value"]
    names = {0.5: "value", 0.25: "low", 0.75: "high"}
    spread = grouped.quantile([*names]).unstack().rename(columns=names)
    return spread.assign(n=grouped.count()).reset_index()


@provides("Result.to_latex")
def to_latex(
    result: Result, path: str | Path | None = None, *, metrics: Sequence[str] | None = None
) -> str:
    """A table for a paper, which needs the package booktabs. It has a row for each model and task,
    and whatever else distinguishes means, and a column for each metric, each value with its
    interval. n is a column if one number holds for a whole row, else it is given with each value.

    path: a .tex file to write it to as well. metrics: only these columns, in this order; None for
    all of `workbench.export.summary`. Names are escaped; letters beyond Latin need XeLaTeX or
    LuaLaTeX. Raises WorkbenchError for an unknown metric, if several values belong to one cell of
    the table, if it had more than 60 rows, and if path holds anything but such a table.
    """
    rows = summary(result, metrics)
    keys = [name for name in KEYS if name in rows]
    if rows.empty or not keys or rows.duplicated([*keys, "metric"]).any():
        told = "no means of whole runs" if rows.empty else "several values of one name"
        known = ", ".join(dict.fromkeys(result.table["metric"]))
        raise WorkbenchError(
            f"Expected one value for each model and task, found {told} in "
            f"{result.analysis}; name others of its metrics ({known}), or write all "
            "rows with to_csv."
        )
    rows[keys] = rows[keys].astype(object).where(rows[keys].notna(), "")
    order = rows[keys].drop_duplicates()
    if len(order) > MOST:
        raise WorkbenchError(
            f"Expected a table of at most {MOST} rows, found {len(order)} in "
            f"{result.analysis}; take `result.of` some models, name fewer metrics, or "
            "write all with to_csv."
        )
    counts = rows.groupby(keys, sort=False)["n"].agg(["nunique", "max"]).reset_index()
    alike = (counts["nunique"] < 2).all()
    cells = [_cell(row, n=not alike) for row in rows.itertuples(index=False)]
    wide = rows.assign(cell=cells).set_index([*keys, "metric"])["cell"].unstack()
    wide = wide[[*(metrics or dict.fromkeys(rows["metric"]))]].fillna("").reset_index()
    wide = order.merge(wide, on=keys)
    if alike:
        wide["n"] = ["" if pd.isna(n) else f"{int(n)}" for n in counts["max"]]
    for name in keys:
        wide[name] = [_escaped(f"{v:g}" if isinstance(v, float) else str(v)) for v in wide[name]]
    wide.columns = [_escaped(str(name).replace("_", " ")) for name in wide.columns]
    text = _comment(result) + wide.to_latex(index=False, escape=False)
    if path is not None:
        with writing(Path(path), LATEX) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return text


def _cell(row: Any, *, n: bool) -> str:
    """A value with its interval, minus signs as mathematics, and its n where that is wanted."""
    if pd.isna(row.value):
        return "--"
    text = re.sub(r"(?<!e)-(?=[\di])", "$-$", interval(row.value, row.low, row.high))
    return f"{text} ($n = {int(row.n)}$)" if n and pd.notna(row.n) else text


SPECIAL = str.maketrans(
    {name: rf"\{name}" for name in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"`": r"\textasciigrave{}"}
)


def _escaped(text: str) -> str:
    """Any text as one line of LaTeX that is printed as it is."""
    line = " ".join(visible(text).split()).translate(SPECIAL)
    line = re.sub("-(?=-)", "-{}", line)  # else two are one long dash
    # Behind the end of a row an asterisk or a bracket would be its argument.
    return f"{{{line[0]}}}{line[1:]}" if line[:1] in ("*", "[") else line


def _comment(result: Result) -> str:
    """What it is of, behind signs of comment."""
    base = result.provenance.base
    known = [str(base.get(name) or "") for name in ("reference", "fingerprint")]
    what = "means with 95% intervals"
    if result.analysis == "spectral.intruders":
        what = "shares of the vectors, of nulls with the range of one more draw"
    elif "n" not in result.table:
        what = "medians over n matrices with quartiles"
    lines = [
        f"{WRITTEN}{result.analysis}, base {' '.join(known)}",
        f"% {what}; table {result.fingerprint}",
    ]
    return "".join(f"{' '.join(visible(line).split())}\n" for line in lines)
