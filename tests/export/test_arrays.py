"""Every value of a table stands in the array under the names of its row, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.export.hostile import retained
from workbench.export.tables import KEYS
from workbench.results.run_folder import load

xarray = pytest.importorskip("xarray")
KEPT = Path(__file__).parents[2] / "figures" / "family"


@pytest.fixture(scope="module")
def family() -> dict[str, wb.Result]:
    return load(KEPT)


def require_same(result: wb.Result) -> None:
    found = result.to_xarray()
    for metric, rows in result.table.groupby("metric", sort=False):
        name = str(metric) if metric not in KEYS else f"{metric}.value"
        array = found[name]
        if array.dims == (f"{metric}.row",):
            np.testing.assert_array_equal(array, rows["value"].to_numpy())
            for key in (own for own in KEYS if own in rows and rows[own].notna().any()):
                theirs = found[f"{metric}.{key}"].to_numpy()
                for ours, other in zip(rows[key], theirs, strict=True):
                    assert same(ours, other)
            continue
        places = {dim: list(found[dim].to_numpy()) for dim in array.dims}
        for edge in ("value", "low", "n"):
            own = name if edge == "value" else f"{metric}.{edge}"
            if own not in found:
                assert edge not in rows or rows[edge].isna().all()
                continue
            cells = found[own].to_numpy()
            for row in rows.to_dict("records"):
                at = tuple(
                    next(i for i, label in enumerate(places[dim]) if same(label, row[dim]))
                    for dim in array.dims
                )
                assert same(cells[at], row[edge])
            assert np.isfinite(cells).sum() == np.isfinite(rows[edge].astype(float)).sum()


def same(one: object, other: object) -> bool:
    lacks = [pd.isna(side) or side == "" for side in (one, other)]
    return all(lacks) if any(lacks) else one == other


SMALL = (
    "compare.equivalence", "spectral.similarity", "forgetting.retention", "skills.overlap",
    "forgetting.revive.suppressed", "forgetting.verdict.suppressed", "behaviour.tokens.said",
    "patching.restore.boxes", "skills.localize.grafts-ledger", "patching.patterns.boxes",
    "forgetting.association",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_every_value_stands_at_its_names(name: str, family):
    require_same(family[name])


def test_whatever_a_name_holds_it_is_found_by_it():
    made = retained()
    require_same(made)
    found = made.to_xarray()
    for row in made.metric("score").itertuples():
        assert float(found["score"].sel(member=row.member, task=row.task)) == row.value
        assert float(found["score.high"].sel(member=row.member, task=row.task)) == row.high


def test_every_kept_result_is_a_dataset_of_modest_size(family):
    for name, result in family.items():
        found = result.to_xarray()
        assert {*found.data_vars} >= {*result.tensors}, name
        tensors = sum(array.nbytes for array in result.tensors.values())
        # At most 20 cells of eight bytes for a value, in each of a dozen columns.
        assert found.nbytes - tensors < max(4 * 2**20, 20 * 8 * 12 * len(result.table)), name


def test_tensors_have_named_dimensions(family):
    result = family["spectral.similarity"]
    found = result.to_xarray()
    for name, array in result.tensors.items():
        assert found[name].dims == ("tuned_vector_192", "base_vector_192")
        np.testing.assert_array_equal(found[name], array)
    result = family["patching.patterns.boxes"]
    found = result.to_xarray()
    assert found["boxes-full/0/base/last"].dims == ("layer_6", "head_6", "key_40")
    assert found["boxes-full/0/base/head"].dims == ("query_40", "key_40")
    made = wb.Result("x.y", retained().table, retained().provenance, {"m/score": np.eye(2, 3)})
    assert made.to_xarray()["m/score"].dims == ("m/score.0", "m/score.1")


def test_a_tensor_of_a_metrics_name_stays_apart():
    made = wb.Result("x.y", retained().table, retained().provenance, {"score": np.arange(3.0)})
    found = made.to_xarray()
    np.testing.assert_array_equal(found["score.tensor"], np.arange(3.0))
    assert found["score"].dims == ("member", "task")


def test_rows_that_no_key_tells_apart_lie_in_a_row():
    made = retained(("a",), ("t",))
    twice = wb.Result("x.y", pd.concat([made.table, made.table + made.table]), made.provenance)
    same_keys = twice.table.assign(member="a", task="t", metric=[*made.table["metric"]] * 2)
    found = wb.Result("x.y", same_keys, made.provenance).to_xarray()
    assert found["score"].dims == ("score.row",)
    assert list(found["score"].to_numpy()) == [0.0, 0.0]
    assert list(found["score.member"].to_numpy()) == ["a", "a"]


def test_few_values_of_many_keys_claim_no_memory():
    n = 400
    table = pd.DataFrame(
        {"member": "a", "prompt": range(n), "position": range(n), "rank": range(n), "metric": "m",
         "value": np.arange(n) / 7}
    )  # fmt: skip
    found = wb.Result("x.y", table, retained().provenance).to_xarray()
    assert found["m"].dims == ("m.row",)
    assert found.nbytes < 100_000


def test_a_key_that_some_rows_lack():
    table = pd.DataFrame(
        {"member": ["a", "a", "a"], "layer": pd.array([0, 1, None], dtype="Int64"),
         "component": ["q", None, None], "metric": "m", "value": [1.0, 2.0, 3.0]}
    )  # fmt: skip
    found = wb.Result("x.y", table, retained().provenance).to_xarray()
    assert float(found["m"].sel(member="a", layer=0, component="q")) == 1
    assert float(found["m"].sel(member="a", layer=1, component="")) == 2
    assert np.isnan(found["layer"].to_numpy()[2])
    assert float(found["m"].sel(member="a", component="")[2]) == 3
    assert np.isnan(found["m"].sel(member="a", layer=1, component="q"))


def test_provenance_is_in_the_attributes():
    made = retained()
    attrs = made.to_xarray().attrs
    for name, value in asdict(made.provenance).items():
        told = attrs[name]
        read = json.loads(told) if isinstance(value, dict) else told
        assert read == (list(value) if isinstance(value, tuple) else value), name
    assert attrs["analysis"] == "forgetting.retention"
