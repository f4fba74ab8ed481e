"""Every figure of skills is drawn, and nothing of it lies on another."""

from __future__ import annotations

from matplotlib.transforms import Bbox

from tests.figures import skilled
from tests.figures.looking import known, panels
from tests.figures.synthetic import family
from workbench import figures
from workbench.figures import catalogue


def test_every_figure_of_skills_is_drawn_of_these_results():
    made = [one for one in skilled.skills(family(2)) if one.analysis.startswith("skills.")]
    drawn = {(d.analysis, d.name) for one in made for d, _ in figures.drawings(one, made)}
    assert drawn == known("skills")
    sentences = {key for key in catalogue.SENTENCES if key.startswith("skills.")}
    assert {analysis for analysis, _ in drawn} == sentences
    assert sentences == {one.analysis for one in made}


def test_no_text_lies_on_another():
    """Tick labels, titles and notes of a panel; what matplotlib places itself is not all it."""
    made = skilled.skills(family(2))
    for one in made:
        for drawing, group in figures.drawings(one, made):
            figure = drawing.draw(*group)
            figure.draw_without_rendering()
            for ax in panels(figure):
                notes = [t for t in (*ax.texts, ax._left_title) if t.get_text()]
                boxes = [t.get_window_extent().padded(-0.5) for t in notes]
                for i, box in enumerate(boxes):
                    crossed = [n.get_text() for n, other in
                               zip(notes[:i], boxes[:i], strict=True)
                               if Bbox.intersection(box, other) is not None]  # fmt: skip
                    assert not crossed, (drawing.name, notes[i].get_text(), crossed)
