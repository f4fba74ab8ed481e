"""Attention patterns: which heads attend to other tokens after fine-tuning, and to which?

Both sides read the same prompts. For every head and query token the two patterns are distributions
over the keys, apart by their total variation distance

    tvd = 1/2 sum over keys |tuned - base|           0: the same pattern, 1: no key in common

averaged over prompts, at the last token and over all tokens (padding is none). The attention from
the last token to each named place of a prompt is given too, for both models and paired; and so is
how focused a pattern p of the query token q is, by its entropy -sum p ln p (nats) and by its reach

    reach = sum over keys p_k (q - k)                tokens back, the mean attention distance

of which fine-tuning is said to lower both where a task is new (Jiang et al. 2026, arXiv 2603.18541,
of attention between patches of an image).

It misleads about *why*: a head's pattern changes when its own matrices did and when anything before
it did, so a large distance does not mean a changed head (`restore` shows that). A pattern is not
what a head writes: keys with small values take attention without effect, above all the first token,
and a head of which only what it writes has changed is not seen at all (AUROC .32 on the compiled
pair where a head was made stronger; `make truth`).
The first token's own distance is 0 by definition and is part of the mean over tokens. A head that
rests on the first token has a long reach and a low entropy without looking at anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site, capture
from workbench.models.sides import Sides, named_dtype
from workbench.models.trial import last_alone
from workbench.patching.patches import default_positions
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.tasks import PromptSet
from workbench.tasks.batching import Batch, Row, batch, in_batches, pad_id, rows

KEY = "patching.patterns"
LAST, ALL, FIRST = "last token", "all tokens", "first token"
Patterns = dict[Site, Tensor]  # pattern site -> (batch, head, query, key)


def distance(base: Tensor, tuned: Tensor) -> Tensor:
    """Total variation distance of two patterns, (..., query, key) -> (..., query)."""
    return (tuned.float() - base.float()).abs().sum(-1) / 2


def entropy(pattern: Tensor) -> Tensor:
    """Entropy over the keys in nats, (..., query, key) -> (..., query)."""
    return torch.special.entr(pattern.float()).sum(-1)


def reach(pattern: Tensor) -> Tensor:
    """Mean distance to the keys in tokens, (..., query, key) -> (..., query)."""
    places = torch.arange(pattern.shape[-1], device=pattern.device, dtype=torch.float32)
    back = torch.arange(pattern.shape[-2], device=pattern.device)[:, None] - places
    return (pattern.float() * back).sum(-1)


def over_queries(distances: Tensor, inputs: Batch) -> dict[str, Tensor]:
    """(batch, head, query) at the last token, and averaged over all that are no padding."""
    real = inputs.mask[:, None].to(distances)
    last = inputs.last[:, None, None].expand(-1, distances.shape[1], 1)
    return {
        LAST: distances.gather(-1, last)[..., 0],
        ALL: (distances * real).sum(-1) / real.sum(-1),
    }


def paid(pattern: Tensor, inputs: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """What the last token pays to each place, summed over its tokens: name -> (batch, head)."""
    row = torch.arange(len(pattern), device=pattern.device)
    last = pattern[row, :, inputs.last].float()
    found = {FIRST: last[..., 0]}
    token = torch.arange(last.shape[-1], device=last.device)
    for name in names:
        # Of as many tokens as each prompt's own place has.
        ends = torch.tensor([row.spans[name] for row in inputs.rows], device=last.device)
        inside = (token >= ends[:, :1]) & (token < ends[:, 1:])
        found[name] = (last * inside[:, None]).sum(-1)
    return found


@analysis(
    "Which attention heads attend to other tokens after fine-tuning?",
    paper="total variation",
    example="--prompts task.jsonl",
    passes=2,
    takes={"prompts": "task"},
)
def patterns(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    examples: int = 2,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Compare every head's attention pattern between the two sides on the same prompts.

    prompts: prompts that are read without their answers. examples: the number of first prompts
    whose attention patterns are saved. batch_size: prompts per forward pass; memory grows with
    layers x heads x tokens squared. dtype: "float32" or "bfloat16"; None means as stored.

    Returns a Result with columns side, layer, head, position, metric: `tvd` (0 to 1) at "last
    token" and over "all tokens", side "tuned - base"; `attention` from the last token to every
    named place that all prompts have, and to the "first token", for "base", "tuned" and paired for
    "tuned - base"; `entropy` (nats) and `reach` (tokens) at the same two positions as `tvd`, also
    of both sides and paired. 95% bootstrap intervals over prompts, n. `example_tvd`: the distance
    at every `token` (number x) of the example prompts, in the head with the largest `tvd` at the
    last token.
    tensors, for example number i and each side: "i/SIDE/last", (layer, head, key), the patterns of
    the last token; "i/SIDE/head", (query, key), that head's whole pattern.
    """
    if examples < 0:
        raise WorkbenchError(f"Expected 0 or more examples, found {examples}.")
    words = pair.base.tokenizer()
    given = rows(words, prompts)
    names = [place for place in default_positions(given) if isinstance(place, str)]
    with pair.models(device, named_dtype(dtype)) as run:
        job = _Patterns(run, given, words, names, device)
        table = _table(job.run(batch_size), _layers(run.layout), seed)
        kept, tensors = job.examples(min(examples, len(given)), *most_changed(table))
        notes = [f"{pair.name}: {run.described}"]
    table = pd.concat([table, pd.DataFrame(kept)], ignore_index=True)
    table.insert(0, "member", pair.name)
    table = table.astype(dict.fromkeys(("layer", "head"), "Int64"))
    parameters = {"prompts": describe(prompts), "examples": examples}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    return finished(KEY, table, provenance, tensors)


