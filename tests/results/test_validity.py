"""Every analysis says which of its numbers mean nothing: no zero-width interval, no share of
nothing, no inf."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.calls import CALLS, Asked
from tests.conftest import nudged
from tests.patching.conftest import model
from tests.tuco.conftest import write
from workbench import figures
from workbench.loaders.pair import SAME
from workbench.patching.sweep_rows import shares
from workbench.results.result import Provenance, Result
from workbench.results.validity import OTHERWISE, SINGLE, SPOKEN, finished, notes, reason
from workbench.stats import auc, bootstrap, calibration, proportion
from workbench.study.catalogue import ANALYSES, METHODS

# What refuses one prompt, or a pair without a change, does so with a sentence.
NEEDS_MORE = {
    "forgetting.probe", "forgetting.prune", "tuco.scaling", "patching.circuit", "patching.das",
    "patching.dictionary", "patching.difference", "patching.drift", "patching.edge_circuits",
    "patching.groups", "patching.mask", "patching.steer",
    "skills.localize", "skills.blocks", "skills.restore", "forgetting.sharpness",
    "behaviour.advantage", "edits.repair",
}  # fmt: skip
NEEDS_A_CHANGE = {"skills.alignment", "skills.blocks", "skills.compression"}
# Whose items are entries, neurons or matrices, however many prompts there are.
OF_ENTRIES = {
    "spectral.intruders", "spectral.delta_spectrum", "spectral.similarity", "skills.alignment",
}  # fmt: skip
# Figures that cannot show a table without any number.
COUNTS = ("share", "transition", "reliability")  # Wilson's interval is wide where n is 1
RATIOS = {  # metric -> the analyses whose value is NaN for a model against itself
    "krs": "patching.cross_model",
    "recovered:score": "patching.restore", "gain": "skills.localize",
    "recovered": "forgetting.prune", "savings_share": "forgetting.revive",
    "recovery": "forgetting.conjugate",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pair")
    with torch.no_grad():
        write(model(), made / "base")
        write(nudged(model(), seed=4), made / "tuned")
    return made


def sound(made: Result) -> None:
    """No inf, and a note for everything that is NaN."""
    numbers = made.table.select_dtypes("number").to_numpy(float, na_value=np.nan)
    assert not np.isinf(numbers).any()
    said = " ".join(made.provenance.notes)
    gone = made.table[made.table["value"].isna() & ~made.table["metric"].isin(SPOKEN)]
    for metric in gone["metric"].unique():
        assert re.search(rf"{re.escape(metric)}\b.* (undefined|is not meaningful)", said), metric


def test_every_analysis_is_called():
    """Those that a study runs, and some that are only asked for by name."""
    assert {one.key for one in ANALYSES} <= set(CALLS) <= {one.key for one in METHODS}


@pytest.mark.parametrize("key", CALLS)
def test_a_model_against_itself_is_said_to_show_nothing(key: str, folder: Path):
    pair = wb.load_pair(folder / "base", folder / "base", "itself")
    if key in NEEDS_A_CHANGE:
        with pytest.raises(wb.WorkbenchError, match=r"itself (equals its base|has no changed)"):
            CALLS[key](pair, Asked(12), batch_size=4)
        return
    made = CALLS[key](pair, Asked(12), batch_size=4)
    assert any(SAME in note for note in made.provenance.notes)
    sound(made)
    for metric in [name for name, analysis in RATIOS.items() if analysis == key]:
        assert made.metric(metric)["value"].isna().all(), metric
    draw(made)


@pytest.mark.parametrize("key", CALLS)
def test_one_prompt_has_no_interval(key: str, folder: Path):
    pair = wb.load_pair(folder / "base", folder / "tuned")
    if key in NEEDS_MORE:
        with pytest.raises(wb.WorkbenchError, match=r"at least|or more|give more"):
            CALLS[key](pair, Asked(1), batch_size=4)
        return
    made = CALLS[key](pair, Asked(1), batch_size=4)
    sound(made)
    draw(made)
    if key in OF_ENTRIES:
        return
    own = made.table[made.table["n"].eq(1) & ~made.table["metric"].isin(COUNTS)]
    assert len(own)
    assert own[["low", "high"]].isna().all(axis=None)
    assert any("no interval can be given" in note for note in made.provenance.notes)


def draw(made: Result) -> None:
    """Every figure of a Result, down to its pixels."""
    for drawing, group in figures.drawings(made, [made]):
        drawing.draw(*group).canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]


def test_several_prompts_have_intervals(folder: Path):
    """The note is of one prompt alone."""
    pair = wb.load_pair(folder / "base", folder / "tuned")
    made = CALLS["forgetting.retention"](pair, Asked(8), batch_size=4)
    means = made.table[~made.table["metric"].isin(["item", "item_loss", "mcnemar"])]
    assert means[["low", "high"]].notna().all(axis=None)
    assert made.provenance.notes == ()


def test_one_item_has_no_interval():
    assert np.isnan(bootstrap([3.0])[1:3]).all()
    assert bootstrap([3.0]).value == 3.0
    assert np.isnan(bootstrap([3.0, 1.0], [1.0, 0.0])[1:3]).all()  # a weight of 0 is no item
    assert bootstrap([3.0, 1.0]).low == 1.0
    # Of a share Wilson's interval is wide enough to be told: 1 / (1 + 1.96^2) to 1.
    assert proportion(bootstrap([1.0]))[1:3] == pytest.approx((0.2065, 1.0), abs=1e-4)
    assert np.isnan(auc([1.0], [2.0, 3.0])[1:3]).all()
    error, _ = calibration([0.7], [1.0])
    assert error.value == pytest.approx(0.3)
    assert np.isnan([error.low, error.high]).all()


def test_a_share_of_nothing_is_none():
    tops = np.array([[1.0, 2.0, 3.0, 2.0]])
    clear = np.array([2.0, 2.1, 1.9, 2.0])
    assert shares(tops, clear).value[0] == pytest.approx(1.0)
    assert shares(tops, -clear).value[0] == pytest.approx(-1.0)
    assert np.isfinite([*shares(tops, clear)[:3]]).all()
    unsure = shares(tops, np.array([1.0, -1.0, 1.0, -0.5]))
    assert unsure.value[0] == pytest.approx(16.0)
    assert np.isnan([unsure.low, unsure.high]).all()
    # The plain ratio of these sums is 800, and of the next ones a million.
    for nothing in (np.array([1.0, -1.0, 1.0, -0.99]), 1e-6 * clear, 0 * clear):
        assert np.isnan([*shares(tops, nothing)[:3]]).all()
    assert np.isnan(shares(tops[:, :1], np.array([0.01])).value[0])
    assert shares(tops[:, :1], np.array([2.0])).value[0] == pytest.approx(0.5)


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame({"member": "m", "low": 0.0, "high": 1.0, "n": 5} | columns)


def test_notes_tell_why():
    rows = table(metric=["krs", "krs", "score"], value=[np.nan, 1.0, 0.5])
    (note,) = notes("m", rows)
    assert note == f"m: krs is undefined (NaN) in 1 of 2 values: {reason('krs')}."
    (note,) = notes("m", rows.assign(n=1))  # 1.0 and 0.5 have an interval, and are let be
    assert SINGLE in note
    (note,) = notes("m", rows.assign(n=0))
    assert "no item" in note
    assert not list(notes("m", rows, ["m: krs is not meaningful."]))
    (note,) = notes("m", table(metric=["score"], value=[0.5]).assign(low=np.nan, n=1))
    assert "score" in note
    assert "no interval" in note
    assert not list(notes("m", table(metric=["verdict"], value=[np.nan])))
    assert reason("auc:tuco") == reason("auc:output_co") != OTHERWISE
    assert reason("unheard of") == OTHERWISE


def test_members_are_told_apart():
    rows = pd.concat([
        table(metric=["gain"], value=[np.nan]), table(metric=["gain"], value=[0.5], member="other"),
    ])  # fmt: skip
    provenance = Provenance({}, {"m": {}, "other": {}}, notes=("first",))
    made = finished("skills.localize", rows, provenance)
    assert made.provenance.notes[0] == "first"
    assert [note[:2] for note in made.provenance.notes[1:]] == ["m:"]
