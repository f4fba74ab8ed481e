"""Cross-model activation patching (CMAP): at which places do one model's activations bring its
behaviour into the other?

One model runs a prompt with the other's activations on the same prompt at some sites. A share of
what separates the two is recovered:

    recovered = sum(patched - destination) / sum(source - destination)   over prompts
    KRS = 1 - sum |patched - source|^2 / sum |destination - source|^2     over the answer's logits

(Prakash et al. 2024, arXiv 2402.14811, for the first; Hong et al. 2024, "Dissecting Fine-Tuning
Unlearning in LLMs", arXiv 2410.06606, for the second, as a ratio of sums; 1 is full recovery, both
may be negative). It misleads about *where*: from the place of a change on every later stream
recovers all of it, so a site that recovers is not one that was changed. `restore` swaps parameters
instead; read both. Streams of two models are patched as they are, which assumes that fine-tuning
left their bases the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.patching import patches as places
from workbench.patching import places as meant
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.answered import answered
from workbench.patching.best import KRS, best_of
from workbench.patching.metrics import Asked, Metric, measures, metric_of
from workbench.patching.patches import Patch, Position, Where
from workbench.patching.per_prompt import stored_sweep
from workbench.patching.replacements import (
    ABLATIONS,
    OTHER,
    Replacement,
    Running,
    With,
    require_with,
)
from workbench.patching.strongest import controlled, headline_metric
from workbench.patching.sweep import Side
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

Direction = Literal["tuned->base", "base->tuned"]
DIRECTIONS = ("tuned->base", "base->tuned")
KEY = "patching.cross_model"
RANDOM_SETS = 10
KNOWN = (OTHER, *ABLATIONS)


@analysis(
    "At which places do the tuned model's activations bring its behaviour into the base?",
    paper="CMAP, arXiv 2402.14811, 2410.06606",
    example="--prompts task.jsonl --sites resid_post,head",
    passes=60,
    plans=True,
    takes={"prompts": "task"},
    few={"prompts": 24},
)
def cross_model(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    sites: Sequence[Where] | Where = ("resid_post", "attn_out", "mlp_out"),
    direction: Direction | Literal["both"] = "tuned->base",
    positions: Sequence[Position] | Position = "all",
    groups: Mapping[str, Sequence[Where]] | None = None,
    window: int = 1,
    cumulative: bool = False,
    answer: Literal["target", "base"] = "target",
    answer_tokens: int = 8,
    metric: Asked | None = None,
    with_: With = "other",
    controls: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Patch one side's activations into the other on the same prompts.

    prompts: prompts with answers; in a plain text, or a list of them, the source model's own next
    token is the answer. sites, positions: as in `activation`; default every layer's stream and
    sublayers, on all tokens; "head" (what a head adds) also sees a changed output projection, which
    "z" does not. groups: name -> sites ("4.z.h3@-1") that are replaced together, instead of
    `sites`; random groups of as many sites of the same kinds and places are reported next to them.
    direction: the model whose activations are taken -> the model that they are put into; or both.
    window: an odd number of layers that are replaced together (paper: 5). cumulative: replace every
    layer up to each. answer: "target", the prompts' own, or "base": what the base itself answers,
    `answer_tokens` greedy tokens (for unlearning). answer_tokens: the number of greedy tokens of
    answer "base". with_: what is put into the destination: "other", the source's activations, or
    "zero", "mean", "mean_position" or "resample" (of `patching.replacements`), of the destination's
    own; the source is then the other end of the scale alone. metric, controls, dtype, large: as in
    `activation`.

    The command line takes 24 prompts of a file, with --full all of them.

    Returns a Result with columns direction, component, layer, head, neuron, position, group, arm,
    metric. Arm "patch": `score`, `logit_difference`, `log_probability`, the `metric` where it is
    another, `recovered:` each of them, `krs`, `kl_krs`, `agreement` (top-1, with the source, on
    every answer token); arms "picked", "shuffled", "random", "destination", "source" as in
    `activation`. Arm "best", without groups: the patch of each component that recovered most on one
    half of the prompts, on the other half, once by the metric (the logit difference, else the
    log-probability) and once by krs, with `beyond_random:` and `beyond_shuffled:` each of them,
    less the mean over the component's patches (baseline of the first) and less the same patch with
    another prompt's activations, paired. Undefined shares are NaN. tensors: as in `activation`.
    Raises WorkbenchError for unknown sites or directions.
    """
    asked = DIRECTIONS if direction == "both" else (direction,)
    if not set(asked) <= set(DIRECTIONS):
        raise WorkbenchError(
            f'Expected direction "tuned->base", "base->tuned" or "both", found {direction!r}.'
        )
    require_with(with_, KNOWN)
    require_answer(answer, answer_tokens)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        given = answered(words, prompts)
        layout = Layout(run.tuned)
        where = places.default_positions(given) if positions == "named" else positions
        named = meant.asked(where, sites, groups)
        at = places.resolved(given, where)
        if groups is None:
            chosen, random = (
                places.patches(layout, sites, at, window=window, cumulative=cumulative),
                [],
            )
        else:
            chosen = places.grouped(layout, groups, added=True)
            random = random_groups(layout, chosen, seed)
        shared.require_some(chosen)
        shared.require_aligned(*meant.placed(named, given, given), chosen)
        if answer == "base":
            given = continued(run.base, given, answer_tokens, words, batch_size, device)
        for one in asked:
            models = (run.base, run.tuned) if one == "tuned->base" else (run.tuned, run.base)
            side = one.partition("->")[0]
            own, said = with_answers(models[1], side, given, words, batch_size, device)
            ours, theirs = meant.placed(named, own, own)
            destination, source = Side(models[0], ours), Side(models[1], theirs)
            runs = _Runs(
                destination, source, words, batch_size, device, f"CMAP {one}", large, judge
            )
            if with_ != OTHER:
                kinds = [site for patch in (*chosen, *random) for site in patch.sites]
                how = Running(pad_id(words), batch_size, device)
                stands = Replacement.of(with_, *destination, kinds, how, seed=seed)
                runs = runs._replace(replaced=stands)
            table, told, made = runs.table(chosen, random, controls, seed)
            tables.append(table.assign(direction=one))
            tensors |= stored_sweep(one, made)
            notes += [f"{pair.name}, {one}: {note}" for note in (*said, *told)]
        notes.append(f"{pair.name}: {run.described}")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "sites": describe(sites), "direction": direction,
        "positions": describe(positions), "groups": describe(groups), "window": window,
        "cumulative": cumulative, "answer": answer, "answer_tokens": answer_tokens,
        "with_": with_, "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


