"""Every analysis has a sentence, its figures and their captions, found by its key."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot
import pytest

from tests.figures.looking import words
from tests.figures.skilled import skills
from tests.figures.synthetic import everything, family, intruders, result, stepped
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures import catalogue
from workbench.study.catalogue import METHODS

ROOT = Path(figures.__file__).parent


def test_the_files_of_a_method_are_found_by_its_key():
    for method in catalogue.METHODS:
        assert Path(method.__file__) == ROOT / f"{method.KEY.replace('.', '/')}.py"
        assert {drawing.analysis for drawing in getattr(method, "DRAWINGS", ())} <= {method.KEY}


def test_every_file_of_the_folders_is_a_method_or_shared_by_some():
    """A file without a KEY is drawn by nobody unless another one imports from it."""
    found = {Path(method.__file__) for method in catalogue.METHODS}
    for path in set(ROOT.glob("*/[!_]*.py")) - found:
        name = f"workbench.figures.{path.parent.name}.{path.stem}"
        assert any(f"from {name} import" in method.read_text() for method in found), path
        assert "DRAWINGS" not in path.read_text()


def test_every_analysis_has_figures_and_a_sentence():
    methods = {method.key for method in METHODS} - {"patching.groups"}  # patches of cross_model
    assert methods <= set(catalogue.SENTENCES)
    assert methods <= set(catalogue.HEADINGS)
    drawn = {drawing.analysis for drawing in figures.CATALOGUE}
    assert drawn <= set(catalogue.SENTENCES)
    # Restored parameters are a curve of cross_model; paths to receivers of one's own are not drawn.
    assert set(catalogue.SENTENCES) - drawn == {"patching.restore", "patching.path"}


def test_draw_is_the_first_figure_and_result_plot_calls_it():
    made = intruders(family(1))
    first, second = (drawing for drawing, _ in list(figures.drawings(made, [made]))[:2])
    wanted = words(first.draw(made))
    assert words(figures.draw(made)) == words(made.plot()) == wanted
    assert words(second.draw(made)) != wanted
    other = result("patching.path", [{"metric": "gap", "value": 1.0}], {"a": {}})
    with pytest.raises(WorkbenchError, match=r"No figure of 'patching\.path'"):
        figures.draw(other)


def test_every_caption_says_when_it_misleads():
    names = [(drawing.analysis, drawing.name) for drawing in figures.CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(drawing.caption and drawing.misleads for drawing in figures.CATALOGUE)


def test_a_plot_takes_a_size_and_a_title_and_names_its_options():
    made = intruders(family(2))
    drawn = made.plot(figsize=(5.0, 3.0), title="Mine")
    assert tuple(drawn.get_size_inches()) == (5, 3)
    assert drawn.get_suptitle() == "Mine"
    _, axes = mpl.pyplot.subplots()
    made.plot(axes, title="Here")
    assert axes.get_title() == "Here"
    with pytest.raises(WorkbenchError, match="has no option 'size'; it has k, percent, figsize"):
        made.plot(size=3)
    with pytest.raises(WorkbenchError, match="found both"):
        made.plot(axes, figsize=(5, 3))


def test_every_analysis_has_one_sentence_and_an_unknown_one_a_general_one():
    for made in [*everything(family(3)), *skills(family(3))]:
        assert figures.headline(made).endswith(".")
        # Of grafts put together the tasks are named, and of many overlaps the first.
        if made.analysis not in ("skills.compose", "skills.overlap"):
            assert all(name in figures.headline(made) for name in made.members)
    other = result("another.analysis", [{"metric": "gap", "value": 1.0}], stepped())
    assert "1 values of gap" in figures.headline(other)
