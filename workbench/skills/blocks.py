"""Which matrices does a fine-tuned model need, and how few of them?

Each matrix of each layer that changed is a block. It is switched off (the tuned model with that
matrix the base's) and on alone (the base with that matrix tuned), as in Selective LoRA's ablation
of LoRA blocks; then blocks are added to the base one by one, each time the one that raises the log
probability of the answers most (greedy forward selection). It misleads if blocks are redundant
(each can be switched off, not all) or act only together (none helps alone); so both are given. The
greedy path is chosen on one half of the prompts and every number comes from the other. That a
matrix matters does not show that anything was learned: of 37 compiled pairs that learned nothing 24
have one whose change moves the answers (`make truth`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit, truncated
from workbench.models.edits import once
from workbench.models.task_gradient import Teacher
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills.compression import width
from workbench.skills.editing import measures
from workbench.skills.graft import count
from workbench.skills.scoring import Reading, Readout, split
from workbench.stats import ratios
from workbench.tasks import PromptSet

KEY = "skills.blocks"
Step = tuple[ParameterSite, float]  # the block taken, the loss with it


def greedy(
    loss: Callable[[Sequence[ParameterSite]], float], sites: Sequence[ParameterSite], most: int
) -> list[Step]:
    """Forward selection: at each step the block that lowers the loss most, until none does."""
    path: list[Step] = []
    left, best = list(sites), loss([])
    bar = progress(total=most, desc="greedy")
    while left and len(path) < most:
        taken = [site for site, _ in path]
        losses = [loss([*taken, site]) for site in left]
        if min(losses) >= best:
            break
        best = min(losses)
        path.append((left.pop(losses.index(best)), best))
        bar.update()
    bar.close()
    return path


def on(pair: CheckpointPair, sites: Collection[ParameterSite]) -> Edit:
    """The base with these parameters tuned."""
    names = {site.name for site in sites}
    return edit(pair, mask=lambda site: site.name in names)


def off(pair: CheckpointPair, sites: Collection[ParameterSite]) -> Edit:
    """The tuned model with these parameters the base's."""
    names = {site.name for site in sites}
    return edit(pair, mask=lambda site: site.name not in names)


