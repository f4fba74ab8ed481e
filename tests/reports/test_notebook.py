"""What a notebook shows of an object: its numbers and words, and nothing of it is obeyed."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.figures.synthetic import everything, family, retention
from tests.hostile.page import Page, hostile_result
from workbench import figures
from workbench.loaders import PairReport
from workbench.reports.notebook import EXAMPLES, ROWS

EVIL = "<script>alert('x')</script>\u202e & \"><img src=x onerror=alert(1)>"


class Shown(Page):
    """The text of some HTML; raises AssertionError at what none of our objects is shown with."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        assert {name for name, _ in attrs} <= {"style", "open"}
        # A colour of ours would vanish in one of the themes.
        assert not re.search("color|background|url", str(attrs))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile():
    made = hostile_result(EVIL, EVIL, EVIL, EVIL)
    line = {"item": EVIL, "status": "warn", "found": EVIL, "remedy": EVIL}
    prompt = wb.tasks.Prompt("1", EVIL, f" {EVIL}", foils=(EVIL,))
    made = wb.Result(made.analysis, made.table, made.provenance.with_notes((EVIL,)))
    return made, PairReport(pd.DataFrame([line])), wb.tasks.PromptSet(EVIL, (prompt,))


@pytest.mark.parametrize("one", hostile(), ids=lambda one: type(one).__name__)
def test_nothing_of_a_text_is_obeyed(one):
    html = one._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html
    assert "<script>alert('x')</script>" in Shown(html).text


def test_hostile_names_of_members(base: Path, tuned: Path):
    family = wb.load_family(base, {"<b>x</b>": tuned})
    for one in (family, family["<b>x</b>"]):
        assert "<b>" not in one._repr_html_()
        assert "<b>x</b>" in Shown(one._repr_html_()).text


@pytest.mark.parametrize("one", everything(family(3)), ids=lambda one: one.analysis)
def test_a_result_shows_its_sentence_its_numbers_and_its_origin(one):
    text = Shown(one._repr_html_()).text
    lead, parts = figures.findings(one)
    assert all(part in text for part in (lead, *parts))
    assert all(name in text for name in one.members)
    assert one.provenance.command in text
    assert f"the first {ROWS} of {len(one.table)} rows" in text
    for name, version in one.provenance.versions.items():
        assert f"version of {name}{version}" in text


def test_an_interval_stands_beside_its_value_and_n():
    made = retention(family(1))
    row = made.table.iloc[0]
    text = Shown(made._repr_html_()).text
    told = figures.interval(row["value"], row["low"], row["high"])
    assert f"{told}{row['n']}" in text


def test_a_pair_tells_what_was_compared(base: Path, lora: Path):
    pair = wb.load_pair(base, lora, "mine")
    text = Shown(pair._repr_html_()).text
    assert f"{len(pair.comparable)} parameters, {len(pair.sites())} block matrices" in text
    assert pair.tuned.fingerprint[:12] in text
    assert "minelora35" in text  # name, kind, rank and alpha, a cell each


def test_a_null_pair_says_that_it_shows_nothing(base: Path):
    made = wb.spectral.delta_spectrum(wb.load_pair(base, base))
    assert "every number here is the exact null" in Shown(made._repr_html_()).text
    report = wb.load_pair(base, base).check()
    assert "The tuned model equals the base" in Shown(report._repr_html_()).text


def test_what_does_not_belong_together_is_told_not_raised(base: Path, tmp_path: Path):
    from tests.conftest import saved, tiny
    from workbench.loaders import Checkpoint, CheckpointPair

    other = saved(tiny("bert"), tmp_path / "other")
    pair = CheckpointPair(Checkpoint.parse(base), Checkpoint.parse(other))
    text = Shown(pair._repr_html_()).text
    assert "tuned cannot be compared: architecture: base is llama, tuned is bert" in text


def test_a_prompt_set_shows_a_few_examples_with_their_answers():
    drawn = wb.tasks.boxes(9, seed=1, split="test")
    html = drawn._repr_html_()
    text = Shown(html).text
    assert "boxes: 9 prompts" in text
    assert [p.prompt in text for p in drawn] == [i < EXAMPLES for i in range(9)]
    assert all(f"<strong>{p.target}</strong>" in html for p in drawn.prompts[:EXAMPLES])
    assert "0 prompts" in Shown(wb.tasks.PromptSet("none", ())._repr_html_()).text


def test_a_figure_is_a_picture_without_pyplot():
    data, size = retention(family(3)).plot()._repr_png_()
    assert data.startswith(b"\x89PNG")
    # A PNG's first chunk holds its width and height in pixels.
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width / height == pytest.approx(size["width"] / size["height"], rel=0.02)
    assert width > size["width"]
