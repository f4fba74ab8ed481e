"""What does a model score with its heads ablated, but where a circuit keeps them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.models import Layout, Site
from workbench.models.rerun import Outside, Rerun, Write
from workbench.patching import sweep as shared
from workbench.patching.metrics import Metric, measures
from workbench.patching.patches import Position
from workbench.patching.path_ends import Head, every_head
from workbench.patching.places import within
from workbench.patching.replacements import MEAN, MEAN_POSITION, Replacement, Running, Standing
from workbench.progress import progress
from workbench.tasks.batching import Batch, Row, batch, in_batches

MEASURES = ("score", "logit_difference")
Kept = Mapping[Head, frozenset[Position]]  # head -> where it is kept; None: everywhere


class Judge(NamedTuple):
    """One model whose heads can be ablated."""

    model: Any
    rows: Sequence[Row]
    replaced: Replacement
    metric: Metric | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        clean: Sequence[Row],
        split: tuple[Sequence[int], Sequence[int]],
        how: str,
        giver: tuple[Any, Sequence[Row]],
        where: Running,
        metric: Metric | None = None,
    ) -> Judge:
        """split: the prompts that means are over, and those that judge."""
        find, judge = ([clean[i] for i in half] for half in split)
        sites = [Site("z", layer) for layer in Layout(model).where("z")]
        if how == MEAN and len({len(row.fed) for row in clean}) == 1:
            how = MEAN_POSITION
        given = (giver[0], [giver[1][i] for i in split[1]])
        rows = find if how in (MEAN, MEAN_POSITION) else judge
        return cls(
            model, judge, Replacement.of(how, model, rows, sites, where, giver=given), metric
        )

    @property
    def measures(self) -> list[str]:
        """By which it judges."""
        return measures(self.metric, MEASURES)

    @property
    def every(self) -> list[Head]:
        return every_head(Layout(self.model))

    def ablated(self, runs: Sequence[Kept]) -> dict[str, np.ndarray]:
        """metric -> (runs, prompts), with these heads ablated but where they are kept."""
        found = {m: np.zeros((len(runs), len(self.rows))) for m in self.measures}
        where = self.replaced.where
        many = where.batch_size
        sites = [Site("z", layer) for layer in Layout(self.model).where("z")]

        def run(places: list[int]) -> dict[str, Tensor]:
            once = Rerun(self.model, batch(self.rows, places, where.device, where.fill), sites)
            stand = self.replaced.beside(once, places)
            step = max(1, many // len(places))
            scores = []
            for begin in range(0, len(runs), step):
                some = [_patch(one, once.inputs, stand) for one in runs[begin : begin + step]]
                logits = once.again(some) if all(some) else _each(once, some)
                known = (once.inputs, once.logits[0], self.metric)
                scores.append(shared.measured(logits, *known))
                bar.update(len(some) * len(places))
            return {m: torch.cat([score[m] for score in scores]) for m in self.measures}

        total = len(runs) * len(self.rows)
        with progress(total=total, desc="circuits") as bar:
            lengths = [len(row.fed) for row in self.rows]
            for places, scores in in_batches(lengths, many, run):
                for metric, value in scores.items():
                    found[metric][:, places] = value.cpu().numpy()
        shared.require_metric(found, self.metric)
        return found


def _patch(run: Kept, inputs: Batch, stand: Standing) -> dict[Site, Write]:
    """What stands for these heads, but where they are kept."""
    patch: dict[Site, Write] = {}
    for (layer, head), positions in run.items():
        site = Site("z", layer, head)
        kept = within(inputs, positions) if positions else None
        patch[site] = stand.read(site) if kept is None else Outside(stand.read(site), kept)
    return patch


def _each(once: Rerun, patches: Sequence[Mapping[Site, Write]]) -> Tensor:
    """Runs of which some ablate nothing: those are the plain run."""
    return torch.cat([once.again([patch]) if patch else once.logits for patch in patches])
