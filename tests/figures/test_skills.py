"""The figures of skills show the numbers of their Results, and a control."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tests.figures import skilled
from tests.figures.skilled import BASE, TUNED
from tests.figures.synthetic import COMPONENTS, LAYERS, TASK, family
from tests.figures.test_figures import words
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures import grafted, style

LORA, FULL = "lora-r1", "full"


def lines(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What every labelled line of a panel shows."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in ax.lines
    }


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def level(gain: float | np.ndarray) -> float | np.ndarray:
    """The score at a share of the gain."""
    return BASE + gain * (TUNED - BASE)


def heights(ax: Axes) -> set[float]:
    """Where the grey lines of the two models run."""
    grey = [line for line in ax.lines if line.get_color() == style.GREY]
    return {round(float(y[0]), 6) for y in (line.get_ydata() for line in grey) if len(y) == 2}


def test_every_figure_of_skills_is_drawn_of_these_results():
    made = skilled.skills(family(2))
    drawn = {(d.analysis, d.name) for one in made for d, _ in figures.drawings(one, made)}
    assert drawn == {(d.analysis, d.name) for d in grafted.DRAWINGS}
    assert {d.analysis for d in grafted.DRAWINGS} == set(grafted.SENTENCES)
    assert set(grafted.SENTENCES) == {one.analysis for one in made}


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


def test_graft_scores():
    figure = figures.graft_scores(skilled.localize(family(2)))
    assert [ax.get_title(loc="left") for ax in panels(figure)] == [LORA, FULL]
    for ax in panels(figure):
        shown = lines(ax)
        for arm, label in (("learned", "learned mask"), ("movement", "largest change |Δ|"),
                           ("random", "random entries")):  # fmt: skip
            x, y = shown[label]
            np.testing.assert_allclose(x, skilled.SPARSITIES)
            np.testing.assert_allclose(y, level(np.minimum(1, x / skilled.NEEDED[arm])))
        assert len(shown["one layer"][0]) == LAYERS
        assert heights(ax) >= {BASE, TUNED}
        assert ax.get_xscale() == "log"
    # A band for the learned mask and for random entries, and no further one.
    assert len(panels(figure)[0].collections) == 2
    assert "largest weights |θ₀|" not in legend(figure)  # it was not asked for
    calibrated = figures.graft_scores(skilled.localize(family(1)), metric="ece")
    assert panels(calibrated)[0].get_ylabel() == f"calibration error on {TASK}"


def test_graft_places_takes_the_smallest_graft_that_does():
    made = skilled.localize(family(1))
    (image,) = panels(figures.graft_places(made))[0].images
    assert image.get_array().shape == (LAYERS, len(COMPONENTS))
    np.testing.assert_allclose(image.get_array()[2], np.log2(LAYERS))
    np.testing.assert_allclose(image.get_array()[0], -4)  # none of it, cut off at a 16th
    assert "1.00%" in words(figures.graft_places(made))
    assert "10.00%" in words(figures.graft_places(made, arm="movement"))


def test_overlap_matrix_is_over_chance():
    figure = figures.overlap_matrix(skilled.overlap(family(2)))
    (ax,) = panels(figure)
    grid = np.ma.filled(ax.images[0].get_array(), np.nan)
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == [f"{member}, {task}" for member in (LORA, FULL) for task in (TASK, "facts")]
    assert np.isnan(np.diag(grid)).all()
    np.testing.assert_allclose([grid[0, 2], grid[2, 0]], np.log2(50))
    np.testing.assert_allclose([grid[0, 1], grid[0, 3]], 0, atol=1e-9)
    assert "0.5\n0.01 | 0.05" in words(figure)


def test_composition_has_the_base_below_and_its_controls_beside():
    figure = figures.composition(skilled.compose(family(2)))
    graft, random, whole = (ax.images[0].get_array() for ax in panels(figure))
    np.testing.assert_allclose(graft, [[BASE] * 2, [0.9, BASE], [BASE, 0.9], [0.8, 0.8]])
    np.testing.assert_allclose(random, BASE)
    np.testing.assert_allclose(whole[-1], 0.95)
    rows = [tick.get_text() for tick in panels(figure)[0].get_yticklabels()]
    assert rows == ["none (base)", TASK, "facts", f"{TASK} + facts"]


def test_restoration_runs_from_the_tuned_model_to_the_base():
    figure = figures.restoration(skilled.restore(family(2)))
    for ax, name in zip(panels(figure), (LORA, FULL), strict=True):
        shown = lines(ax)
        assert ax.get_title(loc="left") == name
        for arm, (label, *_) in figures.updates.ORDERS.items():
            x, y = shown[label]
            np.testing.assert_allclose(x, [0, *skilled.SHARES, 1])
            np.testing.assert_allclose(y, level(skilled.LEFT[arm](x)))
        assert len(ax.collections) == 2 + len(skilled.LEFT)  # two bands, and a bar at every ring
        rings = [(float(line.get_xdata()[0]), float(line.get_ydata()[0]))
                 for line in ax.lines
                 if line.get_markerfacecolor() == "none" and len(line.get_xdata())]  # fmt: skip
        expected = [(q, level(skilled.LEFT[arm](q))) for arm, q in skilled.FREE.items()]
        np.testing.assert_allclose(rings, expected)
        bars = [c.get_segments()[0][:, 0] for c in ax.collections if isinstance(c, LineCollection)]
        assert bars[2].tolist() == [0.4, 0.8]  # the range of the choice
        assert np.ptp(np.delete(bars, 2, 0), axis=1).max() == 0  # nothing else was free
        assert heights(ax) >= {BASE, TUNED}
    assert "free (with its range)" in legend(figure)
    assert "base" in words(figure)


def test_restoration_takes_another_metric():
    figure = figures.restoration(skilled.restore(family(1)), metric="log_probability")
    assert panels(figure)[0].get_ylabel() == f"log p(answer) (nats) on {TASK}"
    with pytest.raises(WorkbenchError, match="no metric 'brier'"):
        figures.restoration(skilled.restore(family(1)), metric="brier")


def test_bits_against_score():
    figure = figures.bits_score(skilled.compression(family(2)))
    lora, full = panels(figure)
    x, y = lines(lora)["best low rank of Δ"]
    np.testing.assert_allclose(x, np.array(skilled.RANKS) / 8)
    np.testing.assert_allclose(y, level(np.array([0.25, 0.5, 1, 1])))
    assert lines(lora)["random entries"][1] == pytest.approx([BASE] * 3)
    assert lora.get_xscale() == "log"
    assert heights(lora) >= {BASE, TUNED}
    points = [
        {str(c.get_label()): c.lines[0].get_xydata()[0] for c in ax.containers}
        for ax in (lora, full)
    ]
    np.testing.assert_allclose(points[0]["the adapter's own file"], (skilled.ADAPTER, TUNED))
    assert "the adapter's own file" not in points[1]
    for shown in points:
        np.testing.assert_allclose(shown["tuned, 16 bits an entry"], (skilled.DENSE, TUNED))
        np.testing.assert_allclose(
            shown["signs and one scale (1 bit)"], (skilled.ONE_BIT, level(0.4))
        )
    assert {"principal weights", "singular vectors at 8, 3, 2 bits"} <= set(legend(figure))


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
    assert [d.name for d, _ in figures.drawings(none, [none])] == ["changes"]
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


def test_reliability_lies_on_the_diagonal_where_it_is_right():
    figure = figures.reliability(skilled.calibration(family(2)))
    confidence = np.array([x for x, _ in skilled.BINS])
    looks = style.looks(skilled.calibration(family(2)))
    for ax, look in zip(panels(figure), looks.values(), strict=True):
        arms = {str(c.get_label()): c for c in ax.containers}
        assert list(arms) == ["base", "tuned", "learned 1%"]
        base, tuned, _ = (c.lines[0] for c in arms.values())
        np.testing.assert_allclose(tuned.get_xydata(), np.stack([confidence] * 2, 1))
        np.testing.assert_allclose(base.get_xydata()[:, 1], confidence**2)
        assert (base.get_color(), tuned.get_color()) == (style.GREY, look.colour)
        assert len({c.lines[0].get_color() for c in arms.values()}) == 3
        (bars,) = arms["tuned"].lines[2]
        np.testing.assert_allclose(bars.get_segments()[1][:, 1], [0.35, 0.75])
        sizes = [c.get_sizes() for c in ax.collections if c.get_offsets().size == 6]
        assert all((np.diff(size) > 0).all() for size in sizes)  # as the prompts in the bins
        assert len(sizes) == 3
        np.testing.assert_allclose(lines(ax)["perfectly calibrated"], ([0, 1], [0, 1]))
        told = [text.get_text() for text in ax.texts]
        assert told[0] == "base: ECE 0.300; perfect 0.060 [0.020, 0.110]"
        assert len(told) == 3
    assert panels(figure)[0].get_ylabel() == f"accuracy on {TASK}"


def test_reliability_shows_bins_of_equal_mass_on_request():
    made = skilled.calibration(family(1), grafts=())
    moved = made.table["binning"].eq("mass")
    made.table.loc[moved, "value"] = 0.5
    (ax,) = panels(figures.reliability(made, binning="mass"))
    assert all(set(c.lines[0].get_ydata()) == {0.5} for c in ax.containers)
    (ax,) = panels(figures.reliability(made))
    assert not any(set(c.lines[0].get_ydata()) == {0.5} for c in ax.containers)


def test_sentences_hold_the_numbers_and_the_control():
    members = family(2)
    said = {one.analysis: figures.headline(one) for one in skilled.skills(members)}
    for words_, analysis in (
        ("learned mask: 1.00 [0.92, 1.08] at 1.000%", "localize"),
        ("random entries: not enough yet, 0.10 [0.02, 0.18] at 10.000%", "localize"),
        ("0.500 (chance 0.010, 95% range 0.005 to 0.016; within matrices 0.050)", "overlap"),
        (f"{TASK}: 0.90 with its own graft alone, -0.10 [-0.15, -0.05] with all", "compose"),
        ("smallest |Δ| first 40% [40%, 80%] (score -0.010 [-0.030, +0.010]", "restore"),
        ("harmful updates, smallest |Δ| first 40%: +0.040 [+0.010, +0.070]", "restore"),
        ("random entries first 0%", "restore"),
        ("20 prompts chose", "restore"),
        ("rank 0.50 bits (1.00 [0.92, 1.08])", "compression"),
        ("adapter 2.00 bits", "compression"),
        ("random not reached", "compression"),
        ("base 0.300 [0.030, 0.350] (perfect 0.060 [0.020, 0.110])", "calibration"),
        ("3 matrices best first 0.90 [0.85, 0.95], 3 at random 0.27", "blocks"),
        (f"most missed of {LAYERS * len(COMPONENTS)} layer 1 self_attn.q_proj -0.50", "blocks"),
    ):
        assert words_ in said[f"skills.{analysis}"], (analysis, said[f"skills.{analysis}"])
    assert all("harmful" not in part for part in said["skills.restore"].split("; ")[2:])


def test_a_gain_that_may_be_nothing_is_not_compressed_in_words():
    made = skilled.compression(family(1))
    gains = made.table["metric"] == "gain"
    empty = replace(made, table=made.table.assign(value=made.table["value"].mask(gains)))
    assert "lora-r1: no gain to store" in figures.headline(empty)
