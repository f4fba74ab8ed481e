"""Retention: what does the tuned model still do of what the base did, item by item?

Scores and losses are paired: the same prompts and texts on both sides, and the interval is that of
the mean difference over items. A loss on pre-training-like text that rises is forgetting in the
sense of arXiv 2410.21228; it also rises for text that the fine-tuned model merely finds unlikely
now, so read it together with the scores of tasks. Text sampled from the base favours the base by
construction, and KL(tuned || base) on such samples counts every change, harmless ones too. On the
prompts of the learned task KL(base || tuned) says how far the model moved to learn it, which goes
with forgetting in arXiv 2509.04259: see `forgetting.answer_divergence`.

Which items were lost and gained shows more than the mean: see `forgetting.paired`, which counts
both. A task that is solved in one wording and not in another is not retained, so the spread of the
score over a prompt set's templates is given too, with the spread that equal templates would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.forgetting import paired
from workbench.forgetting.answer_divergence import with_divergence
from workbench.forgetting.harness import measured
from workbench.forgetting.paired import Paired
from workbench.forgetting.side_answers import SHOWN, Side, both, require_prompts
from workbench.loaders import CheckpointPair
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, change, gaps, share
from workbench.tasks.groups import GROUPS
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import bytes_predicted, text_divergence
from workbench.tasks.scorers import Loss

PRETRAINING = "pretraining"
# Of an item beside its score, where its scorer gives them; changes are tuned - base.
SCORES = ("acc", "acc_norm", "acc_mutual_info")
MARGIN = "margin"  # nats
Floats = NDArray[np.float64]


@analysis(
    "What did fine-tuning teach the model, and what did the model forget?",
    paper="paired evaluation",
    example="--prompts facts.jsonl --texts wiki.txt",
    passes=3,
    takes={"prompts": "everything", "task": "task_name", "texts": "texts"},
    along=True,
    texts=True,
    items=True,
)
def retention(
    pair: CheckpointPair,
    prompts: Sequence[PromptSet] = (),
    *,
    texts: Sequence[str] | None = None,
    task: PromptSet | str | None = None,
    by: str | None = None,
    cluster: str | None = None,
    lm_eval: Sequence[str] = (),
    metric: str | None = None,
    limit: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Compare the scores on every prompt set, and the loss on pre-training-like text, of tuned
    model and base.

    prompts: prompt sets, each scored by its own scorer, or by greedy exact match if it has none
    (`tasks.answers`). texts: held-out text like the base's pre-training data; None takes 64 samples
    of the base itself. task: prompts of the fine-tuned task, which are scored first, or the name of
    one of the prompt sets; figures mark it. by: a tag of the prompts, for example subject, or one
    of answer, length, steps, turns and frequency, which need none (`tasks.groups.grouped`); the
    scores are also reported for each of its values, and for the worst. cluster: a tag that
    dependent items share, for example passage; intervals then resample whole clusters. lm_eval:
    tasks of lm-evaluation-harness that are run as well, if it is installed. metric: the metric of
    lm-eval that scores its tasks, for example acc_norm; by default acc, exact_match or the first
    there is. limit: the number of first items that are run of each task of lm-eval. include: a
    folder of your own tasks for lm-eval (YAML). Runs the stored weights, adapters unmerged, in
    `dtype` ("float32" or "bfloat16").

    Returns a Result with a row per (task, metric), each with a 95% interval, paired over items,
    and n: score with the base's value as baseline, score_change, tuned - base, lost and
    gained, mcnemar, group rows and one row an item, see `forgetting.paired.rows`; answer_loss, of
    the target in nats per token, and answer_loss_change; answer_kl, KL(base || tuned) in nats per
    token, each prompt's mean over its target's tokens, fed behind the prompt (baseline: 0, of the
    base itself); of choices acc, acc_norm, margin (each with _change) and chance, the score of a
    guess; of several samples pass@k. Task "pretraining", and sets of plain texts: loss (nats per
    token) and bits_per_byte, each with _change, the second comparable across tokenizers, and
    item_loss, one row a text (prompt, asked, tokens; value: the tuned model's loss, baseline: the
    base's); kl, KL(tuned || base) in nats per token on 64 samples of the base (on the texts if its
    tokenizer has no start token). For a set of several templates with 8 prompts or more also
    template_spread, the largest minus the smallest mean score of a template (baseline: the base's),
    and template_spread_chance, its mean and 95% range if templates are dealt to the prompts at
    random. Written texts are saved as they come, so that the same call resumes after an
    interruption. Raises WorkbenchError for empty prompt sets, equal names, or a tag that no prompt
    has.
    """
    if isinstance(task, PromptSet):
        prompts, task = [task, *prompts], task.name
    if prompts:
        require_prompts(*prompts)
    further = {"metric": metric, "limit": limit, "include": include}
    alone = [name for name, value in further.items() if value is not None and not lm_eval]
    if alone:
        raise WorkbenchError(
            f"Expected lm_eval together with {', '.join(alone)}, which only apply to "
            "lm-eval's tasks; name its tasks (--lm-eval), or leave it out."
        )
    scored = [one for one in prompts if not isinstance(one.scorer, Loss)]
    asked = [_questions(one, by) for one in scored]
    run: dict[str, Any] = {"batch_size": batch_size, "device": device, "dtype": dtype}
    theirs, notes = (), []
    if lm_eval:
        found = measured(pair, lm_eval, **further, **run)
        theirs, notes = found.paired, [*found.notes]
        _require_new(theirs, prompts)
    paired.require_tags([*asked, *theirs], by=by, cluster=cluster)
    base, tuned = both(pair, batch_size, device, dtype)
    # Without a start token there is nothing to sample from; given texts then serve for both.
    samples = list(texts) if texts and not _starts(base.words) else base.samples(seed=seed)
    texts = samples if texts is None else texts
    rows: list[dict[str, Any]] = []
    for one, questions in zip(scored, asked, strict=True):
        before, after = with_divergence(base, tuned, one)
        items = _answered(questions, before, after)
        rows += paired.rows(items, by=by, cluster=cluster, same=pair.same, seed=seed)
        rows += _further(one.name, before, after, items.clusters(cluster), pair.same, seed)
        notes += _ties(one, before, after)
        rows += _over_templates(one, items, seed)
    for items in theirs:
        rows += paired.rows(items, by=by, cluster=cluster, same=pair.same, seed=seed)
    plain = {one.name: one.texts for one in prompts if isinstance(one.scorer, Loss)}
    for name, own in (plain | {PRETRAINING: list(texts)}).items():
        rows += _losses(name, base, tuned, own, seed)
    apart = text_divergence(base.model, tuned.model, base.words, samples, batch_size=batch_size)
    kl = bootstrap(apart["kl"], apart["tokens"], seed=seed)
    rows.append({"task": PRETRAINING, "metric": "kl", **kl._asdict(), "baseline": 0.0})
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(list(prompts)), "texts": describe(list(texts)), "task": task,
        **({"by": by} if by else {}), **({"cluster": cluster} if cluster else {}),
        **({"lm_eval": list(lm_eval), "metric": metric, "limit": limit} if lm_eval else {}),
        **({"include": str(include)} if include else {}),
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    provenance = provenance.with_notes((*notes, *provenance.notes))
    return finished("forgetting.retention", table, provenance)


