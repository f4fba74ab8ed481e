"""What a page carries is whole: numbers, pictures, scripts."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.figures.synthetic import result
from workbench.reports import packing
from workbench.results import cache

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
CELLS = st.lists(st.tuples(NUMBERS, st.none() | st.text(max_size=5)), min_size=1, max_size=20)


@given(CELLS)
def test_any_table_comes_back(cells: list[tuple[float, str | None]]):
    rows = [{"member": "m", "metric": "x", "value": v, "text": t} for v, t in cells]
    content = packing.packed(result("a.b", rows, {"m": {}}))
    assert content is not None
    found = json.loads(gzip.decompress(base64.b64decode(content)))
    back = [float(v) if v is not None else np.nan for v in found["columns"]["value"]]
    np.testing.assert_allclose(back, [v for v, _ in cells], rtol=1e-5)
    texts = pd.Series([t for _, t in cells], dtype=object)
    assert found["rows"] == len(cells)
    if texts.notna().any():
        column = found["columns"]["text"]
        assert [at >= 0 for at in column["at"]] == list(texts.notna())


def test_the_same_table_gives_the_same_page():
    one = result("a.b", [{"member": "m", "metric": "x", "value": 1.0}], {"m": {}})
    assert packing.packed(one) == packing.packed(one)


def test_a_picture_keeps_the_colours_of_a_scale():
    """A map is read by its colours: they move by less than two steps of a scale of a hundred."""
    ramp = np.linspace(0, 255, 100).astype("uint8")
    scale = np.repeat(np.repeat(np.stack([ramp, 255 - ramp, ramp // 2], -1)[None], 40, 0), 8, 1)
    made = io.BytesIO()
    Image.fromarray(scale).save(made, "PNG")
    address, width, height = packing.picture(made.getvalue())
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    assert shown.size == (width, height)
    before = np.asarray(Image.fromarray(scale).resize(shown.size, Image.Resampling.LANCZOS))
    moved = np.abs(np.asarray(shown).astype(int) - before.astype(int))
    assert np.median(moved) < 5


def test_vega_is_made_once_and_a_spoiled_copy_is_made_again(tmp_path, monkeypatch):
    script = packing.vega()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    made: list[str] = []
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda text: made.append(text) or "let a;")
    packing.vega.cache_clear()
    first = packing.vega()
    packing.vega.cache_clear()
    assert packing.vega() == first
    assert len(made) == 1
    (kept,) = (tmp_path / "scripts").iterdir()
    kept.write_text(kept.read_text() + "alert(1)")
    packing.vega.cache_clear()
    assert packing.vega() == first
    assert len(made) == 2
    shutil.rmtree(tmp_path / "scripts")
    packing.vega.cache_clear()
    monkeypatch.undo()
    assert cache.folder("scripts") != tmp_path / "scripts"
    assert packing.vega() == script


@pytest.mark.parametrize("hostile", ["</script><b>", "<!-- <script>", "</SCRIPT >"])
def test_a_script_cannot_end_before_its_end(hostile: str):
    made = packing._inline(f"const a = '{hostile}';")
    assert "</script" not in made.lower()
    assert "<!--" not in made
