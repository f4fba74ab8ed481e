"""Skill localization: how few parameters carry what fine-tuning taught, and where are they?

theta(gamma) = theta_0 + gamma . (theta_1 - theta_0), gamma a 0/1 mask of the share s of the N
parameters inside the blocks, taken by movement, by a learned mask, or by a control (Panigrahi et
al. 2023, arXiv 2302.06600). It misleads where the share is read without its controls: a model that
learned little can be grafted from anything, and a mask learned on few prompts fits those; hence the
mask is learned on one part of the prompts, its epoch chosen on another, every number from a third.
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
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit, only
from workbench.models.edits import entries, truncated
from workbench.models.task_gradient import Teacher, require_gradients
from workbench.numerics import singular_values
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills import rankings
from workbench.skills.gradients import learn
from workbench.skills.graft import (
    KEPT,
    KEY,
    SIZES,
    Graft,
    Masks,
    count,
    graft_of,
    inside,
    tensor_key,
    top,
)
from workbench.skills.scoring import Readout, split
from workbench.tasks import PromptSet

SPARSITIES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
SHARES = (0.5, 0.25, 0.25)  # to learn the mask, to choose its epoch, to report
# Cut at every sparsity; the others have a size of their own.
CUT = ("learned", "movement", "random", "gradient", "magnitude", "principal", "rank")
OWN = ("bias", "layer", "component")
ARMS = (*CUT, *OWN)
FEW = 30  # reported prompts below which an interval says little


@analysis(
    "How few of the changed parameters carry the new skill?",
    paper="arXiv 2302.06600",
    example="--prompts task.jsonl --sparsity 0.001,0.01,0.1",
    passes=250,
    takes={"task": "task", "others": "others"},
    quick={
        "sparsity": (0.001, 0.01, 0.1),
        "arms": ("learned", "movement", "random"),
        "random": 1,
        "epochs": 4,
    },
    few={"task": 32, "others": 32},
    quick_passes=50,
)
def localize(
    pair: CheckpointPair,
    task: PromptSet,
    *,
    sparsity: float | Sequence[float] = SPARSITIES,
    arms: Sequence[str] = ARMS,
    others: Sequence[PromptSet] = (),
    random: int = 5,
    epochs: int = 20,
    patience: int = 5,
    rate: float = 0.3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Graft shares of the change onto the base and score them: the learned mask next to simpler
    ones.

    task: prompts of what was learned; half train the mask, a quarter chooses its epoch, a quarter
    is reported. sparsity: the shares of N that the masks start with. others: further prompt sets
    that are scored, such as the task out of distribution or tasks of pre-training. random: the
    number of random masks of each size. epochs: the most epochs that a learned mask is trained.
    patience: epochs without a better mask before training stops. rate: the step size of the learned
    mask (`gradients.learn`). dtype: "float32" or "bfloat16", the precision in which the model runs;
    None means as stored. An adapter is merged in float32.

    arms: how the entries are chosen: learned, movement, random, gradient, magnitude, principal,
    rank, bias, layer, component. "movement" takes the largest |delta|; "gradient" the largest
    |dL/dtheta| at the base; "magnitude" the largest |theta_0|; "principal" LIFT's principal
    weights; "rank" the largest singular triplets of the changes, as many numbers stored; "bias",
    "layer" and "component" all biases, each layer, and each kind of matrix as a whole.

    The command line takes 32 prompts, the arms learned, movement and random at three sparsities
    (0.001, 0.01, 0.1), 1 random mask and 4 epochs; with --full all prompts and arms, eight
    sparsities, 5 random masks and 20 epochs.

    Returns a Result with columns arm, sparsity (asked), x (share of N taken), task, own (whether
    that set is the task), metric: "score", "gain", "agreement", "log_probability", "ece",
    "ece_mass", "brier" (see `Readout.rows`), each with a 95% interval over prompts; arms "base",
    "tuned", "blocks" (the whole change inside the blocks) and "without" (the tuned model less the
    learned graft) are the ends. "entries": the share of each matrix (layer, component) that a graft
    takes, for the arms that are saved. "size", "flipped", "epoch" of the learned mask;
    "choosing_gain", the gain on the quarter that chooses, by which `Graft.of` takes the smallest
    that is enough; "N" and "moved", the share of N that changed at all, among which every arm
    chooses. tensors: the saved grafts in index form. Raises WorkbenchError for an unknown arm, a
    sparsity outside (0, 1], too few prompts, or an offloaded model if gradients are needed.
    """
    grid = sorted({sparsity} if isinstance(sparsity, int | float) else {*sparsity})
    if not grid or not all(0 < s <= 1 for s in grid):
        raise WorkbenchError(f"Expected sparsities in (0, 1], shares of N; found {sparsity}.")
    if random < 1 or epochs < 1 or not rate > 0:
        raise WorkbenchError(
            f"Expected random and epochs of at least 1 and a rate above 0; found {random}, "
            f"{epochs} and {rate}."
        )
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise WorkbenchError(f"Unknown arm {unknown[0]!r}; there are {', '.join(ARMS)}.")
    teach, choose, _ = split(task, SHARES, seed)
    held = pair.held(device)
    known = {"batch_size": batch_size, "seed": seed, "device": device, "dtype": dtype}
    readout = Readout.of(held, (reported(task, seed), *others), **known)
    teacher = Teacher(held, readout.model, teach, batch_size)
    if {"learned", "gradient"} & {*arms}:
        require_gradients(teacher.model)
    cutter = _Cutter(held, readout, teacher, choose)
    rows, tensors = cutter.ends(), cutter.sizes()
    plan = [(arm, s) for arm in CUT if arm in arms for s in grid]
    for arm, s in progress(plan, desc=f"grafts {pair.name}"):
        options = {"epochs": epochs, "patience": patience, "rate": rate, "seed": seed}
        cut = cutter.cut(arm, s, random, options)
        rows += cut.rows
        if cut.graft is not None and arm in KEPT:
            key = tensor_key(arm, s)
            tensors |= {f"{key}/{name}": own for name, own in cut.graft.places.items()}
            rows += cutter.where(cut.graft, arm, s)
        if arm == "learned" and cut.graft is not None:
            without = cut.graft.edit(held, outside=True)
            about = {"arm": "without", "sparsity": s, "x": 1 - cut.graft.share}
            rows += readout.rows(readout.read(without), **about)
    rows += [row for arm in OWN if arm in arms for row in cutter.whole(arm)]
    table = pd.DataFrame(rows)
    if "layer" in table:
        table["layer"] = table["layer"].astype("Int64")
    table.insert(0, "member", pair.name)
    parameters = {
        "task": describe(task), "others": describe(list(others)), "sparsity": list(grid),
        "arms": list(arms), "random": random, "epochs": epochs, "patience": patience,
        "rate": rate, "batch_size": batch_size, "shares": list(SHARES), "weights": "merged",
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **about)
    notes = (*provenance.notes, *_notes(pair, table, readout, arms))
    return finished(KEY, table, provenance.with_notes(notes), tensors)


