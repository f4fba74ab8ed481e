"""Preflight questions of an adapter: is it this base's, and does it change anything?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import some
from workbench.loaders.adapters import CONVERT, SoftPrompt
from workbench.loaders.names import align
from workbench.loaders.pair_report import NOTE, OK, STOP, WARN, Line
from workbench.loaders.weights import has_weights

if TYPE_CHECKING:
    from workbench.loaders.pair import CheckpointPair

# How quantised and converted copies of a model are called after it.
QUANTISED = re.compile(
    r"[-_.](unsloth|bnb|gguf|awq|gptq|exl2|mlx|fp8|fp16|bf16|f16|f32|hf|dynamic|int[48]|[48]bit|"
    r"i?q\d(_\w+)*)(?=[-_.]|$)"
)


def _declared(pair: CheckpointPair, named: str) -> tuple[str, str, str]:
    """Whether the base that an adapter declares is the one it is given."""
    if not named:
        return NOTE, "it declares no base", ""
    given, adapter = pair.base.reference, pair.tuned.adapter
    if not isinstance(given, str | Path):
        return OK, f"declares {named}", ""
    places = [Path(named), Path(str(adapter)) / named]
    there = [place.resolve() for place in places if os.path.exists(place)]
    if Path(given).resolve() in there:
        return OK, f"declares {named}", ""
    if there:
        return (
            WARN,
            f"it declares {named}, which is another folder than the base",
            "Give its own base.",
        )
    if _bare_name(named) == _bare_name(given):
        return OK, f"declares {named}", ""
    return WARN, f"it declares {named}, which is another name than the base's", "Give its own base."


def _bare_name(reference: str | Path) -> str:
    """A model's name without owner, punctuation, case, and how it is quantised or stored."""
    name = re.sub(r"@.*$", "", Path(reference).name.lower())
    name = re.sub(QUANTISED, "", name)
    return re.sub(r"[^a-z0-9]", "", name)


def which(pair: CheckpointPair) -> Iterator[Line]:
    """What of a folder that holds an adapter and whole weights is read."""
    for side in dict.fromkeys((pair.base, pair.tuned)):
        folder = Path(side.adapter) if side.adapter else side.folder
        if folder is None or not os.path.exists(folder / "adapter_config.json"):
            continue
        if side.adapter is None:
            found = f"{side.name} holds whole weights and an adapter_config.json"
            remedy = "The whole weights are compared; to run them, move the adapter's files away."
            yield "adapter", WARN, found, remedy
        elif has_weights(folder):
            found = f"{side.adapter} holds an adapter and whole weights"
            remedy = "The adapter is used; keep the two in separate folders."
            yield "adapter", WARN, found, remedy


def keys(pair: CheckpointPair) -> Iterator[Line]:
    """Which base it names, and whether what it changes is in this one."""
    lora = pair.tuned.lora
    if lora is None:
        return
    named = lora.config.get("base_model_name_or_path")
    yield "adapter's base", *_declared(pair, str(named or ""))
    tied = bool(pair.tuned.config.get("tie_word_embeddings"))
    changed = [*lora.modules, *lora.own_tokens(tied)]
    lost = [m for m in changed if m not in _placed(pair)]
    lost += [p for p in lora.replaced if p not in set(pair.replaced.values())]
    if lost:
        all_lost = not _placed(pair) and not pair.replaced
        remedy = "Give the base it was trained on."
        if not all_lost:
            remedy = (
                "Analyses of the weights do not see them, but a run of the model may; "
                "check the base."
            )
        found = f"{len(lost)} adapter keys match nothing in the base: {some(lost)}"
        yield "adapter keys", STOP if all_lost else WARN, found, remedy
    else:
        found = f"{len(set(pair.adapted))} adapted, {len(pair.replaced)} replaced"
        if isinstance(lora, SoftPrompt):
            found = lora.front
        yield "adapter keys", OK, found, ""
    fresh = fresh_biases(pair)
    if fresh:
        found = (
            f"the adapter gives {len(fresh)} modules a bias that the base does not have, {fresh[0]}"
        )
        yield (
            "adapter's biases",
            NOTE,
            found,
            "Analyses of the weights do not see them, but a run does.",
        )


def fresh_biases(pair: CheckpointPair) -> list[str]:
    """Biases that the adapter gives to modules which have none in the base."""
    lora = pair.tuned.lora
    if lora is None:
        return []
    own = {f"{module}.bias": module for module in lora.own_biases}
    here = {target for target in pair.targets.values() if target.leaf == "bias"}
    known = {target.module for target in here}
    return [name for name, module in own.items() if module in _placed(pair) - known]


def unformed(pair: CheckpointPair) -> bool:
    """Whether there are no tuned weights to compare, only a tuned model to run."""
    return pair.tuned.lora is not None and bool(pair.tuned.lora.kind.unformed)


def _placed(pair: CheckpointPair) -> set[str]:
    """Modules of the adapter that the base has."""
    lora = pair.tuned.lora
    assert lora is not None
    homes = align(list(pair.tuned.weights()), [f"{m}.weight" for m in lora.changed_modules])
    return {*pair.adapted.values()} | {name.removesuffix(".weight") for name in homes.values()}


def start(pair: CheckpointPair) -> Iterator[Line]:
    """Whether the base was rewritten before the adapter was trained."""
    lora = pair.tuned.lora
    if lora is None:
        return
    if lora.rewrites:
        found = f"it is initialised by {lora.rewrites}, which rewrites the base before training"
        yield "adapter's start", STOP, found, f"{CONVERT[0].upper()}{CONVERT[1:]}."


def shapes(pair: CheckpointPair) -> Iterator[Line]:
    """Whether its changes have the shapes of the base's parameters."""
    for parameter, module in pair.adapted.items():
        ours, theirs = pair.tuned.weights().info[parameter].shape, pair.tuning.shape(parameter)
        if theirs is not None and theirs not in (ours, ours[::-1]):
            found = f"the adapter changes {module} by {theirs}, but the base has {ours}"
            yield "adapter shapes", STOP, found, "Give the base this adapter was trained on."
            return


def effect(pair: CheckpointPair) -> Iterator[Line]:
    """Whether it changes anything, as far as its factors tell."""
    lora = pair.tuned.lora
    if lora is None or any(shapes(pair)):
        return
    if unformed(pair):
        found = f"it is an adapter of {lora.kind.name}: {lora.kind.unformed}"
        remedy = "Analyses of the weights cannot run; analyses that run the model can."
        if isinstance(lora, SoftPrompt):
            remedy = f"Analyses of weights or of places in the model cannot run; {lora.applies}."
        yield "adapter's change", NOTE, found, remedy
        return
    factored = [name for name in pair.targets if pair.tuning.is_factored(name)]
    if len(factored) < len(pair.targets):
        return
    empty = 0
    for name in factored:
        factors = pair.tuning.factors(name)
        empty += not (factors.up.any() and factors.down.any())
    if empty:
        found = f"BA = 0 in {empty} of {len(factored)} adapted modules"
        yield (
            "adapter effect",
            WARN,
            found,
            "These modules are untrained and equal the base exactly.",
        )
