"""What would a method say of a change that learned nothing? Phantoms: members without an objective.

A phantom of a pair keeps what a method could mistake for a finding and drops what was learned:

    spectrum  the change of every matrix with its own singular values, so its own norm and rank, in
              Haar-random directions: U S V^T becomes P S Q^T with P, Q drawn anew
    layers    every layer's change moved to another layer of the same shape: its very values, where
              they mean nothing
    recipe    the same recipe trained on the same questions with their answers shuffled

and is an ordinary model of the same modules, ranks and stored precision, on which every public call
runs. A method that finds a skill, a circuit or a verdict in it would have found one anywhere. Of a
prefix (keys and values, no change of weights) "spectrum" keeps the norm of every key and value, per
layer, head and virtual token, in random directions.

When it misleads: random directions also miss what any training does, as to follow the base's
largest activations, so "spectrum" is further from a trained change than "recipe", which costs a
training run and still learns the wording; a layer's change may do elsewhere part of what it did.
In 16 bits a change of full weights is kept as far as its precision can: small entries round to
nothing, the norm is held, the singular values are near; phantom.json says how near.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import read_json
from workbench.files.writing import OWN, Mark, replacing, require_free, writing
from workbench.lab.directions import exchanged, redirected, redirected_factors
from workbench.lab.members import adapter_of, plain_lora, whole_of
from workbench.lab.prefixes import norms_of, numbers_of, prefix_of, redrawn, write_prefix
from workbench.lab.recipe import Recipe
from workbench.lab.train import train
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.adapters import Factors, SoftPrompt
from workbench.loaders.adapters.lora import Lora
from workbench.loaders.names import locate
from workbench.loaders.quantised import quantisation
from workbench.log import log
from workbench.results import cache
from workbench.results.recipes import phantoms_of
from workbench.rotations import own_noise
from workbench.tasks.prompts import PromptSet
from workbench.tasks.transforms import shuffled

Keep = Literal["spectrum", "layers", "recipe"]
ABOUT = "phantom.json"
FORMAT = 1  # of what is written; another number makes those in the cache anew
TRIES = 4  # of a scale with which a rounded change has its norm
EXACT = 1e-6  # a deviation of a norm that float32 does not tell
CLOSE = 0.01  # a deviation of a norm above which a warning is given
PHANTOM = Mark("a phantom", lambda folder: (folder / ABOUT).is_file())


def phantom(
    pair: CheckpointPair,
    out: str | Path,
    *,
    keep: Keep = "spectrum",
    texts: PromptSet | None = None,
    seed: int = 0,
) -> Path:
    """Write a member that learned nothing, in the likeness of the pair's, to the folder `out`;
    returns `out`.

    keep: what it has of the member: "spectrum" (norms, ranks and singular values, in random
    directions; what did not change, rows of a matrix too, stays), "layers" (the very values, each
    layer's in another; what no other layer has is drawn as for "spectrum") or "recipe" (how it was
    trained, by its training.json, on `texts` with shuffled answers). texts: what the member was
    trained on. seed: of the directions, of the exchange of layers, or of shuffling and training.

    The phantom of a LoRA is a LoRA of the same modules, ranks and precision, which peft loads, and
    of a prefix (prefix tuning, cartridges) a prefix of as many virtual tokens, whose keys and
    values have the norms of the member's, of each layer, head and token, in random directions; of
    any other member that changes weights, an adapter of another kind too, it is a folder of whole
    weights, shard by shard as the member's. phantom.json says what it was made of, and how far its
    norms are from the member's. One that is there already is kept. Raises WorkbenchError before any
    work for a member that is in memory, quantised, equal to its base or that changes no weights;
    where no two layers can be exchanged; where a recipe is not known or goes on from another
    member's; and where `out` holds anything else.
    """
    out = Path(out)
    require_free(out, PHANTOM)
    _require(pair, keep, texts)
    about: dict[str, Any] = {
        "format": FORMAT, "keep": keep, "seed": seed, "of": pair.tuned.fingerprint,
        "base": pair.base.fingerprint, "member": pair.name,
    }  # fmt: skip
    if keep == "recipe":
        assert texts is not None
        about["texts"] = texts.fingerprint
    if (out / ABOUT).is_file():
        _require_same(about, out)
        return out
    if keep == "recipe":
        assert texts is not None
        _trained(pair, out, texts, about)
        return out
    lora, prefix = plain_lora(pair), prefix_of(pair)
    with replacing(out, PHANTOM) as fresh:
        if prefix is not None:
            norms = _prefix(pair, prefix, fresh, out, about)
        elif lora is not None:
            norms = _adapter(pair, lora, fresh, out, about)
        else:
            norms = _whole(pair, fresh, about)
        off = max((abs(made / wanted - 1) for wanted, made in norms.values()), default=0.0)
        if off > CLOSE:
            log.warning(
                "The change of %s is so small beside its stored precision that a norm of its "
                "phantom is off by %.1f%%.", pair.name, 100 * off,
            )  # fmt: skip
        about |= {"changed": len(norms), "largest_deviation_of_a_norm": off}
        (fresh / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return out


def phantoms(
    pair: CheckpointPair, count: int, *, keep: Keep = "spectrum", seed: int = 0
) -> dict[str, Checkpoint]:
    """So many phantoms of a pair, in the cache folder; made where they are not there yet.

    They are called "phantom of NAME/1" and so on: several runs of one recipe, as
    `workbench.results.recipes` reads names. A changed pair makes new ones. Raises as `phantom`.
    """
    made = {}
    for number, name in enumerate(names(pair.name, count)):
        own = [FORMAT, pair.base.identity, pair.tuned.identity, keep, seed + number]
        place = cache.folder("phantoms", cache.digest([json.dumps(own).encode()])[:32])
        cache.made_in(place, partial(phantom, pair, place, keep=keep, seed=seed + number))
        is_lora = (place / "adapter_config.json").exists()
        base = pair.base
        made[name] = (
            Checkpoint(base.reference, str(place), base.revision) if is_lora
            else Checkpoint(str(place))
        )  # fmt: skip
    return made


def names(member: str, count: int) -> list[str]:
    """What the phantoms of a member are called."""
    return [f"{phantoms_of(member)}/{number}" for number in range(1, count + 1)]


def _require(pair: CheckpointPair, keep: str, texts: PromptSet | None) -> None:
    if keep not in get_args(Keep):
        raise WorkbenchError(f"Expected keep {', '.join(get_args(Keep))}, found {keep!r}.")
    if prefix_of(pair) is None:
        pair.require_weights()
    if pair.base.folder is None or pair.tuned.folder is None:
        raise WorkbenchError(
            f"{pair.name} or its base is a model in memory, and a phantom is written like the "
            "member's files; save both with save_pretrained and give the folders."
        )
    for side in () if plain_lora(pair) or prefix_of(pair) else (pair.base, pair.tuned):
        if kind := quantisation(side.config):
            raise WorkbenchError(
                f"{side.name} is quantised ({kind}), and a phantom is drawn from plain weights; "
                "give the checkpoint it was made from."
            )
    if pair.same:
        raise WorkbenchError(
            f"{pair.name} has the weights of its base, so there is no change to make a phantom of."
        )
    if keep == "recipe" and texts is None:
        raise WorkbenchError(
            "A phantom that keeps the recipe is trained: give texts= (--prompts), what "
            f'{pair.name} was trained on, or keep="spectrum".'
        )


def _require_same(about: Mapping[str, Any], out: Path) -> None:
    there = read_json(out / ABOUT)
    if any(there.get(key) != value for key, value in about.items()):
        raise WorkbenchError(
            f"{out} holds a phantom of another pair, kind or seed; remove the folder or choose "
            "another one."
        )


def _drawn(
    names: Mapping[str, tuple[int | None, str, tuple[int, ...]]], about: Mapping[str, Any]
) -> dict[str, str]:
    """What is moved, by what gets it; nothing where all directions are drawn."""
    if about["keep"] != "layers":
        return {}
    moved = exchanged(names, about["seed"])
    if not moved:
        raise WorkbenchError(
            f"No two layers of {about['member']} have changes of the same components and shapes "
            'that could be exchanged; use keep="spectrum".'
        )
    return moved


def _adapter(
    pair: CheckpointPair, lora: Lora, fresh: Path, out: Path, about: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Write a LoRA; module -> the norm of the member's change and of this one's."""
    sites = locate(f"{module}.weight" for module in lora.modules)
    parts = {}
    for module in lora.modules:
        site = sites[f"{module}.weight"]
        parts[module] = (site.layer, site.component, (*lora.shape(module), lora.ranks[module]))
    moved = _drawn(parts, about)

    def change(module: str) -> Factors:
        if module in moved:
            return lora.factors(moved[module])
        return redirected_factors(lora.factors(module), own_noise(module, about["seed"]))

    made = adapter_of(lora, change, pair.base, fresh, out)
    return {
        module: (lora.factors(moved.get(module, module)).norm, norm)
        for module, norm in made.items()
        if norm or lora.factors(module).norm
    }


