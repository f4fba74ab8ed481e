"""Linear probes: can the answer still be read from the residual stream, whatever the model answers?

At each depth a linear classifier reads the label (the answer, or a tag of the prompt) from the
residual stream at one token, on the base and on the tuned model. Features are standardised; the
classifier is ridge, its strength chosen inside each training fold; every prompt is read by a probe
that never saw it. If fine-tuning only wrapped the capability, the probe stays as good as before; if
the feature is erased, the probe falls to chance (Jain et al. 2024, arXiv 2311.12786).

It misleads if the probe learns the task itself, so there are two controls: a probe of the same
stream for shuffled labels (selectivity, Hewitt & Liang 2019, arXiv 1909.03368) and one of a model
with random weights, which knows the words of the prompt and nothing else. The model need not use
what a probe finds.

How much of what a probe reads can be put in words? With basis="vocabulary" it also reads the state
through k rows of the unembedding alone, those that explain the states best: the accuracy retention
rate of Shen et al. 2025 (arXiv 2510.24105v1, of images) with words as the concepts and one k,
beside k random directions. The final norm's gain is left out.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import (
    Side,
    both,
    fresh,
    lost_prompts,
    require_prompts,
    streams,
)
from workbench.forgetting.vocabulary import explaining, turned, unembedding
from workbench.loaders import CheckpointPair
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, ratios, share_of, shares
from workbench.tasks.batching import encode
from workbench.tasks.prompts import PromptSet
from workbench.tasks.transforms import question

KEY = "forgetting.probe"
STRENGTHS = tuple(10.0**power for power in range(-1, 6))
SHUFFLED = {"base": "base, shuffled", "tuned": "tuned, shuffled"}
RANDOM = "random weights"
BEST = "best layer"
READOUTS = ("{}, vocabulary", "{}, random directions")
Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class TooFew(WorkbenchError):
    """There are too few prompts a label for a probe."""


def parted(
    labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> list[tuple[Places, Places]]:
    """The prompts to learn from and those to read, of every fold; those of one group stand in
    one."""
    from sklearn.model_selection import StratifiedGroupKFold

    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(parts.split(labels, labels, groups))


def right(
    features: Floats, labels: NDArray[np.int64], parts: list[tuple[Places, Places]]
) -> Floats:
    """(prompts,) 1 where the probe, cross-validated over these `parts`, reads the label. features:
    (prompts, width)."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=STRENGTHS))
    found = cross_val_predict(reader, features, labels, cv=parts)
    return (found == labels).astype(float)


