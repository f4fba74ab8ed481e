"""A Result's views stand alone, in a notebook's frame or as a file."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.figures.synthetic import family, retention
from tests.reports.browser import tab
from workbench.errors import WorkbenchError
from workbench.reports import packing
from workbench.results.result import Result


def test_a_notebook_shows_it_in_a_frame_that_reaches_nothing():
    shown = retention(family(2)).explore()._repr_html_()
    frame = re.fullmatch(r'<iframe sandbox="([^"]*)".* srcdoc="([^"]*)"></iframe>', shown, re.S)
    assert frame
    assert frame[1].split() == ["allow-scripts", "allow-downloads"]
    page = html.unescape(frame[2])
    assert page == retention(family(2)).explore().page
    assert "default-src &#39;none&#39;" in page


def test_the_frame_draws(tmp_path):
    """In a page as a notebook makes one, where nothing can be asked of the frame: by its pixels."""
    one = retention(family(1))
    outer = tmp_path / "notebook.html"
    outer.write_text(f"<!doctype html>{one.explore()._repr_html_()}")
    (look,) = packing.looks(one.provenance.members).values()
    with tab(tmp_path / "profile") as opened:
        opened.open(outer.as_uri(), 1000)
        assert {url for url in opened.requests if not url.startswith("about:")} == {outer.as_uri()}
        until = time.monotonic() + 20
        while _share(opened.picture(tmp_path / "seen.png"), look["colour"]) < 1e-4:
            assert time.monotonic() < until, "The frame shows no mark in the model's colour"
        assert opened.told == []


def _share(picture: Path, colour: str) -> float:
    """The share of a picture that has a colour; the dot of a legend alone is less than 1e-4."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return float((np.abs(pixels - wanted).max(-1) < 8).mean())


def test_it_is_saved_where_nothing_else_is(tmp_path):
    one = retention(family(1)).explore()
    assert one.save(tmp_path / "x.html").read_text(encoding="utf-8") == one.page
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(WorkbenchError, match=r"notes\.html"):
        one.save(tmp_path / "notes.html")


def test_a_table_without_end_is_refused(monkeypatch):
    one: Result = retention(family(2))
    monkeypatch.setattr(packing, "WHOLE", 3)
    with pytest.raises(WorkbenchError, match=r"at most 3 rows.*found \d+"):
        one.explore()
