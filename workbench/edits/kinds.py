"""Which edits of a fine-tuned model are there, and what does the strength s of each say?

    alpha      theta_0 + s delta: the whole change (WiSE-FT, arXiv 2109.01903)
    layers     the same with s + (1 - s) l / (L - 1) in layer l of L, and s outside the blocks:
               early layers keep less of it
    intruders  W + (s - 1) sum of sigma u v^T over the intruders among a matrix's top k left
               singular vectors (arXiv 2410.21228v3)
    rank       the best rank-s approximation of each matrix's change (Eckart & Young 1936)
    movement   the share s of the entries in the blocks that moved most; the others are the base's
    random     a share s of them at random, the control of movement
    harmful    the share s of them that harms given texts least, by g . delta, where g is the
               gradient of the texts' loss at the fine-tuned model: the others are set back
    reweighted s times those singular directions of each matrix's change that harm these texts, by
               sigma u^T G v > 0, the others whole (after Spectral Surgery, arXiv 2603.03995, which
               weighs the directions by a task's own gradient)
    1-bit      the signs of the change, and one scale a matrix (BitDelta, arXiv 2402.10193)
    tiers      its singular vectors at 8, 3 and 2 bits (Delta-CoMe, arXiv 2406.08903)

At one strength (1; for rank, infinity) an edit is the fine-tuned model itself, bit for bit; the
last two never are, and s scales what they keep. The control of every edit is alpha: one that gives
back no more of what was lost, at the same score, than a smaller change does has found nothing of
its own. What harms texts is known to first order alone, and of a step that is small: setting back
many entries, or long directions, can do other than g . delta says.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit, merged, one_bit, tiered, truncated
from workbench.models.edits import decomposed, once
from workbench.models.task_gradient import text_gradients
from workbench.skills import rankings
from workbench.skills.graft import count, graft_of, inside, top
from workbench.skills.restore import restored
from workbench.spectral.directions import sensitivities
from workbench.spectral.scale import direction, found_in

At = Callable[[float], Edit]  # strength -> edit
RANKS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Settings:
    """seed: of random entries. k, eps: which vectors are intruders, as in `spectral.intruders`.
    device: where matrices are decomposed and gradients are taken. texts: like what was forgotten,
    which say what harms it; the edit is to be judged on others."""

    seed: int = 0
    k: int = 10
    eps: float = 0.5
    device: str = "cpu"
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Kind:
    """of: makes the edits of one pair, which share its decompositions. strength: what it says, in
    words. tried: the strengths that are tried where none is named. whole: the one that is the
    fine-tuned model, None where none is. share: whether it is a share, at most 1. reads: whether it
    needs texts."""

    of: Callable[[CheckpointPair, Settings], At]
    strength: str
    tried: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    whole: float | None = 1.0
    share: bool = False
    reads: bool = False


def edits(pair: CheckpointPair, kind: str, settings: Settings | None = None) -> At:
    """strength -> the Edit of this kind of a pair; what they share is computed once, when first
    needed. Raises WorkbenchError for a kind that is not known, and for a strength that means
    nothing, and for a kind that reads texts and is given none."""
    known, settings = require_kind(kind), settings or Settings()
    pair.require_weights()
    if known.reads and not settings.texts:
        raise WorkbenchError(
            f"Expected texts that tell the {kind} edit what was forgotten, found none; give text "
            "like the pre-training data (--texts, or Settings(texts=...))."
        )
    made: list[At] = []

    def at(strength: float) -> Edit:
        require_strength(kind, strength)
        if strength == known.whole:
            return edit(pair)
        if not made:
            made.append(known.of(pair, settings))
        return made[0](strength)

    return at


def require_kind(kind: str) -> Kind:
    """The kind of this name; raises WorkbenchError where there is none."""
    if kind not in KINDS:
        raise WorkbenchError(f"Expected a kind of edit among {', '.join(KINDS)}; found {kind!r}.")
    return KINDS[kind]


def require_strength(kind: str, strength: float) -> None:
    """Raise WorkbenchError for a strength that means nothing for this kind."""
    known = require_kind(kind)
    ranks = known.whole == math.inf
    if ranks:
        fine = strength >= 1 and (math.isinf(strength) or float(strength).is_integer())
    else:
        fine = 0 <= strength <= (1 if known.share else sys.float_info.max)
    if not fine:
        wanted = "a whole number of at least 1" if ranks else "0 or more"
        wanted = "a share from 0 to 1" if known.share else wanted
        raise WorkbenchError(
            f"Expected the strength of {kind} ({known.strength}) to be {wanted}, found {strength}."
        )


def _alpha(pair: CheckpointPair, settings: Settings) -> At:
    return lambda s: edit(pair, s)


def _layers(pair: CheckpointPair, settings: Settings) -> At:
    last = max((site.layer or 0 for site in pair.sites("all")), default=0)

    def at(s: float) -> Edit:
        def mask(site: ParameterSite) -> float:
            if site.layer is None:
                return s
            return s + (1 - s) * (site.layer / last if last else 1.0)

        return edit(pair, mask=mask)

    return at


def _intruders(pair: CheckpointPair, settings: Settings) -> At:
    directions: dict[str, Tensor] = {}
    for delta in pair.deltas():
        found = found_in(delta, settings.k, settings.eps, settings.device)
        own = None if found is None else direction(found, "all", settings.seed)
        if own is not None:
            directions[delta.site.name] = own.to(delta.base.device)

    def here(site: ParameterSite) -> bool:
        return site.name in directions

    def along(delta: Delta) -> Tensor:
        return directions[delta.site.name]

    return lambda s: edit(pair) + edit(pair, s - 1, mask=here, projection=along)


def _rank(pair: CheckpointPair, settings: Settings) -> At:
    decompose = once(lambda delta: decomposed(_on(delta, settings)))
    return lambda s: edit(pair, projection=truncated(int(s), decompose))


def _movement(pair: CheckpointPair, settings: Settings) -> At:
    return _largest(pair, rankings.movement(pair))


def _random(pair: CheckpointPair, settings: Settings) -> At:
    return _largest(pair, rankings.random(pair, settings.seed))


def _largest(pair: CheckpointPair, scores: rankings.Scores) -> At:
    """The share s of the entries in the blocks that come first; outside them the tuned side's."""
    blocks, total = inside(pair), count(pair)

    def at(s: float) -> Edit:
        rest = {name: ~mask for name, mask in top(scores, blocks, round(s * total)).items()}
        return graft_of("set back", rest).edit(pair, outside=True)

    return at