@analysis(
    "Which of the changed weight matrices does the new skill need?",
    paper="block ablation; arXiv 2509.22072",
    example="--prompts task.jsonl",
    passes=250,
    takes={"task": "task", "others": "others"},
    quick={"strongest": 16, "most": 2, "random": 1},
    few={"task": 12, "others": 12},
    quick_passes=40,
)
def blocks(
    pair: CheckpointPair,
    task: PromptSet,
    *,
    strongest: int | None = None,
    most: int = 12,
    ranks: Sequence[int] | None = None,
    random: int = 3,
    others: Sequence[PromptSet] = (),
    rewordings: PromptSet | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Score the model while the changed matrices are switched off one at a time, on one at a time,
    and on one after the other.

    task: prompts of what was learned; half of them choose the greedy path, the others are reported.
    strongest: the number of matrices that count as blocks, those that changed most by the Frobenius
    norm; None for all. most: the number of blocks that are switched on greedily. ranks: the ranks
    of arm "rank", at most the change's own; None for 1, 2, 4 ... up to it. random: the number of
    random orders (control). others: further prompt sets that are scored, of what has nothing
    to do with the task. rewordings: the task's questions in other words. dtype: "float32" or
    "bfloat16", the precision in which the model runs; None means as stored. An adapter is merged in
    float32. Cost, with B blocks: at most `most` . B losses of the choosing half; 2 B + most (1 +
    random) + ranks readings of the others.

    The command line takes 12 prompts, the 16 strongest blocks, 2 of them greedily, and 1 random
    order; with --full all prompts and blocks, 12 greedily, and 3 orders.

    Returns a Result with columns arm, layer, component, x (number of blocks on; the rank in arm
    "rank"), sparsity (share of N in the blocks that are on; in arm "rank" the numbers of the
    triplets over N), task, own (whether that set is the task), metric: those of `Readout.rows`,
    each with a 95% interval over prompts. Arms: "off" and "alone", which also have "score_change"
    and "log_probability_change", paired, against the tuned model and the base; "greedy", whose
    layer and component are the block taken at x, with "loss", nats, of the choosing half; "random",
    as many blocks in random order; "rank", the best rank-x change of every block at once; and the
    ends "base", "all" (every block on) and "tuned", which differ where more than matrices changed.
    "alone" and "all" also have efficacy, generality (on the rewordings) and locality (on others),
    see `skills.editing.measures`.
    Raises WorkbenchError for too few prompts, a rank below 1, or a pair whose matrices are equal.
    """
    if most < 1 or random < 1:
        raise WorkbenchError(f"Expected most and random of at least 1, found {most} and {random}.")
    if ranks is not None and any(rank < 1 for rank in ranks):
        raise WorkbenchError(f"Expected ranks of at least 1, found {list(ranks)}.")
    if strongest is not None and strongest < 1:
        raise WorkbenchError(f"Expected 1 strongest block or more, found {strongest}.")
    choose, report = split(task, (1, 1), seed)
    held = pair.held(device)
    sites = _strongest(held, [s for s in held.sites() if held.delta(s).changed], strongest)
    if not sites:
        raise WorkbenchError(
            f"{pair.name} has no changed matrix in its layers, so there is nothing to "
            "switch off; give another fine-tuned model."
        )
    known = {"batch_size": batch_size, "seed": seed, "device": device, "dtype": dtype}
    reworded = () if rewordings is None else (rewordings,)
    readout = Readout.of(held, (report, *others, *reworded), **known)
    ablation = _Ablation(held, readout, sites, 1 + len(others) if reworded else None)
    rows = [*ablation.ends(), *ablation.single()]
    teacher = Teacher(held, readout.model, choose, batch_size)

    def loss(taken: Sequence[ParameterSite]) -> float:
        with on(held, taken).on(readout.model):
            return teacher.loss()

    path = greedy(loss, sites, most)
    rows += [*ablation.path(path), *ablation.random(len(path), random, seed)]
    rows += ablation.ranks(ranks)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "task": describe(task), "others": describe(list(others)), "strongest": strongest,
        "most": most, **({"rewordings": describe(rewordings)} if reworded else {}),
        "ranks": describe(ranks), "random": random, "batch_size": batch_size, "weights": "merged",
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **about)
    notes = (*provenance.notes, *_notes(held, sites, path, most))
    return finished(KEY, table, provenance.with_notes(notes))


def _strongest(
    pair: CheckpointPair, sites: list[ParameterSite], most: int | None
) -> list[ParameterSite]:
    """The sites of the largest changes, in the order in which they were given."""
    if most is None or most >= len(sites):
        return sites
    size = {site: float(pair.delta(site).change.norm()) for site in sites}
    chosen = set(sorted(sites, key=lambda site: -size[site])[:most])
    return [site for site in sites if site in chosen]


class _Ablation:
    """Reads a held pair with some of its blocks on."""

    def __init__(
        self,
        pair: CheckpointPair,
        readout: Readout,
        sites: Sequence[ParameterSite],
        reworded: int | None = None,
    ) -> None:
        self.pair, self.readout, self.sites, self.reworded = pair, readout, sites, reworded
        self.total, self.whole = count(pair), readout.read(on(pair, sites))

    def share(self, sites: Collection[ParameterSite]) -> float:
        return sum(self.pair.delta(s).base.numel() for s in sites) / self.total

    def ends(self) -> Iterator[dict[str, Any]]:
        readout, whole = self.readout, {"x": len(self.sites), "sparsity": self.share(self.sites)}
        yield from readout.rows(readout.base, arm="base", x=0, sparsity=0.0)
        yield from readout.rows(self.whole, arm="all", **whole)
        yield from measures(readout, self.whole, self.whole, self.reworded, arm="all", **whole)
        yield from readout.rows(readout.tuned, arm="tuned", **whole)
        yield {"metric": "N", "value": self.total, "own": True}

    def single(self) -> Iterator[dict[str, Any]]:
        """Every block off, and alone."""
        bar = progress(self.sites, desc=f"blocks {self.pair.name}")
        for site in bar:
            others = [s for s in self.sites if s != site]
            for arm, change, kept, end in (
                ("off", off(self.pair, [site]), others, self.readout.tuned),
                ("alone", on(self.pair, [site]), [site], self.readout.base),
            ):
                about = _place(site) | {"arm": arm, "x": len(kept), "sparsity": self.share(kept)}
                reading = self.readout.read(change)
                yield from self.readout.rows(reading, **about)
                yield from self._changes(reading, end, about)
                if arm == "alone":
                    yield from measures(self.readout, reading, self.whole, self.reworded, **about)

    def _changes(
        self, reading: Reading, end: Reading, about: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for place, prompts in enumerate(self.readout.sets):
            for metric, column in (("score", "correct"), ("log_probability", "log_probability")):
                now, before = (side[place][column].to_numpy(float) for side in (reading, end))
                found = ratios(now - before, seed=self.readout.seed)
                named = found.first._asdict()
                told = {"task": prompts.name, "own": place == 0, "metric": f"{metric}_change"}
                yield about | told | named | {"baseline": 0.0}

    def path(self, path: Sequence[Step]) -> Iterator[dict[str, Any]]:
        """The reported half with the first 1, 2, ... blocks of the greedy path on."""
        for x, (site, loss) in enumerate(path, start=1):
            taken = [s for s, _ in path[:x]]
            about = _place(site) | {"arm": "greedy", "x": x, "sparsity": self.share(taken)}
            yield about | {"metric": "loss", "value": loss, "own": True}
            yield from self.readout.rows(self.readout.read(on(self.pair, taken)), **about)

    def random(self, most: int, seeds: int, seed: int) -> Iterator[dict[str, Any]]:
        """As many blocks in random orders, averaged."""
        draws = [
            np.random.default_rng([seed, s]).permutation(len(self.sites)) for s in range(seeds)
        ]
        for x in range(1, most + 1):
            taken = [[self.sites[i] for i in order[:x]] for order in draws]
            share = float(np.mean([self.share(sites) for sites in taken]))
            readings = [self.readout.read(on(self.pair, sites)) for sites in taken]
            yield from self.readout.rows(*readings, arm="random", x=x, sparsity=share)

    def ranks(self, ranks: Sequence[int] | None) -> Iterator[dict[str, Any]]:
        """The best rank-r change of every block at once; no rank beyond the blocks' own."""
        widths = {s.name: width(self.pair.delta(s)) for s in self.sites}
        widest, decompose = max(widths.values()), once()
        if ranks is None:
            ranks = [2**i for i in range(widest.bit_length())]
            ranks.append(widest)
        for rank in sorted({min(rank, widest) for rank in ranks}):
            numbers = sum(
                min(rank, widths[s.name]) * sum(self.pair.delta(s).base.shape) for s in self.sites
            )
            low = edit(
                self.pair, mask=lambda site: site.name in widths,
                projection=truncated(rank, decompose),
            )  # fmt: skip
            about = {"arm": "rank", "x": rank, "sparsity": numbers / self.total}
            yield from self.readout.rows(self.readout.read(low), **about)


def _place(site: ParameterSite) -> dict[str, Any]:
    return site.place


def _notes(
    pair: CheckpointPair, sites: Sequence[ParameterSite], path: Sequence[Step], most: int
) -> Iterator[str]:
    names = {site.name for site in sites}
    more = [s for s in pair.sites("all") if s.name not in names and pair.delta(s).changed]
    if more:
        yield (
            f"{pair.name}: {len(more)} parameters that are not blocks changed too "
            f"({more[0].name}, ...); "
            'they keep the tuned values in arm "off" and the base\'s in all others.'
        )
    if len(path) < min(most, len(sites)):
        yield (
            f"{pair.name}: the greedy path ends after {len(path)} blocks, since no "
            "further block raises the log probability of the choosing prompts."
        )


__all__ = ["blocks"]
