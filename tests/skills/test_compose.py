"""Overlap against its exact chance; disjoint skills add up, colliding ones do not."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import workbench as wb
from tests.skills.conftest import (
    APPLE,
    BOOK,
    JOBS,
    NAME,
    PLACES,
    asked,
    member,
    mute,
    no_gradients,  # noqa: F401
    value,
    write,
)
from workbench.skills import Graft, Skill, compose, localize, overlap, rankings
from workbench.skills.compose import alike
from workbench.skills.graft import count, graft_of, inside, top
from workbench.skills.overlap import compared

IN, A = asked(PLACES, "apple", 32, "places"), asked(JOBS, "book", 32, "jobs")
FIRST, SECOND = {(APPLE, PLACES): 3.0}, {(BOOK, JOBS): 3.0}


def rows(first: Graft, second: Graft) -> dict[str, dict]:
    return {row["metric"]: row for row in compared(first, second)}


def test_overlap_by_hand():
    sizes = {"a": 6, "b": 4}
    one = Graft("one", {"a": np.array([0, 1, 2])}, sizes)
    two = Graft("two", {"a": np.array([2, 3]), "b": np.array([0, 1])}, sizes)
    found, turned = rows(one, two), rows(two, one)
    assert found["overlap"]["value"] == 1 / 4
    assert turned["overlap"]["value"] == 1 / 3
    assert (found["overlap"]["baseline"], turned["overlap"]["baseline"]) == (0.3, 0.4)
    # Three of six entries of a, against two: one is expected in both by chance.
    assert found["within"]["value"] == pytest.approx((3 * 2 / 6) / 4)
    assert rows(one, one)["overlap"]["value"] == 1
    assert (found["overlap"]["n"], found["overlap"]["x"]) == (4, 0.3)
    # The entries of `two` that three of ten hold: P(0) = C(7, 4) / C(10, 4) = 1/6, P(3) = 1/30.
    assert (found["overlap"]["null_low"], found["overlap"]["null_high"]) == (0, 3 / 4)
    assert found["within"]["baseline"] == 0.3
    none = rows(one, Graft("none", {}, sizes))["overlap"]
    assert np.isnan(none["value"])


def test_places_are_rank_correlated_by_their_share_of_each_matrix():
    sizes = {"a": 100, "b": 10, "c": 10, "d": 10}
    taken = {"one": (50, 4, 3, 0), "two": (10, 5, 3, 2)}
    grafts = [
        Graft(name, {m: np.arange(n) for m, n in zip(sizes, own, strict=True) if n}, sizes)
        for name, own in taken.items()
    ]
    ours, theirs = ([0.5, 0.4, 0.3, 0.0], [0.1, 0.5, 0.3, 0.2])
    found = rows(*grafts)
    assert found["places"]["value"] == pytest.approx(spearmanr(ours, theirs).statistic)
    assert found["places"]["n"] == 4
    assert found["within"]["value"] == pytest.approx((50 * 10 / 100 + (4 * 5 + 3 * 3) / 10) / 20)


def test_random_grafts_overlap_at_their_density(tmp_path: Path):
    pair = wb.load_pair(write(mute(), tmp_path / "b"), write(member(FIRST, 0.1), tmp_path / "m"))
    sites, n = inside(pair), count(pair)
    grafts = [
        graft_of(str(s), top(rankings.random(pair, s), sites, round(share * n)))
        for s, share in enumerate((0.02, 0.1, 0.1, 0.3, 0.3))
    ]
    inside_range = []
    for one, two in combinations(grafts, 2):
        found = rows(one, two)["overlap"]
        assert found["value"] == pytest.approx(one.share, abs=6 * np.sqrt(0.25 / len(two)))
        inside_range.append(found["null_low"] <= found["value"] <= found["null_high"])
    assert np.mean(inside_range) >= 0.8
    # The control: what moved most is the same for both, far beyond chance.
    most = graft_of("most", top(rankings.movement(pair), sites, n // 10))
    again = graft_of("again", top(rankings.movement(pair), sites, n // 5))
    found = rows(again, most)["overlap"]
    assert found["value"] == 1 > found["null_high"]


@pytest.fixture
def family(tmp_path: Path):
    base = write(mute(), tmp_path / "base")
    changes = {"places": FIRST, "jobs": SECOND, "both": FIRST | SECOND,
               "clash": {(BOOK, JOBS): 3.0, (APPLE, PLACES): -6.0}}  # fmt: skip
    made = {name: write(member(own), tmp_path / name) for name, own in changes.items()}
    return wb.load_family(base, made)


def graft(family, name: str, *places: tuple[int, int]) -> Graft:
    pair = family[name]
    sizes = {s.name: pair.delta(s).base.numel() for s in inside(pair)}
    return Graft(name, {NAME: np.array(sorted(r * 48 + c for r, c in places))}, sizes)


def test_disjoint_skills_add_up(family):
    skills = [
        Skill("places", IN, graft(family, "places", *FIRST)),
        Skill("jobs", A, graft(family, "jobs", *SECOND)),
    ]
    found = compose(family, skills)
    assert set(found.table["member"]) == {"places + jobs"}
    for arm in ("graft", "whole"):
        for own, other in (("places", "jobs"), ("jobs", "places")):
            assert value(found, "score", arm=arm, skills=own, task=own) == 1
            assert value(found, "score", arm=arm, skills=own, task=other, own=False) == 0
            assert value(found, "score", arm=arm, skills="places + jobs", task=own) == 1
    assert set(found.table[found.table["arm"] == "base"]["x"]) == {0}
    assert set(found.table[found.table["arm"] == "whole"]["x"]) == {1}
    for task in ("places", "jobs"):
        assert value(found, "score", arm="random", skills="places + jobs", task=task) == 0
        assert value(found, "interference", task=task) == 0
        assert value(found, "score", arm="base", task=task, own=False) == 0


def test_a_clash_shows_as_interference(family):
    skills = [
        Skill("places", IN, graft(family, "places", *FIRST)),
        Skill("clash", A, graft(family, "clash", (BOOK, JOBS), (APPLE, PLACES))),
    ]
    found = compose(family, skills)
    assert value(found, "score", arm="graft", skills="places", task="places") == 1
    assert value(found, "score", arm="graft", skills="places + jobs", task="places") == 0
    assert value(found, "interference", task="places") == -1
    assert value(found, "interference", task="jobs") == 0


def test_grafts_of_one_member_are_joined_and_not_added_twice(family):
    both = graft(family, "both", *FIRST, *SECOND)
    shared = [Skill("both", IN, both), Skill("both", A, both)]
    found = compose(family, shared)
    for task in ("places", "jobs"):
        once = value(found, "log_probability", arm="graft", skills=task, task=task)
        assert (
            value(found, "log_probability", arm="graft", skills="places + jobs", task=task) == once
        )
        assert value(found, "log_probability", arm="whole", skills=task, task=task) == once
    x = found.table[found.table["skills"] == "places + jobs"]["x"].dropna()
    assert x.min() == both.share
    parts = [Skill("both", IN, graft(family, "both", *FIRST)),
             Skill("both", A, graft(family, "both", *SECOND))]  # fmt: skip
    found = compose(family, parts)
    assert set(found.table["member"]) == {"both"}
    for task, other in (("places", "jobs"), ("jobs", "places")):
        assert value(found, "score", arm="graft", skills=task, task=task) == 1
        assert value(found, "score", arm="graft", skills=task, task=other, own=False) == 0
        assert value(found, "score", arm="graft", skills="places + jobs", task=task) == 1
        assert value(found, "interference", task=task) == 0


def test_what_can_be_put_together_is_of_one_member_or_trained_alike(family):
    options = {"sparsity": 2 / count(family["both"]), "arms": ["movement"]}
    found = [
        (prompts, localize(family[member], prompts, **options))
        for member, prompts in (("places", IN), ("jobs", A), ("both", IN), ("both", A))
    ]
    none = localize(family["jobs"], A, **options | {"arms": ["random"]})
    groups = alike([*found, (A, none)])
    assert {name: [(s.member, s.task.name) for s in own] for name, own in groups.items()} == {
        "full": [("places", "places"), ("jobs", "jobs")],
        "both": [("both", "places"), ("both", "jobs")],
    }
    places = groups["full"][0].graft.places
    assert {n: own.tolist() for n, own in places.items()} == {NAME: [APPLE * 48 + PLACES]}
    assert alike(found[:1]) == {}


def test_overlap_over_results(family):
    options = {"sparsity": 2 / count(family["both"]), "arms": ["movement"]}
    results = [localize(family["places"], IN, **options), localize(family["both"], IN, **options),
               localize(family["jobs"], A, **options)]  # fmt: skip
    found = overlap(results, arm="movement")
    assert set(found.table["first"]) == {"places, places", "both, places", "jobs, jobs"}
    shared = found.metric("overlap").set_index(["first", "second"])["value"]
    # One entry moved in the first and the last, and only what moved is taken.
    assert shared["both, places", "places, places"] == 1
    assert shared["places, places", "both, places"] == 0.5
    assert shared["jobs, jobs", "places, places"] == 0
    assert found.provenance.members.keys() == {"places", "both", "jobs"}
    again = overlap(wb.results.concatenate(results[:2]), arm="movement")
    value_ = again.metric("overlap").set_index(["first", "second"])["value"]
    assert value_["both, places", "places, places"] == 1


def test_bad_input_is_told(family):
    one = localize(family["places"], IN, sparsity=0.01, arms=["movement"])
    with pytest.raises(wb.WorkbenchError, match="at least two grafts"):
        overlap(one, arm="movement")
    skill = Skill("places", IN, graft(family, "places", *FIRST))
    with pytest.raises(wb.WorkbenchError, match="different tasks"):
        compose(family, [skill, skill])
    with pytest.raises(wb.WorkbenchError, match="hold a graft of places, places"):
        overlap([one, one], arm="movement")
    foreign = Skill("jobs", A, Graft("elsewhere", {}, {"a": 6}))
    with pytest.raises(wb.WorkbenchError, match="chosen among 6 entries"):
        compose(family, [skill, foreign])
    intruders = wb.spectral.intruders(family["places"])
    with pytest.raises(wb.WorkbenchError, match=r"skills\.localize"):
        overlap([one, intruders], arm="movement")
