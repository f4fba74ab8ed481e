"""A sparse dictionary on both sides: which latents did fine-tuning change, and does it still fit?

A sparse autoencoder that others trained on the base (SAELens' format; Bricken et al. 2023, arXiv
2309.08600 for the method) reads the states x of both models on the same prompts, at every token of
a prompt but its first, whose state is of another size. At its site

    fvu                sum |x - x^|^2 / sum |x - mean x|^2     per side: what it leaves unexplained
    l0                 latents active at a token
    change explained   1 - sum |e_t - e_b|^2 / sum |x_t - x_b|^2,      e = x - x^ the error node

where 0 says that no part of the change is in the latents. A latent's activation is the mean over a
prompt's tokens times the norm of its row, in the state's unit, and its change is paired over
prompts. How many changed is told against the largest mean change of all latents where the sides of
each prompt are exchanged at random (the largest of all holds for all at once: Westfall & Young
1993), and against the base itself on two halves of the prompts. Those that changed most are chosen
on one half of the prompts and measured on the other.

What the change does: the base runs with the change of the latents' part alone, x_b + x^_t - x^_b,
with the change of the error node alone, x_b + e_t - e_b, and with both, which is x_t (error nodes
as in Marks et al. 2024, arXiv 2403.19647).

It misleads where the dictionary does not explain the base itself: read fvu first. Latents that a
dictionary never had cannot change; then fvu rises, and the change stays in the error node. A latent
may change as the state's norm does, without any feature being learned: some latent changed beyond
its null in 33 of 40 compiled pairs that learned nothing (`make truth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.rerun import Rerun, Writes
from workbench.models.sides import Sides, named_dtype
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.metrics import measured
from workbench.patching.sae import SAE, Read
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, others, ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id
from workbench.tasks.prompts import require_halves

KEY = "patching.dictionary"
CHANGE = "tuned - base"
SIDES = ("base", "tuned")
ARMS = ("base", "latents", "error", "both")
EXCHANGES = 1000
SPLITS = 8  # random halves of the base's prompts
Floats = NDArray[np.float64]


def unexplained(error: Floats, scatter: Floats) -> Floats:
    """(prompts,) whose mean is sum error / sum scatter, and whose scatter is that ratio's: its
    value plus each prompt's influence, so that two sides can be paired."""
    whole = error.sum() / scatter.sum() if scatter.sum() > 0 else np.nan
    return whole + (error - whole * scatter) / scatter.mean()


def largest(change: Floats, seed: int) -> float:
    """The 95% quantile of the largest |mean change| of all latents, the sign of each prompt's
    change drawn at random. change: (prompts, latents)."""
    if not change.shape[1]:
        return 0.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(EXCHANGES, len(change)))
    drawn = [np.abs(part @ change).max(1) for part in np.array_split(signs, 20)]
    return float(np.quantile(np.concatenate(drawn), 0.95, method="higher")) / len(change)


