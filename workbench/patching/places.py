"""Places of a prompt by what stands there, for every method that takes positions or sites.

    subject            the tokens of a span of that name, of one number in all prompts
    subject:last       its last token, however many it has; also :first
    2..5               tokens 2 to 5, counted from the prompt's first, 0
    city<-country      in the run that is patched city's tokens, in the run they are taken from
                       country's; of equal number, or one of each: city:last<-country:last
    city<-country:mean the mean over country's tokens, written to each of city's

Spans are named by a mark in the text (`tasks.marked`), by ranges of characters, or by the task.
Each such place is given to the rows as a span of their own, so that it is a position as any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models import Site
from workbench.tasks.batching import Batch, Row

PAIR, MEAN = "<-", ":mean"
RANGE = re.compile(r"(\d+)\.\.(\d+)")
ENDS = {":first": (0, 1), ":last": (-1, None)}


def asked(
    positions: Any, sites: Any = (), groups: Mapping[str, Sequence[Any]] | None = None
) -> list[str]:
    """The places among positions, and among sites ("4.z.h3@subject:last") and groups of them, that
    are no plain name."""
    listed = [positions] if positions is None or isinstance(positions, int | str) else positions
    named = [one for one in listed if isinstance(one, str)]
    several = [sites] if isinstance(sites, str | Site) else sites
    for site in (*several, *(one for own in (groups or {}).values() for one in own)):
        place = site.position if isinstance(site, Site) else str(site).partition("@")[2]
        named += [place] if isinstance(place, str) and place else []
    return list(dict.fromkeys(one for one in named if _composed(one)))


def placed(
    places: Iterable[str], patched: Sequence[Row], given: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """The rows that are patched, and those whose activations are taken, with these places as
    spans. Raises WorkbenchError for a place that a row does not have."""
    ours, theirs = list(patched), list(given)
    for place in places:
        here, _, there = place.partition(PAIR)
        ours = [_with(row, place, here) for row in ours]
        theirs = [_with(row, place, there or here) for row in theirs]
    return ours, theirs


def require_one_run(named: Iterable[str], how: str) -> None:
    """Raises for a place taken from another (city<-country) where nothing is taken from another
    prompt's run."""
    other = next((one for one in named if PAIR in one), None)
    if other is not None:
        raise WorkbenchError(
            f"The place {other!r} is taken from another one, which {how} does not read; use "
            "with_=corrupted, or give one place."
        )


def taken(site: Site, value: Tensor) -> Tensor:
    """What a run gives at a site, (batch, p, ...): where the place says so, the mean over p."""
    if not is_mean(site):
        return value
    if site.kind == "pattern":
        raise WorkbenchError("The mean of attention patterns has no meaning; give other sites (z).")
    return value.mean(1, keepdim=True)


def within(inputs: Batch, positions: Iterable[int | str | None]) -> Tensor:
    """Whether each token is at one of these positions, (batch, token)."""
    token = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
    found = torch.zeros_like(inputs.ids, dtype=torch.bool)
    for position in positions:
        if position == -1:
            # Of a longer answer every token is predicted where a "last token" acts.
            found |= token >= inputs.last[:, None]
        elif position is None:
            found[:] = True
        else:
            found.scatter_(1, inputs.index(position), True)
    return found


def is_mean(site: Site) -> bool:
    """Whether the place asks for a mean, which may be of another number of tokens."""
    return isinstance(site.position, str) and site.position.endswith(MEAN)


def _composed(place: str) -> bool:
    return PAIR in place or place.endswith((*ENDS, MEAN)) or bool(RANGE.fullmatch(place))


def _with(row: Row, name: str, place: str) -> Row:
    """The row with a span of this name."""
    return row if name in row.spans else replace(row, spans={**row.spans, name: _span(row, place)})


def _span(row: Row, place: str) -> tuple[int, int]:
    place = place.removesuffix(MEAN)
    if place in row.spans:
        return row.spans[place]
    if (counted := RANGE.fullmatch(place)) or re.fullmatch(r"-?\d+", place):
        first, last = map(int, counted.groups()) if counted else (int(place), int(place))
        size = len(row.ids)
        if not -size <= first <= last < size:
            raise WorkbenchError(
                f"Tokens {place} lie outside prompt {row.name!r}, which has {size}; count from 0."
            )
        return first % size, last % size + 1
    for rule, (low, high) in ENDS.items():
        if place.endswith(rule):
            first, end = _span(row, place.removesuffix(rule))
            own = range(first, end)[low:high]
            return own[0], own[-1] + 1
    raise WorkbenchError(
        f"Prompt {row.name!r} has no span {place!r}; known: {sorted(row.spans)}. Mark it in the "
        "text, [[Eiffel Tower]], or give counts (-1, 2..5)."
    )