def _prefix(
    pair: CheckpointPair, own: SoftPrompt, fresh: Path, out: Path, about: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Write a prefix; layer, head and token -> the norms of the member's key or value and of this
    one's."""
    numbers = numbers_of(own)
    shape = tuple(numbers.shape[1:])
    moved = _drawn({str(at): (at, "prefix", shape) for at in range(len(numbers))}, about)
    wanted = numbers[[int(moved.get(str(at), at)) for at in range(len(numbers))]]
    made = wanted if moved else redrawn(wanted, about["seed"])
    write_prefix(made, own.config, pair.base, fresh, out)
    there = norms_of(made)
    return {name: (norm, there[name]) for name, norm in norms_of(wanted).items() if norm}


def _whole(
    pair: CheckpointPair, fresh: Path, about: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Write whole weights; parameter -> the norm of the member's change and of this one's."""
    sites = {site.name: site for site in pair.sites("all")}
    changed = [name for name, site in sites.items() if pair.delta(site).changed]
    moved = _drawn({n: (*_placed(sites[n]), pair.shape(n)) for n in changed}, about)

    def change(name: str) -> Tensor | None:
        if name not in changed:
            return None
        found = pair.delta(sites[moved.get(name, name)]).change.double()
        if name in moved:
            return found
        column = found[:, None] if found.ndim == 1 else found
        return redirected(column, own_noise(name, about["seed"])).view_as(found)

    norms: dict[str, float] = {}

    def stored(name: str, dtype: torch.dtype) -> Tensor | None:
        found = change(name)
        if found is None:
            return None
        rounded, norms[name] = _rounded(pair.delta(sites[name]).base, found, dtype)
        return rounded

    whole_of(pair, stored, fresh)
    return {name: (pair.delta(sites[moved.get(name, name)]).norm, norms[name]) for name in norms}


def _rounded(base: Tensor, change: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """base + s change at a precision, with the s near 1 by which the change keeps its norm, and the
    norm it has."""
    base, wanted, scale = base.double(), float(change.norm()), 1.0
    best: tuple[float, Tensor, float] | None = None
    for _ in range(TRIES):
        made = (base + scale * change).to(dtype)
        norm = float((made.double() - base).norm())
        off = abs(norm / wanted - 1)
        if best is None or off < best[0]:
            best = (off, made, norm)
        if off < EXACT or norm == 0:
            break
        scale *= wanted / norm
    assert best is not None
    return best[1], best[2]


def _placed(site: Any) -> tuple[int | None, str]:
    expert = "" if site.expert is None else f"[{site.expert}]"
    return site.layer, site.component + expert


def _trained(pair: CheckpointPair, out: Path, texts: PromptSet, about: Mapping[str, Any]) -> None:
    """Train a member by the recipe on shuffled answers; it resumes as any training does."""
    known = pair.tuned.training or {}
    if not isinstance(known.get("recipe"), dict) or known.get("start") or known.get("forget"):
        raise WorkbenchError(
            f"The recipe of {pair.name} is not told by a training.json, or goes on from another "
            'model\'s training or against texts to forget; use keep="spectrum" or "layers".'
        )
    own = Recipe.from_dict(known["recipe"])
    task = f"{own.task}, answers shuffled"
    recipe = replace(own, task=task, seed=about["seed"], checkpoints=(), evaluate_every=0)
    at = f"@{pair.base.revision}" if pair.base.revision else ""
    learned = shuffled(texts, seed=about["seed"])
    train(f"{pair.base.reference}{at}", recipe, learned, out)
    with writing(out / ABOUT, OWN) as file:
        file.write_text(json.dumps(about, indent=1), encoding="utf-8")