def _require_new(theirs: Sequence[Paired], prompts: Sequence[PromptSet]) -> None:
    """Raises WorkbenchError where a task of lm-eval is called like a set of prompts."""
    twice = {one.task for one in theirs} & {PRETRAINING, *(one.name for one in prompts)}
    if twice:
        raise WorkbenchError(
            f"Expected tasks of different names, found {sorted(twice)[0]!r} among the prompts and "
            "in lm-eval; rename the prompts."
        )


def _starts(words: Any) -> bool:
    return words.bos_token_id is not None or words.eos_token_id is not None


def _questions(one: PromptSet, by: str | None = None) -> Paired:
    """A set as items that nobody has answered yet. by: a group that may need no tag."""
    unknown, nothing = np.full(len(one), np.nan), ("",) * len(one)
    tags = [p.tags for p in one]
    if by in GROUPS and not any(by in own for own in tags):
        tags = [{**own, by: name} for own, name in zip(tags, one.tag(by), strict=True)]
    return Paired(
        one.name, tuple(p.id for p in one), unknown, unknown, unknown, tuple(tags),
        tuple(p.prompt[-SHOWN:] for p in one), tuple(p.target for p in one), nothing, nothing,
    )  # fmt: skip


def _answered(questions: Paired, before: pd.DataFrame, after: pd.DataFrame) -> Paired:
    chance = before.get("chance", np.nan)
    return replace(
        questions,
        before=before["correct"].to_numpy(float),
        after=after["correct"].to_numpy(float),
        chance=np.broadcast_to(np.asarray(chance, dtype=float), len(before)),
        base_said=tuple(before["answer"]),
        said=tuple(after["answer"]),
    )


