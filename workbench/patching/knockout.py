"""Knockout: what does the tuned model need that the base does not?

One head, MLP or layer at a time is taken out of each side at every token, and the answer's measures
are compared with those of the whole model on the same prompt:

    zero            what it gives is zero
    mean            its own mean over all tokens of all prompts, of that side
    mean_position   that over the prompts alone, token by token
    resample        what it gives on another prompt, token by token counted from the prompt's end
    other           what the other side's gives on the same prompt

(`patching.replacements`, which cites them). The difference of the two sides' changes, paired over
prompts, is what fine-tuning made the model need. The control is the mean over all components of
that kind: what a random one does.

It misleads where components stand in for each other: a head may be used and not be missed (McGrath
et al. 2023, arXiv 2307.15771). Zero, far from anything the later layers know, breaks more than the
information that is lost; resampling on few prompts is noisy. A base that does not know the answer
has nothing to lose, so a difference of sides need not be a new mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.models.sites import Kind
from workbench.patching import sweep as shared
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.metrics import Asked, Metric, measures, metric_of
from workbench.patching.per_prompt import stored
from workbench.patching.replacements import (
    ABLATIONS,
    OTHER,
    RESAMPLE,
    Replacement,
    Running,
    require_two,
)
from workbench.patching.strongest import halves, said_of_halves
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

KEY = "patching.knockout"
CHANGE = "tuned - base"
ARMS = ("zero", "mean", "resample")
KNOWN = (*ABLATIONS, OTHER)
COMPONENTS = ("head", "mlp", "layer")
METRICS = ("score", "log_probability", "logit_difference")
ADDING: tuple[Kind, ...] = ("attn_out", "mixer_out", "mlp_out", "other_out")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """What is taken out together: its name in a table, and its sites."""

    component: str
    layer: int
    head: int | None
    sites: tuple[Site, ...]


def parts(layout: Layout, components: Sequence[str]) -> list[Part]:
    """Every head (its z), every MLP (what it adds), every layer (all that it adds)."""
    made = []
    for layer in range(layout.layers):
        has = [kind for kind in (*ADDING, "z") if layer in layout.where(kind)]
        if "head" in components and "z" in has:
            count = layout.count(Site("z", layer))
            made += [Part("head", layer, h, (Site("z", layer, head=h),)) for h in range(count)]
        if "mlp" in components and "mlp_out" in has:
            made.append(Part("mlp", layer, None, (Site("mlp_out", layer),)))
        if "layer" in components:
            sites = tuple(Site(kind, layer) for kind in ADDING if kind in has)
            made.append(Part("layer", layer, None, sites))
    order = {name: place for place, name in enumerate(components)}
    return sorted((part for part in made if part.sites), key=lambda part: order[part.component])


@analysis(
    "What does the fine-tuned model need that the base does not?",
    paper="arXiv 2211.00593",
    example="--prompts task.jsonl",
    passes=300,
    takes={"prompts": "task"},
    quick={"arms": ("mean",)},
    few={"prompts": 16},
    quick_passes=100,
)
def knockout(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    arms: Sequence[str] = ARMS,
    components: Sequence[str] = COMPONENTS,
    metric: Asked | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Take every head, MLP and layer out of both sides, one at a time, and compare the losses.

    prompts: prompts with answers; in plain texts the answer is the token that the tuned model
    predicts next. arms: what stands in the place of a component: zero, mean, resample;
    also mean_position and other. components:
    what is taken out: head, mlp, layer. metric: as in `activation`, by default the log-probability;
    what the picked components are picked by. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 16 prompts and the mean alone; with --full all of them and all arms.

    Returns a Result with columns side, arm, component, layer, head, metric: the change that the
    knockout makes to `score` (fraction right), `log_probability` (nats, of the answer) and
    `logit_difference` (to the best foil) and the `metric`, means over prompts with 95% bootstrap
    intervals, n, for the sides "base", "tuned" and, paired, "tuned - base"; baseline: the mean over
    all components of the kind. Metric `picked`: of each arm and kind the component whose knockout
    costs the tuned model most of the metric beyond the base, chosen on one half of the prompts, on
    the other. Raises WorkbenchError for unknown arms or components, and for one prompt alone where
    resampled.
    """
    for name, asked, known in (("arms", arms, KNOWN), ("components", components, COMPONENTS)):
        unknown = [one for one in asked if one not in known]
        if unknown or not asked:
            told = repr(unknown[0]) if unknown else "none"
            raise WorkbenchError(f"Expected {name} of {', '.join(known)}, found {told}.")
    shared.require_batches(batch_size)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    given = answered(words, prompts)
    if RESAMPLE in arms:
        require_two(given)
    found: dict[str, dict[str, Floats]] = {}
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        places = parts(run.layout, components)
        where = Running(pad_id(words), batch_size, device)
        sites = list(dict.fromkeys(site.whole for part in places for site in part.sites))
        models = {"base": (run.base, run.tuned), "tuned": (run.tuned, run.base)}
        for side, (model, other) in models.items():
            stands = [
                Replacement.of(arm, model, given, sites, where, giver=(other, given), seed=seed)
                for arm in arms
            ]
            job = _Knockout(model, given, places, stands, sites, where, judge)
            found[side] = job.run(f"knockout, {side}")
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    pick, report = halves(len(given), seed)
    notes.append(f"{pair.name}: {said_of_halves(pick, report, 'The picked components')}")
    table = pd.DataFrame(_rows(found, places, arms, (pick, report), seed, judge))
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "arms": [*arms], "components": [*components],
        "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    table = table.astype({"layer": "Int64", "head": "Int64"})
    return finished(KEY, table, provenance, _tensors(found, arms))


