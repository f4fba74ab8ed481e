"""What will a sweep cost? Patches, forward passes, minutes and memory, told before any of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.log import log
from workbench.models import Layout, Site
from workbench.models.memory import free
from workbench.models.rerun import answers_only, predictors
from workbench.tasks.batching import Row, batch, pad_id

LONG = 60.0  # minutes beyond which a sweep asks
GIBI = 2**30
Entry = tuple[int, Site | None]  # first layer run again, and the site whose tokens are the first


class Plan(NamedTuple):
    """patches of prompts; forwards: plain forward passes over all prompts, on one side; minutes: at
    the speed of one prompt by itself, so at most; bytes: kept and computed beside the weights."""

    patches: int
    prompts: int
    forwards: float
    minutes: float
    bytes: float

    def __str__(self) -> str:
        return (
            f"{self.patches:,} patches of {self.prompts:,} prompts: {self.forwards:,.0f} "
            f"plain forward passes over them, up to {self.minutes:,.1f} minutes and "
            f"about {self.bytes / GIBI:,.2f} GiB in addition to the weights"
        )

    def require(self, label: str, device: Any, large: bool) -> None:
        """Tell it. Raises WorkbenchError where it is too long or does not fit, unless `large`."""
        log.info("%s: %s", label, self)
        room = free(device)
        tight = room is not None and self.bytes > room
        if large or not (tight or self.minutes > LONG):
            return
        least = f"more than the {room / GIBI:,.2f} GiB free" if tight and room else "over an hour"
        raise WorkbenchError(
            f"{label}: {self}, {least}; give fewer places (sites, positions, components, senders) "
            "or prompts, a smaller batch_size, or large=True (--large) to run it."
        )


def plan(
    model: Any,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    kinds: Iterable[Site],
    words: Any,
    batch_size: int,
    device: Any,
) -> Plan:
    """entries: where each patched run is entered; kinds: whole sites kept of the source's run."""
    layout = Layout(model)
    forwards = 2 + sum(share(layout, rows, layer, site) for layer, site in entries)
    known = (len(entries), forwards, kinds, words, batch_size, device)
    return counted(model, rows, *known, at_once=batch_size if entries else 0)


def counted(
    model: Any,
    rows: Sequence[Row],
    patches: int,
    forwards: float,
    kinds: Iterable[Site],
    words: Any,
    batch_size: int,
    device: Any,
    *,
    at_once: int = 0,
    gradients: bool = False,
) -> Plan:
    """The plan of work whose plain forward passes over all prompts are counted already.

    at_once: rows of a forward pass where they can be more than there are prompts. gradients: the
    work of all blocks is kept for a backward pass.
    """
    layout, size = Layout(model), len(rows)
    lengths = [len(row.fed) for row in rows]
    seconds = _seconds(model, rows[int(np.argmax(lengths))], words, device) / max(lengths)
    held = min(batch_size, size)
    numbers = kept(layout, kinds, max(lengths)) * held
    numbers += _computed(layout, rows, layout.layers if gradients else 1) * max(held, at_once)
    width = next(layout.root.parameters()).element_size()
    minutes = forwards * sum(lengths) * seconds / 60
    return Plan(patches, size, forwards, minutes, numbers * width)


def share(layout: Layout, rows: Sequence[Row], layer: int, site: Site | None) -> float:
    """The part of a plain pass that a run entered there costs."""
    first = 0.0
    if site is not None and site.position is not None and site.kind != "pattern":
        first = float(np.mean([_first(row, site.position) / len(row.fed) for row in rows]))
    return (1 - layer / layout.layers) * (1 - first)


def _first(row: Row, position: int | str) -> int:
    if isinstance(position, str):
        return row.spans[position][0]
    return position % len(row.ids)


def _seconds(model: Any, row: Row, words: Any, device: Any) -> float:
    """Of a plain pass of one prompt; once more where it was short, as first ones are slow."""
    inputs = batch([row], [0], device, pad_id(words))
    taken = np.inf
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad(), answers_only(Layout(model), predictors(inputs)):
            model(**inputs.inputs, use_cache=False).logits.sum().item()
        taken = min(taken, time.perf_counter() - start)
        if taken > 1:
            break
    return float(taken)


def kept(layout: Layout, kinds: Iterable[Site], tokens: int) -> float:
    """Numbers kept of one prompt's two plain runs: streams, keys, values and what is patched."""
    width = layout.width
    each = {
        "z": layout.heads * layout.d_head, "q": layout.heads * layout.d_head,
        "k": layout.kv_heads * layout.d_head, "v": layout.kv_heads * layout.d_head,
        "pattern": layout.heads * tokens, "mlp_hidden": layout.neurons,
    }  # fmt: skip
    run = layout.layers * (width + 2 * layout.kv_heads * layout.d_head)
    return tokens * (2 * run + sum(each.get(site.kind, width) for site in kinds))


def _computed(layout: Layout, rows: Sequence[Row], blocks: int) -> float:
    """Numbers that one row of a patched pass holds at once: keys and values of all layers, the work
    of so many blocks, and logits with their copies."""
    tokens = max(len(row.fed) for row in rows)
    block = 4 * layout.width + 3 * (layout.neurons or 2 * layout.width)
    cached = 2 * layout.layers * layout.kv_heads * layout.d_head
    answer = max(1, *(len(row.answer) for row in rows))
    logits = 4 * answer * len(layout.root.get_input_embeddings().weight)
    return tokens * (blocks * (block + layout.heads * tokens) + cached) + logits
