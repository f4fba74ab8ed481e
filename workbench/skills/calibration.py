"""Does a model know how likely it is to be right, before and after fine-tuning, and grafted?

Expected calibration error, sum over bins of n_b / n . |accuracy - mean confidence|, of the first
token of the answer: its most likely token, that token's probability, and whether it is the
answer's. Bins equally wide (Naeini et al., AAAI 2015) or of equally many prompts (Nixon et al.
2019, arXiv 1904.01685); the Brier score, mean (confidence - right)^2, needs no bins (Brier 1950).
Panigrahi et al. 2023 (arXiv 2302.06600) report that grafts are better calibrated than the model
they are taken from. It misleads if the estimate's upward bias is read as miscalibration: a
perfectly calibrated model whose confidences spread over the upper half shows about 0.051 with 10
bins and 200 prompts, 0.010 with 5,000. So every number is given together with the value of perfect
calibration for the same confidences and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench import stats
from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills.graft import Graft, require_own
from workbench.skills.scoring import Readout
from workbench.tasks import PromptSet

KEY = "skills.calibration"
DRAWS = 1000
Floats = NDArray[np.float64]


def reliability(sure: Floats, right: Floats, bins: int, *, mass: bool) -> list[dict[str, Any]]:
    """One row per bin that holds an item: bin, x (mean confidence), value (accuracy) with its
    Wilson interval, n. sure, right: (items,)."""
    place, rows = stats.bin_of(sure, bins, mass=mass), []
    for b in np.unique(place).tolist():
        here = place == b
        n, k = int(here.sum()), int(right[here].sum())
        rows.append({"bin": b, "x": sure[here].mean(), **stats.wilson(k, n)._asdict()})
    return rows


def errors(sure: Floats, right: Floats, bins: int, seed: int) -> Iterator[dict[str, Any]]:
    """ "ece", "ece_mass", "brier", "accuracy", "confidence" and "overconfidence" (confidence less
    accuracy), each with its interval over items and, as baseline, null_low and null_high, the mean
    and 95% range of a model that is right with its own confidence. sure, right: (items,)."""
    from sklearn.metrics import brier_score_loss

    for metric, mass in (("ece", False), ("ece_mass", True)):
        found, null = stats.calibration(sure, right, bins=bins, mass=mass, seed=seed, draws=DRAWS)
        yield {"metric": metric} | found._asdict() | _null(null.value, null.low, null.high)
    perfect = np.random.default_rng(seed).random((DRAWS, sure.size)) < sure
    squares, gaps = (sure - perfect) ** 2, sure - perfect
    for metric, items, drawn, mean in (
        ("brier", (sure - right) ** 2, squares, (sure * (1 - sure)).mean()),
        ("accuracy", right, perfect, sure.mean()),
        ("confidence", sure, None, np.nan),
        ("overconfidence", sure - right, gaps, 0.0),
    ):
        of = stats.shares if metric == "accuracy" else stats.ratios
        named = of(items, seed=seed).first._asdict()
        if metric == "brier":
            named["value"] = brier_score_loss(right, sure, pos_label=1)
        edges = (np.nan, np.nan) if drawn is None else np.quantile(drawn.mean(1), [0.025, 0.975])
        yield {"metric": metric} | named | _null(mean, *edges)


def _null(mean: float, low: float, high: float) -> dict[str, float]:
    return {"baseline": float(mean), "null_low": float(low), "null_high": float(high)}


def difference(
    one: tuple[Floats, Floats], other: tuple[Floats, Floats], bins: int, seed: int, *, mass: bool
) -> dict[str, float]:
    """The first's calibration error less the second's, resampled together over the same items.

    low and high are the range of this estimate over resamples, no interval for the difference of
    the true errors: the bias of either does not resample away.

    one, other: (confidence, right), each (items,). baseline, null_low, null_high: of two models
    that are right with their own confidences. The error's upward bias differs between a sure and an
    unsure model, so that this is not 0: a difference within that range shows nothing.
    """

    def errors_of(picks: NDArray[np.int64]) -> Floats:
        ours, theirs = (
            stats.calibration_error(sure[picks], right[picks], bins=bins, mass=mass)
            for sure, right in (one, other)
        )
        return ours - theirs

    n = one[0].size
    spread = errors_of(np.random.default_rng(seed).integers(0, n, (DRAWS, n)))
    low, high = stats.edges(spread, n)
    value = float(errors_of(np.arange(n)))
    draw = np.random.default_rng(seed)
    # Each is right on its own: the wider of the two nulls, where they may be right together.
    ours, theirs = (
        stats.calibration_error(sure, draw.random((DRAWS, n)) < sure, bins=bins, mass=mass)
        for sure, _ in (one, other)
    )
    null = ours - theirs
    interval = {"value": value, "low": low, "high": high, "n": n}
    return interval | _null(null.mean(), *np.quantile(null, [0.025, 0.975]))


@analysis(
    "Does the fine-tuned model's confidence match its accuracy?",
    paper="Naeini et al. 2015",
    example="--prompts task.jsonl",
    passes=2,
    takes={"prompts": "task", "others": "others"},
)
def calibration(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    grafts: Mapping[str, Graft] | None = None,
    bins: int = 10,
    others: Sequence[PromptSet] = (),
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Measure how well calibrated the base, the tuned model and grafts of it are.

    prompts: prompts with answers; for grafts of `localize` take the part it reports on
    (`localize.reported`), since no graft was trained on it. grafts: arm -> a graft of this pair, as
    `Graft.of` gives it. bins: the number of bins of the calibration error. others: further prompt
    sets that are asked. dtype: "float32" or "bfloat16", the precision in which the model runs; None
    means as stored. An adapter is merged in float32.

    Returns a Result with columns arm ("base", "tuned", the grafts' names), task, own (whether that
    set is `prompts`), metric: "ece", "ece_mass", "brier", "accuracy", "confidence",
    "overconfidence", each with a 95% interval over prompts and what perfect calibration gives
    (baseline, null_low, null_high); "ece_change" and "ece_mass_change", paired, against the tuned
    model, with what two perfectly calibrated models would give; and "reliability", a row per bin:
    binning ("width" or "mass"), bin, x (mean confidence), value (accuracy) with its Wilson
    interval, n.
    Raises WorkbenchError for fewer than 2 bins, or a graft of other parameters.
    """
    given = dict(grafts or {})
    if bins < 2:
        raise WorkbenchError(f"Expected at least 2 bins, found {bins}.")
    _require_own(pair, given)
    held, sets = pair.held(device), (prompts, *others)
    readout = Readout.of(held, sets, batch_size=batch_size, seed=seed, device=device, dtype=dtype)
    arms = {"base": readout.base, "tuned": readout.tuned}
    arms |= {name: readout.read(graft.edit(held)) for name, graft in given.items()}
    rows: list[dict[str, Any]] = []
    for place, asked in enumerate(sets):
        answered = {arm: _answered(reading[place]) for arm, reading in arms.items()}
        for arm, (sure, right) in answered.items():
            about = {"arm": arm, "task": asked.name, "own": place == 0}
            rows += [about | row for row in errors(sure, right, bins, seed)]
            for binning in ("width", "mass"):
                told = about | {"metric": "reliability", "binning": binning}
                curve = reliability(sure, right, bins, mass=binning == "mass")
                rows += [told | row for row in curve]
            if arm == "tuned":
                continue
            for metric, mass in (("ece_change", False), ("ece_mass_change", True)):
                both = (answered[arm], answered["tuned"])
                found = difference(*both, bins, seed, mass=mass)
                rows.append(about | {"metric": metric} | found)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "others": describe(list(others)), "bins": bins,
        "grafts": {name: [one.name, one.fingerprint] for name, one in given.items()},
        "batch_size": batch_size, "weights": "merged",
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **about)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *_notes(pair, table))))


def _answered(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """(confidence, right) of the first token; a probability may exceed 1 by rounding."""
    sure = frame["confidence"].to_numpy(float).clip(0, 1)
    return sure, frame["first_correct"].to_numpy(float)


def _require_own(pair: CheckpointPair, grafts: Mapping[str, Graft]) -> None:
    for name, graft in grafts.items():
        if name in ("base", "tuned"):
            raise WorkbenchError(
                f"A graft cannot be called {name!r}, since an arm of the result has "
                "this name; rename it."
            )
        require_own(pair, graft)


def _notes(pair: CheckpointPair, table: pd.DataFrame) -> Iterator[str]:
    small = table[table["metric"].eq("ece") & (table["value"] <= table["null_high"])]
    for task, rows in small.groupby("task", sort=False):
        yield (
            f"{pair.name}: with {int(rows['n'].iloc[0])} prompts of {task} a perfectly "
            "calibrated model shows an ECE as large as that of "
            f"{', '.join(rows['arm'])}; more prompts would be needed to distinguish them."
        )


__all__ = ["calibration"]
