"""TuCo: how much of what the model computes for a prompt did fine-tuning contribute?

On the tuned model's stream x_l each block's output splits into what the base's block would add,
PTC_l = f_base(x_l), and the rest, FTC_l = f_tuned(x_l) - f_base(x_l); f(x) = A(x) + M(x + A(x)).
Summed over layers at the last prompt token,

    TuCo = |sum FTC|_1 / (|sum PTC|_1 + |sum FTC|_1),    PreCo = 1 - TuCo

(Nuti, Franzmeyer & Henriques, "TuCo: Measuring the Contribution of Fine-Tuning to Individual
Responses of LLMs", arXiv 2506.23423). It misleads if contributions cancel (h in one layer, -h in
another give 0: see `tuco_sum`), if embedding, final norm or head changed, which it cannot see
(`invisible`), and between prompts of unequal length or perplexity, which shift it by themselves:
compare groups by `auc_matched`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Sides, Site, capture
from workbench.models.memory import Where
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import bootstrap
from workbench.tasks import PromptSet
from workbench.tasks.batching import Batch, Row, batch, in_batches, pad_id, rows
from workbench.tuco.lockstep import Step, lockstep
from workbench.tuco.separation import Group, between

Prompts = PromptSet | Sequence[str]
COMPARED = ("tuco", "output_co")


class Share(NamedTuple):
    """|FTC| and |PTC| in one norm, and |FTC| / (|PTC| + |FTC|); any shape. 0 / 0 is NaN."""

    ftc: Tensor
    ptc: Tensor

    @property
    def share(self) -> Tensor:
        return self.ftc / (self.ptc + self.ftc)


class Sums:
    """PTC and FTC summed over the layers seen so far, and every layer's size at the last token.

    ptc, ftc: (batch, token, width), float32. layers: per layer (|PTC|, |FTC|, and the share of the
    sums up to and including it), each (batch,), L1 norms at the last prompt token.
    """

    def __init__(self, last: Tensor) -> None:
        self.last = last
        self.layers: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Step) -> None:
        """One layer's part."""
        added = step.base.added
        if not self.layers:
            self.ptc, self.ftc = torch.zeros_like(added), torch.zeros_like(added)
        self.ptc += added
        change = torch.zeros_like(self.last, dtype=torch.float32)
        if step.changed:
            more = step.tuned.added - added
            self.ftc += more
            change = self.at_last(more).abs().sum(-1)
        size = self.at_last(added).abs().sum(-1)
        self.layers.append((size, change, self.share(self.at_last).share))

    def at_last(self, tensor: Tensor) -> Tensor:
        """(batch, width) at each row's last token."""
        return tensor[torch.arange(len(tensor), device=tensor.device), self.last]

    def share(self, pick: Callable[[Tensor], Tensor], order: float = 1) -> Share:
        """Norms of the sums, L1 or L2, of the picked tokens."""
        norm = torch.linalg.vector_norm
        return Share(norm(pick(self.ftc), order, -1), norm(pick(self.ptc), order, -1))


def decompose(sides: Sides, inputs: Batch) -> tuple[Sums, Tensor]:
    """One tuned pass without its head: the sums, and x_L (batch, token, width) before the final
    norm. Costs about two forward passes of the blocks that changed and one of the others."""
    sums = Sums(inputs.last)
    final: list[Tensor] = []

    def visit(step: Step) -> None:
        sums.add(step)
        final[:] = [step.tuned.out]

    with torch.inference_mode(), lockstep(sides, visit):
        sides.layout.core(**inputs.inputs, use_cache=False)
    return sums, final[0]


def per_prompt(sums: Sums) -> dict[str, Tensor]:
    """The measures at the last prompt token, each (batch,): tuco (paper), preco, tuco_l2 (L2
    norms), tuco_sum (norms summed over layers instead of the norm of the sum), beta (the largest
    ratio of the sums up to and including a layer)."""
    paper = sums.share(sums.at_last).share
    ptc, ftc, so_far = (torch.stack(part) for part in zip(*sums.layers, strict=True))
    return {
        "tuco": paper,
        "preco": 1 - paper,
        "tuco_l2": sums.share(sums.at_last, 2).share,
        "tuco_sum": Share(ftc.sum(0), ptc.sum(0)).share,
        "beta": so_far.amax(0),
    }