class _Runs(NamedTuple):
    """One direction, ready to be swept."""

    destination: Side
    source: Side
    words: Any
    batch_size: int
    device: str
    label: str
    large: bool
    metric: Metric | None = None
    replaced: Replacement | None = None

    def sweep(self, chosen: Sequence[Patch], *, shuffled: bool = False) -> shared.Sweep:
        return shared.sweep(
            *(self.destination, self.source, chosen, self.words),
            shuffled=shuffled,
            metric=self.metric,
            replaced=self.replaced,
            batch_size=self.batch_size,
            device=self.device,
            label=self.label,
            large=self.large,
        )

    def table(
        self, chosen: Sequence[Patch], random: Sequence[Patch], controls: int, seed: int
    ) -> tuple[pd.DataFrame, list[str], shared.Sweep]:
        """Every arm's rows, notes, and the sweep they are of."""
        asked = measures(self.metric)

        def rows_of(made: shared.Sweep, patches: Sequence[Patch], arm: str) -> pd.DataFrame:
            return sweep_rows.summary(
                *(made, patches),
                zero=made.destination,
                one=made.source,
                arm=arm,
                seed=seed,
                measures=asked,
                restored=True,
            )

        made = self.sweep(chosen)
        table = rows_of(made, chosen, "patch")
        parts = [table, sweep_rows.plain(made, seed=seed, measures=asked)]
        if random:
            drawn = rows_of(self.sweep(random), random, "random")
            parts.append(sweep_rows.random_site(drawn, by=("component", "group")))
        else:
            parts.append(sweep_rows.random_site(table))

        def shuffled(own: Sequence[Patch]) -> shared.Sweep:
            return self.sweep(own, shuffled=True)

        beside, told = controlled(
            *(made, chosen, table, rows_of, shuffled),
            zero=made.destination,
            most=controls,
            seed=seed,
            metric=self.metric,
        )
        parts += beside
        if beside and not random:
            metrics = (headline_metric(table, self.metric), KRS)
            parts.append(best_of(made, chosen, metrics, shuffled, seed=seed))
        cost = f"{len(chosen)} patches cost {made.forwards:.1f} plain forward passes."
        ends = made.destination, made.source
        said = sweep_rows.meaningful(*ends, "The two sides", seed, measures=asked)
        return pd.concat(parts, ignore_index=True), [cost, *told, *said], made


