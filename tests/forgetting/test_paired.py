"""Counts of lost and won items by hand, guessing with a known truth, clusters and groups."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import workbench as wb
from tests.models.conftest import no_gradients
from workbench.errors import WorkbenchError
from workbench.forgetting.paired import Paired, mcnemar, require_tags, rows, transitions
from workbench.stats import bootstrap, gaps


def items(before, after, chance=np.nan, tags=None) -> Paired:
    n = len(before)
    some, nothing = tuple(map(str, range(n))), ("",) * n
    return Paired(
        "t", some, np.asarray(before, float), np.asarray(after, float), np.full(n, chance),
        tuple(tags or [{}] * n), some, some, nothing, nothing,
    )  # fmt: skip


def table(one: Paired, **asked) -> pd.DataFrame:
    return pd.DataFrame(rows(one, **asked))


def value(found: pd.DataFrame, metric: str) -> float:
    return float(found.loc[found["metric"] == metric, "value"].item())


def test_a_table_by_hand():
    """10 items: 4 stay right, 3 are lost, 1 is won, 2 stay wrong; p = 2 (1 + 4) / 16."""
    found = table(items([1] * 7 + [0] * 3, [1] * 4 + [0] * 3 + [1, 0, 0]))
    assert value(found, "score") == pytest.approx(0.5)
    assert value(found, "score_change") == pytest.approx(-0.2)
    assert value(found, "lost") == pytest.approx(0.3)
    assert value(found, "gained") == pytest.approx(0.1)
    assert value(found, "mcnemar") == pytest.approx(10 / 16)
    assert found.loc[found["metric"] == "mcnemar", "changed"].item() == 4
    assert "lost_adjusted" not in set(found["metric"])
    each = found[found["metric"] == "item"]
    assert each.loc[each["value"] < each["baseline"], "prompt"].tolist() == ["4", "5", "6"]


def test_base_against_itself_loses_and_wins_nothing():
    found = table(items([1, 0, 1, 1], [1, 0, 1, 1], chance=0.25))
    for metric in ("score_change", "lost", "gained"):
        assert value(found, metric) == 0
    assert value(found, "mcnemar") == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_what_is_won_less_what_is_lost_is_the_change(pairs):
    before, after = np.array(pairs, dtype=float).T
    found = transitions(before, after, np.full(len(pairs), 0.25))
    for end in ("", "_adjusted"):
        net = found[f"gained{end}"].mean() - found[f"lost{end}"].mean()
        assert net == pytest.approx(after.mean() - before.mean())


@pytest.mark.parametrize("k", [2, 4, 10])
def test_guessing_alone_is_no_forgetting(k: int):
    """Nobody forgot anything: who does not know guesses anew. The plain count says otherwise."""
    draw = np.random.default_rng(0)
    n, known = 200_000, 0.4
    knows = draw.random(n) < known
    before, after = ((knows | (draw.random(n) < 1 / k)).astype(float) for _ in range(2))
    found = transitions(before, after, np.full(n, 1 / k))
    expected = (1 - known) * (1 / k) * (1 - 1 / k)
    assert found["lost"].mean() == pytest.approx(expected, abs=0.003)
    assert found["lost_adjusted"].mean() == pytest.approx(0, abs=0.004)
    assert found["gained_adjusted"].mean() == pytest.approx(0, abs=0.004)


def test_what_was_forgotten_beside_guessing_is_found():
    """A tenth forgotten, k = 4: 3 / 4 of them show as lost, since a guess is right now and then."""
    draw = np.random.default_rng(1)
    n, k = 400_000, 4
    state = draw.random(n)
    knew, knows = state < 0.5, state < 0.4
    before = (knew | (draw.random(n) < 1 / k)).astype(float)
    after = (knows | (draw.random(n) < 1 / k)).astype(float)
    found = transitions(before, after, np.full(n, 1 / k))
    assert found["lost_adjusted"].mean() == pytest.approx(0.1 * 3 / 4, abs=0.003)
    assert found["gained_adjusted"].mean() == pytest.approx(0, abs=0.003)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_tail_both_ways(lost, gained):
    n, less = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, i) for i in range(less + 1)) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))


def test_shares_of_samples_have_no_mcnemar():
    found = table(items([0.5, 1.0], [0.25, 1.0]))
    assert "mcnemar" not in set(found["metric"])
    assert value(found, "lost") == pytest.approx(0.5 * 0.75 / 2)


def test_items_of_one_passage_are_one_observation():
    """Every item ten times over: items alone look ten times as many, clusters do not."""
    draw = np.random.default_rng(0)
    before, after = (draw.random((2, 30)) < 0.5).astype(float)
    once = items(before, after)
    often = items(
        np.repeat(before, 10), np.repeat(after, 10),
        tags=[{"passage": str(i // 10)} for i in range(300)],
    )  # fmt: skip

    def width(found: pd.DataFrame) -> float:
        row = found[found["metric"] == "score_change"].iloc[0]
        return float(row["high"] - row["low"])

    alone = width(table(once))
    # Newcombe's of thirty items, and thirty clusters resampled.
    assert width(table(often, cluster="passage")) == pytest.approx(alone, rel=0.15)
    assert width(table(often)) < 0.4 * alone  # negative control
    assert "mcnemar" not in set(table(often, cluster="passage")["metric"])


def test_clusters_of_one_item_each_are_the_plain_bootstrap():
    values, weights = np.random.default_rng(0).random((2, 20))
    plain = bootstrap(values, weights)
    assert bootstrap(values, weights, clusters=np.arange(20)) == pytest.approx(plain)
    single = bootstrap(values, clusters=np.zeros(20))
    assert single.value == pytest.approx(values.mean())
    assert math.isnan(single.low)


def test_groups_are_told_apart_and_their_gap():
    """Two subjects of 10: one falls from 1 to .2, the other stays at .5."""
    before = [1] * 10 + [1] * 5 + [0] * 5
    after = [1] * 2 + [0] * 8 + [1] * 5 + [0] * 5
    tags = [{"subject": "law"}] * 10 + [{"subject": "art"}] * 10
    found = table(items(before, after, tags=tags), by="subject")
    own = found[found["group"].notna()].set_index(["metric", "group"])["value"]
    assert own["group_score", "law"] == pytest.approx(0.2)
    assert own["group_score_change", "law"] == pytest.approx(-0.8)
    assert own["group_lost", "law"] == pytest.approx(0.8)
    assert own["group_score_change", "art"] == 0
    assert value(found, "group_gap") == pytest.approx(0.3)
    assert value(found, "group_gap_change") == pytest.approx(0.3 - 0.5)
    gap = found[found["metric"] == "group_gap"].iloc[0]
    assert (gap["groups"], gap["n"], gap["baseline"]) == (2, 20, pytest.approx(0.5))
    assert found.loc[found["metric"] == "item", "group"].tolist() == [t["subject"] for t in tags]


def test_the_worst_group_is_picked_on_other_items():
    """Three groups of 16; "hard" falls from .75 to .25 in either half, the others keep .75."""
    good, bad = np.tile([1, 1, 1, 0], 4), np.tile([1, 0, 0, 0], 4)
    tags = [{"kind": name} for name in ("easy", "hard", "plain") for _ in range(16)]
    one = items([*good] * 3, np.concatenate([good, bad, good]), tags=tags)
    found = table(one, by="kind").set_index("metric")
    half = np.random.default_rng(0).permutation(16)[8:]
    assert found.loc["group_worst_score", "group"] == "hard"
    assert found.loc["group_worst_score", "n"] == 8
    assert found.loc["group_worst_score", "value"] == pytest.approx(bad[half].mean())
    assert found.loc["group_worst_score", "baseline"] == pytest.approx(good[half].mean())
    fell = (bad - good)[half].mean()
    assert found.loc["group_worst_score_change", "value"] == pytest.approx(fell)
    assert "group_change_difference" not in found.index
    tags = [{"likeness": "like" if i < 16 else "unlike"} for i in range(32)]
    two = items([*good] * 2, [*good, *bad], tags=tags)
    row = table(two, by="likeness").set_index("metric").loc["group_change_difference"]
    assert (row["group"], row["value"]) == ("like less unlike", pytest.approx(0.5))
    assert row["low"] > 0


def test_the_worst_of_equal_groups_is_no_worse_than_the_others():
    """Picked and reported on the same items it would be: of 12 groups .27 instead of .5."""
    found, biased = [], []
    for seed in range(120):
        right = (np.random.default_rng(seed).random(240) < 0.5).astype(float)
        tags = [{"kind": str(i % 12)} for i in range(240)]
        rows_ = table(items(right, right, tags=tags), by="kind", seed=seed, same=True)
        found.append(value(rows_, "group_worst_score"))
        biased.append(min(right[k::12].mean() for k in range(12)))
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)
    assert np.mean(biased) < 0.35


def test_clusters_are_not_split_between_picking_and_reporting():
    tags = [{"kind": "ab"[i % 2], "of": str(i // 4)} for i in range(64)]
    right = np.tile([1.0, 0], 32)
    rows_ = table(items(right, right, tags=tags), by="kind", cluster="of").set_index("metric")
    assert rows_.loc["group_worst_score", "group"] == "b"
    assert rows_.loc["group_worst_score", "n"] == 16


def test_equal_groups_have_the_gap_of_chance():
    """The gap of groups dealt at random lies in the range it is given, 19 times of 20 or so."""
    inside = 0
    for seed in range(60):
        right = (np.random.default_rng(seed).random(60) < 0.5).astype(float)
        found = {row["metric"]: row for row in gaps(right, right, np.arange(60) % 5, seed)}
        chance = found["gap_chance"]
        inside += chance["low"] <= found["gap"]["value"] <= chance["high"]
        assert found["gap_change"]["value"] == 0
    assert inside >= 52


def test_small_groups_have_a_score_and_no_gap():
    tags = [{"subject": str(i % 4)} for i in range(20)]
    found = table(items([1] * 20, [1] * 20, tags=tags), by="subject")
    assert (found["metric"] == "group_score").sum() == 4
    assert not found["metric"].str.contains("gap").any()


def test_a_tag_that_nothing_or_not_everything_has_is_refused():
    one = items([1, 0], [1, 1], tags=[{"kind": "a"}, {}])
    with pytest.raises(WorkbenchError, match="1 of 2 items of 't' have the tag 'kind', and '1'"):
        list(rows(one, by="kind"))
    with pytest.raises(WorkbenchError, match=r"Expected by to be a tag.*'subject'.*they have kind"):
        require_tags([replace(one, tags=({"kind": "a"},) * 2)], by="subject")


def test_the_worst_answer_of_a_run_needs_no_tag(tmp_path: Path):
    """`overruled` says book to what was an apple; the words of its members carry no tag."""
    from tests.forgetting.conftest import nouns, overruled, pair
    from workbench.cli import app

    own = pair(tmp_path, overruled())
    found = wb.forgetting.retention(own, [nouns(0, 40)], texts=["a book in a"], by="answer").table
    (row,) = found[found["metric"] == "group_worst_score"].itertuples()
    assert (row.group, row.value, row.baseline, row.n) == ("apple", 0, 1, 10)
    (row,) = found[found["metric"] == "group_change_difference"].itertuples()
    assert (row.group, row.value) == ("apple less book", -1)
    prompts = str(nouns(0, 40).save(tmp_path / "nouns.jsonl"))
    (tmp_path / "texts.txt").write_text("a book in a\n")
    run = ["forget", "retention", str(tmp_path / "base"), str(tmp_path / "tuned"), "--prompts",
           prompts, "--by", "answer", "--texts", str(tmp_path / "texts.txt")]  # fmt: skip
    done = CliRunner().invoke(app, run, catch_exceptions=False)
    assert "worst answer apple (score 0.00" in " ".join(done.output.split())


__all__ = ["no_gradients"]


def test_groups_within_one_cluster_are_not_taken_for_independent():
    """Their difference is told where every cluster has one group, and not where some have both."""
    right = np.tile([1.0, 0, 0, 1], 16)
    for size, group, told in ((8, lambda i: i // 8 % 2, 1), (2, lambda i: i % 2, 0)):
        tags = [{"kind": "ab"[group(i)], "of": str(i // size)} for i in range(64)]
        found = table(items(right, right[::-1], tags=tags), by="kind", cluster="of")
        assert (found["metric"] == "group_change_difference").sum() == told