def reported(task: PromptSet, seed: int = 0) -> PromptSet:
    """The part of the prompts that `localize` reports on, of which no graft has learned."""
    return split(task, SHARES, seed)[2]


class _Cut(NamedTuple):
    rows: list[dict[str, Any]]
    graft: Graft | None = None


class _Cutter:
    """Cuts grafts of a held pair by every arm, and reads them."""

    def __init__(
        self, pair: CheckpointPair, readout: Readout, teacher: Teacher, choose: PromptSet
    ) -> None:
        self.pair, self.readout, self.teacher, self.choose = pair, readout, teacher, choose
        self.sites, self.total = inside(pair), count(pair)
        self._scores: dict[str, rankings.Scores] = {}
        self._values: dict[str, Tensor] = {}
        self._sides = [self._chosen(change) for change in (edit(pair, 0.0), edit(pair))]

    def ends(self) -> list[dict[str, Any]]:
        readout = self.readout
        about: dict[str, Any] = {"arm": "base", "sparsity": 0.0, "x": 0.0}
        rows = readout.rows(readout.base, **about)
        about = {"sparsity": 1.0, "x": 1.0}
        rows += readout.rows(readout.tuned, arm="tuned", **about)
        blocks = edit(self.pair, mask=lambda site: site.layer is not None)
        rows += readout.rows(readout.read(blocks), arm="blocks", **about)
        moved = sum(int(self._moved(s).sum()) for s in self.sites) / self.total
        return [*rows, {"metric": "N", "value": self.total}, {"metric": "moved", "value": moved}]

    def sizes(self) -> dict[str, np.ndarray]:
        """The entries of every parameter, as tensors of the Result."""
        return {
            f"{SIZES}/{s.name}": np.array([self.pair.delta(s).base.numel()]) for s in self.sites
        }

    def cut(self, arm: str, s: float, random: int, options: Mapping[str, Any]) -> _Cut:
        """One arm at one sparsity: read, and in index form where it is one mask."""
        readout, size = self.readout, max(1, round(s * self.total))
        about: dict[str, Any] = {"arm": arm, "sparsity": s}
        if arm == "rank":
            change, numbers = self._ranks(size)
            rows = readout.rows(readout.read(change), x=numbers / self.total, **about)
            return _Cut([*rows, about | self._gained(change)])
        if arm == "random":
            orders = [rankings.random(self.pair, f"{options['seed']}/{i}") for i in range(random)]
            drawn = [graft_of(arm, self._top(order, size)) for order in orders]
            changes = [one.edit(self.pair) for one in drawn]
            rows = readout.rows(*map(readout.read, changes), x=drawn[0].share, **about)
            return _Cut([*rows, about | self._gained(*changes)])
        rows = []
        if arm == "learned":
            start = self._top(self._ranking("movement"), size)
            made = learn(self.teacher, start, self._judged, desc=f"mask {s:g}", **options)
            masks = made.masks
            told = {"flipped": made.flipped, "epoch": made.best, "epochs": made.epochs}
            rows = [about | {"metric": name, "value": value} for name, value in told.items()]
        else:
            masks = self._top(self._ranking(arm), size)
        graft = graft_of(arm, masks)
        change = graft.edit(self.pair)
        rows.append(about | {"metric": "size", "value": len(graft), "x": graft.share})
        rows += readout.rows(readout.read(change), x=graft.share, **about)
        return _Cut([*rows, about | self._gained(change)], graft)

    def where(self, graft: Graft, arm: str, s: float) -> Iterator[dict[str, Any]]:
        """The share of every matrix that a graft takes."""
        for site in self.sites:
            delta = self.pair.delta(site)
            if delta.base.ndim > 1:
                taken = len(graft.places.get(site.name, ()))
                yield {
                    "arm": arm, "sparsity": s, **site.place,
                    "metric": "entries", "value": taken / delta.base.numel(),
                    "n": delta.base.numel(), "baseline": graft.share,
                }  # fmt: skip

    def whole(self, arm: str) -> list[dict[str, Any]]:
        """Every bias, every layer, or every kind of matrix, each taken whole."""
        changed = [s for s in self.sites if self.pair.delta(s).changed]
        if arm == "layer":
            names = sorted({s.layer for s in changed if s.layer is not None})
            chosen = [({"layer": name}, only(layers=[name])) for name in names]
        elif arm == "component":
            kinds = dict.fromkeys(s.component for s in changed)
            chosen = [({"component": kind}, only(components=[kind])) for kind in kinds]
        else:
            biased = any(s.component.endswith(".bias") for s in changed)
            chosen = [({}, lambda site: site.component.endswith(".bias"))] if biased else []
        rows = []
        for about, mask in chosen:
            # The mask of a layer must leave out what is outside the blocks.
            here = [s for s in self.sites if mask(s)]
            share = sum(self.pair.delta(s).base.numel() for s in here) / self.total
            reading = self.readout.read(edit(self.pair, mask=_among(here)))
            rows += self.readout.rows(reading, arm=arm, sparsity=share, x=share, **about)
        return rows

    def _moved(self, site: ParameterSite) -> Tensor:
        return self.pair.delta(site).change != 0

    def _top(self, scores: rankings.Scores, size: int) -> Masks:
        """The first `size` entries among those that fine-tuning changed, or all of these: any other
        would be counted without doing anything."""
        masks = top(lambda site: scores(site) * self._moved(site), self.sites, size)
        return {s.name: masks[s.name] & self._moved(s) for s in self.sites}

    def _chosen(self, change: Edit) -> float:
        """Score on the prompts that choose."""
        with change.on(self.readout.model):
            return float(self.readout.answers(self.choose)["correct"].mean())

    def _gained(self, *changes: Edit) -> dict[str, Any]:
        """Share of the gain on the prompts that choose: what the size of a graft is chosen by."""
        base, tuned = self._sides
        mean = float(np.mean([self._chosen(change) for change in changes]))
        gain = (mean - base) / (tuned - base) if tuned > base else np.nan
        return {"metric": "choosing_gain", "value": gain, "n": len(self.choose)}

    def _judged(self, masks: Masks) -> float:
        """Mean log probability of the answer on the prompts that choose the epoch."""
        with edit(self.pair, mask=entries(masks)).on(self.readout.model):
            return float(self.readout.answers(self.choose)["log_probability"].mean())

    def _ranking(self, arm: str) -> rankings.Scores:
        if arm not in self._scores:
            if arm == "gradient":
                everything = range(len(self.teacher.rows))
                _, found = self.teacher.gradients(list(everything))
                self._scores[arm] = rankings.gradient(found)
            else:
                self._scores[arm] = getattr(rankings, arm)(self.pair)
        return self._scores[arm]

    def _ranks(self, size: int) -> tuple[Edit, int]:
        """The change at the rank of each matrix that keeps most of its energy in `size` numbers
        over all of them, and how many numbers that is: a triplet costs out + in."""
        matrices = [s for s in self.sites if self.pair.delta(s).base.ndim > 1]
        if not self._values:
            self._values = {
                s.name: singular_values(self.pair.delta(s).change).cpu() for s in matrices
            }
        cost = {s.name: sum(self.pair.delta(s).base.shape) for s in matrices}
        worth = torch.cat([self._values[s.name] ** 2 / cost[s.name] for s in matrices])
        owner = [s.name for s in matrices for _ in self._values[s.name]]
        ranks, stored = dict.fromkeys(cost, 0), 0
        for i in worth.argsort(descending=True).tolist():
            if stored + cost[owner[i]] > size or not worth[i]:
                break
            ranks[owner[i]] += 1
            stored += cost[owner[i]]
        here = {name for name, rank in ranks.items() if rank}

        def low(delta: Delta) -> Tensor | None:
            return truncated(ranks[delta.site.name])(delta)

        return edit(self.pair, mask=lambda site: site.name in here, projection=low), stored


