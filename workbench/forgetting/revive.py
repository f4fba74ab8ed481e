"""Revival: how soon does a lost capability come back under training?

Each arm is trained for a few steps on the answers of the lost task and asked held-out prompts
after 1, 2, 4 ... steps. What was only suppressed comes back within a few (Jain et al. 2024, arXiv
2311.12786); what was erased has to be learned like anything else. So the curve of the tuned model
means nothing without that of a model that never knew:

    never           a model given for this, trained like the base but without the task: the control
    random weights  the same shape, which lacks language too: all else in the tuned model counts
                    as savings
    relabelled      the tuned model learning the same questions with the answers exchanged among
                    themselves: the same weights and as much to learn, but what tells the questions
                    apart may still be there, and then nothing is saved

savings is how far the curve lies above a control's, at the step where it is largest on one half of
the prompts, measured on the other half. The last two controls bound the answer from both sides; if
they disagree, only a model that never knew can decide.

Answers that are wrong by accident are right when they are asked again, trained or not, and so seem
to come back (regression to the mean). regained_share therefore counts the wrong answers of all
prompts that the base knows, before and after, those that training makes wrong among them:

    regained_share = 1 - (share of the tuned model's errors left) / (share of the control's left)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import Side, both, fresh, require_prompts
from workbench.lab.data import batches, prepare
from workbench.lab.recipe import Recipe
from workbench.lab.train import trainable, updates
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.devices import spread
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, edges, ratios, share_of, shares
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import answers

KEY = "forgetting.revive"
TUNED, BASE, NEVER, RELABELLED, RANDOM = "tuned", "base", "never", "relabelled", "random weights"
CONTROLS = (NEVER, RANDOM, RELABELLED)
STEPS = (1, 2, 4, 8, 16, 32)
Floats = NDArray[np.float64]


def relabelled(prompts: PromptSet, seed: int, targets: Sequence[str] = ()) -> PromptSet:
    """The same questions, every answer exchanged for another one by one fixed rule without a fixed
    point. targets: all answers there are, to have one rule for several sets."""
    names = sorted({*targets, *(p.target for p in prompts)})
    if len(names) < 2:
        raise WorkbenchError(
            f"All prompts of {prompts.name!r} have the answer {names[0]!r}; there is "
            "no other answer to exchange it for; give prompts with several answers."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    rule = {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
    made = tuple(
        replace(p, target=rule[p.target], foils=tuple(f for f in p.foils if f != rule[p.target]))
        for p in prompts
    )
    return replace(prompts, name=f"{prompts.name}, relabelled", prompts=made)


def regained(
    before: Floats, after: Floats, control_before: Floats, control_after: Floats,
    *, seed: int = 0, draws: int = 1000,
) -> Interval:  # fmt: skip
    """1 - (errors after / errors before) / (the control's errors after / before), with a 95%
    bootstrap over prompts: (own - control) / (1 - control) of the shares of the errors that
    training takes away. Each (prompts,), right answers from 0 to 1. NaN where the errors before are
    not known to be above 0, or the control has none left."""
    wrong = 1 - np.stack([before, after, control_before, control_after])
    n = wrong.shape[1]
    if not n or not ratios(wrong[0], seed=seed).low[0] > 0:
        return Interval(np.nan, np.nan, np.nan, n)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    sums = np.concatenate([wrong.sum(1)[None], times @ wrong.T])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 1 - sums[:, 1] * sums[:, 2] / (sums[:, 0] * sums[:, 3])
    if not np.isfinite(found[0]):
        return Interval(np.nan, np.nan, np.nan, n)
    return Interval(float(found[0]), *edges(found[1:][np.isfinite(found[1:])], n), n)


def steps_to(curve: Floats, steps: Sequence[int], threshold: float) -> float:
    """The first of `steps`, from 0, at which the curve is at the threshold; NaN if it never is."""
    reached = np.flatnonzero(curve >= threshold)
    return float((0, *steps)[reached[0]]) if reached.size else float("nan")


@analysis(
    "How soon does a lost capability come back under training?",
    paper="relearning, with its own controls",
    example="--prompts facts.jsonl --lessons more-facts.jsonl",
    passes=120,
    takes={"prompts": "task", "lessons": "lessons"},
    quick={"steps": (1, 2, 4, 8), "runs": 1, "batch_size": 8},
    few={"prompts": 24, "lessons": 64},
    quick_passes=20,
)
def revive(
    pair: CheckpointPair,
    prompts: PromptSet,
    lessons: PromptSet,
    *,
    never: str | Path | None = None,
    steps: Sequence[int] = STEPS,
    lr: float = 3e-4,
    threshold: float = 0.9,
    runs: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Compare how fast the tuned model, the base and models that never knew learn a lost
    capability.

    prompts: held-out prompts of the capability. lessons: prompts to train on, different from these;
    they may ask for the same facts in other words, which teaches what is asked. never: a model
    folder that was trained like the base but without the task. steps: the numbers of updates after
    which the scores are read. lr: the constant learning rate of AdamW; all of the blocks' matrices
    are trained on the answers' loss, in float32, `batch_size` prompts a step. threshold: the share
    of the base's score that counts as revived. runs: the number of training runs, each with another
    order of the lessons. Models that are passed in stay unchanged.

    The command line takes 24 prompts and 64 lessons, 8 of them a step, 8 steps and 1 run; with
    --full all prompts and lessons, 32 a step, 32 steps and 3 runs.

    Returns a Result with rows score (arm, x = steps, run; the answers that arm learns), per arm
    steps_to_threshold (mean over the runs that reach it, low and high the range; n: how many do),
    and for each control, at the step x that half of the prompts choose and on the other half,
    savings (arm "tuned", "base"; baseline 0), the score less the control's; and savings_share =
    tuned / base savings, 1 if the tuned model is back, 0 if it learns like one that never knew; NaN
    if the interval of the base's own holds 0. savings_share_lost is the same on those prompts alone
    that the base answered right and the tuned model wrong before training. regained_share (see
    above; baseline: the share of its errors that the control lost) is of the prompts that the base
    answered right (n), at the step of savings: 1 if all are right again, 0 if they come back as
    the control learns them. 95% intervals over prompts, of means over runs. Raises
    WorkbenchError for prompts that are among the lessons, steps that do not rise, or a device map.
    """
    require_prompts(prompts)
    require_prompts(lessons)
    _require(prompts, lessons, steps, runs)
    if spread(device):
        raise WorkbenchError(
            f"Revival trains copies of both sides, each on one device, found device={device!r}; "
            'give one, such as "cpu" or "cuda:0".'
        )
    base, tuned = both(pair, batch_size, device, dtype)
    targets = [p.target for p in (*prompts, *lessons)]
    other = relabelled(prompts, seed, targets), relabelled(lessons, seed, targets)
    arms: dict[str, tuple[Any, PromptSet, PromptSet]] = {
        TUNED: (tuned.own, prompts, lessons),
        BASE: (base.own, prompts, lessons),
        RELABELLED: (tuned.own, *other),
        RANDOM: (lambda: fresh(base.model, seed).float(), prompts, lessons),
    }
    if never is not None:
        known = Checkpoint.parse(never)
        arms[NEVER] = (Side(known, base.words, batch_size, device, dtype).own, prompts, lessons)
    curves: dict[str, Floats] = {}  # arm -> (runs, 1 + steps, prompts)
    total = len(arms) * runs
    with progress(total=total, desc=f"{pair.name}: revival") as bar:
        for arm, (model, asked, taught) in arms.items():
            found = []
            for run in range(runs):
                how = (tuple(steps), lr, batch_size, run)
                curve = partial(_curve, model, base.words, asked, taught, *how)
                # What the base learns is the same for every member of a family.
                known = ("revive", arm, asked.fingerprint, taught.fingerprint, *how, seed)
                found.append(base.once(known, curve) if arm in (BASE, RANDOM) else curve())
                bar.update()
            curves[arm] = np.stack(found)
    wanted = threshold * float(curves[BASE][:, 0].mean())
    rows = [*_scores(curves, steps, seed), *_steps(curves, steps, wanted),
            *_savings(curves, (0, *steps), seed)]  # fmt: skip
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "lessons": describe(lessons), "steps": list(steps),
        "never": None if never is None else Checkpoint.parse(never).fingerprint, "lr": lr,
        "threshold": threshold, "runs": runs, "batch_size": batch_size,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _require(prompts: PromptSet, lessons: PromptSet, steps: Sequence[int], runs: int) -> None:
    steps = tuple(steps)
    if not steps or steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
        raise WorkbenchError(f"Expected steps that rise from 1 or more, found {steps}.")
    if runs < 1:
        raise WorkbenchError(f"Expected 1 run or more, found {runs}.")
    shared = {p.text for p in prompts} & {p.text for p in lessons}
    if shared:
        raise WorkbenchError(
            f"{len(shared)} of the {len(prompts)} prompts are among the lessons, such as "
            f"{min(shared)!r}; score prompts that are not trained on."
        )


def _curve(
    made: Callable[[], Any], words: Any, asked: PromptSet, taught: Sequence[Prompt] | PromptSet,
    steps: Sequence[int], lr: float, batch_size: int, run: int,
) -> Floats:  # fmt: skip
    """(1 + steps, prompts): right answers before and while the model is trained."""
    recipe = Recipe(
        task=asked.name, method="full", lr=lr, steps=max(steps), batch_size=batch_size,
        loss="answer", seed=run, max_length=10**6,
    )  # fmt: skip
    source = batches(
        prepare(words, taught, recipe.loss, recipe.max_length), batch_size, recipe.seed, words
    )
    model = trainable(made(), recipe)

    def read() -> Floats:
        return answers(model, words, asked, batch_size=batch_size)["correct"].to_numpy(float)

    found = [read()]
    for step in updates(model, recipe, source):
        if step in steps:
            found.append(read())
    return np.stack(found)


def _scores(
    curves: Mapping[str, Floats], steps: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    before = float(curves[BASE][:, 0].mean())
    for arm, curve in curves.items():
        for run, own in enumerate(curve):
            found = shares(own, seed=seed)
            for i, x in enumerate((0, *steps)):
                interval = {name: part[i] for name, part in found._asdict().items()}
                told = {"arm": arm, "x": float(x), "run": run, "metric": "score"}
                yield told | interval | {"baseline": before}


def _steps(
    curves: Mapping[str, Floats], steps: Sequence[int], wanted: float
) -> Iterator[dict[str, Any]]:
    for arm, curve in curves.items():
        each = np.array([steps_to(own.mean(1), steps, wanted) for own in curve])
        reached = each[np.isfinite(each)]
        yield {
            "arm": arm, "metric": "steps_to_threshold", "n": len(reached), "x": wanted,
            "value": float(reached.mean()) if reached.size else np.nan,
            "low": float(reached.min()) if reached.size > 1 else np.nan,
            "high": float(reached.max()) if reached.size > 1 else np.nan,
        }  # fmt: skip


def _savings(
    curves: Mapping[str, Floats], steps: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    mean = {arm: curve.mean(0) for arm, curve in curves.items()}  # (steps, prompts)
    lost = np.flatnonzero((mean[BASE][0] == 1) & (mean[TUNED][0] == 0))
    yield from _saved(mean, np.arange(mean[BASE].shape[1]), steps, "", seed)
    yield from _saved(mean, lost, steps, "_lost", seed)


def _saved(
    mean: Mapping[str, Floats], among: NDArray[np.intp], steps: Sequence[int], of: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Savings among some of the prompts. mean: arm -> (steps, prompts)."""
    if len(among) < 4:  # too few to choose on some and report on others
        nothing = {"value": np.nan, "low": np.nan, "high": np.nan, "n": len(among)}
        for control in [arm for arm in CONTROLS if arm in mean]:
            told = {"arm": TUNED, "control": control, "metric": f"savings_share{of}"}
            yield told | nothing | {"baseline": 1.0}
        return
    choose, report = np.array_split(np.random.default_rng(seed).permutation(among), 2)
    for control in [arm for arm in CONTROLS if arm in mean]:
        above = (mean[TUNED] - mean[control])[1:, choose].mean(1)
        place = 1 + int(above.argmax())
        saved = {arm: (mean[arm] - mean[control])[place, report] for arm in (TUNED, BASE)}
        told = {"control": control, "x": float(steps[place])}
        for arm, own in saved.items():
            interval = ratios(own, seed=seed).first._asdict()
            yield told | {"arm": arm, "metric": f"savings{of}"} | interval | {"baseline": 0.0}
        found = share_of(saved[TUNED], saved[BASE], seed=seed)._asdict()
        yield told | {"arm": TUNED, "metric": f"savings_share{of}"} | found | {"baseline": 1.0}
        if not of:
            known = report[mean[BASE][0, report] == 1]
            ours, other = (mean[arm][[0, place]][:, known] for arm in (TUNED, control))
            wrong = 1 - other.mean(1) if len(known) else np.full(2, np.nan)
            learned = float(1 - wrong[1] / wrong[0]) if wrong[0] > 0 else np.nan
            back = regained(*ours, *other, seed=seed)._asdict()
            yield told | {"arm": TUNED, "metric": "regained_share"} | back | {"baseline": learned}