@analysis(
    "Which latents of a sparse dictionary did fine-tuning change?",
    paper="arXiv 2309.08600, 2403.19647",
    example="SAE_FOLDER --prompts task.jsonl",
    passes=5,
    few={"prompts": 64},
)
def dictionary(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    sae: str,
    *,
    site: str | None = None,
    shown: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Read both models through one sparse autoencoder, and patch what it explains of their change.

    prompts: at least 4 prompts; what the patches do is measured at their answers, in plain texts at
    the token that the tuned model predicts next. sae: a folder with cfg.json and
    sae_weights.safetensors, as SAELens saves them: standard, jumprelu or topk, of the residual
    stream or of what a sublayer adds to it. site: where it reads, as "4.resid_post"; None takes the
    hook in its cfg. shown: latents that are reported each by itself. dtype: of the models,
    "float32" or "bfloat16"; None means as stored. The dictionary runs in float32.

    The command line takes 64 prompts; with --full all of them.

    Returns a Result with columns side ("base", "tuned" and, paired, "tuned - base"), layer,
    component (the site's kind), latent, metric, with 95% bootstrap intervals over prompts and n:
    `fvu` (fraction of variance unexplained), `l0` (active latents a token), `change_explained`
    (baseline: what is explained of the difference of two prompts in the base, at their last
    tokens); `activation` of the latents that changed most on one half of the prompts, on the other
    half, in the state's unit (baseline: |mean difference| of the base on two halves; null_low and
    null_high: the largest change of all latents with sides exchanged, 95%); `changed`, the number
    of latents beyond that, on all prompts (baseline: of the base on two halves); `kl_tuned` (nats,
    KL(tuned || arm)) of the arms "base", "latents", "error", "both". Tensors `latents/base` and
    `latents/tuned`: (d_sae,) mean activations. Raises WorkbenchError for fewer than 4 prompts, for
    folders and kinds of dictionaries that are not read, and for another width or site.
    """
    if shown < 1:
        raise WorkbenchError(f"Expected shown to be 1 or more latents, found {shown}.")
    read = SAE.load(sae, site)
    words = pair.base.tokenizer()
    given = answered(words, prompts)
    require_halves(len(given))
    with pair.models(device, named_dtype(dtype)) as run:
        read.require(run.layout)
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        job = _Reading(run, read.to(device), given, pad_id(words), device)
        found = job.run(batch_size)
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    of = f" of {read.model}" if read.model else ""
    notes.append(f"{pair.name}: the dictionary {read.name}{of} reads {read.site}.")
    table = pd.DataFrame([*_fit(found, seed), *_latents(found, shown, seed)])
    table = table.assign(layer=read.site.layer, component=read.site.kind)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "sae": read.name, "site": str(read.site), "shown": shown
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    means = {f"latents/{side}": found.mean(side) for side in SIDES}
    table = table.astype({"layer": "Int64", "latent": "Int64"})
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), means)


class _Found(NamedTuple):
    """numbers: name -> (prompts,) or (prompts, width). latents: side -> (prompts, d_sae), mostly
    zeros."""

    numbers: dict[str, Floats]
    latents: dict[str, sparse.csr_array]

    def mean(self, side: str) -> NDArray[np.float32]:
        return np.asarray(self.latents[side].mean(0), np.float32).ravel()

    def scatter(self, side: str) -> Floats:
        """(prompts,) squared distances of a prompt's states from the mean of all states."""
        own = {name: self.numbers[f"{side} {name}"] for name in ("sum", "square")}
        mean = own["sum"].sum(0) / self.numbers["tokens"].sum()
        return own["square"] - 2 * own["sum"] @ mean + self.numbers["tokens"] * (mean @ mean)


class _Reading(NamedTuple):
    """Both sides, the dictionary on their device, and the prompts with answers."""

    sides: Sides
    sae: SAE
    given: Sequence[Row]
    fill: int
    device: str

    def run(self, batch_size: int) -> _Found:
        size = len(self.given)
        made: list[dict[str, Tensor]] = [{} for _ in range(size)]
        latents: dict[str, list[Any]] = {"base": [None] * size, "tuned": [None] * size}
        lengths = [len(row.fed) for row in self.given]
        with progress(total=size, desc="dictionary") as bar:
            for at, found in in_batches(lengths, batch_size, self._batch):
                for place, own in zip(at, found, strict=True):
                    for side, rows in latents.items():
                        rows[place] = sparse.csr_array(own.pop(f"{side} latents")[None].numpy())
                    made[place] = own
                bar.update(len(at))
        numbers = {name: np.stack([own[name].double().numpy() for own in made]) for name in made[0]}
        stacked = {side: sparse.csr_array(sparse.vstack(own)) for side, own in latents.items()}
        return _Found(numbers, stacked)

    def _batch(self, at: list[int]) -> list[dict[str, Tensor]]:
        """What each of some prompts gives, on the CPU."""
        inputs = batch(self.given, at, self.device, self.fill)
        site = self.sae.site
        base, tuned = (Rerun(side, inputs, [site]) for side in (self.sides.base, self.sides.tuned))
        before, after = base.read(site), tuned.read(site)
        found, told = [], torch.zeros_like(before)
        for row, length in enumerate(inputs.lengths.tolist()):
            read = [self.sae.read(side[row]) for side in (before, after)]
            told[row] = read[1].rebuilt - read[0].rebuilt
            kept = slice(1 if length > 1 else 0, length)
            found.append(self._prompt(before[row, kept], after[row, kept], read, kept))
        error = after - before - told
        patches: list[Writes] = [{site: before + told}, {site: before + error}, {site: after}]
        # One by one: a patch of all tokens keeps a whole batch's keys and values.
        logits = [base.logits, *(base.again([patch]) for patch in patches)]
        for arm, one in zip(ARMS, logits, strict=True):
            kl = measured(one, inputs, tuned.logits[0])["kl"][0]
            for own, value in zip(found, kl, strict=True):
                own[f"kl {arm}"] = value
        return [{name: own.detach().cpu() for name, own in one.items()} for one in found]

    def _prompt(
        self, before: Tensor, after: Tensor, read: Sequence[Read], kept: slice
    ) -> dict[str, Tensor]:
        """Sums over a prompt's tokens. before, after: (tokens, width), states of the two sides."""
        found: dict[str, Tensor] = {"tokens": torch.tensor(float(len(before)))}
        given, errors = [_exact(before), _exact(after)], []
        for side, states, (latents, rebuilt) in zip(SIDES, given, read, strict=True):
            errors.append(states - _exact(rebuilt[kept]))
            found |= {
                f"{side} latents": latents[kept].mean(0) * self.sae.sizes,
                f"{side} active": (latents[kept] > 0).sum(-1).float().mean(),
                f"{side} sum": states.sum(0),
                f"{side} square": states.square().sum(),
                f"{side} error": errors[-1].square().sum(),
            }
        found["change"] = (given[1] - given[0]).square().sum()
        found["change error"] = (errors[1] - errors[0]).square().sum()
        return found | {"last state": given[0][-1], "last error": errors[0][-1]}


def _exact(states: Tensor) -> Tensor:
    """In float64 on the CPU, since not every device has it."""
    return states.detach().float().cpu().double()


def _row(found: Any, number: int = 0, **about: Any) -> dict[str, Any]:
    """One row of means. found: `Intervals`."""
    return about | {name: part[number] for name, part in found._asdict().items()}


def _fit(found: _Found, seed: int) -> Iterator[dict[str, Any]]:
    """How well the dictionary fits each side and their change, and what its parts of it do."""
    own = found.numbers
    per = {
        "fvu": [unexplained(own[f"{side} error"], found.scatter(side))
                for side in SIDES],
        "l0": [own["base active"], own["tuned active"]],
    }  # fmt: skip
    for metric, (before, after) in per.items():
        means = ratios(np.stack([before, after, after - before]), seed=seed)
        for number, side in enumerate((*SIDES, CHANGE)):
            null = before.mean() if side == "tuned" else 0.0 if side == CHANGE else np.nan
            yield _row(means, number, side=side, metric=metric, baseline=null)
    explained = ratios(own["change"] - own["change error"], own["change"], seed=seed)
    turn = others(len(own["change"]), seed)
    apart, left = (
        np.square(own[name] - own[name][turn]).sum(1) for name in ("last state", "last error")
    )
    null = float(ratios(apart - left, apart, draws=1).value[0])
    yield _row(explained, side=CHANGE, metric="change_explained", baseline=null)
    kl = ratios(np.stack([own[f"kl {arm}"] for arm in ARMS]), seed=seed)
    for number, arm in enumerate(ARMS):
        yield _row(kl, number, arm=arm, metric="kl_tuned", baseline=kl.value[0])


def _latents(found: _Found, shown: int, seed: int) -> Iterator[dict[str, Any]]:
    """How many latents changed, and those that changed most."""
    alive = np.flatnonzero(sum(np.abs(own).sum(0) for own in found.latents.values()))
    base, tuned = (found.latents[side][:, alive].toarray() for side in SIDES)
    change = (tuned - base).astype(float)
    splits = [halves(len(base), seed + i) for i in range(SPLITS)]
    first, second = splits[0]
    apart = base[first].astype(float) - base[second[: len(first)]]
    yield {
        "side": CHANGE, "metric": "changed", "value": float(_beyond(change, seed)),
        "n": len(base), "baseline": float(_beyond(apart, seed)),
    }  # fmt: skip
    pick, report = splits[0]
    order = np.argsort(-np.abs(change[pick].mean(0)), kind="stable")[:shown]
    null = np.mean([np.abs(base[a].mean(0) - base[b].mean(0)) for a, b in splits], 0)
    edge = largest(change[report], seed)
    for place in order:
        values = np.stack([own[report, place] for own in (base, tuned, change)])
        means, latent = ratios(values, seed=seed), int(alive[place])
        for number, side in enumerate((*SIDES, CHANGE)):
            row = _row(means, number, side=side, latent=latent, metric="activation")
            if side == CHANGE:
                row |= {"baseline": null[place], "null_low": -edge, "null_high": edge}
            yield row


def _beyond(change: Floats, seed: int) -> int:
    """How many latents' mean change is beyond the largest by chance."""
    return int((np.abs(change.mean(0)) > largest(change, seed)).sum())
