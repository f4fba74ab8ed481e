"""Activation patching: which places does the answer depend on, in each model of a pair?

A clean prompt and a corrupt partner are run on one model. Denoising puts a clean activation into
the corrupt run, noising a corrupt one into the clean run; the answer is scored on the scale

    recovered = sum(patched - corrupt) / sum(clean - corrupt)          0: corrupt, 1: clean

over prompts (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; on the two
directions Heimersheim & Nanda 2024, arXiv 2404.15255). It misleads if the corrupt prompt takes the
model away from its usual inputs, if another component replaces a noised one (backup heads), and if
clean and corrupt runs hardly differ, which the result notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout
from workbench.models.sides import named_dtype
from workbench.patching import patches as places
from workbench.patching import places as meant
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.answered import answered
from workbench.patching.metrics import Asked, measures, metric_of
from workbench.patching.patches import Patch, Position, Where
from workbench.patching.per_prompt import stored_sweep
from workbench.patching.replacements import (
    ABLATIONS,
    CORRUPTED,
    OTHER,
    Replacement,
    Running,
    With,
    require_with,
)
from workbench.patching.strongest import controlled
from workbench.patching.sweep import Side
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.tasks import Prompt, PromptSet, corrupt
from workbench.tasks.batching import Row, pad_id

Direction = Literal["denoising", "noising"]
SIDES = ("base", "tuned")
KNOWN = (CORRUPTED, OTHER, *ABLATIONS)
KEY = "patching.activation"


@analysis(
    "Which places inside each model does its answer depend on?",
    paper="arXiv 2202.05262, 2404.15255",
    example="--prompts boxes.jsonl --sites resid_pre,z",
    passes=60,
    plans=True,
    takes={"prompts": "task", "corrupted": "corrupted"},
    few={"prompts": 24, "corrupted": 24},
)
def activation(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    sites: Sequence[Where] | Where = ("resid_pre",),
    positions: Sequence[Position] | Position = "named",
    sides: Sequence[str] = SIDES,
    direction: Direction = "denoising",
    with_: With = "corrupted",
    window: int = 1,
    metric: Asked | None = None,
    controls: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Patch clean activations into corrupt runs (or the reverse) at every place, in both models.

    prompts: clean prompts with answers. corrupted: the corrupt partner of each prompt, in the same
    order; for boxes prompts it can be left out and is then generated (`tasks.corrupt`). sites: what
    is replaced: kinds of sites, "neuron", kinds joined by "+", or single sites (see
    `patching.patches`). positions: "named" (every named place the prompts share, and the last
    token), "all" (all tokens at once), "each" (every token in turn, for prompts of one length), or
    a list of these, of names, of counts and of places as in `patching.places` ("subject:last",
    "city<-country"). sides: the models that are patched: base, tuned.
    direction: "denoising" puts clean activations into the corrupt run, "noising" the reverse.
    with_: what the clean run is patched with: "corrupted", its partner's activations, or "zero",
    "mean", "mean_position", "resample" or "other" (the other model's on the same prompt) of
    `patching.replacements`; these are put into the clean run, whatever the direction.
    window: the number of layers that are replaced together. metric: what picks and sorts, a name of
    `patching.metrics` ("logit_difference foil=mean", "log_probability", "probability", "rank",
    "kl", "score") or a function metric(logits, batch) -> (rows,); None for the logit difference,
    or without foils the log-probability. controls: the number of strongest
    patches of each component that are picked on a random half of the prompts, reported on the other
    half, and repeated there with the activations of a prompt that has another answer. dtype:
    "float32" or "bfloat16"; None means as stored. large: run even if the plan takes over an hour,
    or more memory than is free.

    The command line takes 24 prompts of a file, with --full all of them.

    Returns a Result with columns side, component, layer, head, neuron, position, arm, metric. Arm
    "patch": `logit_difference`, `log_probability` (nats), `score` (fraction right), `metric` where
    it is another, and `recovered:` each of them (0 corrupt, 1 clean; paired ratio of sums);
    "picked" and "shuffled": the strongest patches on the other half, with their own and with
    another prompt's activations; "random": what a random place of the component gives;
    "destination" and "source": the unpatched runs. 95% intervals over prompts, n. tensors: the
    values of every single prompt, see `patching.per_prompt`. The notes state the cost. Raises
    WorkbenchError for partners that do not fit.
    """
    if direction not in ("denoising", "noising"):
        raise WorkbenchError(f"Expected direction denoising or noising, found {direction!r}.")
    require_with(with_, KNOWN)
    require_sides(sides)
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        where = places.default_positions(clean) if positions == "named" else positions
        named = meant.asked(where, sites)
        if with_ != CORRUPTED:
            meant.require_one_run(named, with_)
        chosen = places.patches(
            Layout(run.tuned), sites, places.resolved(clean, where), window=window
        )
        shared.require_some(chosen)
        for side in sides:
            model, other = (run.base, run.tuned)[:: 1 if side == "base" else -1]
            runs = Side(model, clean), Side(model, dirty)
            denoising = direction == "denoising" and with_ == CORRUPTED
            source, destination = runs if denoising else runs[::-1]
            ours, theirs = meant.placed(named, destination.rows, source.rows)
            source, destination = Side(model, theirs), Side(model, ours)
            stands = None
            if with_ != CORRUPTED:
                kinds = [site for patch in chosen for site in patch.sites]
                how = Running(pad_id(words), batch_size, device)
                stands = Replacement.of(
                    with_, model, ours, kinds, how, giver=(other, ours), seed=seed
                )
            options: dict[str, Any] = {
                "batch_size": batch_size, "device": device, "label": f"patch {side}",
                "large": large, "metric": judge, "replaced": stands,
            }  # fmt: skip
            table, told, values = _one_side(
                destination, source, chosen, words, denoising, controls, seed, options
            )
            tables.append(table.assign(side=side))
            tensors |= stored_sweep(side, values)
            notes += [f"{pair.name}, {side}: {note}" for note in told]
        notes.append(f"{pair.name}: {run.described}")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "sites": describe(sites),
        "positions": describe(positions), "sides": list(sides), "direction": direction,
        "with_": with_, "window": window, "metric": describe(metric),
        "tokens": tokens_of(clean, words),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


