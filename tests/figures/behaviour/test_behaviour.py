"""Every figure and every sentence of behaviour, of Results of tiny models."""

from __future__ import annotations

from tests.figures.looking import check, inside, known
from workbench import figures
from workbench.figures import catalogue


def test_every_figure_of_behaviour_is_drawn_of_these_results(results):
    drawn = set()
    for one in results:
        for drawing, group in figures.drawings(one, results):
            figure = drawing.draw(*group)
            check(drawing.name, figure)
            figure.draw_without_rendering()
            inside(drawing.name, figure, below=drawing.name != "text")
            drawn.add((drawing.analysis, drawing.name))
    assert drawn == known("behaviour")
    assert {analysis for analysis, _ in drawn} == {one.analysis for one in results}


def test_every_sentence_names_its_members(results):
    for one in results:
        head, parts = catalogue.SENTENCES[one.analysis](one)
        assert head
        for name in one.members:
            assert any(name in part for part in parts), one.analysis
