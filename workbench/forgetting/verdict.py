"""The verdict on one capability: kept, suppressed or erased?

No single number decides this. Five measurements are put on one scale if they have one (1: as in the
base, 0: as if it had never been learned), each with its interval and its control:

    output     right answers, as a share of the base's
    loss       nats per token on the capability's own texts, tuned - base (0: as in the base)
    probe      what a linear probe still reads of the lost answers, against random weights
    revival    what training brings back of the lost answers before a model that never knew has them
    conjugate  what comes back of the lost answers where fine-tuning never was

The last three only ask for the answers that were lost: what the model still answers, it still has.
Of answers that are chosen for being wrong some are right the next time by luck alone, so revival
and conjugates are what comes back net of what goes wrong elsewhere (`regained_share` of `revive`,
`recovery_net` of `conjugate`); the share of the lost answers alone can only show that too few do.

If the output is kept, the verdict is KEPT. If the output is lost, it is SUPPRESSED if probe and
revival find the capability, or one of them and the conjugates do, and neither probe nor revival
finds nothing. It is ERASED if probe and revival find nothing, and conjugates, if they were asked,
find nothing either. Everything else is UNDECIDED, and the sentence states what is missing.
Conjugates that recover nothing are no evidence against a suppression: they may have been the wrong
ones. It errs to the side of UNDECIDED: of 11 compiled pairs, asked 12 prompts and without a model
that never knew, it is right on 5, all of them kept, and decides none that lost its answers, where
revival by itself tells suppressed from erased on all (`make truth`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.conjugate import BEST as BEST_CONJUGATE
from workbench.forgetting.conjugate import conjugate
from workbench.forgetting.probe import TooFew, probe
from workbench.forgetting.revive import NEVER, RANDOM, RELABELLED, STEPS, revive
from workbench.forgetting.side_answers import both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import LEAST, bootstrap, ratios, share
from workbench.tasks.prompts import PromptSet

KEY = "forgetting.verdict"
KEPT, SUPPRESSED, ERASED, UNDECIDED = "KEPT", "SUPPRESSED", "ERASED", "UNDECIDED"
THERE, GONE, UNCLEAR, UNMEASURED = "kept", "lost", "unclear", "not measured"
WHOLE = 0.9  # an answered share of the base's that counts as kept
HALF = 0.5  # of what the base has hidden inside
CAPABLE = 0.1  # right answers of a base that has the capability at all
RISEN = 0.05  # nats per token of a loss that says something
USED = ("forgetting.probe", "forgetting.revive", "forgetting.conjugate")
Row = dict[str, Any]


def reading(row: Mapping[str, Any], line: float) -> str:
    """On which side of the line an interval lies. row: low, high, n; of fewer than 8 items
    nothing is said, see `stats.LEAST`."""
    low, high = row["low"], row["high"]
    if np.isnan(low) or np.isnan(high) or row["n"] < LEAST:
        return UNCLEAR
    return THERE if low >= line else GONE if high < line else UNCLEAR


def judged(readings: Mapping[str, str]) -> str:
    """The verdict that the readings of output, probe, revival and conjugate support."""
    output = readings["output"]
    if output != GONE:
        return KEPT if output == THERE else UNDECIDED
    inside = [readings.get(name, UNMEASURED) for name in ("probe", "revival")]
    elsewhere = readings.get("conjugate", UNMEASURED)
    if GONE not in inside and [*inside, elsewhere].count(THERE) >= 2:
        return SUPPRESSED
    if inside == [GONE, GONE] and elsewhere in (GONE, UNMEASURED):
        return ERASED
    return UNDECIDED


@analysis(
    "Is a capability of the base kept, suppressed or erased in the fine-tuned model?",
    paper="the other tests of forgetting, combined",
    example="--prompts facts.jsonl --lessons more-facts.jsonl",
    passes=1,
    takes={"prompts": "task", "results": "results"},
    needs=("learned",),
    quick={"steps": (1, 2, 4, 8), "runs": 1, "batch_size": 8},
    few={"prompts": 24, "lessons": 64, "conjugates": 24, "task": 24},
)
def verdict(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    lessons: PromptSet | None = None,
    conjugates: Mapping[str, PromptSet] | None = None,
    task: PromptSet | None = None,
    never: str | Path | None = None,
    results: Iterable[Result] = (),
    steps: Sequence[int] = STEPS,
    runs: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Decide whether this capability of the base is kept, suppressed or erased in the tuned model.

    prompts: held-out prompts of the capability. lessons: prompts to revive it with, different from
    these. conjugates, task: as in `conjugate`. never, steps, runs: as in `revive`. results: earlier
    results of `probe`, `revive` and `conjugate` for this model and capability; only what is missing
    among them is run, and without lessons or conjugates that part is not measured.

    The command line takes 24 prompts and 64 lessons, 8 of them a step, 8 steps and 1 run; with
    --full all prompts and lessons, 32 a step, 32 steps and 3 runs.

    Returns a Result with a row "evidence" for each of output, loss, probe, revival and conjugate
    (arm; value, 95% interval, n; baseline: what the control gives on the same scale; control, its
    name; reading "kept", "lost", "unclear" or "not measured") and a row "verdict" (reading: KEPT,
    SUPPRESSED, ERASED or UNDECIDED; says: the sentence it supports). Output is kept from 0.9 of the
    base's answers on, probe, revival and conjugate from one half on, by the whole interval and with
    8 prompts or more; the loss has risen from 0.05 nats on (thresholds of this project). Revival
    is against `never`; without it, revival counts as kept only if it also beats the relabelled
    answers, see `revive`. Raises WorkbenchError for an empty prompt set.
    """
    require_prompts(prompts)
    run: dict[str, Any] = {
        "batch_size": batch_size, "seed": seed, "device": device, "dtype": dtype,
    }  # fmt: skip
    found = {r.analysis: _of(r, pair.name, prompts) for r in results if r.analysis in USED}
    if "forgetting.probe" not in found:
        with contextlib.suppress(TooFew):  # stays unmeasured
            found["forgetting.probe"] = probe(pair, prompts, **run).table
    if "forgetting.revive" not in found and lessons is not None:
        found["forgetting.revive"] = revive(
            pair, prompts, lessons, never=never, steps=steps, runs=runs, **run
        ).table
    if "forgetting.conjugate" not in found and conjugates:
        made = conjugate(pair, prompts, conjugates, task=task, **run)
        found["forgetting.conjugate"] = made.table
    base, tuned = both(pair, batch_size, device, dtype)
    rows = [_output(base, tuned, prompts, seed), _loss(base, tuned, prompts, seed)]
    rows += [_probe(found), _revival(found), _conjugate(found)]
    decided = judged({row["arm"]: row["reading"] for row in rows})
    says = sentence(pair.name, prompts.name, decided, rows)
    last = {"arm": "verdict", "metric": "verdict", "value": np.nan, "n": len(prompts)}
    table = pd.DataFrame([*rows, last | {"reading": decided, "says": says}])
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "lessons": describe(lessons),
        "conjugates": describe(dict(conjugates)) if conjugates else None, "task": describe(task),
        "never": None if never is None else str(never), "steps": list(steps), "runs": runs,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def sentence(member: str, task: str, decided: str, rows: Sequence[Row]) -> str:
    """What the grid supports, in one sentence with its numbers."""
    told = {row["arm"]: row for row in rows}
    opening = {
        KEPT: f"{task} is kept in {member}",
        SUPPRESSED: f"{task} is suppressed in {member}, not erased",
        ERASED: f"{task} is erased in {member}, as far as these measurements show",
        UNDECIDED: f"{task} in {member} is undecided",
    }[decided]
    spoken = [f"it answers {_number(told['output'])} of what the base does"]
    phrases = {
        "probe": "of the lost answers a probe still reads {} of what it reads in the base",
        "revival": "training brings back {} of them against the control",
        "conjugate": "conjugate prompts bring back {}",
    }
    if decided != KEPT:
        spoken += [
            phrases[name].format(_number(told[name])) for name in phrases
            if told[name]["reading"] != UNMEASURED and np.isfinite(told[name]["value"])
        ]  # fmt: skip
        missing = [name for name in phrases if told[name]["reading"] == UNMEASURED]
        spoken += [f"{' and '.join(missing)} not measured"] if missing else []
    return f"{opening}: {'; '.join(spoken)}."


