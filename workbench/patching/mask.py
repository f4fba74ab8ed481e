"""Which heads carry an object, a label or a position? Desiderata-based component masking (DCM).

For pairs of a base and a source prompt and the answer the base must turn to once the right
information is taken from the source (`tasks.desiderata`), one scalar m in [0, 1] per component is
learned by gradient descent through the frozen model,

    z <- m . z + (1 - m) . z_source,    loss = -mean target logit + lambda . sum(1 - m)

with Adam, m clamped to [0, 1] after every step and rounded at the end; components at 0 carry it
(Davies et al. 2023, arXiv 2307.03637; Prakash et al. 2024, arXiv 2402.14811). It misleads if
several sets of components do equally well (only one of them is found), and lambda decides how weak
a component may be to stay in the mask: compare the score of the rounded mask, on pairs it was not
learned on, with random masks of its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site, replace
from workbench.models.rerun import Rerun
from workbench.models.sides import named_dtype
from workbench.models.sites import Kind
from workbench.patching.activation import SIDES, require_sides
from workbench.patching.counterfactual_rows import counterfactual_rows
from workbench.patching.patches import Patch, Position, require_equal
from workbench.patching.places import asked as places_of
from workbench.patching.places import placed, taken
from workbench.patching.sweep import require_aligned, require_batches
from workbench.patching.sweep_plan import Plan, counted
from workbench.progress import progress
from workbench.results.result import Result
from workbench.results.validity import finished
from workbench.stats import ratios, shares
from workbench.tasks.batching import Row, batch, in_batches, pad_id
from workbench.tasks.desiderata import Counterfactuals

KEY = "patching.mask"
Component = Literal["head", "mlp", "neuron"]
KIND: Mapping[str, Kind] = {"head": "z", "mlp": "mlp_out", "neuron": "mlp_hidden"}
RANDOM = 10


@analysis(
    "Which heads carry the object, the box label or the position that an answer needs?",
    paper="arXiv 2307.03637",
    example='--kind "box label" --count 5',
    passes=20,
    plans=True,
    takes={"pairs": "pairs"},
    few={"pairs": 24},
)
def mask(
    pair: CheckpointPair,
    pairs: Counterfactuals,
    *,
    component: Component = "head",
    position: Position = -1,
    penalty: float = 0.01,
    lr: float = 0.1,
    epochs: int = 2,
    sides: Sequence[str] = SIDES,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Learn which components must be taken from the source prompts for the desideratum to hold.

    pairs: `tasks.desiderata(kind, ...)`; a random half trains the mask, the other half judges it.
    component: what is masked: "head" (z), "mlp" (the MLP's output) or "neuron". position: where
    components are patched; None for every token (prompts of one length). penalty: the weight of the
    mask's size in the loss (lambda in the paper). lr: the learning rate of Adam. epochs: passes
    over the half that trains the mask. sides: the models in which the mask is learned: base, tuned.
    dtype: "float32" or "bfloat16"; None means as stored. large: as in `activation`.

    The command line draws 24 pairs, with --full 200.

    Returns a Result with columns side, component, layer, head or neuron, position, arm, metric.
    `mask`: the learned m of every component before rounding; `chosen`: 1 if it is taken from the
    source. `score`: fraction of judging pairs whose answer is the wanted one, and `target_logit`,
    for arms "patch" (the rounded mask), "random" (as many components drawn at random), "all" and
    "none" (every component, no component); `size`. 95% intervals over pairs, n. Raises
    WorkbenchError for fewer than 8 pairs.
    """
    if component not in KIND:
        raise WorkbenchError(f"Expected component {', '.join(KIND)}; found {component!r}.")
    require_sides(sides)
    require_batches(batch_size)
    words = pair.base.tokenizer()
    ours, theirs = counterfactual_rows(words, pairs)
    ours, theirs = placed(places_of([position]), ours, theirs)
    if position is None:
        require_equal([*ours, *theirs], "A mask over every token")
    require_aligned(ours, theirs, [Patch((Site("z", 0, position=position),))])
    order = np.random.default_rng(seed).permutation(len(pairs))
    teach, judge = order[: len(order) // 2].tolist(), order[len(order) // 2 :].tolist()
    tables = []
    with pair.models(device, named_dtype(dtype)) as run:
        for side in sides:
            model = run.base if side == "base" else run.tuned
            masked = _Masked(model, component, position, ours, theirs, words, device)
            masked.plan(len(teach), epochs, batch_size).require(f"mask {side}", device, large)
            learned = masked.learn(teach, penalty, lr, epochs, batch_size, seed)
            table = masked.table(learned, judge, batch_size, seed)
            tables.append(table.assign(side=side))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "pairs": {"name": pairs.name, "n": len(pairs), "fingerprint": pairs.fingerprint},
        "component": component, "position": position, "penalty": penalty, "lr": lr,
        "epochs": epochs, "batch_size": batch_size, "sides": list(sides), "kind": pairs.kind,
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    return finished(KEY, table, pair.provenance(parameters=parameters, **known))


class _Masked(NamedTuple):
    """One model, the pairs' rows, and the components that a mask (layers, units) covers."""

    model: Any
    component: str
    position: Position
    ours: Sequence[Row]
    theirs: Sequence[Row]
    words: Any
    device: str

    @property
    def layers(self) -> list[int]:
        """The layers that have such components; where none has, the first, which then says why."""
        layout = Layout(self.model)
        known = layout.where(KIND[self.component])
        return known or [layout.check(Site(KIND[self.component], 0)).layer]

    @property
    def shape(self) -> tuple[int, int]:
        counts = {Layout(self.model).count(site) for site in self.sites()}
        if len(counts) > 1:
            raise WorkbenchError(
                f"The blocks of this model have {min(counts)} to {max(counts)} {self.component}s, "
                'which one mask cannot cover; use component="mlp".'
            )
        return len(self.layers), counts.pop()

    def plan(self, taught: int, epochs: int, batch_size: int) -> Plan:
        """A step runs the source's and the masked model, and back; a mask is judged by both."""
        judged = (len(self.ours) - taught) * 2 * (3 + RANDOM)
        forwards = (taught * epochs * 4 + judged) / len(self.ours)
        known = (self.sites(), self.words, batch_size, self.device)
        return counted(
            self.model, self.ours, math.prod(self.shape), forwards, *known, gradients=True
        )

    def sites(self) -> list[Site]:
        kind = KIND[self.component]
        return [Site(kind, layer, position=self.position) for layer in self.layers]

    def logits(self, places: list[int], soft: Callable[[int], Tensor]) -> Tensor:
        """Logits (batch, vocabulary) at the answer's first predictor, layer by layer mixed with the
        source by soft(row of the mask), (units,): 1 keeps, 0 takes."""
        fill = pad_id(self.words)
        inputs = batch(self.ours, places, self.device, fill)
        sites = self.sites()
        source = Rerun(self.model, batch(self.theirs, places, self.device, fill), [
            site.whole for site in sites
        ])  # fmt: skip

        def mixed(site: Site) -> Callable[[Tensor], Tensor]:
            given, keep = taken(site, source.read(site)), soft(self.layers.index(site.layer))
            keep = keep[:, None] if self.component == "head" else keep
            return lambda own: keep * own + (1 - keep) * given.to(own.dtype)

        with replace(self.model, {site: mixed(site) for site in sites}, at=inputs.index):
            logits = self.model(**inputs.inputs, use_cache=False).logits
        return logits[torch.arange(len(places), device=logits.device), inputs.last]

    def learn(
        self, places: list[int], penalty: float, lr: float, epochs: int, batch_size: int, seed: int
    ) -> Tensor:
        """The mask (layers, units), in [0, 1], from every component kept."""
        keep = torch.ones(self.shape, device=self.device, requires_grad=True)
        optimizer = torch.optim.Adam([keep], lr=lr)
        draw = np.random.default_rng(seed)
        steps = [
            chunk.tolist()
            for _ in range(epochs)
            for chunk in np.array_split(draw.permutation(places), -(-len(places) // batch_size))
        ]
        for step in progress(steps, desc=f"mask {self.component}"):
            with torch.enable_grad():
                logits = self.logits(step, lambda row: keep[row])
                loss = -self._wanted(logits, step).mean() + penalty * (1 - keep).sum()
                (keep.grad,) = torch.autograd.grad(loss, [keep])
            optimizer.step()
            with torch.no_grad():
                keep.clamp_(0, 1)
        return keep.detach()

    def table(self, learned: Tensor, places: list[int], batch_size: int, seed: int) -> pd.DataFrame:
        """The mask, and scores of its rounding and of the controls on the judging pairs."""
        hard = learned.round()
        layers, units = learned.shape
        size = int((hard == 0).sum())
        draw = np.random.default_rng(seed)
        drawn = []
        for _ in range(RANDOM):
            other = torch.ones(layers * units)
            other[torch.from_numpy(draw.permutation(layers * units)[:size])] = 0
            drawn.append(other.view(layers, units).to(hard))
        arms = {
            "patch": [hard], "all": [torch.zeros_like(hard)], "none": [torch.ones_like(hard)],
            "random": drawn,
        }  # fmt: skip
        made = [self._components(learned, hard)]
        made.append(pd.DataFrame([{"metric": "size", "value": size, "n": learned.numel()}]))
        for arm, masks in arms.items():
            found = [self._scores(one, places, batch_size) for one in masks]
            for metric in ("score", "target_logit"):
                values = np.stack([scores[metric] for scores in found])
                # Random masks: every pair's mean over them, so that the interval is over pairs.
                interval = (shares if metric == "score" else ratios)(values.mean(0), seed=seed)
                row = interval.first._asdict()
                made.append(pd.DataFrame([row | {"arm": arm, "metric": metric}]))
        table = pd.concat(made, ignore_index=True)
        where = "all" if self.position is None else str(self.position)
        return table.assign(component=self.component, position=where)

    def _components(self, learned: Tensor, hard: Tensor) -> pd.DataFrame:
        layers, units = learned.shape
        layer, unit = np.divmod(np.arange(layers * units), units)
        columns: dict[str, Any] = {"layer": np.array(self.layers)[layer]}
        if self.component != "mlp":
            columns[self.component] = unit
        both = {"mask": learned, "chosen": 1 - hard}
        return pd.concat([
            pd.DataFrame(columns | {"metric": name, "value": values.flatten().cpu().numpy()})
            for name, values in both.items()
        ])  # fmt: skip

    def _scores(self, keep: Tensor, places: list[int], batch_size: int) -> dict[str, np.ndarray]:
        found = {m: np.zeros(len(places)) for m in ("score", "target_logit")}

        def run(some: list[int]) -> tuple[Tensor, Tensor]:
            chosen = [places[i] for i in some]
            with torch.no_grad():
                logits = self.logits(chosen, lambda row: keep[row])
            said = logits.argmax(-1) == self._answers(chosen, logits.device)
            return said.float(), self._wanted(logits, chosen)

        lengths = [len(self.ours[i].fed) for i in places]
        for some, (said, wanted) in in_batches(lengths, max(batch_size, 32), run):
            found["score"][some] = said.cpu().numpy()
            found["target_logit"][some] = wanted.float().cpu().numpy()
        return found

    def _answers(self, places: list[int], device: Any) -> Tensor:
        return torch.tensor([self.ours[i].answer[0] for i in places], device=device)

    def _wanted(self, logits: Tensor, places: list[int]) -> Tensor:
        return logits.gather(-1, self._answers(places, logits.device)[:, None])[:, 0]