def require_answer(answer: str, tokens: int) -> None:
    """Raises for an answer that is neither the target nor the base's, or has no token."""
    if answer not in ("target", "base"):
        raise WorkbenchError(f'Expected answer "target" or "base", found {answer!r}.')
    if tokens < 1:
        raise WorkbenchError(f"Expected answer_tokens of at least 1, found {tokens}.")


def random_groups(layout: Layout, groups: Sequence[Patch], seed: int) -> list[Patch]:
    """For each group RANDOM_SETS groups of as many heads, layers or neurons of the same kinds, at
    the same positions, drawn at random, none of the group's own among them where there are enough
    others. A head at several positions stands for one."""
    random = np.random.default_rng(seed)
    made = []
    for group in groups:
        own = list(dict.fromkeys(replace(site, position=None) for site in group.sites))
        for _ in range(RANDOM_SETS):
            drawn: dict[Site, Site] = {}
            for place in own:
                others = [one for one in _alike(layout, place) if one not in drawn.values()]
                free = [one for one in others if one not in own] or others
                drawn[place] = free[random.integers(len(free))]
            sites = [
                replace(drawn[replace(site, position=None)], position=site.position)
                for site in group.sites
            ]
            made.append(Patch(tuple(sites), group.about, group.added))
    return made


def _alike(layout: Layout, place: Site) -> list[Site]:
    """Every place of the same kind, heads for a head."""
    found: list[Site] = []
    for layer in layout.where(place.kind):
        own = Site(place.kind, layer)
        heads = [None] if place.head is None else range(layout.count(own))
        found += [Site(place.kind, layer, head, neuron=place.neuron) for head in heads]
    return found


def with_answers(
    model: Any, side: str, given: Sequence[Row], words: Any, batch_size: int, device: str
) -> tuple[list[Row], list[str]]:
    """The prompts, those without an answer with the model's own most likely next token; and a note
    on these. side: the model's name there."""
    bare = [i for i, row in enumerate(given) if not row.answer]
    if not bare:
        return list(given), []
    said = continued(model, [given[i] for i in bare], 1, words, batch_size, device)
    made = dict(zip(bare, said, strict=True))
    note = (
        f"{len(bare)} of {len(given)} prompts give no answer: the {side} model's own most "
        "likely next token is used, without foils."
    )
    return [made.get(i, row) for i, row in enumerate(given)], [note]


def continued(
    model: Any, given: Sequence[Row], tokens: int, words: Any, batch_size: int, device: str
) -> list[Row]:
    """The prompts with the model's own greedy continuation as their answer, and no foils; it ends
    with the end token where the model says it."""
    fill = pad_id(words)
    said: list[list[int]] = [[] for _ in given]
    stop = words.eos_token_id
    for _ in range(tokens):
        going = [i for i, own in enumerate(said) if not own or own[-1] != stop]
        # One token more than was said: its predictor is the last one scored.
        asked = [Row(given[i].name, given[i].ids, {}, (*said[i], 0)) for i in going]

        def run(some: list[int], asked: list[Row] = asked) -> list[int]:
            logits = Rerun(model, batch(asked, some, device, fill)).logits[0]
            last = torch.tensor([len(asked[i].answer) - 1 for i in some], device=logits.device)
            return logits[torch.arange(len(some)), last].argmax(-1).tolist()

        for some, best in in_batches([len(row.fed) for row in asked], batch_size, run):
            for i, token in zip(some, best, strict=True):
                said[going[i]].append(token)
    return [
        Row(row.name, row.ids, row.spans, tuple(own)) for row, own in zip(given, said, strict=True)
    ]
