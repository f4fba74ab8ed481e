"""What do the same analyses say of models that learned nothing? A study of phantoms.

Phantoms are the members of a study of their own, with the same data and the same options, whose
Results lie in a folder of their own. So every headline is computed on them by the very code that
computes it on the members, and no table, comparison or figure of the members has to leave them out;
the report puts the two beside each other. What an analysis refuses of a model that learned nothing,
as to look for a skill where none was gained, is an answer too, and no failure of the run.

Not among them: what is followed along a training run, and chains, which a phantom has not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from workbench.errors import WorkbenchError
from workbench.lab.phantom import phantoms
from workbench.loaders import Checkpoint, CheckpointPair, Family
from workbench.study.study import Study


def nothing_learned(study: Study) -> tuple[Study | None, dict[str, Exception]]:
    """The study of `study.phantoms` phantoms of each member, made in the cache folder where they
    are not there yet, and why a member has none; None where no member has any."""
    made: dict[str, Mapping[str, Checkpoint]] = {}
    failed: dict[str, Exception] = {}
    for pair in _pairs(study):
        try:
            made[_key(pair)] = phantoms(pair, study.phantoms, seed=study.seed)
        except WorkbenchError as error:
            failed[f"phantoms of {pair.name}"] = error
    return _of(study, made), failed


def disk(study: Study) -> int:
    """Bytes that the phantoms of a study take in the cache folder; reads headers only."""
    each = 0
    for pair in _pairs(study):
        held = pair.tuned.weights() if pair.tuned.lora is None else pair.tuned.lora.weights
        each += sum(
            math.prod(known.shape) * known.dtype.itemsize
            for known in held.info.values() if known.dtype is not None
        )  # fmt: skip
    return study.phantoms * each


def _pairs(study: Study) -> list[CheckpointPair]:
    """Every member once, of this study and of those beside it."""
    families = (study.family, *(other.family for other in study.also.values()))
    return list({_key(pair): pair for family in families for pair in family}.values())


def _key(pair: CheckpointPair) -> str:
    return f"{pair.name} {pair.tuned.fingerprint}"


def _of(study: Study, made: Mapping[str, Mapping[str, Checkpoint]]) -> Study | None:
    """The study with these in its members' places, and those beside it."""
    also = {name: _of(other, made) for name, other in study.also.items()}
    members: dict[str, Checkpoint] = {}
    for pair in study.family:
        members |= made.get(_key(pair), {})
    kept = {name: other for name, other in also.items() if other is not None}
    if not members and not kept:
        return None
    # Where only those beside it have some, nothing of this one itself is run.
    family = Family(study.family.base, members) if members else study.family
    only = study.only if members else ()
    return replace(study, family=family, only=only, also=kept, chains={}, steps=None, phantoms=0)
