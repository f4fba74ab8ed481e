"""The rows of `behaviour.tokens`: what the measurements of many tokens come to.

Every mean is a ratio of sums over tokens, resampled by text. Forks are the tokens at which the two
models together are least decided, the fifth of them with the largest mean entropy (the share is
that of Wang et al. 2025, arXiv 2506.01939v2): chosen by both sides alike, so that a change there is
not what is left of a choice by one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.stats import Interval, change, gaps, proportion, ratios, share

ROUNDING = 1e-6  # nats of a float32 log-probability
FORKS = 0.2  # of the tokens
BINS = 10  # of the base's probability
Floats = NDArray[np.float64]
Read = Mapping[str, Floats]  # every measurement, (tokens,)


def shared(texts: NDArray[np.int64], there: Floats, seed: int) -> Interval:
    """The share of tokens, with Wilson's width where the texts do not differ. there: (tokens,), 0
    or 1."""
    found = over_texts(texts, there, seed=seed)
    return proportion(found) if found.n > 1 else found


def over_texts(
    texts: NDArray[np.int64], top: Floats, bottom: Floats | None = None, *, seed: int
) -> Interval:
    """A ratio of sums over tokens, resampled by text; bottom None: per token. texts: (tokens,), the
    text of each; one whose bottom is 0 is left out."""
    size = int(texts.max()) + 1
    below = np.bincount(texts, bottom, size)
    known = np.where(below != 0, 1.0, np.nan)
    return ratios(np.bincount(texts, top, size) * known, below * known, seed=seed).first


def means(
    read: Read, low_probability: float, low_entropy: float, seed: int
) -> Iterator[dict[str, Any]]:
    texts = read["text"].astype(int)

    def row(metric: str, top: Any, bottom: Any = None, baseline: float = np.nan, **about: Any):
        found = over_texts(texts, top, bottom, seed=seed)
        return about | {"metric": metric} | found._asdict() | {"baseline": baseline}

    yield row("delta_log_p", read["delta"], baseline=0.0)
    yield row("kl", read["kl"], baseline=0.0)
    yield row("log_p", read["log_p"], arm="base")
    yield row("log_p", read["tuned_log_p"], baseline=float(read["log_p"].mean()), arm="tuned")
    yield row("entropy", read["entropy"], arm="base")
    own = float(read["entropy"].mean())
    yield row("entropy", read["tuned_entropy"], baseline=own, arm="tuned")
    loss = -read["log_p"]
    # A base that loses nothing has nothing to learn.
    loss = loss if loss.mean() > ROUNDING else np.zeros_like(loss)
    yield row("learnability", read["delta"], loss, baseline=0.0)
    sure = read["entropy"] < low_entropy
    conflict = sure & (read["log_p"] < np.log(low_probability))
    expected = float(np.where(sure, read["tail"], 0.0).mean())
    yield row("conflict_share", conflict.astype(float), baseline=expected)
    others = read["delta"][~conflict]
    yield row(
        "conflict_delta_log_p", np.where(conflict, read["delta"], 0.0), conflict.astype(float),
        baseline=float(others.mean()) if others.size else np.nan,
    )  # fmt: skip


def grouped(read: Read, groups: NDArray[np.str_], seed: int) -> Iterator[dict[str, Any]]:
    """What changed by the values of a tag."""
    texts, size = read["text"].astype(int), len(groups)
    tokens = np.bincount(texts, minlength=size)
    sums = {name: np.bincount(texts, read[name], size) for name in ("delta", "kl")}
    for group in dict.fromkeys(groups.tolist()):
        here = groups == group
        for metric, name in (("delta_log_p", "delta"), ("kl", "kl")):
            found = ratios(sums[name][here], tokens[here], seed=seed).first._asdict()
            yield {"metric": f"group_{metric}", "group": group, "baseline": 0.0} | found
    means = sums["delta"] / tokens
    for prefix, values in (("group", means), ("group_kl", sums["kl"] / tokens)):
        for row in gaps(np.zeros(size), values, groups, seed):
            if row["metric"] != "gap_change":  # the base has no change, and so no gap of its own
                yield row | {"metric": f"{prefix}_{row['metric']}"}


def directions(read: Read, seed: int) -> Iterator[dict[str, Any]]:
    """Which share of the tokens became likelier and which less, by more than rounding, and how many
    nats a token of the text that is; rose_mass - fell_mass is the change of log p."""
    texts, delta = read["text"].astype(int), read["delta"]
    for name, moved in (("rose", delta), ("fell", -delta)):
        there = moved > ROUNDING
        for metric, values in (("share", there.astype(float)), ("mass", np.where(there, moved, 0))):
            found = (
                shared(texts, values, seed)
                if metric == "share"
                else over_texts(texts, values, seed=seed)
            )
            yield {"metric": f"{name}_{metric}", **found._asdict(), "baseline": 0.0}


def entropies(read: Read, seed: int) -> Iterator[dict[str, Any]]:
    """The change of the entropy, tuned - base, at all tokens, at forks and elsewhere."""
    texts = read["text"].astype(int)
    both = (read["entropy"] + read["tuned_entropy"]) / 2
    forks = np.zeros(len(both), dtype=bool)
    forks[np.argsort(-both, kind="stable")[: max(1, round(FORKS * len(both)))]] = True
    moved = read["tuned_entropy"] - read["entropy"]
    for arm, here in (("all", np.ones_like(forks)), ("forks", forks), ("elsewhere", ~forks)):
        kept = here.astype(float)
        found = over_texts(texts, moved * kept, kept, seed=seed)._asdict()
        base = float(read["entropy"][here].mean()) if here.any() else float("nan")
        yield {"metric": "entropy_change", "arm": arm, **found, "baseline": base}


def priors(read: Read, seed: int) -> Iterator[dict[str, Any]]:
    """The histogram of the base's probability of the tokens, x the middle of a bin, and the change
    of log p in each bin; no rows of an empty one."""
    texts, p = read["text"].astype(int), np.exp(read["log_p"])
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    for number in range(BINS):
        here = (bins == number).astype(float)
        if not here.any():
            continue
        at = {"x": (number + 0.5) / BINS}
        found = shared(texts, here, seed)._asdict()
        yield at | {"metric": "prior_share", **found, "baseline": 1 / BINS}
        found = over_texts(texts, read["delta"] * here, here, seed=seed)._asdict()
        yield at | {"metric": "prior_delta_log_p", **found, "baseline": 0.0}


def learned(read: Read, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of each text its learnability in nats per token, L_base - L_tuned; baseline: L_base."""
    texts = read["text"].astype(int)
    tokens = np.bincount(texts, minlength=len(names))
    delta, loss = (
        np.bincount(texts, values, len(names)) / tokens
        for values in (read["delta"], -read["log_p"])
    )
    for name, value, base in zip(names, delta, loss, strict=True):
        yield {"metric": "item_learnability", "prompt": name, "value": value, "baseline": base}