@analysis(
    "Can a lost answer still be read from the residual stream?",
    paper="arXiv 1909.03368, 2510.24105",
    example="--prompts facts.jsonl",
    passes=3,
    takes={"prompts": "task"},
    needs=("learned",),
)
def probe(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    label: str | None = None,
    group: Sequence[str] = (),
    position: int | str = -1,
    folds: int = 5,
    basis: Literal["state", "vocabulary"] = "state",
    k: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Train cross-validated linear probes at every depth of both models.

    prompts: prompts of the capability that may be lost. label: the tag that the probe predicts
    (default: the first token of the answer). group: tags that define which prompts ask the same;
    these are never split between training and test of a probe. Without tags, prompts with the same
    last sentence and answer are one group. Labels of fewer such groups than folds are left out.
    position: the token whose stream is read, by default the last of the prompt; the mean over a
    named span. folds: the number of folds of the cross-validation. basis: "vocabulary" also reads
    the state through k directions of the vocabulary. k: how many these are.

    Returns a Result with rows accuracy (arm "base", "tuned", their "shuffled" controls, "random
    weights"; layer, -1 for the embedding; baseline: the commonest label's share), accuracy_change
    (tuned - base, paired), selectivity (arm base, tuned: accuracy less that for labels shuffled
    among groups), and, arm "best layer", at the base's best layer, chosen on one half of the
    prompts and reported on the other, retention = (tuned - random weights) / (base - random
    weights), 1 for a kept and 0 for an erased label; NaN where the interval of the base's own gain
    holds 0. retention_lost is the same on the prompts that the base answers right and the tuned
    model wrong, its layer chosen on all others (on half of these where there are none): what is
    still there of what is lost. With basis="vocabulary" accuracy also of the arms "base,
    vocabulary" and "base, random directions" (and of the tuned model), kept (arm base, tuned), the
    accuracy through the vocabulary over that of the full state (baseline: through directions
    chosen in the same way from the vocabulary turned at random), and kept_beyond_random, the
    difference of the two accuracies, paired. 95% intervals over prompts. Raises WorkbenchError for
    fewer than two labels with enough prompts.
    """
    require_prompts(prompts)
    if k < 1 or basis not in ("state", "vocabulary"):
        raise WorkbenchError(
            'Expected basis "state" or "vocabulary" and k of at least 1 direction, found '
            f"{basis!r} and {k}."
        )
    base, tuned = both(pair, batch_size, device, dtype)
    labels, given = _labels(base, prompts, label), prompts
    prompts, codes, groups, dropped = _enough(prompts, labels, _groups(prompts, group), folds)
    shuffled = _shuffled(codes, groups, seed)
    read: dict[str, Floats] = {}
    seen: dict[str, Any] = {
        "base": base.streams(prompts, position),
        "tuned": tuned.streams(prompts, position),
    }
    never = fresh(base.model, seed)
    seen[RANDOM] = streams(never, base.words, prompts, position, batch_size)
    asked = [(arm, arm, codes) for arm in seen]
    asked += [(control, arm, shuffled) for arm, control in SHUFFLED.items()]
    if basis == "vocabulary":
        for arm, side in (("base", base), ("tuned", tuned)):
            for name, found in zip(READOUTS, _read_out(side, seen[arm], k, seed), strict=True):
                seen[name.format(arm)] = found
                asked.append((name.format(arm), name.format(arm), codes))
    total = len(asked) * len(seen["base"])
    with progress(total=total, desc=f"{pair.name}: probes") as bar:
        for arm, side, wanted in asked:
            found, parts = [], parted(wanted, groups, folds, seed)
            for features in seen[side]:
                with warnings.catch_warnings():  # a constant column is no fault of the prompts
                    warnings.simplefilter("ignore", RuntimeWarning)
                    found.append(right(features.astype(float), wanted, parts))
                bar.update()
            read[arm] = np.stack(found)
    common = max(Counter(codes.tolist()).values()) / len(codes)
    lost = lost_prompts(base, tuned, prompts)
    gone, still = np.flatnonzero(lost), np.flatnonzero(~lost)
    if not len(still):  # a perfect wrapper
        still, gone = halves(len(codes), seed)
    table = pd.DataFrame([
        *_depths(read, common, seed),
        *_best(read, "retention", *halves(len(codes), seed), seed),
        *_best(read, "retention_lost", still, gone, seed),
    ])  # fmt: skip
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    table["layer"] = table["layer"].astype("Int64")
    parameters = {"prompts": describe(given), "label": label or "answer",
                  "group": list(group), "position": position, "folds": folds,
                **({"basis": basis, "k": k} if basis != "state" else {})}  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    if dropped:
        note = (
            f"{pair.name}: {dropped} prompts of {prompts.name} have a label that fewer than "
            f"{folds} questions share and are left out; {len(set(codes))} labels, {len(codes)} "
            "prompts."
        )
        provenance = provenance.with_notes((*provenance.notes, note))
    return finished(KEY, table, provenance)


def _read_out(side: Side, states: Floats, k: int, seed: int) -> tuple[list[Floats], list[Floats]]:
    """The states of every depth in the coordinates of k words, and of as many directions chosen in
    the same way from the vocabulary turned at random."""
    words = unembedding(side.model)
    found: tuple[list[Floats], list[Floats]] = ([], [])
    for rows, made in zip((words, turned(words, seed)), found, strict=True):
        for own in states.astype(float):
            frame, _ = explaining(own, rows, k)
            # Where no row explains anything, nothing is read.
            made.append(own @ frame if frame.size else np.zeros((len(own), 1)))
    return found


def _labels(base: Side, prompts: PromptSet, label: str | None) -> list[Any]:
    if label is None:
        return [one.ids[one.start] for one in (encode(base.words, p) for p in prompts)]
    without = sum(label not in p.tags for p in prompts)
    if without:
        known = sorted({name for p in prompts for name in p.tags})
        raise WorkbenchError(
            f"{without} of {len(prompts)} prompts of {prompts.name!r} have no tag {label!r}; tags "
            f"there are {known}."
        )
    return [p.tags[label] for p in prompts]


def _groups(prompts: PromptSet, tags: Sequence[str]) -> list[str]:
    """What each prompt asks: the values of these tags, or its last sentence and answer."""
    return [repr(question(p, tags)) for p in prompts]


def _shuffled(codes: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Labels exchanged among groups; a group's prompts keep one label (Hewitt & Liang)."""
    firsts = np.array([codes[groups == g][0] for g in range(groups.max() + 1)])
    return np.random.default_rng(seed).permutation(firsts)[groups]


def _enough(
    prompts: PromptSet, labels: list[Any], groups: list[str], folds: int
) -> tuple[PromptSet, NDArray[np.int64], NDArray[np.int64], int]:
    """The prompts whose label enough groups share, to be learned and asked; the codes of labels and
    groups, and how many prompts are left out."""
    if folds < 2:
        raise WorkbenchError(f"Expected 2 folds or more, found {folds}.")
    count = Counter(own for own, _ in set(zip(labels, groups, strict=True)))
    kept = [i for i, own in enumerate(labels) if count[own] >= folds]
    names = sorted({labels[i] for i in kept})
    if len(names) < 2:
        raise TooFew(
            f"A probe needs two labels with {folds} different questions each, but the "
            f"{len(prompts)} prompts of {prompts.name!r} have {len(names)} such "
            "labels; give more prompts, or another label."
        )
    codes = np.array([names.index(labels[i]) for i in kept])
    chosen = prompts.at(kept)
    asked = sorted({groups[i] for i in kept})
    known = np.array([asked.index(groups[i]) for i in kept])
    return chosen, codes, known, len(prompts) - len(kept)


def _depths(read: Mapping[str, Floats], common: float, seed: int):
    """Rows of every depth; depth 0 is the embedding, layer -1."""

    def rows(metric: str, arm: str, values: Floats, baseline: Any):
        found = (shares if metric == "accuracy" else ratios)(values, seed=seed)
        baseline = np.broadcast_to(baseline, len(values))
        for depth in range(len(values)):
            interval = {name: part[depth] for name, part in found._asdict().items()}
            told = {"arm": arm, "layer": depth - 1, "metric": metric}
            yield told | interval | {"baseline": float(baseline[depth])}

    for arm, values in read.items():
        yield from rows("accuracy", arm, values, common)
    yield from rows("accuracy_change", "tuned", read["tuned"] - read["base"], 0.0)
    for arm, control in SHUFFLED.items():
        yield from rows("selectivity", arm, read[arm] - read[control], 0.0)
    for arm in SHUFFLED:
        words, random = (read.get(name.format(arm)) for name in READOUTS)
        if words is None or random is None:
            continue
        yield from rows("kept_beyond_random", arm, words - random, 0.0)
        kept, chance = (ratios(one, read[arm], seed=seed) for one in (words, random))
        for depth in range(len(words)):
            interval = {name: part[depth] for name, part in kept._asdict().items()}
            told = {"arm": arm, "layer": depth - 1, "metric": "kept"}
            yield told | interval | {"baseline": float(chance.value[depth])}


def _best(read: Mapping[str, Floats], metric: str, choose: Places, report: Places, seed: int):
    """Retention at the layer that some of the prompts choose, on the others."""
    if not len(report):
        nothing = {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0, "baseline": 1.0}
        yield {"arm": BEST, "metric": metric} | nothing
        return
    gained = (read["base"] - read[RANDOM])[:, choose].mean(1)
    depth = int(gained.argmax())
    whole = (read["base"] - read[RANDOM])[depth, report]
    left = (read["tuned"] - read[RANDOM])[depth, report]
    found = share_of(left, whole, seed=seed)._asdict()
    told = {"arm": BEST, "layer": depth - 1}
    yield told | {"metric": metric} | found | {"baseline": 1.0}
    if metric == "retention":
        gain = ratios(whole, seed=seed).first._asdict()
        yield told | {"metric": "base_gain"} | gain | {"baseline": 0.0}