def _among(sites: Sequence[ParameterSite]):
    names = {site.name for site in sites}
    return lambda site: site.name in names


def _notes(
    pair: CheckpointPair, table: pd.DataFrame, readout: Readout, arms: Sequence[str]
) -> list[str]:
    before, after = (float(side[0]["correct"].mean()) for side in (readout.base, readout.tuned))
    notes = []
    gains = table[(table["metric"] == "gain") & table["own"].eq(True)]
    if gains["value"].isna().all():
        notes.append(
            f"{pair.name}: base and tuned score {before:.2f} and {after:.2f} on the "
            f"{len(readout.sets[0])} reported prompts, so there may be no gain at all, "
            "and no share of it is given."
        )
    n, moved = len(readout.sets[0]), table.loc[table["metric"] == "moved", "value"].iloc[0]
    if n < FEW:
        notes.append(f"{pair.name}: only {n} prompts are reported, so the intervals are rough.")
    if moved < 1:
        notes.append(f"{pair.name}: fine-tuning changed {moved:.2%} of the parameters in blocks.")
    if "learned" in arms and (table.loc[table["metric"] == "epoch", "value"] == 0).any():
        notes.append(
            f"{pair.name}: if the best epoch is 0, the learned mask equals that of movement."
        )
    if "bias" in arms and not (table["arm"] == "bias").any():
        notes.append(f"{pair.name}: no bias changed, so there is no graft of the biases.")
    return notes
