"""Knowledge: which questions does each side know well, barely, or not at all?

SliCK (Gekhman et al. 2024, arXiv 2405.05904): every question is asked behind 10 random sets of 4
solved others, once greedily and 16 times at temperature 0.5. P0 and P+ are the shares of right
answers. HighlyKnown: P0 = 1; MaybeKnown: 0 < P0 < 1; WeaklyKnown: P0 = 0 and P+ > 0; Unknown: both
0. The samples need no generation: a sample is right with the probability of the whole answer at
that temperature, so that the number of right ones is drawn from its binomial distribution.

The categories of one model asked twice differ already, since the solved questions are drawn at
random: a transition matrix base -> tuned is compared with that of the base -> the base asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting.side_answers import Side, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import change, gaps, share, shares
from workbench.tasks.prompts import PromptSet
from workbench.tasks.scorers import Generation
from workbench.tasks.transforms import many_shot

KEY = "forgetting.knowledge"
CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def categories(greedy: Floats, sampled: Ints) -> Ints:
    """The category of each question, a place in CATEGORIES. greedy: (sets, questions), 1 where the
    greedy answer is right; sampled: (sets, questions), how many samples are."""
    share, ever = greedy.mean(0), sampled.sum(0) > 0
    return np.select([share == 1, share > 0, ever], [0, 1, 2], default=3)


def drawn(probability: Floats, samples: int, seed: int) -> Ints:
    """How many of `samples` samples are right, where each is with this probability."""
    return np.random.default_rng(seed).binomial(samples, np.clip(probability, 0, 1))


@analysis(
    "Which questions does each model know well, barely, or not at all?",
    paper="SliCK, arXiv 2405.05904",
    example="--prompts facts.jsonl",
    passes=120,
    takes={"prompts": "task"},
    quick={"sets": 3},
    few={"prompts": 32},
    quick_passes=60,
    texts=True,
)
def knowledge(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    examples: PromptSet | None = None,
    sets: int = 10,
    shots: int = 4,
    samples: int = 16,
    temperature: float = 0.5,
    between: str = "\n",
    group: Sequence[str] = (),
    by: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Sort every question into a SliCK category in both models, and count how the categories
    changed.

    prompts: questions with answers. examples: solved questions that are shown before each question;
    by default the prompts themselves, never one that holds the answer. group: tags that define
    which prompts ask the same (see `tasks.many_shot`). sets: the number of sets of examples (paper:
    10). shots: the number of examples in a set (paper: 4). samples: the number of sampled answers
    (paper: 16). temperature: the temperature of sampled answers (paper: 0.5). between: the text
    that ends a solved question (a line's end; " . " for the shipped family). by: a tag of the
    prompts; the scores are also reported for each of its values.

    The command line takes 32 prompts and 3 sets of examples; with --full all prompts and 10 sets.

    Returns a Result with rows share (arm "base", "again" for the base behind other examples, or
    "tuned", which is asked behind the same examples as "again"; category; of all questions),
    transition (arm "tuned" or "again"; category of the base, to_category; of the questions of that
    category, whose number is n), and score (arm, category of the base: the mean of P0 over its
    questions); shares have 95% Wilson intervals, scores 95% ones over questions. With `by` also
    group_score and group_score_change of each of its values (column group; the mean of P0 of the
    tuned model, and less that of "again", which is the baseline), and group_gap, group_gap_change
    and group_gap_chance, see `stats.gaps`. If the prompts' scorer is a generation, one text is
    written greedily and `samples` at the temperature, whatever its own settings for these are.
    tensors: the category of each question by arm. Raises
    WorkbenchError for too few examples, sets, samples or a temperature that is not positive.
    """
    require_prompts(prompts)
    for name, value in (("sets", sets), ("samples", samples), ("temperature", temperature)):
        if value <= 0:
            raise WorkbenchError(f"Expected {name} above 0, found {value}.")
    base, tuned = both(pair, batch_size, device, dtype)
    shown = examples if examples is not None else prompts
    asked: dict[str, Any] = {"count": shots, "between": between, "group": group}
    with progress(total=3 * sets, desc=f"{pair.name}: knowledge") as bar:
        known = {
            arm: _known(side, _behind(prompts, shown, sets, first, **asked), samples, temperature,
                        first, bar)
            for arm, side, first in (
                ("base", base, seed * 1000), ("again", base, seed * 1000 + 500),
                ("tuned", tuned, seed * 1000 + 500),
            )
        }  # fmt: skip
    found = {arm: one for arm, (one, _) in known.items()}
    rows = [*_shares(found), *_transitions(found), *_scores(found["base"], known, seed)]
    if by is not None:
        again, right = known["again"][1], known["tuned"][1]
        rows += _groups(again, right, prompts.tag(by), seed, same=pair.same)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "examples": describe(examples), "sets": sets, "shots": shots,
        "samples": samples, "temperature": temperature, "between": between,
        "group": list(group), **({"by": by} if by else {}),
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    tensors = {f"{pair.name}/{arm}": one for arm, one in found.items()}
    return finished(KEY, table, provenance, tensors)


