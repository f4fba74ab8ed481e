"""Information gain of an example: what would one step of training on it teach the base?

With L(theta; x) = -log p(answer) of an example x in nats, one step of gradient descent on it moves
theta by -lr g(x), g(x) = dL/dtheta, and so lowers the loss of held-out prompts, to first order, by

    gain(x) = lr g(x) . g(held out)    nats an answer.

Antonello et al. 2020 (arXiv 2005.00175) filter training text by the gain that is measured after the
step; here the product stands for all examples, and the step itself is taken on some, to see whether
the product told it (agreement 1). The control is the same examples with the answers of others: what
any text of this form would teach.

Which example wrote which direction of a change is asked of the same gradients: along the singular
direction u v^T of a matrix's change a step on x moves by

    written(x) = -u^T G(x) v / |G(x)|_F,    -1 to 1,

G(x) the gradient of that matrix. Random directions of the same matrix are the control. If the
change is one step on x alone, its first direction has sigma_1 / |change|_F.

It misleads where one step is not what training does: Adam does not follow the gradient, later
steps start elsewhere, and a gain at the base says nothing of examples that the base knows already
because others taught them. Where several examples have the same gradient, any of them is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import home
from workbench.loaders.names import ParameterSite, align, is_conv1d
from workbench.models.edits import decomposed
from workbench.models.gradient_step import Gradients, answer_gradients, dot, moved
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap, ratios, spearman
from workbench.tasks.prompts import PromptSet

KEY = "behaviour.gain"
GIVEN, OTHERS = "given", "answers of others"
Floats = NDArray[np.float64]


class Direction(NamedTuple):
    """A singular direction of a matrix's change. name: of the model's parameter; turned: whether
    that lies transposed. left: (out,), right: (in,); random: the same of random directions."""

    site: ParameterSite
    rank: int
    sigma: float
    name: str
    turned: bool
    left: Tensor
    right: Tensor
    random: tuple[Tensor, Tensor]


def written(gradient: Tensor, left: Tensor, right: Tensor) -> float:
    """The cosine of a step of descent with a direction: -u^T G v / |G|, NaN without a gradient.
    gradient: (out, in); left: (out,) and right: (in,), of norm 1."""
    norm = float(gradient.norm())
    return -float(left @ gradient @ right) / norm if norm else float("nan")


@analysis(
    "What would one training step on each example teach, and which examples wrote the change?",
    paper="arXiv 2005.00175",
    example="--prompts held-out.jsonl --lessons train.jsonl",
    passes=12,
    quick={"checked": 4},
    few={"prompts": 16, "lessons": 16},
    quick_passes=12,
)
def gain(
    pair: CheckpointPair,
    prompts: PromptSet,
    lessons: PromptSet,
    *,
    lr: float = 1e-3,
    checked: int = 8,
    directions: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Measure what one step on each example would teach the base about held-out prompts.

    prompts: held-out prompts with answers, on which the gain is measured. lessons: the examples,
    with the answers that are learned; 2 or more. lr: the size of the step; it has to be small for
    the product of gradients to tell the gain. checked: the number of examples on which the step is
    really taken, drawn at random. directions: the number of singular directions of the change, the
    largest of all matrices, for which the examples that wrote them are told; 0 for none.

    The command line takes 16 prompts, 16 examples and 4 real steps; with --full all and 8 steps.

    Returns a Result with rows gain (nats of the held-out answers; arm "given", and "answers of
    others" as control; with column prompt of each example, without it the mean, its 95% interval
    over examples, baseline: of the control); gain_beyond_others, paired; real_gain, of the examples
    that were checked (baseline: the product); agreement, the sum of the real gains over that of the
    products, and rank_agreement, their Spearman correlation. Of each direction (layer, component,
    rank): sigma, and written (with column prompt of each example, without it the mean; baseline:
    along a random direction of the same matrix). Raises WorkbenchError for fewer than 2 examples or
    no prompts.
    """
    if not len(prompts) or len(lessons) < 2 or not lr > 0:
        raise WorkbenchError(
            f"Expected held-out prompts, 2 examples or more and a step above 0, found "
            f"{len(prompts)} prompts, {len(lessons)} examples and lr={lr}."
        )
    words = pair.base.tokenizer()
    model: Any = pair.base.load(device, named_dtype(dtype)).eval()
    wanted = _directions(pair, model, directions, seed)
    mixed = _others(lessons, seed)
    draw = np.random.default_rng(seed).permutation(len(lessons))[:checked]
    real: dict[int, float] = {}
    gains = np.zeros((2, len(lessons)))
    along = np.full((2, len(wanted), len(lessons)), np.nan)
    before, held = answer_gradients(model, words, list(prompts), batch_size)
    for i in progress(range(len(lessons)), desc=f"{pair.name}: examples"):
        for arm, of in enumerate((lessons, mixed)):
            _, own = answer_gradients(model, words, [of[i]], batch_size)
            gains[arm, i] = lr * dot(own, held)
            if arm:
                continue
            along[:, :, i] = _along(wanted, own)
            if i in draw:
                with moved(model, lambda name, _, own=own: -lr * own[name]):
                    after, _ = answer_gradients(model, words, list(prompts), batch_size)
                real[i] = before - after
    names = [one.id for one in lessons]
    rows = [*_gains(gains, names, seed), *_checked(gains[0], real, names, seed)]
    rows += _written(wanted, along, names, seed)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    if wanted:
        table = table.astype({"layer": "Int64", "rank": "Int64"})
    parameters = {
        "prompts": describe(prompts), "lessons": describe(lessons), "lr": lr, "checked": checked,
        "directions": directions,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _others(lessons: PromptSet, seed: int) -> PromptSet:
    """Every example with the answer of another one; with another answer where there is any."""
    order = np.random.default_rng(seed).permutation(len(lessons))
    made = []
    for place, one in enumerate(lessons):
        start = int(np.flatnonzero(order == place)[0])
        turned = [lessons[int(j)].target for j in (*order[start + 1 :], *order[:start])]
        other = next((target for target in turned if target != one.target), turned[0])
        made.append(replace(one, target=other, foils=()))
    return replace(lessons, prompts=tuple(made))


def _directions(pair: CheckpointPair, model: Any, count: int, seed: int) -> list[Direction]:
    """The largest singular directions of the change over all matrices that the model has as one
    parameter each, none of a matrix that did not change."""
    if not count:
        return []
    own = dict(model.named_parameters())
    sites = {site.name: site for site in pair.sites()}
    named = align(list(sites), list(own))
    drawn = torch.Generator().manual_seed(seed)
    found: list[Direction] = []
    for name, ours in named.items():
        delta = pair.delta(sites[name])
        turned = is_conv1d(name, pair.tuned.config)
        shape = own[ours].shape[::-1] if turned else own[ours].shape
        if not delta.changed or delta.change.shape != shape:
            continue
        left, values, right = decomposed(delta)
        for rank in range(min(count, len(values))):
            random = tuple(
                torch.nn.functional.normalize(torch.randn(size, generator=drawn), dim=0)
                for size in shape
            )
            found.append(
                Direction(sites[name], rank, float(values[rank]), ours, turned,
                          left[:, rank], right[rank], (random[0], random[1]))
            )  # fmt: skip
        found = sorted(found, key=lambda one: -one.sigma)[:count]
    lies = home(model)
    return [
        one._replace(left=one.left.to(lies), right=one.right.to(lies),
                     random=(one.random[0].to(lies), one.random[1].to(lies)))
        for one in found
    ]  # fmt: skip


def _along(wanted: Sequence[Direction], gradients: Gradients) -> Floats:
    """(2, directions): along each direction, and along the random one beside it."""
    found = np.full((2, len(wanted)), np.nan)
    for place, one in enumerate(wanted):
        gradient = gradients[one.name].T if one.turned else gradients[one.name]
        found[0, place] = written(gradient, one.left, one.right)
        found[1, place] = written(gradient, *one.random)
    return found


def _gains(gains: Floats, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    control = float(gains[1].mean())
    for arm, values in zip((GIVEN, OTHERS), gains, strict=True):
        for name, value, beside in zip(names, values, gains[1], strict=True):
            yield {"metric": "gain", "arm": arm, "prompt": name, "value": value, "baseline": beside}
        own = bootstrap(values, seed=seed)._asdict()
        yield {"metric": "gain", "arm": arm, **own, "baseline": control}
    more = bootstrap(gains[0] - gains[1], seed=seed)._asdict()
    yield {"metric": "gain_beyond_others", **more, "baseline": 0.0}


def _checked(
    told: Floats, real: dict[int, float], names: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Whether the product told what the step does."""
    if not real:
        return
    places = sorted(real)
    for place in places:
        yield {
            "metric": "real_gain", "arm": GIVEN, "prompt": names[place], "value": real[place],
            "baseline": told[place],
        }  # fmt: skip
    measured = np.array([real[place] for place in places])
    whole = ratios(measured, told[places], seed=seed).first._asdict()
    yield {"metric": "agreement", **whole, "baseline": 1.0}
    ranks = spearman(told[places], measured, seed=seed)._asdict()
    yield {"metric": "rank_agreement", **ranks, "baseline": 0.0}


def _written(
    wanted: Sequence[Direction], along: Floats, names: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    for one, values, random in zip(wanted, *along, strict=True):
        at = {"layer": one.site.layer, "component": one.site.component, "rank": one.rank}
        yield at | {"metric": "sigma", "value": one.sigma}
        for name, value, beside in zip(names, values, random, strict=True):
            yield at | {"metric": "written", "prompt": name, "value": value, "baseline": beside}
        mean = ratios(values, seed=seed).first._asdict()
        beside = float(np.nanmean(random)) if np.isfinite(random).any() else float("nan")
        yield at | {"metric": "written", **mean, "baseline": beside}
