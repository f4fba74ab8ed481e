"""Every figure and every sentence of forgetting, of Results of tiny models."""

from __future__ import annotations

from tests.figures.looking import check, inside, known
from workbench import figures
from workbench.figures import catalogue


def test_every_figure_of_forgetting_is_drawn_of_these_results(results):
    drawn = set()
    for one in results:
        for drawing, group in figures.drawings(one, results):
            figure = drawing.draw(*group)
            check(drawing.name, figure)
            figure.draw_without_rendering()
            inside(drawing.name, figure)
            drawn.add((drawing.analysis, drawing.name))
    # Retention and association need other Results; test_saving draws them of kept ones.
    wanted = known("forgetting", "forgetting.retention", "forgetting.association")
    assert drawn == wanted
    assert {analysis for analysis, _ in wanted} == {one.analysis for one in results}


def test_every_sentence_names_its_members(results):
    for one in results:
        head, parts = catalogue.SENTENCES[one.analysis](one)
        assert head
        for member in one.members:
            assert any(member in part for part in parts), one.analysis
