"""Knockout: what does the tuned model need that the base does not?

One head, MLP or layer at a time is taken out of each side at every token, and the answer's measures
are compared with those of the whole model on the same prompt:

    zero       what it gives is zero
    mean       its own mean over all tokens of all prompts, of that side
    resample   what it gives on another prompt, token by token counted from the prompt's end

(zero and mean as in Wang et al. 2022, arXiv 2211.00593; resampling as in Chan et al. 2022, causal
scrubbing). The difference of the two sides' changes, paired over prompts, is what fine-tuning made
the model need. The control is the mean over all components of that kind: what a random one does.

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
from workbench.patching.strongest import halves, said_of_halves
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import others, ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Batch, Row, batch, in_batches, pad_id

KEY = "patching.knockout"
CHANGE = "tuned - base"
ZERO, MEAN, RESAMPLE = ARMS = ("zero", "mean", "resample")
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
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Take every head, MLP and layer out of both sides, one at a time, and compare the losses.

    prompts: prompts with answers; in plain texts the answer is the token that the tuned model
    predicts next. arms: what stands in the place of a component: zero, mean, resample. components:
    what is taken out: head, mlp, layer. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 16 prompts and the mean alone; with --full all of them and all arms.

    Returns a Result with columns side, arm, component, layer, head, metric: the change that the
    knockout makes to `score` (fraction right), `log_probability` (nats, of the answer) and
    `logit_difference` (to the best foil), means over prompts with 95% bootstrap intervals, n, for
    the sides "base", "tuned" and, paired, "tuned - base"; baseline: the mean over all components of
    the kind. Metric `picked`: of each arm and kind the component whose knockout costs the tuned
    model most log-probability beyond the base, chosen on one half of the prompts, on the other.
    Raises WorkbenchError for unknown arms or components, and for one prompt alone where resampled.
    """
    for name, asked, known in (("arms", arms, ARMS), ("components", components, COMPONENTS)):
        unknown = [one for one in asked if one not in known]
        if unknown or not asked:
            told = repr(unknown[0]) if unknown else "none"
            raise WorkbenchError(f"Expected {name} of {', '.join(known)}, found {told}.")
    shared.require_batches(batch_size)
    words = pair.base.tokenizer()
    given = answered(words, prompts)
    if RESAMPLE in arms and len(given) < 2:
        raise WorkbenchError(
            "Expected two or more prompts, of which one stands in for another, found one; give "
            "more, or arms without resample."
        )
    found: dict[str, dict[str, Floats]] = {}
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        places = parts(run.layout, components)
        for side, model in (("base", run.base), ("tuned", run.tuned)):
            job = _Knockout(model, given, places, arms, pad_id(words), device, seed)
            found[side] = job.run(batch_size, f"knockout, {side}")
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    pick, report = halves(len(given), seed)
    notes.append(f"{pair.name}: {said_of_halves(pick, report, 'The picked components')}")
    table = pd.DataFrame(_rows(found, places, arms, (pick, report), seed))
    table.insert(0, "member", pair.name)
    parameters = {"prompts": describe(prompts), "arms": [*arms], "components": [*components]}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    return finished(KEY, table.astype({"layer": "Int64", "head": "Int64"}), provenance)


