"""Repair: which edit gives back most of what was forgotten, and what does it cost?

For each kind of edit (`workbench.edits.kinds`) and strength s: the task's score, the loss on text
like the pre-training data, and scores of other tasks. A strength is chosen on one half of the
prompts and texts, as the one whose loss is least among those whose score is no more than `cost`
below the fine-tuned model's; the change is reported on the other half, where nothing was chosen.
Sources of the edits: arXiv 2410.21228v3 (intruders), 2109.01903 (alpha), 2406.08903 and 2402.10193
(compression), 2509.16596 (setting entries back), 2603.03995 (directions weighed by a gradient).

    regained = (loss(tuned) - loss(edited)) / (loss(tuned) - loss(base))

It misleads if a smaller change would do as well: alpha is the control of every other kind, and each
has a row for its gain beyond alpha at the strength that alpha's half chose. And it misleads if the
texts are like the fine-tuning data too: then nothing was forgotten, and regained is a ratio to
nothing, which is NaN here unless the loss rose for certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.edits.kinds import KINDS, Settings, edits, require_strength
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Edit, merged
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, bootstrap, change, halves, share, share_of
from workbench.tasks.measurements import Items, losses, own_samples, scores
from workbench.tasks.prompts import PromptSet

KEY = "edits.repair"
TEXTS = "pretraining"
ARMS = ("alpha", "layers", "intruders", "movement", "random", "rank", "harmful", "reweighted")
COST = 0.02  # of the score that a chosen edit may lose, as in `skills.restore`
MARGIN = 0.05  # of the score: a repair that surely costs less is recommended, as in `findings`
LEAST = 8  # prompts, and texts: a half of them chooses, the other reports
CHOSEN = "chosen"
Floats = NDArray[np.float64]
Point = Mapping[str, Items]  # what is measured -> its items
Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One kind of edit along its strengths; the fine-tuned model is the first."""

    kind: str
    strengths: tuple[float, ...]
    points: tuple[Point, ...]

    def means(self, what: str, half: NDArray[np.intp]) -> Floats:
        return np.array([_mean(point[what], half) for point in self.points])


def chosen(loss: Floats, score: Floats, cost: float = COST) -> int:
    """The place of the least loss among those whose score is at most `cost` below the first's.

    loss, score: (strengths,), the fine-tuned model first, which is the answer where no edit that
    keeps the score has a smaller loss.
    """
    fine = score >= score[0] - cost - 1e-9
    return int(np.where(fine, loss, np.inf).argmin())


