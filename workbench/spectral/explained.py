"""Explained change: does the change act on the directions that a layer's inputs use?

C = E[x x^T] over the tokens of given prompts, x the input that a matrix has in the base (not
centred). What the change adds to the output there, E|dW x|^2 = tr(dW C dW^T), is compared with the
same singular values in random input directions, whose mean is |dW|^2 tr(C) / d:

    energy = d tr(dW C dW^T) / (|dW|^2 tr(C))                1: as random directions

and `explained` is the share |dW V_p|^2 / |dW|^2 of the change in the p leading directions V_p of
the inputs, on which EVA starts its adapters (Paischer et al. 2024, arXiv 2410.07170, sec. 3); p / d
by chance. The null's variance is exact, of a Haar-random rotation Q:

    Var tr(Q A Q^T C) = 2 (tr A^2 - tr(A)^2 / d) (tr C^2 - tr(C)^2 / d) / ((d - 1)(d + 2))

It misleads where a few directions hold nearly all of C, as the large activations of a first token
do: a change beside those has an energy near 0 and may still decide every other token. The inputs
are the base's; in the fine-tuned model they have moved too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.analysis.record import analysis
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.experts import running
from workbench.loaders.names import ParameterSite, align
from workbench.models.sides import named_dtype
from workbench.models.trial import last_alone
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, ratios
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id, rows

KEY = "spectral.explained"
DIRECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
MEMORY = 2**31  # bytes of changes and of C that are held at once; beyond, further passes


def null_range(size: float, fourth: float, gram: Float[Tensor, "d d"]) -> tuple[float, float]:
    """The 95% range of tr(dW C dW^T) with the change's singular values in random input directions:
    of the Gamma distribution with the exact mean and variance. size: sum of sigma^2; fourth: of
    sigma^4; gram: C."""
    from scipy.stats import gamma

    d = gram.shape[0]
    trace, square = float(gram.trace()), float(gram.square().sum())
    mean = size * trace / d
    variance = 2 * (fourth - size**2 / d) * (square - trace**2 / d) / ((d - 1) * (d + 2))
    if d < 2 or variance <= 1e-12 * mean**2:
        return mean, mean
    low, high = gamma.ppf([0.025, 0.975], mean**2 / variance, scale=variance / mean)
    return float(low), float(high)


def fourth_moment(delta: Delta) -> float:
    """Sum of sigma^4 of a change, |dW^T dW|_F^2, from its smaller side."""
    if delta.factors is not None:
        up, down = delta.factors.up.double(), delta.factors.down.double()
        product = (up.T @ up) @ (down @ down.T)
        return float((product * product.T).sum())
    change = delta.change.double()
    gram = change @ change.T if change.shape[0] < change.shape[1] else change.T @ change
    return float(gram.square().sum())


def applied(delta: Delta, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
    """dW x for every row."""
    if delta.factors is None:
        return inputs @ delta.change.T
    return (inputs @ delta.factors.down.T) @ delta.factors.up.T


@analysis(
    "Does the change act on the directions that the layers' inputs use?",
    paper="arXiv 2410.07170",
    example="--prompts task.jsonl",
    passes=1,
    takes={"prompts": "task", "others": "others"},
    few={"prompts": 32, "others": 32},
)
def explained(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    others: Sequence[PromptSet] = (),
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Hold the change of every matrix against what the matrix reads on the prompts.

    prompts: prompts of what was learned, read without their answers; others: further prompt sets,
    such as tasks of pre-training, to compare with. dtype: "float32" or "bfloat16", the precision in
    which the base runs; None means as stored.

    The command line takes 32 prompts of each set; with --full all of them.

    Returns a Result; per matrix (layer, component) and task: "energy", with a 95% bootstrap
    interval over prompts (the ratio of their sums), n the prompts, baseline 1 and the 95% range of
    random directions as null_low and null_high; by x, the number of leading directions of the
    inputs, "explained", baseline x / d, and "inputs", the share of the inputs' own squared norm in
    them. Without layer and component, "energy" of all matrices together, each by what it adds to
    its own output. Rows of matrices that did not change are not there, nor of those without an
    input of their own (experts stored together), as a note says. Raises WorkbenchError for a pair
    that fails its preflight.
    """
    sets = (prompts, *others)
    words = pair.base.tokenizer()
    model: Any = pair.base.load(device, named_dtype(dtype)).eval()
    sites, apart = _modules(pair, model)
    given = [rows(words, one) for one in sets]
    made: list[dict[str, Any]] = []
    parts: list[list[_Energy]] = [[] for _ in sets]
    for group in progress(list(_groups(pair, sites)), desc=f"inputs {pair.name}"):
        deltas = {s.name: pair.delta(s).to(torch.device(device)) for s in group}
        for number, own in enumerate(given):
            seen = _Inputs({s: sites[s] for s in group}, deltas)
            seen.read(model, own, pad_id(words), batch_size, device)
            for site in group:
                name, whole = sets[number].name, parts[number]
                made += _rows(seen, site, deltas[site.name], name, whole, seed)
    for one, whole in zip(sets, parts, strict=True):
        made.append(_together(one.name, whole, seed))
    columns = ["layer", "component", "task", "x", "metric", *Interval._fields, "baseline"]
    table = pd.DataFrame(made, columns=pd.Index([*columns, "null_low", "null_high"]))
    table.insert(0, "member", pair.name)
    parameters = {"prompts": describe(prompts), "others": describe(list(others))}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    notes = (*provenance.notes, *_notes(pair, sites, apart))
    return finished(KEY, table.astype({"layer": "Int64"}), provenance.with_notes(notes))


