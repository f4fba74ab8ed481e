"""Which interactive views does a tidy table give? One for every shape of its rows, of a few kinds.

No method names its views. Rows that fill the same columns are one view, and the columns decide its
kind: over layers and places a heat map, over numbers a line, over prompts points, over the tokens
of a text that text in colours, between two named things a matrix, and whatever is left a point with
its interval. The page draws them (`reports/assets`); what is not an axis gets a picker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from workbench.results.result import Result

VALUES = ("member", "metric", "value", "low", "high", "n", "baseline")
# What is a place within a model, a text or a run: rows with and without one are not of one view.
PLACES = (
    "x", "layer", "component", "expert", "head", "neuron", "latent", "position", "prompt",
    "rank", "bin",
)  # fmt: skip
# What names a row, in the order in which a reader would ask for it. A column that tells no two rows
# apart that those before it do not is shown on hovering alone.
NAMES = (
    "task", "measure", "outcome", "side", "direction", "arm", "circuit", "group", "first", "second",
    "skills", "category", "to_category", "control", "stratum", *PLACES, "run", "sparsity",
    "binning",
)  # fmt: skip
TEXTS = ("text", "asked", "expected", "base_said", "said", "word")
PAIRED = (("first", "second"), ("category", "to_category"))
ACROSS = ("head", "component", "position", "neuron", "expert")  # beside the layer
STYLED = ("arm", "side", "group", "direction", "circuit", "task")  # told apart by dash or shape
APART = ("measure", "outcome")  # each in units of its own: never along one axis
# What `x` counts, by analysis; elsewhere the axis is called x.
X = {
    "spectral.scale": "scale λ of the direction",
    "spectral.directions": "place among the nearest tokens",
    "spectral.explained": "leading directions of the inputs",
    "tuco.scaling": "scale α of the fine-tuning contribution",
    "forgetting.interpolate": "α from base (0) to fine-tuned model (1)",
    "forgetting.revive": "training steps",
    "forgetting.sequential": "stage of the chain",
    "forgetting.prune": "neurons pruned (share)",
    "behaviour.advantage": "worked steps",
    "behaviour.coverage": "k, answers that are drawn",
    "behaviour.tokens": "probability of the token in the base",
    "forgetting.sharpness": "length of the step, as a share of the parameters' norm",
    "behaviour.faithfulness": "steps left in (share)",
    "skills.localize": "share of the parameters",
    "skills.restore": "share of the parameters set back",
    "skills.compression": "stored bits per parameter",
    "skills.calibration": "confidence",
    "patching.lens": "place among the likeliest tokens",
    "patching.difference": "place among the tokens",
    "patching.steer": "scale",
}
# Metrics in words with their units, where the name alone does not say them.
LABELS = {
    "score": "score (share right)",
    "score_change": "change of the score",
    "lost": "share of items lost",
    "gained": "share of items gained",
    "mcnemar": "McNemar's p",
    "auc_difference:tuco-output_co": "AUC of TuCo less that of the outputs",
    "auc_difference_matched:tuco-output_co": "AUC of TuCo less that of the outputs, matched",
    "loss": "loss (nats/token)",
    "loss_change": "change of the loss (nats/token)",
    "answer_loss": "loss of the answer (nats/token)",
    "answer_kl": "KL of the answer from the base (nats/token)",
    "item": "items: prompts and answers",
    "bits_per_byte": "bits per byte",
    "kl": "KL divergence from the base (nats)",
    "kl_tuned": "KL of the tuned model from it (nats)",
    "log_p": "log p (nats/token)",
    "delta_log_p": "change of log p (nats/token)",
    "token": "change of log p (nats), tuned - base",
    "entropy": "entropy (nats)",
    "text": "generated texts",
    "word": "words that became more frequent",
    "logit_difference": "logit difference (nats)",
    "contribution": "direct contribution (logits)",
    "picked": "change beyond the base's (nats), picked",
    "log_probability": "log-probability (nats)",
    "recovered:logit_difference": "share of the logit difference recovered",
    "recovered:log_probability": "share of the log-probability recovered",
    "krs": "KRS (knowledge recovery score)",
    "efficacy": "efficacy: score on what was taught",
    "generality": "generality: score on rewordings",
    "locality": "locality: unrelated answers as the base's (share)",
    "reliance": "fall of the answer's log p (nats)",
    "sensitivity": "first-order rise of the loss (nats)",
    "auroc": "AUROC of the confidence, task against others",
    "content_change": "attention over the content, change (0 to 1)",
    "largest_content_change": "attention over the content, largest change",
    "prefix_mass": "attention on the prefix (share)",
    "bias": "norm of what the prefix adds",
    "bias_share": "its share of attention's output (norms)",
    "bias_direction": "energy in its mean direction (share)",
    "reach": "mean attention distance (tokens)",
    "tvd": "total variation of attention (0 to 1)",
    "intruder": "intruder dimensions (1 or 0 each)",
    "intruder_energy": "energy in intruders (share)",
    "max_cosine": "largest cosine with a base vector",
    "sigma": "singular value",
    "effective_rank": "effective rank (dimensions)",
    "stable_rank": "stable rank",
    "norm": "Frobenius norm of the change",
    "energy": "output change over that of random directions",
    "explained": "energy in the inputs' directions (share)",
    "overlap": "overlap (0 to 1)",
    "angle": "principal angle (degrees)",
    "sign_agreement": "entries of equal sign (share)",
    "relevance": "rank correlation of relevance and change",
    "frechet": "Fréchet distance of the states",
    "cka": "linear CKA",
    "uniformity": "uniformity of the states (at most 0)",
    "alignment": "alignment with rewordings (0 to 4)",
    "replicated": "energy in the others' directions (share)",
    "stock": "t of the centre, from base (0) to mean (1)",
    "relative_norm": "norm of the change / norm of the base",
    "tuco": "TuCo (0 to 1)",
    "token_tuco": "TuCo of each token",
    "layer_tuco": "TuCo of each layer",
    "output_co": "OutputCo (0 to 1)",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "accuracy": "accuracy of the probe",
    "gain": "share of the gain kept by the graft",
    "measure": "value of the measure",
    "difference": "difference from the full fine-tune",
    "top_token": "most likely token",
    "entries": "entries chosen (share)",
    "jaccard": "Jaccard index",
}
# What a reader looks for first, as (metric, kind of view); elsewhere the first of several numbers.
BEGINS = {
    "compare.equivalence": ("measure", "dots"),
    "forgetting.retention": ("score", "dots"),
    "forgetting.samples": ("score", "dots"),
    "behaviour.tokens": ("token", "tokens"),
    "spectral.intruders": ("intruder", "heat"),
    "spectral.delta_spectrum": ("effective_rank", "heat"),
    "patching.circuit": ("effect", "heat"),
    "patching.prefix": ("prefix_mass", "lines"),
    "skills.compose": ("interference", "dots"),
    "patching.groups": ("recovered:logit_difference", "dots"),
    "tuco.contribution": ("tuco", "points"),
}
RECOVERED = ("krs", "recovered:logit_difference", "recovered:log_probability")
MANY = 24  # values from which a picker also offers their mean, and begins with it


@dataclass(frozen=True)
class View:
    """One view of a Result's table.

    kind: dots, lines, heat, points, tokens, matrix or texts. metrics: those that can be picked.
    filled, empty: columns that a row of it fills, and does not. x, y: the columns along the axes
    (y of dots, points and lines is the value itself). style: the column told apart by dash or
    shape. pick: columns with a picker; mean: those whose picker begins with the mean of all.
    """

    kind: str
    metrics: tuple[str, ...]
    filled: tuple[str, ...]
    empty: tuple[str, ...]
    x: str = ""
    y: str = ""
    x_title: str = ""
    style: str = ""
    pick: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()


def views(result: Result) -> list[View]:
    """The views of `result`'s table, in the order of its metrics."""
    table = result.table
    if "member" not in table:
        table = table.assign(member=" + ".join(result.members))
    places = [name for name in PLACES if name in table]
    texts = [name for name in TEXTS if name in table]
    shapes: dict[tuple[tuple[str, ...], tuple[str, ...], bool], list[str]] = {}
    for metric, rows in table.groupby("metric", sort=False):
        written = rows[texts].notna().any(axis=None) if texts else False
        filled = rows[places].notna()
        for pattern, own in rows.groupby([filled[name] for name in places] or [lambda _: True]):
            flags = pattern if isinstance(pattern, tuple) else (pattern,)
            at = tuple(n for n, there in zip(places, flags, strict=False) if places and there)
            names = tuple(_names(own, at))
            shapes.setdefault((at, names, bool(written)), []).append(str(metric))
    made = []
    for (at, names, written), metrics in shapes.items():
        rows = table[table["metric"].isin(metrics) & _patterned(table, places, at)]
        made.append(_view(result.analysis, rows, tuple(metrics), (at, names), places, written))
    return [one for one in made if one is not None]


