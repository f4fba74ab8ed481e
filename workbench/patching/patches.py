"""What is replaced together in one run, and how a table names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from workbench.errors import WorkbenchError
from workbench.models import KINDS, Layout, Site
from workbench.models.sites import HEADED, Kind
from workbench.tasks.batching import Row

Position = int | str | None
Where = str | Site
EACH, ALL = "each", "all"
HEAD, NEURON = "head", "neuron"
COLUMNS = ("component", "layer", "head", "neuron", "position", "group")


@dataclass(frozen=True)
class Patch:
    """Sites replaced in one run. about: the columns of COLUMNS that name it in a table. added: each
    z site stands for what its head adds to the stream through its own side's output projection, so
    that a change of that projection counts; else for z itself."""

    sites: tuple[Site, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    added: bool = False

    def __post_init__(self) -> None:
        if self.added and any(s.kind != "z" or s.head is None for s in self.sites):
            raise WorkbenchError(
                "What heads add can only be patched for single heads; give z sites."
            )


def patches(
    layout: Layout,
    sites: Sequence[Where] | Where,
    positions: Sequence[Position] = (None,),
    *,
    window: int = 1,
    cumulative: bool = False,
) -> list[Patch]:
    """One patch per place.

    sites: kinds ("resid_post", "z"), which stand for every layer, and every head where they have
    heads; "head", what each head adds to the stream; "neuron", every neuron of mlp_hidden; kinds
    joined by "+" ("mlp_hidden+attn_out"), replaced together with all their heads; single sites
    ("4.z.h3@-1"). window: odd number of layers
    around each that are replaced together. cumulative: every layer up to and including each.
    """
    if window < 1 or window % 2 == 0:
        raise WorkbenchError(f"Expected an odd window of layers (1, 3, 5), found {window}.")
    made: list[Patch] = []
    for where in [sites] if isinstance(sites, str | Site) else sites:
        if isinstance(where, Site) or where[:1].isdigit():
            site = layout.check(where if isinstance(where, Site) else Site.parse(where))
            made.append(Patch((site,), _named(site.kind, site)))
            continue
        known = _layers(layout, where)
        for layer in known:
            low = 0 if cumulative else max(0, layer - window // 2)
            high = layer if cumulative else min(layout.layers - 1, layer + window // 2)
            layers = [one for one in known if low <= one <= high]
            for position in positions:
                made += _at_layer(layout, where, layer, layers, position)
    return made


def grouped(
    layout: Layout, groups: Mapping[str, Sequence[Where]], *, added: bool = False
) -> list[Patch]:
    """One patch per group of sites, all of which are replaced together, each once. added: where a
    group is of heads alone (z), what they add to the stream stands for them."""
    made = []
    for name, members in groups.items():
        given = (s if isinstance(s, Site) else Site.parse(s) for s in members)
        sites = tuple(dict.fromkeys(given))
        if not sites:
            raise WorkbenchError(f"Group {name!r} holds no sites; leave it out.")
        about = {"component": "group", "group": name}
        heads = all(site.kind == "z" and site.head is not None for site in sites)
        made.append(Patch(tuple(map(layout.check, sites)), about, added and heads))
    return made


def default_positions(rows: Sequence[Row]) -> list[Position]:
    """The named places that every prompt has, in their order, then the last token."""
    shared = [name for name in rows[0].spans if all(name in row.spans for row in rows)]
    shared.sort(key=lambda name: rows[0].spans[name])
    last = len(rows[0].ids)
    return [*(name for name in shared if rows[0].spans[name][1] < last), -1]


def resolved(rows: Sequence[Row], positions: Sequence[Position] | Position) -> list[Position]:
    """Positions as sites know them: "all" is every token at once, "each" every token in turn."""
    asked = [positions] if positions is None or isinstance(positions, int | str) else positions
    found: list[Position] = []
    for position in asked:
        if position == EACH:
            require_equal(rows, 'positions "each"')
            found += range(len(rows[0].ids))
        else:
            found.append(None if position == ALL else position)
    return found


def require_equal(rows: Sequence[Row], what: str) -> None:
    """Raises unless all prompts have one length."""
    lengths = sorted({len(row.ids) for row in rows})
    if len(lengths) > 1:
        raise WorkbenchError(
            f"{what} needs prompts of one length, found {lengths[0]} to {lengths[-1]} tokens; give "
            "named places or counts from the end (-1), or prompts of equal length."
        )


def require_one_width(rows: Sequence[Row], name: str) -> None:
    """Raises unless a named place is in every row, and of one number of tokens."""
    missing = [row.name for row in rows if name not in row.spans]
    if missing:
        known = sorted({name for row in rows for name in row.spans})
        raise WorkbenchError(f"Prompt {missing[0]!r} has no span {name!r}; known: {known}.")
    sizes = {row.spans[name][1] - row.spans[name][0]: row.name for row in reversed(rows)}
    if len(sizes) > 1:
        (few, one), *_, (many, other) = sorted(sizes.items())
        raise WorkbenchError(
            f"Span {name!r} has {few} tokens in prompt {one!r} and {many} in "
            f"{other!r}; a patch needs the same number in all prompts and their "
            f"partners: choose words of as many tokens, or a rule ({name}:last, {name}:first)."
        )


def _layers(layout: Layout, where: str) -> list[int]:
    """The layers that have sites of all these kinds; where none has, the first, which says why."""
    kinds = {"head": ["z"], "neuron": ["mlp_hidden"]}.get(where, where.split("+"))
    known = [set(layout.where(cast(Kind, kind))) for kind in kinds if kind in KINDS]
    return sorted(set.intersection(*known)) if all(known) and known else [0]


def _at_layer(
    layout: Layout, where: str, layer: int, layers: Sequence[int], position: Position
) -> list[Patch]:
    """The patches of one kind (or kinds joined by "+") centred on one layer."""
    kinds = where.split("+")
    known = (*KINDS, HEAD, NEURON) if len(kinds) == 1 else KINDS
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise WorkbenchError(
            f"Unknown site {unknown[0]!r}; there are {', '.join((*KINDS, HEAD, NEURON))}, kinds "
            'joined by "+", and single sites such as "4.z.h3@-1".'
        )

    def together(**one: Any) -> Patch:
        sites = tuple(
            layout.check(Site(cast(Kind, kind), at, position=position, **one))
            for at in layers
            for kind in kinds
        )
        return Patch(sites, _named(where, replace(sites[0], layer=layer)), where == HEAD)

    if where in (*HEADED, HEAD):
        kinds = ["z"] if where == HEAD else kinds
        heads = layout.count(layout.check(Site(cast(Kind, kinds[0]), layer)))
        return [together(head=head) for head in range(heads)]
    if where == NEURON:
        kinds = ["mlp_hidden"]
        neurons = layout.count(layout.check(Site("mlp_hidden", layer)))
        return [together(neuron=neuron) for neuron in range(neurons)]
    return [together()]


def _named(component: str, site: Site) -> dict[str, Any]:
    named: dict[str, Any] = {"component": component, "layer": site.layer}
    named |= {} if site.head is None else {"head": site.head}
    named |= {} if site.neuron is None else {"neuron": site.neuron}
    return named | {"position": ALL if site.position is None else str(site.position)}
