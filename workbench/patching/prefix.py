"""Prefixes: what does a prefix do to attention, and what can it not do?

A prefix (Li & Liang 2021, arXiv 2101.00190) is keys and values of N virtual tokens in front of a
layer's own. With weights a of a query over virtual tokens p and content tokens i, a head mixes

    sum_p a_p v_p + sum_i a_i v_i  =  bias + (1 - m) sum_i c_i v_i,
    m = sum_p a_p,  c_i = a_i / (1 - m)

and c is what the same states attend to without the prefix: it scales the attention over the content
down and adds a bias, and no content token gets more of it relative to another (Petrov, Torr & Bibi
2024, arXiv 2310.19698v2, section 4). Deeper layers are given other states, which the biases before
them made, and there the two models' attention differs (section 6). So there are, for each layer
and head,

    content_change   1/2 sum_i |c_i - c'_i|     c' without the prefix, or in the base's own run
    prefix_mass      m                          0 to 1
    bias_share       sum |bias| / sum |output|  over tokens; of a layer behind its projection
    bias_direction   the share of the energy of all biases in their mean direction

A prefix of one token has one direction in every head, v, and one of N tokens has up to N. The mean
direction is that of one half of the prompts, and the share is measured on the other. The control is
what prefixes of the same norms in random directions do to the same states.

It misleads where a large mass is taken for a large effect: virtual tokens with small values are
looked at for nothing, as first tokens are. That content_change is 0 with the same states is algebra
and checks the model's code, not its training. Where positions are learned (GPT-2) the tuned model's
texts begin N places later; the base is run at these places too, so that none of this is of places.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.loaders.adapters import SoftPrompt
from workbench.models import Layout, Site, capture
from workbench.models.sides import Sides, named_dtype
from workbench.models.trial import last_alone
from workbench.patching.prefixed import OWN, RUNS, SAME, Added, Layer, arms
from workbench.patching.recalled import Attended, called
from workbench.patching.strongest import said_of_halves
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, predicted, ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Batch, Row, batch, in_batches, pad_id, rows
from workbench.tasks.prompts import require_halves

KEY = "patching.prefix"
SHARES = ("prefix_mass", "bias_direction")  # of 1 at most
SMALL, ROUNDING = 1e-15, 1e-4  # what is less, or nearer to 1, is told from no other
Floats = NDArray[np.float64]


def require_prefix(pair: CheckpointPair) -> SoftPrompt:
    """The adapter, whose numbers are keys and values. Raises WorkbenchError for all else."""
    lora = pair.tuned.lora
    if not isinstance(lora, SoftPrompt):
        what = "a model with weights of its own" if lora is None else f"a {lora.kind.name} adapter"
        raise WorkbenchError(
            f"Expected a prefix of keys and values in front of a text (prefix tuning, cartridges), "
            f"but {pair.name} is {what}; use patching.patterns to see where its heads look."
        )
    if not lora.kind.in_layers:
        raise WorkbenchError(
            "Expected a prefix of keys and values (prefix tuning, cartridges), but adapter "
            f"{lora.told}, as embeddings that pass every layer like a text's own; use "
            "behaviour.tokens to see what they change."
        )
    return lora


@analysis(
    "What does a prefix add to attention, and does it leave the relative attention alone?",
    paper="arXiv 2310.19698",
    example="--prompts task.jsonl",
    passes=6,
    few={"prompts": 64},
    texts=True,
)
def prefix(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    random: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Measure in every layer and head what the prefix of a member takes and adds.

    prompts: at least 4 prompts, read without their answers, or plain texts. random: prefixes of the
    same norms in random directions that each layer is also given, 2 or more. dtype: "float32" or
    "bfloat16"; None means as stored. float32 is the sharper check of the theory.

    The command line takes 64 prompts; with --full all of them.

    Returns a Result with columns side, layer, head (none: the whole layer), metric, all over the
    tokens of the prompts: `content_change` (0 to 1, total variation), a mean, and
    `largest_content_change`, both for the sides "with - without prefix", of the same states, and
    "tuned - base", of the two runs (baseline: what rounding may do); of the side "tuned"
    `prefix_mass` (0 to 1; of a layer the mean over heads), `bias` (norm, in the unit of attention's
    output; of a head before the projection), `bias_share` and `bias_direction` (0 to 1, on the half
    of the prompts that did not choose the direction), with baseline the mean of the random
    prefixes, and null_low and null_high where another one of them lies with probability 0.95. Means
    have 95% bootstrap intervals over prompts, n. Tensor `bias`: (layer, width), what the prefix
    adds on average. Raises WorkbenchError for a member that is no prefix, for fewer than 4 prompts,
    and for a model or a layer that does not mix values by attention weights.
    """
    if random < 2:
        raise WorkbenchError(f"Expected 2 or more random prefixes, found {random}.")
    adapter = require_prefix(pair)
    words = pair.base.tokenizer()
    given = rows(words, prompts)
    require_halves(len(given))
    pick, report = (own.tolist() for own in halves(len(given), seed))
    with pair.models(device, named_dtype(dtype)) as run:
        layout = Layout(run.base)
        layers = layout.where("pattern") or [0]
        for layer in layers:  # says why not where no layer attends
            layout.check(Site("pattern", layer))
        layout.require_even("pattern", "give a model of even blocks")
        run.tuned.require_room(max(len(row.fed) for row in given))
        job = _Reading(run, layout, layers, given, pad_id(words), device, random, seed)
        with progress(total=len(given), desc="prefix") as bar:
            first = job.run(pick, batch_size, bar)
            second = job.run(report, batch_size, bar, first.sums)
        notes = [
            f"{pair.name}: {said_of_halves(pick, report, 'The directions')}",
            f"{pair.name}: {adapter.front}, in layers {layers[0]} to {layers[-1]}.",
        ]
    table = _table(first, second, layers, random, seed)
    table.insert(0, "member", pair.name)
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    parameters = {"prompts": describe(prompts), "random": random}
    provenance = pair.provenance(parameters=parameters, **known)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    total = first.tokens + second.tokens
    mean = [
        ((a[OWN].layer + b[OWN].layer) / total).cpu().numpy()
        for a, b in zip(first.sums, second.sums, strict=True)
    ]
    table = table.astype({"layer": "Int64", "head": "Int64"})
    return finished(KEY, table, provenance, {"bias": np.stack(mean)})


