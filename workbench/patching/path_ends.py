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
        if isinstance(given, str) and given != "logits":
            raise WorkbenchError(f'Expected receivers "logits" or heads, found {given!r}.')
        if not given:
            raise WorkbenchError('Expected receiver heads (layer, head), or "logits"; found none.')
        if part not in ("q", "k", "v"):
            raise WorkbenchError(f"Expected part q, k or v of the receivers, found {part!r}.")
        if isinstance(given, str):
            if looks is not None:
                raise WorkbenchError(
                    "receiver_position is the token from which receiving heads look; the logits "
                    "are those of the answer. Give receivers, or leave it out."
                )
            return cls([], {}, {})
        heads: dict[Site, list[Site]] = {}
        places: dict[Site, Position] = {}  # of the heads that are given one of their own
        for one in given:
            layer, head, own = _parsed(one)
            if head is None:
                heads[layout.check(Site("mlp_out", layer, position=position))] = []
                continue
            queries, count = (layout.count(layout.check(Site(k, layer))) for k in ("q", part))
            shares = queries // count
            site = layout.check(Site(part, layer, head // shares, position))
            first = head // shares * shares
            heads[site] = [Site("z", layer, head) for head in range(first, first + shares)]
            if own is not None and places.setdefault(Site("z", layer, head), own) != own:
                raise WorkbenchError(
                    f"Head {layer}.{head} is given two places to look from, "
                    f"{places[Site('z', layer, head)]} and {own}; run it once for each."
                )
        reading = [z for own in heads.values() for z in own]
        from_where = {z: looks for z in reading if looks is not None} | places
        return cls(list(heads), heads, from_where)

    def held(self, own: Rerun, reached: Sequence[Site]) -> dict[Site, Write]:
        """The clean z of the heads that read these sites, where they do not look from."""
        reading = [z for site in reached for z in self.heads[site] if z in self.looks]
        return {z: Outside(own.read(z), within(own.inputs, [self.looks[z]])) for z in reading}

    def senders(self, layout: Layout, given: Sequence[End] | None) -> list[Site]:
        """What is given, or every head from where something comes to one of these. Raises
        WorkbenchError for what comes to none of them."""
        if given is None:
            known = [layout.check(Site("z", layer)) for layer in layout.where("z") or [0]]
            every = [Site("z", z.layer, head) for z in known for head in range(layout.count(z))]
            made = [site for site in every if self.reached(layout, [site])]
            if not made:
                raise WorkbenchError(
                    "No head is before these receivers; choose receivers in a later layer."
                )
            return made
        made = [_sender(layout, one) for one in given]
        lost = [
            one for one, site in zip(given, made, strict=True) if not self.reached(layout, [site])
        ]
        if lost or not made:
            raise WorkbenchError(
                f"{lost[0]!r} is not before these receivers; give other senders."
                if lost
                else "Expected senders, found none; leave them out for every head."
            )
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
    kind = "embedding" if site == EMBEDDING else "mlp"
    return {"component": kind, "layer": None if kind == "embedding" else site.layer, "head": None}


def _before(layout: Layout, sender: Site, receiver: Site) -> bool:
    """Whether what a sender adds to the stream comes to a receiver."""
    if sender == EMBEDDING or receiver.kind == "resid_post":
        return True
    same = sender.kind == "z" and receiver.kind == "mlp_out" and not layout.parallel
    return sender.layer < receiver.layer or (same and sender.layer == receiver.layer)


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
    text = given if isinstance(given, str) else ".".join(map(str, given))
    found = NAMED.fullmatch(text)
    if not found or (found[2] == "mlp" and found[3]):
        raise WorkbenchError(
            "Expected an end of a path as LAYER.HEAD, LAYER.mlp or, of a sender, embedding (3.1, "
            f"4.mlp; a receiving head may look from a place, 3.1@-1), found {given!r}."
        )
    place = found[3]
    place = int(place) if place and re.fullmatch(r"-?\d+", place) else place
    return int(found[1]), None if found[2] == "mlp" else int(found[2]), place
