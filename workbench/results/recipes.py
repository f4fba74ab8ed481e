"""Which models are runs of one recipe? A recipe is how a model was trained but for the seed.

An interval over prompts says how this model would do on other prompts, and nothing of how another
training run of the same recipe would have come out. So whoever compares recipes compares groups of
runs; this file says which runs make a group, by names or by what the checkpoints tell of their
training, and guesses nothing: a model whose training is not known is a recipe by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What ends a name before, or within, the number of a run or a rate: "lora-r4-s1", "full-x0.25".
_RUN = re.compile(r"[\s\-_/.(]+(s|x|lr|seed|run)?[\s\-_/.(=]*[\d.]*$", re.IGNORECASE)
_NAMED = re.compile(r"(.+)/(?:(?:seed|run|s)?[ _-]?\d+)", re.IGNORECASE)  # "lora-r4/1"
_RATE = re.compile(r"\blr ([0-9.eE+-]+),? ?")  # as checkpoints tell it in words


def recipes(members: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Recipe -> its runs, every member once, in the members' order.

    members: name -> what its checkpoint tells, see `Provenance.members`. Members named
    "RECIPE/RUN", the run a number, are runs of that recipe. Else those that tell of the same
    training ("recipe", of the same kind, rank and alpha) with different seeds are, and the recipe
    is called by what their names begin with. All others stand alone, under their own name.
    """
    groups: dict[Any, list[str]] = {}
    for name, about in members.items():
        groups.setdefault(_key(name, about), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for key, runs in groups.items():
        seeds = {members[name].get("seed") for name in runs}
        if not isinstance(key, str) and len(seeds) < len(runs):  # the same run twice is no group
            found |= {name: (name,) for name in runs}
        else:
            found[_called(key, runs, {*members, *found} - {*runs})] = tuple(runs)
    return found


def phantoms_of(member: str) -> str:
    """What the phantoms of a model are called together; each is a run of that, NAME/1 and so on."""
    return f"phantom of {member}"


def recipe_of(members: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Member -> its recipe."""
    return {run: recipe for recipe, runs in recipes(members).items() for run in runs}


def curves(members: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[float, str]]:
    """Recipes that differ in nothing but the learning rate: curve -> rate -> recipe, by rising
    rate; the curve is called by its first recipe. Recipes whose rate is not known are in none."""
    found: dict[Any, dict[float, str]] = {}
    for recipe, runs in recipes(members).items():
        about = members[runs[0]]
        rate = _RATE.search(str(about.get("recipe")))
        if rate:
            rest = _RATE.sub("", str(about["recipe"]))
            key = (rest, about.get("kind"), about.get("rank"), about.get("alpha"))
            found.setdefault(key, {})[float(rate[1])] = recipe
    return {_curve(own): dict(sorted(own.items())) for own in found.values()}


def swept(members: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether one of their curves has several learning rates."""
    return any(len(rates) > 1 for rates in curves(members).values())


def _curve(rates: Mapping[float, str]) -> str:
    """What the recipes' names have in common, else the shortest of them."""
    names = list(rates.values())
    return _shared(names) or min(names, key=len)


def _shared(names: list[str]) -> str:
    """What all names begin with, without what leads over to a number."""
    shared = names[0]
    while not all(name.startswith(shared) for name in names):
        shared = shared[:-1]
    return shared if shared in names else _RUN.sub("", shared)


def _key(name: str, about: Mapping[str, Any]) -> Any:
    named = _NAMED.fullmatch(name)
    if named:
        return named[1]
    told = (about.get("recipe"), about.get("kind"), about.get("rank"), about.get("alpha"))
    if told[0] is None or about.get("seed") is None:
        return (name,)
    return (*told, about.get("step"))


def _called(key: Any, runs: list[str], taken: set[str]) -> str:
    if not isinstance(key, str) and len(runs) == 1:
        return runs[0]
    name = key if isinstance(key, str) else _shared(runs) or f"{runs[0]} and others"
    while name in taken:
        name = f"{name} ({len(runs)} run{'s' if len(runs) > 1 else ''})"
    return name
