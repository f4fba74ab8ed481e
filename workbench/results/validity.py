"""Which numbers of a finished table say nothing, and why? Told once for all analyses.

Two kinds are read off the table itself. A value that is NaN is a share, a ratio or a mean of
nothing: what it is divided by is zero, or cannot be told from zero. A value of one item has no
interval: resampling one item gives that item again, which would look like certainty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.results.result import Provenance, Result

# Rows whose value is no measured number, or whose reading says itself that there is none.
SPOKEN = ("verdict", "evidence", "text")
GAP = "the two unpatched runs hardly differ there, so no share can be computed"
CONSTANT = "there are fewer than three values on each side, or one side is constant"
ADDED = "no block adds anything to the stream there"
ZERO = "the base's own parameter is zero"
STILL = "the matrix did not change, and a change of zero has no rank"
NOTHING = "there is no item for which it is defined"
SINGLE = "one item cannot show that the denominator is above zero"
OTHERWISE = "the denominator is zero, or cannot be distinguished from zero"
# Metrics, or how their names begin where they end with a colon -> why they are NaN.
REASONS = {
    "recovered:": GAP,
    "beyond_random:": GAP,
    "beyond_shuffled:": GAP,
    "attribution": GAP,
    "exact": GAP,
    "edge_attribution": GAP,
    "edge_exact": GAP,
    "krs": "the two sides give the same logits",
    "kl_krs": "the two sides give the same logits",
    "rank_correlation": CONSTANT,
    "edge_rank_correlation": CONSTANT,
    "spearman": CONSTANT,
    "spearman_partial": "there are fewer than four models, or one side is explained by the task's "
    "score alone",
    "places": CONSTANT,
    "effect": "the answer's probability in the clean run is as small as rounding",
    "faithfulness:": "the whole model does no better there than with every head ablated",
    "gain": "the tuned model's own gain cannot be distinguished from zero",
    "choosing_gain": "the tuned model gains nothing on the prompts that choose",
    "recovery": "the loss cannot be distinguished from zero, so there is nothing to recover",
    "recovery_net": "the loss cannot be distinguished from zero, so there is nothing to recover",
    "chosen_regained": "the loss did not rise for certain, so there is nothing to give back",
    "regained_share": "the loss cannot be distinguished from zero, or the control learns all",
    "recovered": "the loss cannot be distinguished from zero, so there is nothing to recover",
    "retention": "the base's own gain over random weights cannot be distinguished from zero",
    "retention_lost": "the base's own gain over random weights cannot be distinguished from zero",
    "savings_share": "the base's own savings cannot be distinguished from zero",
    "savings_share_lost": "the base's own savings cannot be distinguished "
    "from zero on these prompts",
    "steps_to_threshold": "no training run reaches the threshold",
    "tuco": ADDED,
    "preco": ADDED,
    "tuco_l2": ADDED,
    "tuco_sum": ADDED,
    "beta": ADDED,
    "token_tuco": ADDED,
    "layer_tuco": ADDED,
    "cumulated": ADDED,
    "mean:": ADDED,
    "output_co": "the base's stream and its change are zero",
    "base_loss": "the prompt has one token, so nothing is predicted",
    "auc:": "a group has no prompt with a value",
    "auc_matched:": "no two prompts of the two groups match",
    "auc_difference:": "a group has no prompt with both values",
    "auc_difference_matched:": "no two prompts of the two groups match",
    "relative_norm": ZERO,
    "cka": "the states of all prompts are the same there",
    "energy": "no matrix changed",
    "bias_direction": "the prefix adds nothing there",
    "bias_share": "attention gives nothing there",
    "constant": "the two models' states are the same there",
    "component_share": "the differences of all texts are the same there",
    "found": "there is no difference to read, or no word to look for",
    "new_words": "no text holds a word",
    "reference_words": "no text holds a word",
    "effective_rank": STILL,
    "stable_rank": STILL,
    "rank_90": STILL,
    "rank_99": STILL,
    "invisible": ZERO,
    "intruder_energy": "the matrix is zero",
    "participation_ratio": "the vector lies outside the base's span",
    "overlap": "the second graft is empty",
    "within": "the second graft is empty",
    "score_change": "the value at scale 1 is zero, and the change is a percentage of it",
    "loss_change": "the value at scale 1 is zero, and the change is a percentage of it",
    "learnability": "the base's loss is zero",
    "conflict_delta_log_p": "no token is a conflict",
    "switched": "the prompts' own answers are among the task's, or no task was given",
    "broke": "the prompts' own answers are among the task's, or no task was given",
    "transition": "the base has no question of that category",
    "crossing": "the curves of the two models do not cross",
    "flip": "no text has a token before its answer",
    "broken": "no text has both a right answer and a token before it",
    "fixed": "no text has both a wrong answer and a token before it",
    "flip_beyond_random": "no text has a token before its answer",
    "flip_change": "no prompt has a token before its answer in both models' texts",
    "agreement": "the gains that the gradients tell cannot be distinguished from zero",
    "rank_agreement": "fewer than three examples were checked, or their gains are equal",
    "written": "an example has no gradient there",
    "entropy_change": "there is no such token",
    "effective": "the other models have one score on the task, so that no line is determined",
    "followed": "no prompt's answer stands in its last step",
    "followed_change": "no prompt's answer stands in its last step",
    "novelty": "no text of that arm holds a token",
    "fresh": "no text of that arm holds two tokens",
}
# Metrics whose reason is that there is nothing of their kind.
COUNTED = (
    "auc:", "auc_matched:", "auc_difference:", "auc_difference_matched:", "transition",
    "steps_to_threshold", "novelty", "fresh", "switched", "broke", "conflict_delta_log_p",
    "crossing", "followed", "followed_change", "flip", "broken", "fixed", "flip_beyond_random",
    "flip_change",
)  # fmt: skip


def finished(
    analysis: str,
    table: pd.DataFrame,
    provenance: Provenance,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Result:
    """The Result of an analysis, with a note for every kind of number in it that says nothing."""
    told = provenance.notes
    more = [note for name, own in _members(table, provenance) for note in notes(name, own, told)]
    return Result(analysis, table, provenance.with_notes((*told, *more)), tensors or {})


def notes(member: str, table: pd.DataFrame, told: Sequence[str] = ()) -> Iterator[str]:
    """What one member's rows cannot say. told: notes there are, of which none is repeated."""
    names = dict.fromkeys(table["metric"])
    known = {name for name in names if not any(f" {name} is not" in f" {note}" for note in told)}
    n = table["n"] if "n" in table else pd.Series(np.nan, table.index)
    gone = table["value"].isna() & table["metric"].isin(known.difference(SPOKEN))
    why = table["metric"].map({name: reason(name) for name in names}).mask(n.eq(1), SINGLE)
    counted = table["metric"].map({name: _key(name) in COUNTED for name in names})
    why = why.mask(n.eq(0) & ~counted.astype(bool), NOTHING)
    for text, own in table[gone].groupby(why[gone], sort=False):
        total = int(table["metric"].isin(own["metric"].unique()).sum())
        verb = "is" if own["metric"].nunique() == 1 else "are"
        yield (
            f"{member}: {_listed(own)} {verb} undefined (NaN) in {len(own)} of {total} values: "
            f"{text}."
        )
    if "low" in table:
        single = table[n.eq(1) & table["value"].notna() & table["low"].isna()]
        if len(single):
            yield (
                f"{member}: {_listed(single)}: there is only one item (one prompt, "
                "text or run) each, so no interval can be given."
            )


def reason(metric: str) -> str:
    """Why a metric is NaN, where it is."""
    return REASONS.get(_key(metric), OTHERWISE)


def _key(metric: str) -> str:
    """A metric as REASONS names it: "auc:tuco" by its beginning."""
    return metric if ":" not in metric else f"{metric.partition(':')[0]}:"


def _members(table: pd.DataFrame, provenance: Provenance) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, its rows); of a table that compares members, all of them together."""
    whole = " + ".join(provenance.members)
    named = table["member"].fillna(whole) if "member" in table else [whole] * len(table)
    yield from ((str(name), own) for name, own in table.groupby(named, sort=False))


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(rows["metric"]))