class _Found(NamedTuple):
    """Of some prompts. numbers: name -> (layer, head + 1, prompts), the last of the heads being the
    whole layer. sums: of each layer arm -> what it adds, over all of their tokens."""

    numbers: dict[str, Floats]
    sums: list[dict[str, Added]]
    tokens: float


class _Reading(NamedTuple):
    """Both sides, the layers that attend, and the prompts."""

    sides: Sides
    layout: Layout
    layers: Sequence[int]
    given: Sequence[Row]
    fill: int
    device: str
    random: int
    seed: int

    def run(
        self,
        places: Sequence[int],
        batch_size: int,
        bar: Any,
        directions: Sequence[Mapping[str, Added]] | None = None,
    ) -> _Found:
        """These prompts. directions: sums of other prompts, where the energy along them counts."""
        numbers: dict[str, Floats] = {}
        sums: list[dict[str, Added]] = [{} for _ in self.layers]
        tokens = 0.0

        def read(own: list[int]) -> tuple[list[dict[str, Tensor]], list[dict[str, Added]], float]:
            inputs = batch(self.given, [places[i] for i in own], self.device, self.fill)
            return self._batch(inputs, directions)

        lengths = [len(self.given[i].fed) for i in places]
        for at, (made, added, count) in in_batches(lengths, batch_size, read):
            for layer, (own, more) in enumerate(zip(made, added, strict=True)):
                for name, value in own.items():
                    shape = (len(self.layers), value.shape[1], len(places))
                    kept = numbers.setdefault(name, np.full(shape, np.nan))
                    kept[layer][:, at] = value.T.cpu().double().numpy()
                for arm, vectors in more.items():
                    sums[layer][arm] = vectors.plus(sums[layer].get(arm))
            tokens += count
            bar.update(len(at))
        return _Found(numbers, sums, tokens)

    def _batch(
        self, inputs: Batch, directions: Sequence[Mapping[str, Added]] | None
    ) -> tuple[list[dict[str, Tensor]], list[dict[str, Added]], float]:
        """Layer by layer the numbers of every prompt, (batch, head + 1), and the sums."""
        root, layers = self.layout.root, self.layers
        patterns = [Site("pattern", layer) for layer in layers]
        known: dict[str, Any] = {"use_cache": False, **last_alone(root)}
        if "position_ids" in inspect.signature(root.forward).parameters:
            places = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
            known["position_ids"] = (places + self.sides.tuned.adapter.count).expand_as(inputs.ids)
        with torch.no_grad(), capture(root, patterns) as base:
            self.sides.base(**inputs.inputs, **known)
        mixed = [Site("z", layer) for layer in layers]
        with (
            torch.no_grad(),
            capture(root, [*patterns, *mixed]) as seen,
            called(self.layout, layers) as calls,
        ):
            self.sides.tuned(**inputs.inputs)
        made, sums, real = [], [], inputs.mask.float()
        for number, (pattern, z) in enumerate(zip(patterns, mixed, strict=True)):
            own, before = Attended(seen.pop(pattern), seen.pop(z)), base.pop(pattern)
            layer = Layer(self.layout, calls.pop(layers[number]), own, real)
            found = layer.attention(Attended(before, own.z))
            chosen = None if directions is None else directions[number]
            numbers, added = layer.biases(self.random, self.seed, chosen)
            made.append(found | numbers)
            sums.append(added)
        return made, sums, float(real.sum())


