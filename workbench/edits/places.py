"""An edit in some places of a model alone: blocks kept, or dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from workbench.errors import WorkbenchError
from workbench.loaders.names import ParameterSite
from workbench.models import Edit

RANGE = re.compile(r"(\d+)(?:-(\d+))?")
WITHIN = re.compile(r"(?:(\d+)\.)?(\D.*)")


def within(made: Edit, keep: Sequence[str] = (), drop: Sequence[str] = ()) -> Edit:
    """The edit where it is kept and not dropped; elsewhere the weights are the base's.

    keep, drop: places: a layer ("3"), a range of layers with both ends ("0-5"), a component or how
    its name begins ("self_attn", "mlp.down_proj"), or that of one layer ("3.self_attn.q_proj");
    outside the blocks components are called as in the base ("lm_head"). Without `keep` all places
    are kept. Raises WorkbenchError for a place where the edited pair has no changed parameter.
    """
    for place in (*keep, *drop):
        _require(made, place)

    def here(site: ParameterSite) -> bool:
        return (not keep or _among(site, keep)) and not _among(site, drop)

    return made.within(here) if keep or drop else made


def _among(site: ParameterSite, places: Iterable[str]) -> bool:
    return any(_holds(place, site) for place in places)


def _holds(place: str, site: ParameterSite) -> bool:
    """Whether a parameter is of this place."""
    if layers := RANGE.fullmatch(place):
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return site.layer is not None and first <= site.layer <= last
    found = WITHIN.fullmatch(place)
    if found is None or (found[1] is not None and site.layer != int(found[1])):
        return False
    return f"{site.component}.".startswith(f"{found[2]}.")


def _require(made: Edit, place: str) -> None:
    pairs = [part.pair for part in made.parts]
    changed = [site for pair in pairs for site in pair.sites("all") if pair.delta(site).changed]
    if any(_holds(place, site) for site in changed):
        return
    layers = [site.layer for site in changed if site.layer is not None]
    known = sorted({site.component for site in changed})
    spans = f"layers {min(layers)} to {max(layers)} and " if layers else ""
    raise WorkbenchError(
        f"Expected a place where the fine-tuned model differs from its base, found {place!r}; "
        f"there are {spans}the components {', '.join(known)}."
    )
