"""Every figure: labelled, with a control, for one member and for eight, alone and in given axes."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

import workbench as wb
from tests.figures.looking import check, inside, known
from tests.figures.skilled import skills
from tests.figures.synthetic import everything, family
from workbench import figures
from workbench.errors import WorkbenchError


def drawn(results):
    """(name, Figure) of everything the catalogue draws of `results`."""
    for made in results:
        for drawing, group in figures.drawings(made, results):
            yield drawing.name, drawing.draw(*group)


@pytest.fixture(scope="session")
def laid_out(results) -> list[tuple[str, Figure]]:
    """Those of `results`, everything in its place."""
    found = list(drawn(results))
    for _, figure in found:
        figure.draw_without_rendering()
    return found


def test_one_and_eight_members(results, laid_out):
    names = []
    for name, figure in laid_out:
        check(name, figure)
        names.append(name)
    expected = {"count", "places", "matrix", "spectrum", "effective-rank", "sweep", "rank"}
    expected |= {"groups", "layers", "tokens", "output", "alpha"}
    expected |= {name for _, name in known("skills")}
    assert expected <= set(names)
    assert ("forgetting" in names) == (len(results[0].members) > 2)


def test_over_steps(over_steps):
    found = dict(drawn(over_steps))
    check("training", found["training"])
    assert "rank" not in found  # one run has one rank, and no axis of ranks
    alone = dict(drawn(over_steps[:1]))
    assert len(alone["training"].axes) == 2
    assert len(found["training"].axes) == 3


def test_in_given_axes(over_steps):
    """Nothing is drawn outside the figure that was handed in, and its other axes stay empty."""
    for made in (everything(family(3)), skills(family(3)), over_steps):
        for result_ in made:
            for drawing, group in figures.drawings(result_, made):
                figure = Figure(figsize=(9, 4), layout="constrained")
                mine, other = figure.subplots(1, 2)
                assert drawing.draw(*group, ax=mine) is figure
                assert not other.has_data()
                check(drawing.name, figure)
                assert figure.get_figwidth() == 9


def test_several_panels_need_axes_with_a_place(over_steps):
    hand = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(WorkbenchError, match=r"plt\.subplots"):
        figures.forgetting_by_rank(over_steps[1], ax=hand)


def test_legends_cover_no_data(laid_out):
    """The legend of a new figure ends above every panel."""
    for name, figure in laid_out:
        for legend in figure.legends:
            box = legend.get_window_extent()
            tops = [ax.get_window_extent().y1 for ax in figure.axes]
            assert box.y0 >= max(tops) - 1, name
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name


def test_nothing_is_cut_off(laid_out):
    for name, figure in laid_out:
        inside(name, figure)


@pytest.mark.parametrize(
    "name", ["figures", "spectral", "patching", "skills", "forgetting", "behaviour", "tasks"]
)
def test_what_one_can_name_is_what_one_is_shown(name: str):
    """Not the modules that it lies in."""
    part = getattr(wb, name)
    assert dir(part) == sorted(part.__all__)
    assert all(hasattr(part, one) for one in dir(part))
