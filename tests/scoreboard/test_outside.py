"""Others' methods agree with ours where they measure the same."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.lab.compiled import pairs
from workbench.lab.known import Known
from workbench.scoreboard import ours, outside


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    return pairs(tmp_path_factory.mktemp("compiled"), ("copy-decoy", "facts-rank-3"))


def test_the_norm_is_that_of_the_change(known: dict[str, Known]):
    one = known["facts-rank-3"]
    found = outside.norm(one.base, one.tuned, one.prompts)["matrix"]
    # Three singular values of 2.
    assert found.pop((1, "mlp.c_proj")) == pytest.approx(12**0.5)
    assert set(found.values()) == {0.0}


def test_peft_counts_the_intruders_that_we_count(known: dict[str, Known]):
    one = known["facts-rank-3"]
    theirs = outside.peft_intruders(one.base, one.tuned, one.prompts)
    entry = ours.ENTRIES["spectral.intruders"]
    pair = wb.load_pair(one.base, one.tuned)
    exact = wb.spectral.intruders(pair, nulls=False, method="exact")
    own = entry.read(exact, one.prompts)
    assert theirs.places["matrix"] == {
        p: own.places["matrix"].get(p, 0.0) for p in theirs.places["matrix"]
    }
    assert theirs.finds == own.finds


def test_transformer_lens_scores_the_edges_that_we_score(known: dict[str, Known]):
    """The same formula: its mean over prompts, less the sign, is ours times the mean difference."""
    one = known["copy-decoy"]
    few, others = one.prompts[:3], (one.corrupted or one.prompts)[:3]
    theirs = outside.lens_attribution(one.base, one.tuned, few, corrupted=others)
    entry = ours.ENTRIES["patching.attribution"]
    pair = wb.load_pair(one.base, one.tuned)
    own = entry.read(entry.ask(pair, one.prompts[:3], others), few)
    edge = ("embedding", "1.v.h2")
    scale = theirs["edge"][edge] / own.places["edge"][edge]
    for place, score in own.places["edge"].items():
        assert theirs["edge"][place] == pytest.approx(
            abs(score) * scale, rel=1e-3, abs=1e-3 * scale
        )