@dataclass(frozen=True)
class _Knockout:
    """One side's model, the prompts with answers, and what is taken out of it."""

    model: Any
    given: Sequence[Row]
    places: Sequence[Part]
    stands: Sequence[Replacement]
    sites: Sequence[Site]
    where: Running
    metric: Metric | None = None

    def run(self, label: str) -> dict[str, Floats]:
        """metric -> (arms, parts, prompts): the change that each knockout makes."""
        size = (len(self.stands), len(self.places), len(self.given))
        kept = {metric: np.full(size, np.nan) for metric in measures(self.metric, METRICS)}
        lengths = [len(row.fed) for row in self.given]
        with progress(total=len(self.given), desc=label) as bar:
            for at, found in in_batches(lengths, self.where.batch_size, self._batch):
                for metric, value in found.items():
                    kept[metric][..., at] = value.cpu().double().numpy()
                bar.update(len(at))
        shared.require_metric(kept, self.metric)
        return kept

    def _batch(self, at: list[int]) -> dict[str, Tensor]:
        """metric -> (arms, parts, batch)."""
        inputs = batch(self.given, at, self.where.device, self.where.fill)
        own = Rerun(self.model, inputs, self.sites)
        known = (inputs, own.logits[0], self.metric)
        plain = shared.measured(own.logits, *known)
        room = max(1, self.where.batch_size // len(at))
        made: dict[str, list[Tensor]] = {m: [] for m in measures(self.metric, METRICS)}
        for stand in self.stands:
            there = stand.beside(own, at)
            for start in range(0, len(self.places), room):
                chosen = self.places[start : start + room]
                patches = [{site: there.read(site) for site in part.sites} for part in chosen]
                scored = shared.measured(own.again(patches), *known)
                for metric in made:
                    made[metric].append(scored[metric] - plain[metric])
        shape = (len(self.stands), len(self.places))
        return {metric: torch.cat(own).unflatten(0, shape) for metric, own in made.items()}


def _difference(found: Mapping[str, Mapping[str, Floats]]) -> dict[str, Floats]:
    return {metric: own - found["base"][metric] for metric, own in found["tuned"].items()}


def _tensors(
    found: Mapping[str, Mapping[str, Floats]], arms: Sequence[str]
) -> dict[str, NDArray[np.floating]]:
    """The change that each knockout makes on every prompt, by side, arm and metric."""
    made: dict[str, NDArray[np.floating]] = {}
    for side, values in (*found.items(), (CHANGE, _difference(found))):
        for i, arm in enumerate(arms):
            known = {m: own[i] for m, own in values.items() if not np.isnan(own).all()}
            made |= stored(side, arm, known)
    return made


def _rows(
    found: Mapping[str, Mapping[str, Floats]],
    places: Sequence[Part],
    arms: Sequence[str],
    split: tuple[Sequence[int], Sequence[int]],
    seed: int,
    judge: Metric | None = None,
) -> Iterator[dict[str, Any]]:
    """Means over prompts of both sides and of their difference, and the picked components."""
    kinds = np.array([part.component for part in places])
    difference = _difference(found)
    for side, values in (*found.items(), (CHANGE, difference)):
        for metric, own in values.items():
            if np.isnan(own).all():
                continue  # no prompt has foils
            for arm, of_arm in zip(arms, own, strict=True):
                told = ratios(of_arm, seed=seed)
                for number, part in enumerate(places):
                    null = float(np.nanmean(of_arm[kinds == part.component]))
                    row = {name: value[number] for name, value in told._asdict().items()}
                    about = {"side": side, "arm": arm} | _named(part)
                    yield about | {"metric": metric, "baseline": null} | row
    pick, report = split
    by = "log_probability" if judge is None else judge.name
    worse = -1 if judge is not None and judge.lower else 1
    if np.isnan(difference[by]).all():
        return
    for arm, of_arm in zip(arms, difference[by], strict=True):
        for kind in dict.fromkeys(kinds):
            among = np.flatnonzero(kinds == kind)
            costs = ratios(worse * of_arm[among][:, pick], draws=1).value
            if np.isnan(costs).all():
                continue
            best = int(among[np.nanargmin(costs)])
            null = float(np.nanmean(of_arm[among][:, report]))
            told = ratios(of_arm[best, report], seed=seed).first
            about = {"side": CHANGE, "arm": arm} | _named(places[best])
            yield about | {"metric": "picked", "baseline": null} | told._asdict()


def _named(part: Part) -> dict[str, Any]:
    return {"component": part.component, "layer": part.layer, "head": part.head}
