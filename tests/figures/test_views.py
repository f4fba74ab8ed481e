"""Every row of a table has its view, and the columns that a row fills decide which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.figures.synthetic import everything, family, result
from workbench.figures.views import PLACES, VALUES, View, begins, views

MEMBERS = family(2)


def made(*rows: dict, analysis: str = "a.b") -> list[View]:
    own = [{"member": name, **row} for name in MEMBERS for row in rows]
    return views(result(analysis, own, MEMBERS))


def one(*rows: dict) -> View:
    (found,) = made(*rows)
    return found


def of(view: View, table: pd.DataFrame) -> pd.Series:
    """The rows that a page shows in a view, over all choices of its pickers."""
    shown = table["metric"].isin(view.metrics)
    for name in view.filled:
        shown &= table[name].notna()
    for name in view.empty:
        shown &= table[name].isna()
    return shown


@pytest.mark.parametrize(
    ("rows", "kind", "x", "y"),
    [
        ([{"metric": "m", "layer": i, "head": h, "value": 0.1} for i in (0, 1) for h in (0, 1)],
         "heat", "head", "layer"),
        ([{"metric": "m", "layer": i, "value": 0.1} for i in (0, 1)], "lines", "layer", ""),
        ([{"metric": "m", "x": x, "value": 0.1} for x in (0.1, 0.5)], "lines", "x", ""),
        ([{"metric": "m", "prompt": p, "value": 0.1, "baseline": 0.2} for p in "ab"],
         "points", "baseline", ""),
        ([{"metric": "m", "first": a, "second": b, "value": 0.1} for a in "ab" for b in "ab"],
         "matrix", "second", "first"),
        ([{"metric": "m", "prompt": "p", "position": i, "token": t, "value": 0.1}
          for i, t in enumerate("ab")], "tokens", "position", ""),
        ([{"metric": "m", "prompt": "p", "text": "hello", "value": np.nan}], "texts", "", ""),
        ([{"metric": "m", "task": t, "value": 0.1} for t in "ab"], "dots", "", ""),
    ],
)  # fmt: skip
def test_the_columns_that_rows_fill_decide_the_kind(rows: list[dict], kind: str, x: str, y: str):
    found = one(*rows)
    assert (found.kind, found.x, found.y) == (kind, x, y)


def test_what_is_no_axis_has_a_picker_and_what_never_varies_has_none():
    rows = [
        {"metric": "m", "layer": i, "head": h, "side": s, "task": "one", "value": 0.1}
        for i in (0, 1) for h in (0, 1) for s in ("base", "tuned")
    ]  # fmt: skip
    assert one(*rows).pick == ("side",)


def test_a_column_that_follows_from_another_is_no_picker():
    rows = [{"metric": "m", "x": x, "sparsity": x / 2, "value": 0.1} for x in (0.1, 0.5)]
    assert one(*rows).pick == ()


def test_metrics_of_one_shape_share_a_view_and_others_do_not():
    rows = [{"metric": m, "x": x, "value": 0.1} for m in ("a", "b") for x in (0, 1)]
    rows += [{"metric": "c", "value": 0.1}]
    assert [(v.kind, v.metrics) for v in made(*rows)] == [
        ("lines", ("a", "b")), ("dots", ("c",)),
    ]  # fmt: skip


def test_one_metric_with_and_without_a_place_is_two_views():
    rows = [{"metric": "m", "layer": i, "value": 0.1} for i in (0, 1)] + [
        {"metric": "m", "value": 1.0}
    ]
    assert sorted(v.kind for v in made(*rows)) == ["dots", "lines"]


def test_vectors_of_a_matrix_begin_with_their_mean():
    rows = [
        {"metric": "m", "layer": i, "component": c, "rank": r, "value": 0.1}
        for i in (0, 1) for c in "qk" for r in range(3)
    ]  # fmt: skip
    found = one(*rows)
    assert (found.kind, found.mean) == ("heat", ("rank",))


@pytest.mark.parametrize("one", everything(family(3)), ids=lambda one: one.analysis)
def test_every_value_of_every_analysis_is_in_exactly_one_view(one):
    found = views(one)
    table = one.table if "member" in one.table else one.table.assign(member="m")
    times = sum((of(view, table).astype(int) for view in found), pd.Series(0, index=table.index))
    assert (times[table["value"].notna()] == 1).all()
    assert begins(one)["metric"] in {metric for view in found for metric in view.metrics}


COLUMN = {
    "layer": st.integers(0, 2), "head": st.integers(0, 2), "x": st.sampled_from([0.1, 0.2]),
    "prompt": st.sampled_from("ab"), "side": st.sampled_from(["base", "tuned"]),
    "task": st.sampled_from(["t", "u"]), "component": st.sampled_from(["q", "k"]),
}  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {"member": st.sampled_from(list(MEMBERS)), "metric": st.sampled_from("mn")}
        | {name: st.none() | values for name, values in COLUMN.items()}
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: tuple(sorted((k, str(v)) for k, v in row.items())),
)


@given(ROWS)
@settings(deadline=None)
def test_of_any_table_every_row_is_in_one_view_that_its_pickers_can_show(rows: list[dict]):
    table = pd.DataFrame([row | {"value": float(i)} for i, row in enumerate(rows)])
    found = views(result("a.b", table.to_dict("records"), MEMBERS))
    times = sum((of(view, table).astype(int) for view in found), pd.Series(0, index=table.index))
    assert (times == 1).all()
    for view in found:
        own = table[of(view, table)]
        # With every picker at one value, what is drawn at one place is one row.
        keys = ["member", "metric", *filter(None, (view.x, view.y, view.style)), *view.pick]
        keys += ["prompt"] if view.kind == "points" else []
        keys = [key for key in dict.fromkeys(keys) if key in own]
        assert not own.duplicated(keys).any()
    assert set(PLACES).isdisjoint(VALUES)
