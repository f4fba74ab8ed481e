"""The figures of forgetting as data, how each is read, and what each result says in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from workbench.figures import hidden, kept
from workbench.figures.drawing import Drawing
from workbench.figures.wording import change
from workbench.results.result import Result

Findings = tuple[str, list[str]]


def _elsewhere(result: Result) -> bool:
    return bool(result.table["own"].eq(False).any())


DRAWINGS = (
    Drawing(
        kept.CONJUGATE,
        "outcomes",
        "Lost, or asked in the wrong place?",
        kept.conjugate_outcomes,
        "Share of prompts answered right (blue), with an answer of the fine-tuned task (orange) or "
        "neither (grey), on plain prompts and behind each conjugation: the same question where "
        "fine-tuning never was. Black lines: how often the base is right on the same prompts. Blue "
        "that comes back behind a conjugation was hidden, not lost.",
        "A conjugation makes some questions harder by itself: compare with the black line, not "
        "with 1. What does not come back behind these conjugations may behind others.",
    ),
    Drawing(
        kept.KNOWLEDGE,
        "transitions",
        "Where the base's knowledge went",
        kept.knowledge_transitions,
        "Every question's SliCK category in the base (rows, with their number) and in the member "
        "(columns); a row sums to 1. The first map is the base asked again behind other examples: "
        "what moves there moves without any fine-tuning.",
        "A row of few questions says little; its Wilson interval is in the table. Categories hang "
        "on the examples and on how many samples are drawn.",
    ),
    Drawing(
        kept.INTERPOLATE,
        "path",
        "In against out of distribution along the path",
        kept.path_scores,
        "The score on the fine-tuned task (across) against the mean of the other tasks (up) while "
        "the weights go in a straight line from start to end; α = .5 is marked. Dotted: the two "
        "models' logits mixed, which costs two models; grey: the chord, a linear mix of the two "
        "scores. A path above the chord has points that keep more than their share of both.",
        "The best point of a path is chosen by looking: the gain of one chosen on other prompts is "
        "in the table. Intervals over prompts, there too, can be wider than the bend.",
        applies=_elsewhere,
    ),
    Drawing(
        kept.SEQUENTIAL,
        "matrix",
        "What a chain of fine-tunings keeps",
        kept.chain_matrix,
        "Score on every task (across) after every stage (down). Framed: the stage that learned the "
        "task. Below a frame a column shows what later stages took of it, right of the white line "
        "what they took of tasks no stage learned.",
        "One order of tasks and one seed; a later stage that asks for a task of the same kind can "
        "bring it back.",
    ),
    Drawing(
        hidden.PROBE,
        "layers",
        "Is the answer still in the stream?",
        hidden.probe_layers,
        "How often a linear probe reads the answer from the stream at the prompt's last token, by "
        "layer, on prompts it did not see. A tuned model that is silent where its line follows "
        "the base's still holds the answer; one whose line falls to the dotted one does not.",
        "A probe finds what the model may not use, and can learn what the prompt's words tell: the "
        "dotted line is a model of random weights, the broken one shuffled labels.",
    ),
    Drawing(
        hidden.PRUNE,
        "scores",
        "What comes up when the fine-tuned task's neurons go?",
        hidden.prune_scores,
        "Score on the capability of the base while the neurons that the fine-tuned task uses most "
        "are set to zero. A wrapper goes with them, and the coloured line rises to the base's; "
        "dotted: as many random neurons; black: the same neurons of the base.",
        "Neurons may serve both tasks: where the black line falls as well, nothing can rise. A "
        "suppression in attention has no neurons to prune.",
    ),
    Drawing(
        hidden.REVIVE,
        "curves",
        "How soon does it come back?",
        hidden.revival_curves,
        "Score on held-out prompts after so many steps of training on the capability; band: range "
        "over runs. What was only suppressed is back within a few steps, before a model that never "
        "knew, or the exchanged answers, are anywhere.",
        "Random weights lack all else, too, and the rule of exchanged answers may share what "
        "tells the questions apart: only a model trained without the task is a matched control.",
    ),
    Drawing(
        hidden.VERDICT,
        "grid",
        "Kept, suppressed or erased?",
        hidden.verdict_grid,
        "The evidence on one capability of the base, a row per member. Output: right answers as a "
        "share of the base's. Probe, revival and conjugate: what each still finds of the lost "
        "answers. Blue: kept; orange: lost (a loss that rose by 0.05 nats or more); grey: the "
        "interval holds the line between them.",
        "A verdict is no more than its grid: few lost answers give wide intervals, and what was "
        "not found by these means may be found by others.",
    ),
)


def _conjugate(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index(["arm", "metric"])
        lost, best = own.loc[("plain", "score_change")], ("best", "recovery_lost")
        said = f"{member}: {change(lost, '+.2f')} on plain prompts"
        if best in own.index:
            row = own.loc[best]
            back = "no lost answer to recover" if pd.isna(row["value"]) else (
                f"{change(row, '.2f')} of the lost answers right with {row['chosen']} (base "
                f"{row['baseline']:.2f}; n = {row['n']:.0f})"
            )  # fmt: skip
            said = f"{said}, {back}"
        parts.append(said)
    task = result.table["task"].iloc[0]
    return f"Answers to {task} plain and behind the conjugation chosen on other prompts", parts


def _knowledge(result: Result) -> Findings:
    parts = []
    moved = result.metric("transition")
    moved = moved[(moved["category"] == "HighlyKnown") & (moved["to_category"] == "HighlyKnown")]
    for member in result.members:
        own = moved[moved["member"] == member].set_index("arm")
        if not own.loc["tuned", "n"]:
            parts.append(f"{member}: the base knows no question highly")
            continue
        parts.append(
            f"{member}: {change(own.loc['tuned'], '.2f')} of {own.loc['tuned', 'n']:.0f} highly "
            f"known questions stay so (base asked again {change(own.loc['again'], '.2f')})"
        )
    return "Knowledge kept, SliCK categories with Wilson intervals", parts


def _interpolate(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        best = own[(own["arm"] == "best") & (own["metric"] == "score_change")]
        said = [f"{row['task']} {change(row, '+.2f')}" for _, row in best.iterrows()]
        barrier = own[(own["arm"] == "path") & (own["metric"] == "barrier") & own["own"].eq(True)]
        chosen = f"α = {best['x'].iloc[0]:g}: {', '.join(said)}" if said else "too few prompts"
        wall = f"; barrier {change(barrier.iloc[0], '.2f')} nats"
        parts.append(f"{member}: {chosen}{wall}")
    return "Against the member itself, at the α chosen on other prompts", parts


def _sequential(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[(result.table["member"] == member) & (result.table["task"] == "mean")]
        told = own.set_index("metric")
        parts.append(
            f"{member}: forgetting {change(told.loc['forgetting'], '.2f')}, backward transfer "
            f"{change(told.loc['backward_transfer'], '+.2f')} (n = "
            f"{told.loc['forgetting', 'n']:.0f} prompts)"
        )
    return "A chain's earlier tasks after its last stage", parts


def _probe(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index("metric")
        row = own.loc["retention"]
        lost = own.loc["retention_lost"]
        said = f"{member}: {change(row, '.2f')} at layer {row['layer']} (n = {row['n']:.0f})"
        if pd.notna(lost["value"]):
            said = f"{said}, {change(lost, '.2f')} of the lost answers (n = {lost['n']:.0f})"
        parts.append(said)
    return "What a probe reads, random weights 0 and base 1", parts


def _prune(result: Result) -> Findings:
    found = result.metric("regained").set_index(["member", "arm"])
    parts = [
        f"{member}: {change(found.loc[(member, 'best ranked')], '+.2f')}, random neurons "
        f"{change(found.loc[(member, 'best random')], '+.2f')}"
        for member in result.members
    ]
    return "What pruning the fine-tuned task's neurons regains", parts


def _revive(result: Result) -> Findings:
    parts = []
    steps = result.metric("steps_to_threshold").set_index(["member", "arm"])
    runs, share = (result.provenance.parameters[name] for name in ("runs", "threshold"))
    for member in result.members:
        own = result.table[result.table["member"] == member]
        arms = [a for a in own.loc[own["metric"] == "score", "arm"].unique() if a != "base"]
        said = [
            f"{arm} "
            + ("not" if pd.isna(row["value"]) else f"{row['value']:.0f}")
            + (f" (in {row['n']:.0f} of {runs} runs)" if 0 < row["n"] < runs else "")
            for arm in arms
            for row in [steps.loc[(member, arm)]]
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return f"Steps until the score is back at {share:g} of the base's", parts


def _verdict(result: Result) -> Findings:
    said = result.metric("verdict")["says"].tolist()
    return "The verdict", [one.rstrip(".") for one in said]


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    kept.CONJUGATE: _conjugate,
    kept.KNOWLEDGE: _knowledge,
    kept.INTERPOLATE: _interpolate,
    kept.SEQUENTIAL: _sequential,
    hidden.PROBE: _probe,
    hidden.PRUNE: _prune,
    hidden.REVIVE: _revive,
    hidden.VERDICT: _verdict,
}
