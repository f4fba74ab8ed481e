"""Parameter restoration: which of one side's matrices bring back its behaviour in the other?

One model runs with the other's parameters in one matrix, layer or window of layers, everything else
being its own, and is scored as in cross-model patching: `recovered` of the destination-to-source
gap, and KRS on the answer's logits (Hong et al. 2024, arXiv 2410.06606). Where a patched activation
after the place of a change recovers all of it, restored parameters recover only where the change
is: this, beside `cross_model`, localises. It misleads if several places are redundant (each alone
then recovers nothing) or act only together: a new head needs what it reads and what it writes, so
that on compiled pairs single matrices recover something in only 17 of 38, and rank the changed
ones worse than the norm of the change does (AUROC .73 against .93; `make truth`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.files.large import unknown
from workbench.loaders import CheckpointPair
from workbench.models import Layout, edit, merged
from workbench.models.edits import Mask, only, overlay
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.answered import answered
from workbench.patching.cross_model import (
    DIRECTIONS,
    Direction,
    continued,
    require_answer,
    with_answers,
)
from workbench.patching.metrics import Asked, measures, metric_of
from workbench.patching.patches import Patch
from workbench.patching.per_prompt import stored_sweep
from workbench.patching.sweep_plan import plan
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import batch, in_batches, pad_id

KEY = "patching.restore"
OUTSIDE = "outside the blocks"
KEPT = 1 << 30  # bytes of plain runs beyond which parameters are read once more for later prompts


@analysis(
    "Which parameters carry the tuned behaviour?",
    paper="arXiv 2410.06606",
    example="--prompts task.jsonl --components matrix",
    passes=25,
    plans=True,
    takes={"prompts": "task"},
    few={"prompts": 32},
)
def restore(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    direction: Direction = "tuned->base",
    components: Sequence[str] | Literal["layer", "matrix"] = "layer",
    window: int = 1,
    answer: Literal["target", "base"] = "target",
    answer_tokens: int = 8,
    metric: Asked | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Run one side with the other's parameters, a few at a time.

    prompts: as in `cross_model`. direction: from which model the parameters are taken, and into
    which they are put. components: what is restored together: "layer" (all matrices of a layer),
    "matrix" (each matrix alone), or names such as mlp.down_proj (each alone). window: an odd number
    of layers that are restored together. answer, answer_tokens: as in `cross_model`. metric: as
    in `activation`. An adapter is
    merged in float32. dtype: "float32" or "bfloat16"; None means as stored. large: as in
    `activation`.

    The command line takes 32 prompts of a file, with --full all of them.

    Returns a Result with the columns, arms and metrics of `cross_model`; component is "layer" or
    the matrix; with "layer", parameters outside the blocks that changed are one more row. Arm
    "random" is what a random one of these places gives. Restoring an unchanged matrix recovers
    exactly 0. Raises WorkbenchError for a component no layer has.
    """
    if direction not in DIRECTIONS:
        raise WorkbenchError(f"Expected direction {' or '.join(DIRECTIONS)}, found {direction!r}.")
    if window < 1 or window % 2 == 0:
        raise WorkbenchError(f"Expected an odd window of layers (1, 3, 5), found {window}.")
    require_answer(answer, answer_tokens)
    words, kind = pair.base.tokenizer(), named_dtype(dtype)
    base: Any = pair.base.load(device, kind)
    tuned: Any = merged(pair, device, kind or base.dtype).eval()
    destination, source = (base, tuned) if direction == "tuned->base" else (tuned, base)
    judge = metric_of(metric, words)
    given = answered(words, prompts)
    if answer == "base":
        given = continued(base, given, answer_tokens, words, batch_size, device)
    side = direction.partition("->")[0]
    given, said = with_answers(source, side, given, words, batch_size, device)
    layout = Layout(destination)
    chosen = _places(pair, layout, components, window)
    entries = [(place.start, None) for place in chosen]
    ahead = plan(destination, given, entries, (), words, batch_size, device)
    ahead.require(f"restore {direction}", device, large)
    made = shared.Sweep({}, {}, {}, 0.0)
    fill, size = pad_id(words), len(given)
    bar = progress(total=len(chosen) * size, desc=f"restore {direction}")

    def run(some: list[int]) -> tuple[Rerun, Tensor, list[dict[str, Tensor]]]:
        inputs = batch(given, some, device, fill)
        goal = Rerun(source, inputs, prefix=False).logits
        here = Rerun(destination, inputs, prefix=False)
        return (
            here,
            goal[0],
            [shared.measured(one, inputs, goal[0], judge) for one in (here.logits, goal)],
        )

    def keep(values: shared.Values, some: list[int], scores: dict[str, Tensor]) -> None:
        for metric, value in scores.items():
            values.setdefault(metric, np.full(size, np.nan))[some] = value[0].cpu().numpy()

    def swept(batches: Sequence[tuple[list[int], Rerun, Tensor]]) -> None:
        """Parameters are read once a place for all these prompts."""
        for number, place in enumerate(chosen):
            with _restored(destination, pair, place.mask, direction):
                for some, here, goal in batches:
                    again = here.again([{}], layer=place.start)
                    scores = shared.measured(again, here.inputs, goal, judge)
                    for metric, value in scores.items():
                        if metric not in made.patched:
                            made.patched[metric] = unknown((len(chosen), size))
                        made.patched[metric][number, some] = value[0].cpu().numpy()
                    bar.update(len(some))

    waiting: list[tuple[list[int], Rerun, Tensor]] = []
    with bar:
        for some, (here, goal, ends) in in_batches([len(r.fed) for r in given], batch_size, run):
            keep(made.destination, some, ends[0])
            keep(made.source, some, ends[1])
            waiting.append((some, here, goal))
            if sum(own.bytes for _, own, _ in waiting) > KEPT:
                swept(waiting)
                waiting.clear()
        if waiting:
            swept(waiting)
    table = sweep_rows.summary(
        *(made, [place.patch for place in chosen]),
        zero=made.destination,
        one=made.source,
        seed=seed,
        measures=measures(judge),
        restored=True,
    )
    plain = sweep_rows.plain(made, seed=seed, measures=measures(judge))
    random = sweep_rows.random_site(table[table["layer"].notna()])
    table = pd.concat([table, plain, random], ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "direction": direction, "components": describe(components),
        "window": window, "answer": answer, "answer_tokens": answer_tokens,
        "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    ends = made.destination, made.source
    gaps = sweep_rows.meaningful(*ends, "The two sides", seed, measures=measures(judge))
    told = (*said, *gaps)
    notes = (*provenance.notes, *(f"{pair.name}, {direction}: {note}" for note in told))
    provenance, table = provenance.with_notes(notes), table.assign(direction=direction)
    return finished(KEY, table, provenance, stored_sweep(direction, made))


class _Place(NamedTuple):
    """Parameters swapped together: a mask, the first layer it touches, and how a table names it."""

    mask: Mask
    start: int
    patch: Patch


def _places(
    pair: CheckpointPair, layout: Layout, components: Sequence[str] | str, window: int
) -> list[_Place]:
    sites = pair.sites("all")
    matrices = list(dict.fromkeys(s.component for s in pair.sites() if s.layer is not None))
    if components == "layer":
        names: list[str | None] = [None]
    elif isinstance(components, str):
        names = [*matrices] if components == "matrix" else [components]
    else:
        names = [*components]
    if names != [None]:
        known = {s.component for s in sites if s.layer is not None}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise WorkbenchError(
                f"No layer has a component {unknown[0]!r}; known are {', '.join(sorted(known))}."
            )
    made = []
    for name in names:
        for layer in range(layout.layers):
            near = range(layer - window // 2, layer + window // 2 + 1)
            layers = [one for one in near if 0 <= one < layout.layers]
            about = {"component": name or "layer", "layer": layer, "position": "all"}
            mask = only(layers, None if name is None else [name])
            made.append(_Place(mask, layers[0], Patch((), about)))
    if components == "layer" and any(
        s.layer is None and pair.delta(s).changed for s in sites if s.name in pair.comparable
    ):
        about = {"component": OUTSIDE, "position": "all"}
        made.append(_Place(lambda site: site.layer is None, 0, Patch((), about)))
    return made


@contextlib.contextmanager
def _restored(
    model: nn.Module, pair: CheckpointPair, mask: Mask, direction: Direction
) -> Iterator[None]:
    """`model` with the source side's parameters wherever the mask says."""
    if direction == "tuned->base":
        tensors = edit(pair, mask=mask).tensors()
    else:
        tensors = {
            site.name: delta.base
            for site in pair.sites("all")
            if mask(site) and (delta := pair.delta(site)).changed
        }
    with overlay(model, tensors, pair), torch.no_grad():
        yield