def _compared(
    task: str, metric: str, before: Any, after: Any, weights: Any, seed: int, of: Any = None
) -> Iterator[dict[str, Any]]:
    """A measurement of the tuned model, and its change. of: (items,), their clusters."""
    first, last = (np.asarray(part, dtype=float) for part in (before, after))
    baseline = bootstrap(first, weights, seed=seed).value
    for name, values in ((metric, last), (f"{metric}_change", last - first)):
        yield paired.row_of(
            task, name, bootstrap(values, weights, clusters=of, seed=seed), baseline
        )


def _further(
    task: str, before: pd.DataFrame, after: pd.DataFrame, of: Any, same: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """What else the scorer tells of each item. of: their clusters."""
    passes = [name for name in before if str(name).startswith("pass@")]
    for name in (*(name for name in SCORES if name in before), *passes):
        first, last = (side[name].to_numpy(float) for side in (before, after))
        own, moved = (
            share(last, clusters=of, seed=seed),
            change(first, last, clusters=of, same=same, seed=seed),
        )
        yield paired.row_of(task, str(name), own, float(first.mean()))
        yield paired.row_of(task, f"{name}_change", moved, float(first.mean()))
    if MARGIN in before:
        yield from _compared(task, MARGIN, before[MARGIN], after[MARGIN], None, seed, of)
    if "chance" in before:
        guess = bootstrap(before["chance"], clusters=of, seed=seed)
        yield paired.row_of(task, "chance", guess, guess.value)
    tokens = before["tokens"].to_numpy(float)
    first, last = (-side["log_probability"].to_numpy(float) / tokens for side in (before, after))
    yield from _compared(task, "answer_loss", first, last, tokens, seed, of)
    yield paired.row_of(task, "answer_kl", bootstrap(after["kl"], clusters=of, seed=seed), 0.0)


def _ties(one: PromptSet, *sides: pd.DataFrame) -> Iterator[str]:
    """How many items a choice is as likely of as the target, which is then no right answer."""
    tied = sum(int(side["tied"].sum()) for side in sides if "tied" in side)
    if tied:
        yield (
            f"{one.name}: in {tied} of {2 * len(one)} answers a foil is as likely as the target, "
            "which counts as wrong."
        )


def _losses(
    name: str, base: Side, tuned: Side, texts: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Loss on texts, by the token and by the byte."""
    before, after = (side.losses(texts) for side in (base, tuned))
    yield from _compared(name, "loss", before.values, after.values, before.weights, seed)
    for i, text in enumerate(texts):
        yield {
            "task": name, "metric": "item_loss", "prompt": f"text {i + 1}", "asked": text[:SHOWN],
            "value": after.values[i], "baseline": before.values[i], "tokens": before.weights[i],
        }  # fmt: skip
    sizes = np.asarray(bytes_predicted(base.words, texts), dtype=float)
    per_byte = before.weights / np.maximum(sizes, 1) / math.log(2)
    first, last = (one.values * per_byte for one in (before, after))
    yield from _compared(name, "bits_per_byte", first, last, sizes, seed)


def _over_templates(one: PromptSet, items: Paired, seed: int) -> Iterator[dict[str, Any]]:
    """The spread over templates and its chance level; nothing where there is only one."""
    templates, _ = pd.factorize(pd.Series([p.template for p in one]))
    metric = {"gap": "template_spread", "gap_chance": "template_spread_chance"}
    for row in gaps(items.before, items.after, templates, seed):
        if row["metric"] in metric:
            yield row | {"task": one.name, "metric": metric[row["metric"]]}