def begins(result: Result) -> dict[str, str]:
    """The metric and the kind of view that an explorer of `result` begins with."""
    made = views(result)
    choices = [(metric, one.kind) for one in made for metric in one.metrics]
    wanted = BEGINS.get(result.analysis)
    strongest = [c for name in RECOVERED for c in choices if c[0] == name and c[1] != "dots"]
    plain = [c for c in choices if c[1] not in ("dots", "texts")]
    found = next(iter([c for c in choices if c == wanted] + strongest + plain + choices), None)
    return {} if found is None else {"metric": found[0], "kind": found[1]}


def _patterned(table: pd.DataFrame, places: list[str], at: tuple[str, ...]) -> pd.Series:
    wanted = pd.Series(True, index=table.index)
    for name in places:
        wanted &= table[name].notna() == (name in at)
    return wanted


def _names(rows: pd.DataFrame, at: tuple[str, ...]) -> Iterator[str]:
    """The columns that it takes, beside the member, to tell the rows of one metric apart."""
    order = [name for name in NAMES if name in rows and (name not in PLACES or name in at)]
    order += [name for name in rows if name not in (*NAMES, *VALUES, *TEXTS)]
    keys = ["member"]
    groups = rows.groupby(keys, dropna=False).ngroups
    for name in order:
        if groups == len(rows):
            return
        more = rows.groupby([*keys, name], dropna=False).ngroups
        if more > groups:
            keys, groups = [*keys, name], more
            yield name


