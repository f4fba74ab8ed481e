"""Steering: does one direction, added to the base, do what fine-tuning did?

Behind layer l the direction is a mean difference of the residual stream at the last prompt token,

    v_l = mean over prompts of (tuned - base)        or, within the base,
    v_l = mean over prompts - mean over `against`    (activation addition, arXiv 2308.10248)

and the base runs with alpha v_l added to its stream at every token. Beside each stand random
directions of the same norm; the tuned model runs with v_l taken out of its stream (directional
ablation, Arditi et al. 2024, arXiv 2406.11717, here behind one layer). One half of the prompts
gives the directions and chooses layer and scale, the other half is what all numbers are of.
Beside them the base runs with `amplified` times the change of all its weights, above 1 more than
fine-tuning gave; `tuco.scaling` does the like of what blocks contribute.

It misleads where the norm of the direction is large beside the stream's: any push that strong
breaks the model, so compare with the random ones. A direction that steers need not be the one that
the tuned model uses; the ablation tells whether it needs it. A mean says nothing of a change that
differs from prompt to prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Site
from workbench.models.memory import tell_base_again
from workbench.models.sides import Sides, named_dtype
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.direction import KEY, Direction, tensor_key
from workbench.patching.states import streams
from workbench.patching.steering import (
    BASE,
    BEST,
    METRICS,
    RANDOM,
    STEERED,
    TUNED,
    Key,
    Steering,
    Values,
    as_prompts,
)
from workbench.patching.sweep import require_batches
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import halves, ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, pad_id, rows
from workbench.tasks.prompts import require_halves

SCALES = (0.0, 0.5, 1.0, 2.0)


@analysis(
    "Does one direction, added to the base, do what fine-tuning did?",
    paper="arXiv 2308.10248, 2312.06681, 2406.11717",
    example="--prompts task.jsonl",
    passes=60,
    takes={"prompts": "task"},
    few={"prompts": 48, "against": 48},
)
def steer(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    against: PromptSet | Sequence[Prompt | str] | None = None,
    layers: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    amplified: Sequence[float] = (),
    random: int = 3,
    shown: int = 3,
    length: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Add the mean difference of activations to the base, and take it out of the tuned model.

    prompts: at least 4 prompts with answers; in plain texts the answer is the token that the tuned
    model predicts next. One half gives the directions, the other the numbers. against: prompts
    whose mean in the base is taken off instead of the base's on the same prompts. layers: behind
    which the direction is added, each by itself; None takes all. scales: multiples of the direction
    that are added. amplified: factors on the change of all weights with which the base is run
    beside; needs the base in memory once more. random: directions of equal norm, as a control.
    shown: prompts that are also continued with the best layer and scale. length: the most tokens of
    such a text. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 48 prompts; with --full all of them.

    Returns a Result with columns arm, layer, x (the scale), metric: `score` (fraction right),
    `log_probability` (nats, of the answer), `logit_difference` (to the best foil) and `kl_tuned`
    (nats, KL(tuned || arm)), means over the half that reports with 95% bootstrap intervals, n;
    baseline: the base's. Arms: "base", "tuned"; "steered" and "random" (the mean over the random
    directions); "amplified" (x: the factor; 1 is the tuned model); "ablated", the tuned model
    without the direction, and "ablated random"; "best", the layer and scale whose answer is
    likeliest on the half that chooses, and the metric `beyond_random:log_probability`, its gain
    over the random directions prompt by prompt. Per layer `norm` of the direction, baseline: the
    stream's mean norm. `text` (prompt, arm, text; value: 1 if it holds the answer). The directions
    are in the tensors: `Direction.of(result, member, layer)` adds one to any model, saves and loads
    it. Raises WorkbenchError for fewer than 4 prompts, layers that there are not, or numbers that
    are out of range.
    """
    _require(scales, amplified, random, shown, length)
    require_batches(batch_size)
    words = pair.base.tokenizer()
    given, other = answered(words, prompts), None if against is None else rows(words, against)
    require_halves(len(given))
    pick, report = (np.sort(half) for half in halves(len(given), seed))
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, TUNED, given, words, batch_size, device)
        depth = run.layout.layers
        unknown = [layer for layer in layers or () if not 0 <= layer < depth]
        if unknown:
            raise WorkbenchError(f"There is no layer {unknown[0]}; give layers 0 to {depth - 1}.")
        known: dict[str, Any] = {
            "fill": pad_id(words), "batch_size": batch_size, "device": device
        }  # fmt: skip
        made, sizes = _directions(run, [given[i] for i in pick], other, layers, known, pair.name)
        if amplified:
            tell_base_again(pair, device, named_dtype(dtype))
        job = Steering(run, given, made, tuple(scales), random, seed, known)
        values = job.run()
        layer, scale = _chosen(values, pick)
        first = as_prompts([list(prompts)[i] for i in report[:shown]])
        written = job.written(first, layer, scale, words, length)
        more, texts = job.amplified(pair, amplified, first, words, length)
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    notes.append(
        f"{pair.name}: the directions and the best layer and scale are from {len(pick)} prompts, "
        f"the numbers from the other {len(report)}."
    )
    table = pd.DataFrame(
        [*_table(values | more, report, layer, scale, seed), *sizes, *written, *texts]
    )
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "against": describe(against), "layers": list(made),
        "scales": list(scales), "amplified": list(amplified), "random": random, "shown": shown,
        "length": length,
    }  # fmt: skip
    provenance = pair.provenance(
        parameters=parameters, seed=seed, device=str(device), dtype=dtype or "as stored"
    )
    return finished(
        KEY,
        table.astype({"layer": "Int64"}),
        provenance.with_notes((*provenance.notes, *notes)),
        {tensor_key(layer): own.vector for layer, own in made.items()},
    )