def output_contribution(tuned: Tensor, base: Tensor) -> Tensor:
    """OutputCo = |x_tuned - x_base|_1 / (|x_base|_1 + the same); (batch, width) -> (batch,)."""
    moved = (tuned.float() - base.float()).abs().sum(-1)
    return moved / (base.float().abs().sum(-1) + moved)


def stream_bound(beta: float, layers: int, largest_ptc: float, lipschitz: float) -> float:
    """Upper bound on |x_L tuned - x_L base|_1 where every base block is `lipschitz` in L1 and adds
    at most `largest_ptc`: L sup|PTC|_1 (1 + Lip)^L beta / (1 - beta). beta is cumulated up to and
    including a layer, as the paper's proof needs it (its statement stops one short)."""
    if beta >= 1:
        return float("inf")
    return layers * largest_ptc * (1 + lipschitz) ** layers * beta / (1 - beta)


@analysis(
    "How much of the computation of one answer did fine-tuning contribute?",
    paper="arXiv 2506.23423",
    example="--prompts task.jsonl --prompts plain.txt",
    passes=3,
    takes={"prompts": "sets"},
)
def contribution(
    pair: CheckpointPair,
    prompts: Prompts | Mapping[str, Prompts],
    *,
    tokens: int = 2,
    batch_size: int = 16,
    base: Where = "memory",
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Measure how much of the computation for each prompt fine-tuning contributed.

    prompts: a prompt set or texts, or several groups of them by name; each prompt is read up to its
    answer. tokens: the number of prompts per group for which every token is profiled. base:
    "memory", or "disk", which reads the base block by block for a full fine-tune that does not fit
    twice (OutputCo and the prompt's loss need the whole base and are then left out). dtype:
    "float32" or "bfloat16"; None means as stored (the command line uses float32).

    Returns a Result. Per prompt (columns group, prompt): `tuco`, `preco`, `tuco_l2`, `tuco_sum`,
    `beta`, `output_co` (the baseline that TuCo must beat), `length` in tokens and `base_loss`, nats
    per token of the prompt under the base. Per group, and per group and layer, means with 95%
    bootstrap intervals and n: `mean:MEASURE`, and `layer_ptc`, `layer_ftc` (L1 norms, activation
    units), `layer_tuco`, `cumulated`. Per token: `token_tuco` with position and token. Between
    every two groups (group is then "A > B") `auc:MEASURE`, and `auc_matched:MEASURE` over pairs of
    prompts matched in length and loss; and `auc_difference:tuco-output_co` and
    `auc_difference_matched:tuco-output_co`, TuCo's AUC less that of OutputCo, paired. `invisible`:
    |change| / |base| of parameters outside the blocks, by component. Raises WorkbenchError for a
    model whose residual stream does not pass block by block, or an empty group.
    """
    groups = {prompts.name: prompts} if isinstance(prompts, PromptSet) else prompts
    if not isinstance(groups, Mapping):
        groups = {"texts": groups}
    if not groups or any(isinstance(group, str) for group in groups.values()):
        raise WorkbenchError(
            "Expected prompts, or groups of them by name; wrap one text in a list."
        )
    words = pair.base.tokenizer()
    found: list[Group] = []
    with pair.models(device, named_dtype(dtype), base=base) as sides:
        for name, group in groups.items():
            made = measure(sides, name, rows(words, group), words, tokens, batch_size, device)
            found.append(made)
        ran = sides.described
    tables = [summary(group, seed) for group in found]
    table = pd.concat([*tables, between(found, COMPARED, seed), invisible(pair)])
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": {name: describe(group) for name, group in groups.items()},
        "tokens": tokens, "base": base,
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, f"{pair.name}: {ran}"))
    return finished("tuco.contribution", table.reset_index(drop=True), provenance)


def measure(
    sides: Sides,
    name: str,
    given: Sequence[Row],
    tokenizer: Any,
    tokens: int,
    batch_size: int,
    device: str,
) -> Group:
    """Every measure of one group of prompts."""
    prompts: list[dict[str, Any]] = [{} for _ in given]
    layers = np.zeros((len(given), sides.layout.layers, 3))
    profiles: list[dict[str, Any]] = []

    def run(places: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        inputs = batch(given, places, device, pad_id(tokenizer))
        sums, final = decompose(sides, inputs)
        scores = per_prompt(sums) | {"length": inputs.mask.sum(1)}
        if sides.base is not None:
            scores |= against_base(sides, inputs, sums.at_last(final))
        whole = sums.share(lambda tensor: tensor).share
        return scores, torch.stack([torch.stack(part) for part in sums.layers]), whole

    bar = progress(total=len(given), desc=f"tuco {name}")
    with bar:
        for places, (scores, parts, whole) in in_batches(
            [len(row.ids) for row in given], batch_size, run
        ):
            layers[places] = parts.permute(2, 0, 1).cpu().numpy()
            for number, place in enumerate(places):
                prompts[place] = {m: float(values[number]) for m, values in scores.items()}
                if place < tokens:
                    profiles += _profile(given[place], whole[number].tolist(), tokenizer)
            bar.update(len(places))
    table = pd.DataFrame(prompts, index=pd.Index([row.name for row in given], name="prompt"))
    return Group(name, table, layers, profiles)


def against_base(sides: Sides, inputs: Batch, tuned: Tensor) -> dict[str, Tensor]:
    """output_co and base_loss (nats per predicted token of the prompt), each (batch,), from one
    forward pass of the base; tuned: x_L of the tuned model at the last token."""
    last = Site("resid_post", sides.layout.layers - 1, position=-1)
    with torch.inference_mode(), capture(sides.base, [last], at=inputs.index) as seen:
        logits = sides.base(**inputs.inputs, use_cache=False).logits
    targets = inputs.ids[:, 1:].masked_fill(inputs.mask[:, 1:] == 0, -100)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, reduction="none")
    counted = inputs.mask[:, 1:].sum(1)
    return {
        "output_co": output_contribution(tuned, seen[last][:, 0]),
        "base_loss": losses.sum(1) / counted,
    }


def summary(group: Group, seed: int) -> pd.DataFrame:
    """A group's rows: every prompt's measures, their means, the layers' means, the tokens'."""
    made = []
    for measure in group.prompts.columns:
        values = group.prompts[measure]
        made += [{"prompt": p, "metric": measure, "value": v} for p, v in values.items()]
        interval = bootstrap(values.dropna(), seed=seed)
        made.append({"metric": f"mean:{measure}"} | interval._asdict())
    for layer in range(group.layers.shape[1]):
        ptc, ftc, so_far = group.layers[:, layer].T
        share = ftc / np.where(ptc + ftc > 0, ptc + ftc, np.nan)
        parts = {"layer_ptc": ptc, "layer_ftc": ftc, "layer_tuco": share, "cumulated": so_far}
        for name, values in parts.items():
            interval = bootstrap(values[np.isfinite(values)], seed=seed)
            made.append({"layer": layer, "metric": name} | interval._asdict())
    table = pd.DataFrame([*made, *group.tokens])
    table.insert(0, "group", group.name)
    return table.astype({"layer": "Int64"})


def invisible(pair: CheckpointPair) -> pd.DataFrame:
    """|change| / |base| of every changed parameter outside the blocks, which TuCo cannot see."""
    made = []
    for site in pair.sites("all"):
        if site.layer is None:
            delta = pair.delta(site)
            if delta.changed:
                size = float(torch.linalg.vector_norm(delta.base.float()))
                ratio = delta.norm / size if size else float("nan")
                made.append({"component": site.component, "metric": "invisible", "value": ratio})
    # Where nothing changed, the empty column must not turn the other values into objects.
    table = pd.DataFrame(made, columns=pd.Index(["component", "metric", "value"]))
    return table.astype({"value": float})


def _profile(row: Row, shares: Sequence[float], tokenizer: Any) -> list[dict[str, Any]]:
    return [
        {
            "prompt": row.name, "position": place, "token": tokenizer.decode([token]),
            "metric": "token_tuco", "value": share,
        }
        for place, (token, share) in enumerate(zip(row.ids, shares[: len(row.ids)], strict=True))
    ]  # fmt: skip
