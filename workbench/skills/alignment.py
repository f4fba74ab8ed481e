"""Alignment: does the change go where the task's gradient at the base points?

G is the gradient of the task's loss (-log p of the answer) at the base, per matrix, D the change.

    cosine(D, -G)                                          1: one step of gradient descent
    sign agreement: share of |D| whose sign is that of -G  1/2 by chance

The entries whose sign agrees are those that GradFix keeps to move a change to another base (Rinaldi
et al. 2025, arXiv 2510.09658); the largest |G| are those gradient-mask tuning trains (Li et al.
2024, arXiv 2406.15330), the largest of a low-rank copy of the base LIFT's principal weights (Liu et
al. 2025, arXiv 2506.00772): how many of them are among the largest |D|? Each is held against D with
its entries permuted inside the matrix, whose mean and variance are exact.

LoKI (Wang et al. 2025, arXiv 2505.22120) leaves neurons of the feed-forward layers alone that
general knowledge needs. A neuron's relevance is here |h dL/dh| of its activation h, mean over
general prompts; it equals |sum over rows of W . dL/dW| of its column in the down projection. Was
it spared? Spearman's rho of relevance and the norm of the neuron's change, by layer.

It misleads where training went far: the gradient at the base is that of the first step, and Adam's
step has the gradient's sign but not its size, so the cosine of a good fine-tune can be small. Large
rows and columns are large in D, G and the base alike, and then overlap without any shared cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.experts import running
from workbench.loaders.names import ParameterSite, align
from workbench.models import Layout, Site
from workbench.models.sides import named_dtype
from workbench.models.task_gradient import Teacher, require_gradients
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills import rankings
from workbench.stats import spearman
from workbench.tasks import PromptSet

KEY = "skills.alignment"
Z = 1.959964
COLUMNS = (
    "layer", "component", "arm", "task", "metric", "value", "low", "high", "n", "baseline",
    "null_low", "null_high",
)  # fmt: skip


class Product(NamedTuple):
    """sum a b, and its exact mean and variance where a's entries are permuted."""

    value: float
    mean: float
    variance: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Product:
        a, b = a.flatten().double(), b.flatten().double()
        n = a.numel()
        spread = float((a - a.mean()).square().sum() * (b - b.mean()).square().sum())
        variance = spread / (n - 1) if n > 1 else 0.0
        return cls(float(a @ b), float(a.sum() * b.mean()), variance)

    def __add__(self, other: tuple[Any, ...]) -> Product:  # type: ignore[override]
        """Of two matrices, permuted apart."""
        return Product(*(x + y for x, y in zip(self, other, strict=True)))

    def scaled(self, scale: float, shift: float = 0.0) -> dict[str, float]:
        """As columns: shift + scale times it, with its null."""
        half = Z * self.variance**0.5
        return {
            "value": shift + scale * self.value, "baseline": shift + scale * self.mean,
            "null_low": shift + scale * (self.mean - half),
            "null_high": shift + scale * (self.mean + half),
        }  # fmt: skip