def _require(
    scales: Sequence[float], amplified: Sequence[float], random: int, shown: int, length: int
) -> None:
    if not np.isfinite(list(amplified)).all() or len({*amplified}) < len(amplified):
        raise WorkbenchError(f"Expected different factors as amplified, found {list(amplified)}.")
    if not scales or not np.isfinite(list(scales)).all() or len({*scales}) < len(scales):
        raise WorkbenchError(f"Expected one or more different scales, found {list(scales)}.")
    for name, number, least in (("random", random, 1), ("shown", shown, 0), ("length", length, 1)):
        if number < least:
            raise WorkbenchError(f"Expected {name} to be {least} or more, found {number}.")


def _directions(
    run: Sides,
    given: Sequence[Row],
    against: Sequence[Row] | None,
    layers: Sequence[int] | None,
    known: Mapping[str, Any],
    name: str,
) -> tuple[dict[int, Direction], list[dict[str, Any]]]:
    """Layer -> its direction, and the rows of the directions' norms."""
    base = streams(run.base, given, label="base states", **known)
    if against is None:
        first, second = streams(run.tuned, given, label="tuned states", **known), base
    else:
        first, second = base, streams(run.base, against, label="states against", **known)
    made, sizes = {}, []
    for layer in range(run.layout.layers) if layers is None else sorted({*layers}):
        vector = (first[layer + 1].mean((0, 1)) - second[layer + 1].mean((0, 1))).astype(np.float32)
        made[layer] = Direction(f"{name}, layer {layer}", Site("resid_post", layer), vector)
        size = float(np.linalg.norm(base[layer + 1][:, 0], axis=1).mean())
        about = {"metric": "norm", "value": made[layer].norm, "baseline": size}
        sizes.append({"arm": STEERED, "layer": layer} | about)
    return made, sizes


def _chosen(values: Mapping[Key, Values], pick: NDArray[np.intp]) -> tuple[int, float]:
    """Layer and scale whose answer is likeliest on the prompts that choose; the first of equals."""
    means = {
        (layer, scale): float(np.mean(own["log_probability"][pick]))
        for (arm, layer, scale), own in values.items()
        if arm == STEERED and layer is not None and scale is not None
    }
    return max(means, key=lambda key: means[key])


def _table(
    values: Mapping[Key, Values],
    report: NDArray[np.intp],
    layer: int,
    scale: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Means over the prompts that report."""
    base, best = values[BASE, None, None], values[STEERED, layer, scale]
    for (arm, at, x), own in [*values.items(), ((BEST, layer, scale), best)]:
        about = {"arm": arm, "layer": at, "x": x}
        found = ratios(np.stack([own[metric][report] for metric in METRICS]), seed=seed)
        for number, metric in enumerate(METRICS):
            row = {name: part[number] for name, part in found._asdict().items()}
            if not row["n"]:
                continue  # no prompt has foils
            null = float(np.nanmean(base[metric][report]))
            name = "kl_tuned" if metric == "kl" else metric
            yield about | {"metric": name, "baseline": null} | row
    gain = best["log_probability"] - values[RANDOM, layer, scale]["log_probability"]
    about = {"arm": BEST, "layer": layer, "x": scale, "baseline": 0.0}
    found = ratios(gain[report], seed=seed).first
    yield about | {"metric": "beyond_random:log_probability"} | found._asdict()