def _harmful(pair: CheckpointPair, settings: Settings) -> At:
    slopes = _slopes(pair, settings)

    def harm(site: ParameterSite) -> Tensor:
        slope = slopes[site.name]
        return (slope * pair.delta(site).change.to(slope)).clamp(min=0)

    return lambda s: restored(pair, harm, 1 - s)


def _reweighted(pair: CheckpointPair, settings: Settings) -> At:
    slopes = _slopes(pair, settings)

    kept: dict[str, Tensor | None] = {}

    def along(delta: Delta) -> Tensor | None:
        name = delta.site.name
        if name not in kept:
            kept[name] = _against(_on(delta, settings), slopes.pop(name, None))
        own = kept[name]
        return None if own is None else own.to(delta.base.device)

    return lambda s: edit(pair) + edit(pair, s - 1, projection=along)


def _against(delta: Delta, slope: Tensor | None) -> Tensor | None:
    """The directions of a matrix's change without which the loss would fall, (out, in)."""
    if slope is None or delta.change.ndim < 2:
        return None
    left, values, right = decomposed(delta)
    bad = sensitivities(left, values, right, slope.to(left)) < 0
    return (left[:, bad] * values[bad]) @ right[bad]


def _slopes(pair: CheckpointPair, settings: Settings) -> dict[str, Tensor]:
    """Of the loss of the texts at the fine-tuned model, by base name."""
    model = merged(pair, settings.device)
    return text_gradients(pair, model, settings.texts)


def _one_bit(pair: CheckpointPair, settings: Settings) -> At:
    return lambda s: edit(pair, s, projection=one_bit())


def _tiers(pair: CheckpointPair, settings: Settings) -> At:
    decompose = once(lambda delta: decomposed(_on(delta, settings)))
    return lambda s: edit(pair, s, projection=tiered(None, decompose))


def _on(delta: Delta, settings: Settings) -> Delta:
    return delta.to(torch.device(settings.device))


KINDS: dict[str, Kind] = {
    "alpha": Kind(_alpha, "the factor on the whole change"),
    "layers": Kind(_layers, "the factor on the first layer's change"),
    "intruders": Kind(_intruders, "the factor on the intruders", (0.0, 0.25, 0.5, 0.75)),
    "rank": Kind(_rank, "the rank of each matrix's change", RANKS, math.inf),
    "movement": Kind(_movement, "the share of entries that keep their change", share=True),
    "random": Kind(_random, "the share of entries that keep their change", share=True),
    "harmful": Kind(
        _harmful,
        "the share of entries that keep their change",
        (0.5, 0.8, 0.9, 0.99),
        share=True,
        reads=True,
    ),
    "reweighted": Kind(
        _reweighted, "the factor on the directions that harm", (0.0, 0.25, 0.5, 0.75), reads=True
    ),
    "1-bit": Kind(_one_bit, "the factor on the change at one bit an entry", (1.0,), None),
    "tiers": Kind(_tiers, "the factor on the change in tiers of bits", (1.0,), None),
}
