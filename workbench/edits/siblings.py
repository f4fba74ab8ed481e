"""Siblings: does the part of a change that other runs made too carry the task alone?

Several models were fine-tuned from one base to one end, for example with other seeds. Of a matrix's
change dW let V be the leading input directions of the other models' changes together, and U their
leading output directions (`spectral.subspaces`, whose `replicated` is the energy in them). The
edits of the base are

    replicated    dW V V^T (side "input") or U U^T dW (side "output")
    rest          what is left of dW
    random        the same with as many random directions, scaled to the norm of `replicated`

and, of all models at once, their mean, and the centre-close point theta_0 + t (mean - theta_0) with
the t of Model Stock (Jang et al. 2024, arXiv 2403.19522, eq. 4-5). The same part in every run is
what the task, the data's order and the start decide; the random part of equal norm says what any
part as large would do. Of the parts matrices alone are edited, and what else changed is left the
base's (arm "matrices", all of their change, is the end to compare parts with); the mean and the
centre-close point are of the whole change, with one t for all of it.

It misleads for members that share a start or the order of their data: then more replicates than the
task asks for. Few siblings have few directions between them, which may leave out what the task
needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.edits.merging import summed
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta, Family
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit
from workbench.models.sides import named_dtype
from workbench.numerics import norm
from workbench.progress import progress
from workbench.results.result import Provenance, Result, describe
from workbench.results.validity import finished
from workbench.spectral.subspaces import INPUT, OUTPUT, leading, stock_ratio, together
from workbench.stats import bootstrap, change, share
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers

KEY = "edits.siblings"
REPLICATED, REST, RANDOM = "replicated", "rest", "random"
Frames = dict[tuple[str, str], Tensor]  # (matrix, side) -> orthonormal directions
Floats = NDArray[np.float64]


def part(change: Tensor, frame: Tensor, side: str) -> Tensor:
    """The part of a change (out, in) in these directions of its inputs or outputs."""
    frame = frame.to(change)
    return change @ frame @ frame.T if side == INPUT else frame @ (frame.T @ change)


def drawn(change: Tensor, frame: Tensor, side: str, seed: Sequence[int]) -> Tensor:
    """The part in as many random directions as a frame has, as long as the part in that frame."""
    made = np.random.default_rng(seed).standard_normal(tuple(frame.shape))
    other = part(change, torch.from_numpy(np.linalg.qr(made)[0]), side)
    size = float(norm(other))
    return other * (float(norm(part(change, frame, side))) / size) if size else other


@analysis(
    "Does the part of the change that other runs made too carry the task?",
    paper="arXiv 2403.19522",
    example="--prompts task.jsonl --member lora/0=A --member lora/1=B",
    passes=20,
)
def siblings(
    family: Family,
    prompts: PromptSet,
    *,
    k: int = 8,
    random: int = 3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Score the base with the part of each model's change that the others made too, with the rest,
    and with random parts as large.

    prompts: prompts of the task that all models were fine-tuned for. k: the most directions of the
    other models together that count as shared. random: the number of random parts (control). dtype:
    "float32" or "bfloat16", the precision in which the model runs; None means as stored.

    Returns a Result with rows by member, arm ("base", "tuned", "matrices", "mean", "stock", and by
    side "input" or "output" "replicated", "rest" and "random", the mean over draws): score and
    log_probability of the answers in nats (baseline: the base's); score_change, edited less tuned,
    paired (baseline 0); of "replicated" energy, its share of the change's squared norm (baseline:
    that of random directions on average) and beyond_random, the log-probability less that of the
    random parts, paired; and of "stock" x, its t. 95% intervals over prompts. Raises WorkbenchError
    for fewer than two models, or k or random below 1.
    """
    names = list(family.members)
    if len(names) < 2 or not len(prompts):
        raise WorkbenchError(
            f"Expected two fine-tuned models or more and prompts, found {names} and {len(prompts)} "
            "prompts; give --member for each model, and --prompts."
        )
    if k < 1 or random < 1:
        raise WorkbenchError(f"Expected k and random of at least 1, found {k} and {random}.")
    pairs = {name: family[name].held(device) for name in names}
    model: Any = family.base.load(device, named_dtype(dtype)).eval()
    words = family.base.tokenizer()

    def read(made: Edit | None) -> Floats:
        """(score and log p, prompts)."""
        with torch.inference_mode():
            if made is None:
                found = answers(model, words, prompts, batch_size=batch_size)
            else:
                with made.on(model):
                    found = answers(model, words, prompts, batch_size=batch_size)
        return found[["correct", "log_probability"]].to_numpy(float).T

    t = stock_ratio(_cosine(pairs), len(names))
    ends = {
        "base": read(None), "mean": read(summed([*pairs.values()])),
        "stock": read(summed([*pairs.values()], [t / len(names)] * len(names))),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, pair in progress(pairs.items(), desc="siblings"):
        frames = _frames(pair, [one for other, one in pairs.items() if other != name], k)
        known = _Read(ends | {"tuned": read(edit(pair))}, seed)
        sites = {site for site, _ in frames}
        known.ends["matrices"] = read(edit(pair, mask=lambda s, sites=sites: s.name in sites))
        own = [*known.rows("", "base", "tuned", "matrices", "mean", "stock")]
        for row in own:
            row |= {"x": t} if row["arm"] == "stock" else {}
        for side in (INPUT, OUTPUT):
            made = {arm: read(_edit(pair, frames, side, arm)) for arm in (REPLICATED, REST)}
            made[RANDOM] = np.mean(
                [read(_edit(pair, frames, side, RANDOM, [seed, i])) for i in range(random)], 0
            )
            own += [*known.parts(side, made), _energy(pair, frames, side)]
        rows += [{"member": name, "task": prompts.name} | row for row in own]
    about = [family[name].provenance() for name in names]
    members = {name: one.members[name] for name, one in zip(names, about, strict=True)}
    provenance = Provenance(
        family.base.about, members, {"prompts": describe(prompts), "k": k, "random": random},
        seed=seed, device=str(device), dtype=dtype or "as stored",
        notes=tuple(note for one in about for note in one.notes),
    )  # fmt: skip
    return finished(KEY, pd.DataFrame(rows), provenance)


def _cosine(pairs: Mapping[str, CheckpointPair]) -> float:
    """The mean cosine of the whole changes of every two models; 0 where one changed nothing."""
    inner = np.zeros((len(pairs), len(pairs)))
    known = [{site.name: site for site in pair.sites("all")} for pair in pairs.values()]
    for name, site in known[0].items():
        if all(name in own for own in known):
            changes = [pair.delta(site).change.double().flatten() for pair in pairs.values()]
            stacked = torch.stack(changes)
            inner += (stacked @ stacked.T).cpu().numpy()
    sizes = np.sqrt(np.outer(inner.diagonal(), inner.diagonal()))
    cosines = np.divide(inner, sizes, out=np.zeros_like(inner), where=sizes > 0)
    return float(cosines[np.triu_indices(len(pairs), 1)].mean())


def _frames(pair: CheckpointPair, others: Sequence[CheckpointPair], k: int) -> Frames:
    """The leading directions of the other models together, of every matrix that the model and
    another one changed."""
    found: Frames = {}
    known = [{site.name for site in other.sites()} for other in others]
    for site in pair.sites():
        deltas = [
            o.delta(site) for o, names in zip(others, known, strict=True) if site.name in names
        ]
        moved = [leading(delta, k) for delta in deltas if delta.changed]
        if moved and pair.delta(site).changed:
            for side in (INPUT, OUTPUT):
                found[site.name, side] = together(moved, side, k)
    return found


def _edit(
    pair: CheckpointPair, frames: Frames, side: str, arm: str, seed: Sequence[int] = ()
) -> Edit:
    """The base with one part of every matrix's change."""
    place = {name: number for number, (name, _) in enumerate(frames)}

    def here(site: ParameterSite) -> bool:
        return (site.name, side) in frames

    def projected(delta: Delta) -> Tensor:
        own, frame = delta.change.float(), frames[delta.site.name, side]
        if arm == RANDOM:
            return drawn(own, frame, side, [*seed, place[delta.site.name]])
        shared = part(own, frame, side)
        return shared if arm == REPLICATED else own - shared

    return edit(pair, mask=here, projection=projected)


def _energy(pair: CheckpointPair, frames: Frames, side: str) -> dict[str, Any]:
    """The share of the squared norm that is replicated, and that random directions hold."""
    inside = whole = chance = 0.0
    for delta in pair.deltas():
        frame = frames.get((delta.site.name, side))
        if frame is not None:
            size = delta.norm**2
            inside += float(norm(part(delta.change.float(), frame, side))) ** 2
            whole, chance = whole + size, chance + size * frame.shape[1] / frame.shape[0]
    told = {"side": side, "arm": REPLICATED, "metric": "energy"}
    share_of_all = inside / whole if whole else np.nan
    return told | {"value": share_of_all, "baseline": chance / whole if whole else np.nan}


class _Read:
    """What was read of one model's edits. ends: arm -> (score and log p, prompts)."""

    def __init__(self, ends: dict[str, Floats], seed: int) -> None:
        self.ends, self.seed = ends, seed

    def rows(self, side: str, *arms: str) -> Iterator[dict[str, Any]]:
        """Score, log p and change of the score of each arm."""
        base, tuned = self.ends["base"], self.ends["tuned"]
        for arm in arms:
            told = {"arm": arm} | ({"side": side} if side else {})
            score, log_p = self.ends[arm]
            found = {
                "score": (share(score, seed=self.seed), base[0].mean()),
                "log_probability": (bootstrap(log_p, seed=self.seed), base[1].mean()),
                "score_change": (
                    change(tuned[0], score, same=arm == "tuned", seed=self.seed), 0.0,
                ),
            }  # fmt: skip
            for metric, (interval, baseline) in found.items():
                yield told | {"metric": metric} | interval._asdict() | {"baseline": float(baseline)}

    def parts(self, side: str, made: Mapping[str, Floats]) -> list[dict[str, Any]]:
        """The rows of one side's parts."""
        self.ends |= made
        beyond = bootstrap(made[REPLICATED][1] - made[RANDOM][1], seed=self.seed)
        told = {"side": side, "arm": REPLICATED, "metric": "beyond_random", "baseline": 0.0}
        return [*self.rows(side, *made), told | beyond._asdict()]