class Agreement(NamedTuple):
    """Of one matrix or of several together: D . -G, D . sign(-G), |D|^2, |G|^2, sum |D|."""

    inner: Product
    signs: Product
    change: float
    gradient: float
    total: float

    @classmethod
    def of(cls, change: Tensor, gradient: Tensor) -> Agreement:
        return cls(
            Product.of(change, -gradient),
            Product.of(change, -gradient.sign()),
            float(change.double().square().sum()),
            float(gradient.double().square().sum()),
            float(change.double().abs().sum()),
        )

    def joined(self, other: Agreement) -> Agreement:
        inner, signs = self.inner + other.inner, self.signs + other.signs
        return Agreement(inner, signs, *(x + y for x, y in zip(self[2:], other[2:], strict=True)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """An entry whose gradient is zero counts as half agreeing."""
        size = (self.change * self.gradient) ** 0.5
        cosine = self.inner.scaled(1 / size) if size else {"value": np.nan, "baseline": 0.0}
        yield {"metric": "cosine"} | cosine
        yield {"metric": "sign_agreement"} | self.signs.scaled(0.5 / self.total, 0.5)


def shared(first: Tensor, second: Tensor, share: float) -> dict[str, float]:
    """Of the largest `share` of the entries of second, how many are among those of first, with the
    hypergeometric null."""
    from scipy.stats import hypergeom

    n = first.numel()
    k = max(1, round(share * n))
    picks = [torch.zeros(n, dtype=torch.bool) for _ in range(2)]
    for pick, scores in zip(picks, (first, second), strict=True):
        pick[scores.flatten().cpu().topk(k).indices] = True
    low, high = hypergeom(n, k, k).ppf([0.025, 0.975])
    return {
        "value": int((picks[0] & picks[1]).sum()) / k, "n": k, "baseline": k / n,
        "null_low": low / k, "null_high": high / k,
    }  # fmt: skip


@analysis(
    "Does the change go where the task's gradient at the base points?",
    paper="arXiv 2510.09658, 2406.15330, 2506.00772, 2505.22120",
    example="--prompts task.jsonl --others general.jsonl",
    passes=3,
    takes={"task": "task", "others": "others"},
    few={"task": 32, "others": 16},
)
def alignment(
    pair: CheckpointPair,
    task: PromptSet,
    *,
    others: Sequence[PromptSet] = (),
    share: float = 0.05,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Compare the change of every matrix with the gradient of the task's loss at the base.

    task: prompts of what was learned. others: prompts of general knowledge, by which a neuron's
    relevance is judged, a backward pass for each. share: of a matrix's entries that count as its
    largest (LIFT trains 5%). dtype: "float32" or "bfloat16", the precision in which the base runs;
    sums are float32.

    The command line takes 32 prompts of the task and 16 of each other set; with --full all.

    Returns a Result; per matrix (layer, component) that changed, and of all together without layer
    and component: "cosine" of D and -G, and "sign_agreement", the share of |D| with the sign of
    -G; per matrix "overlap" by arm ("gradient", "principal", "magnitude"), the share of the largest
    entries by the arm that are among the largest |D|, n how many. Each has the mean of a change
    permuted inside its matrices as baseline and its 95% range as null_low and null_high. For every
    other set (task) and layer: "relevance", Spearman's rho of a neuron's relevance and the norm of
    its change, with a 95% bootstrap interval over the n neurons and, for ranks at random, the range
    null_low to null_high. Raises WorkbenchError for a share outside (0, 1), no prompts, no change
    inside the blocks, or an offloaded model.
    """
    if not 0 < share < 1:
        raise WorkbenchError(f"Expected a share of entries between 0 and 1, found {share}.")
    empty = [one.name for one in (task, *others) if not len(one)]
    if empty:
        raise WorkbenchError(f"Expected prompts, found none in {', '.join(empty)}.")
    held = pair.held(device)
    model: Any = pair.base.load(device, named_dtype(dtype)).eval()
    held.rest_on(model)
    teacher = Teacher(held, model, task, batch_size)
    require_gradients(teacher.model)
    _, gradients = teacher.gradients(range(len(teacher.rows)))
    rows = list(_matrices(held, gradients, share))
    del gradients
    notes, neurons = [], _neurons(held, model) if others else {}
    if others and not neurons:
        notes = [f"{pair.name}: no feed-forward layer with neurons of its own changed."]
    for other in others if neurons else ():
        rows += _relevance(held, Teacher(held, model, other, batch_size), neurons, seed)
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS)).astype({"layer": "Int64"})
    table.insert(0, "member", pair.name)
    parameters = {"task": describe(task), "others": describe(list(others)), "share": share}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)))


def _matrices(
    pair: CheckpointPair, gradients: Mapping[str, Tensor], share: float
) -> Iterator[dict[str, Any]]:
    """The rows of every matrix, and of all together."""
    principal, magnitude = rankings.principal(pair), rankings.magnitude(pair)
    whole: Agreement | None = None
    for site in progress(pair.sites(), desc=f"alignment {pair.name}"):
        delta = pair.delta(site)
        if not delta.changed or site.name not in gradients:
            continue
        change, gradient = delta.change, gradients[site.name]
        found = Agreement.of(change, gradient)
        whole = found if whole is None else whole.joined(found)
        about = {"layer": site.layer, "component": site.component}
        yield from (about | row for row in found.rows())
        arms = {"gradient": gradient.abs(), "principal": principal(site)}
        arms["magnitude"] = magnitude(site)
        for arm, scores in arms.items():
            yield about | {"arm": arm, "metric": "overlap"} | shared(change.abs(), scores, share)
    if whole is None:
        raise WorkbenchError(
            f"{pair.name} has no changed matrix to hold against a gradient; give a model whose "
            "weights differ from the base's."
        )
    yield from whole.rows()


class Neurons(NamedTuple):
    """Of one layer: the matrix whose columns they are, and those whose rows write them."""

    down: ParameterSite
    writers: tuple[ParameterSite, ...]


def _neurons(pair: CheckpointPair, model: Any) -> dict[int, Neurons]:
    """Layer -> the matrices of its feed-forward neurons, where any of them changed."""
    layout, stored = Layout(model), running(model)
    named = align([s.name for s in pair.sites()], list(stored))
    by_name = {stored[named[s.name]]: s for s in pair.sites() if s.name in named}
    found = {}
    for layer in layout.where("mlp_hidden"):
        path = layout.path(Site("mlp_hidden", layer))
        down = by_name.get(f"{path}.weight")
        if down is None:
            continue
        around, count = path.rpartition(".")[0], pair.delta(down).base.shape[1]
        writers = tuple(
            site
            for name, site in by_name.items()
            if isinstance(name, str) and name.startswith(f"{around}.") and site != down
            if pair.delta(site).base.shape[0] % count == 0
        )
        if any(pair.delta(site).changed for site in (down, *writers)):
            found[layer] = Neurons(down, writers)
    return found


def moved(pair: CheckpointPair, neurons: Neurons) -> Tensor:
    """(neurons,) norm of the change of each one's column and rows."""
    total = pair.delta(neurons.down).change.double().square().sum(0)
    for site in neurons.writers:
        rows = pair.delta(site).change.double().square().sum(1)
        total = total + rows.view(-1, len(total)).sum(0)
    return total.sqrt()


def _relevance(
    pair: CheckpointPair, teacher: Teacher, neurons: Mapping[int, Neurons], seed: int
) -> Iterator[dict[str, Any]]:
    """Rank correlation of relevance and change, by layer."""
    totals: dict[int, Tensor] = {}
    for place in progress(range(len(teacher.rows)), desc=f"relevance {teacher.prompts.name}"):
        _, gradients = teacher.gradients([place])
        for layer, own in neurons.items():
            weight, gradient = pair.delta(own.down).base, gradients[own.down.name]
            one = (weight.float() * gradient).sum(0).abs()
            totals[layer] = totals[layer] + one if layer in totals else one
    for layer, total in totals.items():
        own = neurons[layer]
        far = moved(pair, own).cpu().numpy()
        found = spearman(total.double().cpu().numpy(), far, seed=seed)
        half = Z / (len(far) - 1) ** 0.5 if len(far) > 1 else np.nan
        null = {"baseline": 0.0, "null_low": -half, "null_high": half}
        about = {"layer": layer, "task": teacher.prompts.name, "metric": "relevance"}
        yield about | found._asdict() | null