def _behind(
    prompts: PromptSet, examples: PromptSet, sets: int, first: int, **asked: Any
) -> Iterator[PromptSet]:
    """The questions behind one random set of examples after the other."""
    for i in range(sets):
        yield many_shot(prompts, examples, seed=first + i, **asked)


def _known(
    side: Side, asked: Iterator[PromptSet], samples: int, temperature: float, seed: int, bar: Any
) -> tuple[Ints, Floats]:
    """(category, P0) of every question."""
    greedy, chance, written = [], [], []
    for one in asked:
        scorer = one.scorer
        if isinstance(scorer, Generation):
            how = replace(scorer, samples=samples, temperature=temperature, passes=())
            written.append(side.answers(replace(one, scorer=how))["right"].to_numpy())
            one = replace(one, scorer=replace(how, samples=1, temperature=0.0))
        found = side.answers(one, temperature)
        greedy.append(found["correct"].to_numpy(float))
        chance.append(found["probability"].to_numpy(float))
        bar.update()
    right = np.stack(greedy)
    sampled = np.stack(written) if written else drawn(np.stack(chance), samples, seed)
    return categories(right, sampled), right.mean(0)


def _groups(
    before: Floats, after: Floats, groups: NDArray[np.str_], seed: int, *, same: bool = False
) -> Iterator[dict[str, Any]]:
    """Scores by the values of a tag."""
    for name in dict.fromkeys(groups.tolist()):
        here = groups == name
        told = {"arm": "tuned", "group": name, "baseline": float(before[here].mean())}
        own = shares(after[here], seed=seed).first
        moved = change(before[here], after[here], same=same, seed=seed)
        for metric, found in (("score", own), ("score_change", moved)):
            yield told | {"metric": f"group_{metric}"} | found._asdict()
    for row in gaps(before, after, groups, seed):
        yield row | {"arm": "tuned", "metric": f"group_{row['metric']}"}


def _shares(found: dict[str, Ints]) -> Iterator[dict[str, Any]]:
    for arm, own in found.items():
        for place, name in enumerate(CATEGORIES):
            before = float((found["base"] == place).mean())
            told = {"arm": arm, "metric": "share", "category": name}
            yield told | share(own == place)._asdict() | {"baseline": before}


def _transitions(found: dict[str, Ints]) -> Iterator[dict[str, Any]]:
    for arm in ("tuned", "again"):
        for i, first in enumerate(CATEGORIES):
            here = found[arm][found["base"] == i]
            again = found["again"][found["base"] == i]
            for j, last in enumerate(CATEGORIES):
                told = {"arm": arm, "metric": "transition", "category": first, "to_category": last}
                chance = float((again == j).mean()) if len(again) else np.nan
                yield (told | share(here == j)._asdict() | {"baseline": chance})


def _scores(
    base: Ints, known: dict[str, tuple[Ints, Floats]], seed: int
) -> Iterator[dict[str, Any]]:
    for arm, (_, right) in known.items():
        for place, name in enumerate(CATEGORIES):
            here = base == place
            if here.any():
                told = {"arm": arm, "metric": "score", "category": name}
                before = float(known["base"][1][here].mean())
                interval = shares(right[here], seed=seed).first._asdict()
                yield told | interval | {"baseline": before}