def _notes(
    pair: CheckpointPair, sites: Mapping[ParameterSite, nn.Module], apart: int
) -> Iterator[str]:
    total = len(pair.sites())
    if apart:
        yield (
            f"{pair.name}: {apart} of {total} matrices have no input of their own (such as experts "
            "that are stored together), and are left out."
        )
    still = total - apart - len(sites)
    if still:
        yield f"{pair.name}: {still} of {total} matrices did not change, and are left out."


def _modules(pair: CheckpointPair, model: Any) -> tuple[dict[ParameterSite, nn.Module], int]:
    """The module of every matrix that changed, in the order of the model, and how many matrices
    have none of their own."""
    stored, modules = running(model), dict(model.named_modules())
    named = align([site.name for site in pair.sites()], list(stored))
    found, apart = {}, 0
    for site in pair.sites():
        where = stored[named[site.name]] if site.name in named else None
        module = modules.get(where.removesuffix(".weight")) if isinstance(where, str) else None
        weight = getattr(module, "weight", None)
        if module is None or weight is None or weight.ndim != 2:
            apart += 1
        elif pair.delta(site).changed:
            found[site] = module
    return found, apart


def _groups(
    pair: CheckpointPair, sites: Mapping[ParameterSite, nn.Module]
) -> Iterator[list[ParameterSite]]:
    """Sites whose changes and C fit into MEMORY together, at least one."""
    group: list[ParameterSite] = []
    held = 0
    for site, module in sites.items():
        weight: Any = module.weight
        size = 4 * (weight.numel() + max(weight.shape) ** 2)
        if group and held + size > MEMORY:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    if group:
        yield group