def _table(
    first: _Found, second: _Found, layers: Sequence[int], random: int, seed: int
) -> pd.DataFrame:
    """All rows. first, second: of the half that chose directions and of the other."""
    both = {
        name: np.concatenate([own, second.numbers[name]], -1) for name, own in first.numbers.items()
    }
    heads = next(iter(both.values())).shape[1] - 1
    about = pd.DataFrame(
        {
            "layer": np.repeat(layers, heads + 1),
            "head": np.tile(np.array([*range(heads), np.nan]), len(layers)),
        }
    )
    tables = []
    rounding = _flat(both["tolerance"]).max(-1)
    for side in (SAME, RUNS):
        told = ratios(_flat(both[f"content_change/{side}"]), seed=seed)._asdict()
        largest = _flat(both[f"largest_content_change/{side}"])
        named = about.assign(side=side, baseline=rounding)
        tables.append(named.assign(metric="content_change", **told))
        tables.append(
            named.assign(
                metric="largest_content_change", value=largest.max(-1), n=largest.shape[-1]
            )
        )
    parts = {
        "prefix_mass": (both, "mass", None), "bias": (both, "bias", None),
        "bias_share": (both, "bias", "output"),
        "bias_direction": (second.numbers, "along", "energy"),
    }  # fmt: skip
    for metric, (numbers, top, bottom) in parts.items():
        by_arm = {
            arm: _quotients(numbers[f"{top}/{arm}"], bottom and numbers[f"{bottom}/{arm}"])
            for arm in arms(random)
        }
        own = ratios(*by_arm.pop(OWN), seed=seed)._asdict()
        if metric in SHARES:  # which rounding can take beyond 1
            own |= {name: np.minimum(own[name], 1) for name in ("value", "low", "high")}
        nulls = np.stack([ratios(*of, draws=1).value for of in by_arm.values()])
        low, high = _range(nulls, metric in SHARES)
        null = {"baseline": nulls.mean(0), "null_low": low, "null_high": high}
        tables.append(about.assign(side="tuned", metric=metric, **own, **null))
    return pd.concat(tables, ignore_index=True)


def _range(nulls: Floats, shares: bool) -> tuple[Floats, Floats]:
    """Where another random prefix lies with probability 0.95, of (draws, places): predicted on
    logits of shares, on logarithms of all else, since a mass is a softmax's and far from normal."""
    known = np.clip(nulls, SMALL, 1 - ROUNDING if shares else None)
    drawn = np.log(known) - (np.log1p(-known) if shares else 0)
    ends = predicted(drawn.mean(0), drawn.var(0, ddof=1), len(drawn))
    low, high = (1 / (1 + np.exp(-end)) if shares else np.exp(end) for end in ends)
    # Behind a prefix of one token all biases have one direction, whichever it is.
    return low, np.where(shares & (high > 1 - 2 * ROUNDING), 1.0, high)


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])


def _quotients(top: Floats, bottom: Floats | None) -> tuple[Floats, Floats | None]:
    """Tops and bottoms in the unit of the bottoms' own mean, since small ones are not zero."""
    if bottom is None:
        return _flat(top), None
    above, below = _flat(top), _flat(bottom)
    unit = below.mean(-1, keepdims=True)
    unit = np.where(unit > 0, unit, 1)
    return above / unit, below / unit
