"""Direct logit attribution: which head or MLP writes the answer, and which one changed that?

The stream that the head of the model reads at the last prompt token is a sum: the embedding, what
each attention head adds, what each MLP adds. With the final norm's scale held at what it was in the
run, norm and head are linear, so the logit difference of answer and foils is a sum as well,

    logit(answer) - mean logit(foils) = sum over components of  c . g  +  bias

where c is what a component added and g the direction of the difference, drawn back through head and
norm (Elhage et al. 2021, "A mathematical framework for transformer circuits"; Wang et al. 2022,
arXiv 2211.00593, section 3). The parts add up to the model's own logit difference up to rounding,
which is checked in every run. Base and tuned model are compared component by component, paired over
prompts. The control is what each component says of another prompt's answer and foils.

It misleads as it sees direct effects alone: a head that moves what a later one writes gets nothing,
and one that later components cancel gets much (McGrath et al. 2023, arXiv 2307.15771). Each side's
norm has its own scale, so a component may change its contribution without changing what it adds.
"""

from __future__ import annotations

import contextlib
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
from workbench.models import Layout, Site, capture
from workbench.models.rerun import answers_only
from workbench.models.sides import named_dtype
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.frozen_norm import CLOSE, frozen
from workbench.patching.strongest import halves
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import others, ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

KEY = "patching.contributions"
CHANGE = "tuned - base"
EMBEDDING, HEAD, ATTENTION, BIAS, TOTAL = "embedding", "head", "attn_out", "bias", "total"
Floats = NDArray[np.float64]
Place = tuple[str, int | None, int | None]  # component, layer, head


