"""The reference engine: read and replace activations at sites with plain forward hooks.

    with capture(model, [Site("z", 4)]) as seen:
        model(input_ids=ids)
    with replace(model, {Site("resid_post", 3, position=-1): value}):
        logits = model(input_ids=ids).logits

The first use of a model proves its sites (`site_verification`); a kind that is not what its name
says is refused. Both leave the model as it was, also after an exception. Hooks act in the order in
which the blocks were entered: a capture inside a replace sees the replaced value. Gradients flow
through both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models import site_verification
from workbench.models.attach import Change, attached
from workbench.models.layout import Layout
from workbench.models.sites import Site, pick, put

Where = Callable[[int | str], Tensor]  # position -> (batch, p) token numbers
Value = Tensor | Callable[[Tensor], Tensor]


class Run(NamedTuple):
    """logits: (batch, token, vocabulary); captured: site -> tensor, shapes as in Site."""

    logits: Tensor
    captured: dict[Site, Tensor]


@contextlib.contextmanager
def capture(
    model: nn.Module,
    sites: Iterable[Site],
    *,
    at: Where | None = None,
    reduce: Callable[[Site, Tensor], Tensor] | None = None,
) -> Iterator[dict[Site, Tensor]]:
    """Fill a dict site -> activation while the model runs; a second forward overwrites the first.

    at: turns positions into token numbers, row by row (a prompt batch's `index`); None counts
    tokens of the row as it is, padding included. reduce: applied at once, so that only its result
    is stored. Raises WorkbenchError for a site that was never reached.
    """
    found: dict[Site, Tensor] = {}
    wanted = list(sites)
    layout = Layout(model)
    site_verification.require(layout, wanted)

    def reader(site: Site) -> Change:
        def read(full: Tensor) -> Tensor:
            # A copy: resid_mid may be written in place by a later replacement.
            own = pick(site, full, token_index(site, full, at)).clone()
            found[site] = own if reduce is None else reduce(site, own)
            return full

        return read

    with attached(layout, {site: reader(site) for site in wanted}):
        yield found
    _all_reached(wanted, set(found), "read")


@contextlib.contextmanager
def replace(
    model: nn.Module, values: Mapping[Site, Value], *, at: Where | None = None
) -> Iterator[None]:
    """Run the model with other activations at these sites.

    values: a tensor that broadcasts to the site's shape, or a function from the activation to the
    new one. at: as in `capture`. Raises WorkbenchError where a replacement was never reached, which
    would otherwise look like an effect of zero.
    """
    layout = Layout(model)
    site_verification.require(layout, values, write=True)
    reached: set[Site] = set()

    def writer(site: Site) -> Change:
        def write(full: Tensor) -> Tensor:
            reached.add(site)
            return rewritten(site, full, values[site], at)

        return write

    with attached(layout, {site: writer(site) for site in values}):
        yield
    _all_reached(values, reached, "replaced")


def run(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    read: Iterable[Site] = (),
    write: Mapping[Site, Value] | None = None,
    at: Where | None = None,
) -> Run:
    """One forward pass with these sites replaced and these read (after replacement).

    inputs: input_ids and attention_mask. The same call exists in `transformer_lens` and `nnsight`.
    """
    wanted = list(read)
    require_inputs(inputs)
    with replace(model, write or {}, at=at), capture(model, wanted, at=at) as found:
        logits = model(**inputs, use_cache=False).logits
    return Run(logits, {site: found[site] for site in wanted})


def require_inputs(inputs: Mapping[str, Tensor]) -> None:
    """Raises for texts: what a model is called with is what a tokenizer makes of them."""
    if not isinstance(inputs, Mapping):
        raise WorkbenchError(
            f"Expected input_ids and attention_mask as a tokenizer gives them, found "
            f'{type(inputs).__name__}; give tokenizer(texts, return_tensors="pt", padding=True).'
        )


def rewritten(site: Site, full: Tensor, value: Value, at: Where | None) -> Tensor:
    """A copy of `full` with the site's part replaced by a value, or by a function of it."""
    fresh = full.clone()
    index = token_index(site, fresh, at)
    new = value if isinstance(value, Tensor) else value(pick(site, fresh, index).clone())
    put(site, fresh, index, new)
    return fresh


def token_index(site: Site, full: Tensor, at: Where | None) -> Tensor | None:
    """(batch, p) token numbers of a site's position, None for every token."""
    if site.position is None:
        return None
    if at is not None:
        return at(site.position).to(full.device)
    if isinstance(site.position, str):
        raise WorkbenchError(
            f"{site}: a named position needs at=, which knows the spans of the prompts."
        )
    length = full.shape[2] if site.kind == "pattern" else full.shape[1]
    if not -length <= site.position < length:
        raise WorkbenchError(f"{site} lies outside a row of {length} tokens.")
    return torch.full((len(full), 1), site.position % length, device=full.device)


def _all_reached(wanted: Iterable[Site], reached: set[Site], what: str) -> None:
    missed = [str(site) for site in wanted if site not in reached]
    if missed:
        raise WorkbenchError(
            f"{', '.join(missed)} was never {what}: the model did not run, or not "
            "through that place."
        )
