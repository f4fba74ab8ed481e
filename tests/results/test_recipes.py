"""Runs of one recipe are found by names or by what checkpoints tell, and nothing is guessed."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workbench.results.recipes import curves, recipe_of, recipes, swept


def told(seed: int | None, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    return {"kind": "lora", "rank": 4, "seed": seed, "recipe": f"lr {lr:g}, steps 9"} | more


def test_runs_are_found_by_name_or_by_what_is_told():
    named = {"a/0": {}, "a/seed 1": {}, "b": {}, "/1": {}, "runs/final": {}, "runs/best": {}}
    alone = {name: (name,) for name in ("b", "/1", "runs/final", "runs/best")}
    assert recipes(named) == {"a": ("a/0", "a/seed 1")} | alone
    members = {"r4-s0": told(0), "r4-s1": told(1), "r4-x2-s0": told(0, 0.2), "old": {"seed": 3}}
    assert recipes(members) == {
        "r4": ("r4-s0", "r4-s1"), "r4-x2-s0": ("r4-x2-s0",), "old": ("old",),
    }  # fmt: skip
    assert recipe_of(members)["r4-s1"] == "r4"


def test_what_differs_in_more_than_the_seed_is_another_recipe():
    pairs = [
        {"a": told(0), "b": told(0)},  # one seed twice: copies, or checkpoints
        {"a": told(0), "b": told(1, 0.2)},
        {"a": told(0), "b": told(1, rank=8)},
        {"a": told(0, step=100), "b": told(1, step=200)},
        {"a": told(0), "b": told(None)},
        {"a": {"kind": "full", "seed": 0}, "b": {"kind": "full", "seed": 1}},
    ]
    for members in pairs:
        assert recipes(members) == {"a": ("a",), "b": ("b",)}


def test_the_first_run_may_bear_the_recipes_name():
    assert recipes({"full": told(0), "full-s1": told(1)}) == {"full": ("full", "full-s1")}


@given(
    st.dictionaries(
        st.text(alphabet="ab-s0/", min_size=1, max_size=5),
        st.builds(told, st.sampled_from([None, 0, 1, 2]), st.sampled_from([0.1, 0.2])),
        max_size=8,
    )
)
def test_every_member_is_in_one_recipe(members: dict[str, Any]):
    found = recipes(members)
    assert sorted(run for runs in found.values() for run in runs) == sorted(members)


def test_curves_are_recipes_but_for_the_rate():
    members = {
        "r4-x2-s0": told(0, 0.2), "r4-x2-s1": told(1, 0.2), "r4-x1-s0": told(0), "full": {},
        "full-x1": told(0, kind="full", rank=None),
    }  # fmt: skip
    assert curves(members) == {"r4": {0.1: "r4-x1-s0", 0.2: "r4-x2"}, "full-x1": {0.1: "full-x1"}}
    assert swept(members)
    assert not swept({"r4-s0": told(0), "r4-s1": told(1)})