def most_changed(table: pd.DataFrame) -> tuple[int, int]:
    """Layer and head of the largest distance at the last token."""
    own = table[(table["metric"] == "tvd") & (table["position"] == LAST)].reset_index(drop=True)
    best = own.loc[own["value"].idxmax()]
    return int(best["layer"]), int(best["head"])


class _Patterns(NamedTuple):
    """Both sides and the prompts they read. names: the places that every prompt has."""

    sides: Sides
    given: Sequence[Row]
    words: Any
    names: Sequence[str]
    device: str

    def run(self, batch_size: int) -> dict[tuple[str, str, str], np.ndarray]:
        """(metric, side, position) -> (layer, head, prompts)."""
        found: dict[tuple[str, str, str], np.ndarray] = {}
        layout = self.sides.layout
        heads = layout.require_even("pattern", "give a model of even blocks")
        shape = (layout.layers, heads, len(self.given))
        lengths = [len(row.fed) for row in self.given]
        bar = progress(total=len(self.given), desc="patterns")
        with bar:
            for at, values in in_batches(lengths, batch_size, self._batch):
                for (*key, layer), value in values.items():
                    kept = found.setdefault((key[0], key[1], key[2]), np.full(shape, np.nan))
                    kept[layer][:, at] = value.T.cpu().numpy()
                bar.update(len(at))
        return found

    def _batch(self, at: list[int]) -> dict[tuple[str, str, str, int], Tensor]:
        """(metric, side, position, layer) -> (batch, head)."""
        inputs = batch(self.given, at, self.device, pad_id(self.words))
        base = self._read(self.sides.base, inputs)
        found: dict[tuple[str, str, str, int], Tensor] = {}

        def compare(site: Site, tuned: Tensor) -> Tensor:
            apart = over_queries(distance(base[site], tuned), inputs)
            for position, value in apart.items():
                found["tvd", "tuned - base", position, site.layer] = value
            for side, own in (("base", base[site]), ("tuned", tuned)):
                for position, value in paid(own, inputs, self.names).items():
                    found["attention", side, position, site.layer] = value
                for metric, focus in (("entropy", entropy(own)), ("reach", reach(own))):
                    for position, value in over_queries(focus, inputs).items():
                        found[metric, side, position, site.layer] = value
            return tuned.new_zeros(())  # the tuned side's patterns are not kept

        self._read(self.sides.tuned, inputs, compare)
        return found

    def _read(self, model: Any, inputs: Batch, reduce: Any = None) -> Patterns:
        layout = Layout(model)
        sites = [layout.check(Site("pattern", layer)) for layer in _layers(layout)]
        with torch.no_grad(), capture(model, sites, reduce=reduce) as seen:
            # Logits are not wanted: only one token's are made.
            model(**inputs.inputs, use_cache=False, **last_alone(layout.root))
        return seen

    def examples(
        self, count: int, layer: int, head: int
    ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Rows and tensors of the first prompts, each run by itself."""
        made: list[dict[str, Any]] = []
        tensors: dict[str, np.ndarray] = {}
        for number in range(count):
            inputs = batch(self.given, [number], self.device, pad_id(self.words))
            whole: dict[str, Tensor] = {}
            for side, model in (("base", self.sides.base), ("tuned", self.sides.tuned)):
                seen = self._read(model, inputs)
                first = next(iter(seen.values()))
                # NaN where a block forms none.
                last = first.new_full((self.sides.layout.layers, *first[0, :, -1].shape), torch.nan)
                for site, own in seen.items():
                    last[site.layer] = own[0, :, -1]
                whole[side] = seen[Site("pattern", layer)][0, head].float()
                tensors[f"{number}/{side}/last"] = last.float().cpu().numpy()
                tensors[f"{number}/{side}/head"] = whole[side].cpu().numpy()
            apart = distance(whole["base"], whole["tuned"]).tolist()
            about = {"side": "tuned - base", "layer": layer, "head": head, "metric": "example_tvd"}
            row = self.given[number]
            for x, (token, value) in enumerate(zip(row.ids, apart, strict=True)):
                said = {"prompt": row.name, "x": float(x), "token": self.words.decode([token])}
                made.append(about | said | {"value": value})
        return made, tensors


def _layers(layout: Layout) -> list[int]:
    """The blocks that form a pattern; block 0, which then says why not, where none does."""
    return layout.where("pattern") or [0]


def _table(
    found: dict[tuple[str, str, str], np.ndarray], layers: list[int], seed: int
) -> pd.DataFrame:
    """Means over prompts of every head of these layers, and the paired difference of what both
    sides have."""
    both = dict(found)
    for metric, side, position in found:
        if side == "tuned":
            change = found[metric, "tuned", position] - found[metric, "base", position]
            both[metric, "tuned - base", position] = change
    tables = []
    for (metric, side, position), values in both.items():
        _, heads, _ = values.shape
        about = pd.DataFrame(
            {
                "side": side,
                "layer": np.repeat(layers, heads),
                "head": np.tile(np.arange(heads), len(layers)),
                "position": position,
                "metric": metric,
            }
        )
        own = values[layers].reshape(len(layers) * heads, -1)
        spread = ratios(own, seed=seed)._asdict()
        null: Any = 0.0
        if side == "tuned":
            null = found[metric, "base", position][layers].mean(-1).ravel()
        null = np.nan if side == "base" else null
        tables.append(about.assign(**spread, baseline=null))
    return pd.concat(tables, ignore_index=True)
