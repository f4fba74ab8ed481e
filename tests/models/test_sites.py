"""Sites are written and read back, and refused with a sentence where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tiny
from tests.models import zoo
from tests.models.conftest import decoder
from workbench.errors import WorkbenchError
from workbench.models import KINDS, Layout, Site
from workbench.models.sites import HEADED


@given(
    kind=st.sampled_from(KINDS),
    layer=st.integers(0, 99),
    head=st.none() | st.integers(0, 99),
    position=st.none() | st.integers(-9, 99) | st.sampled_from(["query box", "end"]),
)
def test_a_site_is_its_own_name(kind, layer, head, position):
    site = Site(kind, layer, head if kind in HEADED else None, position)
    assert Site.parse(str(site)) == site


def test_numbers_of_a_model_with_grouped_heads():
    layout = Layout(decoder("qwen3"))
    assert (layout.layers, layout.heads, layout.kv_heads, layout.d_head) == (3, 4, 2, 8)


@pytest.mark.parametrize(
    ("site", "says"),
    [
        (Site("z", 3), "layers 0 to 2"),
        (Site("z", 0, head=4), "heads 0 to 3"),
        (Site("k", 0, head=2), "heads 0 to 1"),
    ],
    ids=str,
)
def test_places_that_do_not_exist(site: Site, says: str):
    with pytest.raises(WorkbenchError, match=says):
        Layout(decoder("llama")).check(site)


def test_a_parallel_block_has_no_stream_between():
    with pytest.raises(WorkbenchError, match="read the same stream"):
        Layout(decoder("gpt_neox")).check(Site("resid_mid", 0))
    Layout(decoder("gpt_neox", use_parallel_residual=False)).check(Site("resid_mid", 0))


def test_models_without_a_stream_of_blocks_say_so():
    for family in ("xlnet", "deepseek_v4", "gemma3n_text", "hrm_text"):
        with pytest.raises(WorkbenchError, match="no list of blocks that a residual stream passes"):
            Layout(zoo.small(family))
    looped = decoder("llama")
    looped.model.layers[1] = looped.model.layers[0]
    with pytest.raises(WorkbenchError, match="several times"):
        Layout(looped)
    with pytest.raises(WorkbenchError, match="5 tokens do not run in it"):
        Layout(tiny("t5"))


def test_misspelled_sites():
    for text in ("z", "1.y", "1.resid_pre.h2", "one.z"):
        with pytest.raises(WorkbenchError):
            Site.parse(text)