@dataclass(frozen=True)
class _Knockout:
    """One side's model, the prompts with answers, and what is taken out of it."""

    model: Any
    given: Sequence[Row]
    places: Sequence[Part]
    arms: Sequence[str]
    fill: int
    device: str
    seed: int

    def run(self, batch_size: int, label: str) -> dict[str, Floats]:
        """metric -> (arms, parts, prompts): the change that each knockout makes."""
        size = (len(self.arms), len(self.places), len(self.given))
        kept = {metric: np.full(size, np.nan) for metric in METRICS}
        lengths = [len(row.fed) for row in self.given]
        means = self._means(batch_size) if MEAN in self.arms else {}
        turn = others(len(self.given), self.seed)

        def run(at: list[int]) -> dict[str, Tensor]:
            return self._batch(at, [turn[i] for i in at], means, batch_size)

        with progress(total=len(self.given), desc=label) as bar:
            for at, found in in_batches(lengths, batch_size, run):
                for metric, value in found.items():
                    kept[metric][..., at] = value.double().cpu().numpy()
                bar.update(len(at))
        return kept

    def _sites(self) -> list[Site]:
        return list(dict.fromkeys(site.whole for part in self.places for site in part.sites))

    def _rerun(self, at: Sequence[int]) -> Rerun:
        inputs = batch(self.given, at, self.device, self.fill)
        return Rerun(self.model, inputs, self._sites())

    def _means(self, batch_size: int) -> dict[Site, Tensor]:
        """Each whole site's mean over all tokens of all prompts."""
        sums: dict[Site, Tensor] = {}
        total = 0

        def run(at: list[int]) -> tuple[dict[Site, Tensor], int]:
            own = self._rerun(at)
            real = own.inputs.mask.bool()
            return {s: own.read(s)[real].double().sum(0) for s in self._sites()}, int(real.sum())

        for _, (own, count) in in_batches([len(row.fed) for row in self.given], batch_size, run):
            total += count
            sums = {site: sums.get(site, 0) + value for site, value in own.items()}
        return {site: (value / total).float() for site, value in sums.items()}

    def _batch(
        self, at: list[int], partners: list[int], means: Mapping[Site, Tensor], batch_size: int
    ) -> dict[str, Tensor]:
        """metric -> (arms, parts, batch)."""
        own = self._rerun(at)
        other = self._rerun(partners) if RESAMPLE in self.arms else own
        plain = shared.measured(own.logits, own.inputs)
        tokens = _from_the_end(own.inputs, other.inputs)
        rows = torch.arange(len(at), device=tokens.device)[:, None]
        room = max(1, batch_size // len(at))

        def value(arm: str, site: Site) -> Tensor:
            full = own.read(site.whole)
            if arm == RESAMPLE:
                full = other.read(site.whole)[rows, tokens]
            elif arm == MEAN:
                full = means[site.whole].to(full).expand_as(full)
            else:
                full = torch.zeros_like(full)
            return full if site.head is None else full[..., site.head, :]

        made: dict[str, list[Tensor]] = {metric: [] for metric in METRICS}
        for arm in self.arms:
            for start in range(0, len(self.places), room):
                chosen = self.places[start : start + room]
                patches = [{site: value(arm, site) for site in part.sites} for part in chosen]
                scored = shared.measured(own.again(patches), own.inputs)
                for metric in METRICS:
                    made[metric].append(scored[metric] - plain[metric])
        shape = (len(self.arms), len(self.places))
        return {metric: torch.cat(own).unflatten(0, shape) for metric, own in made.items()}


def _from_the_end(own: Batch, other: Batch) -> Tensor:
    """(batch, token) the other rows' tokens as far from their prompts' ends as own ones are from
    theirs, within the other row."""
    steps = torch.arange(own.ids.shape[1], device=own.ids.device)[None]
    found = other.lengths[:, None] - own.lengths[:, None] + steps
    last = other.mask.sum(-1)[:, None] - 1
    return torch.minimum(found.clamp(min=0), last)


def _rows(
    found: Mapping[str, Mapping[str, Floats]],
    places: Sequence[Part],
    arms: Sequence[str],
    split: tuple[Sequence[int], Sequence[int]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Means over prompts of both sides and of their difference, and the picked components."""
    kinds = np.array([part.component for part in places])
    difference = {m: found["tuned"][m] - found["base"][m] for m in METRICS}
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
    for arm, of_arm in zip(arms, difference["log_probability"], strict=True):
        for kind in dict.fromkeys(kinds):
            among = np.flatnonzero(kinds == kind)
            best = int(among[of_arm[among][:, pick].mean(-1).argmin()])
            null = float(of_arm[among][:, report].mean())
            told = ratios(of_arm[best, report], seed=seed).first
            about = {"side": CHANGE, "arm": arm} | _named(places[best])
            yield about | {"metric": "picked", "baseline": null} | told._asdict()


def _named(part: Part) -> dict[str, Any]:
    return {"component": part.component, "layer": part.layer, "head": part.head}