def _view(
    analysis: str,
    rows: pd.DataFrame,
    metrics: tuple[str, ...],
    columns: tuple[tuple[str, ...], tuple[str, ...]],
    places: list[str],
    written: bool,
) -> View | None:
    """The view of rows that fill the places `at` and that `names` tell apart."""
    at, names = columns
    kind, x, y = ("texts", "", "") if written else _kind(rows, at)
    if not kind:
        return None
    left = [n for n in names if n not in (x, y) and rows[n].nunique(dropna=False) > 1]
    style = ""
    if kind == "points" and "prompt" in left:
        left.remove("prompt")  # every point is one
    if kind in ("lines", "dots", "points"):
        style = next((name for name in STYLED if name in left), "")
    if kind in ("dots", "points") and not style:
        style = next((name for name in left if name not in APART), "")
    pick = [name for name in left if name != style and (kind != "texts" or name in STYLED)]
    many = [name for name in pick if rows[name].nunique() >= MANY or name == "rank"]
    mean = tuple(many) if kind in ("heat", "lines") else ()
    title = X.get(analysis, "x") if x == "x" else x.replace("_", " ")
    empty = tuple(name for name in places if name not in at)
    return View(kind, metrics, at, empty, x, y, title, style, tuple(pick), mean)


def _kind(rows: pd.DataFrame, at: tuple[str, ...]) -> tuple[str, str, str]:
    """(kind, x, y) of rows with these places; no kind where no row has a value."""
    several = {name for name in rows if rows[name].nunique() > 1}
    spoken = "token" in rows and rows["token"].notna().any()
    across = [name for name in ACROSS if name in at and name in several]
    if spoken and "x" in several:  # cells of a map that are tokens
        across.append("x")
    if {"prompt", "position"} <= {*at} and spoken:
        return "tokens", "position", ""
    if not rows["value"].notna().any():
        return "", "", ""
    for first, second in PAIRED:
        if {first, second} <= several:
            return "matrix", second, first
    if "layer" in at and across:
        return "heat", across[0], "layer"
    for along in ("layer", "x", "rank"):
        if along in at and along in several and pd.api.types.is_numeric_dtype(rows[along]):
            return "lines", along, ""
    if "prompt" in at and "prompt" in several:
        known = "baseline" in rows and rows["baseline"].notna().any()
        return "points", "baseline" if known else "", ""
    return "dots", "", ""
