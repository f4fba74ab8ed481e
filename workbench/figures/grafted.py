"""The figures of skills as data, how each is read, and what each result says in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from workbench.figures import skills
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import change
from workbench.results import Result

Findings = tuple[str, list[str]]

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
)


def _localize(result: Result) -> Findings:
    """The smallest graft with 95% of the gain, learned and by movement."""
    gains, sizes = skills.own_rows(result, "gain"), skills.own_rows(result, "score")
    parts = []
    for member in result.members:
        own = gains[gains["member"] == member]
        scores = sizes[sizes["member"] == member].set_index("arm")["value"]
        said = [f"base {scores['base']:.2f}, tuned {scores['tuned']:.2f}"]
        for arm, (label, *_) in skills.CURVES.items():
            rows = own[(own["arm"] == arm) & (own["x"] > 0)].sort_values("x")
            if rows.empty or (arm not in ("learned", "movement", "rank", "random")):
                continue
            enough = rows[rows["value"] >= 0.95]
            best = enough.iloc[0] if len(enough) else rows.loc[rows["value"].fillna(-1).idxmax()]
            reached = "" if len(enough) else "not reached, most "
            if pd.isna(best["value"]):
                said.append(f"{label}: no gain to share out")
                continue
            said.append(f"{label}: {reached}{change(best, '.2f')} at {best['x']:.3%}")
        parts.append(f"{member}: {', '.join(said)}")
    n, total = int(sizes["n"].max()), int(result.metric("N")["value"].max())
    return (
        f"Smallest graft with 95% of the gain, share of N = {total:,}; intervals over {n} prompts"
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


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    skills.LOCALIZE: _localize,
    skills.OVERLAP: _overlap,
    skills.COMPOSE: _compose,
}
