"""A rerun equals a whole run with the same patch, in every architecture."""

from __future__ import annotations

import pytest
import torch

from tests.models.conftest import decoder
from workbench.models import KINDS, Layout, Site, hooks
from workbench.models.rerun import Rerun
from workbench.models.sites import HEADED, Kind
from workbench.tasks.batching import Batch, Row
from workbench.tasks.batching import batch as batched


def inputs(seed: int = 0) -> Batch:
    """Two prompts of unequal length with answers of one and two tokens, and a named place."""
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [
        Row("long", ids[0], {"here": (4, 5)}, (7,), (9, 11)),
        Row("short", ids[1][:6], {"here": (3, 4)}, (8, 12), (9,)),
    ]
    return batched(rows, [0, 1], "cpu", 0)


def places(kind: str) -> list[Site]:
    """Sites of every kind: whole, one place, one head, one neuron."""
    layout = Layout(decoder(kind))
    kinds: list[Kind] = [k for k in KINDS if layout.where(k)]
    own = [Site(k, layer, position=p) for k in kinds for layer in (1, 2) for p in (None, "here")]
    own += [Site(k, 1, head=1, position="here") for k in kinds if k in HEADED]
    return [*own, Site("mlp_hidden", 1, position=-1, neuron=5), Site("mlp_hidden", 0, neuron=2)]


def whole(model, given: Batch, patch: dict) -> torch.Tensor:
    """The reference: every layer and token, by plain hooks."""
    logits = hooks.run(model, given.inputs, write=patch, at=given.index).logits
    index = Rerun(model, given).scored
    return logits[torch.arange(len(logits))[:, None], index]


def test_every_site_equals_a_whole_run(kind: str):
    model, given = decoder(kind), inputs()
    sites = places(kind)
    source = Rerun(model, inputs(seed=1), read={s.whole for s in sites})
    once = Rerun(model, given)
    patches = [{site: source.read(site, given)} for site in sites]
    for patch, found in zip(patches, [once.again([p])[0] for p in patches], strict=True):
        expected = whole(model, given, patch)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=str(patch.keys()))
        (site,) = patch
        if site.layer < 2 or site.position is None:
            assert (found - once.logits[0]).abs().max() > 1e-3, site
    together = once.again(patches)
    alone = torch.stack([once.again([p])[0] for p in patches])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_patch_with_the_runs_own_values_changes_nothing(kind: str):
    model, given = decoder(kind), inputs()
    sites = places(kind)
    once = Rerun(model, given, read={s.whole for s in sites})
    for site in sites:
        assert torch.equal(once.again([{site: once.read(site)}], whole=True), once.logits), site
    before = model(**given.inputs).logits
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(before[rows, once.scored], once.logits[0], atol=1e-5, rtol=1e-5)


def test_sites_are_read_in_the_patched_run(kind: str):
    model, given = decoder(kind), inputs()
    once = Rerun(model, given)
    patch = {Site("z", 0, head=1, position="here"): torch.ones(2, 1, 8)}
    later = [Site("q", 2, head=1, position="here"), Site("resid_post", 1, position=-1)]
    found = once.observed([patch, patch], later)[1]
    expected = hooks.run(model, given.inputs, write=patch, read=later, at=given.index).captured
    for site in later:
        for number in range(2):
            torch.testing.assert_close(found[site][number], expected[site], atol=1e-4, rtol=1e-4)


def test_what_is_written_on_both_sides_of_two_blocks_is_kept_apart(kind: str):
    """Behind one block and before the next, in one patch and in either order; and a place that is
    read within the block that is written behind."""
    model, given = decoder(kind), inputs()
    other = Rerun(model, inputs(seed=1), [Site("resid_post", 0), Site("resid_pre", 1)])
    behind, before = Site("resid_post", 0, position="here"), Site("resid_pre", 1, position=-1)
    values = {site: other.read(site, given) for site in (behind, before)}
    once = Rerun(model, given)
    for patch in (values, dict(reversed(values.items()))):
        expected = whole(model, given, patch)
        torch.testing.assert_close(once.again([patch])[0], expected, atol=1e-4, rtol=1e-4)
    one = {behind: values[behind]}
    read = [Site("resid_post", 0, position="here")]
    assert torch.equal(once.observed([one], read)[1][read[0]][0], values[behind])


@torch.enable_grad()
def test_gradients_are_those_of_a_whole_run(kind: str):
    model, given = decoder(kind), inputs()
    site = Site("resid_post", 1, position=-1)
    once = Rerun(model, given, [site.whole])
    ours, theirs = (once.read(site).clone().requires_grad_() for _ in range(2))
    logits = once.again([{site: ours}], gradients=True)[0]
    with hooks.replace(model, {site: theirs}, at=given.index):
        full = model(**given.inputs, use_cache=False).logits
    expected = full[torch.arange(2)[:, None], once.scored]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((logits * weights).sum(), ours)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), theirs)
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert not once.again([{site: ours}]).requires_grad


def test_cost_is_counted_in_plain_forward_passes():
    model, given = decoder("llama"), inputs()
    once = Rerun(model, given)
    assert once.forwards == 1
    once.again([{Site("resid_pre", 1): torch.zeros(2, 9, 32)}])
    assert once.forwards == pytest.approx(1 + 2 / 3)
    once.again([{Site("z", 2, position=-1): torch.zeros(2, 1, 4, 8)}])
    first = int(once.scored.min())
    assert once.forwards == pytest.approx(1 + 2 / 3 + 1 / 3 * (1 - first / 9))
    # What is written behind a block is written before the next one: it need not run.
    once.forwards = 0.0
    once.again([{Site("resid_post", 1): torch.zeros(2, 9, 32)}])
    assert once.forwards == pytest.approx(1 / 3)


def test_the_blocks_are_their_own_again_after_an_error():
    model, given = decoder("llama"), inputs()
    once, layout = Rerun(model, given), Layout(model)
    with pytest.raises(RuntimeError):
        once.again([{Site("resid_post", 2): torch.zeros(2, 3, 5)}])
    assert all("forward" not in layout.block(layer).__dict__ for layer in range(layout.layers))
    assert torch.equal(Rerun(model, given).logits, once.logits)
