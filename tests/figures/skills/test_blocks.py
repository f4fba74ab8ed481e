"""Single matrices of the change: those that help, and those that are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from tests.figures import skilled
from tests.figures.looking import heights, legend, lines, panels
from tests.figures.skilled import BASE, TUNED, level
from tests.figures.synthetic import COMPONENTS, LAYERS, family
from workbench import figures

LORA, FULL = "lora-r1", "full"


def test_the_greedy_curve_names_what_it_added():
    figure = figures.greedy_blocks(skilled.blocks(family(2)))
    for ax in panels(figure):
        x, y = lines(ax)["best next matrix"]
        np.testing.assert_allclose(x, range(4))
        np.testing.assert_allclose(y, level(np.arange(4) / 3))
        np.testing.assert_allclose(lines(ax)["random order"][1], level(np.arange(4) / 30))
        ticks = [tick.get_text() for tick in ax.get_xticklabels()]
        assert ticks == ["0", "1: 1.q_proj", "2: 0.up_proj", "3: 3.v_proj"]
        # What every matrix together gives, where that is not the tuned model.
        assert heights(ax) >= {BASE, TUNED, round(float(level(0.95)), 6)}
        assert {"base", "all", "tuned"} <= {text.get_text() for text in ax.texts}
    assert legend(figure) == ["random order", "best next matrix"]


def test_a_greedy_path_that_took_nothing_is_the_base_and_has_no_figure_of_its_own():
    made = skilled.blocks(family(1))
    none = replace(made, table=made.table[~made.table["arm"].isin(["greedy", "random"])])
    assert [d.name for d, _ in figures.drawings(none, [none])] == ["changes", "edits"]
    x, _ = lines(panels(figures.greedy_blocks(none))[0])["best next matrix"]
    np.testing.assert_allclose(x, [0])


def test_block_changes_off_beside_alone():
    figure = figures.block_changes(skilled.blocks(family(2)))
    titles = [f"{name}: {arm}" for name in (LORA, FULL) for arm in ("off", "alone")]
    assert [ax.get_title(loc="left") for ax in panels(figure)] == titles
    row, column = skilled.NEEDED_BLOCK[0], COMPONENTS.index(skilled.NEEDED_BLOCK[1])
    for ax, value in zip(panels(figure), (skilled.OFF, skilled.ALONE) * 2, strict=True):
        grid = np.ma.filled(ax.images[0].get_array(), np.nan)
        assert grid.shape == (LAYERS, len(COMPONENTS))
        assert grid[row, column] == value
        assert np.abs(np.delete(grid, row, 0)).max() == 0
        assert ax.images[0].get_clim() == (-0.5, 0.5)
        # Only what its interval tells from 0 has a dot.
        np.testing.assert_allclose(ax.lines[0].get_xydata(), [(column, row)])
    plain = figures.block_changes(skilled.blocks(family(1)), tested=False)
    assert not panels(plain)[0].lines


def test_layers_without_a_changed_matrix_keep_their_place():
    made = skilled.blocks(family(1))
    kept = replace(made, table=made.table[made.table["layer"].fillna(0) != 2])
    grid = np.ma.filled(panels(figures.block_changes(kept))[0].images[0].get_array(), np.nan)
    assert grid.shape == (LAYERS, len(COMPONENTS))
    assert np.isnan(grid[2]).all()
    assert np.isfinite(np.delete(grid, 2, 0)).all()


def test_dots_stay_in_the_figures_own_maps():
    figure = Figure(figsize=(9, 4), layout="constrained")
    mine, other = figure.subplots(1, 2)
    other.imshow(np.eye(2))
    figures.block_changes(skilled.blocks(family(1)), ax=mine)
    assert not other.lines


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.blocks(family(2)))
    for words_ in (
        "3 matrices best first 0.90 [0.85, 0.95], 3 at random 0.27",
        f"most missed of {LAYERS * len(COMPONENTS)} layer 1 self_attn.q_proj -0.50",
    ):
        assert words_ in said, said
