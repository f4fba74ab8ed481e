"""The figures of skills as data, how each is read, and what each result says in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from workbench.figures import calibration, skills, updates
from workbench.figures.drawing import Drawing, has
from workbench.figures.scores import own_rows
from workbench.figures.wording import change, interval
from workbench.results.result import Result

Findings = tuple[str, list[str]]


def _greedy(result: Result) -> bool:
    return bool((result.table["arm"] == "greedy").any())


DRAWINGS = (
    Drawing(
        skills.LOCALIZE,
        "sparsity",
        "How few parameters carry the skill",
        skills.graft_scores,
        "Score when only a share of the change is put onto the base, on prompts on which neither "
        "mask nor epoch was chosen. In colour the learned mask at the size it ended with; beside "
        "it every way of choosing as many entries without learning, and the best low-rank change "
        "of as many stored numbers. Grey lines: base and tuned model; bands: 95% over prompts.",
        "A learned mask is trained on the task: part of its score is new training, which starts "
        "from the movement mask and may not have converged. Sizes of the learned mask are what it "
        "ended with, not what was asked.",
    ),
    Drawing(
        skills.LOCALIZE,
        "calibration",
        "Calibration of grafts",
        lambda result, ax=None, **options: skills.graft_scores(
            result, ax, **({"metric": "ece"} | options)
        ),
        "Expected calibration error (10 bins of equal width) of the answer's first token, as "
        "above.",
        "The estimate is biased upwards: a perfectly calibrated model shows the baseline in the "
        "table, not 0. A model that is always wrong and unsure is well calibrated.",
    ),
    Drawing(
        skills.LOCALIZE,
        "places",
        "Where the graft is",
        skills.graft_places,
        "Share of every matrix that the graft takes over its share of all parameters, log2: red "
        "matrices hold more of it than their size gives. After each name the graft's size: the "
        "smallest with 95% of the gain, or the largest where none has.",
        "Several grafts may do equally well, and one of them is found. A matrix with little of the "
        "graft may still be needed.",
        applies=has("entries"),
    ),
    Drawing(
        skills.OVERLAP,
        "matrix",
        "Do the grafts share their parameters?",
        skills.overlap_matrix,
        "Of the entries of graft j (across) the share that graft i (up) takes too. Second line: "
        "what random entries of the same number give | what random places within each matrix give, "
        "if every matrix keeps its number. Colour: the first over the second number, log2.",
        "Members trained from one base by one recipe move the same large columns whatever they "
        "learn. Grafts of different sizes are compared by the share of the second one.",
    ),
    Drawing(
        skills.COMPOSE,
        "scores",
        "Do the skills add up?",
        skills.composition,
        "Score of every task (across) under every set of grafts (up): the grafts, as many random "
        "entries of the same members, and their whole changes summed. A column that keeps its "
        "score when rows join means no interference.",
        "A task the base already answers keeps its score under any small graft.",
    ),
    Drawing(
        updates.RESTORE,
        "shares",
        "How much of the update can be taken back",
        updates.restoration,
        "Score of the tuned model with a share of its parameters set back to the base, in each "
        "order; bands: 95% over prompts. Rings: the largest share that cost at most 0.02 on a half "
        "of the prompts, with the range of that choice. Random entries are the control.",
        "Restoring the smallest changes first takes back many entries and little of the change. "
        "The rings are what the half that chose them allows, which few prompts blur: the table's "
        "cost is the other half's. Where few parameters ever moved, restoring the others costs "
        "nothing.",
    ),
    Drawing(
        updates.COMPRESSION,
        "bits",
        "In how many bits the change fits",
        updates.bits_score,
        "Score of the base plus a compressed change against what it takes to store, in bits per "
        "entry of the base; masks pay 16 bits a value and the entropy of their places. Grey: "
        "random entries. The star is the adapter's own file.",
        "Values kept at 16 bits are counted and not rounded; nothing here was calibrated on data, "
        "which the published codecs gain from.",
    ),
    Drawing(
        updates.BLOCKS,
        "greedy",
        "The fewest matrices that do",
        updates.greedy_blocks,
        "Score of the base with matrices of the change switched on one after the other, each time "
        "the one that lowers the loss most on one half of the prompts, scored on the other; grey: "
        "random orders. Below: which was added.",
        "A greedy path can miss matrices that help only together.",
        applies=_greedy,
    ),
    Drawing(
        updates.BLOCKS,
        "changes",
        "Every matrix off, and alone",
        updates.block_changes,
        "Change of the score when one matrix is the base's in the tuned model (off), or the tuned "
        "one in the base (alone), layers upwards; a dot where the 95% interval excludes 0.",
        "Off shows what is needed, alone what suffices: a skill spread over many matrices has "
        "neither. Some dots are chance: one map holds dozens of intervals.",
        applies=has("score_change"),
    ),
    Drawing(
        calibration.KEY,
        "reliability",
        "Does confidence say how often it is right",
        calibration.reliability,
        "Accuracy against mean confidence of the answer's first token in ten bins, Wilson "
        "intervals; the area of a dot is its share of the prompts. Above: calibration error beside "
        "the mean and 95% range of a perfectly calibrated model with the same confidences.",
        "An error within that range shows nothing. Bins with few prompts scatter.",
        applies=has("reliability"),
    ),
)


def _localize(result: Result) -> Findings:
    """The smallest graft with 95% of the gain, learned and by movement."""
    gains, sizes = own_rows(result, "gain"), own_rows(result, "score")
    parts = []
    for member in result.members:
        own = gains[gains["member"] == member]
        scores = sizes[sizes["member"] == member].set_index("arm")["value"]
        said = [f"base {scores['base']:.2f}, tuned {scores['tuned']:.2f}"]
        for arm, (label, *_) in skills.CURVES.items():
            rows = own[(own["arm"] == arm) & (own["x"] > 0)].sort_values("x")
            if rows.empty or (arm not in ("learned", "movement", "rank", "random")):
                continue
            sparsity, enough = skills.chosen_sparsity(result, member, arm)
            best = rows[rows["sparsity"] == sparsity].iloc[0]
            reached = "" if enough else "not enough yet, "
            if pd.isna(best["value"]):
                said.append(f"{label}: no gain to share out")
                continue
            said.append(f"{label}: {reached}{change(best, '.2f')} at {best['x']:.3%}")
        parts.append(f"{member}: {', '.join(said)}")
    n, total = int(sizes["n"].max()), int(result.metric("N")["value"].max())
    return (
        f"Gain of the smallest graft with 95% of it on other prompts, share of N = {total:,}; "
        f"95% intervals over {n} prompts"
    ), parts


def _overlap(result: Result) -> Findings:
    rows = result.metric("overlap")
    within = result.metric("within")["value"].to_numpy()
    parts = [
        f"{row['second']} in {row['first']}: {row['value']:.3f} (chance {row['baseline']:.3f}, "
        f"95% range {row['null_low']:.3f} to {row['null_high']:.3f}; within matrices {inner:.3f})"
        for (_, row), inner in zip(rows.iterrows(), within, strict=True)
    ]
    return "Share of a graft's entries that another takes too", parts[:8]


def _compose(result: Result) -> Findings:
    together = result.metric("interference")
    whole = together["skills"].iloc[-1]
    parts = [
        f"{row['task']}: {row['baseline']:.2f} with its own graft alone, "
        f"{change(row, '+.2f')} with all"
        for _, row in together[together["skills"] == whole].iterrows()
    ]
    return f"Grafts of {whole} put together, 95% over {int(together['n'].max())} prompts", parts


def _restore(result: Result) -> Findings:
    """What could be taken back for nothing, in every order, and what did better set back."""
    free, cost, harmful = (own_rows(result, m) for m in ("free", "cost", "harmful"))
    parts = []
    for member in result.members:
        here = free[free["member"] == member].set_index("arm")
        paid = cost[cost["member"] == member].set_index("arm")
        said = [
            f"{updates.ORDERS[arm][0]} {change(here.loc[arm], '.0%')} "
            f"(score {change(paid.loc[arm], '+.3f')} on the other half)"
            for arm in here.index
        ]
        own = harmful[(harmful["member"] == member) & (harmful["low"] > 0)]
        said += [
            f"harmful updates, {updates.ORDERS[row['arm']][0]} {row['x']:.0%}: "
            f"{change(row, '+.3f')}"
            for _, row in own.iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return (
        f"Share of the parameters set back for at most 0.02 of score, "
        f"{int(free['n'].max())} prompts chose"
    ), parts


STORES = ("rank", "tiered", "1-bit", "adapter", "movement", "principal", "random")


def _compression(result: Result) -> Findings:
    """The fewest bits with 95% of the gain, per way of storing."""
    gains = own_rows(result, "gain")
    parts = []
    for member in result.members:
        here = gains[gains["member"] == member]
        if here.loc[here["arm"] == "tuned", "value"].isna().all():
            parts.append(f"{member}: no gain to store")
            continue
        own, said = here[here["value"] >= skills.ENOUGH], []
        for arm in [a for a in STORES if (here["arm"] == a).any()]:
            rows = own[own["arm"] == arm].sort_values("x")
            said.append(
                f"{arm} {rows['x'].iloc[0]:.2f} bits ({change(rows.iloc[0], '.2f')})"
                if len(rows)
                else f"{arm} not reached"
            )
        parts.append(f"{member}: {', '.join(said)}")
    n = int(gains["n"].max())
    return (
        f"Fewest stored bits per entry with 95% of the gain, 95% interval over {n} prompts",
        parts,
    )


def _calibration(result: Result) -> Findings:
    errors = own_rows(result, "ece")
    parts = []
    for member in result.members:
        said = [
            f"{row['arm']} {change(row, '.3f')} (perfect "
            f"{interval(row['baseline'], row['null_low'], row['null_high'], '.3f')})"
            for _, row in errors[errors["member"] == member].iterrows()
        ]
        parts.append(f"{member}: {', '.join(said)}")
    return f"Calibration error of the first token, 95% over {int(errors['n'].max())} prompts", parts


def _blocks(result: Result) -> Findings:
    """Where the greedy path ended, beside random orders, and the matrix most missed."""
    scores, off = (own_rows(result, m) for m in ("score", "score_change"))
    parts = []
    for member in result.members:
        own = scores[scores["member"] == member]
        said = []
        for arm, label in (("greedy", "matrices best first"), ("random", "at random")):
            path = own[own["arm"] == arm].sort_values("x")
            if len(path):
                last = path.iloc[-1]
                said.append(f"{last['x']:.0f} {label} {change(last, '.2f')}")
        here = off[(off["member"] == member) & (off["arm"] == "off")]
        most = here.loc[here["value"].idxmin()]
        where = f"layer {most['layer']:.0f} {most['component']}"
        told = f"most missed of {len(here)} {where} {change(most, '+.2f')}"
        parts.append(f"{member}: {', '.join([*said, told])}")
    return (
        f"Score with few matrices of the change, 95% over {int(scores['n'].max())} prompts",
        parts,
    )


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    skills.LOCALIZE: _localize,
    skills.OVERLAP: _overlap,
    skills.COMPOSE: _compose,
    updates.RESTORE: _restore,
    updates.COMPRESSION: _compression,
    updates.BLOCKS: _blocks,
    calibration.KEY: _calibration,
}
