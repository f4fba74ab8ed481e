"""What supports the answer on its way to a receiver? Every sender's effect, layers upwards."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.patching.layer_maps import by_side, layer_maps
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.path"
HEADING = "What acts along a path"
NAMES = {"logit_change": "change of the logit difference", "effect": "relative change of p(answer)"}


@style.styled
def senders(result: Result, ax: Axes | None = None) -> Figure:
    """What every head, and every MLP where they send, does to the answer through the receivers: a
    panel for the base and one per fine-tuned model, on one colour scale around 0. Beside each name
    what a random one does, of the heads where they send."""
    metric = _metric(result)
    own = _rows(result, metric)
    own = own[own["component"].isin(("head", "mlp"))]
    own = own.assign(sender=["MLP" if pd.isna(head) else str(int(head)) for head in own["head"]])
    own = own[(own["arm"] != "random") | (own["component"] == min(own["component"]))]
    patched = own[own["arm"] == "patch"]
    keys = [str(int(head)) for head in sorted(patched["head"].dropna().unique())]
    keys += ["MLP"] * bool((patched["component"] == "mlp").any())
    return layer_maps(
        ax, by_side(result, own), "sender", keys, keys, "head", NAMES[metric],
        looks=style.looks(result),
    )  # fmt: skip


def named(row: pd.Series) -> str:
    """A sender by its place: "(layer 3, head 1, at -1)", "(MLP 3)", "(the embedding)"."""
    told = {
        "head": f"layer {row['layer']}, head {row['head']}",
        "mlp": f"MLP {row['layer']}",
        "embedding": "the embedding",
    }[row["component"]]
    return f"({told})" if row["position"] == "all" else f"({told}, at {row['position']})"


DRAWINGS = (
    Drawing(
        KEY,
        "senders",
        "What acts on the answer along this path",
        senders,
        "Each cell is what the answer loses or gains where one sender alone is as in the corrupt "
        "run and acts through the receivers alone: below 0 it supports the answer. The first map "
        "is the base, and the others are the fine-tuned models. Next to each name is what a "
        "random sender does. A sender that is the same in both prompts does nothing.",
        "Where the corrupt prompt changes several things at once, their paths are mixed. Senders "
        "that stand in for each other show little alone.",
        applies=lambda result, *others: bool(
            _rows(result, "effect")["component"].isin(("head", "mlp")).any()
        ),
    ),
)


def sentence(result: Result) -> Findings:
    """The sender that supports the answer most, per side; without foils by its probability."""
    metric = _metric(result)
    own = _rows(result, metric)
    own = own[own["arm"] == "patch"]
    parts = []
    for (member, side), rows in own.groupby(["member", "side"], sort=False):
        if rows["value"].isna().all():
            parts.append(f"{member}: {side} gives none of the answers")
            continue
        best = rows.loc[rows["value"].idxmin()]
        parts.append(f"{member}: {side} {named(best)} {change(best, '.2f')}")
    what = "the logit difference" if metric != "effect" else "the answer's probability, relative,"
    kinds = {"head": "head", "mlp": "MLP", "embedding": "the embedding"}
    by = kinds[own["component"].iloc[0]] if own["component"].nunique() == 1 else "sender"
    by = by if by.startswith("the") else f"one {by}"
    return f"The largest fall of {what} is by {by} ({int(own['n'].max())} prompts)", parts


def _rows(result: Result, metric: str) -> pd.DataFrame:
    """A metric's rows; where a Result was made when heads alone could send they are heads'."""
    table = result.table[result.table["metric"] == metric]
    return table if "component" in table else table.assign(component="head")


def _metric(result: Result) -> str:
    return "logit_change" if result.has("logit_change") else "effect"
