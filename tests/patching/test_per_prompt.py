"""Values of single prompts: what a table is the means of, other statistics, paired comparisons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired
from workbench.errors import WorkbenchError
from workbench.files import large
from workbench.models import Layout
from workbench.patching import edges as graph
from workbench.patching.per_prompt import PerPrompt
from workbench.results.result import concatenate

SITES = {"sites": ["z"], "positions": [-1], "controls": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with torch.no_grad():
        return paired(model(), nudged(model(), seed=1), tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def found(pair):
    return wb.patching.activation(pair, boxes(6), **SITES)


def test_they_are_what_the_table_is_the_mean_of(found, tmp_path):
    """Of each place, side and measure; saved and loaded they are the same."""
    loaded = wb.Result.load(found.save(tmp_path / "kept"))
    for side in ("base", "tuned"):
        for metric in ("logit_difference", "log_probability", "score"):
            kept = wb.patching.per_prompt(loaded, metric, side=side)
            rows = found.metric(metric)
            rows = rows[(rows["side"] == side) & (rows["arm"] == "patch")]
            assert kept.values.shape == (len(rows), 6)
            assert kept.values.mean(1) == pytest.approx(rows["value"].to_numpy(float), abs=1e-5)
            same = kept.places[["layer", "head"]].to_numpy()
            assert (same == rows[["layer", "head"]].to_numpy()).all()


def test_shares_are_made_anew_from_their_parts(found):
    """The recovered share of any prompts, by hand from the two plain runs and the patched one."""
    told = {"side": "tuned"}
    parts = [
        wb.patching.per_prompt(found, "logit_difference", arm=arm, **told).values
        for arm in ("patch", "destination", "source")
    ]
    patched, zero, one = (part.sum(1) for part in parts)
    shares = found.metric("recovered:logit_difference")
    shares = shares[(shares["side"] == "tuned") & (shares["arm"] == "patch")]["value"]
    known = shares.notna().to_numpy()
    assert known.any()
    assert ((patched - zero) / (one - zero))[known] == pytest.approx(
        shares[known].to_numpy(float), abs=1e-4
    )


def test_two_sides_are_compared_prompt_by_prompt(found):
    tuned, base = (
        wb.patching.per_prompt(found, "logit_difference", side=side) for side in ("tuned", "base")
    )
    table = tuned.less(base).table()
    assert table["value"].to_numpy() == pytest.approx((tuned.values - base.values).mean(1))
    assert (table["low"] <= table["value"]).all()
    assert set(table["n"]) == {6}
    nothing = tuned.less(tuned).table()
    assert (nothing[["value", "low", "high"]] == 0).all(axis=None)
    # Paired, what both sides have in common goes: no wider than the two intervals together.
    alone = [one.table() for one in (tuned, base)]
    wide = sum(one["high"] - one["low"] for one in alone)
    assert (table["high"] - table["low"] <= wide + 1e-9).all()
    # One run without a patch is taken from every place.
    plain = wb.patching.per_prompt(found, "logit_difference", side="tuned", arm="destination")
    assert tuned.less(plain).values == pytest.approx(tuned.values - plain.values)


def test_other_statistics_and_fewer_prompts(found):
    kept = wb.patching.per_prompt(found, "log_probability", side="base")
    table = kept.of([0, 3, 5]).table(np.median)
    assert table["value"].to_numpy() == pytest.approx(np.median(kept.values[:, [0, 3, 5]], axis=1))
    assert set(table["n"]) == {3}
    gaps = PerPrompt("m", pd.DataFrame({"layer": [0]}), np.array([[1.0, np.nan, 5.0]]))
    assert gaps.table(np.max)[["value", "n"]].to_numpy().tolist() == [[5.0, 2.0]]
    assert gaps.table()["value"].tolist() == [3.0]


def test_places_are_matched_by_name():
    def made(layers: list[int]) -> PerPrompt:
        places = pd.DataFrame({"layer": pd.array(layers, dtype="Int64")})
        return PerPrompt("m", places, np.array(layers, dtype=float)[:, None] * [1, 10])

    apart = made([3, 1, 2]).less(made([2, 3]))
    assert apart.places["layer"].tolist() == [3, 2]
    assert (apart.values == 0).all()
    with pytest.raises(WorkbenchError, match="none in common"):
        made([1]).less(made([2, 3]))
    with pytest.raises(WorkbenchError, match="same prompts, found 2 and 1"):
        made([1]).less(made([1]).of([0]))


def test_members_and_what_was_not_kept(found, pair):
    other = wb.patching.activation(pair, boxes(6), **SITES)
    member = {"other": dict(found.provenance.members[found.members[0]])}
    table = other.table.assign(member="other")
    other = wb.Result(
        other.analysis, table, replace(
            other.provenance, members=member), other.tensors,
    )  # fmt: skip
    both = concatenate([found, other])
    one = wb.patching.per_prompt(both, "score", side="base", member="other")
    assert (one.values == wb.patching.per_prompt(found, "score", side="base").values).all()
    with pytest.raises(WorkbenchError, match="give member="):
        wb.patching.per_prompt(both, "score", side="base")
    with pytest.raises(WorkbenchError, match="keeps no values of single prompts of side None"):
        wb.patching.per_prompt(found, "score")
    with pytest.raises(WorkbenchError, match="metric recovered:score; it has base, destination"):
        wb.patching.per_prompt(found, "recovered:score", side="base")


def test_edges_have_no_names_and_are_told_apart_by_their_order(pair):
    """The table has them by strength; the values are in the order of the links."""
    found = wb.patching.attribution(
        pair, boxes(6), sites="z", positions=[-1], edges=True, exact=0, sides=("tuned",)
    )
    kept = wb.patching.per_prompt(found, "edge_attribution")
    assert kept.places.isna().all(axis=None)
    links = graph.links(Layout(model()))
    strong = int(np.nanargmax(np.abs(kept.values.mean(1))))
    rows = found.metric("edge_attribution")
    best = rows.loc[rows["value"].abs().idxmax()]
    assert tuple(links[strong].named.values()) == (best["sender"], best["receiver"])
    # Less itself it is nothing, row by row and none lost.
    assert kept.less(kept).values.shape == kept.values.shape
    with pytest.raises(WorkbenchError, match="as many rows without places"):
        kept.less(replace(kept, values=kept.values[:2], places=kept.places.iloc[:2]))


def test_what_is_large_lies_in_a_file_and_is_the_same(pair, tmp_path, monkeypatch):
    """Every number of sweeps, knockouts, paths and attributions, and what is saved of them and read
    again."""
    told = {"corrupted": wb.tasks.corrupt(boxes(6), 0, tokenizer=pair.base.tokenizer())}
    runs = [
        lambda: wb.patching.activation(pair, boxes(6), sites=["z", "mlp_out"], controls=2),
        lambda: wb.patching.cross_model(pair, boxes(6), sites=["resid_post"]),
        lambda: wb.patching.attribution(
            pair, boxes(6, order="object first"), edges=True, exact=2, sites=["z"]
        ),
        lambda: wb.patching.restore(pair, boxes(6), components="matrix"),
        lambda: wb.patching.knockout(pair, boxes(6), components=["neuron"], arms=["zero", "mean"]),
        lambda: wb.patching.path(pair, boxes(6), **told),
    ]
    plain = [run() for run in runs]
    for name, size in (("LARGE", 64), ("ROOM", 64), ("STEP", 4)):
        monkeypatch.setattr(large, name, size)
    for one, run in zip(plain, runs, strict=True):
        other = run()
        pd.testing.assert_frame_equal(one.table, other.table, rtol=1e-12, atol=1e-12)
        assert one.tensors.keys() == other.tensors.keys()
        read = wb.Result.load(other.save(tmp_path / one.analysis)).tensors
        for name, array in one.tensors.items():
            assert np.array_equal(array, other.tensors[name], equal_nan=True), name
            assert np.array_equal(array, read[name], equal_nan=True), name
