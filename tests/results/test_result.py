"""Results survive saving, joining and interruption; units of work are computed once."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.files.writing import OWN, replacing, writing
from workbench.results.result import SAVED, Provenance
from workbench.stats import bootstrap
from workbench.study import units


def test_save_and_load_give_the_same(base: Path, tuned: Path, tmp_path: Path):
    made = wb.spectral.similarity(wb.load_pair(base, tuned))
    again = wb.Result.load(made.save(tmp_path / "r"))
    pd.testing.assert_frame_equal(again.table, made.table)
    assert again.provenance == made.provenance
    assert again.tensors.keys() == made.tensors.keys()
    for name, array in made.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)


@pytest.mark.filterwarnings("error")
def test_arrays_of_every_kind_are_saved_without_a_word(tmp_path: Path):
    """Such as may not be written, lie in memory with gaps, have no dimension, or no entry."""
    frozen = np.arange(6.0).reshape(2, 3)[:, ::2]
    frozen.flags.writeable = False
    arrays = {
        "frozen": frozen, "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "one": np.array(3.0), "none": np.zeros((0, 4), np.float32), "flags": np.array([True]),
    }  # fmt: skip
    table = pd.DataFrame([{"member": "m", "metric": "score", "value": 1.0}])
    made = wb.Result("x.y", table, Provenance({"fingerprint": "b"}, {"m": {}}), arrays)
    again = wb.Result.load(made.save(tmp_path / "r"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again.tensors[name], array, strict=True)


def test_a_failed_save_leaves_the_old_result_whole(base: Path, tuned: Path, tmp_path: Path):
    made = wb.spectral.delta_spectrum(wb.load_pair(base, tuned))
    made.save(tmp_path / "r")
    with pytest.raises(RuntimeError), replacing(tmp_path / "r", SAVED) as fresh:
        (fresh / "table.parquet").write_text("half")
        raise RuntimeError
    pd.testing.assert_frame_equal(wb.Result.load(tmp_path / "r").table, made.table)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    (tmp_path / "f.txt").write_text("old")
    with pytest.raises(RuntimeError), writing(tmp_path / "f.txt", OWN) as fresh:
        fresh.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
    assert (tmp_path / "f.txt").read_text() == "old"


def test_loading_what_is_no_result_is_one_sentence(tmp_path: Path):
    with pytest.raises(wb.WorkbenchError, match="Expected a saved Result"):
        wb.Result.load(tmp_path)


def test_over_joins_members_and_computes_each_once(base, tuned, lora, tmp_path, monkeypatch):
    family = wb.load_family(base, {"full": tuned, "lora-r3": lora})
    made = wb.over(family, wb.spectral.delta_spectrum, store=tmp_path / "store")
    assert made.members == ["full", "lora-r3"]
    assert made.provenance.members["lora-r3"]["rank"] == 3
    assert set(made.table["member"]) == {"full", "lora-r3"}
    module = importlib.import_module("workbench.spectral.delta_spectrum")
    monkeypatch.setattr(module, "change_values", None)
    again = wb.over(family, wb.spectral.delta_spectrum, store=tmp_path / "store")
    pd.testing.assert_frame_equal(again.table, made.table)


def test_an_interrupted_run_keeps_what_was_done(base, tuned, lora, tmp_path, monkeypatch):
    family = wb.load_family(base, {"full": tuned, "lora-r3": lora})
    original = wb.spectral.delta_spectrum

    def failing(pair, **options):
        if pair.name == "lora-r3":
            raise KeyboardInterrupt
        return original(pair, **options)

    failing.__module__, failing.__name__ = original.__module__, original.__name__
    with pytest.raises(KeyboardInterrupt):
        wb.over(family, failing, store=tmp_path / "store")
    kept = [p for p in (tmp_path / "store").iterdir() if (p / "result.json").exists()]
    assert len(kept) == 1
    wb.over(family, original, store=tmp_path / "store")
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_units_key_follows_everything_that_can_change_a_number(base, tuned, lora):
    full, low = wb.load_pair(base, tuned), wb.load_pair(base, lora)
    keys = [
        units.Unit(full, wb.spectral.intruders, {"k": 10}).key,
        units.Unit(full, wb.spectral.intruders, {"k": 9}).key,
        units.Unit(full, wb.spectral.delta_spectrum, {"k": 10}).key,
        units.Unit(low, wb.spectral.intruders, {"k": 10}).key,
    ]
    assert len(set(keys)) == 4
    again = units.Unit(wb.load_pair(base, tuned), wb.spectral.intruders, {"k": 10})
    assert keys[0] == again.key


def test_results_of_different_parameters_do_not_join(base, tuned):
    pair = wb.load_pair(base, tuned)
    results = [wb.spectral.intruders(pair, k=k, nulls=False) for k in (3, 4)]
    with pytest.raises(wb.WorkbenchError, match="parameters differ"):
        wb.results.concatenate(results)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_a_bootstrap_interval_holds_its_mean(values):
    found = bootstrap(values)
    assert found.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_bootstrap_covers_about_95_percent():
    draws = np.random.default_rng(0).normal(size=(200, 60))
    covered = [b.low <= 0 <= b.high for b in (bootstrap(d, draws=400) for d in draws)]
    assert 0.88 < np.mean(covered) < 0.99


def test_weighted_mean_is_the_ratio_of_sums():
    assert bootstrap([1.0, 4.0], [3.0, 1.0]).value == pytest.approx(7 / 4)