@analysis(
    "Which edit gives back what was forgotten, at no cost to the learned task?",
    paper="arXiv 2410.21228, 2109.01903",
    example="--prompts task.jsonl --texts wiki.txt --arms alpha,intruders",
    passes=80,
    quick={"arms": ("alpha", "intruders", "movement", "random")},
    few={"prompts": 48, "others": 24},
    quick_passes=40,
)
def repair(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    others: Sequence[PromptSet] = (),
    texts: Sequence[str] | None = None,
    arms: Sequence[str] = ARMS,
    strengths: Sequence[float] | None = None,
    cost: float = COST,
    k: int = 10,
    eps: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Measure the edited models along the strengths of each kind of edit.

    prompts: of the learned task, at least 8. others: further prompt sets, such as tasks that were
    lost, which are reported and do not choose. texts: at least 8 texts like the pre-training data;
    None takes texts sampled from the base. arms: kinds of edit: alpha, layers, intruders, rank,
    movement, random, harmful, reweighted, 1-bit or tiers; alpha, the control of the others, is
    always among them; what harms is read from the half of the texts that chooses. strengths: those
    that every arm tries; None takes each kind's own. cost: of the task's score that a chosen edit
    may lose, on the half that chooses. k, eps: which vectors are intruders, as in
    `spectral.intruders`. dtype: "float32" or "bfloat16", the precision in which the model runs. An
    adapter is merged in float32 before it is edited.

    The command line takes 48 prompts, 24 of each other set, and the arms alpha, intruders, movement
    and random; with --full all prompts and eight arms.

    Returns a Result with columns arm, x (the strength), task, own (whether the task is `prompts`),
    metric: "score" and, of task "pretraining", "loss" (nats per token), with 95% intervals over all
    prompts or texts (baseline: the fine-tuned model's); arm "tuned" and arm "base" have the ends.
    Of the strength that one half chose, on the other half: "chosen_score_change" and
    "chosen_loss_change", edited less tuned, paired over items (baseline 0), "chosen_regained", the
    share of the rise of the loss that is given back (NaN, with a note, where the loss did not rise
    for certain), and for every arm but alpha "chosen_loss_beyond", its loss less that of the alpha
    that was chosen. "recommended" is 1 where the interval of the loss's change lies below 0 and
    that of the score's above -0.05, else 0: few prompts recommend nothing. Raises WorkbenchError
    for an unknown arm or strength, or fewer than 8 prompts or texts.
    """
    arms = _require(prompts, texts, arms, strengths)
    words = pair.base.tokenizer()
    precision = named_dtype(dtype)
    base: Any = pair.base.load(device, precision).eval()
    texts = own_samples(base, words, seed=seed) if texts is None else list(texts)
    sets = (prompts, *others)

    def measure(model: Any) -> Point:
        found = {one.name: scores(model, words, one, batch_size) for one in sets}
        return found | {TEXTS: losses(model, words, texts, batch_size)}

    ends = {"base": measure(base)}
    del base
    model = merged(pair, device, precision or torch.float32)
    ends["tuned"] = tuned = measure(model)
    held = pair.held(device)
    settings = Settings(seed, k, eps, device, choosing(texts, seed))
    curves = []
    for arm in arms:
        at = edits(held, arm, settings)
        tried = _tried(pair, arm, strengths)
        points = [tuned]
        for s in progress(tried, desc=f"{pair.name}: {arm}"):
            points.append(_measured(at(s), model, measure))
        curves.append(Curve(arm, (_whole(arm), *tried), tuple(points)))
    parts = {name: halves(len(items.values), seed) for name, items in tuned.items()}
    rows: list[Row] = [*_ends(ends, sets, seed)]
    for curve in curves:
        rows += _along(curve, sets, seed)
    rows += _reported(curves, ends["base"], prompts.name, parts, cost, seed)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "others": describe(list(others)),
        "texts": describe(list(texts)), "arms": list(arms),
        "strengths": None if strengths is None else list(strengths), "cost": cost, "k": k,
        "eps": eps, "batch_size": batch_size, "weights": "merged",
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def choosing(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The half of the texts that chooses a strength, and says what harms them."""
    return [texts[int(i)] for i in halves(len(texts), seed)[0]]


def _require(
    prompts: PromptSet,
    texts: Sequence[str] | None,
    arms: Sequence[str],
    strengths: Sequence[float] | None,
) -> tuple[str, ...]:
    """The arms that run, alpha first: what the others are compared with."""
    few = {"prompts": len(prompts)} | ({} if texts is None else {"texts": len(texts)})
    for what, n in few.items():
        if n < LEAST:
            raise WorkbenchError(
                f"Expected {LEAST} {what} or more, a half to choose a strength on and a half to "
                f"report on; found {n}."
            )
    every = tuple(dict.fromkeys(("alpha", *arms)))
    for arm in every:
        for strength in strengths or KINDS[arm].tried if arm in KINDS else (1.0,):
            require_strength(arm, strength)
    return every


def _tried(pair: CheckpointPair, arm: str, strengths: Sequence[float] | None) -> tuple[float, ...]:
    """Beside the fine-tuned model itself, which a LoRA's own rank gives again."""
    known = KINDS[arm]
    own = pair.tuned.about.get("rank") if arm == "rank" else None
    wanted = (s for s in strengths or known.tried if s != known.whole)
    return tuple(s for s in wanted if own is None or s < own)


def _whole(arm: str) -> float:
    """The strength at which a row of the fine-tuned model itself stands; NaN where there is none
    that a table could hold."""
    whole = KINDS[arm].whole
    return math.nan if whole is None or math.isinf(whole) else whole


def _measured(made: Edit, model: Any, measure: Callable[[Any], Point]) -> Point:
    with made.on(model) as edited:
        return measure(edited)


def _mean(items: Items, half: NDArray[np.intp]) -> float:
    return float(np.average(items.values[half], weights=items.weights[half]))


def _row(what: str, sets: Sequence[PromptSet], items: Items, before: Items, seed: int) -> Row:
    """The mean of one measurement with its interval; baseline: the fine-tuned model's."""
    loss = what == TEXTS
    found = bootstrap(*items, seed=seed) if loss else share(items.values, seed=seed)
    told = {"task": what, "own": what == sets[0].name, "metric": "loss" if loss else "score"}
    return told | found._asdict() | {"baseline": bootstrap(*before, seed=seed).value}


def _ends(ends: Mapping[str, Point], sets: Sequence[PromptSet], seed: int) -> Iterator[Row]:
    for arm, point in ends.items():
        for what, items in point.items():
            yield {"arm": arm} | _row(what, sets, items, ends["tuned"][what], seed)


def _along(curve: Curve, sets: Sequence[PromptSet], seed: int) -> Iterator[Row]:
    for strength, point in zip(curve.strengths, curve.points, strict=True):
        if math.isfinite(strength):  # the whole change is arm "tuned" for ranks
            for what, items in point.items():
                told = {"arm": curve.kind, "x": strength}
                yield told | _row(what, sets, items, curve.points[0][what], seed)


def _reported(
    curves: Sequence[Curve],
    base: Point,
    task: str,
    parts: Mapping[str, tuple[NDArray[np.intp], NDArray[np.intp]]],
    cost: float,
    seed: int,
) -> Iterator[Row]:
    """What the strength that one half chose does on the other half."""
    control: Point = {}
    for curve in curves:
        place = chosen(curve.means(TEXTS, parts[TEXTS][0]), curve.means(task, parts[task][0]), cost)
        before, now = (
            {what: Items(*(part[parts[what][1]] for part in items)) for what, items in one.items()}
            for one in (curve.points[0], curve.points[place])
        )
        at_base = Items(*(part[parts[TEXTS][1]] for part in base[TEXTS]))
        control = control or now
        told: Row = {"arm": curve.kind, "x": curve.strengths[place]}
        found: list[tuple[str, str, Interval]] = []
        for what in now:
            if what == TEXTS:
                moved = now[what].values - before[what].values
                found.append((what, "loss_change", bootstrap(moved, now[what].weights, seed=seed)))
            else:
                both = before[what].values, now[what].values
                found.append((what, "score_change", change(*both, same=place == 0, seed=seed)))
        loss, score = (next(i for w, _, i in found if w == what) for what in (TEXTS, task))
        rise = before[TEXTS].values - at_base.values
        given = (before[TEXTS].values - now[TEXTS].values) * now[TEXTS].weights
        found.append((TEXTS, "regained", share_of(given, rise * now[TEXTS].weights, seed=seed)))
        if curve is not curves[0]:
            beyond = now[TEXTS].values - control[TEXTS].values
            found.append((TEXTS, "loss_beyond", bootstrap(beyond, now[TEXTS].weights, seed=seed)))
        for what, metric, interval in found:
            own = {"task": what, "own": what == task, "metric": f"{CHOSEN}_{metric}"}
            yield told | own | interval._asdict() | {"baseline": 0.0}
        good = loss.high < 0 and score.low > -MARGIN
        yield told | {"task": task, "own": True, "metric": "recommended", "value": float(good)}