def _one_side(
    destination: Side,
    source: Side,
    chosen: Sequence[Patch],
    words: Any,
    denoising: bool,
    controls: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[pd.DataFrame, list[str], shared.Sweep]:
    """One model's rows and notes, and the sweep they are of."""
    metric = options["metric"]
    asked = measures(metric)

    def scale(made: shared.Sweep) -> tuple[shared.Values, shared.Values]:
        zero, one = made.destination, made.source
        return (zero, one) if denoising else (one, zero)

    def rows_of(made: shared.Sweep, patches: Sequence[Patch], arm: str) -> pd.DataFrame:
        zero, one = scale(made)
        return sweep_rows.summary(
            made, patches, zero=zero, one=one, arm=arm, seed=seed, measures=asked
        )

    def shuffled(patches: Sequence[Patch]) -> shared.Sweep:
        return shared.sweep(destination, source, patches, words, shuffled=True, **options)

    made = shared.sweep(destination, source, chosen, words, **options)
    zero, one = scale(made)
    table = rows_of(made, chosen, "patch")
    beside, told = controlled(
        made, chosen, table, rows_of, shuffled, zero=zero, most=controls, seed=seed,
        metric=metric,
    )  # fmt: skip
    plain = sweep_rows.plain(made, seed=seed, measures=asked)
    parts = [table, plain, sweep_rows.random_site(table), *beside]
    cost = f"{len(chosen)} patches cost {made.forwards:.1f} plain forward passes of the prompts."
    said = sweep_rows.meaningful(zero, one, "Clean and corrupt runs", seed, measures=asked)
    return pd.concat(parts, ignore_index=True), [cost, *told, *said], made


def asked(prompts: PromptSet | Sequence[Prompt]) -> PromptSet:
    """Prompts with answers. Raises for plain texts: what a prompt and its partner are scored on is
    not for either of the runs to say."""
    bare = [prompt for prompt in prompts if not isinstance(prompt, Prompt)]
    if bare:
        raise WorkbenchError(
            "Expected prompts with answers (tasks.Prompt), found "
            f"{str(bare[0])[:40]!r}; give each text its target, on which a patched run is scored."
        )
    return prompts if isinstance(prompts, PromptSet) else PromptSet("prompts", tuple(prompts))


def partners(
    words: Any, prompts: PromptSet, corrupted: PromptSet | None, seed: int
) -> tuple[list[Row], list[Row], PromptSet]:
    """Rows of the prompts and of their corrupt partners, scored alike, and the partners; None makes
    them. Raises where they cannot be partners."""
    corrupted = corrupted if corrupted is None else asked(corrupted)
    if corrupted is None:
        corrupted = corrupt(prompts, seed, tokenizer=words)
    if len(prompts) != len(corrupted):
        raise WorkbenchError(
            f"Expected a corrupt partner for each of {len(prompts)} prompts, found "
            f"{len(corrupted)}; give one for each, in their order."
        )
    clean, dirty = (answered(words, one) for one in (prompts, corrupted))
    for one, other, prompt in zip(clean, dirty, prompts, strict=True):
        if one.answer != other.answer:
            raise WorkbenchError(
                f"Prompt {prompt.id!r} and its corrupt partner have different targets; "
                "a patched run is scored on the clean prompt's answer, so give the "
                "partner the same target."
            )
    # Both runs are scored against one set of foils.
    dirty = [replace(b, foils=a.foils, wrong=a.wrong) for a, b in zip(clean, dirty, strict=True)]
    return clean, dirty, corrupted


def require_sides(sides: Sequence[str]) -> None:
    """Raises unless these are sides of a pair."""
    if not sides or not set(sides) <= set(SIDES):
        raise WorkbenchError(f"Expected sides base, tuned or both, found {list(sides)}.")


def tokens_of(clean: Sequence[Row], words: Any) -> list[str]:
    """The first prompt's tokens, which label the positions where all prompts are of one length."""
    if len({len(row.ids) for row in clean}) > 1:
        return []
    return [words.decode([token]) for token in clean[0].ids]
