"""The two ends of a path, as they are named: what sends, and what receives.

(3, 1), "3.1"     a head: it sends its z, and receives by its query, key or value
"3.mlp"           an MLP: it sends what it adds to the stream, and receives what it is given
"embedding"       sends the stream before the first block
"3.1@subject"     a receiving head that looks from this place of the prompt, whatever others do
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from workbench.errors import WorkbenchError
from workbench.models import Layout, Site
from workbench.models.rerun import Outside, Rerun, Write
from workbench.models.sites import position_of
from workbench.patching.edges import EMBEDDING
from workbench.patching.patches import Position
from workbench.patching.places import within

Head = tuple[int, int]  # layer, head
End = tuple[int, int] | str  # a head, or an end as text
Part = Literal["q", "k", "v"]
NAMED = re.compile(r"(\d+)\.(\d+|mlp)(?:@(.+))?")


class Receivers(NamedTuple):
    """into: the sites that receive, none where the logits do. heads: the z of the heads that read
    each of them. looks: from where each of those looks, where that is not every token."""

    into: list[Site]
    heads: dict[Site, list[Site]]
    looks: dict[Site, Position]

    @classmethod
    def of(
        cls,
        layout: Layout,
        given: Sequence[End] | str,
        part: Part,
        position: Position,
        looks: Position,
    ) -> Receivers:
        """given: "logits", or heads and MLPs. position: of what they receive. looks: from where
        heads look that are given no place of their own."""
        if not given or (isinstance(given, str) and given != "logits"):
            raise WorkbenchError(
                'Expected receivers "logits" or a list of heads and MLPs, such as '
                f'["3.1", "4.mlp"], found {given!r}.'
            )
        if part not in ("q", "k", "v"):
            raise WorkbenchError(f"Expected part q, k or v of the receivers, found {part!r}.")
        parsed = [] if isinstance(given, str) else [_parsed(one) for one in given]
        if looks is not None and all(head is None for _, head, _ in parsed):
            raise WorkbenchError(
                "receiver_position is the token from which receiving heads look; the logits are "
                "those of the answer, and MLPs work token by token. Give receiving heads, or leave "
                "it out."
            )
        heads: dict[Site, list[Site]] = {}
        places: dict[Site, Position] = {}
        for layer, head, own in parsed:
            if head is None:
                heads[layout.check(Site("mlp_out", layer, position=position))] = []
                continue
            queries, count = (layout.count(layout.check(Site(k, layer))) for k in ("q", part))
            shares = queries // count
            site = layout.check(Site(part, layer, head // shares, position))
            first = head // shares * shares
            heads[site] = [Site("z", layer, one) for one in range(first, first + shares)]
            z, place = Site("z", layer, head), looks if own is None else own
            if places.setdefault(z, place) != place:
                raise WorkbenchError(
                    f"Head {layer}.{head} is given two places to look from, {places[z]} and "
                    f"{place}; run it once for each."
                )
        for group in heads.values():
            named = {places[z] for z in group if z in places}
            # Of several named ones with places of their own the others look from where all do.
            shared = next(iter(named)) if len(named) == 1 else looks
            places |= {z: shared for z in group if z not in places}
        return cls(list(heads), heads, {z: own for z, own in places.items() if own is not None})

    def held(self, own: Rerun, reached: Sequence[Site]) -> dict[Site, Write]:
        """The clean z of the heads that read these sites, where they do not look from."""
        reading = [z for site in reached for z in self.heads[site] if z in self.looks]
        return {z: Outside(own.read(z), within(own.inputs, [self.looks[z]])) for z in reading}

    def senders(self, layout: Layout, given: Sequence[End] | None) -> list[Site]:
        """What is given, or every head from where something comes to one of these. Raises
        WorkbenchError for what comes to none of them."""
        if given is None:
            every = [Site("z", layer, head) for layer, head in every_head(layout)]
            made = [site for site in every if self.reached(layout, [site])]
            if not made:
                raise WorkbenchError(
                    "No head is before these receivers; choose receivers in a later layer, or "
                    'senders=["embedding"].'
                )
            return made
        if isinstance(given, str) or not given:
            raise WorkbenchError(
                'Expected a list of senders, such as ["3.1", "2.mlp", "embedding"], found '
                f"{given!r}; leave them out for every head."
            )
        made = [_sender(layout, one) for one in given]
        for one, site in zip(given, made, strict=True):
            if not self.reached(layout, [site]):
                raise WorkbenchError(f"{one!r} is not before these receivers; give other senders.")
        return made

    def reached(self, layout: Layout, senders: Sequence[Site]) -> list[Site]:
        """The sites to which something comes from one of these; the last block's end stands for
        the logits."""
        into = self.into or [Site("resid_post", layout.layers - 1)]
        return [site for site in into if any(_before(layout, one, site) for one in senders)]


def looked_from(given: Any) -> list[Position]:
    """The places that receivers are given of their own."""
    named = [] if isinstance(given, str) else [one for one in given if isinstance(one, str)]
    return [own for one in named if (own := _parsed(one)[2]) is not None]


def about(site: Site) -> dict[str, Any]:
    """The columns that name a sender in a table."""
    if site.kind == "z":
        return {"component": "head", "layer": site.layer, "head": site.head}
    if site.whole == EMBEDDING:
        return {"component": "embedding", "layer": None, "head": None}
    return {"component": "mlp", "layer": site.layer, "head": None}


def every_head(layout: Layout) -> list[Head]:
    """(layer, head) of every head; raises where a model has none."""
    known = [layout.check(Site("z", layer)) for layer in layout.where("z") or [0]]
    return [(z.layer, head) for z in known for head in range(layout.count(z))]


def _before(layout: Layout, sender: Site, receiver: Site) -> bool:
    """Whether what a sender adds to the stream comes to a receiver."""
    if sender.whole == EMBEDDING or receiver.kind == "resid_post":
        return True
    within = sender.kind == "z" and receiver.kind == "mlp_out"
    if within and sender.layer == receiver.layer:
        return not layout.parts(receiver.layer).parallel
    return sender.layer < receiver.layer


def _sender(layout: Layout, given: End) -> Site:
    if given == "embedding":
        return EMBEDDING
    layer, head, place = _parsed(given)
    if place is not None:
        raise WorkbenchError(
            f"Expected a sender without a place, found {given!r}; position= is that of all senders."
        )
    return layout.check(Site("mlp_out", layer) if head is None else Site("z", layer, head))


def _parsed(given: End) -> tuple[int, int | None, Position]:
    """Layer, head (None for the MLP) and the place behind @."""
    text = ".".join(map(str, given)) if isinstance(given, tuple | list) else str(given)
    found = NAMED.fullmatch(text)
    if not found or (found[2] == "mlp" and found[3]):
        raise WorkbenchError(
            "Expected an end of a path as LAYER.HEAD, LAYER.mlp or, of a sender, embedding (3.1, "
            f"4.mlp; a receiving head may look from a place, 3.1@-1), found {given!r}."
        )
    return int(found[1]), None if found[2] == "mlp" else int(found[2]), position_of(found[3])