def displaced(pairs: Floats | None, seed: int) -> Iterator[dict[str, Any]]:
    if pairs is None:
        return
    chosen, rejected = pairs[:, 1] - pairs[:, 0]
    margin = chosen - rejected
    for metric, values in (
        ("chosen_change", chosen),
        ("rejected_change", rejected),
        ("margin_change", margin),
        ("displaced", ((margin > 0) & (chosen < 0)).astype(float)),
    ):
        found: Interval = ratios(values, seed=seed).first
        yield {"metric": metric} | found._asdict() | {"baseline": 0.0}


def preferred(scores: Sequence[Floats], same: bool, seed: int) -> Iterator[dict[str, Any]]:
    """The chance that the right answer scores above a wrong one, ties counting half, by side and
    its change. scores: of each prompt (2, 1 + foils), the mean log p per token of the answer and of
    every foil, base and tuned."""
    if not scores:
        return
    above = np.array([
        (np.sign(own[:, :1] - own[:, 1:]) / 2 + 0.5).mean(1) for own in scores
    ]).T  # fmt: skip
    for arm, values in zip(("base", "tuned"), above, strict=True):
        found = share(values, seed=seed)._asdict()
        yield {"metric": "right_above_wrong", "arm": arm, **found, "baseline": 0.5}
    moved = change(above[0], above[1], same=same, seed=seed)._asdict()
    base = float(above[0].mean())
    yield {"metric": "right_above_wrong_change", **moved, "baseline": base}