@analysis(
    "Which heads and MLPs write the answer, and which changed that?",
    paper="Elhage et al. 2021; arXiv 2211.00593",
    example="--prompts task.jsonl",
    passes=2,
    takes={"prompts": "task"},
    few={"prompts": 64},
)
def contributions(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Split the answer's logit difference of both models into what each component adds directly.

    prompts: prompts with answers, whose first token is meant, and foils; without foils the answer
    is held against the mean logit of all tokens. In plain texts the answer is the token that the
    tuned model predicts next. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 64 prompts; with --full all of them.

    Returns a Result with columns side ("base", "tuned" and, paired, "tuned - base"), component
    ("embedding", "head", "attn_out": what attention adds beside its heads or, where no head adds by
    itself, all of it, "mixer_out", "mlp_out", "other_out", "bias"), layer, head, and the metric
    `contribution` in logits: the mean over prompts with a 95% bootstrap interval, n; baseline: the
    component's contribution to another prompt's logit difference. component "total" is the logit
    difference itself. Arm "picked": the component whose contribution changed most on one half of
    the prompts, on the other half. Raises WorkbenchError for a model whose final norm is not linear
    at a fixed scale, or whose components do not add up to its stream.
    """
    words = pair.base.tokenizer()
    given = answered(words, prompts)
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        turn = others(len(given), seed)
        found = {
            side: _Attribution(model, Layout(model), given, turn, pad_id(words), device).run(
                batch_size, f"{side} contributions"
            )
            for side, model in (("base", run.base), ("tuned", run.tuned))
        }
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    table = pd.DataFrame(_rows(found, seed))
    table.insert(0, "member", pair.name)
    parameters = {"prompts": describe(prompts)}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    return finished(KEY, table.astype({"layer": "Int64", "head": "Int64"}), provenance)


@dataclass(frozen=True)
class _Attribution:
    """One side's model and the prompts. turn: whose answer and foils are each prompt's control."""

    model: Any
    layout: Layout
    given: Sequence[Row]
    turn: Sequence[int]
    fill: int
    device: str

    def run(self, batch_size: int, label: str) -> dict[Place, Floats]:
        """component, layer, head -> (2, prompts): to the own logit difference and the control's."""
        kept: dict[Place, Floats] = {}
        for at, found in progress(
            list(in_batches([len(row.fed) for row in self.given], batch_size, self._batch)),
            desc=label,
        ):
            for place, value in found.items():
                own = kept.setdefault(place, np.full((2, len(self.given)), np.nan))
                own[:, at] = value.double().cpu().numpy()
        return kept

    def _batch(self, at: list[int]) -> dict[Place, Tensor]:
        """(2, batch) of every place."""
        inputs = batch(self.given, at, self.device, self.fill)
        sites = [Site("resid_pre", 0, position=-1), *self._adding()]
        last = Site("resid_post", self.layout.layers - 1, position=-1)
        with (
            torch.no_grad(),
            capture(self.model, [*sites, *self._inputs(), last], at=inputs.index) as seen,
            answers_only(self.layout, inputs.last[:, None]),
            self._read() as read,
        ):
            self.model(**inputs.inputs, use_cache=False)
        with getattr(self.model, "as_run", contextlib.nullcontext)():
            directions, found = self._directions(at, read[0][:, 0], seen[last][:, 0])
            found |= self._parts(seen, directions)
        gap = sum(value for place, value in found.items() if place[0] != TOTAL)
        off = (gap - found[TOTAL, None, None]).abs().max()
        size = torch.stack([value.abs() for value in found.values()]).max()
        if float(off) > 10 * CLOSE.get(seen[last].dtype, 1e-3) * max(1.0, float(size)):
            raise WorkbenchError(
                "Expected components that add up to the logit difference, found them "
                f"{float(off):.2g} logits apart; this model adds something else to its stream, so "
                "use patching.activation."
            )
        return found

    def _adding(self) -> list[Site]:
        kinds = ("attn_out", "mixer_out", "mlp_out", "other_out")
        return [Site(k, at, position=-1) for k in kinds for at in self.layout.where(k)]

    def _inputs(self) -> list[Site]:
        """z of the layers whose heads add by themselves."""
        layout = self.layout
        alone = [
            at for at in layout.where("z")
            if (part := layout.parts(at)).attn is not None and part.attn.path == part.attn.within
        ]  # fmt: skip
        return [Site("z", at, position=-1) for at in alone]

    @contextlib.contextmanager
    def _read(self) -> Iterator[list[Tensor]]:
        """What the model's head is given."""
        head: Any = self.layout.root.get_output_embeddings()
        seen: list[Tensor] = []
        handle = head.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
        try:
            yield seen
        finally:
            handle.remove()

    def _directions(
        self, at: Sequence[int], read: Tensor, stream: Tensor
    ) -> tuple[Tensor, dict[Place, Tensor]]:
        """The directions of the stream (2, batch, width), and the bias and total (2, batch). read:
        what the head is given, (batch, width)."""
        norm, head = self.layout.structure.norm, self.layout.root.get_output_embeddings()
        module = self.layout.root.get_submodule(norm) if norm else torch.nn.Identity()
        linear = frozen(module, stream, read)
        backs, totals, biases = [], [], []
        for turned in (False, True):
            rows = [self.given[self.turn[i] if turned else i] for i in at]
            with torch.enable_grad():
                own = read.detach().clone().requires_grad_()
                total = differences(head(own).float(), rows)
                (back,) = torch.autograd.grad(total.sum(), own)
            zero = linear.bias.expand(len(rows), -1).to(read)
            with torch.no_grad():
                biases.append(differences(head(zero).float(), rows))
            backs.append(linear.back(back.float()))
            totals.append(total.detach())
        found: dict[Place, Tensor] = {(TOTAL, None, None): torch.stack(totals)}
        return torch.stack(backs), found | {(BIAS, None, None): torch.stack(biases)}

    def _parts(self, seen: Mapping[Site, Tensor], directions: Tensor) -> dict[Place, Tensor]:
        """What everything that is added to the stream contributes, (2, batch) each."""
        layers = self.layout.layers
        gains = [self.layout.gain(layer) for layer in range(layers)]
        times = [float(np.prod(gains[layer:])) for layer in range(layers)]
        own = seen[Site("resid_pre", 0, position=-1)][:, 0].float()
        made: dict[Place, Tensor] = {(EMBEDDING, None, None): times[0] * (directions * own).sum(-1)}
        for site in self._adding():
            own = seen[site][:, 0].float()
            made[site.kind, site.layer, None] = times[site.layer] * (directions * own).sum(-1)
        for site in self._inputs():
            heads = times[site.layer] * self._heads(site, seen[site][:, 0], directions)
            made |= {(HEAD, site.layer, h): heads[..., h] for h in range(heads.shape[-1])}
            made[ATTENTION, site.layer, None] = made[ATTENTION, site.layer, None] - heads.sum(-1)
        return made

    def _heads(self, site: Site, z: Tensor, directions: Tensor) -> Tensor:
        """(2, batch, heads) from z (batch, heads, d_head), drawn back through the projection."""
        module: Any = self.layout.module(site.whole)
        made = []
        for direction in directions:
            with torch.enable_grad():
                own = z.detach().clone().requires_grad_()
                out = module(own.flatten(-2)[:, None])[:, 0].float()
                (back,) = torch.autograd.grad((out * direction).sum(), own)
            made.append((back.float() * z.float()).sum(-1))
        return torch.stack(made) * self.layout.scale(Site("attn_out", site.layer))


def differences(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logit of each answer's first token less the mean of its foils', of all tokens' where it
    has none, (batch,). logits: (batch, vocabulary)."""
    made = []
    for own, row in zip(logits, rows, strict=True):
        foils = own[list(row.foils)] if row.foils else own
        made.append(own[row.answer[0]] - foils.mean())
    return torch.stack(made)


def _rows(found: Mapping[str, Mapping[Place, Floats]], seed: int) -> Iterator[dict[str, Any]]:
    """Means over prompts of both sides and of the change, and the component that was picked."""
    places = list(found["base"])
    sides = {side: np.stack([own[place] for place in places]) for side, own in found.items()}
    sides[CHANGE] = sides["tuned"] - sides["base"]
    for side, values in sides.items():
        told, null = ratios(values[:, 0], seed=seed), ratios(values[:, 1], draws=1).value
        for number, (component, layer, head) in enumerate(places):
            about = {"side": side, "component": component, "layer": layer, "head": head}
            row = {name: part[number] for name, part in told._asdict().items()}
            yield about | {"metric": "contribution", "baseline": null[number]} | row
    change = sides[CHANGE]
    pick, report = halves(change.shape[-1], seed)
    moved = np.abs(change[:, 0, pick].mean(-1))
    moved[[place[0] == TOTAL for place in places]] = -1
    best = int(moved.argmax())
    component, layer, head = places[best]
    about = {"side": CHANGE, "component": component, "layer": layer, "head": head, "arm": "picked"}
    null = float(change[best, 1, report].mean())
    own = ratios(change[best, 0, report], seed=seed).first
    yield about | {"metric": "contribution", "baseline": null} | own._asdict()
