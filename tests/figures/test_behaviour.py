"""The figures of behaviour, of Results of tiny models, show their numbers and their controls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import APPLE, PLACES, asked, member, mute
from tests.figures.test_figures import check, inside, words
from tests.tuco.conftest import write
from workbench import figures
from workbench.figures import behaviour, said
from workbench.results.result import Result
from workbench.study import units
from workbench.tasks import Prompt, PromptSet, off_by_one

HOSTILE = "$x_1$ <b>&\\"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("behaviour")
    with torch.no_grad():
        base = write(mute(), folder / "base")
        members: Any = {
            "loud": write(member({(APPLE, PLACES): 9.0}), folder / "loud"),
            "soft": write(member({(APPLE, PLACES): 2.0}, noise=0.02), folder / "soft"),
        }
    made = wb.load_family(base, members)
    worked = PromptSet("worked", tuple(
        Prompt(str(i), f"Alice in ; {i} ; {i + 1} ; Bob in", " apple") for i in range(6)
    ))  # fmt: skip
    steps: dict[str, Any] = {"between": " ; ", "filler": ".", "mistake": off_by_one}
    return [
        units.over(made, wb.behaviour.tokens, prompts=asked(PLACES, "apple").texts),
        units.over(made, wb.behaviour.generate, prompts=["Alice in", f"{HOSTILE} in"], length=3),
        units.over(made, wb.behaviour.emulate, prompts=asked(PLACES, "apple"), large=str(base)),
        units.over(made, wb.behaviour.faithfulness, prompts=worked, **steps),
    ]


def test_every_figure_of_behaviour_is_drawn_of_these_results(results):
    drawn = set()
    for one in results:
        for drawing, group in figures.drawings(one, results):
            figure = drawing.draw(*group)
            check(drawing.name, figure)
            figure.draw_without_rendering()
            inside(drawing.name, figure, below=drawing.name != "text")
            drawn.add((drawing.analysis, drawing.name))
    assert drawn == {(d.analysis, d.name) for d in behaviour.DRAWINGS}
    assert {d.analysis for d in behaviour.DRAWINGS} == set(behaviour.SENTENCES)


def test_emulation_is_drawn_again_as_the_same_file(results, tmp_path):
    """The one figure of which figures/ keeps no Result; test_figures holds the others to it."""
    made = [one for one in results if one.analysis == "behaviour.emulate"]
    first, again = (figures.save_all(made, tmp_path / name) for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len(first) == 2


def test_every_sentence_names_its_members(results):
    for one in results:
        head, parts = behaviour.SENTENCES[one.analysis](one)
        assert head
        for name in one.members:
            assert any(name in part for part in parts), one.analysis


def test_the_landscape_tells_its_share_and_chance(results):
    row = results[0].metric("conflict_share").set_index("member").loc["loud"]
    shown = words(said.token_landscape(results[0]))
    assert f"{row['value']:.1%} (chance {row['baseline']:.1%})" in shown


def test_the_coloured_text_holds_every_word_once_a_member(results):
    table = results[0].metric("token")
    table = table[(table["prompt"] == "0") & (table["member"] == "loud")]
    shown = words(said.coloured_text(results[0])).split()
    for word in table["token"]:
        assert shown.count(word.strip()) >= 2  # two members


def test_hostile_text_is_shown_as_it_is(results):
    figure = said.side_by_side(results[1])
    figure.draw_without_rendering()  # mathtext would fail here
    assert r"\$x_1\$ <b>&" in words(figure)


def test_new_words_are_the_planted_ones(results):
    figure = said.new_words(results[1])
    assert figure.axes[0].get_yticklabels()[0].get_text() == "apple"
