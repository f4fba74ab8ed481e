"""What does a patch recover? By head, and the strongest patch of every component in words."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.patching.layer_maps import by_direction, by_side, layer_maps
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

HEADED = ("z", "head", "q", "k", "v", "pattern")
SCORE = "recovered:score"
RECOVERED = "recovered:logit_difference", "recovered:log_probability"


def metric_of(result: Result) -> str:
    """The recovered metric that was asked for; else the logit difference, without foils the
    log-probability."""
    asked = f"recovered:{result.provenance.parameters.get('metric')}"
    known = list(dict.fromkeys(result.table["metric"]))
    own = [m for m in known if m.startswith("recovered:") and m not in (*RECOVERED, SCORE)]
    if asked in known or own:
        return asked if asked in known else own[0]
    return next((m for m in RECOVERED if result.has(m)), RECOVERED[1])


def has_heads(result: Result) -> bool:
    """Whether single heads were patched."""
    return bool(result.table["head"].notna().any())


def has_layers(result: Result) -> bool:
    """Whether whole layers were patched."""
    table = result.table[result.table["arm"] == "patch"]
    return bool((table["layer"].notna() & table["head"].isna() & table["neuron"].isna()).any())


@style.styled
def layer_head(result: Result, ax: Axes | None = None, *, position: str = "-1") -> Figure:
    """Recovered share of every head (across) and layer (upwards) at one position.

    position: the last token where it was patched, else the first position there is.
    """
    own = result.metric(metric_of(result))
    own = own[own["component"].isin(HEADED)]
    own = own[own["component"] == own["component"].iloc[0]]
    known = list(dict.fromkeys(own["position"]))
    position = position if position in known else str(known[0])
    own = own[own["position"] == position]
    panels = (
        by_side(result, own)
        if "side" in own
        else by_direction(result, own, own["direction"].nunique() > 1)
    )
    where = {"-1": "last token", "all": "all tokens"}.get(position, position)
    scale = "0: corrupt, 1: clean" if "side" in own else "0: destination, 1: source"
    heads = sorted(int(h) for h in own["head"].dropna().unique())
    return layer_maps(
        ax, panels, "head", heads, [str(h) for h in heads], "head",
        f"recovered, {where}\n({scale})", looks=style.looks(result),
    )  # fmt: skip


def strongest_patch(result: Result) -> Findings:
    """The strongest patch of each component, beside a random one."""
    table = result.table
    unlearning = result.provenance.parameters.get("answer") == "base"
    metric = "krs" if unlearning and result.has("krs") else metric_of(result)
    by = "side" if "side" in table else "direction"
    parts = []
    for member in result.members:
        own = table[(table["member"] == member) & (table["metric"] == metric)]
        said = []
        for (side, component), rows in own.groupby([by, "component"], sort=False):
            patch = rows[rows["arm"] == "patch"].dropna(subset="value")
            if patch.empty:
                said.append(f"{side}, {component}: undefined")
                continue
            if patch["low"].isna().all():
                said.append(f"{side}, {component}: not meaningful, the two runs hardly differ")
                continue
            held = rows[rows["arm"] == "picked"].dropna(subset="value")
            best = held.iloc[0] if len(held) else patch.loc[patch["value"].idxmax()]
            random = rows.loc[rows["arm"] == "random", "value"]
            beside = f", random {random.mean():.2f}" if len(random) else ""
            said.append(f"{side}, {component} {place_of(best)}: {change(best, '.2f')}{beside}")
        parts.append(f"{member}: {', '.join(said)}")
    held = (table["arm"] == "picked") & (table["metric"] == metric)
    prompts = int(table.loc[held if held.any() else table["arm"] == "patch", "n"].max())
    what = metric.replace("recovered:", "recovered ").replace("_", " ")
    same = "and measured on the same" if not held.any() else "on others and measured on"
    return f"The strongest patch by {what} is chosen {same} {prompts} prompts (95%)", parts


def place_of(row: pd.Series) -> str:
    if isinstance(row.get("group"), str):
        return f"({row['group']})"
    told = [f"layer {row['layer']}"] if pd.notna(row.get("layer")) else ["outside the blocks"]
    told += [f"head {row['head']}"] if pd.notna(row.get("head")) else []
    told += [f"at {row['position']}"] if row.get("position") not in (None, "all") else []
    return f"({', '.join(map(str, told))})"
