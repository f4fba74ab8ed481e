"""Every figure: labelled, with a control, for one member and for eight, alone and in given axes."""

from __future__ import annotations

import re

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

import workbench as wb
from tests.figures import patched
from tests.figures.looking import apart, check, inside, known, of_handle, panels, words
from tests.figures.skilled import skills
from tests.figures.synthetic import (
    everything,
    family,
    intruders,
    kept_items,
    retention,
    stepped,
)
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures import style


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


@pytest.mark.parametrize("members", [1, 2])
def test_figures_of_patching_have_room_for_their_labels(members):
    """Two panels side by side have labels as wide as one alone."""
    makers = (
        patched.contributions, patched.das, patched.dictionary, patched.difference, patched.drift,
        patched.edge_circuits, patched.knockout, patched.lens, patched.path, patched.patterns,
        patched.prefix, patched.steer,
    )  # fmt: skip
    for name, figure in drawn([make(family(members)) for make in makers]):
        figure.draw_without_rendering()
        inside(name, figure)
        apart(name, figure)


PATCHED = (patched.lens, patched.patterns, patched.attribution)
LONG = "a-very-long-name-of-a-fine-tuned-model-as-hubs-have-them-{}"


@pytest.fixture(scope="module")
def named_at_length() -> list[tuple[str, Figure]]:
    """Every figure of models, and over steps of models, whose names are long; laid out."""
    made = {LONG.format(name): about for name, about in family(4).items()}
    steps = {LONG.format(name): about for name, about in stepped().items()}
    results = [
        *everything(made),
        *skills(made),
        kept_items(made),
        *(make(made) for make in PATCHED),
    ]
    found = [*drawn(results), *drawn([intruders(steps), retention(steps)])]
    for _, figure in found:
        figure.draw_without_rendering()
    return found


def test_no_text_is_cut_off_or_lies_on_another(named_at_length, laid_out):
    for name, figure in [*named_at_length, *laid_out]:
        inside(name, figure)
        apart(name, figure)


def test_every_figure_has_its_n(named_at_length, laid_out):
    for name, figure in [*named_at_length, *laid_out]:
        assert re.search(r"\bn = \d+", words(figure)), name


def test_logarithmic_axes_are_marked_as_such(named_at_length, laid_out):
    seen = 0
    for name, figure in [*named_at_length, *laid_out]:
        for ax in panels(figure):
            for scale, label in (
                (ax.get_xscale(), ax.get_xlabel()), (ax.get_yscale(), ax.get_ylabel()),
            ):  # fmt: skip
                if scale == "log" and label:
                    seen += 1
                    assert "(log scale)" in label, name
    assert seen > 10


def test_controls_are_grey_broken_and_above_what_they_control(named_at_length):
    """So that both show where they coincide."""
    seen = 0
    for name, figure in named_at_length:
        for ax in panels(figure):
            curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
            grey = [line for line in curves if line.get_color() == style.GREY]
            others = [
                line for line in curves
                if line.get_color() != style.GREY and line.get_linestyle() == "-"
            ]  # fmt: skip
            for line in grey if others else []:
                if name == "spectrum":  # a random matrix, far above every line
                    continue
                seen += 1
                assert line.is_dashed(), name
                assert line.get_zorder() > max(one.get_zorder() for one in others), name
    assert seen > 5


def test_the_legend_shows_no_control_in_a_models_colour(named_at_length):
    for name, figure in named_at_length:
        for legend in figure.legends:
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
                if re.match(r"null|random|same spectrum|control|base$|chance", text.get_text()):
                    found = mpl.colors.to_hex(of_handle(handle))
                    assert len({found[1:3], found[3:5], found[5:7]}) == 1, (name, text.get_text())


@pytest.mark.parametrize(
    "name", ["figures", "spectral", "patching", "skills", "forgetting", "behaviour", "tasks"]
)
def test_what_one_can_name_is_what_one_is_shown(name: str):
    """Not the modules that it lies in."""
    part = getattr(wb, name)
    assert dir(part) == sorted(part.__all__)
    assert all(hasattr(part, one) for one in dir(part))