def _number(row: Row) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _of(result: Result, member: str, prompts: PromptSet) -> pd.DataFrame:
    """The rows of one member and capability; raises where there are none."""
    own, task = result.table[result.table["member"] == member], prompts.name
    asked = result.provenance.parameters["prompts"]["fingerprint"]
    if own.empty or asked != prompts.fingerprint:
        raise WorkbenchError(
            f"The result {result.analysis} given has no rows of {member} on these prompts of "
            f"{task!r}; it has {sorted(set(result.table['member']))} on "
            f"{sorted(set(result.table['task']))}."
        )
    return own


def _row(arm: str, interval: Mapping[str, Any], read: str, control: str, baseline: float) -> Row:
    kept = {name: interval[name] for name in ("value", "low", "high", "n")}
    told = {"arm": arm, "metric": "evidence", "reading": read, "control": control}
    return told | kept | {"baseline": baseline}


def _unmeasured(arm: str) -> Row:
    nothing = {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    return _row(arm, nothing, UNMEASURED, "", np.nan)


def _output(base: Any, tuned: Any, prompts: PromptSet, seed: int) -> Row:
    first, last = (side.answers(prompts)["correct"].to_numpy(float) for side in (base, tuned))
    if not share(first, seed=seed).low > CAPABLE:
        nothing = {"value": np.nan, "low": np.nan, "high": np.nan, "n": len(first)}
        few = (
            "the base itself does not have the capability"
            if len(first) > 1
            else "one prompt is not enough"
        )
        return _row("output", nothing, UNCLEAR, few, 1.0)
    found = ratios(last, first, seed=seed).first
    return _row("output", found._asdict(), reading(found._asdict(), WHOLE), "base", 1.0)


def _loss(base: Any, tuned: Any, prompts: PromptSet, seed: int) -> Row:
    ours, theirs = base.losses(prompts.texts), tuned.losses(prompts.texts)
    found = bootstrap(theirs.values - ours.values, ours.weights, seed=seed)
    read = GONE if found.low > RISEN else THERE if found.high <= RISEN else UNCLEAR
    return _row("loss", found._asdict(), read, "base", 0.0)


def _probe(found: Mapping[str, pd.DataFrame]) -> Row:
    if "forgetting.probe" not in found:
        return _unmeasured("probe")
    own = found["forgetting.probe"].set_index("metric").loc["retention_lost"]
    return _row("probe", own, reading(own, HALF), "random weights", 0.0)


def _revival(found: Mapping[str, pd.DataFrame]) -> Row:
    if "forgetting.revive" not in found:
        return _unmeasured("revival")
    table = found["forgetting.revive"]
    shares, net = (
        table[table["metric"] == metric].set_index("control")
        for metric in ("savings_share_lost", "regained_share")
    )
    # Of a single prompt nothing is known net.
    net = net.reindex(shares.index).fillna({"n": 0})
    if NEVER in shares.index:
        return _came_back("revival", shares.loc[NEVER], net.loc[NEVER], NEVER, 0.0)
    made = _came_back("revival", shares.loc[RANDOM], net.loc[RANDOM], RANDOM, 0.0)
    # A model of random weights lacks all else, too: alone it shows no relic of this capability.
    if made["reading"] == THERE and not net.loc[RELABELLED, "low"] >= HALF:
        made["reading"] = UNCLEAR
    return made


def _came_back(arm: str, lost: Any, net: Any, control: str, baseline: float) -> Row:
    """There by what comes back net, gone by the share of the lost answers; lost, net: those two."""
    read = THERE if reading(net, HALF) == THERE else UNCLEAR
    read = GONE if reading(lost, HALF) == GONE else read
    return _row(arm, net, read, control, baseline)


def _conjugate(found: Mapping[str, pd.DataFrame]) -> Row:
    if "forgetting.conjugate" not in found:
        return _unmeasured("conjugate")
    table = found["forgetting.conjugate"]
    best = table[table["arm"] == BEST_CONJUGATE].set_index("metric")
    if "recovery_net" not in best.index:
        return _unmeasured("conjugate")
    lost, net = best.loc["recovery_lost"], best.loc["recovery_net"]
    control = f"an equal wording; chosen: {lost['chosen']}"
    return _came_back("conjugate", lost, net, control, 0.0)
