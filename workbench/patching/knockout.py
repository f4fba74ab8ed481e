"""Knockout: what does the tuned model need that the base does not?

One head, MLP, layer or neuron at a time is taken out of each side at every token, and the answer's
measures are compared with those of the whole model on the same prompt:

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.files.large import less, unknown
from workbench.files.large import parts as slices
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
from workbench.patching.sweep_plan import plan
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.storage import MOST_CELLS
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

KEY = "patching.knockout"
CHANGE = "tuned - base"
ARMS = ("zero", "mean", "resample")
KNOWN = (*ABLATIONS, OTHER)
COMPONENTS = ("head", "mlp", "layer")
KINDS = (*COMPONENTS, "neuron")
METRICS = ("score", "log_probability", "logit_difference")
ADDING: tuple[Kind, ...] = ("attn_out", "mixer_out", "mlp_out", "other_out")
NUMBERS = ("layer", "head", "neuron")
COLUMNS = 13  # of its table
Changes = dict[str, list[NDArray[np.float64]]]  # metric -> (components, prompts) of every arm


@dataclass(frozen=True)
class Part:
    """What is taken out together: its name in a table, and its sites."""

    component: str
    layer: int
    head: int | None
    sites: tuple[Site, ...]
    neuron: int | None = None


def parts(layout: Layout, components: Sequence[str]) -> list[Part]:
    """Every head (its z), every MLP (what it adds), every layer (all that it adds), every neuron
    (of mlp_hidden)."""
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
        if "neuron" in components:
            whole = Site("mlp_hidden", layer)
            count = layout.count(layout.check(whole)) if layer in layout.where("mlp_hidden") else 0
            made += [
                Part("neuron", layer, None, (replace(whole, neuron=n),), n) for n in range(count)
            ]
    order = {name: place for place, name in enumerate(components)}
    return sorted((part for part in made if part.sites), key=lambda part: order[part.component])


@analysis(
    "What does the fine-tuned model need that the base does not?",
    paper="arXiv 2211.00593",
    example="--prompts task.jsonl",
    passes=300,
    plans=True,
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
    large: bool = False,
) -> Result:
    """Take every head, MLP, layer or neuron out of both sides, one at a time, and compare.

    prompts: prompts with answers; in plain texts the answer is the token that the tuned model
    predicts next. arms: what stands in the place of a component: zero, mean, resample; also
    mean_position and other. components: what is taken out: head, mlp, layer; also neuron, every one
    of every MLP, of which a model has thousands. metric: as in `activation`, by default the
    log-probability; what the picked components are picked by. dtype: "float32" or "bfloat16"; None
    means as stored. large: as in `activation`.

    The command line takes 16 prompts and the mean alone; with --full all of them and all arms.

    Returns a Result with columns side, arm, component, layer, head, neuron, metric: the change that
    the knockout makes to `score` (fraction right), `log_probability` (nats, of the answer) and
    `logit_difference` (to the best foil) and the `metric`, means over prompts with 95% bootstrap
    intervals, n, for the sides "base", "tuned" and, paired, "tuned - base"; baseline: the mean over
    all components of the kind. Metric `picked`: of each arm and kind the component whose knockout
    costs the tuned model most of the metric beyond the base, chosen on one half of the prompts, on
    the other. Raises WorkbenchError for unknown arms or components, and for one prompt alone where
    resampled.
    """
    for name, asked, known in (("arms", arms, KNOWN), ("components", components, KINDS)):
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
    found: dict[str, Changes] = {}
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        places = parts(run.layout, components)
        said = [*said, *_without(run.layout, places, components)]
        _require_shown(places, arms)
        where = Running(pad_id(words), batch_size, device)
        sites = list(dict.fromkeys(site.whole for part in places for site in part.sites))
        models = {"base": (run.base, run.tuned), "tuned": (run.tuned, run.base)}
        entries = [(part.layer, part.sites[0]) for part in places] * len(arms)
        ahead = plan(run.base, given, entries, sites, words, batch_size, device)
        ahead.require("knockout, of each side", device, large)
        for side, (model, other) in models.items():
            stands = [
                Replacement.of(arm, model, given, sites, where, giver=(other, given), seed=seed)
                for arm in arms
            ]
            job = _Knockout(model, given, places, stands, sites, where, judge)
            found[side] = job.run(f"knockout, {side}")
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    found[CHANGE] = _difference(found)
    pick, report = halves(len(given), seed)
    notes.append(f"{pair.name}: {said_of_halves(pick, report, 'The picked components')}")
    table = _table(found, places, arms, (pick, report), seed, judge)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "arms": [*arms], "components": [*components],
        "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
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

    def run(self, label: str) -> Changes:
        """The change that each knockout makes."""
        size = len(self.places), len(self.given)
        kept = {
            metric: [unknown(size) for _ in self.stands]
            for metric in measures(self.metric, METRICS)
        }
        lengths = [len(row.fed) for row in self.given]
        total = len(self.given) * len(self.stands) * len(self.places)
        with progress(total=total, desc=label) as bar:
            run = partial(self._batch, bar=bar)
            for at, found in in_batches(lengths, self.where.batch_size, run, bar):
                for metric, value in found.items():
                    for own, new in zip(kept[metric], value.cpu().double().numpy(), strict=True):
                        own[:, at] = new
        shared.require_metric({metric: own[0] for metric, own in kept.items()}, self.metric)
        return kept

    def _batch(self, at: list[int], bar: Any) -> dict[str, Tensor]:
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
                bar.update(len(chosen) * len(at))
        shape = (len(self.stands), len(self.places))
        return {metric: torch.cat(own).unflatten(0, shape) for metric, own in made.items()}


def _without(layout: Layout, places: Sequence[Part], components: Sequence[str]) -> list[str]:
    """A note for each kind that some blocks do not have. Raises WorkbenchError where there is
    nothing to take out."""
    if not places:  # says what the model has instead
        kinds: dict[str, Kind] = {"head": "z", "neuron": "mlp_hidden"}
        layout.check(Site(kinds.get(components[0], "mlp_out"), 0))
    there = {(part.component, part.layer) for part in places}
    notes = []
    for kind in components:
        gone = [str(layer) for layer in range(layout.layers) if (kind, layer) not in there]
        where = "any layer" if len(gone) == layout.layers else f"layers {', '.join(gone)}"
        notes += [f"no {kind} is known in {where}, so none was taken out there"] if gone else []
    return notes


def _require_shown(places: Sequence[Part], arms: Sequence[str]) -> None:
    """Raises WorkbenchError before a run whose table could not be read again."""
    rows = len(places) * len(arms) * 3 * (len(METRICS) + 1)
    if rows * COLUMNS > MOST_CELLS:
        raise WorkbenchError(
            f"Expected a table of at most {MOST_CELLS // COLUMNS:,} rows, found {rows:,} for "
            f"{len(places):,} components; give fewer arms or components, or use cross_model with "
            'sites of some layers ("4.mlp_hidden.n17").'
        )


def _difference(found: Mapping[str, Changes]) -> Changes:
    base = found["base"]
    return {
        metric: [less(one, other) for one, other in zip(own, base[metric], strict=True)]
        for metric, own in found["tuned"].items()
    }


def _tensors(found: Mapping[str, Changes], arms: Sequence[str]) -> dict[str, NDArray[np.floating]]:
    """The change that each knockout makes on every prompt, by side, arm and metric."""
    made: dict[str, NDArray[np.floating]] = {}
    for side, values in found.items():
        for i, arm in enumerate(arms):
            known = {m: own[i] for m, own in values.items() if not np.isnan(own[i]).all()}
            made |= stored(side, arm, known)
    return made


def _table(
    found: Mapping[str, Changes],
    places: Sequence[Part],
    arms: Sequence[str],
    split: tuple[Sequence[int], Sequence[int]],
    seed: int,
    judge: Metric | None = None,
) -> pd.DataFrame:
    """Means over prompts of both sides and of their difference, and the picked components."""
    named = pd.DataFrame([_named(part) for part in places])
    kinds = named["component"].to_numpy()
    tables = []
    for side, values in found.items():
        for metric, own in values.items():
            for arm, of_arm in zip(arms, own, strict=True):
                if np.isnan(of_arm).all():
                    continue  # no prompt has foils
                told = ratios(of_arm, seed=seed)._asdict()
                about = named.assign(side=side, arm=arm, metric=metric, **told)
                # What a random one of the kind does.
                about["baseline"] = about.groupby("component")["value"].transform("mean")
                tables.append(about)
    by = "log_probability" if judge is None else judge.name
    worse = -1 if judge is not None and judge.lower else 1
    for arm, of_arm in zip(arms, found[CHANGE][by], strict=True):
        if np.isnan(of_arm).all():
            continue
        costs, others = (_means(of_arm, prompts) for prompts in split)
        for kind in dict.fromkeys(kinds):
            among = np.flatnonzero(kinds == kind)
            if np.isnan(costs[among]).all():
                continue
            best = int(among[np.nanargmin(worse * costs[among])])
            null = float(np.nanmean(others[among]))
            told = ratios(of_arm[best, split[1]], seed=seed).first._asdict()
            about = {"side": CHANGE, "arm": arm, "metric": "picked", "baseline": null}
            tables.append(pd.DataFrame([_named(places[best]) | about | told]))
    return pd.concat(tables, ignore_index=True).astype(dict.fromkeys(NUMBERS, "Int64"))


def _means(values: NDArray[np.float64], prompts: Sequence[int]) -> NDArray[np.float64]:
    """(components,) means over some prompts."""
    some = (values[rows][:, prompts] for rows in slices(values))
    return np.concatenate([ratios(own, draws=1).value for own in some])


def _named(part: Part) -> dict[str, Any]:
    about = {"component": part.component, "layer": part.layer, "head": part.head}
    return about | {"neuron": part.neuron}
