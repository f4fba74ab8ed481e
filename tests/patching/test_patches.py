"""Where prompts are patched: the named places that all of them have, and what is refused."""

from __future__ import annotations

import pytest

from workbench.errors import WorkbenchError
from workbench.patching.patches import (
    default_positions,
    require_equal,
    require_one_width,
    resolved,
)
from workbench.tasks.batching import Row

SHORT = Row("short", [1] * 6, {"late": (5, 6), "verb": (3, 4), "name": (1, 3), "own": (2, 3)})
LONG = Row("long", [1] * 9, {"name": (2, 4), "verb": (1, 2), "late": (5, 6)})


def test_named_places_stand_in_the_order_of_the_first_prompt():
    """What only one prompt has is left out, and what ends with the first prompt is its last
    token."""
    assert default_positions([SHORT, LONG]) == ["name", "verb", -1]
    assert default_positions([LONG, SHORT]) == ["verb", "name", "late", -1]
    assert default_positions([Row("bare", [1, 2]), SHORT]) == [-1]


def test_positions_as_sites_know_them():
    both = [SHORT, SHORT]
    assert resolved(both, "all") == [None]
    assert resolved(both, "each") == [0, 1, 2, 3, 4, 5]
    assert resolved(both, ["name", -1, None, "all"]) == ["name", -1, None, None]
    assert resolved([SHORT, LONG], "name") == ["name"]
    with pytest.raises(WorkbenchError, match="one length, found 6 to 9 tokens"):
        resolved([SHORT, LONG], "each")
    require_equal(both, "this")


def test_a_named_place_is_in_every_prompt_and_as_wide():
    require_one_width([SHORT, LONG], "name")
    with pytest.raises(WorkbenchError, match="Prompt 'long' has no span 'own'"):
        require_one_width([SHORT, LONG], "own")
    wide = Row("wide", [1] * 6, {"name": (0, 3)})
    with pytest.raises(WorkbenchError, match="2 tokens in prompt 'short' and 3 in 'wide'"):
        require_one_width([SHORT, LONG, wide], "name")