class _Inputs:
    """What modules read: C by the first module that reads the same, and per prompt the sums over
    tokens of |x|^2 and |dW x|^2."""

    def __init__(
        self, modules: Mapping[ParameterSite, nn.Module], deltas: Mapping[str, Delta]
    ) -> None:
        self.modules, self.deltas = modules, deltas
        self.owner: dict[ParameterSite, ParameterSite] = {}
        self.grams: dict[ParameterSite, Tensor] = {}
        self.norms: dict[ParameterSite, NDArray[np.float64]] = {}
        self.moved: dict[ParameterSite, NDArray[np.float64]] = {}
        self.tokens = 0
        self._found: dict[ParameterSite, tuple[Tensor, Tensor]] = {}
        self._mask, self._at, self._last = torch.empty(0), [0], (None, None)

    def read(
        self, model: Any, given: Sequence[Row], fill: int, batch_size: int, device: str
    ) -> None:
        for site in self.modules:
            self.norms[site], self.moved[site] = np.zeros(len(given)), np.zeros(len(given))
        hooks = [
            module.register_forward_pre_hook(self._hook(site))
            for site, module in self.modules.items()
        ]

        def run(at: list[int]) -> None:
            inputs = batch(given, at, device, fill)
            self._mask, self._at = inputs.mask.bool(), at
            model(**inputs.inputs, use_cache=False, **last_alone(model))
            self.tokens += int(inputs.mask.sum())
            self._last = (None, None)

        try:
            with torch.no_grad():
                for _ in in_batches([len(row.fed) for row in given], batch_size, run):
                    pass
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, site: ParameterSite) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...]) -> None:
            mask = self._mask
            real = args[0][mask].float()
            places = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
            if self._last[0] is not args[0]:
                self._last = (args[0], site)
                gram = real.T @ real
                self.grams[site] = self.grams[site] + gram if site in self.grams else gram
                self.norms[site][self._at] = self._sums(real, places)
            self.owner[site] = self._last[1] or site
            moved = applied(self.deltas[site.name], real)
            self.moved[site][self._at] = self._sums(moved, places)

        return seen

    def directions(self, owner: ParameterSite) -> tuple[Tensor, Tensor]:
        """The leading directions of C, (d, at most the last of DIRECTIONS), and the share of its
        trace in so many of them."""
        from scipy.linalg import eigh

        if owner not in self._found:
            gram = self.grams[owner].double().cpu().numpy()
            last = len(gram) - 1
            first = max(0, last + 1 - DIRECTIONS[-1])
            values, vectors = eigh(gram, subset_by_index=(first, last))
            shares = values[::-1].clip(min=0).cumsum() / gram.trace()
            leading = torch.from_numpy(vectors[:, ::-1].astype(np.float32))
            self._found[owner] = leading, torch.from_numpy(shares)
        return self._found[owner]

    def _sums(self, vectors: Tensor, places: Tensor) -> NDArray[np.float64]:
        """Sum of squares of each prompt's vectors."""
        total = torch.zeros(len(self._at), device=vectors.device)
        return total.index_add_(0, places, vectors.square().sum(1)).double().cpu().numpy()


class _Energy(NamedTuple):
    """Per prompt, for a ratio of sums."""

    tops: NDArray[np.float64]
    bottoms: NDArray[np.float64]


def _rows(
    seen: _Inputs,
    site: ParameterSite,
    delta: Delta,
    task: str,
    whole: list[_Energy],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The rows of one matrix on one set of prompts; adds its parts to `whole`."""
    owner = seen.owner[site]
    gram = (seen.grams[owner] / seen.tokens).double().cpu()
    d, size = gram.shape[0], delta.norm**2
    about = {"layer": site.layer, "component": site.component, "task": task}
    # As random directions would: |dW|^2 |x|^2 / d of each prompt.
    energy = _Energy(seen.moved[site], seen.norms[owner] * size / d)
    whole.append(energy)
    mean = size * float(gram.trace()) / d
    low, high = (end / mean for end in null_range(size, fourth_moment(delta), gram))
    yield about | {
        "metric": "energy", **ratios(*energy, seed=seed).first._asdict(), "baseline": 1.0,
        "null_low": low, "null_high": high,
    }  # fmt: skip
    leading, shares = seen.directions(owner)
    # dW V: what each direction is turned into, a row each.
    turned = applied(delta.to(torch.device("cpu")), leading.T)
    for p in (p for p in DIRECTIONS if p < d):
        value = float(turned[:p].double().square().sum()) / size
        yield about | {"x": float(p), "metric": "explained", "value": value, "baseline": p / d}
        yield about | {"x": float(p), "metric": "inputs", "value": float(shares[p - 1])}


def _together(task: str, whole: Sequence[_Energy], seed: int) -> dict[str, Any]:
    """All matrices of a set of prompts: the ratio of what the changes add to what they would."""
    found = Interval(np.nan, np.nan, np.nan, 0)
    if whole:
        tops, bottoms = (np.sum(part, 0) for part in zip(*whole, strict=True))
        found = ratios(tops, bottoms, seed=seed).first
    return {"task": task, "metric": "energy", **found._asdict(), "baseline": 1.0}
